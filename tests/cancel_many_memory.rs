//! That cancelling ever so many operations takes no more memory than cancelling some.
//!
//! It is the only test of its process, whose memory it measures.
#![cfg(target_os = "linux")]

#[path = "support/in_process.rs"]
mod in_process;

use std::fs;

use in_process::Server;
use tonic::Status;

/// The most memory that this process has ever had, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let line = line.expect("Linux has it");
    let kib = line.split_whitespace().nth(1).expect("a number");
    kib.parse::<u64>().expect("a number") << 10
}

#[tokio::test]
async fn a_hundred_thousand_names_take_the_memory_of_a_few() {
    const NAMES: u64 = 100_000;
    const BYTES_OF_A_NAME: u64 = 512;
    let server = Server::of_looks(|_| Box::pin(async { Err(Status::unimplemented("no looks")) }));
    let client = server.client();
    let cancel = async |names: u64| {
        let names = (0..names).map(|n| format!("operations/{n:0501}"));
        let mut reports = client.cancel_operations(tokio_stream::iter(names)).fixed();
        let mut count = 0;
        while let Some(report) = reports.next().await {
            assert_eq!(report.name.len() as u64, BYTES_OF_A_NAME);
            report.result.expect("accepted");
            count += 1;
        }
        count
    };
    assert_eq!(cancel(1_000).await, 1_000);
    let some = peak();
    assert_eq!(cancel(NAMES).await, NAMES);
    let grown = peak() - some;
    // The names alone, kept, would be 50 MB.
    assert!(grown < NAMES * BYTES_OF_A_NAME / 20, "{grown} bytes more");
}

//! Cancelling many operations on a server with a quota, over sockets.

use std::time::{Duration, Instant};

use longrunning::{
    OperationsClient,
    emulator::{CallOutcome, Method},
};
use tonic::Code;

use crate::{
    Result,
    fleet::{Server, runtime},
};

/// Prints two tables. The baseline is the ideal: as many calls per second as the quota allows, none of them rejected.
/// The argument `short` skips the runs of 200 seconds.
pub(crate) fn run(arguments: &[String]) -> Result {
    println!(
        "| quota, calls/s | latency, ms | operations | rate limit | seconds | ratio to the ideal | rejected, % | rejected after 2 s, % |"
    );
    println!("|--:|--:|--:|---|--:|--:|--:|--:|");
    for quota in [500, 5_000] {
        for latency in [1, 50, 500] {
            row(quota, latency, 20 * quota, None)?;
        }
    }
    if arguments.iter().all(|argument| argument != "short") {
        row(500, 50, 100_000, None)?;
        row(500, 50, 100_000, Some(100))?;
    }
    println!();
    println!(
        "| quota, calls/s | quota after 10 s, calls/s | latency, ms | ratio of the rate to the new quota, 5 to 8 s after the change |"
    );
    println!("|--:|--:|--:|--:|");
    for (quota, changed) in [(500, 250), (500, 1_000), (5_000, 2_500), (5_000, 10_000)] {
        for latency in [1, 50, 500] {
            change(quota, changed, latency)?;
        }
    }
    Ok(())
}

/// Measures a run and prints its row. `fixed` disables the rate limit and sets the number of names in flight.
fn row(quota: usize, latency: u64, operations: usize, fixed: Option<usize>) -> Result {
    let server = start(quota, latency, operations)?;
    let begun = Instant::now();
    let attempts = runtime()?.block_on(async {
        let client = OperationsClient::builder(server.emulator.endpoint());
        let client = client.max_connections(100).connect().await?;
        let names = tokio_stream::iter((0..operations).map(name));
        let mut reports = client
            .cancel_operations(names)
            .max_in_flight(fixed.unwrap_or(5_000));
        if fixed.is_some() {
            reports = reports.fixed();
        }
        while let Some(report) = reports.next().await {
            report.result?;
        }
        Ok::<_, tonic::Status>(reports.stats().attempts)
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let calls = server.emulator.calls();
    if calls.len() as u64 != attempts {
        return Err(format!(
            "the client reported {attempts} attempts, but the server received {} calls",
            calls.len()
        )
        .into());
    }
    let rejected = |from: Duration| {
        let from = calls[0].received_at() + from;
        let calls = calls.iter().filter(|call| call.received_at() >= from);
        let (rejected, all) = calls.fold((0_u64, 0_u64), |(rejected, all), call| {
            let is_rejected = call.outcome() == CallOutcome::Answered(Code::ResourceExhausted);
            (rejected + u64::from(is_rejected), all + 1)
        });
        100.0 * rejected as f64 / all as f64
    };
    let rate = fixed.map_or("adaptive".to_owned(), |fixed| {
        format!("none, {fixed} in flight")
    });
    let ratio = seconds * quota as f64 / operations as f64;
    let (all, later) = (rejected(Duration::ZERO), rejected(Duration::from_secs(2)));
    println!(
        "| {quota} | {latency} | {operations} | {rate} | {seconds:.1} | {ratio:.3} | {all:.2} | {later:.2} |"
    );
    Ok(())
}

/// Measures a run in which the quota changes after 10 seconds, and prints its row.
fn change(quota: usize, changed: usize, latency: u64) -> Result {
    let server = start(quota, latency, 11 * quota + 9 * changed)?;
    let begun = Instant::now();
    let changed_at = begun + Duration::from_secs(10);
    runtime()?.block_on(async {
        let client = OperationsClient::builder(server.emulator.endpoint());
        let client = client.max_connections(100).connect().await?;
        let names = tokio_stream::iter((0..server.emulator.operation_count()).map(name));
        let mut reports = client.cancel_operations(names).max_in_flight(10_000);
        let cancel = async {
            while let Some(report) = reports.next().await {
                report.result?;
            }
            Ok(())
        };
        let change = async {
            tokio::time::sleep_until(changed_at.into()).await;
            server.emulator.quota(Method::Cancel, changed as f64);
            Ok(())
        };
        tokio::try_join!(cancel, change)
            .map(|_: ((), ())| ())
            .map_err(|status: tonic::Status| status)
    })?;
    let window = changed_at + Duration::from_secs(5)..changed_at + Duration::from_secs(8);
    let calls = server.emulator.calls();
    let accepted = calls
        .iter()
        .filter(|call| call.outcome() == CallOutcome::Answered(Code::Ok));
    let accepted = accepted.filter(|call| window.contains(&call.received_at().into_std()));
    let ratio = accepted.count() as f64 / 3.0 / changed as f64;
    println!("| {quota} | {changed} | {latency} | {ratio:.3} |");
    Ok(())
}

fn name(number: usize) -> String {
    format!("projects/p/locations/us-central1/operations/{number}")
}

fn start(quota: usize, latency: u64, operations: usize) -> Result<Server> {
    let server = Server::start(100, (0..operations).map(name))?;
    server.emulator.quota(Method::Cancel, quota as f64);
    let latency = Duration::from_millis(latency);
    server.emulator.delay(Method::Cancel, latency);
    Ok(server)
}

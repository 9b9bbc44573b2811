//! Cancels an operation and tells how it ended: on the embedded emulator, or on a real server.
//!
//!     cargo run --example cancel
//!     cargo run --example cancel -- --endpoint https://automl.googleapis.com NAME

use std::{process::ExitCode, time::Duration};

use longrunning::{OperationsClient, Outcome, StatusExt as _, emulator::Emulator};
use tokio::time::{Instant, sleep};
use tonic::Status;

const USAGE: &str = "usage: cancel [--endpoint URL [--auth adc|none] NAME]";

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        [] => on_the_emulator().await,
        ["--endpoint", url, name] => cancel(url, name).await,
        ["--endpoint", url, "--auth", "none", name] => cancel(url, name).await,
        _ => Err(Status::invalid_argument(USAGE)),
    };
    match result {
        Ok(outcome) => {
            println!("outcome: {outcome}");
            ExitCode::SUCCESS
        }
        Err(status) => {
            eprintln!("error: {}", line(&status));
            ExitCode::FAILURE
        }
    }
}

async fn on_the_emulator() -> Result<String, Status> {
    let emulator = Emulator::start().await?;
    println!("emulator: {}", emulator.endpoint());
    let operation =
        emulator.start_operation("projects/p/locations/us-central1/operations/ICN42")?;
    println!("started: {}", operation.name);
    cancel(&emulator.endpoint(), &operation.name).await
}

async fn cancel(endpoint: &str, name: &str) -> Result<String, Status> {
    let client = OperationsClient::builder(endpoint).connect().await?;
    client.cancel_operation(name).await?;
    println!("cancel accepted: {name}");

    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let operation = client.get_operation(name).await?;
        println!("looked: done is {}", operation.done);
        return Ok(match operation.outcome() {
            Outcome::Running if Instant::now() < until => {
                sleep(Duration::from_millis(250)).await;
                continue;
            }
            Outcome::Running => "RUNNING".into(),
            Outcome::Cancelled(_) => "CANCELLED".into(),
            Outcome::Succeeded => "COMPLETED".into(),
            Outcome::Failed(status) => format!("FAILED {}", line(&status)),
            _ => "UNKNOWN".into(), // done, and the server did not say how
        });
    }
}

/// Code and message on one line.
fn line(status: &Status) -> String {
    let words: Vec<_> = status.message().split_whitespace().collect();
    format!("{}: {}", status.code_name(), words.join(" "))
}

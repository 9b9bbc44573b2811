//! Cancels an operation and tells how it ended: on the embedded emulator, or on a real server.
//!
//!     cargo run --example cancel
//!     cargo run --example cancel -- --endpoint https://automl.googleapis.com NAME
//!
//! Over https it shows application default credentials to the endpoint, unless `--auth none`.

use std::{env, ffi::OsString, process::ExitCode, time::Duration};

use longrunning::{CallStatusExt as _, Credentials, OperationsClient, Outcome, emulator::Emulator};
use tokio::time::{sleep, timeout};
use tonic::Status;

const USAGE: &str = "usage: cancel [--endpoint URL [--auth adc|none] NAME]";

#[tokio::main]
async fn main() -> ExitCode {
    match run(env::args_os().skip(1)).await {
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

async fn run(args: impl Iterator<Item = OsString>) -> Result<String, Status> {
    let args: Result<Vec<_>, _> = args.map(OsString::into_string).collect();
    let not_utf8 = |arg| Status::invalid_argument(format!("argument {arg:?} is not UTF-8"));
    let mut args = args.map_err(not_utf8)?.into_iter();
    let (mut endpoint, mut auth, mut name) = (None, None, None);
    while let Some(arg) = args.next() {
        let (place, value) = match &*arg {
            "--endpoint" => (&mut endpoint, args.next()),
            "--auth" => (&mut auth, args.next()),
            option if option.starts_with("--") => (&mut name, None),
            _ => (&mut name, Some(arg)),
        };
        if place.is_some() || value.is_none() {
            return Err(Status::invalid_argument(USAGE));
        }
        *place = value;
    }
    match (endpoint, auth.as_deref(), name) {
        (None, None, None) => on_the_emulator().await,
        (Some(url), Some("none"), Some(name)) => cancel(&url, Credentials::none(), &name).await,
        (Some(url), None, Some(name)) if url.to_ascii_lowercase().starts_with("http:") => {
            cancel(&url, Credentials::none(), &name).await
        }
        (Some(url), None | Some("adc"), Some(name)) => {
            cancel(&url, Credentials::application_default(), &name).await
        }
        _ => Err(Status::invalid_argument(USAGE)),
    }
}

async fn on_the_emulator() -> Result<String, Status> {
    let emulator = Emulator::start().await?;
    println!("emulator: {}", emulator.endpoint());
    let operation =
        emulator.start_operation("projects/p/locations/us-central1/operations/ICN42")?;
    println!("started: {}", operation.name);
    cancel(&emulator.endpoint(), Credentials::none(), &operation.name).await
}

async fn cancel(url: &str, credentials: Credentials, name: &str) -> Result<String, Status> {
    let client = OperationsClient::builder(url)
        .credentials(credentials)
        .connect()
        .await?;
    client.cancel_operation(name).await?;
    println!("cancel accepted: {name}");

    let mut seen = Err(Status::deadline_exceeded("no state came within 10 s"));
    let looking = async {
        loop {
            let operation = client.get_operation(name).await?;
            println!("looked: done is {}", operation.done);
            return Ok(match operation.outcome() {
                Outcome::Running => {
                    seen = Ok("RUNNING".into());
                    sleep(Duration::from_millis(250)).await;
                    continue;
                }
                Outcome::Cancelled(_) => "CANCELLED".into(),
                Outcome::Succeeded => "COMPLETED".into(),
                Outcome::Failed(status) => format!("FAILED {}", line(&status)),
                _ => "FAILED UNKNOWN: done with neither a response nor an error".into(),
            });
        }
    };
    let ended = timeout(Duration::from_secs(10), looking).await;
    ended.unwrap_or(seen) // when the time is up, what was seen last counts
}

/// Code and message on one line.
fn line(status: &Status) -> String {
    let words: Vec<_> = status.message().split_whitespace().collect();
    format!("{}: {}", status.code_name(), words.join(" "))
}

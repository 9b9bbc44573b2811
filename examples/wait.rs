//! Waits for an operation and shows its progress: as a bar on a terminal, else line by line.
//!
//!     cargo run --example wait
//!     cargo run --example wait -- --endpoint https://automl.googleapis.com NAME

use std::{env, error::Error, time::Duration};

use indicatif::ProgressBar;
use longrunning::{Credentials, OperationsClient, PollPolicy, emulator::Emulator};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = env::args_os().skip(1).collect();
    let args: Option<Vec<&str>> = args.iter().map(|arg| arg.to_str()).collect();
    match args.ok_or("the arguments are not UTF-8")?[..] {
        [] => {
            let emulator = Emulator::start().await?;
            let name = emulator.start_operation("operations/1")?.name;
            let endpoint = emulator.endpoint();
            tokio::try_join!(wait(&endpoint, &name), work(&emulator, &name))?;
            Ok(())
        }
        ["--endpoint", url, name] => wait(url, name).await,
        _ => Err("usage: wait [--endpoint URL NAME]".into()),
    }
}

async fn wait(endpoint: &str, name: &str) -> Result<(), Box<dyn Error>> {
    let credentials = match endpoint.starts_with("https:") {
        true => Credentials::application_default(),
        false => Credentials::none(),
    };
    let builder = OperationsClient::builder(endpoint).credentials(credentials);
    let client = builder.connect().await?;
    let policy = PollPolicy::default().initial_delay(Duration::from_millis(250));
    let mut states = client.poller(name).policy(policy);
    let bar = ProgressBar::new(100);
    while let Some(state) = states.next().await {
        // Progress of another type than this is none that can be shown.
        let progress = state?.metadata_as().unwrap_or_default();
        let AutoMlMetadata { progress_percent } = progress.unwrap_or_default();
        match bar.is_hidden() {
            true => println!("{name}: {progress_percent} %"),
            false => bar.set_position(progress_percent.try_into()?),
        }
    }
    bar.abandon();
    println!("{name}: {:?}", states.until_done().await?.outcome());
    Ok(())
}

/// Plays the server: brings the operation forward, and to its end.
async fn work(emulator: &Emulator, name: &str) -> Result<(), Box<dyn Error>> {
    for progress_percent in [20, 40, 60, 80, 100] {
        tokio::time::sleep(Duration::from_millis(400)).await;
        emulator.set_metadata(name, &AutoMlMetadata { progress_percent })?;
    }
    Ok(emulator.complete(name, &prost_types::Duration::default())?)
}

/// The progress of AutoML's operations, out of all that their metadata tell.
#[derive(Clone, PartialEq, prost::Message)]
struct AutoMlMetadata {
    #[prost(int32, tag = "13")]
    progress_percent: i32,
}

impl prost::Name for AutoMlMetadata {
    const NAME: &'static str = "OperationMetadata";
    const PACKAGE: &'static str = "google.cloud.automl.v1beta1";
}

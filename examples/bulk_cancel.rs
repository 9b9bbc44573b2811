//! Cancels all that runs under a parent, and shows what the server said to it.
//!
//!     cargo run --example bulk_cancel
//!     cargo run --example bulk_cancel -- --endpoint https://automl.googleapis.com PARENT

use std::{collections::BTreeMap, env, error::Error};

use longrunning::{
    CallStatusExt as _, Credentials, OperationsClient,
    emulator::{CancelBehavior, Emulator},
};
use tokio_stream::StreamExt as _;
use tonic::Status;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = env::args_os().skip(1).collect();
    let args: Option<Vec<&str>> = args.iter().map(|arg| arg.to_str()).collect();
    match args.ok_or("the arguments are not UTF-8")?[..] {
        [] => {
            let emulator = Emulator::start().await?;
            let parent = "projects/p/locations/l";
            for _ in 0..1_000 {
                let name = emulator.start_operation_in(parent).name;
                if name.ends_with("00") {
                    let refusal = Status::failed_precondition("not cancellable");
                    emulator.on_cancel_of(name, CancelBehavior::Refuse(refusal));
                }
            }
            cancel_all(&emulator.endpoint(), parent).await
        }
        ["--endpoint", url, parent] => cancel_all(url, parent).await,
        _ => Err("usage: bulk_cancel [--endpoint URL PARENT]".into()),
    }
}

async fn cancel_all(endpoint: &str, parent: &str) -> Result<(), Box<dyn Error>> {
    let credentials = match endpoint.starts_with("https:") {
        true => Credentials::application_default(),
        false => Credentials::none(),
    };
    let builder = OperationsClient::builder(endpoint).credentials(credentials);
    let client = builder.connect().await?;
    let mut operations = client.operations(parent);
    let mut failure = None;
    // Not every server understands a filter, so this one is here.
    let running = (&mut operations).filter_map(|operation| match operation {
        Ok(operation) => (!operation.done).then_some(operation.name),
        Err(status) => {
            failure = Some(status);
            None
        }
    });
    let mut results = client.cancel_operations(running, 100);
    let mut tally = BTreeMap::<_, u64>::new();
    while let Some((name, result)) = results.next().await {
        let answer = result.map_or_else(
            |status| {
                eprintln!("{name}: {}: {}", status.code_name(), status.message());
                status.code_name()
            },
            |()| "accepted",
        );
        *tally.entry(answer).or_default() += 1;
    }
    drop(results);
    println!("{tally:?}, not reached: {:?}", operations.unreachable());
    failure.map_or(Ok(()), |status| Err(status.into()))
}

//! What comes of each script of `scripts.json` with our client.

use std::time::Duration;

use longrunning::{
    Operation, OperationsClient, Outcome, PollPolicy, CallStatusExt, Transport,
    proto::{GetOperationRequest, WaitOperationRequest, rpc},
};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_stream::StreamExt as _;
use tonic::{IntoRequest as _, Request, Status};

type Error = Box<dyn std::error::Error>;

pub async fn run(port: &str, control: &str) -> Result<(), Error> {
    let scripts: Vec<Value> = serde_json::from_str(include_str!("../../scripts.json"))?;
    let mut control = Control::connect(control).await?;
    let url = format!("http://127.0.0.1:{port}");
    let client = OperationsClient::builder(url).connect().await?;
    let mut results = Map::new();
    for (number, script) in scripts.iter().enumerate() {
        let parent = format!("projects/rust-{number}");
        let mut outcomes = Vec::new();
        for step in script["steps"].as_array().ok_or("steps")? {
            let step = step.as_str().ok_or("a step")?;
            let outcome = perform(&client, &mut control, &parent, step).await?;
            outcomes.extend(outcome.map(Value::String));
        }
        let script = script["script"].as_str().ok_or("script")?;
        results.insert(script.to_owned(), outcomes.into());
    }
    println!("{}", Value::Object(results));
    Ok(())
}

/// Performs one step: a call has an outcome, what is done to the emulator has none.
async fn perform(
    client: &OperationsClient<Transport>,
    control: &mut Control,
    parent: &str,
    step: &str,
) -> Result<Option<String>, Error> {
    let name = &format!("{parent}/operations/ü 1");
    let outcome = match step {
        "get" => client.get_operation(name).await.map(|it| state(&it)),
        "cancel" => client.cancel_operation(name).await.map(|()| ok()),
        "delete" => client.delete_operation(name).await.map(|()| ok()),
        "wait" => {
            let request = WaitOperationRequest {
                name: name.clone(),
                timeout: Some(Duration::from_secs(5).try_into()?),
            };
            client.wait_operation(request).await.map(|it| state(&it))
        }
        "list" => count(client, parent).await.map(|count| count.to_string()),
        "get within 1s" => {
            let mut request: Request<GetOperationRequest> = name.into_request();
            request.set_timeout(Duration::from_secs(1));
            let status = client.get_operation(request).await.err();
            Ok(status.map_or_else(ok, |status| status.code_name().to_owned()))
        }
        "seen" => {
            let seen = control.send(json!({ "do": "seen", "name": name })).await?;
            Ok(seen.as_str().unwrap_or_default().to_owned())
        }
        "result" => client
            .poller(name)
            .until_done()
            .await
            .map(|it| outcome(&it)),
        "cancel and result" => {
            let cancelled = client.cancel_and_wait(name, PollPolicy::default()).await;
            cancelled.map(|ended| match ended.operation() {
                Some(operation) => outcome(operation),
                None => format!("{ended:?}"),
            })
        }
        event => {
            let (event, argument) = event.split_once(' ').unwrap_or((event, ""));
            let names = match argument.parse() {
                Ok(many) if event == "start" => {
                    (0..many).map(|n: usize| format!("{name} {n}")).collect()
                }
                _ => vec![name.clone()],
            };
            for name in names {
                let order = json!({ "do": event, "name": name, "argument": argument });
                control.send(order).await?;
            }
            return Ok(None);
        }
    };
    let outcome = outcome.unwrap_or_else(|status| {
        let reason = reason(status.detail());
        format!("{} {}{reason}", status.code_name(), status.message())
    });
    Ok(Some(outcome.replace(&format!("{name:?}"), "NAME")))
}

async fn count(client: &OperationsClient<Transport>, parent: &str) -> Result<usize, Status> {
    let operations: Vec<_> = client.operations(parent).collect().await;
    let operations: Result<Vec<_>, _> = operations.into_iter().collect();
    operations.map(|operations| operations.len())
}

fn ok() -> String {
    "ok".to_owned()
}

fn state(operation: &Operation) -> String {
    let error = match operation.outcome() {
        Outcome::Failed(status) | Outcome::Cancelled(status) => reason(status.detail()),
        _ => String::new(),
    };
    let progress = operation.metadata_as().expect("an ErrorInfo");
    format!("{}{error}{}", outcome(operation), reason(progress))
}

fn outcome(operation: &Operation) -> String {
    match operation.outcome() {
        Outcome::Running => "running".to_owned(),
        Outcome::Succeeded => match operation.clone().into_response::<prost_types::Duration>() {
            Ok(response) => format!("succeeded: {}s", response.seconds),
            Err(status) => status.to_string(),
        },
        Outcome::Cancelled(status) => format!("cancelled: {}", status.message()),
        Outcome::Failed(status) => format!("failed: {} {}", status.code_name(), status.message()),
        Outcome::DoneWithoutResult => "done without result".to_owned(),
        other => format!("{other:?}"),
    }
}

fn reason(info: Option<rpc::ErrorInfo>) -> String {
    info.map_or_else(String::new, |info| format!(" [{}]", info.reason))
}

/// The steering of the emulator.
pub struct Control(BufReader<TcpStream>);

impl Control {
    pub async fn connect(port: &str) -> Result<Self, Error> {
        let stream = TcpStream::connect(format!("127.0.0.1:{port}")).await?;
        Ok(Self(BufReader::new(stream)))
    }

    pub async fn send(&mut self, order: Value) -> Result<Value, Error> {
        self.0.write_all(format!("{order}\n").as_bytes()).await?;
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        Ok(serde_json::from_str(&line)?)
    }
}

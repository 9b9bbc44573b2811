//! The emulator, steered by lines of JSON over TCP: `{"do": "start", "name": "operations/1"}`.
//!
//! It serves on free ports of 127.0.0.1, and tells them in one line of JSON. Every line is
//! answered with one: what was asked for, or null.

use std::{sync::Arc, time::Duration};

use longrunning::{
    emulator::{Call, CallOutcome, CancelBehavior, Emulator, Method},
    proto::rpc,
};
use prost_types::Any;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tonic::Status;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let emulator = Arc::new(Emulator::start().await?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let control = listener.local_addr()?.port();
    println!("{}", json!({ "port": emulator.port(), "control": control }));
    loop {
        let (stream, _) = listener.accept().await?;
        let emulator = Arc::clone(&emulator);
        tokio::spawn(async move {
            if let Err(error) = serve(&emulator, stream).await {
                eprintln!("{error}");
            }
        });
    }
}

async fn serve(emulator: &Emulator, stream: TcpStream) -> Result<(), Error> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = obey(emulator, &serde_json::from_str(&line)?).await?;
        writer.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

async fn obey(emulator: &Emulator, order: &Value) -> Result<Value, Error> {
    const SOON: Duration = Duration::from_millis(300);
    // A second, as gRPC's C core rounds it up.
    const LIMIT: Duration = Duration::from_millis(1020);
    let name = order["name"].as_str().unwrap_or_default();
    let argument = order["argument"].as_str().unwrap_or_default();
    match order["do"].as_str().unwrap_or_default() {
        "start" => drop(emulator.start_operation(name)?),
        "progress" => emulator.set_metadata(name, &info("HALFWAY"))?,
        "complete" => emulator.complete(name, &response())?,
        "complete-soon" => emulator.complete_after(name, &response(), SOON)?,
        "end" => emulator.complete_without_result(name)?,
        "fail" => emulator.fail(name, failure(7))?,
        "on-cancel" => emulator.on_cancel_of(
            name,
            match argument {
                "after" => CancelBehavior::CancelAfter(SOON),
                "ignore" => CancelBehavior::Ignore,
                "complete" => CancelBehavior::complete(&response()),
                "end" => CancelBehavior::CompleteWithoutResult,
                "fail" => CancelBehavior::Fail(failure(7)),
                "delete" => CancelBehavior::Delete,
                "refuse" => CancelBehavior::Refuse(failure(9).into()),
                other => return Err(format!("on-cancel {other:?}").into()),
            },
        ),
        // The next call is answered with this code.
        "refuse-get" => emulator.fail_next(Method::Get, 1, refusal(argument)?),
        "refuse-wait" => emulator.fail_next(Method::Wait, 1, refusal(argument)?),
        "delay-get" => {
            let delay = Duration::from_millis(argument.parse()?);
            emulator.delay(Method::Get, delay);
        }
        // The latest call: what time it was given, and how it ended.
        "seen" => {
            let latest = || emulator.calls().pop().filter(|call| call.name() == name);
            let over = |call: &Call| call.outcome() != CallOutcome::InFlight;
            let ended = emulator.wait_until(|_| latest().is_none_or(|call| over(&call)));
            timeout(Duration::from_secs(5), ended).await?;
            let call = latest().ok_or("another was called later")?;
            let (method, outcome) = (call.method(), call.outcome());
            return Ok(match call.timeout() {
                Some(time) if time <= LIMIT => format!("{method} within 1s: {outcome:?}"),
                other => format!("{method} within {other:?}: {outcome:?}"),
            }
            .into());
        }
        // The names of the calls so far, each with its routing header. They are forgotten.
        "calls" => {
            let calls = emulator.calls();
            emulator.clear_calls();
            let calls = calls.iter().map(|call| {
                let routing = call.metadata().get("x-goog-request-params");
                json!([call.name(), routing.and_then(|value| value.to_str().ok())])
            });
            return Ok(calls.collect());
        }
        other => return Err(format!("do {other:?}").into()),
    }
    Ok(Value::Null)
}

fn response() -> prost_types::Duration {
    prost_types::Duration {
        seconds: 42,
        nanos: 0,
    }
}

fn refusal(code: &str) -> Result<Status, Error> {
    Ok(failure(code.parse()?).into())
}

fn failure(code: i32) -> rpc::Status {
    let detail = Any::from_msg(&info("LOCKED"));
    rpc::Status {
        code,
        message: "nicht möglich – 不行 🚫 100%".to_owned(),
        details: vec![detail.expect("it can be encoded")],
    }
}

fn info(reason: &str) -> rpc::ErrorInfo {
    rpc::ErrorInfo {
        reason: reason.to_owned(),
        ..rpc::ErrorInfo::default()
    }
}

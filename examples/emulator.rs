//! Serves the emulator to programs in any language, until it is interrupted.
//!
//!     cargo run --example emulator -- [--port N] [--complete-after SECONDS] [NAME]...
//!
//! starts the operations of these names, which run until they are cancelled or that time is over.

use std::{env, error::Error, time::Duration};

use longrunning::{CallStatusExt as _, emulator::Emulator};
use tonic::Status;

const USAGE: &str =
    "usage: emulator [--port N] [--complete-after SECONDS] [NAME of an operation to start]...";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut port = 0;
    let mut complete_after = None;
    let mut names = Vec::new();
    let args: Option<Vec<_>> = env::args_os()
        .skip(1)
        .map(|arg| arg.into_string().ok())
        .collect();
    let mut args = args.ok_or("the arguments are not UTF-8")?.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match &*arg {
            "--port" => port = value()?.parse().map_err(|_| "--port: give 0 to 65535")?,
            "--complete-after" => {
                let seconds = value()?.parse().map_err(|e| format!("{arg}: {e}"))?;
                let delay =
                    Duration::try_from_secs_f64(seconds).map_err(|e| format!("{arg}: {e}"))?;
                complete_after = Some(delay);
            }
            flag if flag.starts_with("--") => {
                return Err(format!("unknown flag {flag}; {USAGE}").into());
            }
            name => names.push(name.to_owned()),
        }
    }
    let emulator = Emulator::builder().port(port).start().await.map_err(said)?;
    for name in names {
        emulator.start_operation(&name).map_err(said)?;
        if let Some(delay) = complete_after {
            emulator.complete_after(&name, &prost_types::Duration::default(), delay)?;
        }
        println!("started {name}");
    }
    println!("listening on {}", emulator.endpoint());
    tokio::signal::ctrl_c().await?;
    Ok(())
}

fn said(status: Status) -> String {
    format!("{}: {}", status.code_name(), status.message())
}

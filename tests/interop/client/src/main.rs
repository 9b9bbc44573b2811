//! The Rust side of the interop tests.

mod book;
mod cases;
mod foreign;
mod names;
mod scripts;

use std::{env, io::Write, path::Path};

use longrunning::CallStatusExt;
use serde_json::{Value, json};
use tonic::Code;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        // The cases against a foreign server.
        ["server", name, ports, certs] => {
            let ports: Value = serde_json::from_str(ports)?;
            foreign::run(name, &ports, Path::new(certs)).await;
        }
        // The cases against answers that no gRPC server sends by itself.
        ["book", server, ports, certs] => {
            let ports: Value = serde_json::from_str(ports)?;
            book::run(server, &ports, Path::new(certs)).await;
        }
        // What comes of each script on the steered emulator.
        ["scripts", port, control] => scripts::run(port, control).await?,
        // The routing header of each name, as it arrives.
        ["names", port, control] => names::run(port, control).await?,
        ["http-codes"] => {
            let codes = (0..=16).map(|code| {
                let status = tonic::Status::new(Code::from_i32(code), "");
                json!({ "code": code, "name": status.code_name(), "http": status.http_code() })
            });
            println!("{}", codes.collect::<Value>());
        }
        ["descriptors"] => {
            const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
            std::io::stdout().write_all(DESCRIPTORS)?;
        }
        _ => return Err("see tests/interop/run for the arguments".into()),
    }
    Ok(())
}

//! `longrunning` beside its peers: see `README.md`.

mod allocations;
mod callgrind;
#[cfg(feature = "fleets")]
mod cancel_many;
mod client;
#[cfg(feature = "fleets")]
mod fleet;
mod memory;
mod open_loop;
#[cfg(feature = "fleets")]
mod operation_set;
mod plan;
mod programs;
mod record;
mod rounds;
mod scale;
mod server;
mod spawn;
mod table;
mod targets;
mod variants;

use std::{env, process::ExitCode};

use tokio_rustls::rustls::crypto::ring;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

fn main() -> ExitCode {
    // The peers bring another one along: rustls would not choose.
    let _ = ring::default_provider().install_default();
    let mut arguments = env::args().skip(1);
    let command = arguments.next().unwrap_or_else(|| "table".to_owned());
    let rest: Vec<String> = arguments.collect();
    let done = match command.as_str() {
        "table" => table::run(&rest),
        "callgrind" => callgrind::run(&rest),
        "scale" => scale::run(&rest),
        #[cfg(feature = "fleets")]
        "cancel_many" => cancel_many::run(&rest),
        #[cfg(feature = "fleets")]
        "operation_set" => operation_set::run(&rest),
        "costs" => callgrind::costs(&rest),
        // The processes that the commands above start.
        "server" => server::run(&rest),
        "client" => client::run(&rest),
        _ => Err(
            format!("unknown command {command:?}: expected `table`, `callgrind`, `scale`, `costs`, or with the feature `fleets` `cancel_many` or `operation_set`").into(),
        ),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

type Result<T = (), E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

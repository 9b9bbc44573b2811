//! Puts the client over a stack that the program has already: a tonic `Channel` under tower
//! layers and an interceptor of its own.
//!
//!     cargo run --example own_stack

use std::{error::Error, time::Duration};

use longrunning::{OperationsClient, emulator::Emulator};
use tonic::{Request, Status, service::interceptor::InterceptedService, transport::Endpoint};
use tower::ServiceBuilder;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let emulator = Emulator::start().await?;
    emulator.start_operation("operations/1")?;

    let channel = Endpoint::from_shared(emulator.endpoint())?.connect_lazy();
    let stack = ServiceBuilder::new()
        .concurrency_limit(64)
        .timeout(Duration::from_secs(5))
        .service(InterceptedService::new(channel, sign));

    // No deadline and no retry but those of the stack. Names, headers and codes are the client's.
    let client = OperationsClient::new(stack);
    client.cancel_operation("operations/1").await?;
    let operation = client.get_operation("operations/1").await?;
    println!("{} ended: {:?}", operation.name, operation.outcome());

    let calls = emulator.calls();
    println!("signed: {:?}", calls[0].metadata().get("x-signed-by"));
    Ok(())
}

fn sign(mut request: Request<()>) -> Result<Request<()>, Status> {
    let metadata = request.metadata_mut();
    metadata.insert(
        "x-signed-by",
        "own_stack"
            .parse()
            .map_err(|_| Status::internal("not ASCII"))?,
    );
    Ok(request)
}

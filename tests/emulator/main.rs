//! The emulator, over sockets and in process, called by the raw generated client.

mod calls;
mod lifecycle;
mod list;
mod methods;
mod quota;
mod scripts;
mod wait;
mod wire;

use longrunning::{emulator::Emulator, proto::operations_client::OperationsClient};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

const NAME: &str = "projects/p/locations/l/operations/1";

type Client = OperationsClient<Channel>;

/// Starts an emulator that runs one operation, and a client of it.
async fn emulator() -> (Emulator, Client) {
    let emulator = Emulator::start().await.expect("a free port");
    emulator.start_operation(NAME).expect("it is the first");
    let client = client(&emulator).await;
    (emulator, client)
}

async fn client(emulator: &Emulator) -> Client {
    let endpoint = Endpoint::from_shared(emulator.endpoint()).expect("it is a URL");
    OperationsClient::new(endpoint.connect().await.expect("it listens"))
}

#[track_caller]
fn assert_fails<T>(answer: Result<T, Status>, code: Code, message: &str) {
    let status = answer.err().expect("it fails");
    assert_eq!(status.code(), code, "{status:?}");
    assert_eq!(status.message(), message);
}

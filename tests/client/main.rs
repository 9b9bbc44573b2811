//! The five RPCs against a server, over sockets.

macro_rules! over_each_stack {
    ($($test:ident)*) => {
        mod own_stack {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::over_its_own_stack).await;
            })*
        }

        mod channel {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::over_a_channel).await;
            })*
        }
    };
}

mod deadlines;
mod headers;
mod rpcs;
mod stacks;

use std::time::Duration;

use longrunning::{
    CallStatusExt as _, GrpcStack, Operation, OperationsClient, Origin, RetryPolicy,
    emulator::{CallOutcome, CallRequest, CancelBehavior, Emulator, Method},
    proto::{self, CancelOperationRequest, WaitOperationRequest, operation::Result as End, rpc},
};
use prost::Message as _;
use prost_types::{Any, Duration as ProtoDuration};
use tonic::{
    Code, IntoRequest as _, Request, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use tower::ServiceBuilder;

const PARENT: &str = "projects/p/locations/us-central1";
const NAME: &str = "projects/p/locations/us-central1/operations/ICN42";

async fn emulator() -> Emulator {
    let emulator = Emulator::start().await.expect("a free port");
    emulator.start_operation(NAME).expect("a new name");
    emulator
}

fn channel(emulator: &Emulator) -> Channel {
    Endpoint::from_shared(emulator.endpoint())
        .expect("a URL")
        .connect_lazy()
}

/// How a test gets its client.
type Connect<S> = fn(&Emulator) -> OperationsClient<S>;

fn over_a_channel(emulator: &Emulator) -> OperationsClient<Channel> {
    OperationsClient::new(channel(emulator))
}

fn over_its_own_stack(emulator: &Emulator) -> OperationsClient {
    let builder = OperationsClient::builder(emulator.endpoint());
    builder
        .retry(RetryPolicy::none())
        .connect_lazy()
        .expect("a URL")
}

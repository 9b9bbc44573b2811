//! Watching an operation until it is done, on a server behind sockets.

mod crowd;
mod dropping;
mod failures;
mod guard;
#[path = "../support/in_process.rs"]
mod in_process;
mod limit;
mod runtimes;
mod state;
mod stream;
mod timing;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use longrunning::{
    CallStatusExt as _, GrpcStack, Operation, OperationsClient, Origin, Outcome, PollPolicy,
    Poller,
    emulator::{CallOutcome, CallRequest, Emulator, Method},
};
use prost::Name;
use tokio::{task::JoinSet, time::timeout};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Code, Request, Status,
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::{ServiceExt as _, service_fn};

const NAME: &str = "projects/p/locations/us-central1/operations/ICN42";

/// How far an operation has come.
#[derive(Clone, PartialEq, prost::Message)]
struct Progress {
    #[prost(int32, tag = "1")]
    percent: i32,
}

impl Name for Progress {
    const NAME: &'static str = "Progress";
    const PACKAGE: &'static str = "test";
}

async fn emulator() -> Emulator {
    let emulator = Emulator::start().await.expect("a free port");
    emulator.start_operation(NAME).expect("a new name");
    emulator
}

fn client(emulator: &Emulator) -> OperationsClient<Channel> {
    let endpoint = Endpoint::from_shared(emulator.endpoint()).expect("a URL");
    OperationsClient::new(endpoint.connect_lazy())
}

/// The delays in milliseconds in the place of seconds.
fn brisk() -> PollPolicy {
    PollPolicy::default()
        .initial_delay(Duration::from_millis(1))
        .max_delay(Duration::from_millis(20))
}

fn count(emulator: &Emulator, method: Method) -> usize {
    emulator.calls_of(method).len()
}

#[tokio::test]
async fn an_end_is_seen_as_soon_as_the_server_tells_it() {
    let emulator = emulator().await;
    let mut poller = client(&emulator).poller(NAME);
    assert_eq!(poller.name(), NAME);
    let waiting = tokio::spawn(async move {
        let end = poller.until_done().await;
        (end, poller)
    });
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;
    emulator
        .complete(NAME, &Progress { percent: 100 })
        .expect("it runs");
    let (end, mut poller) = waiting.await.expect("no panic");
    let response: Progress = end.expect("done").into_response().expect("a response");
    assert_eq!(response.percent, 100);
    let [call] = &emulator.calls()[..] else {
        panic!("one Wait was expected: {:?}", emulator.calls());
    };
    assert_eq!(call.method(), Method::Wait);

    let again = poller.until_done().await.expect("it is still done");
    assert_eq!(Some(&again), poller.latest());
    assert_eq!(emulator.calls().len(), 1, "nothing more is asked");
}

#[tokio::test]
async fn that_a_server_cannot_wait_is_remembered_by_the_client_and_its_clones() {
    let emulator = emulator().await;
    emulator.unimplement(Method::Wait);
    emulator
        .complete(NAME, &Progress::default())
        .expect("it runs");
    let client = client(&emulator);
    let clone = client.clone();
    for client in [&client, &clone, &client] {
        let end = client.poller(NAME).until_done().await.expect("done");
        assert!(matches!(end.outcome(), Outcome::Succeeded), "{end:?}");
    }
    assert_eq!(count(&emulator, Method::Wait), 1);
    assert_eq!(count(&emulator, Method::Get), 3);
}

#[tokio::test]
async fn pollers_leave_room_for_other_calls_on_a_connection_of_few_streams() {
    let emulator = Emulator::builder().max_concurrent_streams(100);
    let emulator = emulator.start().await.expect("a free port");
    let client = OperationsClient::builder(emulator.endpoint()).max_connections(1);
    let client = client.connect().await.expect("it listens");
    let mut pollers = JoinSet::new();
    for n in 0..200 {
        let name = emulator
            .start_operation(format!("operations/{n}"))
            .expect("new")
            .name;
        let policy = PollPolicy::default().initial_delay(Duration::from_millis(300));
        let mut poller = client.poller(&name).policy(policy);
        pollers.spawn(async move { poller.until_done().await });
    }
    emulator
        .wait_until(|emulator| count(emulator, Method::Wait) >= 50)
        .await;
    for n in 0..200 {
        let name = format!("operations/{n}");
        client.cancel_operation(name).await.expect("accepted");
    }
    for end in pollers.join_all().await {
        let end = end.expect("done");
        assert!(matches!(end.outcome(), Outcome::Cancelled(_)), "{end:?}");
    }
    assert_eq!(emulator.accepted_connections(), 1);
}

#[tokio::test]
async fn the_callers_metadata_goes_along_with_every_look() {
    let emulator = emulator().await;
    emulator
        .complete(NAME, &Progress::default())
        .expect("it runs");
    emulator.fail_next(Method::Wait, 1, Status::unavailable("once"));
    let message = longrunning::proto::GetOperationRequest { name: NAME.into() };
    let mut request = Request::new(message);
    let value = "p".parse().expect("ASCII");
    request.metadata_mut().insert("x-goog-user-project", value);
    request.set_timeout(Duration::from_secs(4));
    let mut poller = client(&emulator).poller(request).policy(brisk());
    poller.until_done().await.expect("done");
    let [wait, get] = &emulator.calls()[..] else {
        panic!("two calls were expected: {:?}", emulator.calls());
    };
    for call in [wait, get] {
        let value = call.metadata().get("x-goog-user-project");
        assert_eq!(value.expect("there"), "p");
        assert_eq!(call.name(), NAME);
    }
    assert!(get.timeout().expect("a timeout") <= Duration::from_secs(4));
    let CallRequest::Wait(request) = wait.request() else {
        panic!("a Wait was expected: {wait:?}");
    };
    let asked = request.timeout.expect("a slice");
    let asked = Duration::try_from(asked).expect("not negative");
    let margin = wait.timeout().expect("a timeout") - asked;
    // What the server is told is rounded up, by less than 1 %.
    assert!(margin <= Duration::from_millis(10_200), "{margin:?}");
    assert!(margin > Duration::from_secs(5), "{margin:?}");
}

#[tokio::test]
async fn no_time_is_too_long() {
    let emulator = emulator().await;
    emulator
        .complete(NAME, &Progress::default())
        .expect("it runs");
    let policy = PollPolicy::default()
        .initial_delay(Duration::MAX)
        .max_delay(Duration::MAX)
        .total_timeout(Duration::MAX);
    let client = client(&emulator).timeout(Duration::MAX);
    for wait in [Duration::MAX, Duration::ZERO] {
        let mut poller = client.poller(NAME).policy(policy.wait_timeout(wait));
        poller.until_done().await.expect("done");
    }
    emulator.fail_next(None, 1, Status::unavailable("once"));
    let mut poller = client.poller(NAME).policy(policy);
    let cut = timeout(Duration::from_millis(50), poller.until_done()).await;
    assert!(cut.is_err(), "{cut:?}");
}

#[test]
fn outside_a_runtime_a_poll_is_refused() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let emulator = runtime.block_on(emulator());
    let client = runtime.block_on(async { client(&emulator) });
    let end = futures_executor::block_on(client.poller(NAME).until_done());
    let status = end.expect_err("no runtime");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(
        status.message(),
        "a call needs a tokio runtime: run it within one"
    );
    assert!(emulator.calls().is_empty());
}

#[test]
fn a_poller_can_be_spawned_and_held_by_its_name() {
    fn spawnable<T: Send + Unpin + 'static>() {}
    fn is_stream<S: GrpcStack + Sync>() -> impl Sized
    where
        Poller<S>: Stream<Item = Result<Operation, Status>>,
    {
    }
    spawnable::<Poller<Channel>>();
    let _ = is_stream::<Channel>();
}

//! Watching an operation until it is done, on a server behind sockets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use longrunning::{
    Operation, OperationsClient, Origin, Outcome, PollPolicy, Poller, Stack, StatusExt as _,
    emulator::{CallOutcome, CallRequest, Emulator, Method},
};
use prost::Name;
use tokio::time::timeout;
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
        .maximum_delay(Duration::from_millis(20))
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
async fn a_404_ends_the_poll_and_is_not_taken_for_a_server_that_cannot_wait() {
    let emulator = emulator().await;
    emulator
        .complete(NAME, &Progress::default())
        .expect("it runs");
    let endpoint = Endpoint::from_shared(emulator.endpoint()).expect("a URL");
    let channel = endpoint.connect_lazy();
    // A proxy whose rule for the path of Wait comes late.
    let has_rule = Arc::new(AtomicBool::new(false));
    let proxy = service_fn({
        let has_rule = Arc::clone(&has_rule);
        move |request: http::Request<Body>| {
            let channel = channel.clone();
            let passes = has_rule.load(SeqCst) || !request.uri().path().ends_with("/WaitOperation");
            async move {
                if passes {
                    return channel.oneshot(request).await;
                }
                let mut response = http::Response::new(Body::empty());
                *response.status_mut() = http::StatusCode::NOT_FOUND;
                Ok(response)
            }
        }
    });
    let client = OperationsClient::new(proxy);
    let status = client.poller(NAME).until_done().await;
    let status = status.expect_err("a 404");
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(status.origin(), Some(Origin::Transport));

    has_rule.store(true, SeqCst);
    let end = client.poller(NAME).until_done().await;
    assert!(end.expect("done").done);
    assert_eq!(count(&emulator, Method::Wait), 1, "it was asked to wait");
}

#[tokio::test]
async fn transient_failures_are_ridden_on() {
    let emulator = emulator().await;
    emulator
        .complete(NAME, &Progress::default())
        .expect("it runs");
    for status in [
        Status::unavailable("restarting"),
        Status::deadline_exceeded("slow today"),
        Status::resource_exhausted("too many looks"),
    ] {
        emulator.fail_next(None, 3, status);
    }
    let mut poller = client(&emulator).poller(NAME).policy(brisk());
    assert!(poller.until_done().await.expect("done").done);
    let methods: Vec<_> = emulator.calls().iter().map(|call| call.method()).collect();
    use Method::{Get, Wait};
    // What fails may be Wait alone, so that a Get comes after it.
    assert_eq!(
        methods,
        [Wait, Get, Wait, Get, Wait, Get, Wait, Get, Wait, Get]
    );
}

#[tokio::test]
async fn a_permanent_failure_ends_the_poll_with_the_servers_status() {
    let emulator = emulator().await;
    for status in [
        Status::permission_denied("not yours"),
        Status::internal("a bug"),
        Status::unauthenticated("who are you?"),
        Status::with_details(Code::Aborted, "a conflict", Bytes::from_static(b"\x08\x0a")),
    ] {
        emulator.fail_next(Method::Wait, 1, status.clone());
        let mut poller = client(&emulator).poller(NAME).policy(brisk());
        let end = poller.until_done().await.expect_err("it fails");
        assert_eq!(end.code(), status.code());
        assert_eq!(end.message(), status.message());
        assert_eq!(end.details(), status.details());
        assert_eq!(end.origin(), Some(Origin::Server));
    }
    assert_eq!(count(&emulator, Method::Get), 0);
    let end = client(&emulator)
        .poller("operations/none")
        .until_done()
        .await;
    assert_eq!(end.expect_err("unknown").code(), Code::NotFound);
}

#[tokio::test]
async fn waits_that_are_cut_off_are_followed_by_gets() {
    let emulator = emulator().await;
    emulator
        .complete(NAME, &Progress::default())
        .expect("it runs");
    for error_code in [0x2, 0x8] {
        emulator.reset_next(Method::Wait, 1, error_code);
        let mut poller = client(&emulator).poller(NAME).policy(brisk());
        assert!(poller.until_done().await.expect("done").done);
        // Gets that are cut off as well end the poll.
        emulator.reset_next(None, 2, error_code);
        let mut poller = client(&emulator).poller(NAME).policy(brisk());
        let status = poller.until_done().await.expect_err("cut off twice");
        assert_eq!(status.origin(), Some(Origin::Transport));
    }
}

#[tokio::test]
async fn a_poll_that_is_cut_short_goes_on_with_the_call_in_flight() {
    let emulator = emulator().await;
    let mut poller = client(&emulator).poller(NAME);
    for _ in 0..20 {
        let cut = timeout(Duration::from_millis(5), poller.until_done()).await;
        assert!(cut.is_err(), "{cut:?}");
    }
    for _ in 0..20 {
        let cut = timeout(Duration::from_millis(5), poller.next()).await;
        assert!(cut.is_err(), "{cut:?}");
    }
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;
    // What happens while nobody looks is not lost either.
    emulator
        .complete(NAME, &Progress::default())
        .expect("it runs");
    emulator
        .wait_until(|emulator| emulator.in_flight() == 0)
        .await;
    assert!(poller.until_done().await.expect("done").done);
    assert_eq!(emulator.calls().len(), 1);
}

#[tokio::test]
async fn a_poll_that_is_cut_short_in_every_pause_takes_no_shortcut() {
    let emulator = emulator().await;
    let policy = PollPolicy::default()
        .wait(Duration::ZERO)
        .initial_delay(Duration::from_secs(3600))
        .maximum_delay(Duration::from_secs(3600));
    let mut poller = client(&emulator).poller(NAME).policy(policy);
    poller.next().await.expect("a state").expect("it runs");
    for _ in 0..20 {
        let cut = timeout(Duration::from_millis(2), poller.next()).await;
        assert!(cut.is_err(), "{cut:?}");
    }
    assert_eq!(emulator.calls().len(), 1);
}

#[tokio::test]
async fn a_dropped_poller_ends_its_call_and_leaves_the_operation_running() {
    let emulator = emulator().await;
    let mut poller = client(&emulator).poller(NAME);
    let cut = async {
        tokio::select! {
            end = poller.until_done() => panic!("it runs: {end:?}"),
            () = emulator.wait_until(|emulator| emulator.in_flight() == 1) => {}
        }
    };
    cut.await;
    drop(poller);
    emulator
        .wait_until(|emulator| emulator.in_flight() == 0)
        .await;
    assert_eq!(emulator.calls()[0].outcome(), CallOutcome::Abandoned);
    assert!(!emulator.operation(NAME).expect("on record").done);

    // As after a restart, the name is all that it takes to go on.
    emulator
        .complete(NAME, &Progress::default())
        .expect("it runs");
    let end = client(&emulator).poller(NAME).until_done().await;
    assert!(end.expect("done").done);
}

#[tokio::test]
async fn a_server_that_goes_away_and_comes_back_is_ridden_on() {
    let emulator = emulator().await;
    let port = emulator.port();
    let mut poller = client(&emulator).poller(NAME).policy(brisk());
    let waiting = tokio::spawn(async move { poller.until_done().await });
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;
    emulator.shutdown().await;

    let emulator = Emulator::builder().port(port).start().await;
    let emulator = emulator.expect("the port is free again");
    emulator.insert(Operation {
        name: NAME.to_owned(),
        done: true,
        ..Operation::default()
    });
    let end = waiting.await.expect("no panic").expect("done");
    assert!(matches!(end.outcome(), Outcome::DoneWithoutResult));
}

#[tokio::test]
async fn a_stream_shows_progress_and_ends_with_the_state_that_is_done() {
    let emulator = emulator().await;
    let mut states = client(&emulator).poller(NAME).policy(brisk());
    let mut seen = Vec::new();
    for percent in [10, 60] {
        let progress = Progress { percent };
        emulator.set_metadata(NAME, &progress).expect("it runs");
        loop {
            let state = states.next().await.expect("a state").expect("it runs");
            let progress: Option<Progress> = state.metadata_as().expect("of this type");
            if progress.is_some_and(|progress| progress.percent == percent) {
                break seen.push(percent);
            }
        }
    }
    assert_eq!(seen, [10, 60]);
    emulator
        .fail(NAME, Status::data_loss("gone"))
        .expect("it runs");
    let rest: Vec<_> = (&mut states)
        .map(|state| state.expect("no failure"))
        .collect()
        .await;
    let last = rest.last().expect("a state");
    assert!(matches!(last.outcome(), Outcome::Failed(_)), "{last:?}");
    assert!(states.next().await.is_none(), "it has ended");
}

#[tokio::test]
async fn an_error_is_the_last_item_of_a_stream() {
    let emulator = emulator().await;
    emulator.remove(NAME).expect("on record");
    let mut states = client(&emulator).poller(NAME);
    let last = states.next().await.expect("an item").expect_err("unknown");
    assert_eq!(last.code(), Code::NotFound);
    assert!(states.next().await.is_none());
    assert_eq!(emulator.calls().len(), 1);
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
    assert!(margin <= Duration::from_secs(10), "{margin:?}");
    assert!(margin > Duration::from_secs(5), "{margin:?}");
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
        "a poll needs a tokio runtime: await it within one"
    );
    assert!(emulator.calls().is_empty());
}

#[test]
fn a_poller_can_be_spawned_and_held_by_its_name() {
    fn spawnable<T: Send + Unpin + 'static>() {}
    fn is_stream<S: Stack + Sync>() -> impl Sized
    where
        Poller<S>: Stream<Item = Result<Operation, Status>>,
    {
    }
    spawnable::<Poller<Channel>>();
    let _ = is_stream::<Channel>();
}

//! When a poller looks, and how: time is paused, and no socket is involved.

use std::{
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use longrunning::{
    CallStatusExt as _, Operation, OperationsClient, PollPolicy,
    proto::{
        operations_server::OperationsServer,
        rpc::{self, RetryInfo},
    },
};
use prost::Message as _;
use prost_types::Any;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt as _;
use tonic::{Code, Status, body::Body};
use tower::{ServiceExt as _, service_fn};

use crate::in_process::{Answer, Look, Server};

pub(crate) const NAME: &str = "operations/1";
pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn operation(done: bool) -> Operation {
    Operation {
        name: NAME.to_owned(),
        done,
        ..Operation::default()
    }
}

/// The answer of an operation that runs, at once.
pub(crate) fn running() -> Answer<Operation> {
    Box::pin(ready(Ok(operation(false))))
}

pub(crate) fn failed(status: Status) -> Answer<Operation> {
    Box::pin(ready(Err(status)))
}

/// The answer of a server that waits for as long as it is asked to.
pub(crate) fn waited(asked: Duration) -> Answer<Operation> {
    Box::pin(async move {
        sleep(asked).await;
        Ok(operation(false))
    })
}

/// Has a poller look for so long.
pub(crate) async fn look_for(server: &Server, time: Duration, policy: PollPolicy) {
    let mut poller = server.client().poller(NAME).policy(policy);
    let cut = timeout(time, poller.until_done()).await;
    assert!(cut.is_err(), "{cut:?}");
}

/// The times between the looks.
pub(crate) fn intervals(server: &Server) -> Vec<f64> {
    let calls = server.calls();
    calls
        .windows(2)
        .map(|pair| (pair[1].at - pair[0].at).as_secs_f64())
        .collect()
}

/// Asserts that the intervals are those of the default policy, jitter apart.
fn assert_default_delays(intervals: &[f64]) {
    assert!(intervals.len() > 10, "{intervals:?}");
    let delays = (0..).map(|n| 1.5_f64.powi(n).min(20.0));
    for (interval, delay) in intervals.iter().zip(delays) {
        // A timer may be late by a millisecond.
        assert!(
            (0.8 * delay..1.2 * delay + 0.002).contains(interval),
            "{interval} for {delay}: {intervals:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_wait_is_asked_with_growing_delays() {
    let server = Server::of_looks(|look| match look {
        Look::Get => running(),
        Look::Wait(_) => failed(Status::unimplemented("no Wait")),
    });
    look_for(&server, 600 * SECOND, PollPolicy::default()).await;
    let calls = server.calls();
    assert!(matches!(calls[0].look, Look::Wait(_)));
    assert!(calls[1..].iter().all(|call| call.look == Look::Get));
    assert_eq!(calls[0].at, calls[1].at, "Get comes at once");
    assert_default_delays(&intervals(&server)[1..]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_wait_at_once_is_not_hammered() {
    let server = Server::of_looks(|_| running());
    look_for(&server, 600 * SECOND, PollPolicy::default()).await;
    assert_default_delays(&intervals(&server));
    // 39 by the delays alone; with 20 % of jitter never more than 48.
    let calls = server.calls().len();
    assert!((33..=48).contains(&calls), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_waits_is_asked_for_slices_of_at_most_60_seconds_without_pause() {
    let server = Server::of_looks(|look| match look {
        Look::Wait(asked) => waited(asked),
        Look::Get => running(),
    });
    let policy = PollPolicy::default().wait_timeout(Duration::MAX);
    look_for(&server, 3600 * SECOND, policy).await;
    let calls = server.calls();
    for (call, interval) in calls.iter().zip(intervals(&server)) {
        let Look::Wait(asked) = call.look else {
            panic!("a Wait was expected: {call:?}");
        };
        assert!((48.0..=60.0).contains(&asked.as_secs_f64()), "{asked:?}");
        assert!((asked.as_secs_f64() - interval).abs() < 0.003);
        assert!(call.timeout.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_hangs_is_given_up_and_followed_by_a_get() {
    let server = Server::of_looks(|look| match look {
        Look::Wait(_) => Box::pin(pending()),
        Look::Get => Box::pin(ready(Ok(operation(true)))),
    });
    let begun = Instant::now();
    let end = server.client().poller(NAME).until_done().await;
    assert!(end.expect("Get answers").done);
    let took = begun.elapsed();
    assert!(took <= 71 * SECOND, "{took:?}");
    assert_eq!(server.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_get_that_hangs_is_given_up_after_10_seconds_and_asked_again() {
    let server = Server::of_looks(|_| Box::pin(pending()));
    let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
    look_for(&server, 60 * SECOND, policy).await;
    let calls = server.calls();
    assert!(calls.len() >= 4, "{calls:?}");
    assert!(calls.iter().all(|call| call.look == Look::Get));
    let first = intervals(&server)[0];
    assert!((10.8..=11.3).contains(&first), "{first}");
}

#[tokio::test(start_paused = true)]
async fn a_client_with_a_timeout_of_its_own_keeps_it_for_gets() {
    let server = Server::of_looks(|_| Box::pin(pending()));
    let client = server.client().timeout(3 * SECOND);
    let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
    let mut poller = client.poller(NAME).policy(policy);
    let cut = timeout(10 * SECOND, poller.until_done()).await;
    assert!(cut.is_err(), "{cut:?}");
    let first = intervals(&server)[0];
    assert!((3.8..=4.3).contains(&first), "{first}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_for_a_longer_pause_gets_it() {
    let detail = RetryInfo {
        retry_delay: Some(prost_types::Duration {
            seconds: 90,
            nanos: 0,
        }),
    };
    let details = rpc::Status {
        code: 14,
        message: "not now".to_owned(),
        details: vec![Any::from_msg(&detail).expect("it encodes")],
    };
    let server = Server::of_looks(move |_| {
        failed(Status::with_details(
            Code::Unavailable,
            "not now",
            details.encode_to_vec().into(),
        ))
    });
    look_for(&server, 330 * SECOND, PollPolicy::default()).await;
    let intervals = intervals(&server);
    assert_eq!(intervals.len(), 3, "{intervals:?}");
    // Never sooner, and not all who were told the same in one instant.
    assert!(intervals.iter().all(|pause| (90.0..108.01).contains(pause)));
    assert!(intervals.iter().any(|pause| *pause > 90.1));
}

#[tokio::test(start_paused = true)]
async fn as_a_stream_waits_are_short_enough_to_see_progress() {
    let server = Server::of_looks(|look| match look {
        Look::Wait(asked) => waited(asked),
        Look::Get => running(),
    });
    let states = server.client().poller(NAME).take(12);
    let states: Vec<_> = states.collect().await;
    assert!(states.iter().all(Result::is_ok));
    // The first look is a Get, to see at once how it is.
    assert!(
        server.calls()[1..]
            .iter()
            .all(|call| call.look != Look::Get)
    );
    assert_default_delays(&intervals(&server));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_refused_is_followed_by_a_get_soon_and_the_delays_grow_all_the_same() {
    let server = Server::of_looks(|look| match look {
        Look::Wait(_) => unreachable!("it is refused before"),
        Look::Get => running(),
    });
    let inner = OperationsServer::new(server.clone());
    let waits = Arc::<AtomicUsize>::default();
    let stack = service_fn({
        let waits = Arc::clone(&waits);
        move |request: http::Request<Body>| {
            let inner = inner.clone();
            let refused = request.uri().path().ends_with("/WaitOperation");
            waits.fetch_add(usize::from(refused), SeqCst);
            async move {
                if !refused {
                    return inner.oneshot(request).await;
                }
                // In the headers, for a status of this process counts as the client's own.
                let refusal = http::Response::builder().header("grpc-status", "7");
                Ok(refusal.body(Body::empty()).expect("legal headers"))
            }
        }
    });
    let mut poller = OperationsClient::new(stack).poller(NAME);
    let begun = Instant::now();
    let cut = timeout(600 * SECOND, poller.until_done()).await;
    assert!(cut.is_err(), "{cut:?}");
    assert!(server.calls()[0].at - begun <= Duration::from_millis(1_202));
    let gets = server.calls().len();
    assert!((25..=40).contains(&gets), "{gets}");
    assert!((gets..=gets + 1).contains(&waits.load(SeqCst)));
}

#[tokio::test(start_paused = true)]
async fn a_poller_that_is_not_polled_makes_at_most_one_more_call() {
    let done = Instant::now() + 10 * SECOND;
    let server = Server::of_looks(move |_| Box::pin(ready(Ok(operation(Instant::now() >= done)))));
    let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
    let mut states = server.client().poller(NAME).policy(policy);
    let first = states.next().await.expect("a state").expect("it runs");
    assert!(!first.done);
    let cut = timeout(Duration::from_millis(100), states.next()).await;
    assert!(cut.is_err(), "{cut:?}");
    sleep(3600 * SECOND).await;
    assert_eq!(server.calls().len(), 2);
    // The state of that call comes first, and then a new one without a delay.
    let second = states.next().await.expect("a state").expect("no failure");
    assert!(!second.done);
    let third = states.next().await.expect("a state").expect("no failure");
    assert!(third.done);
    assert_eq!(server.calls()[2].at, Instant::now());
}

/// Polls a server that always fails. Returns the code and the number of polls.
async fn fail(status: Status, policy: PollPolicy) -> (Code, usize) {
    let server = Server::of_looks(move |_| failed(status.clone()));
    let mut poller = server.client().poller(NAME).policy(policy);
    let end = timeout(3600 * SECOND, poller.until_done()).await;
    let code = end.map_or(Code::Ok, |end| end.expect_err("it always fails").code());
    (code, server.calls().len())
}

#[tokio::test(start_paused = true)]
async fn max_failures_limits_consecutive_failures() {
    let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
    for failures in [0, 1, 5] {
        let limited = policy.max_failures(failures);
        let (code, polls) = fail(Status::unavailable("down"), limited).await;
        assert_eq!((code, polls), (Code::Unavailable, failures + 1));
    }
    // A successful poll resets the count.
    let polls = Arc::<AtomicUsize>::default();
    let server = Server::of_looks(move |_| match polls.fetch_add(1, SeqCst) {
        20 => Box::pin(ready(Ok(operation(true)))),
        poll if poll % 2 == 0 => failed(Status::unavailable("down")),
        _ => running(),
    });
    let mut poller = server.client().poller(NAME).policy(policy.max_failures(1));
    assert!(poller.until_done().await.expect("done").done);
}

#[tokio::test(start_paused = true)]
async fn polling_continues_only_after_transient_codes() {
    let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
    let chosen = policy
        .transient_codes([Code::NotFound, Code::Internal])
        .max_failures(7);
    for code in [Code::NotFound, Code::Internal] {
        assert_eq!(fail(Status::new(code, "later"), chosen).await, (code, 8));
        assert_eq!(fail(Status::new(code, "later"), policy).await, (code, 1));
    }
    let (code, polls) = fail(Status::unavailable("down"), chosen).await;
    assert_eq!((code, polls), (Code::Unavailable, 1));
    let retryable = Status::unavailable("down").into_retryable();
    assert_eq!(fail(retryable, chosen).await, (Code::Unavailable, 8));
}

#[tokio::test(start_paused = true)]
async fn a_pushback_replaces_the_poll_delay() {
    let server = Server::of_looks(|_| {
        let mut status = Status::unavailable("not now");
        let pushback = "90000".parse().expect("ASCII");
        status
            .metadata_mut()
            .insert("grpc-retry-pushback-ms", pushback);
        failed(status)
    });
    let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
    look_for(&server, 300 * SECOND, policy).await;
    let intervals = intervals(&server);
    assert_eq!(intervals.len(), 3, "{intervals:?}");
    assert!(
        intervals
            .iter()
            .all(|interval| (90.0..90.01).contains(interval))
    );
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_polls_again_after_an_error_does_not_flood_the_server() {
    let server = Server::of_looks(|_| failed(Status::internal("a bug")));
    let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
    let mut poller = server.client().poller(NAME).policy(policy);
    let polls = async {
        loop {
            poller.until_done().await.expect_err("it always fails");
        }
    };
    let cut = timeout(600 * SECOND, polls).await;
    assert!(cut.is_err());
    assert_default_delays(&intervals(&server));
}

#[tokio::test(start_paused = true)]
async fn a_delay_that_the_server_requests_is_at_most_an_hour() {
    let server = Server::of_looks(|_| {
        let mut status = Status::unavailable("not now");
        let pushback = "2147483647".parse().expect("ASCII");
        status
            .metadata_mut()
            .insert("grpc-retry-pushback-ms", pushback);
        failed(status)
    });
    let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
    look_for(&server, 7_300 * SECOND, policy).await;
    assert_eq!(server.calls().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_delay_after_a_failure_begins_at_its_end_and_not_when_the_caller_sees_it() {
    let server = Server::of_looks(|_| failed(Status::unavailable("down")));
    let policy = PollPolicy::default()
        .wait_timeout(Duration::ZERO)
        .initial_delay(10 * SECOND);
    let mut poller = server.client().poller(NAME).policy(policy);
    let cut = timeout(Duration::ZERO, poller.until_done()).await;
    assert!(cut.is_err(), "{cut:?}");
    sleep(3600 * SECOND).await;
    assert_eq!(server.calls().len(), 1);
    let cut = timeout(Duration::from_millis(1), poller.until_done()).await;
    assert!(cut.is_err(), "{cut:?}");
    assert_eq!(server.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_methods_alternate_after_a_failed_wait_even_if_its_get_fails_too() {
    let server = Server::of_looks(|look| match look {
        Look::Wait(_) => failed(Status::unavailable("cut off")),
        Look::Get => failed(Status::internal("a bug")),
    });
    let mut poller = server.client().poller(NAME);
    for _ in 0..3 {
        let status = poller.until_done().await.expect_err("it always fails");
        assert_eq!(status.code(), Code::Internal);
    }
    let calls = server.calls();
    assert_eq!(calls.len(), 6);
    for pair in calls.chunks(2) {
        assert!(matches!(pair[0].look, Look::Wait(_)), "{calls:?}");
        assert_eq!(pair[1].look, Look::Get, "{calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_not_permitted_does_not_count_as_a_failure_of_the_policy() {
    // The emulator marks its statuses as the server's.
    let emulator = longrunning::emulator::Emulator::in_process().expect("a runtime");
    emulator.start_operation(NAME).expect("a new name");
    emulator.complete_without_result(NAME).expect("it runs");
    emulator.fail_next(
        longrunning::emulator::Method::Wait,
        1,
        Status::permission_denied("no"),
    );
    let client = OperationsClient::new(emulator.service());
    let mut poller = client
        .poller(NAME)
        .policy(PollPolicy::default().max_failures(0));
    assert!(poller.until_done().await.expect("Get is permitted").done);
}

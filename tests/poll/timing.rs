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
    Operation, OperationsClient, PollPolicy,
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
    assert!(server.calls()[0].at - begun <= SECOND + Duration::from_millis(1));
    let gets = server.calls().len();
    assert!((25..=40).contains(&gets), "{gets}");
    assert!((gets..=gets + 1).contains(&waits.load(SeqCst)));
}

#[tokio::test(start_paused = true)]
async fn while_nobody_polls_no_look_is_made() {
    let done = Instant::now() + 10 * SECOND;
    let server = Server::of_looks(move |_| Box::pin(ready(Ok(operation(Instant::now() >= done)))));
    let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
    let mut states = server.client().poller(NAME).policy(policy);
    let first = states.next().await.expect("a state").expect("it runs");
    assert!(!first.done);
    let cut = timeout(Duration::from_millis(100), states.next()).await;
    assert!(cut.is_err(), "{cut:?}");
    sleep(3600 * SECOND).await;
    assert_eq!(server.calls().len(), 1);
    // What is seen then is new.
    let second = states.next().await.expect("a state").expect("no failure");
    assert!(second.done);
    assert_eq!(server.calls()[1].at, Instant::now());
}

//! When a poller looks, and how: time is paused, and no socket is involved.

use std::{
    future::{pending, ready},
    time::Duration,
};

use longrunning::{
    Operation, OperationsClient, Origin, PollPolicy, StatusExt as _,
    proto::rpc::{self, RetryInfo},
};
use prost::Message as _;
use prost_types::Any;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};

use crate::in_process::{Answer, Look, Server};

const NAME: &str = "operations/1";
const SECOND: Duration = Duration::from_secs(1);

fn operation(done: bool) -> Operation {
    Operation {
        name: NAME.to_owned(),
        done,
        ..Operation::default()
    }
}

/// The answer of an operation that runs, at once.
fn running() -> Answer<Operation> {
    Box::pin(ready(Ok(operation(false))))
}

fn failed(status: Status) -> Answer<Operation> {
    Box::pin(ready(Err(status)))
}

/// The answer of a server that waits for as long as it is asked to.
fn waited(asked: Duration) -> Answer<Operation> {
    Box::pin(async move {
        sleep(asked).await;
        Ok(operation(false))
    })
}

/// Has a poller look for so long.
async fn look_for(server: &Server, time: Duration, policy: PollPolicy) {
    let mut poller = server.client().poller(NAME).policy(policy);
    let cut = timeout(time, poller.until_done()).await;
    assert!(cut.is_err(), "{cut:?}");
}

/// The times between the looks.
fn intervals(server: &Server) -> Vec<f64> {
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
    let policy = PollPolicy::default().wait(Duration::MAX);
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
    let policy = PollPolicy::default().wait(Duration::ZERO);
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
    let client = server.client().with_timeout(3 * SECOND);
    let policy = PollPolicy::default().wait(Duration::ZERO);
    let mut poller = client.poller(NAME).policy(policy);
    let cut = timeout(10 * SECOND, poller.until_done()).await;
    assert!(cut.is_err(), "{cut:?}");
    let first = intervals(&server)[0];
    assert!((3.8..=4.3).contains(&first), "{first}");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_total_timeout_names_operation_and_limit_and_the_last_failure() {
    let server = Server::of_looks(|look| match look {
        Look::Wait(_) => failed(Status::unavailable("on strike")),
        Look::Get => running(),
    });
    let policy = PollPolicy::default().total_timeout(30 * SECOND);
    let mut poller = server.client().poller(NAME).policy(policy);
    let begun = Instant::now();
    let status = poller.until_done().await.expect_err("time is up");
    let took = begun.elapsed();
    assert!((30 * SECOND..31 * SECOND).contains(&took), "{took:?}");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.origin(), Some(Origin::Client));
    let message = r#"operation "operations/1" was not done within 30s"#;
    assert!(status.message().starts_with(message), "{status}");
    assert_eq!(poller.latest(), Some(&operation(false)));

    let calls = server.calls().len();
    let status = poller.until_done().await.expect_err("time is still up");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(server.calls().len(), calls, "nothing more is sent");

    let server = Server::of_looks(|_| failed(Status::unavailable("on strike")));
    let mut poller = server.client().poller(NAME).policy(policy);
    let status = poller.until_done().await.expect_err("time is up");
    let message = format!("{message}; the last look failed: UNAVAILABLE: on strike");
    assert_eq!(status.message(), message);
    assert_eq!(poller.latest(), None);
}

#[tokio::test(start_paused = true)]
async fn the_last_wait_ends_before_the_limit_so_that_a_state_is_seen() {
    let server = Server::of_looks(|look| match look {
        Look::Wait(asked) => waited(asked),
        Look::Get => running(),
    });
    for limit in [
        Duration::from_millis(100),
        SECOND,
        10 * SECOND,
        100 * SECOND,
    ] {
        let policy = PollPolicy::default().total_timeout(limit);
        let mut poller = server.client().poller(NAME).policy(policy);
        let earlier = server.calls().len();
        let status = poller.until_done().await.expect_err("time is up");
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(poller.latest().is_some(), "{limit:?}");
        let calls = server.calls().len() - earlier;
        assert!(calls <= 6, "{limit:?}: {calls} calls");
    }
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
    look_for(&server, 300 * SECOND, PollPolicy::default()).await;
    let intervals = intervals(&server);
    assert_eq!(intervals.len(), 3, "{intervals:?}");
    assert!(intervals.iter().all(|pause| (90.0..90.01).contains(pause)));
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
    assert!(server.calls().iter().all(|call| call.look != Look::Get));
    assert_default_delays(&intervals(&server));
}

#[tokio::test(start_paused = true)]
async fn thousands_of_pollers_that_start_together_do_not_look_in_step() {
    const POLLERS: usize = 2_000;
    let server = Server::of_looks(|_| running());
    let client: OperationsClient<_> = server.client();
    let policy = PollPolicy::default().wait(Duration::ZERO);
    let begun = Instant::now();
    let mut pollers = JoinSet::new();
    for _ in 0..POLLERS {
        let mut states = client.poller(NAME).policy(policy);
        pollers.spawn(async move { while states.next().await.is_some() {} });
    }
    sleep(3 * SECOND).await;
    pollers.shutdown().await;
    // The first interval is 1 s, the jitter 20 % either way: 0.8 s to 1.2 s.
    let mut tenths = [0; 10];
    for call in server.calls() {
        let at = (call.at - begun).as_secs_f64();
        if (0.8..1.201).contains(&at) {
            let tenth = ((at - 0.8) / 0.04) as usize;
            tenths[tenth.min(9)] += 1;
        }
    }
    assert_eq!(tenths.iter().sum::<usize>(), POLLERS, "{tenths:?}");
    // In step, all would fall into one of them. Evenly spread, 200 do, give or take 13.
    assert!(tenths.iter().all(|n| (120..280).contains(n)), "{tenths:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_50_pollers_of_a_client_wait_at_a_time() {
    let server = Server::of_looks(|look| match look {
        Look::Wait(asked) => waited(asked),
        Look::Get => running(),
    });
    let client = server.client();
    let mut pollers = JoinSet::new();
    for _ in 0..60 {
        let mut poller = client.clone().poller(NAME);
        pollers.spawn(async move { poller.until_done().await });
    }
    sleep(Duration::from_millis(1)).await;
    let looks = server.calls();
    let gets = looks.iter().filter(|call| call.look == Look::Get).count();
    assert_eq!((looks.len(), gets), (60, 10));
    // Room that is left is taken by others.
    pollers.shutdown().await;
    look_for(&server, SECOND, PollPolicy::default()).await;
    let last = server.calls().pop().expect("a look");
    assert!(matches!(last.look, Look::Wait(_)), "{last:?}");
}

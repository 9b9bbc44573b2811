//! The total timeout, and what is seen before it is over.

use std::{
    future::{pending, ready},
    time::Duration,
};

use longrunning::{CallStatusExt as _, Origin, PollPolicy};
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use crate::{
    in_process::{Look, Server},
    timing::{NAME, SECOND, failed, operation, running, waited},
};

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
    let message = format!("{message}; the last poll failed: UNAVAILABLE: on strike");
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
async fn a_wait_without_an_answer_leaves_time_for_a_get() {
    for seconds in [2, 5, 30, 60, 65, 75, 120] {
        let server = Server::of_looks(|look| match look {
            Look::Wait(_) => Box::pin(pending()),
            Look::Get => Box::pin(ready(Ok(operation(true)))),
        });
        let policy = PollPolicy::default().total_timeout(seconds * SECOND);
        let mut poller = server.client().poller(NAME).policy(policy);
        assert!(
            poller.until_done().await.expect("Get answers").done,
            "{seconds}"
        );
        let calls = server.calls();
        assert!(matches!(calls[0].look, Look::Wait(_)), "{seconds}");
        assert_eq!((calls.len(), &calls[1].look), (2, &Look::Get), "{seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_has_what_is_left_for_its_deadline() {
    let server = Server::of_looks(|_| Box::pin(pending()));
    let policy = PollPolicy::default().total_timeout(3 * SECOND);
    let mut poller = server.client().poller(NAME);
    poller = poller.policy(policy.wait_timeout(Duration::ZERO));
    let status = poller.until_done().await.expect_err("time is up");
    assert_eq!(
        status.message(),
        "operation \"operations/1\" was not done within 3s; \
         the last poll failed: DEADLINE_EXCEEDED: no answer to GetOperation within 3s: \
         waited 3s for the answer"
    );
    assert_eq!(server.calls()[0].timeout.as_deref(), Some("3000000u"));
}

#[tokio::test(start_paused = true)]
async fn delays_as_long_as_the_limit_do_not_keep_a_poller_from_waiting() {
    let server = Server::of_looks(|look| match look {
        Look::Wait(asked) => waited(asked),
        Look::Get => running(),
    });
    let policy = PollPolicy::default()
        .initial_delay(60 * SECOND)
        .max_delay(60 * SECOND)
        .total_timeout(60 * SECOND);
    let mut poller = server.client().poller(NAME).policy(policy);
    let status = poller.until_done().await.expect_err("time is up");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(matches!(server.calls()[0].look, Look::Wait(_)));
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_set_later_counts_for_the_look_under_way() {
    let server = Server::of_looks(|look| match look {
        Look::Wait(_) => Box::pin(pending()),
        Look::Get => Box::pin(ready(Ok(operation(true)))),
    });
    let mut poller = server.client().poller(NAME);
    let cut = timeout(SECOND, poller.until_done()).await;
    assert!(cut.is_err(), "{cut:?}");
    let mut poller = poller.policy(PollPolicy::default().wait_timeout(Duration::ZERO));
    let begun = Instant::now();
    assert!(poller.until_done().await.expect("Get answers").done);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn another_policy_starts_immediately_and_begins_the_total_timeout_again() {
    let server = Server::of_looks(|_| running());
    let slow = PollPolicy::default()
        .wait_timeout(Duration::ZERO)
        .initial_delay(3600 * SECOND);
    let mut poller = server.client().poller(NAME).policy(slow);
    poller.next().await.expect("a state").expect("it runs");
    tokio::time::sleep(100 * SECOND).await;
    let begun = Instant::now();
    let limited = PollPolicy::default()
        .wait_timeout(Duration::ZERO)
        .total_timeout(30 * SECOND);
    let mut poller = poller.policy(limited);
    poller.next().await.expect("a state").expect("it runs");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    poller.until_done().await.expect_err("it runs");
    assert_eq!(begun.elapsed(), 30 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_total_timeout_that_passes_before_the_first_poll_sends_nothing() {
    let server = Server::of_looks(|_| running());
    let policy = PollPolicy::default().total_timeout(Duration::ZERO);
    let mut poller = server.client().poller(NAME).policy(policy);
    let status = poller.until_done().await.expect_err("no time");
    assert_eq!(status.delivery(), Some(longrunning::Delivery::NotSent));
    assert!(server.calls().is_empty());
}

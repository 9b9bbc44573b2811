//! Cancels that the server does not take, or does not answer.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use longrunning::RetryPolicy;

use super::*;

#[tokio::test]
async fn a_refusal_because_it_is_done_already_gives_how_it_ended() {
    for refusal in [
        Status::failed_precondition("already finished"),
        Status::invalid_argument("has already been cancelled"),
    ] {
        let emulator = emulator().await;
        emulator.on_cancel(CancelBehavior::Refuse(refusal));
        emulator
            .fail(NAME, Status::cancelled("by another"))
            .expect("it runs");
        let outcome = outcome(&emulator).await;
        assert!(
            matches!(outcome, CancelOutcome::Cancelled(_)),
            "{outcome:?}"
        );
        assert_eq!(methods(&emulator), [Method::Cancel, Method::Get]);
    }
}

#[tokio::test]
async fn a_refusal_of_what_still_runs_is_the_servers_status() {
    for code in [Code::FailedPrecondition, Code::InvalidArgument] {
        let emulator = emulator().await;
        emulator.on_cancel(CancelBehavior::Refuse(Status::new(code, "not cancellable")));
        let status = error(&emulator, NAME).await;
        assert_eq!((status.code(), status.message()), (code, "not cancellable"));
        assert_eq!(status.origin(), Some(Origin::Server));
        assert_eq!(
            methods(&emulator),
            [Method::Cancel, Method::Get],
            "one look"
        );

        // Neither does a look that fails change it.
        emulator.fail_next(Method::Get, 1, Status::permission_denied("not yours"));
        let status = error(&emulator, NAME).await;
        assert_eq!((status.code(), status.message()), (code, "not cancellable"));
    }
}

#[tokio::test]
async fn an_unknown_name_is_the_servers_status() {
    let emulator = emulator().await;
    let status = error(&emulator, "operations/none").await;
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(methods(&emulator), [Method::Cancel]);

    let refusal = Status::invalid_argument("no such operation");
    emulator.on_cancel(CancelBehavior::Refuse(refusal));
    let status = error(&emulator, "operations/none").await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "no such operation");
}

#[tokio::test]
async fn a_server_without_cancel_says_so() {
    let emulator = emulator().await;
    emulator.unimplement(Method::Cancel);
    let status = error(&emulator, NAME).await;
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(status.origin(), Some(Origin::Server));
    assert_eq!(methods(&emulator), [Method::Cancel]);
}

#[tokio::test]
async fn a_cancel_without_an_answer_is_an_error_and_the_next_one_tells() {
    let emulator = emulator().await;
    emulator.lose_next(Method::Cancel, 1, Status::unavailable("connection lost"));
    let status = error(&emulator, NAME).await;
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "connection lost");
    let outcome = outcome(&emulator).await;
    assert!(
        matches!(outcome, CancelOutcome::Cancelled(_)),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_name_that_cannot_be_meant_is_refused_before_anything_is_sent() {
    let emulator = emulator().await;
    let status = error(&emulator, "").await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.origin(), Some(Origin::Client));
    assert!(emulator.calls().is_empty());
}

#[tokio::test]
async fn a_second_cancel_after_a_lost_answer_may_be_refused_and_still_tells_the_outcome() {
    let emulator = emulator().await;
    let lost = Status::unavailable("connection lost");
    emulator.lose_next(Method::Cancel, 1, lost);
    assert_eq!(error(&emulator, NAME).await.code(), Code::Unavailable);
    let refusal = Status::failed_precondition("already finished");
    emulator.on_cancel(CancelBehavior::Refuse(refusal));
    let outcome = outcome(&emulator).await;
    assert!(
        matches!(outcome, CancelOutcome::Cancelled(_)),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_second_cancel_of_what_the_first_deleted_is_the_servers_not_found() {
    let emulator = emulator().await;
    emulator.on_cancel(CancelBehavior::Delete);
    let lost = Status::unavailable("connection lost");
    emulator.lose_next(Method::Cancel, 1, lost);
    assert_eq!(error(&emulator, NAME).await.code(), Code::Unavailable);
    let status = error(&emulator, NAME).await;
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.origin(), Some(Origin::Server));
}

#[tokio::test]
async fn a_retry_may_be_refused_for_what_its_first_attempt_is_stopping() {
    let emulator = emulator().await;
    emulator.on_cancel(CancelBehavior::CancelAfter(Duration::from_millis(100)));
    emulator.lose_next(Method::Cancel, 1, Status::unavailable("connection lost"));
    let cancels = AtomicUsize::new(0);
    emulator.require(move |call| {
        let again = call.method() == Method::Cancel && cancels.fetch_add(1, SeqCst) > 0;
        match again {
            true => Err(Status::failed_precondition("it is stopping already")),
            false => Ok(()),
        }
    });
    let retry = RetryPolicy::default().initial_backoff(Duration::from_millis(1));
    let client = client(&emulator).retry(retry);
    let status = client.cancel_and_wait(NAME, brisk()).await;
    let status = status.expect_err("refused, and not done yet");
    assert_eq!(status.code(), Code::FailedPrecondition);
    let end = client.poller(NAME).until_done().await.expect("done");
    assert!(matches!(end.outcome(), Outcome::Cancelled(_)), "{end:?}");
}

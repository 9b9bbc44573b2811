//! What is known when the time is up.

use super::*;

#[tokio::test]
async fn when_time_is_up_the_last_state_seen_is_given() {
    let emulator = emulator().await;
    emulator.on_cancel(CancelBehavior::Ignore);
    let progress = cancelled_in_its_own_words();
    emulator.set_metadata(NAME, &progress).expect("it runs");
    for wait in [Duration::ZERO, Duration::from_millis(50)] {
        let policy = brisk()
            .wait_timeout(wait)
            .total_timeout(Duration::from_secs(1));
        let outcome = client(&emulator).cancel_and_wait(NAME, policy).await;
        let Ok(CancelOutcome::Running(state)) = outcome else {
            panic!("it still runs: {outcome:?}");
        };
        assert_eq!(
            state.metadata_as().expect("it is one"),
            Some(progress.clone())
        );
    }
}

#[tokio::test]
async fn when_time_is_up_and_no_state_was_seen_nothing_is_known() {
    let emulator = emulator().await;
    for method in [Method::Wait, Method::Get] {
        emulator.fail_next(method, usize::MAX, Status::unavailable("on strike"));
    }
    // Its delays are such that no poll is in flight when the time is up.
    let policy = PollPolicy::default().total_timeout(Duration::from_secs(1));
    let outcome = client(&emulator).cancel_and_wait(NAME, policy).await;
    let Ok(CancelOutcome::Unknown(status)) = outcome else {
        panic!("nothing is known: {outcome:?}");
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let message = format!(
        "operation {NAME:?} was not done within 1s; \
         the last poll failed: UNAVAILABLE: on strike"
    );
    assert_eq!(status.message(), message);
}

#[tokio::test]
async fn the_limit_covers_the_cancel_call_too() {
    let emulator = emulator().await;
    emulator.delay(Method::Cancel, Duration::from_secs(3600));
    let policy = brisk().total_timeout(Duration::from_millis(200));
    let outcome = client(&emulator).cancel_and_wait(NAME, policy).await;
    let status = outcome.expect_err("no answer");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.origin(), Some(Origin::Client));
    // What is not known to be accepted is not watched. The words are those of the timer, ours or
    // the channel's, that was first.
    assert!(!methods(&emulator).contains(&Method::Wait));
    assert!(!methods(&emulator).contains(&Method::Get));
}

#[tokio::test(start_paused = true)]
async fn without_a_total_timeout_cancel_and_wait_ends_after_5_minutes() {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator.start_operation(NAME).expect("a new name");
    emulator.on_cancel(CancelBehavior::Ignore);
    let client = OperationsClient::new(emulator.service());
    let begin = tokio::time::Instant::now();
    let outcome = client.cancel_and_wait(NAME, PollPolicy::default()).await;
    let Ok(CancelOutcome::Running(_)) = outcome else {
        panic!("it still runs: {outcome:?}");
    };
    let minutes = begin.elapsed().as_secs_f64() / 60.0;
    assert!((5.0..5.2).contains(&minutes), "{minutes}");

    let policy = PollPolicy::default().total_timeout(Duration::MAX);
    let endless = client.cancel_and_wait(NAME, policy);
    let day = Duration::from_secs(24 * 3600);
    let cut = tokio::time::timeout(day, endless).await;
    cut.expect_err("it has no end");
}

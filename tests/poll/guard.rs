//! The guard that cancels an operation when it is dropped.

use super::*;

/// Waits until a cancel call has ended, and returns its outcome.
async fn cancelled(emulator: &Emulator) -> CallOutcome {
    emulator
        .wait_until(|emulator| {
            let calls = emulator.calls_of(Method::Cancel);
            calls
                .first()
                .is_some_and(|call| call.outcome() != CallOutcome::InFlight)
        })
        .await;
    emulator.calls_of(Method::Cancel)[0].outcome()
}

#[tokio::test]
async fn an_operation_is_cancelled_when_the_guard_is_dropped() {
    let emulator = emulator().await;
    let mut guard = client(&emulator)
        .poller(NAME)
        .cancel_on_drop()
        .expect("a runtime");
    assert_eq!(guard.name(), NAME);
    let cut = timeout(Duration::from_millis(20), guard.until_done()).await;
    assert!(cut.is_err(), "{cut:?}");
    assert!(emulator.calls_of(Method::Cancel).is_empty());
    drop(guard);
    assert_eq!(cancelled(&emulator).await, CallOutcome::Answered(Code::Ok));
    assert!(emulator.operation(NAME).expect("on record").done);
}

#[tokio::test]
async fn a_guard_that_is_disarmed_or_has_seen_the_done_state_does_not_cancel() {
    let emulator = emulator().await;
    let client = client(&emulator);
    let mut guard = client.poller(NAME).cancel_on_drop().expect("a runtime");
    guard.disarm();
    drop(guard);

    emulator
        .complete(NAME, &Progress::default())
        .expect("it runs");
    let mut guard = client.poller(NAME).cancel_on_drop().expect("a runtime");
    assert!(guard.until_done().await.expect("done").done);
    drop(guard);
    // A call that was spawned by a guard would come before this one.
    let policy = brisk().wait_timeout(Duration::ZERO);
    client
        .poller(NAME)
        .policy(policy)
        .until_done()
        .await
        .expect("done");
    assert!(
        emulator.calls_of(Method::Cancel).is_empty(),
        "{:?}",
        emulator.calls()
    );
}

#[tokio::test(start_paused = true)]
async fn the_cancel_call_of_a_guard_takes_at_most_10_seconds() {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator.start_operation(NAME).expect("a new name");
    emulator.delay(Method::Cancel, Duration::MAX);
    let client = OperationsClient::new(emulator.service()).timeout(Duration::from_secs(3600));
    drop(client.poller(NAME).cancel_on_drop().expect("a runtime"));
    let dropped = tokio::time::Instant::now();
    assert_eq!(cancelled(&emulator).await, CallOutcome::Abandoned);
    let elapsed = dropped.elapsed();
    let expected = Duration::from_secs(10)..=Duration::from_millis(10_001);
    assert!(expected.contains(&elapsed), "{elapsed:?}");
}

#[test]
fn a_guard_can_be_dropped_outside_its_runtime_and_after_its_shutdown() {
    let of_server = tokio::runtime::Runtime::new().expect("a runtime");
    let emulator = of_server.block_on(emulator());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (guard, late) = runtime.block_on(async {
        let guard = || {
            client(&emulator)
                .poller(NAME)
                .cancel_on_drop()
                .expect("a runtime")
        };
        let (guard, late) = (guard(), guard());
        (guard, late)
    });
    drop(guard);
    let outcome = runtime.block_on(cancelled(&emulator));
    assert_eq!(outcome, CallOutcome::Answered(Code::Ok));
    drop(runtime);
    drop(late);
    let client = of_server.block_on(async { client(&emulator) });
    let get = of_server.block_on(client.get_operation(NAME));
    assert!(get.expect("on record").done);
    assert_eq!(emulator.calls_of(Method::Cancel).len(), 1);
}

#[test]
fn a_guard_needs_a_runtime() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let emulator = runtime.block_on(emulator());
    let client = runtime.block_on(async { client(&emulator) });
    let status = client
        .poller(NAME)
        .cancel_on_drop()
        .expect_err("no runtime");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(
        status.message(),
        "a guard that cancels an operation needs a tokio runtime: run it within one"
    );
}

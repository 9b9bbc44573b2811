//! Polls that are cut short lose nothing.

use super::*;

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
        .wait_timeout(Duration::ZERO)
        .initial_delay(Duration::from_secs(3600))
        .max_delay(Duration::from_secs(3600));
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

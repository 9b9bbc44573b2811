//! A poller as a stream of states.

use super::*;

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
async fn the_first_state_of_a_stream_comes_at_once() {
    let emulator = emulator().await;
    let mut states = client(&emulator).poller(NAME);
    let state = states.next().await.expect("a state").expect("it runs");
    assert!(!state.done);
    let methods: Vec<_> = emulator.calls().iter().map(|call| call.method()).collect();
    assert_eq!(methods, [Method::Get]);
}

//! Looks that fail: which are ridden on, and which end the poll.

use super::*;

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

//! Looks that fail: which are ridden on, and which end the poll.

use std::sync::atomic::AtomicUsize;

use longrunning::proto::operation::Result as End;

use super::{in_process::Look, *};

#[tokio::test]
async fn a_404_of_wait_is_not_taken_for_a_server_that_cannot_wait() {
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
    let end = client.poller(NAME).policy(brisk()).until_done().await;
    assert!(end.expect("Get passes").done);
    assert_eq!(count(&emulator, Method::Get), 1);

    has_rule.store(true, SeqCst);
    let end = client.poller(NAME).until_done().await;
    assert!(end.expect("done").done);
    assert_eq!(count(&emulator, Method::Wait), 1, "it was asked to wait");
}

#[tokio::test]
async fn a_404_of_everything_ends_the_poll() {
    let nothing = service_fn(|_: http::Request<Body>| async {
        let mut response = http::Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::NOT_FOUND;
        Ok::<_, Status>(response)
    });
    let client = OperationsClient::new(nothing);
    let status = client.poller(NAME).policy(brisk()).until_done().await;
    let status = status.expect_err("a 404");
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(status.origin(), Some(Origin::Transport));
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

/// Statuses that say nothing of the next call.
fn permanent() -> [Status; 4] {
    [
        Status::permission_denied("not yours"),
        Status::internal("a bug"),
        Status::unauthenticated("who are you?"),
        Status::with_details(Code::Aborted, "a conflict", Bytes::from_static(b"\x08\x0a")),
    ]
}

#[tokio::test]
async fn a_permanent_failure_of_a_get_ends_the_poll_with_the_servers_status() {
    let emulator = emulator().await;
    for status in permanent() {
        emulator.fail_next(Method::Wait, 1, Status::internal("a bug of Wait alone"));
        emulator.fail_next(Method::Get, 1, status.clone());
        let mut poller = client(&emulator).poller(NAME).policy(brisk());
        let end = poller.until_done().await.expect_err("it fails");
        assert_eq!(end.code(), status.code());
        assert_eq!(end.message(), status.message());
        assert_eq!(end.details(), status.details());
        assert_eq!(end.origin(), Some(Origin::Server));
    }
    assert_eq!(count(&emulator, Method::Wait), 4);
    assert_eq!(count(&emulator, Method::Get), 4);
}

#[tokio::test]
async fn a_permanent_failure_of_a_wait_is_followed_by_a_get() {
    let emulator = emulator().await;
    emulator
        .complete(NAME, &Progress::default())
        .expect("it runs");
    for status in permanent() {
        emulator.clear_calls();
        emulator.fail_next(Method::Wait, 1, status);
        let mut poller = client(&emulator).poller(NAME).policy(brisk());
        assert!(poller.until_done().await.expect("done").done);
        let methods: Vec<_> = emulator.calls().iter().map(|call| call.method()).collect();
        assert_eq!(methods, [Method::Wait, Method::Get]);
    }
}

#[tokio::test]
async fn a_wait_that_finds_nothing_or_that_the_client_refuses_ends_the_poll() {
    let emulator = emulator().await;
    let end = client(&emulator)
        .poller("operations/none")
        .until_done()
        .await;
    assert_eq!(end.expect_err("unknown").code(), Code::NotFound);
    assert_eq!(emulator.calls().len(), 1);
    let end = client(&emulator).poller("").until_done().await;
    let status = end.expect_err("no name");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.origin(), Some(Origin::Client));
    assert_eq!(emulator.calls().len(), 1);
}

#[tokio::test]
async fn an_answer_that_is_too_large_ends_the_poll() {
    let emulator = emulator().await;
    let client = client(&emulator).max_decoding_message_size(8);
    for wait in [Duration::ZERO, Duration::from_millis(1)] {
        let policy = brisk().wait_timeout(wait);
        let status = client.poller(NAME).policy(policy).until_done().await;
        let status = status.expect_err("too large");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.origin(), Some(Origin::Client));
    }
    assert_eq!(emulator.calls().len(), 2);
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
    }
    // A Get that is cut off as well ends the poll.
    emulator.reset_next(None, 2, 0x2);
    let mut poller = client(&emulator).poller(NAME).policy(brisk());
    let status = poller.until_done().await.expect_err("cut off twice");
    assert_eq!(status.origin(), Some(Origin::Transport));
}

#[tokio::test]
async fn a_get_that_a_peer_resets_says_not_that_anything_was_cancelled() {
    let emulator = emulator().await;
    emulator
        .complete(NAME, &Progress::default())
        .expect("it runs");
    emulator.reset_next(Method::Get, 2, 0x8);
    let policy = brisk().wait_timeout(Duration::ZERO);
    let mut poller = client(&emulator).poller(NAME).policy(policy);
    assert!(poller.until_done().await.expect("done").done);
    assert_eq!(count(&emulator, Method::Get), 3);
    // The server's own word is another thing.
    emulator.fail_next(Method::Get, 1, Status::cancelled("not now"));
    let mut poller = client(&emulator).poller(NAME).policy(policy);
    let status = poller.until_done().await.expect_err("the server's word");
    assert_eq!(
        (status.code(), status.message()),
        (Code::Cancelled, "not now")
    );
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

/// An operation that is done, with a response of no type and no bytes.
fn done_without_type() -> Operation {
    Operation {
        name: NAME.to_owned(),
        done: true,
        result: Some(End::Response(prost_types::Any::default())),
        ..Operation::default()
    }
}

fn running() -> Operation {
    Operation {
        name: NAME.to_owned(),
        ..Operation::default()
    }
}

/// Google's showcase server does this: WaitOperation returns a success, and the operation fails later.
#[tokio::test(start_paused = true)]
async fn an_untyped_response_by_wait_is_confirmed_with_a_get() {
    let gets = Arc::new(AtomicUsize::new(0));
    let counter = gets.clone();
    let server = in_process::Server::of_looks(move |look| {
        let answer = match look {
            Look::Wait(_) => done_without_type(),
            Look::Get if counter.fetch_add(1, SeqCst) < 2 => running(),
            Look::Get => Operation {
                done: true,
                result: Some(End::Error(Default::default())),
                ..running()
            },
        };
        Box::pin(std::future::ready(Ok(answer)))
    });
    let mut poller = server.client().poller(NAME);
    let end = poller.until_done().await.expect("done");
    assert!(matches!(end.outcome(), Outcome::Failed(_)), "{end:?}");
    let waits = |look: &Look| matches!(look, Look::Wait(_));
    let calls = server.calls();
    assert!(calls.len() == 6 && calls.iter().step_by(2).all(|call| waits(&call.look)));
    // The Get comes at once, and the next Wait after the delay.
    assert_eq!(calls[1].at, calls[0].at);
    assert!(calls[2].at - calls[1].at >= Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn an_untyped_response_that_a_get_confirms_is_the_end() {
    let server =
        in_process::Server::of_looks(|_| Box::pin(std::future::ready(Ok(done_without_type()))));
    let end = server.client().poller(NAME).until_done().await;
    assert!(matches!(end.expect("done").outcome(), Outcome::Succeeded));
    assert_eq!(server.calls().len(), 2);

    // A response of GetOperation needs no confirmation.
    let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
    let end = server
        .client()
        .poller(NAME)
        .policy(policy)
        .until_done()
        .await;
    assert!(matches!(end.expect("done").outcome(), Outcome::Succeeded));
    assert_eq!(server.calls().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_failed_get_does_not_confirm_an_untyped_response() {
    let gets = Arc::new(AtomicUsize::new(0));
    let counter = gets.clone();
    let server = in_process::Server::of_looks(move |look| {
        let answer = match look {
            Look::Get if counter.fetch_add(1, SeqCst) == 0 => Err(Status::unavailable("down")),
            _ => Ok(done_without_type()),
        };
        Box::pin(std::future::ready(answer))
    });
    let end = server.client().poller(NAME).until_done().await;
    assert!(end.expect("done").done);
    assert_eq!(gets.load(SeqCst), 2);
}

fn named(name: &str) -> Operation {
    Operation {
        name: name.to_owned(),
        done: true,
        result: Some(End::Response(prost_types::Any {
            type_url: "type.googleapis.com/test.Progress".to_owned(),
            ..prost_types::Any::default()
        })),
        ..Operation::default()
    }
}

#[tokio::test]
async fn an_operation_other_than_the_requested_one_is_internal() {
    use super::in_process::Server;
    for (wait, other) in [
        (
            Duration::ZERO,
            "projects/p/locations/us-central1/operations/ICN43",
        ),
        (Duration::from_secs(1), "operations/1"),
    ] {
        let server = Server::of_looks(move |_| Box::pin(async move { Ok(named(other)) }));
        let policy = PollPolicy::default().wait_timeout(wait);
        let client = server.client();
        let status = client.poller(NAME).policy(policy).until_done().await;
        let status = status.expect_err("it is another one");
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(
            status.message(),
            format!("the server returned operation {other:?}, but {NAME:?} was requested")
        );
        // The same check where an operation is cancelled first.
        let end = client
            .cancel_and_wait(NAME, policy)
            .await
            .expect("accepted");
        let longrunning::CancelOutcome::Unknown(status) = end else {
            panic!("an unknown outcome was expected: {end:?}");
        };
        assert_eq!(status.code(), Code::Internal);
    }
}

#[tokio::test]
async fn another_name_of_the_same_operation_is_accepted() {
    use super::in_process::Server;
    // A project's number in place of its ID, a relative name, and no name.
    for name in [
        "projects/12345/locations/us-central1/operations/ICN42",
        "operations/ICN42",
        "ICN42",
        "",
    ] {
        let server = Server::of_looks(move |_| Box::pin(async move { Ok(named(name)) }));
        let end = server.client().poller(NAME).until_done().await;
        assert_eq!(end.expect("it is the same").name, name);
    }
}

#[tokio::test(start_paused = true)]
async fn after_unimplemented_wait_operation_is_not_called_for_10_minutes() {
    use super::in_process::{Look, Server};
    let server = Server::of_looks(|look| {
        Box::pin(async move {
            match look {
                Look::Wait(_) => Err(Status::unimplemented("not yet")),
                Look::Get => Ok(named(NAME)),
            }
        })
    });
    let client = server.client();
    let waits = || {
        let calls = server.calls();
        let waits = calls.iter().filter(|call| call.look != Look::Get);
        waits.count()
    };
    let poll = async || client.poller(NAME).until_done().await.expect("done");
    poll().await;
    assert_eq!(waits(), 1);
    tokio::time::advance(Duration::from_secs(599)).await;
    poll().await;
    assert_eq!(waits(), 1);
    tokio::time::advance(Duration::from_secs(2)).await;
    poll().await;
    assert_eq!(waits(), 2, "it is asked again");
    poll().await;
    assert_eq!(waits(), 2);
}

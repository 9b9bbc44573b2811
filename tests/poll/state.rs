//! Pollers from a known state of the operation.

use super::{in_process::Server, *};

fn never_polled() -> Server {
    Server::of_looks(|_| panic!("no call was expected"))
}

#[tokio::test]
async fn a_done_operation_is_returned_without_a_call() {
    let server = never_polled();
    let done = Operation {
        name: NAME.to_owned(),
        done: true,
        ..Operation::default()
    };
    let mut poller = server.client().poller(&done);
    assert_eq!(poller.latest(), Some(&done));
    assert_eq!(poller.until_done().await.expect("done"), done);

    let states: Vec<_> = server.client().poller(done.clone()).collect().await;
    let [state] = &states[..] else {
        panic!("one state was expected: {states:?}");
    };
    assert_eq!(state.as_ref().expect("done"), &done);
    assert!(server.calls().is_empty());
}

/// As in the response to a request with `validate_only`, see AIP-163.
#[test]
fn a_done_operation_without_a_name_needs_neither_a_server_nor_a_runtime() {
    let done = Operation {
        done: true,
        ..Operation::default()
    };
    let mut poller = never_polled().client().poller(&done);
    let end = futures_executor::block_on(poller.until_done());
    assert_eq!(end.expect("done"), done);
}

#[tokio::test]
async fn latest_returns_the_given_state_until_the_first_poll() {
    let emulator = emulator().await;
    let stored = Operation {
        name: NAME.to_owned(),
        metadata: Some(prost_types::Any::from_msg(&Progress { percent: 10 }).expect("it encodes")),
        ..Operation::default()
    };
    let mut poller = client(&emulator).poller(&stored).policy(brisk());
    assert_eq!(poller.latest(), Some(&stored));
    let state = poller.next().await.expect("a state").expect("it runs");
    assert_eq!(state.metadata, None);
    assert_eq!(poller.latest(), Some(&state));
}

#[tokio::test]
async fn a_running_operation_without_a_name_is_an_error() {
    let server = never_polled();
    let mut poller = server.client().poller(Operation::default());
    let status = poller.until_done().await.expect_err("no name");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        status.message(),
        "the operation's name is empty: give one such as \"operations/1\""
    );
}

#[tokio::test]
async fn a_poller_can_cancel_its_operation() {
    let emulator = emulator().await;
    let mut request = Request::new(longrunning::proto::GetOperationRequest { name: NAME.into() });
    let value = "p".parse().expect("ASCII");
    request.metadata_mut().insert("x-goog-user-project", value);
    let mut poller = client(&emulator).poller(request);
    poller.cancel().await.expect("accepted");
    let end = poller.until_done().await.expect("done");
    assert!(matches!(end.outcome(), Outcome::Cancelled(_)), "{end:?}");
    let [cancel] = &emulator.calls_of(Method::Cancel)[..] else {
        panic!("one call was expected: {:?}", emulator.calls());
    };
    let value = cancel.metadata().get("x-goog-user-project");
    assert_eq!(value.expect("there"), "p");

    emulator.unimplement(Method::Cancel);
    let status = poller.cancel().await.expect_err("unknown method");
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test(start_paused = true)]
async fn a_given_state_does_not_count_as_a_response() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let client = OperationsClient::builder(endpoint).retry(longrunning::RetryPolicy::none());
    let client = client.connect_lazy().expect("a URL");
    let running = Operation {
        name: NAME.to_owned(),
        ..Operation::default()
    };
    let policy = PollPolicy::default()
        .wait_timeout(Duration::ZERO)
        .initial_delay(Duration::from_secs(60));
    let mut poller = client
        .poller(&running)
        .policy(policy.total_timeout(Duration::from_secs(10)));
    let status = poller.until_done().await.expect_err("nothing listens");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.delivery(), Some(longrunning::Delivery::NotSent));
    assert_eq!(poller.latest(), Some(&running));
}

#[tokio::test]
async fn a_state_of_another_name_is_not_used() {
    let server = Server::of_looks(|_| {
        Box::pin(std::future::ready(Err(Status::not_found(
            "no such operation",
        ))))
    });
    let done = Operation {
        name: "operations/1".to_owned(),
        done: true,
        ..Operation::default()
    };
    let mut request: Request<longrunning::proto::GetOperationRequest> =
        tonic::IntoRequest::into_request(&done);
    request.get_mut().name = "operations/2".to_owned();
    let mut poller = server.client().poller(request);
    assert_eq!(poller.latest(), None);
    let status = poller.until_done().await.expect_err("it does not exist");
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn a_done_state_with_an_untyped_response_is_confirmed() {
    let emulator = emulator().await;
    let untyped = Operation {
        name: NAME.to_owned(),
        done: true,
        result: Some(longrunning::proto::operation::Result::Response(
            Default::default(),
        )),
        ..Operation::default()
    };
    let mut poller = client(&emulator).poller(&untyped).policy(brisk());
    let state = poller.next().await.expect("a state").expect("it runs");
    assert!(!state.done);
}

#[tokio::test]
async fn a_cancel_call_of_a_poller_has_the_retries_of_any_cancel_call() {
    let emulator = emulator().await;
    let info = longrunning::proto::rpc::RetryInfo {
        retry_delay: Some(prost_types::Duration {
            seconds: 0,
            nanos: 1_000_000,
        }),
    };
    let quota = longrunning::proto::rpc::Status {
        code: Code::ResourceExhausted.into(),
        message: "quota".to_owned(),
        details: vec![prost_types::Any::from_msg(&info).expect("it encodes")],
    };
    emulator.fail_next(Method::Cancel, 1, quota.into());
    let client = OperationsClient::builder(emulator.endpoint())
        .connect()
        .await;
    let poller = client.expect("it listens").poller(NAME);
    poller.cancel().await.expect("the second attempt");
    assert_eq!(emulator.calls_of(Method::Cancel).len(), 2);
}

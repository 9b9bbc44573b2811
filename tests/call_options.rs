//! Options for a single call, set in the extensions of its request.

use std::{
    error::Error as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use longrunning::{
    AttemptTimeout, CallStatusExt as _, Delivery, Operation, OperationsClient, Origin, PollPolicy,
    RetryPolicy,
    emulator::{Emulator, Method},
    proto::{
        CancelOperationRequest, GetOperationRequest, ListOperationsRequest,
        operations_server::{Operations, OperationsServer},
        rpc,
    },
};
use tonic::{
    Code, IntoRequest, Request, Response, Status, service::interceptor::InterceptedService,
};

const NAME: &str = "operations/1";

fn brisk() -> RetryPolicy {
    RetryPolicy::default().initial_backoff(Duration::from_millis(10))
}

fn get<T: Clone + Send + Sync + 'static>(option: T) -> Request<GetOperationRequest> {
    let mut request: Request<GetOperationRequest> = NAME.into_request();
    request.extensions_mut().insert(option);
    request
}

async fn start() -> (Emulator, OperationsClient) {
    let emulator = Emulator::start().await.expect("a port");
    emulator.start_operation(NAME).expect("it is new");
    let client = OperationsClient::builder(emulator.endpoint()).retry(brisk());
    let client = client.connect().await.expect("a client");
    (emulator, client)
}

#[tokio::test]
async fn a_retry_policy_of_one_call_replaces_that_of_the_client() {
    let (emulator, client) = start().await;
    emulator.fail_next(None, 1, Status::unavailable("down"));
    let status = client.get_operation(get(RetryPolicy::none())).await;
    assert_eq!(status.expect_err("one attempt").attempts(), Some(1));
    // The next call uses the client's policy.
    emulator.fail_next(None, 1, Status::unavailable("down"));
    client
        .get_operation(NAME)
        .await
        .expect("the second attempt");
    let policy = brisk().codes([Code::Aborted]);
    emulator.fail_next(None, 1, Status::aborted("again"));
    client
        .get_operation(get(policy))
        .await
        .expect("the second attempt");
}

#[tokio::test]
async fn a_client_without_a_policy_uses_that_of_the_call() {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator.start_operation(NAME).expect("it is new");
    let client = OperationsClient::new(emulator.service());
    emulator.fail_next(None, 2, Status::unavailable("down"));
    client.get_operation(NAME).await.expect_err("no retries");
    client
        .get_operation(get(brisk()))
        .await
        .expect("the second attempt");
    assert_eq!(emulator.calls().len(), 3);
}

#[tokio::test]
async fn an_attempt_timeout_of_one_call_replaces_that_of_the_policy() {
    let (emulator, client) = start().await;
    let client = client.retry(brisk().attempt_timeout(Duration::from_secs(5)));
    let first = std::sync::atomic::AtomicBool::new(true);
    emulator.delay_with(move |_| {
        if first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            Duration::MAX
        } else {
            Duration::ZERO
        }
    });
    let request = get(AttemptTimeout(Duration::from_millis(100)));
    client
        .get_operation(request)
        .await
        .expect("the second attempt");
    assert_eq!(emulator.calls().len(), 2);
    let timeout = emulator.calls()[0].timeout().expect("it is sent");
    assert!(timeout <= Duration::from_millis(100), "{timeout:?}");
}

#[tokio::test]
async fn the_throttle_of_the_client_applies_to_every_call() {
    let emulator = Emulator::start().await.expect("a port");
    let client = OperationsClient::builder(emulator.endpoint()).retry(brisk().throttle(2, 0.1));
    let client = client.connect().await.expect("a client");
    emulator.fail_next(None, 100, Status::unavailable("down"));
    client.get_operation(get(brisk())).await.expect_err("down");
    // One of the two tokens is left, so nothing is retried.
    assert_eq!(emulator.calls().len(), 1);
    // A throttle in the policy of the call has no effect.
    client
        .get_operation(get(brisk().throttle(1_000, 0.1)))
        .await
        .expect_err("down");
    assert_eq!(emulator.calls().len(), 2);
}

#[tokio::test]
async fn a_call_that_is_not_idempotent_is_retried_only_if_it_was_not_sent() {
    let (emulator, client) = start().await;
    let cancel = || {
        let mut request: Request<CancelOperationRequest> = NAME.into_request();
        request
            .extensions_mut()
            .insert(brisk().max_attempts(100).idempotent(false));
        request
    };
    emulator.fail_next(None, 1, Status::unavailable("down"));
    let status = client
        .cancel_operation(cancel())
        .await
        .expect_err("the server answered");
    assert_eq!(status.attempts(), Some(1));
    // The server does not listen, so nothing is sent.
    emulator.stop().await;
    let restarted = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        emulator.restart().await.expect("the port is free");
    };
    let (result, ()) = tokio::join!(client.cancel_operation(cancel()), restarted);
    result.expect("a later attempt");
    assert_eq!(emulator.calls_of(Method::Cancel).len(), 2);
}

#[tokio::test]
async fn a_wait_is_never_retried_whatever_the_policy_of_the_request() {
    let (emulator, client) = start().await;
    emulator.fail_next(None, 1, Status::unavailable("down"));
    let mut request: Request<longrunning::proto::WaitOperationRequest> = NAME.into_request();
    request.extensions_mut().insert(brisk());
    client
        .wait_operation(request)
        .await
        .expect_err("one attempt");
    assert_eq!(emulator.calls().len(), 1);
}

/// Layers do not see the options, so they cannot mistake them for their own.
#[tokio::test]
async fn the_options_are_removed_from_the_request_before_it_is_sent() {
    #[derive(Clone)]
    struct Own;
    let emulator = Emulator::in_process().expect("a runtime");
    emulator.start_operation(NAME).expect("it is new");
    let seen = Arc::<Mutex<Vec<[bool; 3]>>>::default();
    let record = seen.clone();
    let layer = move |request: Request<()>| {
        let extensions = request.extensions();
        record.lock().expect("no panic").push([
            extensions.get::<RetryPolicy>().is_some(),
            extensions.get::<AttemptTimeout>().is_some(),
            extensions.get::<Own>().is_some(),
        ]);
        Ok(request)
    };
    let stack = InterceptedService::new(emulator.service(), layer);
    let mut request = get(brisk());
    request
        .extensions_mut()
        .insert(AttemptTimeout(Duration::from_secs(5)));
    request.extensions_mut().insert(Own);
    emulator.fail_next(None, 1, Status::unavailable("down"));
    let client = OperationsClient::new(stack);
    client.get_operation(request).await.expect("it is there");
    assert_eq!(*seen.lock().expect("no panic"), [[false, false, true]; 2]);
}

#[tokio::test]
async fn the_options_apply_to_each_call_of_a_list_a_poll_and_a_cancellation() {
    let (emulator, client) = start().await;
    let mut parent: Request<ListOperationsRequest> = "operations".into_request();
    parent.extensions_mut().insert(RetryPolicy::none());
    emulator.fail_next(Method::List, 1, Status::unavailable("down"));
    let page = client.operations(parent).next().await;
    page.expect("an item").expect_err("one attempt");

    let mut cancel: Request<CancelOperationRequest> = NAME.into_request();
    cancel.extensions_mut().insert(RetryPolicy::none());
    emulator.fail_next(Method::Cancel, 1, Status::unavailable("down"));
    let outcome = client.cancel_and_wait(cancel, PollPolicy::default()).await;
    outcome.expect_err("one attempt");

    emulator.unimplement(Method::Wait);
    emulator.fail_next(Method::Get, 1, Status::unavailable("down"));
    let policy = PollPolicy::default().initial_delay(Duration::from_millis(10));
    let mut poller = client.poller(get(RetryPolicy::none())).policy(policy);
    poller.next().await.expect("a state").expect("it runs");
    assert_two_separate_gets(&emulator);
}

/// Checks that the second Get was a new call, and not a retry of the first one.
#[track_caller]
fn assert_two_separate_gets(emulator: &Emulator) {
    let calls = emulator.calls_of(Method::Get);
    assert_eq!(calls.len(), 2);
    let previous = calls[1].metadata().get("grpc-previous-rpc-attempts");
    assert_eq!(previous, None);
}

/// The poller waits for the quota itself, so the client does not retry within the call.
#[tokio::test]
async fn a_poll_does_not_retry_an_exhausted_quota_within_its_call() {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator.start_operation(NAME).expect("it is new");
    emulator.unimplement(Method::Wait);
    let delay = prost_types::Duration {
        seconds: 0,
        nanos: 20_000_000,
    };
    let info = rpc::RetryInfo {
        retry_delay: Some(delay),
    };
    let exhausted = rpc::Status {
        code: rpc::Code::ResourceExhausted.into(),
        message: "quota".to_owned(),
        details: vec![prost_types::Any::from_msg(&info).expect("it encodes")],
    };
    let none = OperationsClient::new(emulator.service());
    for client in [none.clone(), none.retry(brisk())] {
        emulator.clear_calls();
        emulator.fail_next(Method::Get, 1, exhausted.clone().into());
        let mut poller = client.poller(get(brisk()));
        poller.next().await.expect("a state").expect("it runs");
        assert_two_separate_gets(&emulator);
    }
}

#[tokio::test]
async fn failures_of_calls_that_are_not_idempotent_count_for_the_throttle() {
    let (emulator, client) = start().await;
    let client = client.retry(brisk().throttle(10, 0.1));
    emulator.fail_next(None, 100, Status::unavailable("down"));
    for _ in 0..10 {
        let request = get(brisk().idempotent(false));
        client.get_operation(request).await.expect_err("down");
    }
    let status = client.get_operation(NAME).await.expect_err("down");
    assert_eq!(status.attempts(), Some(1));
}

/// An in-process server whose calls have an effect before its own call to another server fails.
struct Gateway {
    effects: Arc<AtomicUsize>,
    inner: OperationsClient,
}

#[tonic::async_trait]
impl Operations for Gateway {
    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        self.effects.fetch_add(1, Ordering::SeqCst);
        let request = request.into_inner();
        self.inner.get_operation(request).await.map(Response::new)
    }
}

#[tokio::test]
async fn the_status_of_an_inner_call_does_not_report_whether_the_outer_call_was_sent() {
    let (emulator, inner) = start().await;
    emulator.stop().await;
    let effects = Arc::<AtomicUsize>::default();
    let gateway = Gateway {
        effects: effects.clone(),
        inner: inner.retry(RetryPolicy::none()),
    };
    let client = OperationsClient::new(OperationsServer::new(gateway));
    let request = get(brisk().idempotent(false));
    let status = client.get_operation(request).await.expect_err("it is down");
    assert_eq!(effects.load(Ordering::SeqCst), 1);
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.attempts(), Some(1));
    assert_eq!(status.origin(), Some(Origin::Client));
    assert_eq!(status.delivery(), Some(Delivery::MaybeSent));
    let inner = status.source().and_then(|outer| outer.source());
    let inner = inner.expect("the inner call").to_string();
    assert!(
        inner.starts_with("transport, not sent, 1 attempt in "),
        "{inner}"
    );
}

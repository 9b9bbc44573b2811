//! Any stack, and many calls at once.

use futures_util::future::BoxFuture;
use http::HeaderValue;
use http_body_util::BodyExt as _;
use longrunning::{
    BoxGrpcStack, Delivery, PollPolicy,
    proto::{GetOperationRequest, operations_client::OperationsClient as AnyClient},
};
use tonic::body::Body;
use tower::{
    BoxError,
    filter::{AsyncFilter, AsyncPredicate},
};

use super::*;

over_each_stack! {
    a_dropped_future_resets_the_call_and_leaves_nothing_behind
    a_thousand_calls_at_once_on_one_client_all_succeed
}

async fn a_dropped_future_resets_the_call_and_leaves_nothing_behind<S: GrpcStack + Sync>(
    client: Connect<S>,
) {
    let emulator = emulator().await;
    emulator.delay(Method::Cancel, Duration::from_secs(3600));
    let client = client(&emulator);
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.cancel_operation(NAME).await })
        })
        .collect();
    emulator
        .wait_until(|emulator| emulator.in_flight() == 10)
        .await;
    for call in calls {
        call.abort();
    }
    emulator
        .wait_until(|emulator| emulator.in_flight() == 0)
        .await;
    let abandoned = |call: &longrunning::emulator::Call| call.outcome() == CallOutcome::Abandoned;
    assert!(emulator.calls().iter().all(abandoned));
    assert_eq!(emulator.open_connections(), 1);
    drop(client);
    emulator
        .wait_until(|emulator| emulator.open_connections() == 0)
        .await;
}

async fn a_thousand_calls_at_once_on_one_client_all_succeed<S: GrpcStack + Sync>(
    client: Connect<S>,
) {
    let emulator = emulator().await;
    let client = client(&emulator);
    let calls: Vec<_> = (0..1000)
        .map(|i| {
            let client = client.clone();
            let name = format!("{PARENT}/operations/{i}");
            emulator.start_operation(&name).expect("a new name");
            tokio::spawn(async move { client.cancel_operation(name).await })
        })
        .collect();
    for call in calls {
        call.await.expect("no panic").expect("accepted");
    }
    let cancelled: std::collections::BTreeSet<_> = emulator
        .calls()
        .iter()
        .map(|call| match call.request() {
            CallRequest::Cancel(request) => request.name.clone(),
            other => panic!("a cancel was expected: {other:?}"),
        })
        .collect();
    assert_eq!(cancelled.len(), 1000);
}

#[tokio::test]
async fn an_interceptor_over_the_default_transport_can_refuse_a_call() {
    let emulator = emulator().await;
    let client = OperationsClient::builder(emulator.endpoint())
        .connect()
        .await;
    let client = client.expect("a server");
    let refuse = |_: Request<()>| -> Result<Request<()>, Status> {
        Err(Status::permission_denied("not on Sundays"))
    };
    let mut stub = AnyClient::with_interceptor(client.stack().clone(), refuse);
    let request = CancelOperationRequest { name: NAME.into() };
    let status = stub.cancel_operation(request).await.expect_err("refused");
    let refused = (Code::PermissionDenied, "not on Sundays");
    assert_eq!((status.code(), status.message()), refused);

    let client = client.map_stack(|stack| InterceptedService::new(stack, refuse));
    let status = client.cancel_operation(NAME).await.expect_err("refused");
    assert_eq!((status.code(), status.message()), refused);
    assert_eq!(status.origin(), Some(Origin::Client));
    assert!(emulator.calls().is_empty());

    let body = longrunning::ResponseBody::default();
    assert!(http_body::Body::is_end_stream(&body));
    assert!(
        body.collect()
            .await
            .expect("it is empty")
            .to_bytes()
            .is_empty()
    );
}

#[tokio::test]
async fn any_stack_will_do() {
    let emulator = emulator().await;

    let in_process = OperationsClient::new(emulator.service());
    assert!(!in_process.get_operation(NAME).await.expect("known").done);

    let sign = |mut request: Request<()>| {
        request
            .metadata_mut()
            .insert("x-signed", "yes".parse().expect("legal"));
        Ok(request)
    };
    let intercepted = OperationsClient::new(InterceptedService::new(channel(&emulator), sign));
    intercepted.get_operation(NAME).await.expect("known");
    let calls = emulator.calls();
    let call = calls.last().expect("a call");
    assert_eq!(call.metadata().get("x-signed").expect("is there"), "yes");

    let layered = ServiceBuilder::new()
        .timeout(Duration::from_secs(20))
        .concurrency_limit(2)
        .service(channel(&emulator));
    OperationsClient::new(layered)
        .get_operation(NAME)
        .await
        .expect("known");

    let refused = OperationsClient::new(
        ServiceBuilder::new()
            .load_shed()
            .concurrency_limit(0)
            .service(channel(&emulator)),
    );
    let status = refused.get_operation(NAME).await.expect_err("shed");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::ResourceExhausted, Some(Origin::Client))
    );
}

#[tokio::test(start_paused = true)]
async fn in_process_a_call_is_retried_as_it_is_over_a_socket() {
    let emulator = emulator().await;
    emulator.fail_next(Method::Get, 2, Status::unavailable("later"));
    let client = OperationsClient::new(emulator.service()).retry(RetryPolicy::default());
    client.get_operation(NAME).await.expect("a third attempt");
    assert_eq!(emulator.calls().len(), 3);
}

#[tokio::test]
async fn a_finished_client_takes_layers_and_lends_its_stack() {
    let emulator = emulator().await;
    emulator.delay(None, Duration::from_secs(3600));
    let builder = OperationsClient::builder(emulator.endpoint()).timeout(Duration::from_millis(50));
    let client = builder.connect().await.expect("it is there");
    let sign = |mut request: tonic::Request<()>| {
        let signed = tonic::metadata::MetadataValue::from_static("here");
        request.metadata_mut().insert("x-signed", signed);
        Ok(request)
    };
    let signing = client
        .clone()
        .map_stack(|stack| InterceptedService::new(stack, sign));
    let status = signing.get_operation(NAME).await.expect_err("it is late");
    assert_eq!(
        status.code(),
        Code::DeadlineExceeded,
        "the builder's timeout"
    );
    let calls = emulator.calls();
    assert_eq!(calls[0].metadata().get("x-signed").expect("signed"), "here");

    emulator.delay(None, Duration::ZERO);
    let mut stub = proto::operations_client::OperationsClient::new(client.stack().clone());
    let request = proto::GetOperationRequest { name: NAME.into() };
    stub.get_operation(request).await.expect("an answer");
    assert_eq!(emulator.accepted_connections(), 1);
}

/// Adds a token, as the channel of `gcloud-gax` does.
#[derive(Clone)]
struct AddToken(Result<&'static str, Status>);

impl AsyncPredicate<http::Request<Body>> for AddToken {
    type Future = BoxFuture<'static, Result<Self::Request, BoxError>>;
    type Request = http::Request<Body>;

    fn check(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let token = self.0.clone();
        Box::pin(async move {
            let token = HeaderValue::from_static(token?);
            request.headers_mut().insert("authorization", token);
            Ok(request)
        })
    }
}

#[tokio::test]
async fn a_channel_under_an_async_filter_is_a_stack() {
    let emulator = emulator().await;
    let stack = AsyncFilter::new(channel(&emulator), AddToken(Ok("Bearer token")));
    let client = OperationsClient::new(stack).retry(RetryPolicy::default());
    emulator.fail_next(None, 1, Status::unavailable("down"));
    client
        .cancel_operation(NAME)
        .await
        .expect("the second attempt");
    let calls = emulator.calls();
    assert_eq!(calls.len(), 2);
    assert!(
        calls
            .iter()
            .all(|call| call.metadata().get("authorization").is_some())
    );

    let refusal = Status::unauthenticated("no token");
    let stack = AsyncFilter::new(channel(&emulator), AddToken(Err(refusal)));
    let client = OperationsClient::new(stack);
    let status = client.cancel_operation(NAME).await.expect_err("no token");
    let expected = (Code::Unauthenticated, "no token", Some(Origin::Client));
    assert_eq!((status.code(), status.message(), status.origin()), expected);
}

/// A struct whose client uses the default transport with layers, or an in-process emulator.
#[derive(Clone)]
struct Jobs {
    operations: OperationsClient<BoxGrpcStack>,
}

#[tokio::test]
async fn boxed_clients_have_one_type_and_their_futures_can_be_spawned() {
    let emulator = emulator().await;
    let client = over_its_own_stack(&emulator).map_stack(|stack| {
        let layers = ServiceBuilder::new().timeout(Duration::from_secs(1));
        layers.concurrency_limit(2).service(stack)
    });
    let layered = client.boxed();
    let in_process = OperationsClient::new(emulator.service()).boxed();
    for operations in [layered.clone(), in_process] {
        let jobs = Jobs { operations };
        let spawned = tokio::spawn({
            let jobs = jobs.clone();
            async move {
                jobs.operations.get_operation(NAME).await?;
                jobs.operations.list_operations(PARENT).await?;
                let policy = PollPolicy::default();
                jobs.operations.cancel_and_wait(NAME, policy).await
            }
        });
        spawned.await.expect("no panic").expect("it is there");
        let mut other = AnyClient::new(jobs.operations.stack().clone());
        let request = GetOperationRequest { name: NAME.into() };
        let call = tokio::spawn(async move { other.get_operation(request).await });
        call.await.expect("no panic").expect("it is there");
    }

    // The codes and origins are the same as those of a client that is not boxed.
    emulator.delay(Method::Get, Duration::MAX);
    let status = layered.get_operation(NAME).await.expect_err("too late");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::DeadlineExceeded, Some(Origin::Client))
    );
    emulator.stop().await;
    let status = layered.get_operation(NAME).await.expect_err("refused");
    assert_eq!(
        (status.code(), status.origin(), status.delivery()),
        (
            Code::Unavailable,
            Some(Origin::Transport),
            Some(Delivery::NotSent)
        )
    );
}

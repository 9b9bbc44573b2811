//! The five RPCs against a server, over sockets.

use std::time::Duration;

use longrunning::{
    Operation, OperationsClient, Origin, StatusExt as _,
    emulator::{CallOutcome, CallRequest, CancelBehavior, Emulator, Method},
    proto::{CancelOperationRequest, WaitOperationRequest, operation::Result as End, rpc},
};
use prost::Message as _;
use prost_types::{Any, Duration as ProtoDuration};
use tonic::{
    Code, IntoRequest as _, Request, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use tower::ServiceBuilder;

const PARENT: &str = "projects/p/locations/us-central1";
const NAME: &str = "projects/p/locations/us-central1/operations/ICN42";

async fn emulator() -> Emulator {
    let emulator = Emulator::start().await.expect("a free port");
    emulator.start_operation(NAME).expect("a new name");
    emulator
}

fn channel(emulator: &Emulator) -> Channel {
    Endpoint::from_shared(emulator.endpoint())
        .expect("a URL")
        .connect_lazy()
}

fn client(emulator: &Emulator) -> OperationsClient<Channel> {
    OperationsClient::new(channel(emulator))
}

#[tokio::test]
async fn a_cancelled_operation_stays_and_is_done_with_code_1() {
    let emulator = emulator().await;
    let client = client(&emulator);
    client.cancel_operation(NAME).await.expect("accepted");
    let operation = client.get_operation(NAME).await.expect("it is not deleted");
    assert!(operation.done);
    let Some(End::Error(error)) = operation.result else {
        panic!("an error was expected: {operation:?}");
    };
    assert_eq!(error.code, 1);
    client
        .cancel_operation(NAME)
        .await
        .expect("a second time is no error");
}

#[tokio::test]
async fn every_rpc_does_its_work() {
    let emulator = emulator().await;
    let client = client(&emulator);

    let operation = client.get_operation(NAME).await.expect("it runs");
    assert_eq!((operation.name.as_str(), operation.done), (NAME, false));

    let wait = WaitOperationRequest {
        name: NAME.into(),
        timeout: Some(ProtoDuration {
            seconds: 0,
            nanos: 1_000_000,
        }),
    };
    assert!(!client.wait_operation(wait).await.expect("it runs on").done);

    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.wait_operation(NAME).await }
    });
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;
    let response = ProtoDuration {
        seconds: 7,
        nanos: 0,
    };
    emulator.complete(NAME, &response).expect("it runs");
    let done = waiting.await.expect("no panic").expect("it is done");
    assert_eq!(
        done.into_response::<ProtoDuration>().expect("a response"),
        response
    );

    let page = client.list_operations(PARENT).await.expect("a page");
    let names: Vec<_> = page
        .operations
        .iter()
        .map(|operation| &*operation.name)
        .collect();
    assert_eq!(names, [NAME]);

    client.delete_operation(NAME).await.expect("it is known");
    let status = client
        .get_operation(NAME)
        .await
        .expect_err("it is forgotten");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::NotFound, Some(Origin::Server))
    );
    assert!(status.message().contains(NAME), "{status}");
}

#[tokio::test]
async fn each_error_code_arrives_unchanged_with_its_message_and_its_details() {
    let emulator = emulator().await;
    let client = client(&emulator);
    for code in (1..=16).map(Code::from_i32) {
        let message = format!("{code:?}: über 100 %\n\"quoted\"\u{1f980}");
        let details = rpc::Status {
            code: code.into(),
            message: message.clone(),
            details: vec![Any {
                type_url: "a/b".into(),
                value: (0..=255).collect(),
            }],
        };
        let details = details.encode_to_vec();
        let mut refusal = Status::with_details(code, &message, details.clone().into());
        refusal
            .metadata_mut()
            .insert("x-reason", "because".parse().expect("legal"));
        let bytes = tonic::metadata::MetadataValue::from_bytes(&[0, 255, 7]);
        refusal.metadata_mut().insert_bin("x-reason-bin", bytes);
        emulator.on_cancel(CancelBehavior::Refuse(refusal));

        let status = client.cancel_operation(NAME).await.expect_err("refused");
        assert_eq!(status.code(), code);
        assert_eq!(status.message(), message);
        assert_eq!(status.details(), details);
        assert_eq!(
            status.metadata().get("x-reason").expect("is there"),
            "because"
        );
        let bytes = status.metadata().get_bin("x-reason-bin").expect("is there");
        assert_eq!(bytes.to_bytes().expect("base64")[..], [0, 255, 7]);
        assert_eq!(status.origin(), Some(Origin::Server));
    }
    assert!(!emulator.operation(NAME).expect("known").done);
}

#[tokio::test]
async fn a_server_without_the_method_is_unimplemented() {
    let emulator = emulator().await;
    emulator.unimplement(Method::Cancel);
    let status = client(&emulator)
        .cancel_operation(NAME)
        .await
        .expect_err("no such method");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::Unimplemented, Some(Origin::Server))
    );
}

#[tokio::test]
async fn a_name_comes_in_every_form() {
    let emulator = emulator().await;
    let client = client(&emulator);
    let name = NAME.to_owned();
    let operation = Operation {
        name: name.clone(),
        ..Default::default()
    };
    let message = CancelOperationRequest { name: name.clone() };
    client.cancel_operation(NAME).await.expect("a &str");
    client.cancel_operation(&name).await.expect("a &String");
    client.cancel_operation(name).await.expect("a String");
    client
        .cancel_operation(&operation)
        .await
        .expect("an &Operation");
    client
        .cancel_operation(message.clone())
        .await
        .expect("a message");
    client
        .cancel_operation(Request::new(message))
        .await
        .expect("a request");
    assert!(emulator.calls().iter().all(|call| call.name() == NAME));
    assert_eq!(emulator.calls().len(), 6);
}

#[tokio::test]
async fn a_name_that_cannot_be_meant_is_refused_and_nothing_is_sent() {
    let emulator = emulator().await;
    let client = client(&emulator);
    let long = "é".repeat(2000);
    let empty = "the operation's name is empty: give one such as \"operations/1\"";
    for (name, text) in [("", empty), (&long, "the operation's name \"é")] {
        let statuses = [
            client.cancel_operation(name).await.expect_err("refused"),
            client.get_operation(name).await.expect_err("refused"),
            client.delete_operation(name).await.expect_err("refused"),
            client.wait_operation(name).await.expect_err("refused"),
        ];
        for status in statuses {
            assert_eq!(
                (status.code(), status.origin()),
                (Code::InvalidArgument, Some(Origin::Client))
            );
            assert!(status.message().starts_with(text), "{status}");
        }
    }
    assert_eq!(emulator.calls().len(), 0);
    assert_eq!(emulator.accepted_connections(), 0);
}

#[tokio::test]
async fn an_empty_parent_is_sent_as_it_is() {
    let emulator = emulator().await;
    let page = client(&emulator)
        .list_operations("")
        .await
        .expect("all there are");
    assert_eq!(page.operations.len(), 1);
    assert!(
        !emulator.calls()[0]
            .metadata()
            .contains_key("x-goog-request-params")
    );
}

#[tokio::test]
async fn every_call_carries_the_headers_and_those_of_its_caller() {
    let emulator = emulator().await;
    let client = client(&emulator);
    let mut request: Request<CancelOperationRequest> = NAME.into_request();
    request
        .metadata_mut()
        .insert("x-trace", "42".parse().expect("legal"));
    request.set_timeout(Duration::from_secs(20));
    client.cancel_operation(request).await.expect("accepted");
    client.get_operation(NAME).await.expect("known");
    client.delete_operation(NAME).await.expect("known");
    client.list_operations(PARENT).await.expect("a page");

    let escaped = "name=projects%2Fp%2Flocations%2Fus-central1";
    let of_operation = format!("{escaped}%2Foperations%2FICN42");
    let calls = emulator.calls();
    for (call, routing) in calls
        .iter()
        .zip([&*of_operation, &of_operation, &of_operation, escaped])
    {
        let values: Vec<_> = call
            .metadata()
            .get_all("x-goog-request-params")
            .iter()
            .collect();
        assert_eq!(values, [routing], "{}", call.method());
        let client = call
            .metadata()
            .get("x-goog-api-client")
            .expect("is there")
            .to_str();
        let client = client.expect("ASCII");
        let version = concat!(" gccl/", env!("CARGO_PKG_VERSION"), " grpc/0.14");
        assert!(
            client.starts_with("gl-rust/1.") && client.ends_with(version),
            "{client}"
        );
    }
    assert_eq!(calls[0].metadata().get("x-trace").expect("is there"), "42");
    let timeout = calls[0].timeout().expect("grpc-timeout is told");
    assert!(
        timeout <= Duration::from_secs(20) && timeout > Duration::from_secs(10),
        "{timeout:?}"
    );
    assert_eq!(calls[1].timeout(), None);
}

#[tokio::test]
async fn a_wait_has_no_http_rule_and_so_no_routing_header() {
    let emulator = emulator().await;
    emulator.complete(NAME, &()).expect("it runs");
    client(&emulator).wait_operation(NAME).await.expect("done");
    assert!(
        !emulator.calls()[0]
            .metadata()
            .contains_key("x-goog-request-params")
    );
}

#[tokio::test]
async fn a_callers_own_header_wins() {
    let emulator = emulator().await;
    let mut request: Request<CancelOperationRequest> = NAME.into_request();
    for key in ["x-goog-request-params", "x-goog-api-client"] {
        request
            .metadata_mut()
            .insert(key, "mine".parse().expect("legal"));
    }
    client(&emulator)
        .cancel_operation(request)
        .await
        .expect("accepted");
    for key in ["x-goog-request-params", "x-goog-api-client"] {
        let values: Vec<_> = emulator.calls()[0]
            .metadata()
            .get_all(key)
            .iter()
            .cloned()
            .collect();
        assert_eq!(values, ["mine"]);
    }
}

#[tokio::test]
async fn metadata_that_servers_would_refuse_are_refused_here() {
    let emulator = emulator().await;
    let mut request: Request<CancelOperationRequest> = NAME.into_request();
    request
        .metadata_mut()
        .insert("x-long", "a".repeat(8155).parse().expect("legal"));
    let status = client(&emulator)
        .cancel_operation(request)
        .await
        .expect_err("refused");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::InvalidArgument, Some(Origin::Client))
    );
    assert_eq!(
        status.message(),
        "the request's metadata is 8193 bytes: send at most 8192"
    );
    assert_eq!(emulator.calls().len(), 0);
}

#[tokio::test]
async fn a_malformed_timeout_is_refused_by_name() {
    let emulator = emulator().await;
    let mut request: Request<CancelOperationRequest> = NAME.into_request();
    request
        .metadata_mut()
        .insert("grpc-timeout", "10s".parse().expect("legal"));
    let status = client(&emulator)
        .cancel_operation(request)
        .await
        .expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        status.message(),
        r#"grpc-timeout "10s" is not up to 8 digits and one of H, M, S, m, u, n"#
    );
}

#[tokio::test]
async fn a_late_answer_is_deadline_exceeded_on_the_callers_own_channel() {
    let emulator = emulator().await;
    emulator.delay(Method::Cancel, Duration::from_secs(3600));
    let by_request = client(&emulator);
    let mut request: Request<CancelOperationRequest> = NAME.into_request();
    request.set_timeout(Duration::from_millis(50));
    let by_client = client(&emulator).with_timeout(Duration::from_millis(50));
    let endpoint = Endpoint::from_shared(emulator.endpoint()).expect("a URL");
    let by_channel =
        OperationsClient::new(endpoint.timeout(Duration::from_millis(50)).connect_lazy());
    for status in [
        by_request
            .cancel_operation(request)
            .await
            .expect_err("late"),
        by_client.cancel_operation(NAME).await.expect_err("late"),
        by_channel.cancel_operation(NAME).await.expect_err("late"),
    ] {
        assert_eq!(
            (status.code(), status.origin()),
            (Code::DeadlineExceeded, Some(Origin::Client)),
            "{status}"
        );
    }
}

#[tokio::test]
async fn a_timeout_of_zero_sends_nothing() {
    let emulator = emulator().await;
    let client = client(&emulator).with_timeout(Duration::ZERO);
    let status = client.cancel_operation(NAME).await.expect_err("no time");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.message(), "no answer to CancelOperation within 0ns");
    assert_eq!(emulator.accepted_connections(), 0);
}

#[tokio::test]
async fn answers_beyond_the_limit_are_resource_exhausted_and_the_limit_can_be_set() {
    let emulator = emulator().await;
    let text = rpc::LocalizedMessage {
        message: "x".repeat(5 << 20),
        ..Default::default()
    };
    emulator.complete(NAME, &text).expect("it runs");
    let client = client(&emulator);
    let status = client
        .get_operation(NAME)
        .await
        .expect_err("more than 4 MiB");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::ResourceExhausted, Some(Origin::Client))
    );
    let roomy = client.clone().with_max_decoding_message_size(6 << 20);
    let operation = roomy.get_operation(NAME).await.expect("room enough");
    assert_eq!(
        operation
            .into_response::<rpc::LocalizedMessage>()
            .expect("it is"),
        text
    );
    let tight = client.with_max_decoding_message_size(10);
    let status = tight.list_operations(PARENT).await.expect_err("no room");
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_dropped_future_resets_the_call_and_leaves_nothing_behind() {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_at_once_on_one_client_all_succeed() {
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

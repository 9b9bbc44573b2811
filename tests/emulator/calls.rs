//! What the emulator tells of the calls that came in.

use std::time::Duration;

use longrunning::{
    emulator::{Call, CallOutcome, CallRequest, Emulator, Method},
    proto::{GetOperationRequest, ListOperationsRequest, operations_client::OperationsClient},
};
use tokio::time::Instant;
use tonic::{Code, IntoRequest as _, Request};

use crate::{NAME, client, emulator};

#[tokio::test]
async fn every_call_is_on_record_with_metadata_request_and_timeout() {
    let (emulator, mut client) = emulator().await;
    let mut request = Request::new(ListOperationsRequest {
        name: "projects/p".to_owned(),
        page_size: 7,
        ..ListOperationsRequest::default()
    });
    request.set_timeout(Duration::from_secs(5));
    let metadata = request.metadata_mut();
    metadata.insert("x-one", "1".parse().expect("it is ASCII"));
    let binary = tonic::metadata::MetadataValue::from_bytes(&[0, 255]);
    metadata.insert_bin("x-two-bin", binary.clone());
    client.list_operations(request).await.expect("it is good");
    let get = client.get_operation("operations/none").await;
    get.expect_err("there is none");

    let calls = emulator.calls();
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[0].method(), Method::List);
    assert_eq!(calls[0].name(), "projects/p");
    assert_eq!(calls[0].timeout(), Some(Duration::from_secs(5)));
    assert_eq!(calls[0].outcome(), CallOutcome::Answered(Code::Ok));
    assert!(matches!(calls[0].request(), CallRequest::List(list) if list.page_size == 7));
    let one = calls[0].metadata().get("x-one");
    assert_eq!(one.expect("it was sent"), "1");
    assert_eq!(calls[0].metadata().get_bin("x-two-bin"), Some(&binary));
    assert_eq!(calls[1].method().to_string(), "GetOperation");
    assert_eq!(calls[1].timeout(), None);
    assert_eq!(calls[1].outcome(), CallOutcome::Answered(Code::NotFound));
    assert_eq!(emulator.calls_of(Method::Get).len(), 1);
    emulator.clear_calls();
    assert!(emulator.calls().is_empty());
}

#[tokio::test]
async fn a_dropped_future_is_seen_as_an_abandoned_call() {
    let (emulator, mut client) = emulator().await;
    let other = client.clone();
    let waiting = tokio::spawn(async move { client.wait_operation(NAME).await });
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;
    assert_eq!(emulator.calls()[0].outcome(), CallOutcome::InFlight);
    waiting.abort();
    emulator
        .wait_until(|emulator| emulator.calls()[0].outcome() == CallOutcome::Abandoned)
        .await;
    assert_eq!(emulator.in_flight(), 0);
    assert_eq!(emulator.open_connections(), 1);
    drop(other);
    emulator
        .wait_until(|emulator| emulator.open_connections() == 0)
        .await;
    assert_eq!(emulator.accepted_connections(), 1);
}

#[tokio::test]
async fn a_broken_connection_abandons_its_calls() {
    let (emulator, client) = emulator().await;
    let waits: Vec<_> = (0..3)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.wait_operation(NAME).await })
        })
        .collect();
    emulator
        .wait_until(|emulator| emulator.in_flight() == 3)
        .await;
    emulator.abort_connections();
    for wait in waits {
        wait.await.expect("no panic").expect_err("it is cut off");
    }
    emulator
        .wait_until(|emulator| emulator.in_flight() == 0)
        .await;
    let calls = emulator.calls();
    assert!(
        calls
            .iter()
            .all(|call| call.outcome() == CallOutcome::Abandoned)
    );
}

#[tokio::test]
async fn calls_in_flight_are_counted_though_the_record_is_forgotten() {
    let (emulator, mut client) = emulator().await;
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.wait_operation(NAME).await });
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;
    emulator.clear_calls();
    assert_eq!(emulator.in_flight(), 1);
    client.get_operation(NAME).await.expect("it is there");
    emulator.complete(NAME, &()).expect("it runs");
    waiting.await.expect("no panic").expect("it is there");
    assert_eq!((emulator.in_flight(), emulator.peak_in_flight()), (0, 2));
    let calls = emulator.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].outcome(), CallOutcome::Answered(Code::Ok));
}

#[tokio::test]
async fn calls_in_process_are_on_record_too() {
    let (emulator, _) = emulator().await;
    let mut client = OperationsClient::new(emulator.service());
    client.cancel_operation(NAME).await.expect("it runs");
    emulator.start_operation("operations/2").expect("it is new");
    let wait = client.wait_operation("operations/2");
    let soon = tokio::time::timeout(Duration::ZERO, wait).await;
    soon.expect_err("it runs on");
    let calls = emulator.calls();
    assert_eq!(calls[0].method(), Method::Cancel);
    assert_eq!(calls[1].outcome(), CallOutcome::Abandoned);
}

#[tokio::test]
async fn a_thousand_calls_at_once_are_all_in_flight() {
    let (emulator, client) = emulator().await;
    let waits: Vec<_> = (0..1000)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.wait_operation(NAME).await })
        })
        .collect();
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1000)
        .await;
    emulator.complete(NAME, &()).expect("it runs");
    for wait in waits {
        wait.await.expect("no panic").expect("it is there");
    }
    assert_eq!(emulator.peak_in_flight(), 1000);
}

#[tokio::test]
async fn a_thousand_calls_dropped_at_once_leave_the_connection_whole() {
    let (emulator, mut client) = emulator().await;
    let waits: Vec<_> = (0..1000)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.wait_operation(NAME).await })
        })
        .collect();
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1000)
        .await;
    waits.iter().for_each(|wait| wait.abort());
    emulator
        .wait_until(|emulator| emulator.in_flight() == 0)
        .await;
    client.get_operation(NAME).await.expect("it still works");
    assert_eq!(emulator.accepted_connections(), 1);
}

#[tokio::test]
async fn a_limit_on_streams_holds_calls_back() {
    let emulator = Emulator::builder().max_concurrent_streams(2);
    let emulator = emulator.start().await.expect("a free port");
    emulator.start_operation(NAME).expect("it is the first");
    let mut client = client(&emulator).await;
    client
        .get_operation(NAME)
        .await
        .expect("the limit is known now");
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.get_operation(NAME).await })
        })
        .collect();
    for call in calls {
        call.await.expect("no panic").expect("it has its turn");
    }
    assert!(emulator.peak_in_flight() <= 2);
}

#[tokio::test]
async fn a_recorded_call_has_a_time_and_a_connection() {
    let (emulator, mut first) = emulator().await;
    let mut second = client(&emulator).await;
    let begin = Instant::now();
    first.get_operation(NAME).await.expect("it is there");
    let between = Instant::now();
    second.get_operation(NAME).await.expect("it is there");
    first.get_operation(NAME).await.expect("it is there");
    let calls = emulator.calls();
    let connections: Vec<_> = calls.iter().map(Call::connection).collect();
    assert_eq!(connections, [Some(0), Some(1), Some(0)]);
    assert!((begin..between).contains(&calls[0].received_at()));
    assert!(calls[1].received_at() >= between);
}

#[tokio::test]
async fn the_debug_output_of_a_recorded_call_redacts_credentials() {
    let (emulator, mut client) = emulator().await;
    let mut request: Request<GetOperationRequest> = NAME.into_request();
    for name in [
        "authorization",
        "cookie",
        "proxy-authorization",
        "x-api-key",
        "x-goog-api-key",
        "x-goog-iam-authorization-token",
        "x-goog-iap-jwt-assertion",
        "x-serverless-authorization",
    ] {
        request
            .metadata_mut()
            .insert(name, "secret".parse().expect("ASCII"));
    }
    request
        .metadata_mut()
        .insert("x-other", "shown".parse().expect("ASCII"));
    client.get_operation(request).await.expect("it is there");
    let call = &emulator.calls()[0];
    let text = format!("{call:?} {call:#?}");
    assert!(!text.contains("secret"), "{text}");
    assert!(text.contains("shown") && text.contains(NAME), "{text}");
    let value = call.metadata().get("authorization");
    assert_eq!(value.expect("it is recorded"), "secret");
}

//! Wait, and operations that end by themselves. Where time matters the calls are in process, so
//! that the clock can be stopped.

use std::time::Duration;

use longrunning::{
    emulator::Emulator,
    proto::{Operation, WaitOperationRequest, operation, operations_client::OperationsClient},
};
use tokio::time::Instant;
use tonic::{Code, Request};

use crate::{NAME, emulator};

#[tokio::test]
async fn a_wait_ends_with_the_operation() {
    let (emulator, client) = emulator().await;
    let waits: Vec<_> = (0..10)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.wait_operation(NAME).await })
        })
        .collect();
    emulator
        .wait_until(|emulator| emulator.in_flight() == 10)
        .await;
    emulator.complete(NAME, &()).expect("it runs");
    for wait in waits {
        let waited = wait.await.expect("no panic").expect("it is there");
        assert!(waited.into_inner().done);
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_operation_that_is_replaced_by_a_running_one_is_waited_for_as_before() {
    let (emulator, _) = emulator().await;
    let later = Duration::from_secs(60);
    emulator.complete_after(NAME, &(), later).expect("it runs");
    let start = Instant::now();
    let mut client = OperationsClient::new(emulator.service());
    let waiting = tokio::spawn(async move { client.wait_operation(NAME).await });
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;
    let progress = prost_types::Any {
        type_url: "types/Progress".to_owned(),
        ..Default::default()
    };
    emulator.insert(Operation {
        name: NAME.to_owned(),
        metadata: Some(progress.clone()),
        ..Operation::default()
    });
    let waited = waiting.await.expect("no panic").expect("it is there");
    assert!(start.elapsed() >= later, "{:?}", start.elapsed());
    let waited = waited.into_inner();
    assert!(waited.done);
    assert_eq!(waited.metadata, Some(progress));
}

#[tokio::test]
async fn a_wait_for_what_is_done_answers_at_once() {
    let (emulator, mut client) = emulator().await;
    emulator.complete(NAME, &()).expect("it runs");
    let waited = client.wait_operation(NAME).await.expect("it is there");
    assert!(waited.into_inner().done);
}

#[tokio::test(start_paused = true)]
async fn a_wait_answers_the_latest_state_at_the_requests_timeout() {
    let (emulator, _) = emulator().await;
    let mut client = OperationsClient::new(emulator.service());
    let start = Instant::now();
    let request = wait(Some(Duration::from_secs(30)));
    let waited = client.wait_operation(request).await.expect("it runs");
    assert!(!waited.into_inner().done);
    let waited = start.elapsed().as_secs_f64();
    assert!((30.0..30.1).contains(&waited), "{waited}");

    let request = wait(Some(Duration::ZERO));
    let waited = client.wait_operation(request).await.expect("it runs");
    assert!(!waited.into_inner().done);
}

#[tokio::test(start_paused = true)]
async fn a_wait_answers_the_latest_state_just_before_the_calls_deadline() {
    let (emulator, _) = emulator().await;
    let mut client = OperationsClient::new(emulator.service());
    for (deadline, answered) in [(10.0, 9.5..9.6), (1.0, 0.8..0.9)] {
        let start = Instant::now();
        let mut request = Request::new(wait(Some(Duration::from_secs(60))));
        request.set_timeout(Duration::from_secs_f64(deadline));
        let waited = client.wait_operation(request).await.expect("in time");
        assert!(!waited.into_inner().done);
        let waited = start.elapsed().as_secs_f64();
        assert!(answered.contains(&waited), "{waited}");
    }
}

#[tokio::test]
async fn a_wait_for_a_negative_time_is_an_invalid_argument() {
    let (emulator, mut client) = emulator().await;
    let mut request = wait(None);
    request.timeout = Some(prost_types::Duration {
        seconds: -1,
        nanos: 0,
    });
    let status = client
        .wait_operation(request)
        .await
        .expect_err("no such time");
    assert_eq!(status.code(), Code::InvalidArgument);
    let start = "timeout is no span of time to wait:";
    assert!(status.message().starts_with(start), "{}", status.message());
    let mut request = wait(None);
    request.timeout = Some(prost_types::Duration {
        seconds: i64::MAX,
        nanos: 0,
    });
    let mut forever = client.clone();
    let waiting = tokio::spawn(async move { forever.wait_operation(request).await });
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;
    emulator.complete(NAME, &()).expect("it runs");
    let waited = waiting.await.expect("no panic").expect("it is there");
    assert!(waited.into_inner().done);
}

#[tokio::test(start_paused = true)]
async fn an_operation_can_complete_by_itself() {
    let emulator = Emulator::start().await.expect("a free port");
    emulator.start_operation(NAME).expect("it is the first");
    emulator.start_operation("operations/2").expect("it is new");
    let soon = Duration::from_secs(5);
    emulator.complete_after(NAME, &(), soon).expect("it runs");
    emulator
        .complete_after("operations/2", &(), soon)
        .expect("it runs");
    let mut client = OperationsClient::new(emulator.service());
    client
        .cancel_operation("operations/2")
        .await
        .expect("it runs");
    let start = Instant::now();
    let waited = client.wait_operation(NAME).await.expect("it is there");
    let result = waited.into_inner().result;
    assert!(matches!(result, Some(operation::Result::Response(_))));
    assert!(start.elapsed() >= soon);
    let cancelled = emulator.operation("operations/2").expect("it stays");
    assert!(matches!(
        cancelled.result,
        Some(operation::Result::Error(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_planned_does_not_befall_a_namesake() {
    let (emulator, _) = emulator().await;
    let soon = Duration::from_secs(5);
    emulator.complete_after(NAME, &(), soon).expect("it runs");
    emulator.remove(NAME).expect("it is there");
    emulator.start_operation(NAME).expect("the name is free");
    tokio::time::sleep(soon * 2).await;
    assert!(!emulator.operation(NAME).expect("it is there").done);
}

fn wait(timeout: Option<Duration>) -> WaitOperationRequest {
    WaitOperationRequest {
        name: NAME.to_owned(),
        timeout: timeout.map(|timeout| timeout.try_into().expect("it is short")),
    }
}

//! The five methods, as the interface describes them.

use std::time::Duration;

use longrunning::{
    emulator::Emulator,
    proto::{Operation, WaitOperationRequest, operation, operations_client::OperationsClient, rpc},
};
use tokio::time::Instant;
use tonic::{Code, Request};

use crate::{NAME, assert_fails, emulator};

const NO_OPERATION: &str = r#"no operation "operations/none" here"#;

#[tokio::test]
async fn an_operation_shows_progress_and_completes_with_a_typed_response() {
    let (emulator, mut client) = emulator().await;
    let progress = rpc::RequestInfo {
        request_id: "7".to_owned(),
        serving_data: String::new(),
    };
    emulator.set_metadata(NAME, &progress).expect("it runs");
    let seen = client.get_operation(NAME).await.expect("it is there");
    let seen = seen.into_inner();
    assert!(!seen.done);
    assert_eq!(seen.result, None);
    let metadata = seen.metadata.expect("it was set");
    assert_eq!(
        metadata.type_url,
        "type.googleapis.com/google.rpc.RequestInfo"
    );
    assert_eq!(metadata.to_msg(), Ok(progress));

    let help = rpc::Help::default();
    emulator.complete(NAME, &help).expect("it runs");
    let seen = client.get_operation(NAME).await.expect("it is there");
    let seen = seen.into_inner();
    assert!(seen.done);
    let Some(operation::Result::Response(response)) = seen.result else {
        panic!("{seen:?}");
    };
    assert_eq!(response.to_msg(), Ok(help));
}

#[tokio::test]
async fn an_operation_fails_with_the_status_given_and_its_details() {
    let (emulator, mut client) = emulator().await;
    let error = rpc::Status {
        code: 9,
        message: "no room".to_owned(),
        details: vec![
            prost_types::Any::from_msg(&rpc::ErrorInfo {
                reason: "FULL".to_owned(),
                ..rpc::ErrorInfo::default()
            })
            .expect("it can be packed"),
        ],
    };
    emulator.fail(NAME, error.clone()).expect("it runs");
    let seen = client.get_operation(NAME).await.expect("it is there");
    let seen = seen.into_inner();
    assert!(seen.done);
    assert_eq!(seen.result, Some(operation::Result::Error(error)));
}

#[tokio::test]
async fn an_operation_can_be_done_with_no_result() {
    let (emulator, mut client) = emulator().await;
    emulator.complete_without_result(NAME).expect("it runs");
    let seen = client.get_operation(NAME).await.expect("it is there");
    let expected = Operation {
        name: NAME.to_owned(),
        done: true,
        ..Operation::default()
    };
    assert_eq!(seen.into_inner(), expected);
}

#[tokio::test]
async fn what_a_test_gets_wrong_is_told_with_the_name() {
    let (emulator, _) = emulator().await;
    let none = "operations/none";
    assert_fails(emulator.complete(none, &()), Code::NotFound, NO_OPERATION);
    assert_fails(
        emulator.set_metadata(none, &()),
        Code::NotFound,
        NO_OPERATION,
    );
    assert_fails(emulator.remove(none), Code::NotFound, NO_OPERATION);
    assert_fails(
        emulator.start_operation(NAME),
        Code::AlreadyExists,
        r#"operation "projects/p/locations/l/operations/1" exists already"#,
    );
    assert_fails(
        emulator.start_operation(""),
        Code::InvalidArgument,
        "an operation needs a name",
    );
    emulator.complete(NAME, &()).expect("it runs");
    assert_fails(
        emulator.complete_without_result(NAME),
        Code::FailedPrecondition,
        r#"operation "projects/p/locations/l/operations/1" is done already"#,
    );
}

#[tokio::test]
async fn a_name_is_made_up_under_a_parent() {
    let (emulator, mut client) = emulator().await;
    let first = emulator.start_operation_in("projects/p/locations/l");
    let second = emulator.start_operation_in("projects/p/locations/l");
    let bare = emulator.start_operation_in("");
    assert_ne!(first.name, second.name);
    assert!(first.name.starts_with("projects/p/locations/l/operations/"));
    assert!(bare.name.starts_with("operations/"));
    client.get_operation(&second).await.expect("it is there");
}

#[tokio::test]
async fn an_unknown_operation_is_not_found() {
    let (_emulator, mut client) = emulator().await;
    let none = "operations/none";
    assert_fails(
        client.get_operation(none).await,
        Code::NotFound,
        NO_OPERATION,
    );
    assert_fails(
        client.cancel_operation(none).await,
        Code::NotFound,
        NO_OPERATION,
    );
    assert_fails(
        client.delete_operation(none).await,
        Code::NotFound,
        NO_OPERATION,
    );
    assert_fails(
        client.wait_operation(none).await,
        Code::NotFound,
        NO_OPERATION,
    );
}

#[tokio::test]
async fn a_cancelled_operation_stays_with_code_1_and_a_second_cancel_changes_nothing() {
    let (emulator, mut client) = emulator().await;
    emulator.set_metadata(NAME, &()).expect("it runs");
    client.cancel_operation(NAME).await.expect("it runs");
    let cancelled = emulator.operation(NAME).expect("it stays");
    assert!(cancelled.done && cancelled.metadata.is_some());
    let Some(operation::Result::Error(error)) = &cancelled.result else {
        panic!("{cancelled:?}");
    };
    assert_eq!(error.code, 1);
    client.cancel_operation(NAME).await.expect("it is done");
    assert_eq!(emulator.operation(NAME), Some(cancelled));
}

#[tokio::test]
async fn a_completed_operation_is_not_changed_by_a_cancel() {
    let (emulator, mut client) = emulator().await;
    emulator.complete(NAME, &()).expect("it runs");
    let before = emulator.operation(NAME);
    client.cancel_operation(NAME).await.expect("it is done");
    assert_eq!(emulator.operation(NAME), before);
}

#[tokio::test]
async fn a_deleted_operation_is_gone_and_ends_waits_with_not_found() {
    let (emulator, mut client) = emulator().await;
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.wait_operation(NAME).await });
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;
    client.delete_operation(NAME).await.expect("it is there");
    let message = r#"no operation "projects/p/locations/l/operations/1" here"#;
    let waited = waiting.await.expect("no panic");
    assert_fails(waited, Code::NotFound, message);
    assert_fails(client.get_operation(NAME).await, Code::NotFound, message);
    assert_eq!(emulator.operation_count(), 0);
}

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

#[tokio::test]
async fn a_wait_for_what_is_done_answers_at_once() {
    let (emulator, mut client) = emulator().await;
    emulator.complete(NAME, &()).expect("it runs");
    let waited = client.wait_operation(NAME).await.expect("it is there");
    assert!(waited.into_inner().done);
}

// In process from here on, so that the clock can be stopped.

fn wait(timeout: Option<Duration>) -> WaitOperationRequest {
    WaitOperationRequest {
        name: NAME.to_owned(),
        timeout: timeout.map(|timeout| timeout.try_into().expect("it is short")),
    }
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

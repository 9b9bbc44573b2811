//! Get, Cancel and Delete, and what a test does to operations.

use longrunning::proto::{Operation, operation, rpc};
use tonic::Code;

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

//! What an operation says of its end.

use longrunning::{
    CallStatusExt as _, Operation, Outcome,
    proto::{operation::Result as End, rpc},
};
use prost_types::{Any, Duration};
use tonic::Code;

const NAME: &str = "operations/1";

fn any(message: &impl prost::Name) -> Any {
    Any::from_msg(message).expect("encodes")
}

fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

fn done(end: impl Into<Option<End>>) -> Operation {
    Operation {
        name: NAME.into(),
        metadata: None,
        done: true,
        result: end.into(),
    }
}

fn failed(code: i32, message: &str) -> Operation {
    let details = vec![any(&rpc::RetryInfo {
        retry_delay: Some(seconds(1)),
    })];
    done(End::Error(rpc::Status {
        code,
        message: message.into(),
        details,
    }))
}

#[test]
fn a_running_operation_has_no_response_yet() {
    // Even where a server sets a result before the end: only `done` counts.
    let early = Operation {
        done: false,
        ..failed(13, "not yet")
    };
    for running in [
        Operation {
            name: NAME.into(),
            ..Default::default()
        },
        early,
    ] {
        assert!(matches!(running.outcome(), Outcome::Running));
        let status = running.into_response::<Duration>().expect_err("not done");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(
            status.message(),
            r#"operation "operations/1" is not done: wait for it before asking for its response"#
        );
    }
}

#[test]
fn a_successful_operation_gives_its_response() {
    let operation = done(End::Response(any(&seconds(7))));
    assert!(matches!(operation.outcome(), Outcome::Succeeded));
    assert_eq!(
        operation.into_response::<Duration>().expect("a Duration"),
        seconds(7)
    );
}

#[test]
fn a_response_of_another_type_is_an_error_that_names_both() {
    let operation = done(End::Response(any(&seconds(7))));
    let status = operation
        .clone()
        .into_response::<rpc::Help>()
        .expect_err("not a Help");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        status.message(),
        r#"the response of operation "operations/1" is a "google.protobuf.Duration", not a "google.rpc.Help""#
    );
    let taken = operation.into_response_ignoring_type::<prost_types::Timestamp>();
    assert_eq!(taken.expect("the same fields").seconds, 7);
}

#[test]
fn a_response_that_cannot_be_decoded_is_internal() {
    let broken = Any {
        value: vec![0xff],
        ..any(&seconds(7))
    };
    let operation = done(End::Response(broken));
    let status = operation.into_response::<Duration>().expect_err("broken");
    assert_eq!(status.code(), Code::Internal);
    assert!(
        status.message().starts_with(
            r#"the response of operation "operations/1", a "type.googleapis.com/google.protobuf.Duration", cannot be decoded: "#
        ),
        "{status}"
    );
}

#[test]
fn code_1_is_a_cancelled_operation() {
    let operation = failed(1, "stopped");
    let Outcome::Cancelled(status) = operation.outcome() else {
        panic!("cancelled was expected: {:?}", operation.outcome());
    };
    assert_eq!(
        (status.code(), status.message()),
        (Code::Cancelled, "stopped")
    );
}

#[test]
fn a_failed_operation_gives_its_error_with_details() {
    let operation = failed(9, "not now");
    assert!(matches!(operation.outcome(), Outcome::Failed(_)));
    let status = operation.into_response::<Duration>().expect_err("failed");
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, "not now")
    );
    let info: rpc::RetryInfo = status.detail().expect("the details came along");
    assert_eq!(info.retry_delay, Some(seconds(1)));
}

#[test]
fn an_error_of_code_0_is_not_taken_for_a_success() {
    let operation = failed(0, "odd");
    let Outcome::Failed(status) = operation.outcome() else {
        panic!("failed was expected: {:?}", operation.outcome());
    };
    assert_eq!(status.code(), Code::Unknown);
    assert_eq!(
        status.message(),
        "the operation's error has the code 0: odd"
    );
    assert!(status.detail::<rpc::RetryInfo>().is_some());
}

#[test]
fn done_without_a_result_is_a_state_of_its_own() {
    let operation = done(None);
    assert!(matches!(operation.outcome(), Outcome::DoneWithoutResult));
    let status = operation
        .into_response::<Duration>()
        .expect_err("nothing to give");
    assert_eq!(status.code(), Code::Unknown);
    assert_eq!(
        status.message(),
        r#"operation "operations/1" is done, but the server set neither a response nor an error"#
    );
}

#[test]
fn metadata_are_typed_too() {
    let mut operation = Operation {
        name: NAME.into(),
        ..Default::default()
    };
    assert_eq!(
        operation
            .metadata_as::<Duration>()
            .expect("none is no error"),
        None
    );
    operation.metadata = Some(any(&seconds(7)));
    assert_eq!(
        operation.metadata_as().expect("a Duration"),
        Some(seconds(7))
    );
    assert_eq!(
        operation.metadata_ignoring_type().expect("a Duration"),
        Some(seconds(7))
    );
    let status = operation
        .metadata_as::<rpc::Help>()
        .expect_err("not a Help");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status
            .message()
            .starts_with(r#"the metadata of operation "operations/1" is a "#)
    );
}

#[test]
fn the_location_of_a_name_can_be_part_of_a_host_name() {
    let longest = format!("locations/{}", "a".repeat(63));
    let too_long = format!("locations/{}", "a".repeat(64));
    let table = [
        (
            "projects/p/locations/us-central1/operations/1",
            Some("us-central1"),
        ),
        ("locations/europe-west4", Some("europe-west4")),
        ("projects/locations/locations/eu/operations/1", Some("eu")),
        ("projects/locations/operations/1", None),
        ("operations/1", None),
        ("projects/p/locations/", None),
        ("projects/p/locations", None),
        ("", None),
        ("locations/evil.com#/operations/1", None),
        ("locations/a:80/operations/1", None),
        ("locations/-/operations/1", None),
        ("locations/-eu/operations/1", None),
        ("locations/eu-/operations/1", None),
        (&too_long, None),
        (&longest, Some(&longest[10..])),
        ("locations/EU/operations/1", None),
    ];
    for (name, location) in table {
        assert_eq!(longrunning::location(name), location, "{name}");
    }
}

//! What a status tells beyond its code, and how it travels inside messages.

use longrunning::{CallStatusExt as _, proto::rpc};
use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use prost_types::Any;
use tonic::{Code, Status};

#[test]
fn every_code_has_its_name_and_its_http_code() {
    let table = [
        ("OK", 200),
        ("CANCELLED", 499),
        ("UNKNOWN", 500),
        ("INVALID_ARGUMENT", 400),
        ("DEADLINE_EXCEEDED", 504),
        ("NOT_FOUND", 404),
        ("ALREADY_EXISTS", 409),
        ("PERMISSION_DENIED", 403),
        ("RESOURCE_EXHAUSTED", 429),
        ("FAILED_PRECONDITION", 400),
        ("ABORTED", 409),
        ("OUT_OF_RANGE", 400),
        ("UNIMPLEMENTED", 501),
        ("INTERNAL", 500),
        ("UNAVAILABLE", 503),
        ("DATA_LOSS", 500),
        ("UNAUTHENTICATED", 401),
    ];
    for (code, (name, http)) in (0..).zip(table) {
        let status = Status::new(Code::from_i32(code), "");
        assert_eq!((status.code_name(), status.http_code()), (name, http));
    }
}

fn retry_info() -> rpc::RetryInfo {
    rpc::RetryInfo {
        retry_delay: Some(prost_types::Duration {
            seconds: 3,
            nanos: 0,
        }),
    }
}

#[test]
fn a_typed_detail_is_found_among_others() {
    let details = vec![
        Any {
            type_url: "type.googleapis.com/of.no.Known".into(),
            value: vec![0xff],
        },
        Any::from_msg(&rpc::ErrorInfo {
            reason: "QUOTA".into(),
            ..Default::default()
        })
        .expect("encodes"),
        Any::from_msg(&retry_info()).expect("encodes"),
    ];
    let status = Status::from(rpc::Status {
        code: 8,
        message: "later".into(),
        details,
    });
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.detail::<rpc::RetryInfo>(), Some(retry_info()));
    assert_eq!(
        status.detail::<rpc::ErrorInfo>().expect("is there").reason,
        "QUOTA"
    );
    assert_eq!(status.detail::<rpc::Help>(), None);
}

#[test]
fn details_that_are_no_message_hold_no_typed_detail() {
    let status = Status::with_details(Code::Aborted, "", vec![0xff; 9].into());
    assert_eq!(status.detail::<rpc::RetryInfo>(), None);
    let refused = rpc::Status::try_from(&status).expect_err("there is no place for these bytes");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused
            .message()
            .starts_with("the status's details are not a google.rpc.Status: ")
    );
}

#[test]
fn a_status_without_details_becomes_a_message_without_details() {
    let message = rpc::Status::try_from(&Status::not_found("operations/1")).expect("no details");
    let expected = rpc::Status {
        code: 5,
        message: "operations/1".into(),
        details: vec![],
    };
    assert_eq!(message, expected);
}

#[test]
fn what_the_call_said_wins_over_what_its_details_say() {
    let within = rpc::Status {
        code: 3,
        message: "within".into(),
        details: vec![],
    };
    let status = Status::with_details(Code::Aborted, "outside", within.encode_to_vec().into());
    let message = rpc::Status::try_from(&status).expect("a google.rpc.Status");
    assert_eq!((message.code, message.message.as_str()), (10, "outside"));
}

proptest! {
    #[test]
    fn a_message_comes_back_as_it_was(
        code in any::<i32>(),
        text in any::<String>(),
        details in vec((any::<String>(), vec(any::<u8>(), 0..9)), 0..3),
    ) {
        let details = details.into_iter().map(|(type_url, value)| Any { type_url, value }).collect();
        let message = rpc::Status { code, message: text, details };
        let status = Status::from(message.clone());
        prop_assert_eq!(status.code(), Code::from_i32(code));
        prop_assert_eq!(status.message(), &message.message);
        prop_assert_eq!(rpc::Status::try_from(&status).expect("its own details"), message);
    }
}

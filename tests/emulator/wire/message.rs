//! Requests whose message is too large, badly framed or compressed.

use bytes::Bytes;
use longrunning::proto::GetOperationRequest;
use prost::Message as _;
use tonic::Code;

use super::{Answer, GET, LIMIT, connected, framed, message, post, prefix};
use crate::NAME;

#[tokio::test]
async fn a_message_beyond_the_limit_is_resource_exhausted() {
    let (emulator, mut connection) = connected().await;
    for length in [LIMIT + 1, u32::MAX as usize] {
        // The answer comes after the prefix: nothing of the message was sent.
        let prefix = prefix(0, length);
        let (answer, _body) = connection.open(post(&emulator, GET), &prefix).await;
        let message = format!("the request message is {length} bytes, the limit is 4194304 bytes");
        let answer = Answer::read(answer).await;
        answer.assert_status(Code::ResourceExhausted, &message);
    }
}

#[tokio::test]
async fn a_whole_message_beyond_the_limit_leaves_the_connection_usable() {
    let (emulator, mut connection) = connected().await;
    for _ in 0..4 {
        let large = framed(0, &padded(LIMIT + 1));
        let answer = connection.answer(post(&emulator, GET), &large).await;
        let message = "the request message is 4194305 bytes, the limit is 4194304 bytes";
        answer.assert_status(Code::ResourceExhausted, message);
    }
    let answer = connection.answer(post(&emulator, GET), &message()).await;
    answer.assert_ok();
    assert_eq!(emulator.accepted_connections(), 1);
}

#[tokio::test]
async fn a_message_as_large_as_the_limit_is_served() {
    let (emulator, mut connection) = connected().await;
    let largest = framed(0, &padded(LIMIT));
    let answer = connection.answer(post(&emulator, GET), &largest).await;
    answer.assert_ok();
    assert_eq!(emulator.calls()[0].name(), NAME);
}

#[tokio::test]
async fn bytes_after_the_message_are_internal() {
    let (emulator, mut connection) = connected().await;
    for after in [message(), vec![0]] {
        let body = [message(), after].concat();
        let answer = connection.answer(post(&emulator, GET), &body).await;
        let message = "the request has bytes after its message, expected one message";
        answer.assert_status(Code::Internal, message);
    }
}

#[tokio::test]
async fn bytes_after_the_message_are_refused_before_the_request_ends() {
    let (emulator, mut connection) = connected().await;
    let (answer, mut body) = connection.open(post(&emulator, GET), &message()).await;
    body.send_data(message().into(), false).expect("it is open");
    let message = "the request has bytes after its message, expected one message";
    let answer = Answer::read(answer).await;
    answer.assert_status(Code::Internal, message);
}

#[tokio::test]
async fn a_request_without_a_message_is_internal() {
    let (emulator, mut connection) = connected().await;
    let answer = connection.answer(post(&emulator, GET), b"").await;
    answer.assert_status(
        Code::Internal,
        "the request has no message, expected one message",
    );
}

#[tokio::test]
async fn a_truncated_message_is_internal() {
    let (emulator, mut connection) = connected().await;
    let length = message().len() - 5;
    for (kept, reason) in [
        (
            1,
            "the request ends after 1 of the 5 bytes of its message's prefix".to_owned(),
        ),
        (
            4,
            "the request ends after 4 of the 5 bytes of its message's prefix".to_owned(),
        ),
        (
            5,
            format!("the request ends after 0 of the {length} bytes of its message"),
        ),
        (
            8,
            format!("the request ends after 3 of the {length} bytes of its message"),
        ),
    ] {
        let answer = connection
            .answer(post(&emulator, GET), &message()[..kept])
            .await;
        answer.assert_status(Code::Internal, &reason);
    }
}

#[tokio::test]
async fn a_message_in_many_frames_is_served() {
    let (emulator, mut connection) = connected().await;
    let (answer, mut body) = connection.open(post(&emulator, GET), b"").await;
    for byte in message() {
        let byte = Bytes::from(vec![byte]);
        body.send_data(byte, false).expect("it is open");
    }
    body.send_data(Bytes::new(), true).expect("it is open");
    Answer::read(answer).await.assert_ok();
}

#[tokio::test]
async fn an_uncompressed_message_is_served_whatever_its_encoding_header() {
    let (emulator, mut connection) = connected().await;
    for encoding in ["gzip", "identity", "snappy"] {
        let request = post(&emulator, GET).header("grpc-encoding", encoding);
        let answer = connection.answer(request, &message()).await;
        answer.assert_ok();
        let calls = emulator.calls();
        let call = calls.last().expect("it is on record");
        let recorded = call.metadata().get("grpc-encoding");
        assert_eq!(recorded.expect("it was sent"), encoding);
    }
}

#[tokio::test]
async fn a_compressed_message_is_unimplemented() {
    let (emulator, mut connection) = connected().await;
    for encoding in ["gzip", "snappy"] {
        let request = post(&emulator, GET).header("grpc-encoding", encoding);
        let answer = connection.answer(request, &framed(1, b"abc")).await;
        let message = format!(
            "the request message is compressed with {encoding:?}, but the server accepts only \
             \"identity\""
        );
        answer.assert_status(Code::Unimplemented, &message);
        assert_eq!(answer.headers["grpc-accept-encoding"], "identity");
    }
}

#[tokio::test]
async fn a_compressed_message_without_an_encoding_is_internal() {
    let (emulator, mut connection) = connected().await;
    let compressed = framed(1, b"abc");
    let answer = connection.answer(post(&emulator, GET), &compressed).await;
    let message = "the request message is compressed, but the header grpc-encoding is missing";
    answer.assert_status(Code::Internal, message);

    let request = post(&emulator, GET).header("grpc-encoding", "identity");
    let answer = connection.answer(request, &compressed).await;
    let message = "the request message is compressed, but its grpc-encoding is \"identity\"";
    answer.assert_status(Code::Internal, message);
}

#[tokio::test]
async fn an_unknown_compressed_flag_is_internal() {
    let (emulator, mut connection) = connected().await;
    for flag in [2, 255] {
        let body = framed(flag, b"abc");
        let answer = connection.answer(post(&emulator, GET), &body).await;
        let message =
            format!("the request message has the Compressed-Flag {flag}, expected 0 or 1");
        answer.assert_status(Code::Internal, &message);
    }
}

/// A request message of so many bytes that names the operation: the rest is an unknown field.
fn padded(length: usize) -> Vec<u8> {
    let name = NAME.to_owned();
    let mut message = GetOperationRequest { name }.encode_to_vec();
    // Field 15 of bytes, and a length that takes four bytes.
    let padding = length - message.len() - 5;
    message.push(15 << 3 | 2);
    prost::encoding::encode_varint(padding as u64, &mut message);
    message.resize(length, 0);
    message
}

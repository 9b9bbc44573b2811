//! Whatever a stack answers, the caller gets a truthful status.

use std::{
    convert::Infallible,
    future::{pending, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use longrunning::{
    CallStatusExt as _, GrpcStack, OperationsClient, Origin,
    proto::{CancelOperationRequest, operations_client},
};
use proptest::{collection::vec, prelude::*};
use tonic::{Code, IntoRequest as _, Status, body::Body, service::interceptor::InterceptedService};
use tower::{BoxError, ServiceBuilder, service_fn};

const NAME: &str = "operations/1";

type Frames = Vec<Result<Frame<Bytes>, BoxError>>;

/// A stack that answers each call with these headers and this body.
fn answering<F: Fn() -> (Response<()>, Frames) + Clone + Send + 'static>(
    answer: F,
) -> impl GrpcStack {
    service_fn(move |_: Request<Body>| {
        let (head, frames) = answer();
        let body = StreamBody::new(tokio_stream::iter(frames));
        ready(Ok::<_, Infallible>(head.map(|()| body)))
    })
}

async fn cancel(stack: impl GrpcStack) -> Result<(), Status> {
    OperationsClient::new(stack).cancel_operation(NAME).await
}

async fn failure(stack: impl GrpcStack) -> (Code, Option<Origin>, String) {
    let status = cancel(stack).await.expect_err("the call fails");
    (status.code(), status.origin(), status.message().to_owned())
}

fn headers(entries: &[(&'static str, &[u8])]) -> HeaderMap {
    let entry = |(name, value): &(&'static str, &[u8])| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_bytes(value).expect("legal bytes"),
        )
    };
    entries.iter().map(entry).collect()
}

fn head(status: u16, entries: &[(&'static str, &[u8])]) -> Response<()> {
    let mut response = Response::builder()
        .status(status)
        .body(())
        .expect("a response");
    *response.headers_mut() = headers(entries);
    response
}

fn grpc() -> Response<()> {
    head(200, &[("content-type", b"application/grpc")])
}

/// An empty message, as gRPC frames it.
fn message() -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(Bytes::from_static(&[0; 5])))
}

fn trailers(entries: &[(&'static str, &[u8])]) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::trailers(headers(entries)))
}

#[tokio::test]
async fn a_status_arrives_unchanged_in_headers_and_in_trailers() {
    let entries: &[(&str, &[u8])] = &[
        ("grpc-status", b"9"),
        ("grpc-message", b"not now: %C3%A9%25"),
        ("grpc-status-details-bin", b"CAkSAW0"),
        ("x-more", b"kept"),
    ];
    let in_headers = answering(|| (head(200, entries), vec![]));
    let in_trailers = answering(|| (grpc(), vec![trailers(entries)]));
    let after_a_message = answering(|| (grpc(), vec![message(), trailers(entries)]));
    for status in [
        cancel(in_headers).await.expect_err("fails"),
        cancel(in_trailers).await.expect_err("fails"),
        cancel(after_a_message).await.expect_err("fails"),
    ] {
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), "not now: é%");
        assert_eq!(status.details(), [8, 9, 18, 1, b'm']);
        assert_eq!(status.metadata().get("x-more").expect("is there"), "kept");
        assert_eq!(status.origin(), Some(Origin::Server));
    }
}

#[tokio::test]
async fn a_status_in_the_trailers_has_the_metadata_of_the_head_too() {
    // Not by `answering`: tonic's stub asks more of a stack.
    let stack = service_fn(|_: Request<Body>| {
        let entries: &[(&str, &[u8])] = &[
            ("content-type", b"application/grpc"),
            ("x-request-id", b"42"),
            ("x-both", b"head"),
        ];
        let trailers: &[(&str, &[u8])] = &[
            ("grpc-status", b"9"),
            ("x-more", b"kept"),
            ("x-both", b"end"),
        ];
        let body = StreamBody::new(tokio_stream::iter([self::trailers(trailers)]));
        ready(Ok::<_, Infallible>(head(200, entries).map(|()| body)))
    });
    let stub = operations_client::OperationsClient::new(stack)
        .cancel_operation(CancelOperationRequest::default())
        .await
        .expect_err("fails");
    let status = cancel(stack).await.expect_err("fails");
    for name in ["content-type", "x-request-id", "x-more", "x-both"] {
        let value = status.metadata().get(name);
        assert_eq!(value, stub.metadata().get(name), "{name}");
        assert!(value.is_some(), "{name}");
    }
    let both: Vec<_> = status.metadata().get_all("x-both").iter().collect();
    assert_eq!(both, ["head", "end"]);
    assert!(status.metadata().get("grpc-status").is_none());
}

#[tokio::test]
async fn what_cannot_be_read_of_a_status_does_not_cost_the_rest() {
    let entries: &[(&str, &[u8])] = &[
        ("grpc-status", b"5"),
        ("grpc-message", b"caf%E9 %zz"),
        ("grpc-status-details-bin", b"!not base64!"),
    ];
    let in_headers = answering(|| (head(200, entries), vec![]));
    let in_trailers = answering(|| (grpc(), vec![message(), trailers(entries)]));
    for status in [
        cancel(in_headers).await.expect_err("fails"),
        cancel(in_trailers).await.expect_err("fails"),
    ] {
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), "caf\u{fffd} %zz");
        assert!(status.details().is_empty());
        assert_eq!(status.origin(), Some(Origin::Server));
    }
}

#[tokio::test]
async fn a_success_stays_one_whatever_stands_beside_it() {
    let entries: &[(&str, &[u8])] = &[
        ("grpc-status", b"0"),
        ("grpc-message", b"%E9"),
        ("grpc-status-details-bin", b"!not base64!"),
    ];
    let stack = answering(|| (grpc(), vec![message(), trailers(entries)]));
    cancel(stack).await.expect("grpc-status is 0");
    // In headers it leaves no room for the message that a success has.
    let (code, origin, text) = failure(answering(|| (head(200, entries), vec![]))).await;
    assert_eq!((code, origin), (Code::Internal, Some(Origin::Client)));
    assert_eq!(text, "cannot read the answer: it has no message");
}

#[tokio::test]
async fn a_status_that_is_no_number_of_grpc_is_unknown() {
    for value in [&b"17"[..], b"-1", b"abc", b"", b"\xff"] {
        let stack = answering(move || {
            (
                head(200, &[("grpc-status", value), ("grpc-message", b"m")]),
                vec![],
            )
        });
        let found = failure(stack).await;
        assert_eq!(found, (Code::Unknown, Some(Origin::Server), "m".to_owned()));
    }
}

#[tokio::test]
async fn an_http_answer_without_a_status_follows_the_table_of_grpc() {
    let table = [
        (400, Code::Internal),
        (401, Code::Unauthenticated),
        (403, Code::PermissionDenied),
        (404, Code::Unimplemented),
        (429, Code::Unavailable),
        (431, Code::Internal),
        (502, Code::Unavailable),
        (503, Code::Unavailable),
        (504, Code::Unavailable),
        (500, Code::Unknown),
        (302, Code::Unknown),
        (200, Code::Unknown),
    ];
    for (http, code) in table {
        let stack = answering(move || {
            let body = Frame::data(Bytes::from_static(b"<html>"));
            (
                head(http, &[("content-type", b"text/html")]),
                vec![Ok(body)],
            )
        });
        let hint = match http {
            431 => "the request's headers are larger than the server accepts",
            _ => "is the endpoint a gRPC server?",
        };
        let text = format!(
            "HTTP status {http} and content-type \"text/html\", without a grpc-status: {hint}"
        );
        assert_eq!(failure(stack).await, (code, Some(Origin::Transport), text));
    }
}

#[tokio::test]
async fn an_answer_that_ends_without_a_status_is_unknown() {
    let cut_off = (
        Code::Unknown,
        Some(Origin::Transport),
        "the answer ended without a grpc-status".to_owned(),
    );
    assert_eq!(failure(answering(|| (grpc(), vec![]))).await, cut_off);
    assert_eq!(
        failure(answering(|| (grpc(), vec![message()]))).await,
        cut_off
    );
    let other_trailers = || (grpc(), vec![message(), trailers(&[("x", b"y")])]);
    assert_eq!(failure(answering(other_trailers)).await, cut_off);
}

#[tokio::test]
async fn an_answer_that_cannot_be_decoded_is_internal() {
    let ok = || trailers(&[("grpc-status", b"0")]);
    for bytes in [
        &[0, 0, 0, 0, 2, 10, 9][..],
        &[7; 9],
        &[1, 0, 0, 0, 0],
        &[0, 0, 0],
    ] {
        let stack = answering(move || {
            (
                grpc(),
                vec![Ok(Frame::data(Bytes::from_static(bytes))), ok()],
            )
        });
        let status = OperationsClient::new(stack)
            .get_operation(NAME)
            .await
            .expect_err("garbage");
        let found = (status.code(), status.origin());
        assert_eq!(
            found,
            (Code::Internal, Some(Origin::Client)),
            "{bytes:?}: {status}"
        );
    }
}

/// The head of an answer that names a compression.
fn encoded(encoding: &'static str) -> Response<()> {
    let mut head = grpc();
    head.headers_mut()
        .insert("grpc-encoding", HeaderValue::from_static(encoding));
    head
}

#[tokio::test]
async fn a_message_that_is_not_compressed_is_read_whatever_grpc_encoding_says() {
    for encoding in ["gzip", "identity", "brotli"] {
        let ok = || trailers(&[("grpc-status", b"0")]);
        let stack = answering(move || (encoded(encoding), vec![message(), ok()]));
        cancel(stack).await.expect("Compressed-Flag is 0");
    }
}

/// A compressed message, with its prefix.
fn compressed(message: &[u8]) -> Bytes {
    let mut bytes = vec![1];
    bytes.extend_from_slice(&u32::try_from(message.len()).expect("small").to_be_bytes());
    bytes.extend_from_slice(message);
    bytes.into()
}

#[tokio::test]
async fn a_compressed_message_that_cannot_be_decoded_is_internal_and_the_message_has_the_remedy() {
    #[cfg(not(feature = "gzip"))]
    let gzip = (
        "gzip",
        "enable the feature \"gzip\" of longrunning to decode it",
    );
    let unsupported = |encoding| (encoding, "longrunning does not support this encoding");
    #[cfg(feature = "gzip")] // which another test decodes
    let gzip = unsupported("snappy");
    for (encoding, remedy) in [gzip, unsupported("deflate")] {
        let message = || Ok(Frame::data(compressed(b"x")));
        let ok = || trailers(&[("grpc-status", b"0")]);
        let stack = answering(move || (encoded(encoding), vec![message(), ok()]));
        let (code, origin, text) = failure(stack).await;
        assert_eq!((code, origin), (Code::Internal, Some(Origin::Client)));
        let expected = format!(
            "cannot read the answer: its message is compressed with {encoding:?}: {remedy}"
        );
        assert_eq!(text, expected);
    }
    let message = || Ok(Frame::data(compressed(b"x")));
    let ok = || trailers(&[("grpc-status", b"0")]);
    let (code, _, text) = failure(answering(move || (grpc(), vec![message(), ok()]))).await;
    assert_eq!(code, Code::Internal);
    assert!(
        text.contains("the header grpc-encoding is missing"),
        "{text}"
    );
}

#[tokio::test]
async fn a_later_status_takes_precedence_over_a_message_that_cannot_be_decoded() {
    let messages: [&[u8]; 4] = [
        &[1, 0, 0, 0, 1, 0], // compressed, but not with an encoding that is accepted
        &[7, 0, 0, 0, 1, 0], // an invalid Compressed-Flag
        &[0, 0, 0, 0, 2, 0], // only a part of it
        &[0, 0, 0],
    ];
    for message in messages {
        let message = move || Ok(Frame::data(Bytes::from_static(message)));
        let denied = || trailers(&[("grpc-status", b"7"), ("grpc-message", b"no")]);
        let stack = answering(move || (encoded("brotli"), vec![message(), denied()]));
        let expected = (
            Code::PermissionDenied,
            Some(Origin::Server),
            "no".to_owned(),
        );
        assert_eq!(failure(stack).await, expected);
    }
}

#[cfg(feature = "gzip")]
mod gzip {
    use std::{
        io::Write as _,
        sync::{Arc, Mutex},
    };

    use super::*;

    fn gzipped(message: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(message).expect("to memory");
        encoder.finish().expect("to memory")
    }

    /// Gets an operation from a stack that answers with this compressed message.
    async fn get(message: Vec<u8>) -> Result<longrunning::Operation, Status> {
        let answer = move || {
            let message = Ok(Frame::data(compressed(&message)));
            let ok = trailers(&[("grpc-status", b"0")]);
            (encoded("gzip"), vec![message, ok])
        };
        OperationsClient::new(answering(answer))
            .get_operation(NAME)
            .await
    }

    #[tokio::test]
    async fn a_message_that_is_compressed_with_gzip_is_decoded() {
        use prost::Message as _;
        let operation = longrunning::Operation {
            name: NAME.to_owned(),
            done: true,
            ..longrunning::Operation::default()
        };
        let found = get(gzipped(&operation.encode_to_vec())).await;
        assert_eq!(found.expect("it is decoded"), operation);
    }

    #[tokio::test]
    async fn data_that_is_not_gzip_is_internal() {
        let mut cut_short = gzipped(&[0; 1000]);
        cut_short.truncate(12);
        for message in [b"not gzip".to_vec(), cut_short] {
            let status = get(message).await.expect_err("it cannot be decoded");
            assert_eq!(status.code(), Code::Internal);
            assert!(status.message().contains("is not valid gzip"), "{status}");
        }
    }

    #[tokio::test]
    async fn a_message_that_is_too_large_once_decoded_is_resource_exhausted() {
        let message = gzipped(&vec![0; 100 << 20]);
        assert!(message.len() < 200_000);
        let status = get(message).await.expect_err("it is larger than 4 MiB");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("more than 4194304"), "{status}");
    }

    #[tokio::test]
    async fn gzip_is_advertised() {
        let seen = Arc::<Mutex<Vec<HeaderMap>>>::default();
        let log = seen.clone();
        let stack = service_fn(move |request: Request<Body>| {
            let headers = request.headers().clone();
            log.lock().expect("no panic").push(headers);
            ready(Ok::<_, Infallible>(
                head(200, &[("grpc-status", b"12")]).map(|()| Body::default()),
            ))
        });
        cancel(stack).await.expect_err("UNIMPLEMENTED");
        let seen = seen.lock().expect("no panic");
        assert_eq!(seen[0]["grpc-accept-encoding"], "gzip");
    }
}

#[cfg(not(feature = "gzip"))]
#[tokio::test]
async fn no_encoding_is_advertised_without_the_feature() {
    let stack = service_fn(|request: Request<Body>| {
        let is_there = request.headers().contains_key("grpc-accept-encoding");
        let code: &[u8] = if is_there { b"3" } else { b"12" };
        ready(Ok::<_, Infallible>(
            head(200, &[("grpc-status", code)]).map(|()| Body::default()),
        ))
    });
    let status = cancel(stack).await.expect_err("it never succeeds");
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_second_message_is_internal_at_once() {
    // The stream never ends: what follows the message must not be waited for.
    for more in [&[0, 0, 0, 0, 0][..], &[0], &[9; 100]] {
        let stack = service_fn(move |_: Request<Body>| {
            let frames = [message(), Ok(Frame::data(Bytes::from_static(more)))];
            let endless =
                tokio_stream::StreamExt::chain(tokio_stream::iter(frames), tokio_stream::pending());
            let body = StreamBody::new(endless);
            ready(Ok::<_, Infallible>(grpc().map(|()| body)))
        });
        let (code, origin, text) = failure(stack).await;
        assert_eq!((code, origin), (Code::Internal, Some(Origin::Client)));
        assert!(text.contains("followed by more data"), "{text}");
    }
}

#[tokio::test]
async fn a_status_is_used_whatever_the_http_status() {
    type Headers = &'static [(&'static str, &'static [u8])];
    const DENIED: Headers = &[("grpc-status", b"7"), ("grpc-message", b"no")];
    const CONTENT_TYPES: [Headers; 2] = [&[], &[("content-type", b"application/grpc")]];
    for http in [200, 400, 404, 429, 500, 503] {
        let expected = (
            Code::PermissionDenied,
            Some(Origin::Server),
            "no".to_owned(),
        );
        let in_head = move || (head(http, DENIED), vec![]);
        assert_eq!(failure(answering(in_head)).await, expected, "{http}");
        for content_type in CONTENT_TYPES {
            let in_trailers = move || (head(http, content_type), vec![trailers(DENIED)]);
            assert_eq!(failure(answering(in_trailers)).await, expected, "{http}");
        }
        let ok = || trailers(&[("grpc-status", b"0")]);
        let success = move || (head(http, &[]), vec![message(), ok()]);
        cancel(answering(success)).await.expect("grpc-status is 0");
    }
}

#[tokio::test]
async fn a_status_wins_over_the_encoding_of_an_answer_without_a_message() {
    let denied = || trailers(&[("grpc-status", b"7"), ("grpc-message", b"no")]);
    let found = failure(answering(move || (encoded("gzip"), vec![denied()]))).await;
    let expected = (
        Code::PermissionDenied,
        Some(Origin::Server),
        "no".to_owned(),
    );
    assert_eq!(found, expected);
}

#[tokio::test]
async fn an_answer_beyond_the_limit_is_resource_exhausted() {
    let answer = || {
        (
            grpc(),
            vec![Ok(Frame::data(Bytes::from_static(&[0, 0x00, 0x40, 0, 1])))],
        )
    };
    let (code, origin, text) = failure(answering(answer)).await;
    assert_eq!(
        (code, origin),
        (Code::ResourceExhausted, Some(Origin::Client))
    );
    assert!(text.contains("4194305 bytes"), "{text}");
}

#[tokio::test]
async fn a_request_beyond_the_limit_is_resource_exhausted_and_stays_here() {
    let stack = service_fn(
        |_: Request<Body>| -> std::future::Pending<Result<Response<Body>, Infallible>> {
            panic!("nothing is sent")
        },
    );
    let client = OperationsClient::new(stack).max_encoding_message_size(13);
    let status = client.cancel_operation(NAME).await.expect_err("14 bytes");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "the request is 14 bytes: the limit is 13");
}

#[tokio::test]
async fn an_interceptors_refusal_is_the_clients() {
    let refuse = |_: tonic::Request<()>| -> Result<tonic::Request<()>, Status> {
        let mut status = Status::permission_denied("not on Sundays");
        status
            .metadata_mut()
            .insert("x-day", "Sunday".parse().expect("legal"));
        Err(status)
    };
    let never = service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
    let status = cancel(InterceptedService::new(never, refuse))
        .await
        .expect_err("refused");
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "not on Sundays")
    );
    assert_eq!(status.metadata().get("x-day").expect("is there"), "Sunday");
    assert_eq!(status.origin(), Some(Origin::Client));
}

#[tokio::test]
async fn a_stack_that_fails_is_classified_wherever_it_fails() {
    let reset = || BoxError::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
    let unavailable = |text: &str| (Code::Unavailable, Some(Origin::Transport), text.to_owned());

    let when_called = service_fn(move |_: Request<Body>| ready(Err::<Response<Body>, _>(reset())));
    assert_eq!(failure(when_called).await, unavailable("connection reset"));

    let within_the_body = answering(move || (grpc(), vec![Err(reset())]));
    assert_eq!(
        failure(within_the_body).await,
        unavailable("connection reset")
    );

    let (buffered, worker) = tower::buffer::Buffer::pair(when_called, 1);
    drop(worker); // as when the runtime of a channel has ended
    let when_readied = tower::util::MapErr::new(buffered, BoxError::from);
    assert_eq!(
        failure(when_readied).await,
        unavailable("buffer's worker closed unexpectedly")
    );
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_the_stack_is_deadline_exceeded() {
    let never = service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
    let timed = ServiceBuilder::new()
        .timeout(Duration::from_secs(1))
        .service(never);
    let (code, origin, _) = failure(timed).await;
    assert_eq!(
        (code, origin),
        (Code::DeadlineExceeded, Some(Origin::Client))
    );
    // As tonic's Channel says it.
    let tonics =
        service_fn(|_: Request<Body>| ready(Err::<Response<Body>, _>(tonic::TimeoutExpired(()))));
    let (code, origin, _) = failure(tonics).await;
    assert_eq!(
        (code, origin),
        (Code::DeadlineExceeded, Some(Origin::Client))
    );
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_call_wherever_it_hangs() {
    let in_call = service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
    let client = OperationsClient::new(in_call).timeout(Duration::from_secs(2));
    let status = client
        .cancel_operation(NAME)
        .await
        .expect_err("never answers");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::DeadlineExceeded, Some(Origin::Client))
    );
    assert_eq!(
        status.message(),
        "no answer to CancelOperation within 2s: waited 2s for the answer"
    );

    let in_body = service_fn(|_: Request<Body>| {
        let body = StreamBody::new(tokio_stream::pending::<Result<Frame<Bytes>, Infallible>>());
        ready(Ok::<_, Infallible>(grpc().map(|()| body)))
    });
    let mut request: tonic::Request<CancelOperationRequest> = NAME.into_request();
    request.set_timeout(Duration::from_millis(30));
    let status = OperationsClient::new(in_body)
        .cancel_operation(request)
        .await;
    let status = status.expect_err("never ends");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::DeadlineExceeded, Some(Origin::Client))
    );
    assert_eq!(
        status.message(),
        "no answer to CancelOperation within 30ms: waited 30ms for the answer"
    );
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_after_the_deadline_is_deadline_exceeded_and_before_it_is_not() {
    let cancelled = |after: Duration| {
        service_fn(move |_: Request<Body>| async move {
            tokio::time::sleep(after).await;
            let head = head(
                200,
                &[("grpc-status", b"1"), ("grpc-message", b"Timeout expired")],
            );
            Ok::<_, Infallible>(head.map(|()| Body::empty()))
        })
    };
    let timeout = Duration::from_secs(1);
    let late = OperationsClient::new(cancelled(timeout)).timeout(timeout);
    let status = late.cancel_operation(NAME).await.expect_err("late");
    assert_eq!(status.code(), Code::DeadlineExceeded);

    let early = OperationsClient::new(cancelled(timeout / 2)).timeout(timeout);
    let status = early.cancel_operation(NAME).await.expect_err("cancelled");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::Cancelled, Some(Origin::Server))
    );
}

#[test]
fn a_deadline_outside_a_runtime_is_refused_without_a_panic() {
    let stack = answering(|| (grpc(), vec![message(), trailers(&[("grpc-status", b"0")])]));
    let client = OperationsClient::new(stack);
    futures_executor::block_on(client.cancel_operation(NAME)).expect("no timer is needed");
    let client = client.timeout(Duration::from_secs(1));
    let status = futures_executor::block_on(client.cancel_operation(NAME)).expect_err("no runtime");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(
        status.message(),
        "a call with a timeout needs a tokio runtime: run it within one"
    );
}

fn bytes_of_a_header() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![0x20..0x7f_u8, 0x80..=0xff_u8], 0..30)
}

proptest! {
    #[test]
    fn no_headers_or_trailers_panic(
        http in 100..1000_u16,
        status in prop_oneof![bytes_of_a_header(), "[0-9]{1,2}".prop_map(String::into_bytes)],
        message_bytes in bytes_of_a_header(),
        details in bytes_of_a_header(),
        other in bytes_of_a_header(),
        content_type in prop_oneof![bytes_of_a_header(), Just(b"application/grpc".to_vec())],
        in_trailers: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let code = Code::from_bytes(&status);
        let stack = answering(move || {
            let of_status: &[(&str, &[u8])] = &[
                ("grpc-status", &status),
                ("grpc-message", &message_bytes),
                ("grpc-status-details-bin", &details),
                ("x-other-bin", &other),
            ];
            let mut head = head(http, &[("content-type", &content_type), ("grpc-encoding", &other)]);
            if in_trailers {
                (head, vec![message(), trailers(of_status)])
            } else {
                head.headers_mut().extend(headers(of_status));
                (head, vec![])
            }
        });
        let result = runtime.block_on(cancel(stack));
        if let Err(status) = &result {
            prop_assert!(status.origin().is_some());
            let _ = (format!("{status} {status:?}"), status.detail::<longrunning::proto::rpc::Help>());
        }
        if !in_trailers && code != Code::Ok {
            let status = result.expect_err("the server said so");
            prop_assert_eq!((status.code(), status.origin()), (code, Some(Origin::Server)));
        }
    }
}

//! The response of a unary call: its one message, or its status.
//!
//! tonic reads a status out of a response too, but it panics on details that are not base64, drops
//! the code where the message is not UTF-8, and does not distinguish a server's status from its own.
//! So every status is created here.

use std::{future::poll_fn, mem, pin::pin};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use percent_encoding::percent_decode;
use tonic::{Code, Status, metadata::MetadataMap};
use tower::BoxError;

use super::message::{Message, Received};
use crate::{
    status::{
        CallStatusExt as _, Delivery, Origin, classify, mark, retry, with_delivery, with_retry,
    },
    transport::ResponseBody,
};

/// Receives the one message of a response.
///
/// # Errors
///
/// - The server's status, if it is not OK.
/// - `INTERNAL`: the message is missing, incomplete, followed by more data, or compressed with an
///   encoding that the client does not accept.
/// - `RESOURCE_EXHAUSTED`: the message is larger than the limit.
/// - `UNKNOWN`, or the code for the HTTP status: the response has no `grpc-status`.
/// - The error of the body, if it cannot be read.
///
/// An error that follows Response-Headers is not retried, see
/// [gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md#when-retries-are-valid).
pub(crate) fn message<B>(
    mut response: Response<B>,
    limit: usize,
) -> impl Future<Output = Result<Received, Status>>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    let answer = Answer::begin(&mut response, limit);
    let body = response.into_body();
    async move {
        let mut answer = answer?;
        let mut body = pin!(body);
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            let frame = frame.map_err(|error| answer.failed(classify(error.into())))?;
            match frame.into_data() {
                Ok(data) => answer.push(data)?,
                Err(frame) => {
                    answer.trailers(frame.into_trailers().unwrap_or_default())?;
                    break;
                }
            }
        }
        answer.end()
    }
}

/// Returns the message of a response that the default transport has received completely.
///
/// Returns the same errors as [`message`].
pub(crate) fn complete(
    mut response: Response<ResponseBody>,
    limit: usize,
) -> Result<Received, Status> {
    let mut answer = Answer::begin(&mut response, limit)?;
    let (data, trailers) = response.into_body().into_complete();
    answer.push(data)?;
    if let Some(trailers) = trailers {
        answer.trailers(trailers)?;
    }
    answer.end()
}

/// A response that is being received.
struct Answer {
    head: Head,
    message: Message,
    /// Whether the response began with the Response-Headers of gRPC, after which the call is not retried.
    is_committed: bool,
}

impl Answer {
    /// Reads the head of a response.
    fn begin<B: http_body::Body>(response: &mut Response<B>, limit: usize) -> Result<Self, Status> {
        let is_trailers_only = response.body().is_end_stream();
        let head = Head::of(response).map_err(|status| {
            let is_committed = !is_trailers_only && status.origin() == Some(Origin::Server);
            committed(status, is_committed)
        })?;
        Ok(Self {
            is_committed: !is_trailers_only && head.not_grpc.is_none(),
            head,
            message: Message::new(limit),
        })
    }

    fn push(&mut self, data: Bytes) -> Result<(), Status> {
        let pushed = self.message.push(data);
        pushed.map_err(|status| self.failed(self.head.not_grpc.clone().unwrap_or(status)))
    }

    fn trailers(&mut self, mut trailers: HeaderMap) -> Result<(), Status> {
        if let Some(status) = take_status(&mut trailers) {
            status.map_err(|status| {
                let headers = mem::take(&mut self.head.headers);
                self.failed(with_head(status, headers))
            })?;
            self.head.is_ok = true;
        }
        Ok(())
    }

    fn end(self) -> Result<Received, Status> {
        let result = if self.head.is_ok {
            self.message.end(&self.head.headers)
        } else {
            Err(self.head.not_grpc.unwrap_or_else(without_status))
        };
        result.map_err(|status| after_head(status, self.is_committed))
    }

    fn failed(&self, status: Status) -> Status {
        after_head(status, self.is_committed)
    }
}

/// Returns the status of a call that failed after the head of its response was received.
fn after_head(status: Status, is_committed: bool) -> Status {
    committed(with_delivery(status, Delivery::Answered), is_committed)
}

/// Marks the status of a call as one that is not retried, if Response-Headers have arrived.
fn committed(status: Status, is_committed: bool) -> Status {
    if is_committed && retry(&status).is_none() {
        with_retry(status, false)
    } else {
        status
    }
}

/// The head of a response.
struct Head {
    headers: HeaderMap,
    /// Whether it has a `grpc-status`, which is OK.
    is_ok: bool,
    /// The status to use if the trailers have no `grpc-status`, because the HTTP status is not 200.
    not_grpc: Option<Status>,
}

impl Head {
    /// Reads the head of a response.
    ///
    /// # Errors
    ///
    /// The status in the head, if it is not OK, or the status for a response that is not gRPC.
    fn of<B>(response: &mut Response<B>) -> Result<Self, Status> {
        // Where an interceptor refuses, or a server runs in process, the status itself is among the
        // extensions. The one in the headers has no source.
        let extension = response.extensions().get::<Status>();
        if let Some(status) = extension.filter(|status| status.code() != Code::Ok) {
            let (origin, delivery) = (Origin::Client, Delivery::MaybeSent);
            return Err(mark(status.clone(), origin, delivery));
        }
        let is_ok = take_status(response.headers_mut()).transpose()?.is_some();
        let http = response.status();
        let content_type = response.headers().get(CONTENT_TYPE);
        let is_grpc =
            content_type.is_none_or(|value| value.as_bytes().starts_with(b"application/grpc"));
        let is_valid = is_ok || (http == StatusCode::OK && is_grpc);
        let not_grpc = (!is_valid).then(|| not_grpc(http, content_type));
        match not_grpc {
            Some(status) if !is_grpc => Err(status),
            not_grpc => Ok(Self {
                headers: mem::take(response.headers_mut()),
                is_ok,
                not_grpc,
            }),
        }
    }
}

fn without_status() -> Status {
    mark(
        Status::unknown("the answer ended without a grpc-status"),
        Origin::Transport,
        Delivery::Answered,
    )
}

/// The status of an HTTP response that is not one of gRPC, see
/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>.
fn not_grpc(http: StatusCode, content_type: Option<&HeaderValue>) -> Status {
    let code = match http {
        StatusCode::BAD_REQUEST | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Code::Internal,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        _ => Code::Unknown,
    };
    let what = match content_type {
        Some(value) => format!("content-type {value:?}"),
        None => "no content-type".to_owned(),
    };
    let hint = match http {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            "the request's headers are larger than the server accepts"
        }
        _ => "is the endpoint a gRPC server?",
    };
    let http = http.as_u16();
    let message = format!("HTTP status {http} and {what}, without a grpc-status: {hint}");
    mark(
        Status::new(code, message),
        Origin::Transport,
        Delivery::Answered,
    )
}

/// Adds the metadata that came with the head of the answer. They stand first, as with tonic, whose
/// stub forgets those of the same name in the trailers.
fn with_head(mut status: Status, mut head: HeaderMap) -> Status {
    let trailers = mem::take(status.metadata_mut()).into_headers();
    for (name, value) in &trailers {
        // It fails beyond what a map can hold.
        let _ = head.try_append(name, value.clone());
    }
    *status.metadata_mut() = MetadataMap::from_headers(head);
    status
}

/// Details may come with padding or without it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads the server's status out of headers or trailers, if it is there.
///
/// Whatever the bytes, what can be understood of them is kept.
fn take_status(headers: &mut HeaderMap) -> Option<Result<(), Status>> {
    let code = Code::from_bytes(headers.get(Status::GRPC_STATUS)?.as_bytes());
    if code == Code::Ok {
        return Some(Ok(()));
    }
    headers.remove(Status::GRPC_STATUS);
    let message = headers.remove(Status::GRPC_MESSAGE);
    let details = headers.remove(Status::GRPC_STATUS_DETAILS);
    let message = message
        .as_ref()
        .map_or(&b""[..], |message| message.as_bytes());
    let message = percent_decode(message).decode_utf8_lossy().into_owned();
    let details = details
        .and_then(|details| BASE64.decode(details).ok())
        .unwrap_or_default();
    let metadata = MetadataMap::from_headers(mem::take(headers));
    let status = Status::with_details_and_metadata(code, message, details.into(), metadata);
    Some(Err(mark(status, Origin::Server, Delivery::Answered)))
}

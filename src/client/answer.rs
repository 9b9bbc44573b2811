//! What a stack answers: it becomes the one message of a success, or a truthful status.
//!
//! tonic reads a status out of a response too, but it panics on details that are not base64, drops
//! the code where the message is not UTF-8, and does not tell a server's status from one of its own
//! making. So every status is made here.

use std::{future::poll_fn, mem, pin::pin};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use percent_encoding::percent_decode;
use tonic::{Code, Status, metadata::MetadataMap};
use tower::BoxError;

use crate::status::{Origin, classify, local, mark};

const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// Reads an answer to its end.
///
/// # Errors
///
/// The server's status, if it is not OK. `INTERNAL`: there is no message, or only a part of it, or
/// it is compressed, which the client does not accept. `RESOURCE_EXHAUSTED`: it is larger
/// than the limit. `UNKNOWN` and others: the answer has no status.
pub(crate) async fn message<B>(mut response: Response<B>, limit: usize) -> Result<Bytes, Status>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    let mut ended = begins(&mut response)?;
    let head = mem::take(response.headers_mut());
    let mut message = Message::new(limit, head.get(GRPC_ENCODING).cloned());
    let mut body = pin!(response.into_body());
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|error| classify(error.into()))?;
        match frame.into_data() {
            Ok(data) => message.push(data)?,
            Err(frame) => {
                let mut trailers = frame.into_trailers().unwrap_or_default();
                take_status(&mut trailers)
                    .ok_or_else(cut_off)?
                    .map_err(|status| with_head(status, head))?;
                ended = true;
                break;
            }
        }
    }
    match ended {
        true => message.end(),
        false => Err(cut_off()),
    }
}

/// Looks at the head of an answer; returns whether the status, which is OK, has come with it.
fn begins<B>(response: &mut Response<B>) -> Result<bool, Status> {
    // Where an interceptor refuses, or a server runs in process, the status itself comes along:
    // through the headers it would lose its source.
    if let Some(status) = response
        .extensions()
        .get::<Status>()
        .filter(|status| status.code() != Code::Ok)
    {
        return Err(mark(status.clone(), Origin::Client));
    }
    let ended = match take_status(response.headers_mut()) {
        Some(status) => status.map(|()| true)?,
        None => false,
    };
    let headers = response.headers();
    let content_type = headers.get(CONTENT_TYPE);
    let is_grpc =
        content_type.is_none_or(|value| value.as_bytes().starts_with(b"application/grpc"));
    if !ended && (response.status() != StatusCode::OK || !is_grpc) {
        let what = match content_type {
            Some(value) => format!("content-type {value:?}"),
            None => "no content-type".to_owned(),
        };
        let hint = match response.status() {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                "the request's headers are larger than the server accepts"
            }
            _ => "is the endpoint a gRPC server?",
        };
        return Err(without_status(
            response.status(),
            format!(
                "HTTP status {} and {what}, without a grpc-status: {hint}",
                response.status().as_u16()
            ),
        ));
    }
    Ok(ended)
}

/// The message of an answer, as it comes in. What comes after it is passed over.
struct Message {
    limit: usize,
    /// The `grpc-encoding` of the answer. It applies only to a message whose Compressed-Flag is 1,
    /// see [Length-Prefixed-Message](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
    encoding: Option<HeaderValue>,
    /// The first piece, which is commonly all.
    first: Bytes,
    /// All of it, once there are more.
    joined: BytesMut,
}

impl Message {
    /// A flag that says whether the message is compressed, and its length.
    const PREFIX: usize = 5;

    fn new(limit: usize, encoding: Option<HeaderValue>) -> Self {
        Self {
            limit,
            encoding,
            first: Bytes::new(),
            joined: BytesMut::new(),
        }
    }

    fn push(&mut self, data: Bytes) -> Result<(), Status> {
        if self.bytes().is_empty() {
            self.first = data;
        } else if !self.is_whole()? {
            self.joined.extend_from_slice(&mem::take(&mut self.first));
            self.joined.extend_from_slice(&data);
        }
        // Too long a message ends here, before it is taken in.
        self.is_whole().map(drop)
    }

    fn bytes(&self) -> &[u8] {
        match self.joined.is_empty() {
            true => &self.first,
            false => &self.joined,
        }
    }

    fn is_whole(&self) -> Result<bool, Status> {
        let length = self.length()?;
        Ok(length.is_some_and(|length| self.bytes().len() >= Self::PREFIX + length))
    }

    /// The length of the message, once its prefix is there.
    fn length(&self) -> Result<Option<usize>, Status> {
        let Some([flag, length @ ..]) = self.bytes().first_chunk::<{ Self::PREFIX }>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        match flag {
            0 if length > self.limit => Err(local(
                Code::ResourceExhausted,
                format!(
                    "the answer is {length} bytes: the limit is {} bytes",
                    self.limit
                ),
            )),
            0 => Ok(Some(length)),
            1 => Err(unreadable(match &self.encoding {
                Some(encoding) => format!(
                    "its message is compressed with {encoding:?}, but the client does not accept compressed messages"
                ),
                None => {
                    "its message is compressed, but the header grpc-encoding is missing".to_owned()
                }
            })),
            _ => Err(unreadable(format!("it begins with the byte {flag}"))),
        }
    }

    fn end(self) -> Result<Bytes, Status> {
        let length = match (self.length()?, self.is_whole()?) {
            (Some(length), true) => length,
            _ if self.bytes().is_empty() => return Err(unreadable("it has no message")),
            _ => return Err(unreadable("it ended within its message")),
        };
        let mut message = match self.joined.is_empty() {
            true => self.first,
            false => self.joined.freeze(),
        };
        message.advance(Self::PREFIX);
        message.truncate(length);
        Ok(message)
    }
}

/// The status of a success whose answer is not what it should be.
pub(crate) fn unreadable(why: impl std::fmt::Display) -> Status {
    local(Code::Internal, format!("cannot read the answer: {why}"))
}

fn cut_off() -> Status {
    without_status(
        StatusCode::OK,
        "the answer ended without a grpc-status".to_owned(),
    )
}

/// The status of an HTTP response that is not one of gRPC, see
/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>.
fn without_status(http: StatusCode, message: String) -> Status {
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
    mark(Status::new(code, message), Origin::Transport)
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
    Some(Err(mark(status, Origin::Server)))
}

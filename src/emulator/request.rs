//! Checks of a request, before the generated server sees it.
//!
//! tonic's generated server ignores the method, the content-type and whatever follows the first
//! message, and it refuses an uncompressed message whose `grpc-encoding` it does not support. For a
//! message that is too large its code is OUT_OF_RANGE, and for an unknown path it sends no message.
//! The checks here follow
//! [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests) and
//! [compression](https://github.com/grpc/grpc/blob/master/doc/compression.md) instead. The
//! documentation of the module [`emulator`](super) lists them.

use std::{fmt, pin::pin};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method as HttpMethod, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt as _, Full};
use tonic::{
    Code, Status,
    body::Body,
    metadata::{MetadataMap, MetadataValue},
};

use super::Method;
use crate::{deadline::timeout_in, proto::operations_server::SERVICE_NAME};

/// Checks a request and collects its message.
///
/// At most one message of the largest size is buffered, plus one DATA frame. Once a request is
/// rejected, the rest of its body is not read. The future is safe to drop at any await.
pub(super) async fn check<B>(request: Request<B>) -> Result<Request<Full<Bytes>>, Rejection>
where
    B: HttpBody<Data = Bytes, Error: fmt::Display>,
{
    let (mut head, body) = request.into_parts();
    if head.method != HttpMethod::POST {
        return Err(Rejection::Method);
    }
    check_content_type(&head.headers)?;
    timeout_in(&head.headers).map_err(|status| {
        let text = status.message().to_owned();
        Rejection::Http(StatusCode::BAD_REQUEST, text)
    })?;
    check_path(head.uri.path())?;
    // tonic would refuse an unsupported encoding even if the message is not compressed.
    let encoding = head.headers.remove(GRPC_ENCODING);
    let message = collect(body, encoding.as_ref()).await?;
    if let Some(encoding) = encoding {
        head.extensions.insert(Encoding(encoding));
    }
    Ok(Request::from_parts(head, Full::new(message)))
}

/// Why a request is rejected.
#[derive(Debug)]
pub(super) enum Rejection {
    /// It is not a POST.
    Method,
    /// It is not a valid gRPC request: the answer is an HTTP status and a text.
    Http(StatusCode, String),
    /// The answer is a gRPC status in the form
    /// [Trailers-Only](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses).
    Grpc(Status),
}

impl Rejection {
    pub(super) fn into_response(self) -> Response<Body> {
        let (status, name, value, body) = match self {
            Self::Grpc(status) => return status.into_http(),
            // Without a text: a response to HEAD must not have a body.
            Self::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                ALLOW,
                HeaderValue::from_static("POST"),
                Body::empty(),
            ),
            Self::Http(status, text) => (
                status,
                CONTENT_TYPE,
                HeaderValue::from_static("text/plain; charset=utf-8"),
                Body::new(Full::new(Bytes::from(text))),
            ),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().insert(name, value);
        response
    }
}

impl From<Status> for Rejection {
    fn from(status: Status) -> Self {
        Self::Grpc(status)
    }
}

/// The `grpc-encoding` of a request, which is hidden from the generated server.
#[derive(Clone)]
pub(super) struct Encoding(HeaderValue);

impl Encoding {
    /// Puts the header back into the metadata of a call.
    pub(super) fn restore(self, metadata: &mut MetadataMap) {
        metadata.as_mut().insert(GRPC_ENCODING, self.0);
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Rejection> {
    let unsupported = |text| Rejection::Http(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
    let Some(value) = headers.get(CONTENT_TYPE) else {
        let text = format!("content-type is missing, expected {GRPC:?}");
        return Err(unsupported(text));
    };
    let media_type = value.as_bytes().split(|byte| *byte == b';').next();
    let media_type = media_type.unwrap_or_default().trim_ascii_end();
    let suffix = media_type
        .split_at_checked(GRPC.len())
        .filter(|(start, _)| start.eq_ignore_ascii_case(GRPC.as_bytes()))
        .map(|(_, suffix)| suffix);
    match suffix {
        Some(b"") => Ok(()),
        Some(suffix) if suffix.eq_ignore_ascii_case(b"+proto") => Ok(()),
        // A gRPC client, which can read a status, but its messages are not Protocol Buffers.
        Some([b'+', ..]) => Err(Rejection::Grpc(Status::unimplemented(format!(
            "content-type {value:?} is not supported, expected {GRPC:?} or \"{GRPC}+proto\""
        )))),
        // Also another protocol whose name has the same prefix, such as gRPC-Web.
        _ => {
            let text = format!("content-type {value:?} is not served, expected {GRPC:?}");
            Err(unsupported(text))
        }
    }
}

fn check_path(path: &str) -> Result<(), Status> {
    let name = path.strip_prefix('/').and_then(|path| {
        let name = path.strip_prefix(SERVICE_NAME)?;
        name.strip_prefix('/')
    });
    match name {
        Some(name) if Method::ALL.iter().any(|method| method.name() == name) => Ok(()),
        _ => Err(Status::unimplemented(format!("unknown method {path}"))),
    }
}

/// Collects the one message of a request, with its prefix.
async fn collect<B>(body: B, encoding: Option<&HeaderValue>) -> Result<Bytes, Status>
where
    B: HttpBody<Data = Bytes, Error: fmt::Display>,
{
    let mut body = pin!(body);
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // Nobody reads this status: the stream is closed already.
        let frame = frame.map_err(|error| Status::cancelled(format!("request reset: {error}")))?;
        // Requests have no trailers in gRPC.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        bytes.extend_from_slice(&data);
        let length = message_length(&bytes, encoding)?;
        if length.is_some_and(|length| bytes.len() > PREFIX + length) {
            return Err(Status::internal(
                "the request has bytes after its message, expected one message",
            ));
        }
    }
    match (bytes.len(), message_length(&bytes, encoding)?) {
        (0, _) => Err(Status::internal(
            "the request has no message, expected one message",
        )),
        (received, None) => Err(Status::internal(format!(
            "the request ends after {received} of the {PREFIX} bytes of its message's prefix"
        ))),
        (received, Some(length)) if received < PREFIX + length => {
            let received = received - PREFIX;
            Err(Status::internal(format!(
                "the request ends after {received} of the {length} bytes of its message"
            )))
        }
        _ => Ok(bytes.freeze()),
    }
}

/// Checks the prefix of a message as far as it has arrived, and returns the length in it once it
/// is complete.
fn message_length(bytes: &[u8], encoding: Option<&HeaderValue>) -> Result<Option<usize>, Status> {
    let Some(flag) = bytes.first() else {
        return Ok(None);
    };
    check_compressed_flag(*flag, encoding)?;
    let Some([_, length @ ..]) = bytes.first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_MESSAGE {
        return Err(Status::resource_exhausted(format!(
            "the request message is {length} bytes, the limit is {MAX_MESSAGE} bytes"
        )));
    }
    Ok(Some(length))
}

fn check_compressed_flag(flag: u8, encoding: Option<&HeaderValue>) -> Result<(), Status> {
    match (flag, encoding) {
        // A flag of 0 means that the message is not compressed, whatever the header.
        (0, _) => Ok(()),
        (1, None) => Err(Status::internal(
            "the request message is compressed, but the header grpc-encoding is missing",
        )),
        (1, Some(encoding)) if encoding == IDENTITY => Err(Status::internal(format!(
            "the request message is compressed, but its grpc-encoding is {IDENTITY:?}"
        ))),
        (1, Some(encoding)) => {
            let mut metadata = MetadataMap::new();
            let accepted = MetadataValue::from_static(IDENTITY);
            metadata.insert("grpc-accept-encoding", accepted);
            let message = format!(
                "the request message is compressed with {encoding:?}, but the server accepts \
                 only {IDENTITY:?}"
            );
            Err(Status::with_metadata(
                Code::Unimplemented,
                message,
                metadata,
            ))
        }
        _ => Err(Status::internal(format!(
            "the request message has the Compressed-Flag {flag}, expected 0 or 1"
        ))),
    }
}

const GRPC: &str = "application/grpc";
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const IDENTITY: &str = "identity";

/// The maximum size of a message in bytes, which is the default of most gRPC servers.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// The Compressed-Flag and the length before a message, in bytes.
const PREFIX: usize = 5;

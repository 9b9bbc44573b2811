//! One attempt of a call, as gRPC frames it.
//!
//! tonic's generated stub does it too, but any call is a stream to it: what it boxes and buffers for
//! that is a sixth of a call's instructions, and most of the memory that it takes. See `bench`.

use std::future::poll_fn;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{
    HeaderName, HeaderValue, Method, Version,
    header::{CONTENT_TYPE, TE},
    uri::PathAndQuery,
};
use http_body_util::Full;
use prost::Message as _;
use tonic::{GrpcMethod, Request, Status, body::Body, metadata::MetadataMap};

use super::{Stack, answer, rpc::Rpc};
use crate::status::classify;

/// Sends a request, and reads the answer to its end.
///
/// Its last headers are added when the stack is ready: they say what is so by then.
pub(crate) async fn call<R: Rpc, S: Stack>(
    mut stack: S,
    mut request: Request<R>,
    limit: usize,
    last_headers: impl FnOnce(&mut MetadataMap) -> Result<(), Status>,
) -> Result<R::Answer, Status> {
    poll_fn(|cx| stack.poll_ready(cx))
        .await
        .map_err(|error| classify(error.into()))?;
    last_headers(request.metadata_mut())?;
    let response = stack
        .call(framed(request))
        .await
        .map_err(|error| classify(error.into()))?;
    let message = answer::message(response, limit).await?;
    R::Answer::decode(message).map_err(answer::unreadable)
}

/// What the protocol itself says in headers: not for the caller to set.
const RESERVED: [HeaderName; 3] = [
    Status::GRPC_STATUS,
    Status::GRPC_MESSAGE,
    HeaderName::from_static("grpc-message-type"),
];

fn framed<R: Rpc>(request: Request<R>) -> http::Request<Body> {
    let (metadata, mut extensions, message) = request.into_parts();
    let mut headers = metadata.into_headers();
    for name in &RESERVED {
        headers.remove(name);
    }
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    extensions.insert(GrpcMethod::new("google.longrunning.Operations", R::METHOD));
    let mut request = http::Request::new(Body::new(Full::new(prefixed(&message))));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = PathAndQuery::from_static(R::PATH).into();
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    *request.extensions_mut() = extensions;
    request
}

/// A message, not compressed, after its length.
fn prefixed<R: Rpc>(message: &R) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(1 + size_of::<u32>() + length);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

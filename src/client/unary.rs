//! A call, and each attempt of it, as gRPC frames them.
//!
//! tonic's generated stub does it too, but any call is a stream to it: what it boxes and buffers for
//! that is most of the memory that a call takes. See `bench`.

use std::{future::poll_fn, marker::PhantomData};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Version,
    header::{AUTHORIZATION, CONTENT_TYPE, TE},
    uri::PathAndQuery,
};
use http_body_util::Full;
use prost::Message as _;
use tokio::time::Instant;
use tonic::{GrpcMethod, Request, Status, body::Body};

use super::{
    Stack, answer,
    header::{self, REQUEST_PARAMS, Template},
    rpc::Rpc,
};
use crate::{
    auth::AuthInterceptor,
    deadline::{self, GRPC_TIMEOUT},
    status::classify,
    transport::Unary,
};

/// What all attempts of a call have in common.
pub(crate) struct Call<R> {
    /// The caller's own.
    headers: HeaderMap,
    template: Template,
    extensions: Extensions,
    routing: Option<HeaderValue>,
    message: Bytes,
    rpc: PhantomData<fn(R)>,
}

/// What the protocol itself says in headers: not for the caller to set.
const RESERVED: [HeaderName; 5] = [
    TE,
    CONTENT_TYPE,
    Status::GRPC_STATUS,
    Status::GRPC_MESSAGE,
    HeaderName::from_static("grpc-message-type"),
];

impl<R: Rpc> Call<R> {
    pub(crate) fn new(
        request: Request<R>,
        routing: Option<HeaderValue>,
        template: Template,
    ) -> Self {
        let (metadata, extensions, message) = request.into_parts();
        let mut headers = metadata.into_headers();
        for name in &RESERVED {
            headers.remove(name);
        }
        Self {
            headers,
            template,
            extensions,
            routing,
            message: prefixed(&message),
            rpc: PhantomData,
        }
    }

    /// The headers of the caller, without what is not for the caller to set.
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Sends the request, and reads the answer to its end.
    ///
    /// `grpc-timeout` and the credentials are added once the stack is ready.
    pub(crate) async fn attempt<S: Stack>(
        &self,
        before: u32,
        mut stack: S,
        deadline: Option<Instant>,
        auth: Option<&AuthInterceptor>,
        limit: usize,
    ) -> Result<R::Answer, Status> {
        poll_fn(|cx| stack.poll_ready(cx))
            .await
            .map_err(|error| classify(error.into()))?;
        let mut headers = self.headers_of_attempt(before);
        match deadline {
            Some(deadline) => {
                deadline::set_remaining(&mut headers, deadline, self.template.timeout_cache());
            }
            None => drop(headers.remove(GRPC_TIMEOUT)),
        }
        let credentials_expire = match auth {
            Some(auth) => auth.sign(&mut headers)?,
            None => None,
        };
        if auth.is_none() && !self.headers.contains_key(AUTHORIZATION) {
            headers.remove(AUTHORIZATION);
        }
        header::bounded_in_all(&headers)?;
        let unary = Unary {
            limit,
            credentials_expire,
        };
        let response = stack
            .call(self.framed(headers, unary))
            .await
            .map_err(|error| classify(error.into()))?;
        let message = answer::message(response, limit).await?;
        R::Answer::decode(message).map_err(answer::unreadable)
    }

    /// The headers of an attempt, which says how many were before, see
    /// [gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md#exposed-retry-metadata).
    fn headers_of_attempt(&self, before: u32) -> HeaderMap {
        let mut headers = self.template.headers(&self.headers);
        if !self.headers.contains_key(REQUEST_PARAMS) {
            match &self.routing {
                Some(routing) => drop(headers.insert(REQUEST_PARAMS, routing.clone())),
                None => drop(headers.remove(REQUEST_PARAMS)),
            }
        }
        if before > 0 {
            headers.insert("grpc-previous-rpc-attempts", before.into());
        }
        headers
    }

    fn framed(&self, headers: HeaderMap, unary: Unary) -> http::Request<Body> {
        let mut extensions = self.extensions.clone();
        extensions.insert(unary);
        // As the generated stub does, for layers of the stack.
        extensions.insert(GrpcMethod::new("google.longrunning.Operations", R::METHOD));
        let mut request = http::Request::new(Body::new(Full::new(self.message.clone())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = PathAndQuery::from_static(R::PATH).into();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers;
        *request.extensions_mut() = extensions;
        request
    }
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

//! The request and the response of a unary call, as gRPC frames them.
//!
//! tonic's generated stub does it too, but any call is a stream to it: what it boxes and buffers for
//! that is most of the memory that a call takes. See `bench`.

use std::{marker::PhantomData, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Version,
    header::{AUTHORIZATION, CONTENT_TYPE, TE},
    uri::PathAndQuery,
};
use http_body::Body as _;
use http_body_util::Full;
use prost::Message as _;
use tonic::{GrpcMethod, Request, Status, body::Body};

use super::{
    GrpcStack, answer,
    header::{ACCEPT_ENCODING, REQUEST_PARAMS, Template},
    message,
    rpc::Rpc,
};
use crate::{
    auth::{AuthInterceptor, SentToken},
    deadline::{self, GRPC_TIMEOUT},
    retry::Attempt,
    status::classify,
    transport::{Progress, Unary},
};

/// What all attempts of a call have in common.
pub(crate) struct Call<R> {
    /// The caller's metadata.
    headers: HeaderMap,
    template: Template,
    extensions: Extensions,
    routing: Option<HeaderValue>,
    message: Bytes,
    rpc: PhantomData<fn(R)>,
}

/// Headers of the protocol itself, which the caller's metadata cannot set.
const RESERVED: [HeaderName; 8] = [
    TE,
    CONTENT_TYPE,
    GRPC_TIMEOUT,
    ACCEPT_ENCODING,
    HeaderName::from_static("grpc-encoding"),
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
        if !headers.is_empty() {
            for name in &RESERVED {
                headers.remove(name);
            }
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

    /// Returns the caller's metadata, without the headers of the protocol itself.
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns the request of an attempt, and the token that it carries. Called when the stack is ready,
    /// because it adds `grpc-timeout` and the credentials.
    ///
    /// # Errors
    ///
    /// The credentials' failure, if there is no token.
    pub(crate) fn request(
        &self,
        attempt: &Attempt,
        auth: Option<&AuthInterceptor>,
        limit: usize,
        progress: Option<&Arc<Progress>>,
    ) -> Result<(http::Request<Body>, SentToken), Status> {
        let deadline = attempt.deadline.map(|deadline| deadline.at());
        let mut headers = self.template.headers(&self.headers, deadline.is_some());
        if let Some(deadline) = deadline {
            deadline::set_remaining(&mut headers, deadline, self.template.timeout_cache());
        }
        self.set_routing(&mut headers);
        let sent = match auth {
            Some(auth) => auth.add_headers(&mut headers)?,
            None => SentToken::default(),
        };
        if auth.is_none() && !self.headers.contains_key(AUTHORIZATION) {
            headers.remove(AUTHORIZATION);
        }
        if attempt.previous > 0 {
            // See https://github.com/grpc/proposal/blob/master/A6-client-retries.md#exposed-retry-metadata
            headers.insert("grpc-previous-rpc-attempts", attempt.previous.into());
        }
        let unary = Unary {
            limit,
            credentials_expire: sent.expires,
            deadline,
            is_retry: attempt.previous > 0 || attempt.is_resent,
            progress: progress.cloned(),
        };
        Ok((self.framed(headers, unary), sent))
    }

    /// Sends a request over a stack that is ready, and receives the response.
    pub(crate) async fn exchange<S: GrpcStack>(
        &self,
        mut stack: S,
        request: http::Request<Body>,
        limit: usize,
        progress: Option<&Progress>,
    ) -> Result<R::Answer, Status> {
        if let Some(progress) = progress {
            progress.given_to_stack();
        }
        let response = stack.call(request).await;
        let response = response.map_err(|error| classify(error.into()))?;
        if let Some(progress) = progress
            && !response.body().is_end_stream()
        {
            progress.commit();
        }
        let answer = answer::message(response, limit).await?;
        if let Some(progress) = progress {
            progress.received(answer.received_bytes);
        }
        R::Answer::decode(answer.bytes).map_err(message::undecodable)
    }

    fn set_routing(&self, headers: &mut HeaderMap) {
        if !self.headers.contains_key(REQUEST_PARAMS) {
            match &self.routing {
                Some(routing) => drop(headers.insert(REQUEST_PARAMS, routing.clone())),
                None => drop(headers.remove(REQUEST_PARAMS)),
            }
        }
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

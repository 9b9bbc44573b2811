//! The request and the response of a unary call, as gRPC frames them.
//!
//! tonic's generated stub does it too, but any call is a stream to it: what it boxes and buffers for
//! that is most of the memory that a call takes. See `bench`.

use std::{any::Any, marker::PhantomData, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Version,
    header::{CONTENT_TYPE, TE},
    uri::PathAndQuery,
};
use http_body_util::Full;
use prost::Message as _;
use tokio::time::Instant;
use tonic::{GrpcMethod, Request, Status, body::Body};

use super::{
    GrpcStack,
    message::{self, Received},
    rpc::Rpc,
};
use crate::{
    auth::{AuthInterceptor, SentToken},
    deadline::GRPC_TIMEOUT,
    request::{ACCEPT_ENCODING, Template, UnaryHead},
    retry::Attempt,
    transport::{Progress, ResponseFuture, Transport, Unary},
};

/// What all attempts of a call have in common.
pub(crate) struct Call<R> {
    /// The head of every attempt's request, without credentials.
    head: UnaryHead,
    extensions: Extensions,
    message: Bytes,
    rpc: PhantomData<fn(R)>,
}

/// The request of an attempt.
pub(crate) struct UnaryRequest {
    pub(crate) head: UnaryHead,
    message: Bytes,
    unary: Unary,
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
        let mut metadata = metadata.into_headers();
        if !metadata.is_empty() {
            for name in &RESERVED {
                metadata.remove(name);
            }
        }
        Self {
            head: UnaryHead {
                path: R::PATH,
                template,
                metadata,
                routing,
                credentials: None,
                timeout: None,
            },
            extensions,
            message: prefixed(&message),
            rpc: PhantomData,
        }
    }

    /// Returns the caller's metadata, without the headers of the protocol itself.
    pub(crate) fn metadata(&self) -> &HeaderMap {
        &self.head.metadata
    }

    /// Returns the request of an attempt, and the token that it carries. Called when the stack is ready,
    /// because it adds the credentials.
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
    ) -> Result<(UnaryRequest, SentToken), Status> {
        let mut head = self.head.clone();
        head.timeout = attempt.deadline.map(|deadline| deadline.timeout());
        let mut sent = SentToken::default();
        if let Some(auth) = auth {
            let (headers, token) = auth.current()?;
            head.credentials = Some(headers);
            sent = token;
        }
        if attempt.previous > 0 {
            // See https://github.com/grpc/proposal/blob/master/A6-client-retries.md#exposed-retry-metadata
            let name = "grpc-previous-rpc-attempts";
            head.metadata.insert(name, attempt.previous.into());
        }
        let unary = Unary {
            limit,
            credentials_expire: sent.expires,
            deadline: attempt.deadline.map(|deadline| deadline.at()),
            is_retry: attempt.previous > 0 || attempt.is_resent,
            progress: progress.cloned(),
        };
        let message = self.message.clone();
        let request = UnaryRequest {
            head,
            message,
            unary,
        };
        Ok((request, sent))
    }

    /// Decodes the response's message.
    pub(crate) fn decode(
        &self,
        answer: Received,
        progress: Option<&Progress>,
    ) -> Result<R::Answer, Status> {
        if let Some(progress) = progress {
            progress.received(answer.received_bytes);
        }
        R::Answer::decode(answer.bytes).map_err(message::undecodable)
    }

    /// Sends a request over a stack that is ready. The default transport takes it without a boxed body or extensions.
    pub(crate) fn send<S: GrpcStack>(
        &self,
        stack: &mut S,
        request: UnaryRequest,
    ) -> PendingResponse<S::Future> {
        if let Some(progress) = &request.unary.progress {
            progress.given_to_stack();
        }
        let any: &mut dyn Any = stack;
        match any.downcast_mut::<Transport>() {
            Some(transport) => {
                let UnaryRequest {
                    head,
                    message,
                    unary,
                } = request;
                PendingResponse::Transport(transport.call_unary(head, message, unary))
            }
            None => PendingResponse::Stack(stack.call(self.framed(request))),
        }
    }

    /// Returns the request as the generated stub would create it, for a stack that is not the bare default transport.
    fn framed(&self, request: UnaryRequest) -> http::Request<Body> {
        let UnaryRequest {
            head,
            message,
            unary,
        } = request;
        let remaining = unary
            .deadline
            .map(|at| at.saturating_duration_since(Instant::now()));
        let mut extensions = self.extensions.clone();
        extensions.insert(unary);
        extensions.insert(GrpcMethod::new("google.longrunning.Operations", R::METHOD));
        let mut request = http::Request::new(Body::new(Full::new(message)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = PathAndQuery::from_static(head.path).into();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = head.headers(remaining);
        *request.extensions_mut() = extensions;
        request
    }
}

/// A response that has not arrived yet.
pub(crate) enum PendingResponse<F> {
    /// The response future of the default transport.
    Transport(ResponseFuture),
    /// The response future of any other stack.
    Stack(F),
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

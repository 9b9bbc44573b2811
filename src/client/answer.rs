//! What stands between the stub and the stack: it makes an answer, or the lack of one, a truthful status.
//!
//! tonic's stub takes a status out of a response too, but it panics on details that are not
//! base64, drops the code where the message is not UTF-8, and does not tell a server's status from
//! one of its own making. So every status is made here, and the stub gets to see successes only.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Frame;
use percent_encoding::percent_decode;
use pin_project_lite::pin_project;
use tonic::{Code, Status, body::Body, metadata::MetadataMap};
use tower::{BoxError, Service};

use super::Stack;
use crate::status::{Origin, classify, local, mark};

/// The user's stack, for one call.
pub(crate) struct Answering<S>(Option<S>);

impl<S> Answering<S> {
    pub(crate) fn new(stack: S) -> Self {
        Self(Some(stack))
    }
}

impl<S: Stack> Service<Request<Body>> for Answering<S> {
    type Response = Response<AnswerBody<S::ResponseBody>>;
    type Error = Status;
    type Future = Answer<S>;

    /// Always ready: the stack's own readiness is awaited within the call, where its failure can
    /// be classified.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer<S> {
        match self.0.take() {
            Some(stack) => Answer {
                state: State::Waiting { stack, request },
            },
            None => Answer {
                state: State::Ended,
            },
        }
    }
}

pin_project! {
    /// The future of a response.
    pub(crate) struct Answer<S: Stack> {
        #[pin]
        state: State<S, S::Future>,
    }
}

pin_project! {
    #[project = StateProjection]
    #[project_replace = StateOwned]
    enum State<S, F> {
        Waiting { stack: S, request: Request<Body> },
        Calling { #[pin] response: F },
        Ended,
    }
}

impl<S: Stack> Future for Answer<S> {
    type Output = Result<Response<AnswerBody<S::ResponseBody>>, Status>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProjection::Waiting { stack, request } => {
                    ready!(stack.poll_ready(cx)).map_err(|error| classify(error.into()))?;
                    let request = mem::take(request);
                    let response = stack.call(request);
                    state.set(State::Calling { response });
                }
                StateProjection::Calling { response } => {
                    let response = ready!(response.poll(cx));
                    state.set(State::Ended);
                    return Poll::Ready(match response {
                        Ok(response) => answer(response),
                        Err(error) => Err(classify(error.into())),
                    });
                }
                StateProjection::Ended => {
                    let message = "an answer was asked for twice";
                    return Poll::Ready(Err(local(Code::Internal, message)));
                }
            }
        }
    }
}

/// Takes a response for a success so far, or for the status that it is.
fn answer<B>(mut response: Response<B>) -> Result<Response<AnswerBody<B>>, Status> {
    // Where an interceptor refuses, or a server runs in process, the status itself comes along:
    // through the headers it would lose its source.
    if let Some(status) = response
        .extensions()
        .get::<Status>()
        .filter(|status| status.code() != Code::Ok)
    {
        return Err(mark(status.clone(), Origin::Client));
    }
    if let Some(status) = take_status(response.headers_mut()) {
        status?;
        return Ok(response.map(|inner| AnswerBody { inner, ended: true }));
    }
    let content_type = response.headers().get(CONTENT_TYPE);
    let is_grpc =
        content_type.is_none_or(|value| value.as_bytes().starts_with(b"application/grpc"));
    if response.status() != StatusCode::OK || !is_grpc {
        let what = match content_type {
            Some(value) => format!("content-type {value:?}"),
            None => "no content-type".to_owned(),
        };
        return Err(without_status(
            response.status(),
            format!(
                "HTTP status {} and {what}, without a grpc-status: is the endpoint a gRPC server?",
                response.status().as_u16()
            ),
        ));
    }
    Ok(response.map(|inner| AnswerBody {
        inner,
        ended: false,
    }))
}

pin_project! {
    /// The body of an answer. It ends with a status of OK, or with an error.
    pub(crate) struct AnswerBody<B> {
        #[pin]
        inner: B,
        // Whether the status has come.
        ended: bool,
    }
}

impl<B: http_body::Body<Data = Bytes, Error: Into<BoxError>>> http_body::Body for AnswerBody<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        let frame = match ready!(this.inner.poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(classify(error.into())))),
            None if *this.ended => return Poll::Ready(None),
            None => return Poll::Ready(Some(Err(cut_off()))),
        };
        let mut trailers = match frame.into_trailers() {
            Ok(trailers) => trailers,
            Err(frame) => return Poll::Ready(Some(Ok(frame))),
        };
        *this.ended = true;
        Poll::Ready(Some(match take_status(&mut trailers) {
            Some(Ok(())) => Ok(Frame::trailers(trailers)),
            Some(Err(status)) => Err(status),
            None => Err(cut_off()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.inner.is_end_stream()
    }
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
        StatusCode::BAD_REQUEST => Code::Internal,
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

/// Details may come with padding or without it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads the server's status out of headers or trailers, if it is there.
///
/// Whatever the bytes, what can be understood of them is kept. Of a status of OK only
/// `grpc-status` stays in the headers, for tonic reads them once more.
fn take_status(headers: &mut HeaderMap) -> Option<Result<(), Status>> {
    let code = Code::from_bytes(headers.get(Status::GRPC_STATUS)?.as_bytes());
    let message = headers.remove(Status::GRPC_MESSAGE);
    let details = headers.remove(Status::GRPC_STATUS_DETAILS);
    if code == Code::Ok {
        return Some(Ok(()));
    }
    headers.remove(Status::GRPC_STATUS);
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

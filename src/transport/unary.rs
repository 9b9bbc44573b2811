//! A unary response, as it is received.

use std::{
    mem,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, Response, StatusCode, header::CONTENT_TYPE};
use tonic::{Code, Status};

use super::{
    body::{Chunks, ResponseBody},
    budget::Buffered,
    link::Link,
};

/// A response that the connection's task receives completely.
pub(crate) struct UnaryResponse {
    head: Response<()>,
    body: RecvStream,
    /// Whether the head has ended the stream.
    is_trailers_only: bool,
    /// The largest message that the caller accepts, in bytes.
    limit: usize,
    data: Chunks,
    data_ended: bool,
    /// Bytes whose flow-control window was not released yet.
    unreleased: usize,
    buffered: Option<Buffered>,
}

/// How far a unary response was received.
pub(crate) enum Received {
    Complete(Option<HeaderMap>),
    /// The caller finds an error in what was received so far: a status in the head, or a message that is
    /// larger than it accepts, or is followed by more data.
    Failed,
}

impl UnaryResponse {
    pub(crate) fn new(head: Response<()>, body: RecvStream, limit: usize) -> Self {
        Self {
            head,
            is_trailers_only: body.is_end_stream(),
            body,
            limit,
            data: Chunks::default(),
            data_ended: false,
            unreleased: 0,
            buffered: None,
        }
    }

    /// Receives what there is. Sets `reads` to [`Link::unprobed_reads`] if there is data.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        link: &Link,
        reads: &mut isize,
    ) -> Poll<Result<Received, h2::Error>> {
        while !self.data_ended {
            let data = match self.body.poll_data(cx) {
                Poll::Ready(Some(data)) => data,
                Poll::Ready(None) => {
                    self.data_ended = true;
                    break;
                }
                Poll::Pending if self.has_failed() => return Poll::Ready(Ok(Received::Failed)),
                Poll::Pending => return Poll::Pending,
            };
            *reads = link.unprobed_reads();
            self.push(data?, link);
            if self.is_invalid() {
                return Poll::Ready(Ok(Received::Failed));
            }
        }
        self.body.poll_trailers(cx).map_ok(Received::Complete)
    }

    /// Returns whether the head has an error that no trailers replace, so that they are not awaited.
    fn has_failed(&self) -> bool {
        let headers = self.head.headers();
        if self.head.status() != StatusCode::OK
            && let Some(content_type) = headers.get(CONTENT_TYPE)
            && !content_type.as_bytes().starts_with(b"application/grpc")
        {
            return true;
        }
        headers
            .get(Status::GRPC_STATUS)
            .is_some_and(|status| status != "0")
    }

    fn push(&mut self, data: Bytes, link: &Link) {
        /// HTTP/2 sends a window update only once half of the window is used. To release less at a
        /// time saves nothing but costs a lock.
        const STEP: usize = 64 << 10;
        self.unreleased += data.len();
        self.data.push(data);
        Buffered::count(&mut self.buffered, self.data.bytes().len(), &link.budget);
        if self.unreleased >= STEP && !link.check_budget() {
            self.release();
        }
    }

    /// Returns whether the head has a status of the call that is not OK, if only an HTTP status.
    pub(crate) fn has_final_status(&self) -> bool {
        let status = self.head.headers().get(Status::GRPC_STATUS);
        status.map_or(self.head.status() != StatusCode::OK, |status| status != "0")
    }

    /// Returns whether flow-control window is withheld from the server.
    pub(crate) fn is_withheld(&self) -> bool {
        self.unreleased > 0
    }

    /// Lets the server send more.
    pub(crate) fn release(&mut self) {
        let bytes = mem::take(&mut self.unreleased);
        // An error says that the stream has ended.
        let _ = self.body.flow_control().release_capacity(bytes);
    }

    /// Takes what was received.
    ///
    /// Unless the head has ended the stream, there are trailers, if only empty ones: so that the caller
    /// sees that the response is not Trailers-Only.
    pub(crate) fn take(&mut self, trailers: Option<HeaderMap>) -> Response<ResponseBody> {
        let data = mem::take(&mut self.data).join();
        let trailers = trailers.or_else(|| (!self.is_trailers_only).then(HeaderMap::new));
        let body = ResponseBody::whole(data, trailers, self.buffered.take());
        mem::take(&mut self.head).map(|()| body)
    }

    /// Returns whether the response so far is that of an unavailable server.
    pub(crate) fn is_unavailable(&self) -> bool {
        // A response with a message is not.
        self.data.bytes().is_empty() && says_unavailable(&self.head)
    }

    /// Returns the body, to discard the rest of it.
    pub(crate) fn into_body(mut self) -> RecvStream {
        self.release();
        self.body
    }

    /// Returns whether the message is declared larger than the limit, or is followed by more data.
    fn is_invalid(&self) -> bool {
        let data = self.data.bytes();
        let Some([_flag, length @ ..]) = data.first_chunk::<PREFIX>() else {
            return false;
        };
        let length = u32::from_be_bytes(*length) as usize;
        length > self.limit || data.len() - PREFIX > length
    }
}

/// Whether the server, or a proxy before it, is unavailable. It responds so immediately that the
/// connection would attract all calls.
fn says_unavailable(head: &Response<()>) -> bool {
    match head.headers().get(Status::GRPC_STATUS) {
        Some(code) => Code::from_bytes(code.as_bytes()) == Code::Unavailable,
        None => matches!(head.status().as_u16(), 429 | 502 | 503 | 504),
    }
}

/// The flag and the length before a gRPC message, in bytes.
const PREFIX: usize = 5;

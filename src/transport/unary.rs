//! A unary response, as it is received.

use std::{
    mem,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, Response, StatusCode};
use tonic::Status;

use super::{body::Chunks, budget::Buffered, link::Link};

/// A response that the connection's task receives completely.
pub(crate) struct UnaryResponse {
    head: Response<()>,
    body: RecvStream,
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
    /// The message is larger than the caller accepts, or is followed by more data. The caller finds the
    /// error in the data received so far.
    Invalid,
}

impl UnaryResponse {
    pub(crate) fn new(head: Response<()>, body: RecvStream, limit: usize) -> Self {
        Self {
            head,
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
            let Some(data) = ready!(self.body.poll_data(cx)) else {
                self.data_ended = true;
                break;
            };
            *reads = link.unprobed_reads();
            self.push(data?, link);
            if self.is_invalid() {
                return Poll::Ready(Ok(Received::Invalid));
            }
        }
        self.body.poll_trailers(cx).map_ok(Received::Complete)
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

    /// Returns whether the head alone has the status of the call, which is not OK.
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

    /// Takes what was received: the head, the data, and their share of the budget.
    pub(crate) fn take(&mut self) -> (Response<()>, Bytes, Option<Buffered>) {
        let data = mem::take(&mut self.data).join();
        (mem::take(&mut self.head), data, self.buffered.take())
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

/// The flag and the length before a gRPC message, in bytes.
const PREFIX: usize = 5;

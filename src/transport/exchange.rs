//! One call on a stream: the request is written, and the response is read.

use std::{
    future::poll_fn,
    mem,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, Response, StatusCode};
use tokio::{sync::oneshot, task::unconstrained, time::Instant};
use tonic::{Code, Status};

use super::{
    abandoned::Abandoned,
    body::ResponseBody,
    call::{Call, Unary},
    link::{Budget, Buffered, Link, RequestBody},
};
use crate::deadline::Deadline;

/// A call whose request was given to HTTP/2.
///
/// It resolves when the stream is free, or when the caller was dropped. It owns the stream's handles, so
/// that the stream is never reset before the connection's task decides so.
pub(crate) struct Exchange {
    link: Arc<Link>,
    deadline: Option<Deadline>,
    /// `None` once the caller has its result.
    call: Option<Call>,
    /// `None` once it has resolved.
    stream: Option<Stream>,
    /// The socket's writes when the request was given to HTTP/2.
    writes: usize,
    /// [`Link::unasked_reads`] when something of this call moved last.
    reads: isize,
    /// Whether this is woken when the caller goes.
    watches_caller: bool,
    /// A unary response, as far as it has arrived.
    response: Option<Arriving>,
    /// The reader of a streamed response.
    reader: Option<oneshot::Receiver<()>>,
}

/// The handles of an HTTP/2 stream.
struct Stream {
    request: SendStream<RequestBody>,
    /// `None` once the head of the response has come.
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
}

struct Arriving {
    unary: Unary,
    head: Response<()>,
    data: Bytes,
    joined: BytesMut,
    data_ended: bool,
    /// Bytes whose window was not given back to the server yet.
    unreleased: usize,
    buffered: Option<Buffered>,
}

/// How an exchange ended.
pub(crate) enum End {
    /// The server has answered. `failed`: it, or a proxy, said that it is unavailable.
    Answered { failed: bool },
    /// The stream has failed before the response was complete.
    Failed(Box<FailedCall>),
    /// The caller was dropped. The stream has to be reset.
    Abandoned(Abandoned),
}

pub(crate) struct FailedCall {
    pub(crate) call: Call,
    pub(crate) error: h2::Error,
    /// The server has certainly not processed the call.
    pub(crate) unprocessed: bool,
    /// Not a byte was written since the request was given to HTTP/2.
    pub(crate) unwritten: bool,
}

/// Why a request could not be given to HTTP/2.
pub(crate) enum NotStarted {
    /// The connection takes no more requests.
    Closed(Call),
    /// HTTP/2 refuses the request itself.
    Refused(Call, h2::Error),
}

impl Exchange {
    /// Gives a request to HTTP/2.
    pub(crate) fn start(
        mut call: Call,
        sender: &mut SendRequest<RequestBody>,
        link: &Arc<Link>,
        now: Instant,
    ) -> Result<Self, Box<NotStarted>> {
        call.update_timeout(now);
        let (response, mut request) = match sender.send_request(call.head.clone(), false) {
            Ok(stream) => stream,
            Err(error) => {
                let mut cx = Context::from_waker(Waker::noop());
                let closed = matches!(sender.poll_ready(&mut cx), Poll::Ready(Err(_)));
                return Err(Box::new(match closed {
                    true => NotStarted::Closed(call),
                    false => NotStarted::Refused(call, error),
                }));
            }
        };
        let body = RequestBody::new(call.body.clone(), link.clone());
        // An error says that the stream has failed already, which the response will report.
        let _ = request.send_data(body, true);
        Ok(Self {
            link: link.clone(),
            deadline: call.deadline,
            call: Some(call),
            stream: Some(Stream {
                request,
                response: Some(response),
                body: None,
            }),
            writes: link.counters.writes(),
            reads: link.unasked_reads(),
            watches_caller: false,
            response: None,
            reader: None,
        })
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline.map(|deadline| deadline.at())
    }

    /// The number of the call, as long as its caller waits.
    pub(crate) fn number(&self) -> Option<u64> {
        self.call.as_ref().map(|call| call.number)
    }

    /// Ends a call whose deadline has passed. Returns the stream, if it is to be reset later.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Abandoned> {
        let abandoned = self.abandon(now);
        if let (Some(call), Some(deadline)) = (self.call.take(), self.deadline.take()) {
            call.reply(Err(deadline.exceeded("the server has not answered")));
        }
        abandoned
    }

    /// Whether the server waits for window.
    pub(crate) fn is_held_back(&self) -> bool {
        let response = self.response.as_ref();
        response.is_some_and(|response| response.unreleased > 0)
    }

    /// Gives the server the window for more of the response.
    pub(crate) fn release(&mut self) {
        if let (Some(response), Some(stream)) = (&mut self.response, &mut self.stream)
            && let Some(body) = &mut stream.body
        {
            response.release(body);
        }
    }

    /// Watches for the end of the exchange anew: its waker has changed.
    pub(crate) fn moved(mut self) -> Self {
        self.watches_caller = false;
        self
    }

    /// Resets the stream, or returns it, if the server may not have accepted it yet.
    fn abandon(&mut self, now: Instant) -> Option<Abandoned> {
        let mut stream = self.stream.take()?;
        let Some(response) = stream.response else {
            stream.request.send_reset(Reason::CANCEL);
            return None;
        };
        let late = self.deadline.is_some_and(|d| d.has_passed_for_caller(now));
        Some(Abandoned::new(stream.request, response, self.reads, late))
    }

    fn caller_has_gone(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(call) = &mut self.call else {
            return false;
        };
        if !self.watches_caller {
            self.watches_caller = true;
            // Out of tokio's budget: only what does I/O should spend it.
            let closed = poll_fn(|cx| call.reply.poll_closed(cx));
            let mut closed = unconstrained(closed);
            return Pin::new(&mut closed).poll(cx).is_ready();
        }
        call.reply.is_closed()
    }

    fn fail(&mut self, error: h2::Error) -> End {
        self.stream = None;
        let Some(call) = self.call.take() else {
            return End::Answered { failed: true };
        };
        let counters = &self.link.counters;
        let no_head = self.response.is_none();
        End::Failed(Box::new(FailedCall {
            unprocessed: no_head && is_unprocessed(&error),
            unwritten: no_head && !error.is_reset() && counters.writes() == self.writes,
            call,
            error,
        }))
    }

    /// Replies with the unary response. The stream is free if the response is `complete`.
    fn reply(&mut self, trailers: Option<HeaderMap>, complete: bool) -> End {
        let (Some(call), Some(response)) = (self.call.take(), self.response.take()) else {
            return End::Answered { failed: false };
        };
        let failed = says_unavailable(&response.head);
        let data = match response.joined.is_empty() {
            true => response.data,
            false => response.joined.freeze(),
        };
        let buffered = response.buffered;
        call.reply(Ok(response
            .head
            .map(|()| ResponseBody::whole(data, trailers, buffered))));
        if !complete {
            let abandoned = self.abandon(Instant::now());
            return abandoned.map_or(End::Answered { failed }, End::Abandoned);
        }
        self.free_stream();
        End::Answered { failed }
    }

    /// Frees the stream after the response.
    fn free_stream(&mut self) {
        let Some(mut stream) = self.stream.take() else {
            return;
        };
        // A server may answer before it has read the request. Then the rest still waits for window,
        // and keeps the stream open.
        if self.link.unsent.load(Ordering::Relaxed) > 0 {
            stream.request.send_reset(Reason::CANCEL);
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Ok(()));
        };
        let Some(response) = &mut stream.response else {
            return Poll::Ready(Ok(()));
        };
        let (head, body) = ready!(Pin::new(response).poll(cx))?.into_parts();
        stream.response = None;
        let head = Response::from_parts(head, ());
        self.reads = self.link.unasked_reads();
        match self.call.as_ref().and_then(|call| call.unary) {
            Some(unary) => {
                stream.body = Some(body);
                self.response = Some(Arriving::new(unary, head));
            }
            None => {
                let deadline = self.deadline.map(|deadline| deadline.at());
                let link = self.link.clone();
                let (body, reader) = ResponseBody::streaming(body, link, deadline);
                self.reader = Some(reader);
                if let Some(call) = self.call.take() {
                    call.reply(Ok(head.map(|()| body)));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, h2::Error>> {
        let (Some(stream), Some(response)) = (&mut self.stream, &mut self.response) else {
            return Poll::Pending;
        };
        let Some(body) = &mut stream.body else {
            return Poll::Pending;
        };
        while !response.data_ended {
            let Some(data) = ready!(body.poll_data(cx)) else {
                response.data_ended = true;
                break;
            };
            self.reads = self.link.unasked_reads();
            if !response.push(data?, body, &self.link) {
                return Poll::Ready(Ok(self.reply(None, false)));
            }
        }
        let trailers = ready!(body.poll_trailers(cx))?;
        Poll::Ready(Ok(self.reply(trailers, true)))
    }
}

impl Future for Exchange {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = &mut *self;
        if this.caller_has_gone(cx) {
            this.call = None;
            let abandoned = this.abandon(Instant::now());
            return Poll::Ready(abandoned.map_or(End::Answered { failed: false }, End::Abandoned));
        }
        if let Err(error) = ready!(this.poll_head(cx)) {
            return Poll::Ready(this.fail(error));
        }
        if let Some(reader) = &mut this.reader {
            let reader = unconstrained(poll_fn(|cx| Pin::new(&mut *reader).poll(cx)));
            return Poll::Ready(match ready!(Pin::new(&mut { reader }).poll(cx)) {
                Ok(()) => {
                    this.free_stream();
                    End::Answered { failed: false }
                }
                Err(_) => this
                    .abandon(Instant::now())
                    .map_or(End::Answered { failed: false }, End::Abandoned),
            });
        }
        match ready!(this.poll_response(cx)) {
            Ok(end) => Poll::Ready(end),
            Err(error) => Poll::Ready(this.fail(error)),
        }
    }
}

impl Arriving {
    fn new(unary: Unary, head: Response<()>) -> Self {
        Self {
            unary,
            head,
            data: Bytes::new(),
            joined: BytesMut::new(),
            data_ended: false,
            unreleased: 0,
            buffered: None,
        }
    }

    /// Takes in data; returns whether the caller accepts more.
    fn push(&mut self, data: Bytes, body: &mut RecvStream, link: &Link) -> bool {
        /// HTTP/2 sends a window update only once half of the window is used. To release less at a
        /// time saves nothing but costs a lock.
        const STEP: usize = 64 << 10;
        self.unreleased += data.len();
        let before = self.len();
        if before == 0 {
            self.data = data;
        } else {
            self.joined.extend_from_slice(&mem::take(&mut self.data));
            self.joined.extend_from_slice(&data);
        }
        let length = self.len();
        if length > Budget::SMALL {
            let buffered = self
                .buffered
                .get_or_insert_with(|| Buffered::new(link.budget.clone()));
            buffered.add(if before > Budget::SMALL {
                length - before
            } else {
                length
            });
        }
        if self.unreleased >= STEP && !link.is_over_budget() {
            self.release(body);
        }
        let prefix = self.bytes().first_chunk::<5>();
        let declared = prefix.map_or(0, |[_, length @ ..]| u32::from_be_bytes(*length) as usize);
        declared <= self.unary.limit && length <= self.unary.limit.saturating_add(PREFIX)
    }

    fn release(&mut self, body: &mut RecvStream) {
        // An error says that the stream has ended.
        let _ = body
            .flow_control()
            .release_capacity(mem::take(&mut self.unreleased));
    }

    fn bytes(&self) -> &[u8] {
        match self.joined.is_empty() {
            true => &self.data,
            false => &self.joined,
        }
    }

    fn len(&self) -> usize {
        self.bytes().len()
    }
}

/// The flag and the length before a gRPC message, in bytes.
const PREFIX: usize = 5;

/// Whether the server says that it did not process the call: it refused the stream, or it goes away
/// and the stream is above the last one that it still serves.
fn is_unprocessed(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

/// Whether the server, or a proxy before it, is unavailable. Such an answer comes at once, so that
/// the connection would attract all calls.
fn says_unavailable(head: &Response<()>) -> bool {
    let code = head.headers().get(Status::GRPC_STATUS);
    let code = code.map(|code| Code::from_bytes(code.as_bytes()));
    match code {
        Some(code) => code == Code::Unavailable,
        None => head.status() != StatusCode::OK,
    }
}

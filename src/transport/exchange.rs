//! One call on an HTTP/2 stream: sends the request and receives the response.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker, ready},
};

use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::Response;
use tokio::{sync::oneshot, task::unconstrained, time::Instant};

use super::{
    abandoned::{Discarding, Unfinished},
    body::{RequestBody, ResponseBody},
    call::PendingCall,
    link::Link,
    progress::SentOn,
    unary::{Received, UnaryResponse},
};
use crate::{
    deadline::{Deadline, Stage, Waited},
    status::is_unprocessed,
};

/// A call whose request was given to HTTP/2.
///
/// It resolves when the stream has ended, or when nobody waits for the response any more. It owns the
/// stream's handles, so that nothing but the connection's task resets a stream.
pub(crate) struct Exchange {
    link: Arc<Link>,
    deadline: Option<Deadline>,
    started_at: Instant,
    /// `None` once the caller has its result.
    call: Option<Box<PendingCall>>,
    /// `None` once this has resolved.
    stream: Option<Stream>,
    /// [`IoState::writes`](super::counted_io::IoState::writes) when the request was given to HTTP/2.
    writes: usize,
    /// [`Link::unprobed_reads`] when the request was given to HTTP/2, or when data of the response was
    /// received last.
    reads: isize,
    /// Whether this is woken when the caller is dropped.
    watches_caller: bool,
}

struct Stream {
    request: SendStream<RequestBody>,
    response: Receiving,
}

/// What is received next on a stream.
#[expect(
    clippy::large_enum_variant,
    reason = "a box would be an allocation for each call"
)]
enum Receiving {
    Head(ResponseFuture),
    /// The data and the trailers of a response that is received completely.
    Unary(UnaryResponse),
    /// The body, which the reader of a streamed response returns.
    Streamed(oneshot::Receiver<RecvStream>),
}

/// How an exchange ended.
pub(crate) enum End {
    /// A unary response was received. `unavailable`: with the status of an unavailable server.
    Answered { unavailable: bool },
    /// The reader of a streamed response has reached its end.
    StreamRead,
    /// The stream has failed before the caller had a response.
    Failed(FailedCall),
    /// The caller was dropped, the deadline has passed, or the response is invalid.
    Cancelled {
        /// Whether the deadline has passed, and nothing was received since the request or the last data
        /// of the response.
        silent: bool,
        /// The stream. `None` if it was reset: its reader still has the body.
        stream: Option<Unfinished>,
    },
}

pub(crate) struct FailedCall {
    pub(crate) call: Box<PendingCall>,
    pub(crate) error: h2::Error,
    /// The server has certainly not processed the call.
    pub(crate) unprocessed: bool,
    /// Not a byte was written since the request was given to HTTP/2.
    pub(crate) unwritten: bool,
    /// No Response-Headers have arrived.
    pub(crate) no_head: bool,
}

/// Why a request could not be given to HTTP/2.
pub(crate) enum NotStarted {
    /// The connection accepts no more requests.
    Closed(Box<PendingCall>),
    /// HTTP/2 cannot express the request.
    Invalid(Box<PendingCall>, h2::Error),
}

impl Exchange {
    /// Gives a request to HTTP/2.
    pub(crate) fn start(
        call: Box<PendingCall>,
        sender: &mut SendRequest<RequestBody>,
        link: &Arc<Link>,
        now: Instant,
    ) -> Result<Self, NotStarted> {
        let (response, mut request) = match sender.send_request(call.request(now), false) {
            Ok(stream) => stream,
            Err(error) => {
                let mut cx = Context::from_waker(Waker::noop());
                let not_started = match sender.poll_ready(&mut cx) {
                    Poll::Ready(Err(_)) => NotStarted::Closed(call),
                    _ => NotStarted::Invalid(call, error),
                };
                return Err(not_started);
            }
        };
        let body = RequestBody::new(call.body.clone(), link.clone());
        // An error says that the stream has failed already, which the response will report.
        let _ = request.send_data(body, true);
        if let Some(progress) = call.progress() {
            let connection = SentOn {
                id: link.id,
                peer: link.peer,
            };
            progress.sent_on(connection, now);
        }
        Ok(Self {
            link: link.clone(),
            deadline: call.deadline,
            started_at: now,
            call: Some(call),
            stream: Some(Stream {
                request,
                response: Receiving::Head(response),
            }),
            writes: link.io.writes(),
            reads: link.unprobed_reads(),
            watches_caller: false,
        })
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline.map(|deadline| deadline.at())
    }

    /// Returns the number of the call, as long as its caller waits.
    pub(crate) fn number(&self) -> Option<u64> {
        self.call.as_ref().map(|call| call.number)
    }

    /// Ends a call whose deadline has passed.
    pub(crate) fn expire(&mut self, now: Instant) -> End {
        let end = self.cancel(now);
        if let (Some(call), Some(deadline)) = (self.call.take(), self.deadline) {
            let waited = Waited::new(
                Stage::Answer,
                now.saturating_duration_since(self.started_at),
            )
            .after(
                Stage::Stream,
                self.started_at.saturating_duration_since(call.queued_at),
            );
            call.reply(Err(deadline.exceeded(waited)));
        }
        end
    }

    /// Returns whether flow-control window is withheld from the server.
    pub(crate) fn is_withheld(&self) -> bool {
        match &self.stream {
            Some(Stream {
                response: Receiving::Unary(response),
                ..
            }) => response.is_withheld(),
            _ => false,
        }
    }

    /// Lets the server send more of the response.
    pub(crate) fn release(&mut self) {
        if let Some(Stream {
            response: Receiving::Unary(response),
            ..
        }) = &mut self.stream
        {
            response.release();
        }
    }

    /// Prepares for a move to another set of futures, and so to another waker.
    pub(crate) fn reset_waker(mut self) -> Self {
        self.watches_caller = false;
        self
    }

    fn cancel(&mut self, now: Instant) -> End {
        let deadline = self.deadline;
        let late = deadline.is_some_and(|deadline| deadline.has_passed_for_caller(now));
        let silent = late && self.link.unprobed_reads() <= self.reads;
        let stream = self.stream.take().and_then(Stream::abandon);
        End::Cancelled { silent, stream }
    }

    fn caller_was_dropped(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(call) = &mut self.call else {
            return false;
        };
        if !self.watches_caller {
            self.watches_caller = true;
            // Not charged to tokio's budget, which is meant for I/O.
            let closed = poll_fn(|cx| call.reply.poll_closed(cx));
            let mut closed = unconstrained(closed);
            return Pin::new(&mut closed).poll(cx).is_ready();
        }
        call.reply.is_closed()
    }

    fn fail(&mut self, error: h2::Error) -> End {
        let stream = self.stream.take();
        let no_head = matches!(
            stream,
            Some(Stream {
                response: Receiving::Head(_),
                ..
            })
        );
        // There is a call: only a streamed response has none, and its reader gets the error.
        let Some(call) = self.call.take() else {
            return End::StreamRead;
        };
        let response = stream.map(|stream| stream.response);
        if let Some(Receiving::Unary(mut response)) = response
            && response.has_final_status()
        {
            let unavailable = response.is_unavailable();
            call.reply(Ok(response.take(None)));
            return End::Answered { unavailable };
        }
        End::Failed(FailedCall {
            unprocessed: no_head && is_unprocessed(&error),
            unwritten: no_head && !error.is_reset() && self.link.io.writes() == self.writes,
            no_head,
            call,
            error,
        })
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Pending;
        };
        let Receiving::Head(response) = &mut stream.response else {
            return Poll::Ready(Ok(()));
        };
        let (head, body) = ready!(Pin::new(response).poll(cx))?.into_parts();
        let head = Response::from_parts(head, ());
        self.reads = self.link.unprobed_reads();
        stream.response = match self.call.as_ref().and_then(|call| call.unary.as_ref()) {
            Some(unary) => {
                if !body.is_end_stream()
                    && let Some(progress) = &unary.progress
                {
                    progress.commit();
                }
                Receiving::Unary(UnaryResponse::new(head, body, unary.limit))
            }
            None => {
                let deadline = self.deadline.map(|deadline| deadline.at());
                let (body, end) = ResponseBody::streamed(body, self.link.clone(), deadline);
                self.link.stream_begun.store(true, Ordering::Relaxed);
                if let Some(call) = self.call.take() {
                    call.reply(Ok(head.map(|()| body)));
                }
                Receiving::Streamed(end)
            }
        };
        Poll::Ready(Ok(()))
    }

    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, h2::Error>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Pending;
        };
        match &mut stream.response {
            Receiving::Head(_) => Poll::Pending,
            Receiving::Unary(response) => {
                let received = ready!(response.poll(cx, &self.link, &mut self.reads))?;
                Poll::Ready(Ok(self.reply(received)))
            }
            Receiving::Streamed(returned) => {
                let returned = unconstrained(poll_fn(|cx| Pin::new(&mut *returned).poll(cx)));
                let body = ready!(pin!(returned).poll(cx));
                let unfinished = body.ok().filter(|body| !body.is_end_stream());
                let (Some(body), Some(stream)) = (unfinished, self.stream.take()) else {
                    self.free_stream();
                    return Poll::Ready(Ok(End::StreamRead));
                };
                Poll::Ready(Ok(End::Cancelled {
                    silent: false,
                    stream: Some(Unfinished {
                        request: stream.request,
                        response: Discarding::Body(body),
                    }),
                }))
            }
        }
    }

    /// Sends a unary response to the caller.
    fn reply(&mut self, received: Received) -> End {
        let stream = self.stream.as_mut().map(|stream| &mut stream.response);
        let (Some(call), Some(Receiving::Unary(response))) = (self.call.take(), stream) else {
            return self.cancel(Instant::now());
        };
        let unavailable = response.is_unavailable();
        match received {
            Received::Complete(trailers) => {
                call.reply(Ok(response.take(trailers)));
                self.free_stream();
                End::Answered { unavailable }
            }
            Received::Failed => {
                call.reply(Ok(response.take(None)));
                self.cancel(Instant::now())
            }
        }
    }

    /// Frees the stream after a complete response.
    fn free_stream(&mut self) {
        // A server may respond before it has read the request. The rest of the request then waits for
        // window, and keeps the stream open. Where it is that of another call, the reset does nothing.
        if self.link.unsent.load(Ordering::Relaxed) > 0
            && let Some(stream) = &mut self.stream
        {
            stream.request.send_reset(Reason::CANCEL);
        }
        self.stream = None;
    }
}

impl Future for Exchange {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = &mut *self;
        if this.caller_was_dropped(cx) {
            this.call = None;
            return Poll::Ready(this.cancel(Instant::now()));
        }
        let end = match ready!(this.poll_head(cx)) {
            Ok(()) => ready!(this.poll_response(cx)),
            Err(error) => Err(error),
        };
        Poll::Ready(end.unwrap_or_else(|error| this.fail(error)))
    }
}

impl Stream {
    /// Returns the stream, or resets it if its reader still has the body.
    fn abandon(mut self) -> Option<Unfinished> {
        let response = match self.response {
            Receiving::Head(head) => Discarding::Head(head),
            Receiving::Unary(response) => Discarding::Body(response.into_body()),
            Receiving::Streamed(mut returned) => match returned.try_recv() {
                Ok(body) => Discarding::Body(body),
                Err(_) => {
                    self.request.send_reset(Reason::CANCEL);
                    return None;
                }
            },
        };
        Some(Unfinished {
            request: self.request,
            response,
        })
    }
}

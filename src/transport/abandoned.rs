//! Streams whose callers were dropped, and when they are reset.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, Stream as _};
use h2::{Reason, SendStream, client::ResponseFuture};
use tokio::time::Instant;

use super::link::RequestBody;

/// The streams of a connection whose callers were dropped before the server has answered.
///
/// A server counts streams that are reset before it has accepted them, and closes the connection when
/// there are too many, see [CVE-2023-44487](https://nvd.nist.gov/vuln/detail/CVE-2023-44487). It has
/// read a request once it has acknowledged a probe that was sent later. Even then the request may
/// still wait to be accepted, so that the stream is reset one interval later.
pub(crate) struct AbandonedStreams {
    streams: FuturesUnordered<Abandoned>,
    /// The server has accepted the streams that were abandoned before this many probes.
    accepted: usize,
    /// When streams are reset next.
    due: Option<Instant>,
}

/// How often streams are reset.
const INTERVAL: Duration = Duration::from_millis(10);

impl AbandonedStreams {
    pub(crate) fn new() -> Self {
        Self {
            streams: FuturesUnordered::new(),
            accepted: 0,
            due: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Adds a stream that was abandoned after so many probes.
    pub(crate) fn push(&mut self, mut stream: Abandoned, probes: usize, now: Instant) {
        stream.probes = probes;
        self.streams.push(stream);
        self.due = self.due.or(Some(now));
    }

    /// Removes the streams that are free.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(())) = Pin::new(&mut self.streams).poll_next(cx) {}
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Sets when streams are reset next; returns whether there are any.
    pub(crate) fn postpone(&mut self, now: Instant) -> bool {
        let any = !self.streams.is_empty();
        self.due = any.then(|| now + INTERVAL);
        any
    }

    /// Resets streams, after all of so many probes were acknowledged.
    pub(crate) fn reset(&mut self, acknowledged: usize) {
        for stream in self.streams.iter_mut() {
            if stream.probes < self.accepted {
                stream.reset();
            }
        }
        self.accepted = acknowledged;
    }
}

/// A stream whose caller was dropped before the server has answered. It resolves when the stream is
/// free.
pub(crate) struct Abandoned {
    request: SendStream<RequestBody>,
    response: ResponseFuture,
    /// [`Link::unasked_reads`](super::link::Link::unasked_reads) when the request was given to HTTP/2.
    pub(crate) reads: isize,
    /// Whether the caller was dropped because of its deadline.
    pub(crate) late: bool,
    /// How many probes the connection had sent by then.
    probes: usize,
    is_reset: bool,
}

impl Abandoned {
    pub(crate) fn new(
        request: SendStream<RequestBody>,
        response: ResponseFuture,
        reads: isize,
        late: bool,
    ) -> Self {
        Self {
            request,
            response,
            reads,
            late,
            probes: 0,
            is_reset: false,
        }
    }

    /// Resets the stream, which frees it.
    fn reset(&mut self) {
        if !mem::replace(&mut self.is_reset, true) {
            self.request.send_reset(Reason::CANCEL);
        }
    }
}

impl Future for Abandoned {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if !this.is_reset {
            // A reset wakes it, too.
            let _ = ready!(Pin::new(&mut this.response).poll(cx));
            this.reset();
        }
        Poll::Ready(())
    }
}

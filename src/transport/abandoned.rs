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

use super::body::RequestBody;

/// The streams of a connection whose callers were dropped before the server has responded.
///
/// Servers guard themselves against clients that reset streams, see
/// [CVE-2023-44487](https://nvd.nist.gov/vuln/detail/CVE-2023-44487), and close the connection in two
/// cases:
///
/// - Streams are reset before the server has accepted them. It has read a request once it has
///   acknowledged a probe that was sent later. Even then the request may wait to be accepted, so that
///   the stream is reset one interval later.
/// - Too many streams are reset. So resets are [limited](ResetLimit); a stream that has to wait may
///   well be ended by the server before that.
pub(crate) struct AbandonedStreams {
    streams: FuturesUnordered<Abandoned>,
    /// The server has accepted the streams that were abandoned before this many probes.
    accepted: usize,
    /// How many probes had been sent when the last stream was abandoned.
    newest: usize,
    /// When streams are reset next.
    due: Option<Instant>,
    limit: ResetLimit,
}

/// How long most streams may wait to be reset before another connection is opened.
const EXHAUSTED: Duration = Duration::from_secs(1);

/// How often streams are reset.
const INTERVAL: Duration = Duration::from_millis(10);

impl AbandonedStreams {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            streams: FuturesUnordered::new(),
            accepted: 0,
            newest: 0,
            due: None,
            limit: ResetLimit { restored_at: now },
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Adds a stream, after so many probes were sent.
    pub(crate) fn push(
        &mut self,
        request: SendStream<RequestBody>,
        response: ResponseFuture,
        probes: usize,
        now: Instant,
    ) {
        self.streams.push(Abandoned {
            request,
            response,
            is_reset: false,
            probes,
            since: now,
        });
        self.newest = probes;
        self.due = self.due.or(Some(now));
    }

    /// Removes the streams that are free.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(())) = Pin::new(&mut self.streams).poll_next(cx) {}
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Sets when streams are reset next.
    pub(crate) fn postpone(&mut self, now: Instant) {
        let next = self.limit.next(now).max(now + INTERVAL);
        self.due = (!self.streams.is_empty()).then_some(next);
    }

    /// Whether a probe has to be sent, so that streams can be reset.
    pub(crate) fn awaits_probe(&self) -> bool {
        !self.streams.is_empty() && self.newest >= self.accepted
    }

    /// Notes that the server has acknowledged so many probes.
    pub(crate) fn acknowledged(&mut self, probes: usize) {
        self.accepted = probes;
    }

    /// Resets streams that the server has accepted, as many as are allowed now.
    pub(crate) fn reset(&mut self, now: Instant) {
        for stream in self.streams.iter_mut() {
            if stream.probes < self.accepted && !stream.is_reset {
                if self.limit.next(now) > now {
                    return;
                }
                self.limit.count(now);
                stream.reset();
            }
        }
    }

    /// Counts a reset of another stream.
    pub(crate) fn count_reset(&mut self, now: Instant) {
        self.limit.count(now);
    }

    /// Whether most of the streams that the server allows have waited for a second to be reset.
    pub(crate) fn are_exhausted(&self, limit: usize, now: Instant) -> bool {
        let waits = |stream: &&Abandoned| now >= stream.since + EXHAUSTED;
        self.len() > limit / 2 && self.streams.iter().filter(waits).count() > limit / 2
    }
}

/// Limits the resets of a connection: [`BURST`](Self::BURST) together, and then one each
/// [`PERIOD`](Self::PERIOD).
///
/// nghttp2, and so Node.js, closes a connection after 1,000 resets, and then more than 33 a second.
struct ResetLimit {
    /// When all of the burst is allowed again.
    restored_at: Instant,
}

impl ResetLimit {
    const BURST: u32 = 900;
    const PERIOD: Duration = Duration::from_millis(33);

    /// Returns when the next reset is allowed.
    fn next(&self, now: Instant) -> Instant {
        let burst = Self::PERIOD * (Self::BURST - 1);
        now + self.restored_at.saturating_duration_since(now + burst)
    }

    fn count(&mut self, now: Instant) {
        self.restored_at = self.restored_at.max(now) + Self::PERIOD;
    }
}

/// A stream whose caller was dropped before the server has responded. It resolves when the stream is
/// free.
struct Abandoned {
    request: SendStream<RequestBody>,
    response: ResponseFuture,
    is_reset: bool,
    /// How many probes the connection had sent when the caller was dropped, and when that was.
    probes: usize,
    since: Instant,
}

impl Abandoned {
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

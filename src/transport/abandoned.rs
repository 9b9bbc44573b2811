//! Streams that are abandoned before the end of the response, and when they are reset.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, Stream as _};
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use tokio::time::Instant;

use super::{body::RequestBody, stats::Counters};

/// The streams of a connection whose responses nobody waits for any more.
///
/// Servers guard themselves against clients that reset streams, see
/// [CVE-2023-44487](https://nvd.nist.gov/vuln/detail/CVE-2023-44487), and close the connection in two
/// cases:
///
/// - Streams are reset before the server has accepted them. It has read a request once it has
///   acknowledged a probe that was sent later. Even then the request may wait to be accepted, so that
///   the stream is reset one interval later.
/// - Too many streams are reset. So resets are [limited](ResetLimit). What the server sends on a
///   stream until then is discarded, and the stream may well end before it is reset.
pub(crate) struct AbandonedStreams {
    streams: FuturesUnordered<Abandoned>,
    /// How many probes the server has acknowledged. It has accepted the streams that were abandoned
    /// when fewer had been sent.
    acknowledged: usize,
    /// How many probes had been sent when the last stream without a response was abandoned.
    newest: Option<usize>,
    /// When streams are reset next.
    due: Option<Instant>,
    limit: ResetLimit,
    counters: Arc<Counters>,
}

/// A stream to abandon.
pub(crate) struct Unfinished {
    pub(crate) request: SendStream<RequestBody>,
    pub(crate) response: Discarding,
}

/// What is discarded next on a stream.
pub(crate) enum Discarding {
    Head(ResponseFuture),
    Body(RecvStream),
}

/// How often streams are reset.
const INTERVAL: Duration = Duration::from_millis(10);

/// How long most streams may wait to be reset before another connection is opened.
const EXHAUSTED: Duration = Duration::from_secs(1);

impl AbandonedStreams {
    pub(crate) fn new(counters: Arc<Counters>, now: Instant) -> Self {
        Self {
            streams: FuturesUnordered::new(),
            acknowledged: 0,
            newest: None,
            due: None,
            limit: ResetLimit { restored_at: now },
            counters,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Adds a stream, after so many probes were sent.
    pub(crate) fn push(&mut self, stream: Unfinished, probes: usize, now: Instant) {
        if matches!(stream.response, Discarding::Head(_)) {
            self.newest = Some(probes);
        }
        self.streams.push(Abandoned {
            request: stream.request,
            response: stream.response,
            is_reset: false,
            probes,
            since: now,
        });
        self.due = self.due.or(Some(now));
    }

    /// Removes the streams that have ended.
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

    /// Returns whether a probe has to be sent before all streams can be reset.
    pub(crate) fn need_probe(&self) -> bool {
        let newest = self.newest.filter(|_| !self.streams.is_empty());
        newest.is_some_and(|newest| newest >= self.acknowledged)
    }

    /// Notes that the server has acknowledged so many probes.
    pub(crate) fn acknowledge(&mut self, probes: usize) {
        self.acknowledged = probes;
    }

    /// Resets streams that the server has accepted, as many as the limit allows, the oldest first: a
    /// response without an end is not overtaken for ever.
    pub(crate) fn reset(&mut self, now: Instant) {
        let acknowledged = self.acknowledged;
        let accepted = self.streams.iter_mut();
        let mut accepted: Vec<_> = accepted.filter(|s| s.can_be_reset(acknowledged)).collect();
        accepted.sort_unstable_by_key(|stream| stream.since);
        for stream in accepted {
            if self.limit.next(now) > now {
                return;
            }
            self.limit.count(now);
            self.counters.stream_resets.increment();
            stream.is_reset = true;
            stream.request.send_reset(Reason::CANCEL);
        }
    }

    /// Counts the reset of another stream.
    pub(crate) fn count_reset(&mut self, now: Instant) {
        self.limit.count(now);
        self.counters.stream_resets.increment();
    }

    /// Returns whether for a second the limit has kept most of the connection's streams from being
    /// reset.
    pub(crate) fn are_exhausted(&self, max_streams: usize, now: Instant) -> bool {
        let most = max_streams / 2 + 1;
        let waits = |stream: &&Abandoned| {
            stream.can_be_reset(self.acknowledged) && now >= stream.since + EXHAUSTED
        };
        max_streams > 0 && self.len() >= most && self.streams.iter().filter(waits).count() >= most
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

    /// Returns when the next reset is allowed: at most one period from now.
    fn next(&self, now: Instant) -> Instant {
        let burst = Self::PERIOD * (Self::BURST - 1);
        now + self.restored_at.saturating_duration_since(now + burst)
    }

    /// Counts a reset. Those that are not limited do not add to what is allowed later.
    fn count(&mut self, now: Instant) {
        let restored_at = self.restored_at.max(now) + Self::PERIOD;
        self.restored_at = restored_at.min(now + Self::PERIOD * Self::BURST);
    }
}

/// A stream whose response is discarded. It resolves when the stream has ended.
struct Abandoned {
    request: SendStream<RequestBody>,
    response: Discarding,
    is_reset: bool,
    /// How many probes the connection had sent when the stream was abandoned, and when that was.
    probes: usize,
    since: Instant,
}

impl Abandoned {
    fn can_be_reset(&self, acknowledged: usize) -> bool {
        let has_head = !matches!(self.response, Discarding::Head(_));
        !self.is_reset && (has_head || self.probes < acknowledged)
    }

    /// Resolves when the server has sent all of the response, or when the stream has failed.
    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            match &mut self.response {
                Discarding::Head(response) => {
                    let response = ready!(Pin::new(response).poll(cx))?;
                    self.response = Discarding::Body(response.into_body());
                }
                Discarding::Body(body) => match ready!(body.poll_data(cx)) {
                    Some(data) => body.flow_control().release_capacity(data?.len())?,
                    None => return body.poll_trailers(cx).map_ok(drop),
                },
            }
        }
    }
}

impl Future for Abandoned {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // A reset wakes this, too.
        if !self.is_reset {
            let _ = ready!(self.poll_response(cx));
            // Does nothing, unless the server has not read all of the request.
            self.request.send_reset(Reason::CANCEL);
        }
        Poll::Ready(())
    }
}

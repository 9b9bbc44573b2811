//! The task of a connection: it takes calls from the pool, and drives HTTP/2.

mod timeouts;

use std::{
    mem,
    pin::Pin,
    sync::{Arc, OnceLock, Weak, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, Stream as _};
use h2::{Reason, client::SendRequest};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Status};

use super::{
    abandoned::AbandonedStreams,
    body::RequestBody,
    call::PendingCall,
    connector::{Http2, Opened},
    exchange::{End, Exchange, FailedCall, NotStarted},
    keepalive::Keepalive,
    lifetime::Lifetime,
    link::Link,
    pool::{Load, Pool},
    waker::{ConnectionHandle, ExchangeWaker},
};
use crate::{
    deadline::Stage,
    status::{Delivery, Origin, caused},
    trace,
};

/// A connection, as the future that drives it. It resolves when the connection has ended.
///
/// It owns everything about the connection: HTTP/2, the streams with their exchanges, keepalive.
/// Nothing else opens, reads or resets a stream, except the reader of a streamed response.
pub(crate) struct Connection {
    pool: Weak<Pool>,
    handle: Arc<ConnectionHandle>,
    /// The handle as a waker: of HTTP/2 and of the timer.
    waker: Waker,
    exchange_waker: Arc<ExchangeWaker>,
    link: Arc<Link>,
    /// `None` once the connection has ended.
    http2: Option<Http2>,
    /// `None` once the pool has removed the connection: HTTP/2 closes after the last stream.
    sender: Option<SendRequest<RequestBody>>,
    /// Whether HTTP/2 has to write something before it takes the next request.
    is_full: bool,
    exchanges: FuturesUnordered<Exchange>,
    abandoned: AbandonedStreams,
    /// Whether another round is needed for which nothing wakes this task.
    needs_round: bool,
    keepalive: Keepalive,
    lifetime: Lifetime,
    streams_per_connection: usize,
    /// What the pool knows of this connection.
    reported: Load,
    /// How many calls have failed in a row.
    failures: u32,
    /// Whether a call was answered since the last report.
    answered: bool,
    /// Whether the pool has removed the connection before it answered a call.
    removed_unanswered: bool,
    opened_at: Instant,
    /// Why the client closes the connection, if it does.
    close_reason: Option<&'static str>,
    /// Whether the end of the connection was counted.
    is_counted: bool,
    /// Whether calls stayed in the queue when this took calls last.
    calls_queued: bool,
    /// When this next takes calls without a request of the pool, while calls are queued.
    take_at: Option<Instant>,
    /// The earliest deadline of an exchange, or an earlier instant.
    deadline: Option<Instant>,
    /// When the budget for responses is checked again.
    check_budget_at: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    batch: Vec<Box<PendingCall>>,
}

/// The result of one round of [`Connection::advance`].
enum Round {
    /// There is more to do now.
    More,
    /// Nothing until the next wake-up.
    Pending,
    /// Nothing: the connection has ended.
    Ended,
}

/// How many calls are given to HTTP/2 before it writes them.
const BATCH: usize = 64;

/// How often the task tries to take calls while calls are queued.
const TAKE_INTERVAL: Duration = Duration::from_secs(1);

impl Connection {
    /// Creates the future that drives an open connection; `None` if the pool does not want it any more.
    pub(crate) fn new(
        opened: Opened,
        pool: &Arc<Pool>,
        handle: &Arc<ConnectionHandle>,
    ) -> Option<Self> {
        let Opened {
            sender,
            mut http2,
            io,
            peer,
        } = opened;
        let config = &pool.config;
        let limit = http2.max_concurrent_send_streams();
        let factor = pool.opened(handle, limit.min(config.streams_per_connection), peer)?;
        let now = Instant::now();
        Some(Self {
            pool: Arc::downgrade(pool),
            handle: handle.clone(),
            waker: handle.clone().into(),
            exchange_waker: ExchangeWaker::new(handle.clone()),
            keepalive: Keepalive::new(
                http2.ping_pong(),
                config.keepalive.saturating_mul(factor),
                config.keepalive_timeout,
                io.reads(),
                now,
            ),
            link: Arc::new(Link {
                id: handle.id,
                authority: pool.connector.authority.clone(),
                peer,
                counters: pool.counters.clone(),
                io,
                budget: pool.budget.clone(),
                probes: 0.into(),
                unsent: 0.into(),
                withholds: false.into(),
                stream_begun: false.into(),
                timed_out: OnceLock::new(),
                go_away: OnceLock::new(),
            }),
            http2: Some(http2),
            sender: Some(sender),
            is_full: false,
            exchanges: FuturesUnordered::new(),
            abandoned: AbandonedStreams::new(pool.counters.clone(), now),
            needs_round: false,
            lifetime: Lifetime::new(config.idle, config.max_connection_age, now),
            streams_per_connection: config.streams_per_connection,
            reported: Load::default(),
            failures: 0,
            answered: false,
            removed_unanswered: false,
            opened_at: now,
            close_reason: None,
            is_counted: false,
            calls_queued: false,
            take_at: None,
            deadline: None,
            check_budget_at: None,
            timer: Box::pin(sleep_until(now)),
            batch: Vec::new(),
        })
    }

    /// Does one round of all that can be done now.
    fn advance(&mut self, cx: &mut Context<'_>) -> Round {
        let Some(http2) = &mut self.http2 else {
            return Round::Ended;
        };
        // Before HTTP/2 is polled: a wake-up meanwhile must not be lost.
        self.handle.take_woken();
        let closed = Pin::new(http2).poll(cx);
        let now = Instant::now();
        if let Poll::Ready(closed) = closed {
            if let Err(error) = &closed {
                self.note_complaint(error);
                self.link.note_go_away(error);
            }
            self.note_go_away();
            self.end(closed.err(), now);
            return Round::Ended;
        }
        let more_exchanges = self.poll_exchanges(now);
        if self.handle_timeouts(now) {
            self.end(None, now);
            return Round::Ended;
        }
        match self.poll_sender() {
            Poll::Ready(Ok(())) => self.is_full = false,
            Poll::Ready(Err(error)) => {
                self.link.note_go_away(&error);
                self.remove_from_pool();
            }
            Poll::Pending => {}
        }
        let has_taken = self.take_calls(now);
        self.report_late_answer();
        let needs_round = mem::take(&mut self.needs_round);
        // `|` and not `||`: both have to be cleared.
        let woken = self.handle.take_woken() | self.exchange_waker.take_woken();
        let more = has_taken | needs_round | more_exchanges | woken;
        if more || self.set_timer(cx, now).is_ready() {
            Round::More
        } else {
            Round::Pending
        }
    }

    /// Returns what the pool has to know.
    fn load(&self) -> Load {
        let limit = self.stream_limit();
        let abandoned = self.abandoned.len();
        let streams = self.exchanges.len() + abandoned;
        let is_blocked = self.link.io.is_write_blocked() || self.link.check_budget();
        let has_room = self.sender.is_some() && !self.is_full && !is_blocked;
        Load {
            max_streams: limit,
            streams,
            abandoned,
            room: if has_room {
                limit.saturating_sub(streams)
            } else {
                0
            },
            suspect: self.keepalive.is_suspect(),
            failures: self.failures,
            answered: self.answered,
        }
    }

    fn stream_limit(&self) -> usize {
        let http2 = self.http2.as_ref();
        let limit = http2.map_or(0, |http2| http2.max_concurrent_send_streams());
        limit.min(self.streams_per_connection)
    }

    /// Polls the exchanges until a batch of them has ended. Returns whether there may be more.
    fn poll_exchanges(&mut self, now: Instant) -> bool {
        self.keepalive.observe(self.link.io.reads(), now);
        let waker = self.exchange_waker.clone().into();
        let mut cx = Context::from_waker(&waker);
        let mut ended = 0;
        while ended < BATCH {
            match Pin::new(&mut self.exchanges).poll_next(&mut cx) {
                Poll::Ready(Some(end)) => {
                    ended += 1;
                    self.exchange_ended(end, now);
                }
                // The set also wakes its task after it has polled all once.
                Poll::Pending if self.exchange_waker.take_woken() => {}
                Poll::Pending | Poll::Ready(None) => break,
            }
        }
        self.abandoned.poll(&mut cx);
        // When it begins, and not when it ends: that may be long after the server sent anything.
        if self.link.stream_begun.swap(false, Ordering::Relaxed) {
            self.keepalive.answered();
            self.answered = true;
        }
        ended == BATCH
    }

    fn exchange_ended(&mut self, end: End, now: Instant) {
        match end {
            End::Answered { unavailable: true } => {
                self.keepalive.answered();
                self.failures = self.failures.saturating_add(1);
            }
            End::Answered { unavailable: false } => {
                self.keepalive.answered();
                self.failures = 0;
                self.answered = true;
            }
            End::StreamRead => {}
            End::Failed(failed) => self.call_failed(failed, now),
            End::Cancelled { silent, stream } => {
                if silent {
                    self.suspect(now);
                }
                match stream {
                    Some(stream) => {
                        let probes = self.link.probes.load(Ordering::Relaxed);
                        self.abandoned.push(stream, probes, now);
                    }
                    None => self.abandoned.count_reset(now),
                }
            }
        }
    }

    fn call_failed(&mut self, failed: FailedCall, now: Instant) {
        let FailedCall {
            mut call,
            error,
            unprocessed,
            unwritten,
            no_head,
        } = failed;
        self.failures = self.failures.saturating_add(1);
        // A call that the server refused is retried once, one that was not sent at all any number of
        // times, see
        // [gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md#transparent-retries).
        let retry = unwritten || (unprocessed && !call.refused);
        match self.pool.upgrade().filter(|_| retry) {
            Some(pool) => {
                self.link.counters.transparent_retries.increment();
                if let Some(progress) = call.progress() {
                    let failure = self.link.failed(error, Delivery::NotSent);
                    progress.retried(now, failure, !unwritten);
                }
                call.refused |= !unwritten;
                call.queued_at = now;
                call.avoid = Some(self.handle.id);
                pool.put_back(call);
                pool.open_if_needed();
            }
            None => {
                let delivery = if unwritten || unprocessed {
                    Delivery::NotSent
                } else if no_head {
                    Delivery::MaybeSent
                } else {
                    Delivery::Answered
                };
                self.note_go_away();
                call.reply(Err(self.link.failed(error, delivery)));
            }
        }
    }

    /// Takes calls from the pool, and gives them to HTTP/2. Returns whether there were any.
    fn take_calls(&mut self, now: Instant) -> bool {
        let load = self.load();
        let requested = self.handle.take_requested();
        let Some(pool) = self.pool.upgrade() else {
            self.close("the client was dropped");
            return false;
        };
        let has_news = requested || load != self.reported;
        has_news && self.sender.is_some() && self.take_from(&pool, load, now)
    }

    fn take_from(&mut self, pool: &Arc<Pool>, load: Load, now: Instant) -> bool {
        let mut batch = mem::take(&mut self.batch);
        let taken = pool.take(&self.handle, load, BATCH, now, &mut batch);
        self.answered = false;
        self.calls_queued = taken.queued > 0;
        self.take_at = self.calls_queued.then(|| now + TAKE_INTERVAL);
        self.reported = Load {
            streams: load.streams + batch.len(),
            room: load.room - batch.len(),
            answered: false,
            ..load
        };
        if batch.len() == BATCH {
            self.handle.request_take(); // there may be more
        }
        let has_taken = !batch.is_empty();
        for call in batch.drain(..) {
            self.start(call, pool, now);
        }
        self.batch = batch;
        if taken.removed {
            self.close("its calls failed, while calls on other connections succeeded");
        }
        if taken.unassigned {
            pool.assign_all(Some(self.handle.id));
            pool.open_if_needed();
        }
        if let Some(since) = taken.suspect_since
            && !self.keepalive.has_read_since(since)
        {
            self.suspect(now);
        }
        has_taken
    }

    fn start(&mut self, call: Box<PendingCall>, pool: &Arc<Pool>, now: Instant) {
        if call.reply.is_closed() {
            return;
        }
        if let Some(status) = call.too_late(now, Stage::Stream) {
            if let Some(progress) = call.progress() {
                progress.dequeued(now);
            }
            return call.reply(Err(status));
        }
        // A stream whose reset is not written yet still counts towards the limit.
        self.is_full |= self.poll_sender().is_pending();
        let Some(sender) = self.sender.as_mut().filter(|_| !self.is_full) else {
            return pool.put_back(call);
        };
        match Exchange::start(call, sender, &self.link, now) {
            Ok(exchange) => {
                self.deadline = earlier(self.deadline, exchange.deadline());
                self.exchanges.push(exchange);
            }
            Err(not_started) => match not_started {
                NotStarted::Closed(call) => {
                    self.remove_from_pool();
                    pool.put_back(call);
                    pool.open_if_needed();
                }
                NotStarted::Invalid(call, error) => call.reply(Err(invalid_request(error))),
            },
        }
    }

    /// Polls whether HTTP/2 accepts a request now. An error says that the connection accepts no more:
    /// the server may be closing it.
    fn poll_sender(&mut self) -> Poll<Result<(), h2::Error>> {
        let mut cx = Context::from_waker(Waker::noop());
        match &mut self.sender {
            Some(sender) => sender.poll_ready(&mut cx),
            None => Poll::Pending,
        }
    }

    /// Records the server's GOAWAY. It is read from the sender, because the streams that it ends may only
    /// report the error of the socket, which is closed afterwards.
    fn note_go_away(&mut self) {
        if let Poll::Ready(Err(error)) = self.poll_sender() {
            self.link.note_go_away(&error);
        }
    }

    /// Counts and logs that the connection was closed. `reason` is used only if no earlier reason is known.
    fn note_closed(&mut self, reason: Option<&str>) {
        self.is_counted = true;
        self.link.counters.disconnections.increment();
        let go_away = self.link.go_away.get().map(String::as_str);
        let known = go_away.or(self.close_reason).or(reason);
        trace::connection_closed(
            &self.link.authority,
            self.link.id,
            self.opened_at.elapsed(),
            known.unwrap_or("the server closed the connection"),
            self.link.timed_out.get().copied(),
        );
    }

    /// Reports the first answer if the pool has removed the connection before. Later answers are not
    /// reported: they say nothing about the connections that replace this one.
    fn report_late_answer(&mut self) {
        if self.removed_unanswered && self.answered {
            self.removed_unanswered = false;
            if let Some(pool) = self.pool.upgrade() {
                pool.answered_late();
            }
        }
    }

    /// Stops taking calls. HTTP/2 closes the connection once its calls have ended. Returns whether it was taking
    /// calls.
    fn close(&mut self, reason: &'static str) -> bool {
        self.close_reason.get_or_insert(reason);
        self.sender.take().is_some()
    }

    /// Closes a good connection once its calls have ended.
    fn retire(&mut self, reason: &'static str) {
        if self.close(reason)
            && let Some(pool) = self.pool.upgrade()
        {
            pool.retire(&self.handle, self.load());
            pool.open_if_needed();
        }
    }

    /// Takes no more calls, because the server accepts none. Those on the connection may end.
    fn remove_from_pool(&mut self) {
        if self.sender.take().is_some()
            && let Some(pool) = self.pool.upgrade()
        {
            self.removed_unanswered = pool.remove(&self.handle, self.load());
            pool.open_if_needed();
        }
    }

    /// Reports a GOAWAY with `too_many_pings` to the pool. The debug data is checked because
    /// ENHANCE_YOUR_CALM may have other reasons.
    fn note_complaint(&self, error: &h2::Error) {
        let calm = error.is_remote() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
        if calm
            && error.to_string().contains("too_many_pings")
            && let Some(pool) = self.pool.upgrade()
        {
            trace::too_many_pings(&self.link.authority, self.link.id);
            pool.ping_less();
        }
    }

    /// Ends the connection, and the calls on it. `error` is the HTTP/2 error, if any.
    fn end(&mut self, error: Option<h2::Error>, now: Instant) {
        // Before any call is notified, so that no new call is assigned to this connection.
        let pool = self.pool.upgrade();
        if let Some(pool) = &pool {
            self.removed_unanswered |= pool.remove(&self.handle, self.load());
        }
        self.sender = None;
        self.http2 = None; // which fails its streams
        let mut cx = Context::from_waker(Waker::noop());
        for mut exchange in mem::take(&mut self.exchanges) {
            if let Poll::Ready(end) = Pin::new(&mut exchange).poll(&mut cx) {
                self.exchange_ended(end, now);
            }
        }
        self.report_late_answer();
        // Last, because the totals are final once the last connection has ended.
        let error = error.map(|error| error.to_string());
        self.note_closed(error.as_deref());
        if let Some(pool) = &pool {
            pool.open_if_needed();
        }
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        /// How many rounds there are before other tasks of the runtime are polled.
        const ROUNDS: usize = 16;
        let this = &mut *self;
        this.handle.start_poll(cx);
        let waker = this.waker.clone();
        let mut own = Context::from_waker(&waker);
        // First, so that the first poll of HTTP/2 writes the requests.
        this.take_calls(Instant::now());
        for _ in 0..ROUNDS {
            match this.advance(&mut own) {
                Round::Ended => return Poll::Ready(()),
                Round::More => {}
                Round::Pending if this.handle.finish_poll() | this.exchange_waker.take_woken() => {
                    this.handle.start_poll(cx);
                }
                Round::Pending => return Poll::Pending,
            }
        }
        this.handle.finish_poll();
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Connection {
    /// Runs before the fields are dropped, so before any call learns that its connection has gone.
    fn drop(&mut self) {
        if self.http2.is_some()
            && let Some(pool) = self.pool.upgrade()
        {
            pool.dropped(&self.handle, self.load());
        }
        // A waker that panicked may have ended the task before.
        if !self.is_counted {
            self.note_closed(Some("the runtime of the connection has shut down"));
        }
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

fn invalid_request(error: h2::Error) -> Status {
    caused(
        Code::InvalidArgument,
        format!("invalid request: {error}"),
        Origin::Client,
        Delivery::NotSent,
        error,
    )
}

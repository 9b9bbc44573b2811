//! The task of a connection: it takes calls from the pool, and drives HTTP/2.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, OnceLock, Weak, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, Stream as _};
use h2::{Reason, client::SendRequest};
use tokio::{
    task::unconstrained,
    time::{Instant, Sleep, sleep_until},
};
use tonic::{Code, Status};

use super::{
    abandoned::AbandonedStreams,
    call::Call,
    connector::{Http2, Opened, WINDOW},
    exchange::{End, Exchange, FailedCall, NotStarted},
    keepalive::{Keepalive, Verdict},
    link::{Link, RequestBody},
    pool::{Load, Pool},
    waker::{ExchangeWaker, Handle},
};
use crate::{
    status::{Origin, caused},
    trace,
};

/// A connection, as the future that drives it. It resolves when the connection has ended.
///
/// It owns all that belongs to the connection: HTTP/2, the streams and their exchanges, keepalive.
/// Nothing else opens, reads or resets a stream, but for the reader of a streamed response.
pub(crate) struct Connection {
    pool: Weak<Pool>,
    handle: Arc<Handle>,
    /// The handle as a waker: of HTTP/2 and of the timer.
    waker: Waker,
    exchange_waker: Arc<ExchangeWaker>,
    link: Arc<Link>,
    /// `None` once the connection has ended.
    http2: Option<Http2>,
    /// `None` once no more calls are taken: HTTP/2 closes after the last stream.
    sender: Option<SendRequest<RequestBody>>,
    /// Whether HTTP/2 has to write something before it takes the next request.
    is_full: bool,
    exchanges: FuturesUnordered<Exchange>,
    abandoned: AbandonedStreams,
    /// Whether there is a frame to write of which HTTP/2 does not wake this task.
    has_frames: bool,
    keepalive: Keepalive,
    /// What the pool knows.
    reported: Load,
    /// Calls that failed in a row.
    failures: u32,
    /// Whether a call was answered since the last report, and at all.
    answered: bool,
    has_answered: bool,
    /// Whether calls wait for this connection.
    queued: bool,
    streams: usize,
    idle: Duration,
    idle_since: Instant,
    retire_at: Option<Instant>,
    /// When the last exchange ended after no more calls were taken.
    closing_since: Option<Instant>,
    /// The earliest deadline of an exchange, or an earlier instant.
    deadline: Option<Instant>,
    /// When the task next takes calls without having been called, while calls are queued.
    visit_at: Option<Instant>,
    /// When the budget for answers is checked again.
    over_budget: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    batch: Vec<Call>,
}

/// What became of a turn of the task.
enum Turn {
    /// There is more to do.
    Again,
    Done,
    /// The connection has ended.
    Ended,
}

/// How many calls are given to HTTP/2 before it writes them.
const BATCH: usize = 64;

/// How long a connection that is not needed may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the task tries to take calls while calls are queued.
const VISITS: Duration = Duration::from_secs(1);

/// How often the budget for answers is checked while it is exceeded.
const BUDGET_INTERVAL: Duration = Duration::from_millis(10);

impl Connection {
    /// Makes the future of a connection that is open; `None` if the pool does not want it any more.
    pub(crate) fn new(opened: Opened, pool: &Arc<Pool>, handle: &Arc<Handle>) -> Option<Self> {
        let Opened {
            sender,
            mut http2,
            counters,
        } = opened;
        let limits = &pool.limits;
        let limit = http2.max_concurrent_send_streams();
        let limit = limit.min(limits.streams_per_connection);
        let patience = pool.opened(handle, limit)?;
        let now = Instant::now();
        let interval = limits.keepalive.saturating_mul(patience);
        let age = limits.max_connection_age.map(|age| {
            // Connections that were opened together are not closed together.
            let jitter = age / 5;
            (age - jitter / 2).saturating_add(jitter.mul_f64(fastrand::f64()))
        });
        Some(Self {
            pool: Arc::downgrade(pool),
            handle: handle.clone(),
            waker: handle.clone().into(),
            exchange_waker: ExchangeWaker::new(handle.clone()),
            keepalive: Keepalive::new(
                http2.ping_pong(),
                interval,
                limits.keepalive_timeout,
                counters.reads(),
                now,
            ),
            link: Arc::new(Link {
                authority: pool.connector.authority().clone(),
                counters,
                budget: pool.budget.clone(),
                probes: 0.into(),
                unsent: 0.into(),
                held_back: false.into(),
                unanswered: OnceLock::new(),
            }),
            http2: Some(http2),
            sender: Some(sender),
            is_full: false,
            exchanges: FuturesUnordered::new(),
            abandoned: AbandonedStreams::new(),
            has_frames: false,
            reported: Load::default(),
            failures: 0,
            answered: false,
            has_answered: false,
            queued: false,
            streams: limits.streams_per_connection,
            idle: limits.idle,
            idle_since: now,
            retire_at: age.and_then(|age| now.checked_add(age)),
            closing_since: None,
            deadline: None,
            visit_at: None,
            over_budget: None,
            timer: Box::pin(sleep_until(now)),
            batch: Vec::new(),
        })
    }

    fn load(&self) -> Load {
        let http2 = self.http2.as_ref();
        let limit = http2.map_or(0, |http2| http2.max_concurrent_send_streams());
        let limit = limit.min(self.streams);
        let abandoned = self.abandoned.len();
        let streams = self.exchanges.len() + abandoned;
        let blocked = self.link.counters.is_write_blocked() || self.link.is_over_budget();
        let room = match blocked || self.is_full || self.sender.is_none() {
            true => 0,
            false => limit.saturating_sub(streams),
        };
        Load {
            limit,
            streams,
            abandoned,
            room,
            suspect: self.keepalive.is_suspect(),
            failures: self.failures,
            answered: self.answered,
        }
    }

    /// Takes no more calls. Those on the connection may end.
    fn retire(&mut self) {
        if self.sender.take().is_some() {
            self.closing_since = None;
            if let Some(pool) = self.pool.upgrade() {
                pool.remove(&self.handle, self.load());
                pool.open_if_needed();
            }
        }
    }

    /// Reports to the pool that the server complained of too many pings. The debug text says so; the
    /// code alone may have another reason.
    fn note_complaint(&self, error: &h2::Error) {
        let calm = error.is_remote() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
        let complaint = calm && error.to_string().contains("too_many_pings");
        if let Some(pool) = self.pool.upgrade().filter(|_| complaint) {
            pool.ping_less();
        }
    }

    /// Whether HTTP/2 takes a request now. An error says that the connection takes no more: the
    /// server may be closing it.
    fn poll_sender(&mut self) -> Poll<Result<(), h2::Error>> {
        let mut cx = Context::from_waker(Waker::noop());
        match &mut self.sender {
            Some(sender) => sender.poll_ready(&mut cx),
            None => Poll::Pending,
        }
    }

    /// Polls the exchanges until a batch of them has ended. Returns whether there may be more.
    fn poll_exchanges(&mut self, now: Instant) -> bool {
        let reads = self.link.counters.reads();
        self.keepalive.observe(reads, now);
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
        if ended > 0 && self.exchanges.is_empty() {
            self.idle_since = now;
        }
        ended == BATCH
    }

    fn exchange_ended(&mut self, end: End, now: Instant) {
        match end {
            End::Answered { failed } => {
                self.keepalive.answered();
                if failed {
                    self.failures = self.failures.saturating_add(1);
                } else {
                    self.failures = 0;
                    self.answered = true;
                    if !mem::replace(&mut self.has_answered, true)
                        && let Some(pool) = self.pool.upgrade()
                    {
                        pool.answered();
                    }
                }
            }
            End::Failed(failed) => self.call_failed(*failed),
            End::Abandoned(abandoned) => {
                if abandoned.late && self.link.unasked_reads() <= abandoned.reads {
                    self.suspect(now);
                }
                let probes = self.link.probes.load(Ordering::Relaxed);
                self.abandoned.push(abandoned, probes, now);
            }
        }
    }

    fn call_failed(&mut self, failed: FailedCall) {
        let FailedCall {
            mut call,
            error,
            unprocessed,
            unwritten,
        } = failed;
        self.failures = self.failures.saturating_add(1);
        // A call that the server refused is sent again once, one that was not sent at all any number
        // of times, see
        // [gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md#transparent-retries).
        let again = unwritten || (unprocessed && !call.refused);
        match self.pool.upgrade().filter(|_| again) {
            Some(pool) => {
                call.refused |= !unwritten;
                call.avoid = Some(self.handle.id);
                pool.put_back(call);
                pool.open_if_needed();
            }
            None => call.reply(Err(self.link.failed(error))),
        }
    }

    fn suspect(&mut self, now: Instant) {
        if self.keepalive.suspect(now) == Verdict::Probe {
            self.probe();
        }
    }

    /// Sends a frame that the peer has to acknowledge: settings that change nothing. Strict servers
    /// do not count it. Returns whether the one before was acknowledged.
    fn probe(&mut self) -> bool {
        let http2 = self.http2.as_mut();
        let acknowledged = http2.is_some_and(|h| h.set_initial_window_size(WINDOW).is_ok());
        let probes = usize::from(acknowledged);
        self.link.probes.fetch_add(probes, Ordering::Relaxed);
        self.has_frames |= acknowledged;
        acknowledged
    }

    fn reset_abandoned(&mut self, now: Instant) {
        let probes = self.link.probes.load(Ordering::Relaxed);
        let blocked = self.link.counters.is_write_blocked();
        if self.abandoned.postpone(now) && !blocked {
            if self.probe() {
                self.abandoned.reset(probes);
            }
            self.keepalive.probed(now);
        }
    }

    /// Takes calls from the pool, and gives them to HTTP/2. Returns whether there were any.
    fn take_calls(&mut self, now: Instant) -> bool {
        let load = self.load();
        let called = self.handle.take_called();
        let taken = match self.pool.upgrade() {
            Some(pool) if called || load != self.reported => self.take_from(&pool, load, now),
            Some(_) => false,
            None => {
                self.sender = None;
                false
            }
        };
        let busy = !self.exchanges.is_empty() || self.queued;
        self.keepalive.set_busy(busy, now);
        taken
    }

    fn take_from(&mut self, pool: &Arc<Pool>, load: Load, now: Instant) -> bool {
        if self.sender.is_none() {
            return false;
        }
        let mut batch = mem::take(&mut self.batch);
        let taken = pool.take(&self.handle, load, BATCH, now, &mut batch);
        self.answered = false;
        self.queued = taken.queued > 0;
        self.visit_at = self.queued.then(|| now + VISITS);
        self.reported = Load {
            streams: load.streams + batch.len(),
            room: load.room - batch.len(),
            answered: false,
            ..load
        };
        if batch.len() == BATCH {
            self.handle.call(); // there may be more
        }
        let has_taken = !batch.is_empty();
        for call in batch.drain(..) {
            self.start(call, pool, now);
        }
        self.batch = batch;
        if taken.removed {
            self.sender = None;
        }
        if taken.unassigned {
            pool.assign_all(Some(self.handle.id));
            pool.open_if_needed();
        }
        if let Some(since) = taken.doubted
            && !self.keepalive.has_read_since(since)
        {
            self.suspect(now);
        }
        has_taken
    }

    fn start(&mut self, call: Call, pool: &Arc<Pool>, now: Instant) {
        if call.reply.is_closed() {
            return;
        }
        if let Some(status) = call.too_late(now) {
            return call.reply(Err(status));
        }
        // A reset that is not written yet keeps its stream from the next request.
        self.is_full |= self.poll_sender().is_pending();
        let Some(sender) = self.sender.as_mut().filter(|_| !self.is_full) else {
            return pool.put_back(call);
        };
        match Exchange::start(call, sender, &self.link, now) {
            Ok(exchange) => {
                let deadline = exchange.deadline();
                self.deadline = earlier(self.deadline, deadline);
                self.exchanges.push(exchange);
            }
            Err(not_started) => match *not_started {
                NotStarted::Closed(call) => {
                    self.retire();
                    pool.put_back(call);
                    pool.open_if_needed();
                }
                NotStarted::Refused(call, error) => call.reply(Err(refused(error))),
            },
        }
    }

    /// Does what is due at this time. Returns how long the peer did not answer if it is dead.
    fn on_time(&mut self, now: Instant) -> Result<(), Option<Duration>> {
        let is_due = |due: Option<Instant>| due.is_some_and(|due| now >= due);
        if is_due(self.deadline) {
            self.expire(now);
        }
        match self.keepalive.check(now) {
            Verdict::Alive | Verdict::Probe => {}
            Verdict::Dead(timeout) => return Err(Some(timeout)),
        }
        if is_due(self.visit_at) {
            self.visit_at = None;
            self.handle.call();
        }
        if is_due(self.retire_at) {
            self.retire_at = None;
            self.retire();
        }
        if is_due(self.abandoned.due()) {
            self.reset_abandoned(now);
        }
        if is_due(self.over_budget) {
            self.release();
        }
        if self.sender.is_none() {
            let closing_since = self.closing_since.filter(|_| self.exchanges.is_empty());
            if is_due(closing_since.map(|since| since + CLOSE_TIMEOUT)) {
                return Err(None);
            }
        } else if is_due(self.idle_at()) {
            self.idle_since = now;
            if let Some(pool) = self.pool.upgrade()
                && pool.remove_idle(&self.handle)
            {
                self.sender = None;
            }
        }
        Ok(())
    }

    fn idle_at(&self) -> Option<Instant> {
        let idle = self.exchanges.is_empty() && self.sender.is_some();
        idle.then(|| self.idle_since.checked_add(self.idle))
            .flatten()
    }

    /// Ends the exchanges whose deadline has passed, although their callers have not gone: they are
    /// not polled.
    fn expire(&mut self, now: Instant) {
        self.deadline = None;
        self.idle_since = now;
        let has_passed = |deadline: Option<Instant>| deadline.is_some_and(|at| at <= now);
        if self.exchanges.iter().any(|e| has_passed(e.deadline())) {
            for mut exchange in mem::take(&mut self.exchanges) {
                if !has_passed(exchange.deadline()) {
                    self.exchanges.push(exchange.moved());
                } else if let Some(abandoned) = exchange.expire(now) {
                    self.exchange_ended(End::Abandoned(abandoned), now);
                }
            }
        }
        let deadlines = self.exchanges.iter().map(Exchange::deadline);
        self.deadline = deadlines.fold(None, earlier);
    }

    /// Lets servers send more of their answers: of all, or of the oldest while there is no budget for
    /// more.
    fn release(&mut self) {
        self.over_budget = None;
        if !self.link.is_over_budget() {
            return self.exchanges.iter_mut().for_each(Exchange::release);
        }
        let oldest = self.exchanges.iter_mut().filter(|e| e.is_held_back());
        if let Some(oldest) = oldest.min_by_key(|exchange| exchange.number()) {
            oldest.release();
        }
    }

    /// Sets the timer to the next instant at which something is due.
    fn arm(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()> {
        if self.link.held_back.swap(false, Ordering::Relaxed) {
            self.over_budget = self.over_budget.or(now.checked_add(BUDGET_INTERVAL));
        }
        if self.sender.is_none() && self.exchanges.is_empty() {
            self.closing_since = self.closing_since.or(Some(now));
        }
        let closes = self.closing_since.map(|since| since + CLOSE_TIMEOUT);
        let due = [
            self.deadline,
            self.keepalive.due(),
            self.retire_at,
            self.visit_at,
            self.over_budget,
            self.abandoned.due(),
            self.idle_at(),
            closes.filter(|_| self.exchanges.is_empty()),
        ];
        let Some(due) = due.into_iter().fold(None, earlier) else {
            return Poll::Pending;
        };
        // To set it costs more than to let it fire in vain.
        let armed = self.timer.deadline();
        if armed > due || armed <= now {
            self.timer.as_mut().reset(due);
            return Pin::new(&mut unconstrained(self.timer.as_mut())).poll(cx);
        }
        Poll::Pending
    }

    /// Does all that can be done now.
    fn turn(&mut self, cx: &mut Context<'_>) -> Turn {
        let Some(http2) = &mut self.http2 else {
            return Turn::Ended;
        };
        self.handle.take_woken();
        let closed = Pin::new(http2).poll(cx);
        let now = Instant::now();
        if let Poll::Ready(closed) = closed {
            if let Err(error) = closed {
                self.note_complaint(&error);
            }
            self.end(now);
            return Turn::Ended;
        }
        let more = self.poll_exchanges(now);
        if let Err(unanswered) = self.on_time(now) {
            if let Some(timeout) = unanswered {
                let _ = self.link.unanswered.set(timeout);
            }
            self.end(now);
            return Turn::Ended;
        }
        match self.poll_sender() {
            Poll::Ready(Ok(())) => self.is_full = false,
            Poll::Ready(Err(_)) => self.retire(),
            Poll::Pending => {}
        }
        let more = self.take_calls(now) | mem::take(&mut self.has_frames) | more;
        let woken = self.handle.take_woken() | self.exchange_waker.take_woken();
        match woken | more || self.arm(cx, now).is_ready() {
            true => Turn::Again,
            false => Turn::Done,
        }
    }

    /// Ends the connection, and with it the calls on it.
    fn end(&mut self, now: Instant) {
        trace::disconnected(&self.link.authority);
        // Before any call learns of it: the next must not come here.
        let pool = self.pool.upgrade();
        if let Some(pool) = &pool {
            pool.remove(&self.handle, self.load());
        }
        self.sender = None;
        self.http2 = None; // which fails its streams
        let mut cx = Context::from_waker(Waker::noop());
        for mut exchange in mem::take(&mut self.exchanges) {
            if let Poll::Ready(end) = Pin::new(&mut exchange).poll(&mut cx) {
                self.exchange_ended(end, now);
            }
        }
        if let Some(pool) = &pool {
            pool.open_if_needed();
        }
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        /// How often HTTP/2 and the exchanges are polled before other tasks have their turn.
        const TURNS: usize = 16;
        let this = &mut *self;
        this.handle.begin(cx);
        let waker = this.waker.clone();
        let mut own = Context::from_waker(&waker);
        this.take_calls(Instant::now());
        for _ in 0..TURNS {
            match this.turn(&mut own) {
                Turn::Ended => return Poll::Ready(()),
                Turn::Again => {}
                Turn::Done if this.handle.end() | this.exchange_waker.take_woken() => {
                    this.handle.begin(cx);
                }
                Turn::Done => return Poll::Pending,
            }
        }
        this.handle.end();
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Connection {
    /// Runs before the fields are dropped, so before any call learns that its connection is gone.
    fn drop(&mut self) {
        if self.http2.is_some()
            && let Some(pool) = self.pool.upgrade()
        {
            trace::disconnected(&self.link.authority);
            pool.dropped(&self.handle, self.load());
        }
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

fn refused(error: h2::Error) -> Status {
    caused(
        Code::InvalidArgument,
        format!("the request cannot be sent over HTTP/2: {error}"),
        Origin::Client,
        error,
    )
}

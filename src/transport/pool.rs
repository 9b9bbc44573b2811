//! Connection pool: a queue of calls, and the connections that take them.

mod attempts;
mod connections;
mod queue;
mod readiness;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake as _, Waker},
    time::Duration,
};

use tokio::{runtime, time::Instant};
use tonic::Status;

pub(crate) use self::{attempts::Attempt, connections::Load};
use self::{
    attempts::Attempts,
    connections::{Connections, PooledConnection},
    queue::Queue,
    readiness::{QueueFull, Readiness},
};
use super::{
    budget::Budget,
    call::{PendingCall, Unsent},
    connector::Connector,
    stats::{Counters, TransportStats},
    waker::ConnectionHandle,
};
use crate::{
    deadline::Stage,
    status::{Delivery, Origin, mark},
    trace,
};

/// The settings of a pool.
#[derive(Clone, Debug)]
pub(crate) struct PoolConfig {
    pub(crate) min_connections: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_connection_age: Option<Duration>,
    /// The maximum number of streams of a connection, where the server allows more.
    pub(crate) streams_per_connection: usize,
    pub(crate) max_queued_calls: usize,
    pub(crate) max_buffered_bytes: usize,
    /// How long a connection with calls may receive nothing before it is pinged.
    pub(crate) keepalive: Duration,
    /// How long the acknowledgement of that ping may take.
    pub(crate) keepalive_timeout: Duration,
    /// How long a connection beside others is kept without calls.
    pub(crate) idle: Duration,
}

/// The queue of calls, and the connections that take them.
///
/// It decides which connection takes the next call, and whether to open another. It does no I/O.
///
/// A call that is queued is *assigned* to a connection: the pool counts it, and wakes the
/// connection's task. That is only a hint. Calls stay in the common queue until a task calls
/// [`take`](Self::take), which is also how it reports its [`Load`]; any connection may take any
/// call. What is assigned to a connection that does not report within 100 ms is assigned to another.
///
/// While the lock is held, no waker is called or dropped, and no call or status: each of these may run
/// code of a user, which may use the pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) connector: Arc<Connector>,
    pub(crate) config: PoolConfig,
    pub(crate) budget: Arc<Budget>,
    pub(crate) counters: Arc<Counters>,
    /// Spawns the task that opens and drives a connection.
    spawn: fn(&Arc<Self>, Attempt),
    queue_full: QueueFull,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    readiness: Readiness,
    connections: Connections,
    attempts: Attempts,
    /// How many streams the next connection is expected to allow: as many as the last one.
    expected_streams: usize,
    /// How often a server complained of too many pings.
    complaints: u32,
}

/// A call that was queued.
#[derive(Debug)]
pub(crate) struct Pushed {
    pub(crate) number: u64,
    /// Whether another connection has to be opened.
    pub(crate) needs_connection: bool,
    /// Whether the call is assigned to a connection on the caller's runtime, which most likely takes it.
    pub(crate) is_assigned: bool,
}

/// What a connection gets when it takes calls.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// How many calls are still queued; 0 if `removed`.
    pub(crate) queued: usize,
    /// Whether calls have to be assigned to other connections.
    pub(crate) unassigned: bool,
    /// Since when the peer should have sent something.
    pub(crate) suspect_since: Option<Instant>,
    /// Whether the connection was removed, because its calls fail while others succeed.
    pub(crate) removed: bool,
}

/// Wake-ups and replies that are sent after the pool is unlocked.
#[derive(Default)]
#[must_use]
struct Deferred {
    connection: Option<Arc<ConnectionHandle>>,
    callers: Vec<Waker>,
    expired: Vec<Box<PendingCall>>,
    /// What the expired calls waited for.
    stage: Option<Stage>,
}

impl Deferred {
    fn run(self, now: Instant) {
        if let Some(connection) = self.connection {
            connection.wake_by_ref();
        }
        self.callers.into_iter().for_each(Waker::wake);
        for call in self.expired {
            call.reply_too_late(now, self.stage.unwrap_or(Stage::Stream));
        }
    }
}

impl Pool {
    pub(crate) fn new(
        connector: Connector,
        config: PoolConfig,
        spawn: fn(&Arc<Self>, Attempt),
    ) -> Arc<Self> {
        let state = State {
            queue: Queue::new(config.max_queued_calls),
            readiness: Readiness::default(),
            connections: Connections::default(),
            attempts: Attempts::default(),
            expected_streams: config.streams_per_connection.min(100),
            complaints: 0,
        };
        Arc::new(Self {
            connector: Arc::new(connector),
            budget: Budget::new(config.max_buffered_bytes),
            counters: Arc::default(),
            config,
            spawn,
            queue_full: state.readiness.queue_full(),
            state: Mutex::new(state),
        })
    }

    pub(crate) fn stats(&self) -> TransportStats {
        let now = Instant::now();
        let state = self.lock();
        let totals = self.counters.totals();
        let connections = state.connections.iter();
        TransportStats {
            connections: connections.map(|c| c.stats(now)).collect(),
            open_connections: totals.open_connections(),
            max_connections: self.config.max_connections,
            connecting: state.attempts.len(),
            queued_calls: state.queue.len(),
            max_queued_calls: state.queue.bound(),
            blocked_callers: state.readiness.waiting(),
            queue_age: state.queue.age(now),
            totals,
        }
    }

    /// Returns how many streams the open connections allow. While none is open, each that may be opened
    /// counts as one stream.
    pub(crate) fn capacity(&self) -> usize {
        let state = self.lock();
        if state.connections.is_empty() {
            return self.config.max_connections;
        }
        state.connections.iter().map(|c| c.load.max_streams).sum()
    }

    /// Waits until the queue is not full. Nothing is reserved: the queue may be full again when the
    /// call arrives.
    pub(crate) fn poll_ready(
        &self,
        registration: &mut Option<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if !self.queue_full.get() && registration.is_none() {
            return Poll::Ready(());
        }
        let (ready, unused) = self.lock().readiness.poll(registration, cx);
        drop(unused);
        ready
    }

    /// Ends a registration of [`poll_ready`](Self::poll_ready).
    pub(crate) fn unregister(&self, registration: u64) {
        let waker = self.lock().readiness.unregister(registration);
        drop(waker);
    }

    /// Queues the call of a caller on this runtime, and assigns it to a connection.
    ///
    /// # Errors
    ///
    /// - `RESOURCE_EXHAUSTED`: the queue is full.
    /// - `UNAVAILABLE`: there is no connection, and the next attempt to open one is not due.
    pub(crate) fn push(
        &self,
        call: Box<PendingCall>,
        caller: runtime::Id,
    ) -> Result<Pushed, Status> {
        let now = call.queued_at;
        let mut state = self.lock();
        if state.connections.running().next().is_none()
            && let Some(failure) = state.attempts.backoff_failure(now)
        {
            return Err(failure);
        }
        let mut deferred = state.make_room(now);
        let number = state.queue.push(call);
        if state.queue.is_full() {
            state.readiness.set_full();
        }
        deferred.connection = state.assign(None, now);
        let needs_connection = state.needs_connection(&self.config, now).is_some();
        let is_assigned = state.queue.len() <= state.connections.assigned(now)
            && state.connections.are_all_on(caller);
        drop(state);
        deferred.run(now);
        let number = number.map_err(|_| queue_full(self.config.max_queued_calls))?;
        Ok(Pushed {
            number,
            needs_connection,
            is_assigned,
        })
    }

    /// Removes a call whose caller does not wait any more. Returns what it waited for; `None` if a
    /// connection has taken it already.
    pub(crate) fn remove_call(&self, number: u64) -> Option<Stage> {
        let now = Instant::now();
        let mut state = self.lock();
        let removed = state.queue.remove(number);
        let mut deferred = Deferred::default();
        if let Some(call) = &removed
            && call
                .deadline
                .is_some_and(|deadline| deadline.has_passed_for_caller(now))
            && state.connections.no_streams_allowed()
        {
            // The connection may be dead: a stream limit of 0 is all that it has sent.
            deferred.connection = state.connections.suspect_oldest(call.queued_at, now);
        }
        deferred.callers = state.callers_to_wake();
        let stage = state.stage();
        drop(state);
        deferred.run(now);
        removed.map(|_| stage)
    }

    /// Returns since when a call has been queued, if it still is. Its connection may be on a stalled
    /// runtime: then the call is assigned to another.
    pub(crate) fn check_queued(&self, number: u64) -> Option<Instant> {
        let now = Instant::now();
        let limit = self
            .connector
            .timeout
            .saturating_add(Duration::from_secs(1));
        let mut state = self.lock();
        let queued_at = state.queue.queued_at(number)?;
        let stalled = state.connections.mark_stalled(now);
        let given_up = state.attempts.give_up(limit, now);
        if given_up > 0 || stalled {
            state.attempts.forget_runtime();
        }
        drop(state);
        for _ in 0..given_up {
            self.note_connect_failed(&runtime_stalled());
        }
        self.assign_all(None);
        Some(queued_at)
    }

    /// Assigns the queued calls that are not assigned yet.
    pub(crate) fn assign_all(&self, avoid: Option<u64>) {
        loop {
            let assigned = self.lock().assign(avoid, Instant::now());
            match assigned {
                Some(handle) => handle.wake_by_ref(),
                None => return,
            }
        }
    }

    /// Takes the report of a connection, and gives it calls to send, at most `max`.
    ///
    /// It may get fewer than it has room for: calls that are assigned to others are left to them.
    pub(crate) fn take(
        &self,
        handle: &ConnectionHandle,
        load: Load,
        max: usize,
        now: Instant,
        calls: &mut Vec<Box<PendingCall>>,
    ) -> Taken {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(connection) = state.connections.get_mut(handle) else {
            return Taken {
                removed: true,
                unassigned: true,
                ..Taken::default()
            };
        };
        if connection.report(load, now) {
            state.attempts.answered();
        }
        if (load.answered || load.failures > 0)
            && let Some(failing) = state.connections.remove_failing()
        {
            // Its task, which may be the one that reports, learns of it from its next report.
            state.attempts.connection_closed(&failing, false, now);
            failing.handle.request_take();
            drop(guard);
            failing.handle.wake_by_ref();
            return self.take(handle, load, max, now, calls);
        }
        let mut deferred = state.make_room(now);
        // This connection has reported, so that nothing is assigned to it.
        let assigned = state.connections.assigned(now);
        let unassigned = state.queue.len().saturating_sub(assigned);
        let is_only_choice = !state.connections.has_room_beside(handle, now);
        for _ in 0..unassigned.min(load.room).min(max) {
            calls.extend(state.queue.pop(handle.id, is_only_choice, now));
        }
        let queued = state.queue.len();
        let connection = state.connections.get_mut(handle);
        let taken = Taken {
            queued,
            unassigned: queued > assigned,
            suspect_since: connection.and_then(|c| c.took(calls.len(), queued)),
            removed: false,
        };
        deferred.callers.extend(state.callers_to_wake());
        drop(guard);
        deferred.run(now);
        taken
    }

    /// Puts back a call that the server certainly did not process.
    pub(crate) fn put_back(&self, call: Box<PendingCall>) {
        let avoid = call.avoid;
        self.lock().queue.put_back(call);
        self.assign_all(avoid);
    }

    /// Opens the connections that are needed.
    pub(crate) fn open_if_needed(self: &Arc<Self>) {
        // Bounded: a runtime that has ended drops the task immediately, and then another is needed.
        for _ in 0..=self.config.max_connections {
            match self.next_attempt() {
                Some(attempt) => (self.spawn)(self, attempt),
                None => return,
            }
        }
    }

    fn next_attempt(&self) -> Option<Attempt> {
        let mut state = self.lock();
        let starts_at = state.needs_connection(&self.config, Instant::now())?;
        state.attempts.start(starts_at)
    }

    /// Registers an attempt that was made on this runtime, whether or not a connection is needed.
    pub(crate) fn register_attempt(&self, runtime: runtime::Handle) -> Attempt {
        self.lock().attempts.start_on(runtime, Instant::now())
    }

    /// Adds a connection that is open. Returns by which factor its keepalive interval is longer than
    /// the setting; `None` if the attempt was given up.
    pub(crate) fn opened(
        &self,
        handle: &Arc<ConnectionHandle>,
        max_streams: usize,
        peer: Option<SocketAddr>,
    ) -> Option<u32> {
        let mut state = self.lock();
        state.attempts.end(handle)?;
        let failure = state.attempts.succeeded();
        state.expected_streams = max_streams.max(1);
        let connection = PooledConnection::new(handle.clone(), max_streams, peer, Instant::now());
        // Before the lock is released, so that no snapshot has more connections than were opened.
        self.counters.succeeded.increment();
        state.connections.add(connection);
        let factor = 1 << state.complaints;
        drop(state);
        drop(failure);
        trace::connected(&self.connector.authority, handle.id, peer, max_streams);
        Some(factor)
    }

    /// Notes that a connection could not be opened. Ends all queued calls, unless another connection or
    /// attempt may still serve them.
    pub(crate) fn not_opened(&self, handle: &ConnectionHandle, failure: &Status) {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(started_at) = state.attempts.end(handle) else {
            return; // it was given up
        };
        let replaced = state.attempts.failed(started_at, failure, now);
        let is_none_left = state.connections.running().next().is_none();
        let failed = (is_none_left && state.attempts.is_empty()).then(|| state.queue.take_all());
        let deferred = Deferred {
            callers: state.callers_to_wake(),
            ..Deferred::default()
        };
        drop(state);
        drop(replaced);
        self.note_connect_failed(failure);
        for call in failed.into_iter().flatten() {
            call.reply(Err(failure.clone()));
        }
        deferred.run(now);
    }

    /// Counts and logs a failed attempt to open a connection.
    pub(crate) fn note_connect_failed(&self, failure: &Status) {
        self.counters.failed.increment();
        trace::connect_failed(&self.connector.authority, failure);
    }

    /// Notes that the task which opened a connection was dropped with its runtime.
    pub(crate) fn attempt_dropped(&self, handle: &ConnectionHandle) {
        let mut state = self.lock();
        if state.attempts.end(handle).is_some() {
            state.attempts.forget_runtime();
        }
    }

    /// Removes a connection that the server closes, or that has failed. Returns whether it was removed
    /// now and has never answered a call.
    pub(crate) fn remove(&self, handle: &ConnectionHandle, load: Load) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(mut connection) = state.connections.remove(handle) else {
            return false;
        };
        if connection.report(load, now) {
            state.attempts.answered();
        }
        let was_last = state.connections.is_empty();
        state.attempts.connection_closed(&connection, was_last, now);
        drop(state);
        self.assign_all(None);
        !connection.has_answered
    }

    /// Notes that a connection which was removed before it answered a call has answered its first one.
    pub(crate) fn answered_late(&self) {
        self.lock().attempts.answered();
    }

    /// Removes a connection that the client closes.
    pub(crate) fn retire(&self, handle: &ConnectionHandle, load: Load) {
        let mut state = self.lock();
        let removed = state.connections.remove(handle);
        if let Some(mut connection) = removed
            && connection.report(load, Instant::now())
        {
            state.attempts.answered();
        }
        drop(state);
        self.assign_all(None);
    }

    /// Notes that the task of a connection was dropped with its runtime.
    pub(crate) fn dropped(&self, handle: &ConnectionHandle, load: Load) {
        self.lock().attempts.forget_runtime();
        self.remove(handle, load);
    }

    /// Removes an idle connection if there are more than `min_connections`, another allows streams, and
    /// no call is assigned to it. Returns whether it was removed.
    pub(crate) fn remove_idle(&self, handle: &ConnectionHandle) -> bool {
        let mut state = self.lock();
        let is_surplus = state.connections.len() > self.config.min_connections
            && state.connections.has_other_than(handle);
        let connection = state.connections.get_mut(handle);
        let is_idle = connection.is_some_and(|connection| !connection.is_woken());
        is_surplus && is_idle && state.connections.remove(handle).is_some()
    }

    /// Doubles the keepalive interval of later connections, see
    /// [gRFC A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md).
    pub(crate) fn ping_less(&self) {
        let mut state = self.lock();
        state.complaints = (state.complaints + 1).min(16);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    /// Wakes the tasks of the connections, which close them now that the pool has gone.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let connections = state.connections.iter().map(|c| &c.handle);
        connections
            .chain(state.attempts.handles())
            .for_each(|handle| handle.wake_by_ref());
    }
}

impl State {
    fn assign(&mut self, avoid: Option<u64>, now: Instant) -> Option<Arc<ConnectionHandle>> {
        self.connections.assign(self.queue.len(), avoid, now)
    }

    /// Removes expired calls from a full queue.
    fn make_room(&mut self, now: Instant) -> Deferred {
        let mut deferred = Deferred::default();
        if self.queue.is_full() {
            deferred.expired = self.queue.remove_expired(now);
            deferred.stage = Some(self.stage());
            deferred.callers = self.callers_to_wake();
        }
        deferred
    }

    /// Returns what the queued calls wait for.
    fn stage(&self) -> Stage {
        if self.connections.is_empty() {
            Stage::Connection
        } else {
            Stage::Stream
        }
    }

    fn callers_to_wake(&mut self) -> Vec<Waker> {
        self.readiness.update(self.queue.len(), self.queue.bound())
    }

    /// Returns when another connection has to be opened, if one is needed.
    fn needs_connection(&self, config: &PoolConfig, now: Instant) -> Option<Instant> {
        let open = self.connections.running().count();
        let opening = self.attempts.len();
        if open + opening >= config.max_connections {
            return None;
        }
        let earliest = self.attempts.earliest(now);
        if open + opening < config.min_connections {
            return Some(earliest);
        }
        if self.queue.is_empty() {
            return None;
        }
        if open == 0 {
            return (opening == 0).then_some(earliest);
        }
        if self.connections.no_streams_allowed() {
            return None;
        }
        let spare: usize = self.connections.running().map(|c| c.spare()).sum();
        let is_needed = self.queue.len() > spare + opening * self.expected_streams;
        // The number of connections can at most triple at a time. During backoff there is one attempt at
        // a time, except for the minimum.
        let max_opening = if earliest > now { 1 } else { 2 * open };
        (is_needed && opening < max_opening).then_some(earliest)
    }
}

fn runtime_stalled() -> Status {
    let message =
        "the connection was not opened in time: the runtime is stalled; do not block its threads";
    let status = Status::unavailable(message);
    mark(status, Origin::Transport, Delivery::NotSent)
}

fn queue_full(bound: usize) -> Status {
    Unsent::QueueFull.status(format!(
        "the queue is full ({bound} calls): reduce the number of concurrent calls, or raise max_queued_calls"
    ))
}

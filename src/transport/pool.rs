//! The connection pool: a queue of calls, and the connections that take them.

mod connections;
mod openings;
mod queue;

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake as _, Waker},
    time::Duration,
};

use tokio::{runtime, time::Instant};
use tonic::Status;

use self::{connections::Connections, openings::Openings, queue::Queue};
pub(crate) use self::{connections::Load, openings::Attempt};
use super::{
    call::{Call, Unsent},
    connector::Connector,
    link::Budget,
    waker::Handle,
};
use crate::trace;

/// The settings of a pool.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) min_connections: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_connection_age: Option<Duration>,
    /// How many streams of a connection are used, where the server allows more.
    pub(crate) streams_per_connection: usize,
    pub(crate) max_queued_calls: usize,
    pub(crate) max_buffered_bytes: usize,
    /// How long a connection with calls may be silent before it is pinged.
    pub(crate) keepalive: Duration,
    /// How long the answer to that ping may take.
    pub(crate) keepalive_timeout: Duration,
    /// How long a connection beside others is kept without calls.
    pub(crate) idle: Duration,
}

/// The queue of calls, and the connections that take them.
///
/// It decides which connection takes the next call, and whether to open another. It does no I/O.
///
/// Every wake-up that a connection gets is a hint: calls stay in the queue until a
/// connection takes them, and any connection may. No lock is held while anything is woken.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) connector: Arc<Connector>,
    pub(crate) limits: Limits,
    pub(crate) budget: Arc<Budget>,
    /// Spawns the task of a connection.
    open: fn(&Arc<Self>, Attempt),
    /// Whether the queue was full, and has not been emptied by an eighth since.
    full: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    connections: Connections,
    openings: Openings,
    /// How many streams the last connection allowed.
    streams: usize,
    /// How often a server complained of too many pings.
    complaints: u32,
    /// The callers that wait until the queue is not full, by the numbers of their registrations.
    waiting_for_room: BTreeMap<u64, Waker>,
    registrations: u64,
}

/// A call that was queued.
#[derive(Debug)]
pub(crate) struct Pushed {
    pub(crate) number: u64,
    /// Whether another connection is to be opened.
    pub(crate) open: bool,
    /// Whether a connection will take the call as soon as the caller's runtime lets it run.
    pub(crate) is_assigned: bool,
}

/// What a connection gets when it takes calls.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Calls that are still queued.
    pub(crate) queued: usize,
    /// Other connections have to be woken, or opened, for them.
    pub(crate) unassigned: bool,
    /// Since when the peer should have sent something.
    pub(crate) doubted: Option<Instant>,
    /// The connection was removed, because its calls fail while others succeed.
    pub(crate) removed: bool,
}

impl Pool {
    pub(crate) fn new(
        connector: Connector,
        limits: Limits,
        open: fn(&Arc<Self>, Attempt),
    ) -> Arc<Self> {
        let state = State {
            queue: Queue::new(limits.max_queued_calls),
            connections: Connections::default(),
            openings: Openings::default(),
            streams: limits.streams_per_connection.min(100),
            complaints: 0,
            waiting_for_room: BTreeMap::new(),
            registrations: 0,
        };
        Arc::new(Self {
            connector: Arc::new(connector),
            budget: Budget::new(limits.max_buffered_bytes),
            limits,
            open,
            full: false.into(),
            state: Mutex::new(state),
        })
    }

    /// Returns how many connections are open, and how many calls are queued.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        (state.connections.len(), state.queue.len())
    }

    /// How many streams the open connections have. Before the first, how many there will be at least.
    pub(crate) fn capacity(&self) -> usize {
        let state = self.lock();
        match state.connections.is_empty() {
            true => self.limits.max_connections,
            false => state.connections.iter().map(|c| c.load.limit).sum(),
        }
    }

    /// Ready while the queue is not full. Nothing is reserved: the queue may be full again when the
    /// call comes.
    pub(crate) fn poll_room(
        &self,
        registration: &mut Option<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if !self.full.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let mut state = self.lock();
        if !self.full.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let registration = *registration.get_or_insert_with(|| {
            state.registrations += 1;
            state.registrations
        });
        let waker = cx.waker().clone();
        let before = state.waiting_for_room.insert(registration, waker);
        drop(state);
        drop(before);
        Poll::Pending
    }

    /// Ends a registration of [`poll_room`](Self::poll_room).
    pub(crate) fn unregister(&self, registration: u64) {
        let waker = self.lock().waiting_for_room.remove(&registration);
        drop(waker);
    }

    /// Queues the call of a caller on this runtime, and wakes a connection for it.
    ///
    /// # Errors
    ///
    /// - `RESOURCE_EXHAUSTED`: the queue is full.
    /// - `UNAVAILABLE`: there is no connection, and the next attempt to open one is not due.
    pub(crate) fn push(&self, call: Call, caller: runtime::Id) -> Result<Pushed, Status> {
        let now = call.queued;
        let mut state = self.lock();
        if state.connections.present().next().is_none()
            && let Some(failure) = state.openings.backoff_failure(now)
        {
            return Err(failure);
        }
        let expired = match state.queue.is_full() {
            true => state.queue.remove_expired(now),
            false => Vec::new(),
        };
        let room = match expired.is_empty() {
            true => Vec::new(),
            false => self.room_made(&mut state),
        };
        let pushed = match state.queue.is_full() {
            true => Err(full(state.queue.bound())),
            false => Ok(state.queue.push(call)),
        };
        if state.queue.is_full() {
            self.full.store(true, Ordering::Release);
        }
        let wake = state.assign(None, now);
        let open = state.wants_connection(&self.limits, now).is_some();
        let is_assigned = state.queue.len() <= state.connections.assigned(now)
            && state.connections.are_all_on(caller);
        drop(state);
        if let Some(handle) = wake {
            handle.wake_by_ref();
        }
        room.into_iter().for_each(Waker::wake);
        for call in expired {
            call.reply_too_late(now);
        }
        Ok(Pushed {
            number: pushed?,
            open,
            is_assigned,
        })
    }

    /// Removes a call whose caller was dropped. A connection may have taken it already.
    pub(crate) fn remove_call(&self, number: u64) {
        let now = Instant::now();
        let mut state = self.lock();
        let removed = state.queue.remove(number);
        let late = |call: &Call| call.deadline.is_some_and(|d| d.has_passed_for_caller(now));
        let wake = match removed.as_ref().filter(|call| late(call)) {
            // It would have gone to a connection that allows no streams, and may be dead.
            Some(call) if state.connections.no_streams_allowed() => {
                state.connections.doubt(call.queued, now)
            }
            _ => None,
        };
        let room = self.room_made(&mut state);
        drop(state);
        if let Some(handle) = wake {
            handle.wake_by_ref();
        }
        room.into_iter().for_each(Waker::wake);
        drop(removed);
    }

    /// Returns whether a call is still queued after a while. If so, connections that were woken and
    /// did not come are passed over.
    pub(crate) fn is_still_queued(&self, number: u64) -> bool {
        let now = Instant::now();
        let limit = self
            .connector
            .timeout
            .saturating_add(Duration::from_secs(1));
        let mut state = self.lock();
        if !state.queue.contains(number) {
            return false;
        }
        let lost = state.connections.mark_lost(now);
        if state.openings.give_up(limit, now) || lost {
            state.openings.leave_home();
        }
        drop(state);
        self.assign_all(None);
        true
    }

    /// Wakes connections for the queued calls that none was woken for.
    pub(crate) fn assign_all(&self, avoid: Option<u64>) {
        loop {
            let wake = self.lock().assign(avoid, Instant::now());
            match wake {
                Some(handle) => handle.wake_by_ref(),
                None => return,
            }
        }
    }

    /// Gives a connection the calls that it is to send, at most `max`. It may get fewer than it has
    /// room for, because others were woken for the rest.
    pub(crate) fn take(
        &self,
        handle: &Handle,
        load: Load,
        max: usize,
        now: Instant,
        calls: &mut Vec<Call>,
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
        connection.report(load, now);
        if (load.answered || load.failures > 0)
            && let Some(failing) = state.connections.remove_failing()
        {
            state.openings.closed(&failing, false, now);
            failing.handle.call();
            drop(guard);
            failing.handle.wake_by_ref();
            return self.take(handle, load, max, now, calls);
        }
        let others = state.connections.assigned(now);
        let expired = match state.queue.is_full() {
            true => state.queue.remove_expired(now),
            false => Vec::new(),
        };
        let share = state.queue.len().saturating_sub(others);
        let elsewhere = state.connections.has_room_beside(handle, now);
        for _ in 0..share.min(load.room).min(max) {
            calls.extend(state.queue.pop(handle.id, !elsewhere, now));
        }
        let queued = state.queue.len();
        let connection = state.connections.get_mut(handle);
        let taken = Taken {
            queued,
            unassigned: queued > others,
            doubted: connection.and_then(|connection| connection.leave(calls.len(), queued)),
            removed: false,
        };
        let room = self.room_made(state);
        drop(guard);
        room.into_iter().for_each(Waker::wake);
        for call in expired {
            call.reply_too_late(now);
        }
        taken
    }

    /// Notes that a connection has answered its first call. It may have been removed already.
    pub(crate) fn answered(&self) {
        self.lock().openings.answered();
    }

    /// Puts back a call that the server certainly did not process.
    pub(crate) fn put_back(&self, call: Call) {
        let avoid = call.avoid;
        self.lock().queue.put_back(call);
        self.assign_all(avoid);
    }

    /// Opens the connections that are needed.
    pub(crate) fn open_if_needed(self: &Arc<Self>) {
        // Bounded: a runtime that has ended drops the task at once, and then another is needed.
        for _ in 0..=self.limits.max_connections {
            match self.next_attempt() {
                Some(attempt) => (self.open)(self, attempt),
                None => return,
            }
        }
    }

    fn next_attempt(&self) -> Option<Attempt> {
        let mut state = self.lock();
        let begins = state.wants_connection(&self.limits, Instant::now())?;
        state.openings.begin(begins)
    }

    /// Returns a connection to open on this runtime, whether or not one is needed.
    pub(crate) fn attempt_now(&self, runtime: runtime::Handle) -> Attempt {
        self.lock().openings.begin_on(runtime, Instant::now())
    }

    /// Adds a connection that is open. Returns how many times longer than set it is to wait before it
    /// pings; `None` if the attempt took so long that another was made.
    pub(crate) fn opened(&self, handle: &Arc<Handle>, limit: usize) -> Option<u32> {
        trace::connected(self.connector.authority());
        let mut state = self.lock();
        state.openings.end(handle)?;
        state.openings.succeeded();
        state.streams = limit.max(1);
        let handle = handle.clone();
        state.connections.add(handle, limit, Instant::now());
        Some(1 << state.complaints)
    }

    /// Notes that a connection could not be opened. Ends all queued calls, unless there is another
    /// connection that may take them.
    pub(crate) fn not_opened(&self, handle: &Handle, failure: &Status) {
        trace::not_connected(self.connector.authority(), failure);
        let mut state = self.lock();
        let Some(begun) = state.openings.end(handle) else {
            return; // another attempt has taken its place
        };
        state.openings.failed(begun, failure, Instant::now());
        let none = state.connections.present().next().is_none() && state.openings.is_empty();
        let failed = match none {
            true => Some(state.queue.take_all()),
            false => None,
        };
        let room = self.room_made(&mut state);
        drop(state);
        for call in failed.into_iter().flatten() {
            call.reply(Err(failure.clone()));
        }
        room.into_iter().for_each(Waker::wake);
    }

    /// Notes that the task which opened a connection was dropped with its runtime.
    pub(crate) fn opening_dropped(&self, handle: &Handle) {
        let mut state = self.lock();
        if state.openings.end(handle).is_some() {
            state.openings.leave_home();
        }
    }

    /// Removes a connection that takes no more calls.
    pub(crate) fn remove(&self, handle: &Handle, load: Load) {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(mut connection) = state.connections.remove(handle) else {
            return;
        };
        connection.report(load, now);
        let was_last = state.connections.is_empty();
        state.openings.closed(&connection, was_last, now);
        drop(state);
        self.assign_all(None);
    }

    /// Notes that the task of a connection was dropped with its runtime.
    pub(crate) fn dropped(&self, handle: &Handle, load: Load) {
        self.lock().openings.leave_home();
        self.remove(handle, load);
    }

    /// Removes an idle connection, if there is another that takes calls.
    pub(crate) fn remove_idle(&self, handle: &Handle) -> bool {
        let mut state = self.lock();
        let surplus = state.connections.len() > self.limits.min_connections
            && state.connections.has_other_than(handle);
        surplus && state.connections.remove(handle).is_some()
    }

    /// Makes later connections wait longer before they ping, see
    /// [gRFC A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md).
    pub(crate) fn ping_less(&self) {
        let mut state = self.lock();
        state.complaints = (state.complaints + 1).min(16);
    }

    /// Returns the callers to wake, once a full queue has been emptied by an eighth: as many as there
    /// is room for, first come first served, and all when it is empty.
    fn room_made(&self, state: &mut State) -> Vec<Waker> {
        let (length, bound) = (state.queue.len(), state.queue.bound());
        let full = self.full.load(Ordering::Relaxed);
        if !full && state.waiting_for_room.is_empty() {
            return Vec::new();
        }
        if full && length > bound - bound.div_ceil(8) {
            return Vec::new();
        }
        if full {
            self.full.store(false, Ordering::Release);
        }
        let waiting = &mut state.waiting_for_room;
        match length {
            0 => mem::take(waiting).into_values().collect(),
            _ => std::iter::from_fn(|| waiting.pop_first())
                .take(bound.saturating_sub(length))
                .map(|(_, waker)| waker)
                .collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    /// Lets the connections close.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let connections = state.connections.iter().map(|c| &c.handle);
        connections
            .chain(state.openings.handles())
            .for_each(|handle| handle.wake_by_ref());
    }
}

impl State {
    fn assign(&mut self, avoid: Option<u64>, now: Instant) -> Option<Arc<Handle>> {
        self.connections.assign(self.queue.len(), avoid, now)
    }

    /// Returns when another connection is to be opened, if one is needed.
    fn wants_connection(&self, limits: &Limits, now: Instant) -> Option<Instant> {
        let open = self.connections.present().count();
        let opening = self.openings.len();
        if open + opening >= limits.max_connections {
            return None;
        }
        let earliest = self.openings.earliest(now);
        if open + opening < limits.min_connections {
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
        let spare: usize = self.connections.present().map(|c| c.spare()).sum();
        let needed = self.queue.len() > spare + opening * self.streams;
        // So their number can triple at a time. After a failure there is one attempt at a time.
        let at_once = if earliest > now { 1 } else { 2 * open };
        (needed && opening < at_once).then_some(earliest)
    }
}

fn full(bound: usize) -> Status {
    Unsent::QueueFull.status(format!(
        "{bound} calls wait for a stream, which is the maximum: send fewer calls at once, or raise max_queued_calls"
    ))
}

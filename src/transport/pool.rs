//! The connection pool: a queue of calls, and the connections that take them.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{runtime, time::Instant};
use tonic::{Code, Status};

use super::{call::Call, connector::Connector, link::Budget, queue::Queue};
use crate::{
    backoff::Backoff,
    status::{Origin, caused, local},
    trace,
};

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
/// It decides which connection takes the next call, and whether to open another. It does no I/O and
/// spawns nothing. Every wake-up that a connection gets is a hint: calls stay in the queue until a
/// connection takes them, and any connection may.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) connector: Arc<Connector>,
    pub(crate) limits: Limits,
    pub(crate) budget: Arc<Budget>,
    /// Whether the queue was full, and has not been emptied by an eighth since.
    full: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    /// The connections that take calls, the oldest first.
    connections: Vec<Member>,
    /// The connections that are being opened.
    opening: Vec<Opening>,
    /// How many times in a row connections failed. Those that fail together count once.
    failures: u32,
    failed_at: Option<Instant>,
    /// When the next connection may be opened.
    open_after: Option<Instant>,
    /// The last failure to open a connection, and when it was.
    last_failure: Option<(Status, Instant)>,
    /// How many streams the last connection allowed.
    streams: usize,
    /// How often a server complained of too many pings.
    complaints: u32,
    /// The runtime on which connections are spawned. `None` if it has ended, or stands still.
    home: Option<runtime::Handle>,
    /// The id of the next connection.
    next_id: u64,
    /// The callers that wait until the queue is not full.
    waiting_for_room: Vec<Waker>,
}

/// What wakes the task of a connection.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) id: u64,
    pub(crate) waker: AtomicWaker,
    /// Whether the pool has called it since it came last.
    pub(crate) called: AtomicBool,
}

impl Handle {
    fn new(id: u64) -> Arc<Self> {
        Arc::new(Self {
            id,
            waker: AtomicWaker::new(),
            called: AtomicBool::new(true),
        })
    }
}

/// A connection that takes calls, as far as the pool knows it.
#[derive(Debug)]
struct Member {
    handle: Arc<Handle>,
    opened: Instant,
    load: Load,
    /// Calls in the queue that it was woken for.
    assigned: usize,
    /// When it was woken, until it comes to take calls.
    woken: Option<Instant>,
    /// When it was noticed that it does not come.
    missed: Option<Instant>,
    /// Its runtime stands still: it does not count until it comes.
    lost: bool,
    /// Whether it knows that calls wait for it although the server allows no streams.
    aware: bool,
    has_answered: bool,
    last_answer: Option<Instant>,
    failing_since: Option<Instant>,
    /// Since when a call waits whose deadline has passed although the server allows no streams.
    doubted: Option<Instant>,
}

/// What a connection reports of itself when it comes to take calls.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    /// How many streams the server allows.
    pub(crate) limit: usize,
    /// Streams in use.
    pub(crate) streams: usize,
    /// Those of them whose callers have gone.
    pub(crate) abandoned: usize,
    /// How many calls it would take now.
    pub(crate) room: usize,
    /// Whether the peer has not answered in time, and has sent nothing since.
    pub(crate) suspect: bool,
    /// Calls that failed in a row.
    pub(crate) failures: u32,
    /// Whether a call was answered since the last report.
    pub(crate) answered: bool,
}

/// What a connection learns when it comes to take calls.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Calls that are still queued.
    pub(crate) queued: usize,
    /// Others have to be woken, or opened, for them.
    pub(crate) unassigned: bool,
    /// Since when the peer should have sent something.
    pub(crate) doubted: Option<Instant>,
    /// The connection was removed, because its calls fail while others succeed.
    pub(crate) removed: bool,
}

/// A connection that is being opened.
#[derive(Debug)]
struct Opening {
    handle: Arc<Handle>,
    begins: Instant,
}

/// A connection to open.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) handle: Arc<Handle>,
    pub(crate) runtime: runtime::Handle,
    /// It is opened no earlier.
    pub(crate) begins: Instant,
}

/// How long a connection that was woken may take to come before another is chosen.
const PASSED_OVER: Duration = Duration::from_millis(100);

/// How long it may take before its runtime is taken to stand still.
const LOST: Duration = Duration::from_millis(400);

/// How many calls in a row fail on a connection before it is replaced, if others succeed elsewhere.
const FAILING: u32 = 5;

/// The backoff between attempts, see
/// [gRPC's connection backoff](https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md).
/// The first delay is shorter than the second of that page: in a data centre a server that restarts
/// is back sooner.
const BACKOFF: Backoff = Backoff {
    initial: Duration::from_millis(100),
    multiplier: 1.6,
    maximum: Duration::from_secs(120),
};

impl Pool {
    pub(crate) fn new(connector: Connector, limits: Limits) -> Arc<Self> {
        let state = State {
            queue: Queue::new(limits.max_queued_calls),
            connections: Vec::new(),
            opening: Vec::new(),
            failures: 0,
            failed_at: None,
            open_after: None,
            last_failure: None,
            streams: limits.streams_per_connection.min(100),
            complaints: 0,
            home: None,
            next_id: 0,
            waiting_for_room: Vec::new(),
        };
        Arc::new(Self {
            connector: Arc::new(connector),
            budget: Budget::new(limits.max_buffered_bytes),
            limits,
            full: false.into(),
            state: Mutex::new(state),
        })
    }

    pub(crate) fn connections(&self) -> usize {
        self.lock().connections.len()
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
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.full.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let mut state = self.lock();
        if !self.full.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let waiting = &mut state.waiting_for_room;
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Queues a call, and wakes a connection for it. Returns its number, and whether another
    /// connection is to be opened.
    ///
    /// # Errors
    ///
    /// - `RESOURCE_EXHAUSTED`: the queue is full.
    /// - `UNAVAILABLE`: there is no connection, and the next attempt to open one is not due.
    pub(crate) fn push(&self, call: Call) -> Result<(u64, bool), Status> {
        let now = call.queued;
        let mut state = self.lock();
        if let Some(failure) = state.backoff_failure(now) {
            return Err(failure);
        }
        let expired = match state.queue.is_full() {
            true => state.queue.remove_expired(now),
            false => Vec::new(),
        };
        let pushed = match state.queue.is_full() {
            true => Err(full(state.queue.bound())),
            false => Ok(state.queue.push(call)),
        };
        if state.queue.is_full() {
            self.full.store(true, Ordering::Release);
        }
        let wake = state.assign(now, None);
        let open = pushed.is_ok() && state.wants_connection(&self.limits, now).is_some();
        drop(state);
        if let Some(handle) = wake {
            handle.waker.wake();
        }
        for call in expired {
            let status = call.too_late(now);
            call.reply(Err(status.unwrap_or_else(|| full(0))));
        }
        pushed.map(|number| (number, open))
    }

    /// Removes a call whose caller has gone. It may have been taken already.
    pub(crate) fn remove_call(&self, number: u64) {
        let now = Instant::now();
        let mut state = self.lock();
        let removed = state.queue.remove(number);
        let late = |call: &Call| call.deadline.is_some_and(|d| d.has_passed_for_caller(now));
        let mut wake = None;
        // The call would have gone to a connection that allows no streams, and may be dead.
        if let Some(call) = removed.as_ref().filter(|call| late(call))
            && state.no_streams_allowed()
            && let Some(oldest) = state.connections.first_mut()
        {
            oldest.doubted = Some(call.queued);
            wake = oldest.wake(now);
        }
        let room = self.room_made(&mut state);
        drop(state);
        wake_all(wake, room);
    }

    /// Returns whether a call is still queued after a while. If so, connections that were woken and
    /// did not come are passed over.
    pub(crate) fn is_still_queued(&self, number: u64) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        if !state.queue.contains(number) {
            return false;
        }
        let mut standstill = false;
        for member in &mut state.connections {
            let overdue = member.woken.is_some_and(|woken| now >= woken + LOST);
            match member.missed {
                None if overdue => member.missed = Some(now),
                Some(missed) if overdue && now >= missed + PASSED_OVER => {
                    standstill |= !mem::replace(&mut member.lost, true);
                }
                _ => {}
            }
        }
        let void = self
            .connector
            .timeout
            .saturating_add(Duration::from_secs(1));
        let before = state.opening.len();
        state
            .opening
            .retain(|opening| match opening.begins.checked_add(void) {
                Some(end) => now < end,
                None => true,
            });
        if standstill || state.opening.len() < before {
            state.home = None;
        }
        drop(state);
        self.assign_all(None);
        true
    }

    /// Wakes connections for the calls in the queue that none was woken for.
    pub(crate) fn assign_all(&self, avoid: Option<u64>) {
        loop {
            let wake = self.lock().assign(Instant::now(), avoid);
            match wake {
                Some(handle) => handle.waker.wake(),
                None => return,
            }
        }
    }

    /// Gives a connection the calls that it is to send, at most `max`. It may get fewer than it has
    /// room for.
    pub(crate) fn take(
        &self,
        id: u64,
        load: Load,
        max: usize,
        now: Instant,
        calls: &mut Vec<Call>,
    ) -> Taken {
        let mut state = self.lock();
        let Some(index) = state.connections.iter().position(|c| c.handle.id == id) else {
            return Taken {
                removed: true,
                ..Taken::default()
            };
        };
        state.connections[index].report(load, now);
        if state.is_failing(index) {
            let member = state.connections.remove(index);
            state.note_end(&member, now);
            return Taken {
                removed: true,
                unassigned: !state.queue.is_empty(),
                ..Taken::default()
            };
        }
        let others = state.connections.iter().filter(|c| !c.is_passed_over(now));
        let others: usize = others.map(|c| c.assigned).sum();
        let share = state
            .queue
            .len()
            .saturating_sub(others)
            .min(load.room)
            .min(max);
        let mut elsewhere = state.connections.iter();
        let elsewhere = elsewhere.any(|c| c.handle.id != id && c.free() > 0);
        for _ in 0..share {
            calls.extend(state.queue.pop(id, !elsewhere, now));
        }
        let room = self.room_made(&mut state);
        let queued = state.queue.len();
        let member = &mut state.connections[index];
        member.aware = queued > 0;
        member.load.streams += calls.len();
        member.load.room -= calls.len();
        let taken = Taken {
            queued,
            unassigned: queued > others,
            doubted: member.doubted.take(),
            removed: false,
        };
        drop(state);
        wake_all(None, room);
        taken
    }

    /// Notes that a connection has answered its first call. It may have been removed already.
    pub(crate) fn answered(&self) {
        let mut state = self.lock();
        state.failures = 0;
        state.open_after = None;
    }

    /// Puts back a call that the server certainly did not process.
    pub(crate) fn put_back(&self, call: Call) {
        let avoid = call.avoid;
        self.lock().queue.put_back(call);
        self.assign_all(avoid);
    }

    /// Returns the next connection to open, if one is needed.
    pub(crate) fn next_attempt(&self) -> Option<Attempt> {
        let now = Instant::now();
        let mut state = self.lock();
        let begins = state.wants_connection(&self.limits, now)?;
        let home = state.home.clone();
        let runtime = home.or_else(|| runtime::Handle::try_current().ok())?;
        Some(state.attempt(runtime, begins))
    }

    /// Returns a connection to open, whether or not one is needed.
    pub(crate) fn attempt_now(&self, runtime: runtime::Handle) -> Attempt {
        self.lock().attempt(runtime, Instant::now())
    }

    /// Adds a connection that is open. Returns how many times longer than set it is to wait before it
    /// pings; `None` if the attempt took so long that another was made.
    pub(crate) fn opened(&self, handle: &Arc<Handle>, limit: usize) -> Option<u32> {
        trace::connected(self.connector.authority());
        let now = Instant::now();
        let mut state = self.lock();
        state.end_opening(handle)?;
        state.open_after = None;
        state.last_failure = None;
        state.streams = limit.max(1);
        state
            .connections
            .push(Member::new(handle.clone(), limit, now));
        Some(1 << state.complaints)
    }

    /// Notes that a connection could not be opened. Ends all queued calls, unless there is another
    /// connection that may take them.
    pub(crate) fn not_opened(&self, handle: &Arc<Handle>, failure: &Status) {
        trace::not_connected(self.connector.authority(), failure);
        let now = Instant::now();
        let mut state = self.lock();
        let Some(begun) = state.end_opening(handle) else {
            return; // it was void
        };
        if state.count_failure(begun, now) {
            let delay = BACKOFF.delay(state.failures - 1, fastrand::f64());
            state.open_after = Some(now + delay);
        }
        state.last_failure = Some((failure.clone(), now));
        let failed = match state.connections.is_empty() && state.opening.is_empty() {
            true => Some(state.queue.take_all()),
            false => None,
        };
        let room = self.room_made(&mut state);
        drop(state);
        for call in failed.into_iter().flatten() {
            call.reply(Err(failure.clone()));
        }
        wake_all(None, room);
    }

    /// Notes that the task which opened a connection was dropped with its runtime.
    pub(crate) fn opening_dropped(&self, handle: &Arc<Handle>) {
        let mut state = self.lock();
        if state.end_opening(handle).is_some() {
            state.home = None;
        }
    }

    /// Removes a connection that takes no more calls.
    pub(crate) fn remove(&self, handle: &Arc<Handle>, load: Load) {
        let now = Instant::now();
        let mut state = self.lock();
        let mut members = state.connections.iter();
        let Some(index) = members.position(|c| Arc::ptr_eq(&c.handle, handle)) else {
            return;
        };
        let mut member = state.connections.remove(index);
        member.report(load, now);
        state.note_end(&member, now);
        drop(state);
        self.assign_all(None);
    }

    /// Notes that the task of a connection was dropped with its runtime.
    pub(crate) fn dropped(&self, handle: &Arc<Handle>, load: Load) {
        self.lock().home = None;
        self.remove(handle, load);
    }

    /// Removes an idle connection, if there is another that takes calls.
    pub(crate) fn remove_idle(&self, handle: &Arc<Handle>) -> bool {
        let mut state = self.lock();
        let other = |c: &Member| !Arc::ptr_eq(&c.handle, handle) && c.load.limit > 0 && !c.lost;
        let surplus = state.connections.len() > self.limits.min_connections.max(1)
            && state.connections.iter().any(other);
        if surplus {
            state
                .connections
                .retain(|c| !Arc::ptr_eq(&c.handle, handle));
        }
        surplus
    }

    /// Makes later connections wait longer before they ping, see
    /// [gRFC A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md).
    pub(crate) fn ping_less(&self) {
        let mut state = self.lock();
        state.complaints = (state.complaints + 1).min(16);
    }

    /// Returns the callers to wake if the queue has been emptied by an eighth.
    fn room_made(&self, state: &mut State) -> Vec<Waker> {
        let bound = state.queue.bound();
        if !self.full.load(Ordering::Relaxed) || state.queue.len() > bound - bound.div_ceil(8) {
            return Vec::new();
        }
        self.full.store(false, Ordering::Release);
        mem::take(&mut state.waiting_for_room)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    /// Lets the connections close.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let opening = state.opening.iter().map(|opening| &opening.handle);
        for handle in state.connections.iter().map(|c| &c.handle).chain(opening) {
            handle.waker.wake();
        }
    }
}

impl State {
    /// Chooses a connection for a call in the queue that has none. Returns it if it is to be woken.
    fn assign(&mut self, now: Instant, avoid: Option<u64>) -> Option<Arc<Handle>> {
        let present = self.connections.iter().filter(|c| !c.is_passed_over(now));
        let mut assigned: usize = present.map(|c| c.assigned).sum();
        while assigned < self.queue.len() {
            let Some(index) = self.choose(now, avoid) else {
                // One that allows no streams is to know that calls wait for it.
                let oldest = self.connections.first_mut()?;
                let unaware = oldest.load.limit == 0 && oldest.woken.is_none() && !oldest.aware;
                return unaware.then(|| oldest.wake(now)).flatten();
            };
            let member = &mut self.connections[index];
            member.assigned += 1;
            assigned += 1;
            if let Some(handle) = member.wake(now) {
                return Some(handle);
            }
        }
        None
    }

    /// Chooses the least loaded of as many connections as the load needs, the oldest first. The
    /// others get no calls, and so become idle.
    fn choose(&self, now: Instant, avoid: Option<u64>) -> Option<usize> {
        let streams: usize = self.connections.iter().map(|c| c.load.streams).sum();
        let load = streams + self.queue.len();
        let mut capacity = 0;
        let candidates = self.connections.iter().enumerate().map(|(index, member)| {
            let surplus = capacity >= load;
            capacity += member.load.limit * 4 / 5;
            (index, member, surplus)
        });
        candidates
            .filter(|(_, member, _)| member.free() > 0 && !member.is_passed_over(now))
            .min_by_key(|(_, member, surplus)| {
                let avoided = avoid == Some(member.handle.id);
                let load = member.load.streams + member.assigned;
                (avoided, member.load.suspect, *surplus, load)
            })
            .map(|(index, ..)| index)
    }

    /// Returns when another connection is to be opened, if one is needed.
    fn wants_connection(&self, limits: &Limits, now: Instant) -> Option<Instant> {
        let present = self.connections.iter().filter(|c| !c.lost);
        let open = present.clone().count();
        let opening = self.opening.len();
        if open + opening >= limits.max_connections {
            return None;
        }
        let earliest = self.open_after.map_or(now, |after| after.max(now));
        if open + opening < limits.min_connections {
            return Some(earliest);
        }
        if self.queue.is_empty() || earliest > now {
            return None;
        }
        if open == 0 {
            return (opening == 0).then_some(now);
        }
        // A server that allows no streams just now means the client, not the connection.
        if self.no_streams_allowed() {
            return None;
        }
        let spare: usize = present.map(Member::spare).sum();
        let needed = self.queue.len() > spare + opening * self.streams;
        (needed && opening < 2 * open).then_some(now)
    }

    fn no_streams_allowed(&self) -> bool {
        !self.connections.is_empty() && self.connections.iter().all(|c| c.load.limit == 0)
    }

    /// Returns the failure of the last attempt, if there is no connection and the next attempt is
    /// not due.
    fn backoff_failure(&self, now: Instant) -> Option<Status> {
        let next = self.open_after.filter(|after| now < *after)?;
        let begun = self.opening.iter().any(|opening| opening.begins <= now);
        if begun || !self.connections.is_empty() {
            return None;
        }
        let (failure, at) = self.last_failure.as_ref()?;
        let message = format!(
            "{} (the last attempt failed {:.1?} ago, the next is in {:.1?})",
            failure.message(),
            now.saturating_duration_since(*at),
            next - now
        );
        Some(caused(
            failure.code(),
            message,
            Origin::Transport,
            failure.clone(),
        ))
    }

    fn attempt(&mut self, runtime: runtime::Handle, begins: Instant) -> Attempt {
        self.home = Some(runtime.clone());
        let handle = Handle::new(self.next_id);
        self.next_id += 1;
        self.opening.push(Opening {
            handle: handle.clone(),
            begins,
        });
        Attempt {
            handle,
            runtime,
            begins,
        }
    }

    /// Removes an attempt; returns when it began.
    fn end_opening(&mut self, handle: &Arc<Handle>) -> Option<Instant> {
        let mut opening = self.opening.iter();
        let index = opening.position(|opening| Arc::ptr_eq(&opening.handle, handle))?;
        Some(self.opening.remove(index).begins)
    }

    /// Counts the failure of a connection, unless it was opened before the last one failed.
    fn count_failure(&mut self, opened: Instant, now: Instant) -> bool {
        let counts = self.failed_at.is_none_or(|failed_at| opened >= failed_at);
        if counts {
            self.failures = self.failures.saturating_add(1);
            self.failed_at = Some(now);
        }
        counts
    }

    /// Whether calls fail on a connection in a row while they succeed on others.
    fn is_failing(&self, index: usize) -> bool {
        let member = &self.connections[index];
        let Some(since) = member
            .failing_since
            .filter(|_| member.load.failures >= FAILING)
        else {
            return false;
        };
        let mut others = self.connections.iter();
        others.any(|other| other.last_answer.is_some_and(|answer| answer > since))
    }

    /// Counts the end of a connection. After one that never answered, the next has to wait.
    fn note_end(&mut self, member: &Member, now: Instant) {
        if !member.has_answered && (member.load.failures > 0 || member.load.streams > 0) {
            // One may just have come at the end of its server's life.
            if self.count_failure(member.opened, now)
                && let Some(before) = self.failures.checked_sub(2)
            {
                let delay = BACKOFF.delay(before, fastrand::f64());
                self.open_after = Some(member.opened + delay).filter(|after| *after > now);
            }
        } else if member.has_answered && self.connections.is_empty() {
            self.failures = 0;
            self.open_after = None;
            self.last_failure = None;
        }
    }
}

impl Member {
    fn new(handle: Arc<Handle>, limit: usize, now: Instant) -> Self {
        let load = Load {
            limit,
            room: limit,
            ..Load::default()
        };
        Self {
            handle,
            opened: now,
            load,
            assigned: 0,
            woken: None,
            missed: None,
            lost: false,
            aware: false,
            has_answered: false,
            last_answer: None,
            failing_since: None,
            doubted: None,
        }
    }

    /// How many more calls can be assigned to it.
    fn free(&self) -> usize {
        self.load.room.saturating_sub(self.assigned)
    }

    /// How many streams it has, or will have soon: at most half of them may wait to be reset.
    fn spare(&self) -> usize {
        let Load {
            limit,
            streams,
            abandoned,
            ..
        } = self.load;
        limit.saturating_sub(streams - abandoned.min(limit / 2).min(streams))
    }

    fn is_passed_over(&self, now: Instant) -> bool {
        self.lost || self.woken.is_some_and(|woken| now >= woken + PASSED_OVER)
    }

    /// Returns the handle to wake, unless it was woken and has not come yet.
    fn wake(&mut self, now: Instant) -> Option<Arc<Handle>> {
        if self.woken.is_some() {
            return None;
        }
        self.woken = Some(now);
        self.handle.called.store(true, Ordering::Release);
        Some(self.handle.clone())
    }

    fn report(&mut self, load: Load, now: Instant) {
        self.load = load;
        self.assigned = 0;
        self.woken = None;
        self.missed = None;
        self.lost = false;
        if load.answered {
            self.has_answered = true;
            self.last_answer = Some(now);
        }
        self.failing_since = match load.failures {
            0 => None,
            _ => self.failing_since.or(Some(now)),
        };
    }
}

fn full(bound: usize) -> Status {
    local(
        Code::ResourceExhausted,
        format!(
            "{bound} calls wait for a stream, which is the maximum: send fewer calls at once, or raise max_queued_calls"
        ),
    )
}

fn wake_all(handle: Option<Arc<Handle>>, wakers: Vec<Waker>) {
    if let Some(handle) = handle {
        handle.waker.wake();
    }
    wakers.into_iter().for_each(Waker::wake);
}

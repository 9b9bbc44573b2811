//! The open connections of a pool, and which of them takes the next call.

use std::{mem, sync::Arc, time::Duration};

use tokio::{runtime, time::Instant};

use crate::transport::waker::Handle;

/// The connections that take calls, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Connections(Vec<Connection>);

/// A connection, as far as the pool knows it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) handle: Arc<Handle>,
    pub(crate) opened: Instant,
    pub(crate) load: Load,
    pub(crate) has_answered: bool,
    /// Calls in the queue that it was woken for.
    assigned: usize,
    /// When it was woken, until it reports.
    woken: Option<Instant>,
    /// When it was noticed that it does not report.
    missed: Option<Instant>,
    /// Whether its runtime is stalled. It does not count until it reports.
    lost: bool,
    /// Whether it knows that calls are queued for which there is no stream.
    aware: bool,
    last_answer: Option<Instant>,
    failing_since: Option<Instant>,
    /// Since when a call was queued whose deadline has passed although the server allows no streams.
    doubted: Option<Instant>,
}

/// What a connection reports when it takes calls.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    /// How many streams the server allows.
    pub(crate) limit: usize,
    /// Streams in use.
    pub(crate) streams: usize,
    /// The streams whose callers were dropped.
    pub(crate) abandoned: usize,
    /// How many calls it would take now.
    pub(crate) room: usize,
    /// Whether the peer was asked for a sign of life and has sent nothing since.
    pub(crate) suspect: bool,
    /// Calls that failed in a row.
    pub(crate) failures: u32,
    /// Whether a call was answered since the last report.
    pub(crate) answered: bool,
}

/// How long a connection that was woken may take to report before another is chosen.
const PASSED_OVER: Duration = Duration::from_millis(100);

/// How long it may take before its runtime counts as stalled.
const LOST: Duration = Duration::from_millis(400);

/// How many calls in a row fail on a connection before others are preferred. It is replaced once a
/// call has succeeded on another.
const FAILING: u32 = 3;

impl Connections {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.0.iter()
    }

    /// Those whose runtimes run.
    pub(crate) fn present(&self) -> impl Iterator<Item = &Connection> {
        self.0.iter().filter(|connection| !connection.lost)
    }

    pub(crate) fn add(&mut self, handle: Arc<Handle>, limit: usize, now: Instant) {
        self.0.push(Connection::new(handle, limit, now));
    }

    pub(crate) fn get_mut(&mut self, handle: &Handle) -> Option<&mut Connection> {
        let mut connections = self.0.iter_mut();
        connections.find(|connection| connection.handle.id == handle.id)
    }

    pub(crate) fn remove(&mut self, handle: &Handle) -> Option<Connection> {
        let mut connections = self.0.iter();
        let index = connections.position(|connection| connection.handle.id == handle.id)?;
        Some(self.0.remove(index))
    }

    /// Removes a connection whose calls fail in a row while they succeed on another.
    pub(crate) fn remove_failing(&mut self) -> Option<Connection> {
        let answered = self
            .0
            .iter()
            .filter_map(|connection| connection.last_answer);
        let answered = answered.max()?;
        let failing = |connection: &Connection| {
            let since = connection.failing_since.filter(|_| connection.is_failing());
            since.is_some_and(|since| answered > since)
        };
        let index = self.0.iter().position(failing)?;
        Some(self.0.remove(index))
    }

    /// How many queued calls connections were woken for. One that does not report does not count.
    pub(crate) fn assigned(&self, now: Instant) -> usize {
        let present = self
            .0
            .iter()
            .filter(|connection| !connection.is_passed_over(now));
        present.map(|connection| connection.assigned).sum()
    }

    /// Whether there is another connection that takes calls.
    pub(crate) fn has_other_than(&self, handle: &Handle) -> bool {
        let mut others = self.present().filter(|other| other.handle.id != handle.id);
        others.any(|other| other.load.limit > 0)
    }

    /// Whether every connection is driven by this runtime. If it stalls, so do its callers: nobody
    /// has to watch for that.
    pub(crate) fn are_all_on(&self, runtime: runtime::Id) -> bool {
        self.iter()
            .all(|connection| connection.handle.runtime() == runtime)
    }

    /// Whether a connection other than this one has room for a call, and would take it.
    pub(crate) fn has_room_beside(&self, handle: &Handle, now: Instant) -> bool {
        let mut others = self
            .0
            .iter()
            .filter(|connection| connection.handle.id != handle.id);
        others.any(|connection| connection.free() > 0 && !connection.is_passed_over(now))
    }

    /// Whether the server allows no streams just now. It means the client, not the connection.
    pub(crate) fn no_streams_allowed(&self) -> bool {
        !self.is_empty() && self.iter().all(|connection| connection.load.limit == 0)
    }

    /// Chooses connections for queued calls until one is to be woken, which it returns; `None` if
    /// none has room for more.
    pub(crate) fn assign(
        &mut self,
        queued: usize,
        avoid: Option<u64>,
        now: Instant,
    ) -> Option<Arc<Handle>> {
        let mut assigned = self.assigned(now);
        while assigned < queued {
            let Some(index) = self.choose(queued, avoid, now) else {
                // One of them is to know that calls are queued.
                let oldest = self.0.first_mut()?;
                let unaware = !oldest.aware;
                return unaware.then(|| oldest.wake(now)).flatten();
            };
            let connection = &mut self.0[index];
            connection.assigned += 1;
            assigned += 1;
            if let Some(handle) = connection.wake(now) {
                return Some(handle);
            }
        }
        None
    }

    /// Chooses the least loaded of as many connections as the load needs, the oldest first. The
    /// others get no calls, and so become idle.
    fn choose(&self, queued: usize, avoid: Option<u64>, now: Instant) -> Option<usize> {
        let in_use = self.iter().map(|connection| connection.load.streams);
        let needed = in_use.sum::<usize>() + queued;
        let mut capacity = 0;
        let candidates = self.0.iter().enumerate().map(|(index, connection)| {
            let surplus = capacity >= needed;
            capacity += connection.load.limit * 4 / 5;
            (index, connection, surplus)
        });
        candidates
            .filter(|(_, connection, _)| connection.free() > 0 && !connection.is_passed_over(now))
            .min_by_key(|(_, connection, surplus)| {
                let avoided = avoid == Some(connection.handle.id);
                let bad = connection.load.suspect || connection.is_failing();
                let load = connection.load.streams + connection.assigned;
                (avoided, bad, *surplus, load)
            })
            .map(|(index, ..)| index)
    }

    /// Marks the connections that were woken and do not report. Returns whether one of them was marked
    /// as lost.
    pub(crate) fn mark_lost(&mut self, now: Instant) -> bool {
        let mut lost = false;
        for connection in &mut self.0 {
            let overdue = connection.woken.is_some_and(|woken| now >= woken + LOST);
            match connection.missed {
                None if overdue => connection.missed = Some(now),
                // Twice: a thread that was blocked may just be about to run it.
                Some(missed) if overdue && now >= missed + PASSED_OVER => {
                    lost |= !mem::replace(&mut connection.lost, true);
                }
                _ => {}
            }
        }
        lost
    }

    /// Makes the oldest connection, which allows no streams, doubt that its peer is alive.
    pub(crate) fn doubt(&mut self, since: Instant, now: Instant) -> Option<Arc<Handle>> {
        let oldest = self.0.first_mut()?;
        oldest.doubted = Some(since);
        oldest.wake(now)
    }
}

impl Connection {
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
            has_answered: false,
            assigned: 0,
            woken: None,
            missed: None,
            lost: false,
            aware: false,
            last_answer: None,
            failing_since: None,
            doubted: None,
        }
    }

    /// Stores a report.
    pub(crate) fn report(&mut self, load: Load, now: Instant) {
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

    /// Notes that it leaves with these calls; returns since when its peer is doubted.
    pub(crate) fn leave(&mut self, calls: usize, queued: usize) -> Option<Instant> {
        self.load.streams += calls;
        self.load.room -= calls;
        self.aware = queued > 0;
        self.doubted.take()
    }

    /// How many streams are free, or will be soon: of those that wait to be reset at most half of
    /// the limit counts.
    pub(crate) fn spare(&self) -> usize {
        let load = self.load;
        let soon = load.abandoned.min(load.limit / 2);
        load.limit.saturating_sub(load.streams.saturating_sub(soon))
    }

    /// How many more calls can be assigned to it.
    fn free(&self) -> usize {
        self.load.room.saturating_sub(self.assigned)
    }

    fn is_failing(&self) -> bool {
        self.load.failures >= FAILING
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
        self.handle.call();
        Some(self.handle.clone())
    }
}

//! The open connections of a pool, and the choice of one for the next call.

use std::{mem, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{runtime, time::Instant};

use crate::transport::{stats::ConnectionStats, waker::ConnectionHandle};

/// The connections that take calls, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Connections(Vec<PooledConnection>);

/// A connection, as far as the pool knows it.
#[derive(Debug)]
pub(crate) struct PooledConnection {
    pub(crate) handle: Arc<ConnectionHandle>,
    peer: Option<SocketAddr>,
    pub(crate) opened: Instant,
    pub(crate) load: Load,
    pub(crate) has_answered: bool,
    /// The number of queued calls that are assigned to it.
    assigned: usize,
    /// When its task was woken, until it reports.
    woken_at: Option<Instant>,
    /// When it was noticed that its runtime may be stalled.
    maybe_stalled_since: Option<Instant>,
    /// Whether its runtime is stalled. It does not count until it reports.
    stalled: bool,
    /// Whether its task knows that calls are queued for which there is no stream.
    knows_of_queue: bool,
    last_answer: Option<Instant>,
    failing_since: Option<Instant>,
    /// When a call was queued whose deadline passed while the stream limit was 0. The task has to check
    /// whether anything was received since.
    suspect_since: Option<Instant>,
}

/// What a connection reports when it takes calls.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    /// The maximum number of streams.
    pub(crate) max_streams: usize,
    /// The number of streams in use.
    pub(crate) streams: usize,
    /// How many of them belong to callers that were dropped.
    pub(crate) abandoned: usize,
    /// How many calls it would take now.
    pub(crate) room: usize,
    /// Whether the peer was pinged and has sent nothing since.
    pub(crate) suspect: bool,
    /// The number of calls that have failed in a row.
    pub(crate) failures: u32,
    /// Whether a call was answered since the last report.
    pub(crate) answered: bool,
}

/// How long a task that was woken may take to report before another connection is chosen.
const OVERDUE: Duration = Duration::from_millis(100);

/// How long it may take before its runtime may be stalled. A second check, later by [`OVERDUE`],
/// confirms that.
const STALLED: Duration = Duration::from_millis(400);

/// How many calls have to fail in a row on a connection before others are preferred. It is replaced
/// once a call has succeeded on another.
const FAILING: u32 = 3;

impl Connections {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &PooledConnection> {
        self.0.iter()
    }

    /// Returns those whose runtimes are not stalled.
    pub(crate) fn running(&self) -> impl Iterator<Item = &PooledConnection> {
        self.0.iter().filter(|connection| !connection.stalled)
    }

    pub(crate) fn add(&mut self, connection: PooledConnection) {
        self.0.push(connection);
    }

    pub(crate) fn get_mut(&mut self, handle: &ConnectionHandle) -> Option<&mut PooledConnection> {
        let mut connections = self.0.iter_mut();
        connections.find(|connection| connection.handle.id == handle.id)
    }

    pub(crate) fn remove(&mut self, handle: &ConnectionHandle) -> Option<PooledConnection> {
        let mut connections = self.0.iter();
        let index = connections.position(|connection| connection.handle.id == handle.id)?;
        Some(self.0.remove(index))
    }

    /// Removes a connection whose calls fail in a row while they succeed on another.
    pub(crate) fn remove_failing(&mut self) -> Option<PooledConnection> {
        let answered = self
            .0
            .iter()
            .filter_map(|connection| connection.last_answer);
        let answered = answered.max()?;
        let failing = |connection: &PooledConnection| {
            let since = connection.failing_since.filter(|_| connection.is_failing());
            since.is_some_and(|since| answered > since)
        };
        let index = self.0.iter().position(failing)?;
        Some(self.0.remove(index))
    }

    /// Returns how many queued calls are assigned to connections that report in time.
    pub(crate) fn assigned(&self, now: Instant) -> usize {
        let in_time = self.0.iter().filter(|c| !c.is_overdue(now));
        in_time.map(|connection| connection.assigned).sum()
    }

    /// Returns whether there is another connection that allows streams.
    pub(crate) fn has_other_than(&self, handle: &ConnectionHandle) -> bool {
        let mut others = self.running().filter(|other| other.handle.id != handle.id);
        others.any(|other| other.load.max_streams > 0)
    }

    /// Returns whether every connection is driven by this runtime. Callers on it stall with it, so that
    /// they need not check for that.
    pub(crate) fn are_all_on(&self, runtime: runtime::Id) -> bool {
        self.iter()
            .all(|connection| connection.handle.runtime() == runtime)
    }

    /// Returns whether a connection other than this one would take a call.
    pub(crate) fn has_room_beside(&self, handle: &ConnectionHandle, now: Instant) -> bool {
        let mut others = self.0.iter().filter(|other| other.handle.id != handle.id);
        others.any(|other| other.is_available(now))
    }

    /// Returns whether the stream limit of all connections is 0. The server then limits this client, and
    /// another connection would not help.
    pub(crate) fn no_streams_allowed(&self) -> bool {
        !self.is_empty()
            && self
                .iter()
                .all(|connection| connection.load.max_streams == 0)
    }

    /// Assigns queued calls to connections until the task of one has to be woken, and returns that one.
    /// `None` if all calls are assigned, or no connection has room for more.
    pub(crate) fn assign(
        &mut self,
        queued: usize,
        avoid: Option<u64>,
        now: Instant,
    ) -> Option<Arc<ConnectionHandle>> {
        let mut assigned = self.assigned(now);
        while assigned < queued {
            let Some(index) = self.choose(queued, avoid, now) else {
                // One task has to know that calls are queued: it checks regularly for room.
                let oldest = self.0.iter_mut().find(|connection| !connection.stalled)?;
                if oldest.knows_of_queue {
                    return None;
                }
                return oldest.wake(now);
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

    /// Chooses the least loaded of the oldest connections that suffice for the load at 80 % of their
    /// streams, which leaves room for a burst. The others are used only if none of these is available
    /// and healthy, and so become idle.
    fn choose(&self, queued: usize, avoid: Option<u64>, now: Instant) -> Option<usize> {
        let in_use = self.iter().map(|connection| connection.load.streams);
        let needed = in_use.sum::<usize>() + queued;
        let mut capacity = 0;
        let candidates = self.0.iter().enumerate().map(|(index, connection)| {
            let surplus = capacity >= needed;
            capacity += connection.load.max_streams * 4 / 5;
            (index, connection, surplus)
        });
        candidates
            .filter(|(_, connection, _)| connection.is_available(now))
            .min_by_key(|(_, connection, surplus)| {
                let avoided = avoid == Some(connection.handle.id);
                let bad = connection.load.suspect || connection.is_failing();
                let load = connection.load.streams + connection.assigned;
                (avoided, bad, *surplus, load)
            })
            .map(|(index, ..)| index)
    }

    /// Marks the connections whose tasks do not run. Returns whether there is a new one.
    pub(crate) fn mark_stalled(&mut self, now: Instant) -> bool {
        let mut stalled = false;
        for connection in &mut self.0 {
            let overdue = connection.woken_at.is_some_and(|at| now >= at + STALLED);
            match connection.maybe_stalled_since {
                None if overdue => connection.maybe_stalled_since = Some(now),
                // Twice: a thread that was blocked may just be about to run it.
                Some(since) if overdue && now >= since + OVERDUE => {
                    stalled |= !mem::replace(&mut connection.stalled, true);
                }
                _ => {}
            }
        }
        stalled
    }

    /// Makes the oldest connection, whose stream limit is 0, check whether its peer is alive.
    pub(crate) fn suspect_oldest(
        &mut self,
        since: Instant,
        now: Instant,
    ) -> Option<Arc<ConnectionHandle>> {
        let oldest = self.0.first_mut()?;
        oldest.suspect_since = Some(since);
        oldest.wake(now)
    }
}

impl PooledConnection {
    pub(crate) fn new(
        handle: Arc<ConnectionHandle>,
        max_streams: usize,
        peer: Option<SocketAddr>,
        now: Instant,
    ) -> Self {
        let load = Load {
            max_streams,
            room: max_streams,
            ..Load::default()
        };
        Self {
            handle,
            peer,
            opened: now,
            load,
            has_answered: false,
            assigned: 0,
            woken_at: None,
            maybe_stalled_since: None,
            stalled: false,
            knows_of_queue: false,
            last_answer: None,
            failing_since: None,
            suspect_since: None,
        }
    }

    pub(crate) fn stats(&self, now: Instant) -> ConnectionStats {
        ConnectionStats {
            id: self.handle.id,
            peer: self.peer,
            age: now.saturating_duration_since(self.opened),
            streams_in_use: self.load.streams,
            abandoned_streams: self.load.abandoned,
            max_streams: self.load.max_streams,
        }
    }

    /// Stores a report. Returns whether the connection has answered its first call.
    pub(crate) fn report(&mut self, load: Load, now: Instant) -> bool {
        self.load = load;
        self.assigned = 0;
        self.woken_at = None;
        self.maybe_stalled_since = None;
        self.stalled = false;
        self.failing_since = match load.failures {
            0 => None,
            // Its own answer came before the failures.
            _ if load.answered => Some(now),
            _ => self.failing_since.or(Some(now)),
        };
        if load.answered {
            self.last_answer = Some(now);
        }
        load.answered && !mem::replace(&mut self.has_answered, true)
    }

    /// Notes that it took so many calls, and how many are left. Returns since when its peer is suspect.
    pub(crate) fn took(&mut self, calls: usize, queued: usize) -> Option<Instant> {
        self.load.streams += calls;
        self.load.room -= calls;
        self.knows_of_queue = queued > 0;
        self.suspect_since.take()
    }

    /// Returns how many streams are free, or will be soon: abandoned streams count as such, up to half
    /// of the maximum.
    pub(crate) fn spare(&self) -> usize {
        let load = self.load;
        let soon = load.abandoned.min(load.max_streams / 2);
        load.max_streams
            .saturating_sub(load.streams.saturating_sub(soon))
    }

    /// Returns whether another call can be assigned to it.
    fn is_available(&self, now: Instant) -> bool {
        self.load.room > self.assigned && !self.is_overdue(now)
    }

    /// Returns whether the task was woken and has not reported yet.
    pub(crate) fn is_woken(&self) -> bool {
        self.woken_at.is_some()
    }

    fn is_failing(&self) -> bool {
        self.load.failures >= FAILING
    }

    fn is_overdue(&self, now: Instant) -> bool {
        self.stalled || self.woken_at.is_some_and(|at| now >= at + OVERDUE)
    }

    /// Returns the handle to wake, unless it was woken and has not reported yet.
    fn wake(&mut self, now: Instant) -> Option<Arc<ConnectionHandle>> {
        if self.woken_at.is_some() {
            return None;
        }
        self.woken_at = Some(now);
        self.handle.request_take();
        Some(self.handle.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_replaced_once_another_has_answered() {
        let runtime = runtime::Handle::current().id();
        let now = Instant::now();
        let mut connections = Connections::default();
        let handles = [0, 1].map(|id| ConnectionHandle::new(id, runtime));
        for handle in &handles {
            connections.add(PooledConnection::new(handle.clone(), 100, None, now));
        }
        let mut report = |id: usize, answered, failures, millis| {
            let load = Load {
                max_streams: 100,
                room: 100,
                answered,
                failures,
                ..Load::default()
            };
            let now = now + Duration::from_millis(millis);
            let connection = connections.get_mut(&handles[id]);
            connection.expect("it is there").report(load, now);
            connections
                .remove_failing()
                .map(|removed| removed.handle.id)
        };
        assert_eq!(report(0, false, 1, 1), None);
        // Its own answer, before it failed again.
        assert_eq!(report(0, true, FAILING, 2), None);
        assert_eq!(report(0, false, FAILING + 1, 3), None);
        assert_eq!(report(1, true, 0, 4), Some(0));
    }
}

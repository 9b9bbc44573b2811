//! The connections of a pool that are being opened, and when the next may be.

use std::{sync::Arc, time::Duration};

use tokio::{runtime, time::Instant};
use tonic::Status;

use super::connections::Connection;
use crate::{
    backoff::Backoff,
    status::{Origin, caused},
    transport::waker::Handle,
};

/// The attempts to open a connection, and the backoff after failures.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    attempts: Vec<Attempt>,
    /// How many times in a row connections failed. Those that fail together count once.
    failures: u32,
    failed_at: Option<Instant>,
    /// When the next connection may be opened.
    open_after: Option<Instant>,
    /// The last failure to open a connection, and when it was.
    last_failure: Option<(Status, Instant)>,
    /// The runtime on which connections are spawned. `None` if it has ended, or is stalled.
    home: Option<runtime::Handle>,
    next_id: u64,
}

/// A connection to open.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) handle: Arc<Handle>,
    pub(crate) runtime: runtime::Handle,
    /// It is opened no earlier.
    pub(crate) begins: Instant,
}

/// The backoff between attempts, see
/// [gRPC's connection backoff](https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md).
/// The first delay is shorter than the second of that page: in a data centre a server that restarts
/// is back sooner.
const BACKOFF: Backoff = Backoff {
    initial: Duration::from_millis(100),
    multiplier: 1.6,
    maximum: Duration::from_secs(120),
};

impl Openings {
    pub(crate) fn len(&self) -> usize {
        self.attempts.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.attempts.is_empty()
    }

    pub(crate) fn handles(&self) -> impl Iterator<Item = &Arc<Handle>> {
        self.attempts.iter().map(|attempt| &attempt.handle)
    }

    /// Returns when the next attempt may begin.
    pub(crate) fn earliest(&self, now: Instant) -> Instant {
        self.open_after.map_or(now, |after| after.max(now))
    }

    /// Begins an attempt: at home, or else on the caller's runtime, which becomes home.
    pub(crate) fn begin(&mut self, begins: Instant) -> Option<Attempt> {
        let home = self.home.clone();
        let runtime = home.or_else(|| runtime::Handle::try_current().ok())?;
        Some(self.begin_on(runtime, begins))
    }

    pub(crate) fn begin_on(&mut self, runtime: runtime::Handle, begins: Instant) -> Attempt {
        self.home = Some(runtime.clone());
        let attempt = Attempt {
            handle: Handle::new(self.next_id, runtime.id()),
            runtime,
            begins,
        };
        self.next_id += 1;
        self.attempts.push(attempt.clone());
        attempt
    }

    /// Removes an attempt; returns when it began. `None` if it took too long.
    pub(crate) fn end(&mut self, handle: &Handle) -> Option<Instant> {
        let mut attempts = self.attempts.iter();
        let index = attempts.position(|attempt| attempt.handle.id == handle.id)?;
        Some(self.attempts.remove(index).begins)
    }

    /// Notes that a connection was opened.
    pub(crate) fn succeeded(&mut self) {
        self.open_after = None;
        self.last_failure = None;
    }

    /// Notes that an attempt failed.
    pub(crate) fn failed(&mut self, begun: Instant, failure: &Status, now: Instant) {
        if self.count_failure(begun, now) {
            let delay = BACKOFF.delay(self.failures - 1, fastrand::f64());
            self.open_after = Some(now + delay);
        }
        self.last_failure = Some((failure.clone(), now));
    }

    /// Notes that a connection has answered its first call.
    pub(crate) fn answered(&mut self) {
        self.failures = 0;
        self.open_after = None;
    }

    /// Notes the end of a connection. After one that never answered, the next has to wait; after
    /// the last one that has, it has not.
    pub(crate) fn closed(&mut self, connection: &Connection, was_last: bool, now: Instant) {
        let load = connection.load;
        if !connection.has_answered && (load.failures > 0 || load.streams > 0) {
            // The first may just have come at the end of its server's life.
            if self.count_failure(connection.opened, now)
                && let Some(earlier) = self.failures.checked_sub(2)
            {
                let delay = BACKOFF.delay(earlier, fastrand::f64());
                self.open_after = Some(connection.opened + delay).filter(|after| *after > now);
            }
        } else if connection.has_answered && was_last {
            self.failures = 0;
            self.succeeded();
        }
    }

    /// Gives up attempts that take longer than this; returns whether there were any. Their runtime
    /// is stalled.
    pub(crate) fn give_up(&mut self, limit: Duration, now: Instant) -> bool {
        let before = self.attempts.len();
        self.attempts.retain(|attempt| {
            let end = attempt.begins.checked_add(limit);
            end.is_none_or(|end| now < end)
        });
        self.attempts.len() < before
    }

    /// Notes that the home runtime has ended, or is stalled. The next caller's runtime becomes home.
    pub(crate) fn leave_home(&mut self) {
        self.home = None;
    }

    /// Returns the last failure with its times, if no attempt is under way and the next is not due.
    pub(crate) fn backoff_failure(&self, now: Instant) -> Option<Status> {
        let next = self.open_after.filter(|after| now < *after)?;
        if self.attempts.iter().any(|attempt| attempt.begins <= now) {
            return None;
        }
        let (failure, at) = self.last_failure.as_ref()?;
        let message = format!(
            "{} (the last attempt failed {:.1?} ago, the next is in {:.1?})",
            failure.message(),
            now.saturating_duration_since(*at),
            next - now
        );
        let cause = failure.clone();
        Some(caused(failure.code(), message, Origin::Transport, cause))
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
}

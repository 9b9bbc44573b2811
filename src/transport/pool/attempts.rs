//! The attempts of a pool to open connections, and the backoff between them.

use std::{sync::Arc, time::Duration};

use tokio::{runtime, time::Instant};
use tonic::Status;

use super::connections::PooledConnection;
use crate::{
    backoff::Backoff,
    status::{Delivery, Origin, reworded},
    transport::waker::ConnectionHandle,
};

/// The attempts to open a connection, and the backoff after failures.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    attempts: Vec<Attempt>,
    /// How many times in a row connections have failed. Those that fail together count once.
    failures: u32,
    failed_at: Option<Instant>,
    /// When the next attempt may start.
    next_at: Option<Instant>,
    /// The status of the last attempt that failed, and when it did.
    last_failure: Option<(Status, Instant)>,
    /// The runtime on which tasks are spawned. `None` if it has ended, or is stalled.
    runtime: Option<runtime::Handle>,
    next_id: u64,
}

/// An attempt to open a connection.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) handle: Arc<ConnectionHandle>,
    pub(crate) runtime: runtime::Handle,
    pub(crate) starts_at: Instant,
}

/// The backoff between attempts, see
/// [gRPC's connection backoff](https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md).
/// The initial delay is 100 ms where that page has a second: in a data centre, a server that restarts is
/// back sooner.
const BACKOFF: Backoff = Backoff {
    initial: Duration::from_millis(100),
    multiplier: 1.6,
    maximum: Duration::from_secs(120),
};

impl Attempts {
    pub(crate) fn len(&self) -> usize {
        self.attempts.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.attempts.is_empty()
    }

    pub(crate) fn handles(&self) -> impl Iterator<Item = &Arc<ConnectionHandle>> {
        self.attempts.iter().map(|attempt| &attempt.handle)
    }

    /// Returns when the next attempt may start.
    pub(crate) fn earliest(&self, now: Instant) -> Instant {
        self.next_at.map_or(now, |at| at.max(now))
    }

    /// Starts an attempt on the pool's runtime. If there is none, the current one becomes the pool's.
    pub(crate) fn start(&mut self, starts_at: Instant) -> Option<Attempt> {
        let runtime = self.runtime.clone();
        let runtime = runtime.or_else(|| runtime::Handle::try_current().ok())?;
        Some(self.start_on(runtime, starts_at))
    }

    /// Starts an attempt on this runtime, which becomes the pool's.
    pub(crate) fn start_on(&mut self, runtime: runtime::Handle, starts_at: Instant) -> Attempt {
        self.runtime = Some(runtime.clone());
        let attempt = Attempt {
            handle: ConnectionHandle::new(self.next_id, runtime.id()),
            runtime,
            starts_at,
        };
        self.next_id += 1;
        self.attempts.push(attempt.clone());
        attempt
    }

    /// Removes an attempt, and returns when it started; `None` if it was given up.
    pub(crate) fn end(&mut self, handle: &ConnectionHandle) -> Option<Instant> {
        let mut attempts = self.attempts.iter();
        let index = attempts.position(|attempt| attempt.handle.id == handle.id)?;
        Some(self.attempts.remove(index).starts_at)
    }

    /// Notes that a connection was opened.
    /// Returns the last failure, which is to be dropped without the pool's lock.
    pub(crate) fn succeeded(&mut self) -> impl Sized + use<> {
        self.next_at = None;
        self.last_failure.take()
    }

    /// Notes that an attempt failed. Returns the failure before, which is to be dropped without the pool's
    /// lock.
    pub(crate) fn failed(
        &mut self,
        started_at: Instant,
        failure: &Status,
        now: Instant,
    ) -> impl Sized + use<> {
        if self.count_failure(started_at, now) {
            let delay = BACKOFF.delay(self.failures - 1, fastrand::f64());
            self.next_at = Some(now + delay);
        }
        self.last_failure.replace((failure.clone(), now))
    }

    /// Notes that a connection has answered its first call. The server may be closing it by then.
    pub(crate) fn answered(&mut self) {
        self.failures = 0;
        self.next_at = None;
    }

    /// Notes that the server has closed a connection, or that it has failed. If there were calls and it
    /// never answered one, it counts as a failed attempt. If it was the last and has answered, there is
    /// no backoff.
    pub(crate) fn connection_closed(
        &mut self,
        connection: &PooledConnection,
        was_last: bool,
        now: Instant,
    ) {
        let load = connection.load;
        if !connection.has_answered && (load.failures > 0 || load.streams > 0) {
            // The first has no backoff: it may have been accepted just before its server shut down.
            if self.count_failure(connection.opened, now)
                && let Some(earlier) = self.failures.checked_sub(2)
            {
                let delay = BACKOFF.delay(earlier, fastrand::f64());
                self.next_at = Some(connection.opened + delay).filter(|after| *after > now);
            }
        } else if connection.has_answered && was_last {
            self.failures = 0;
            self.next_at = None;
        }
    }

    /// Gives up the attempts that take longer than this: their runtime is stalled. Returns their number.
    pub(crate) fn give_up(&mut self, limit: Duration, now: Instant) -> usize {
        let before = self.attempts.len();
        self.attempts.retain(|attempt| {
            let end = attempt.starts_at.checked_add(limit);
            end.is_none_or(|end| now < end)
        });
        before - self.attempts.len()
    }

    /// Notes that the pool's runtime has ended, or is stalled. That of the next attempt takes its place.
    pub(crate) fn forget_runtime(&mut self) {
        self.runtime = None;
    }

    /// Returns the last failure, and when the next attempt starts, if none is in progress.
    pub(crate) fn backoff_failure(&self, now: Instant) -> Option<Status> {
        let next = self.next_at.filter(|after| now < *after)?;
        if self.attempts.iter().any(|attempt| attempt.starts_at <= now) {
            return None;
        }
        let (failure, at) = self.last_failure.as_ref()?;
        let message = format!(
            "{} (the last attempt failed {:.1?} ago, the next starts in {:.1?})",
            failure.message(),
            now.saturating_duration_since(*at),
            next - now
        );
        let (origin, delivery) = (Origin::Transport, Delivery::NotSent);
        Some(reworded(failure, failure.code(), message, origin, delivery))
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

//! When a connection closes although nothing has failed.

use std::time::Duration;

use tokio::time::Instant;

/// Decides when a connection is idle, has its maximum age, or has not closed in time.
#[derive(Debug)]
pub(crate) struct Lifetime {
    idle: Duration,
    /// `None` while there are calls on the connection.
    idle_since: Option<Instant>,
    /// When the connection has its maximum age.
    expires_at: Option<Instant>,
    /// Since when it has taken no more calls, and has had none.
    closing_since: Option<Instant>,
}

/// How long HTTP/2 may take to close the connection after its last call.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

impl Lifetime {
    pub(crate) fn new(idle: Duration, max_age: Option<Duration>, now: Instant) -> Self {
        let expires_at = max_age.and_then(|age| {
            // Connections that were opened together are not closed together.
            let jitter = age / 5;
            let age = (age - jitter / 2).saturating_add(jitter.mul_f64(fastrand::f64()));
            now.checked_add(age)
        });
        Self {
            idle,
            idle_since: Some(now),
            expires_at,
            closing_since: None,
        }
    }

    /// Updates whether there are calls on the connection, and whether it takes more.
    pub(crate) fn update(&mut self, has_calls: bool, takes_calls: bool, now: Instant) {
        let idle = (!has_calls).then_some(now);
        self.idle_since = idle.map(|now| self.idle_since.unwrap_or(now));
        if !takes_calls {
            self.closing_since = idle.map(|now| self.closing_since.unwrap_or(now));
        }
    }

    /// Restarts the idle timeout, if the connection is idle.
    pub(crate) fn keep(&mut self, now: Instant) {
        self.idle_since = self.idle_since.and(Some(now));
    }

    pub(crate) fn is_idle(&self, now: Instant) -> bool {
        self.idle_at().is_some_and(|at| now >= at)
    }

    /// Returns whether the maximum age was reached since the last call of this.
    pub(crate) fn take_expired(&mut self, now: Instant) -> bool {
        self.expires_at.take_if(|at| now >= *at).is_some()
    }

    /// Returns whether HTTP/2 has not closed the connection within the close timeout.
    pub(crate) fn close_timed_out(&self, now: Instant) -> bool {
        self.closes_at().is_some_and(|at| now >= at)
    }

    /// Returns when one of these is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        let close = self.closes_at().or_else(|| self.idle_at());
        close.into_iter().chain(self.expires_at).min()
    }

    fn idle_at(&self) -> Option<Instant> {
        self.idle_since?.checked_add(self.idle)
    }

    fn closes_at(&self) -> Option<Instant> {
        Some(self.closing_since? + CLOSE_TIMEOUT)
    }
}

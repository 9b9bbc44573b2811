//! Polling policy.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    backoff::Backoff,
    status::{is_transient, retry},
};

/// The polling policy of a [`Poller`](super::Poller): delays, timeouts, and tolerated failures.
///
/// The delay between the starts of two polls begins with [`initial_delay`](Self::initial_delay), grows by
/// [`multiplier`](Self::multiplier) up to [`max_delay`](Self::max_delay), and has a jitter of 20 %, so that pollers
/// that start together do not poll together.
///
/// ```
/// use std::time::Duration;
/// use longrunning::PollPolicy;
///
/// let policy = PollPolicy::default()
///     .initial_delay(Duration::from_millis(500))
///     .total_timeout(Duration::from_secs(3600));
/// # let _ = policy;
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PollPolicy {
    backoff: Backoff,
    wait_timeout: Duration,
    total_timeout: Option<Duration>,
    pub(super) max_failures: usize,
    /// A bit for each code; `None` for the default.
    transient_codes: Option<u32>,
}

impl PollPolicy {
    /// Sets the delay after the first poll.
    ///
    /// Values below 1 millisecond are treated as 1 millisecond.
    ///
    /// Defaults to 1 second.
    #[must_use]
    pub const fn initial_delay(mut self, delay: Duration) -> Self {
        self.backoff.initial = delay;
        self
    }

    /// Sets the maximum delay, before jitter.
    ///
    /// Values below the initial delay are treated as the initial delay.
    ///
    /// Defaults to 20 seconds.
    #[must_use]
    pub const fn max_delay(mut self, delay: Duration) -> Self {
        self.backoff.maximum = delay;
        self
    }

    /// Sets the factor by which the delay grows after each poll.
    ///
    /// Values below 1 are treated as 1.
    ///
    /// Defaults to 1.5.
    #[must_use]
    pub const fn multiplier(mut self, factor: f64) -> Self {
        self.backoff.multiplier = factor;
        self
    }

    /// Sets the maximum time for which a WaitOperation call makes the server wait.
    ///
    /// A random jitter reduces the timeout by up to 20 %; in a stream, the timeout is instead limited to the delay between
    /// two polls. Values above 60 seconds are treated as 60 seconds, because proxies end longer calls. With
    /// [`Duration::ZERO`], the poller uses only GetOperation.
    ///
    /// Defaults to 60 seconds.
    #[must_use]
    pub const fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.wait_timeout = timeout;
        self
    }

    /// Sets the total time to poll, which begins with the first poll and includes pauses of the caller.
    ///
    /// Defaults to no limit, and to 5 minutes for
    /// [`cancel_and_wait`](crate::OperationsClient::cancel_and_wait). [`Duration::MAX`] means no limit.
    #[must_use]
    pub const fn total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = Some(timeout);
        self
    }

    /// Sets the maximum number of consecutive failed polls.
    ///
    /// The next failure ends polling, with the status of that poll. A successful poll resets the count. A WaitOperation
    /// does not count if its failure is not transient and may be specific to that method.
    ///
    /// Defaults to no limit.
    #[must_use]
    pub const fn max_failures(mut self, failures: usize) -> Self {
        self.max_failures = failures;
        self
    }

    /// Sets the status codes after which polling continues.
    ///
    /// Polling also continues after a status that a layer has [marked as
    /// retryable](crate::CallStatusExt::into_retryable). After any other failed WaitOperation, polling continues with
    /// GetOperation, unless the status is `NOT_FOUND` or was created by the client.
    ///
    /// Defaults to `UNAVAILABLE`, `DEADLINE_EXCEEDED`, and the cases of `RESOURCE_EXHAUSTED` and `CANCELLED` that
    /// [`Poller`](super::Poller#failures) lists.
    #[must_use]
    pub fn transient_codes(mut self, codes: impl IntoIterator<Item = Code>) -> Self {
        let bits = codes.into_iter().map(bit);
        self.transient_codes = Some(bits.fold(0, |bits, bit| bits | bit));
        self
    }

    /// Returns the delay after this many earlier polls.
    pub(super) fn delay(&self, polls: u32) -> Duration {
        let delay = self.backoff().delay(polls, fastrand::f64());
        delay.min(FOREVER)
    }

    /// Returns the backoff, limited so that a server is not flooded with calls.
    fn backoff(&self) -> Backoff {
        let initial = self.backoff.initial.max(Duration::from_millis(1));
        Backoff {
            initial,
            multiplier: self.backoff.multiplier.max(1.0),
            maximum: self.backoff.maximum.max(initial),
        }
    }

    pub(super) fn initial(&self) -> Duration {
        self.backoff().initial.min(FOREVER)
    }

    /// Returns the timeout of WaitOperation, or `None` if it is not used.
    pub(super) fn wait(&self) -> Option<Duration> {
        (!self.wait_timeout.is_zero()).then(|| self.wait_timeout.min(Duration::from_secs(60)))
    }

    /// Returns the remaining time at or below which GetOperation is used instead of WaitOperation.
    pub(super) fn min_wait(&self) -> Duration {
        self.initial().min(Duration::from_secs(1))
    }

    pub(crate) fn limit(&self) -> Option<Duration> {
        self.total_timeout
    }

    /// Returns when the total timeout passes. `None` if there is none, or if it is too far in the future.
    pub(super) fn deadline(&self, begun: Instant) -> Option<Instant> {
        begun.checked_add(self.total_timeout?)
    }

    pub(super) fn tolerates(&self, status: &Status) -> bool {
        match self.transient_codes {
            None => is_transient(status),
            Some(codes) => codes & bit(status.code()) != 0 || retry(status) == Some(true),
        }
    }
}

fn bit(code: Code) -> u32 {
    1 << (code as u32)
}

/// Longer than any program runs, and short enough to be added to an instant.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl Default for PollPolicy {
    fn default() -> Self {
        Self {
            backoff: Backoff {
                initial: Duration::from_secs(1),
                multiplier: 1.5,
                maximum: Duration::from_secs(20),
            },
            wait_timeout: Duration::from_secs(60),
            total_timeout: None,
            max_failures: usize::MAX,
            transient_codes: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_setting_makes_a_loop_without_delay() {
        for multiplier in [-1.0, 0.0, f64::NAN] {
            let policy = PollPolicy::default()
                .initial_delay(Duration::ZERO)
                .max_delay(Duration::ZERO)
                .multiplier(multiplier);
            for polls in [0, 1, 1_000] {
                let delay = policy.delay(polls);
                assert!(delay >= Duration::from_micros(800), "{delay:?}");
            }
        }
    }

    #[test]
    fn wait_timeouts_are_at_most_60_seconds() {
        let timeout = |timeout| PollPolicy::default().wait_timeout(timeout).wait();
        assert_eq!(timeout(Duration::MAX), Some(Duration::from_secs(60)));
        let short = Duration::from_secs(5);
        assert_eq!(timeout(short), Some(short));
        assert_eq!(timeout(Duration::ZERO), None);
    }

    #[test]
    fn transient_codes_replaces_the_default_codes() {
        let policy = PollPolicy::default().transient_codes([Code::NotFound]);
        assert!(policy.tolerates(&Status::not_found("not yet")));
        assert!(!policy.tolerates(&Status::unavailable("down")));
        assert!(PollPolicy::default().tolerates(&Status::unavailable("down")));
    }
}

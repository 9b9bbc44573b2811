//! How often to look at an operation, and how long.

use std::time::Duration;

use crate::backoff::Backoff;

/// How often a [`Poller`](super::Poller) looks at an operation, and for how long.
///
/// The delay between looks starts at [`initial_delay`](Self::initial_delay), grows by
/// [`multiplier`](Self::multiplier) up to [`max_delay`](Self::max_delay), and is made
/// shorter or longer by up to 20 % at random, from the first one on: pollers that start together
/// do not go on in step.
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
    wait: Duration,
    total_timeout: Option<Duration>,
}

impl PollPolicy {
    /// Sets the delay after the first look. Less than a millisecond counts as one. Default is 1 s.
    #[must_use]
    pub const fn initial_delay(mut self, delay: Duration) -> Self {
        self.backoff.initial = delay;
        self
    }

    /// Sets what the delay grows to. Less than the initial delay counts as that. Default is 20 s.
    #[must_use]
    pub const fn max_delay(mut self, delay: Duration) -> Self {
        self.backoff.maximum = delay;
        self
    }

    /// Sets by how much each delay is longer than the one before. Less than 1 counts as 1.
    /// Default is 1.5.
    #[must_use]
    pub const fn multiplier(mut self, factor: f64) -> Self {
        self.backoff.multiplier = factor;
        self
    }

    /// Sets how long one WaitOperation asks the server to wait, or up to 20 % less, at random. More
    /// than 60 s counts as 60 s, beyond which proxies cut calls off; zero looks with GetOperation
    /// alone. Default is 60 s.
    #[must_use]
    pub const fn wait_timeout(mut self, slice: Duration) -> Self {
        self.wait = slice;
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

    /// The delays, within the bounds that keep a server from being hammered.
    pub(crate) fn backoff(&self) -> Backoff {
        let initial = self.backoff.initial.max(Duration::from_millis(1));
        Backoff {
            initial,
            multiplier: self.backoff.multiplier.max(1.0),
            maximum: self.backoff.maximum.max(initial),
        }
    }

    /// How long one Wait may last, if there is to be any.
    pub(crate) fn slice(&self) -> Option<Duration> {
        (!self.wait.is_zero()).then(|| self.wait.min(Duration::from_secs(60)))
    }

    pub(crate) fn limit(&self) -> Option<Duration> {
        self.total_timeout
    }
}

impl Default for PollPolicy {
    fn default() -> Self {
        Self {
            backoff: Backoff {
                initial: Duration::from_secs(1),
                multiplier: 1.5,
                maximum: Duration::from_secs(20),
            },
            wait: Duration::from_secs(60),
            total_timeout: None,
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
            for earlier in [0, 1, 1_000] {
                let delay = policy.backoff().delay(earlier, 0.0);
                assert!(delay >= Duration::from_micros(800), "{delay:?}");
            }
        }
    }

    #[test]
    fn a_slice_is_60_seconds_at_most() {
        let slice = |wait| PollPolicy::default().wait_timeout(wait).slice();
        assert_eq!(slice(Duration::MAX), Some(Duration::from_secs(60)));
        assert_eq!(slice(Duration::from_secs(5)), Some(Duration::from_secs(5)));
        assert_eq!(slice(Duration::ZERO), None);
    }
}

//! Which failed calls are made again, how often, and when.

mod throttle;

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use self::throttle::Throttle;
use crate::{
    backoff::Backoff,
    proto::{duration, rpc::RetryInfo},
    status::{Origin, StatusExt as _},
    trace,
};

/// How failed calls are made again.
///
/// The default is the policy that is published with the service: calls that end `UNAVAILABLE` are
/// made up to 5 times, the first time again after about 0.5 seconds and each time after twice as
/// long, up to 10 seconds, all within the call's one deadline. Each wait is up to 20 % shorter or
/// longer, so that clients that failed together do not come back together.
///
/// - Where the server says in [`RetryInfo`] how long to wait, that counts. A call that would have
///   to wait beyond its deadline ends at once, with the status it has.
/// - Where more than a few calls fail, none is made again: each failure takes one of 100 tokens, each
///   success returns a tenth, and at 50 or fewer every call is made just once. A client and its
///   clones share the tokens. See
///   [gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md#throttling-retry-attempts-and-hedged-rpcs).
/// - `WaitOperation` is never made again, nor is a call that the client itself refused.
///
/// An operation may have been cancelled or deleted by an attempt whose answer was lost. The next
/// one may then bring `FAILED_PRECONDITION` or `NOT_FOUND`, although the call did its work.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    attempts: NonZeroU32,
    backoff: Backoff,
    codes: Vec<Code>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: NonZeroU32::MIN.saturating_add(4),
            backoff: Backoff {
                initial: Duration::from_millis(500),
                multiplier: 2.0,
                maximum: Duration::from_secs(10),
            },
            codes: vec![Code::Unavailable],
        }
    }
}

impl RetryPolicy {
    /// Never: the server processes a call at most once.
    #[must_use]
    pub fn none() -> Self {
        Self::default().max_attempts(NonZeroU32::MIN)
    }

    /// Sets how often a call is made in all. Default is 5.
    #[must_use]
    pub const fn max_attempts(mut self, attempts: NonZeroU32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets how long to wait before the second attempt. Default is 500 milliseconds.
    #[must_use]
    pub const fn initial_backoff(mut self, backoff: Duration) -> Self {
        self.backoff.initial = backoff;
        self
    }

    /// Sets how long to wait at most. Default is 10 seconds.
    #[must_use]
    pub const fn maximum_backoff(mut self, backoff: Duration) -> Self {
        self.backoff.maximum = backoff;
        self
    }

    /// Sets by what factor each wait is longer than the one before. Less than 1 counts as 1.
    /// Default is 2.
    #[must_use]
    pub const fn multiplier(mut self, multiplier: f64) -> Self {
        self.backoff.multiplier = multiplier.max(1.0);
        self
    }

    /// Sets which codes are worth another attempt. Default is `UNAVAILABLE` alone, as
    /// [AIP-194](https://google.aip.dev/194) says.
    #[must_use]
    pub fn codes(mut self, codes: impl IntoIterator<Item = Code>) -> Self {
        self.codes = codes.into_iter().collect();
        self
    }

    /// How long to wait before the next attempt; `None`: there is none.
    fn wait(&self, attempts: u32, status: &Status, random: f64) -> Option<Duration> {
        let again = attempts < self.attempts.get() && self.concerns(status);
        let wait = || match retry_delay(status) {
            // Later, if anything: they were all told the same.
            Some(delay) => delay.saturating_add(delay.mul_f64(0.2 * random)),
            None => self.backoff.delay(attempts - 1, random),
        };
        again.then(wait)
    }

    fn concerns(&self, status: &Status) -> bool {
        self.codes.contains(&status.code()) && status.origin() != Some(Origin::Client)
    }
}

fn retry_delay(status: &Status) -> Option<Duration> {
    let delay = duration(status.detail::<RetryInfo>()?.retry_delay?)?;
    // More than this is no wish but a mistake, and would only overflow.
    (!delay.is_zero()).then(|| delay.min(Duration::from_secs(1 << 32)))
}

/// A policy at work, with the tokens that a client and its clones share.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    policy: RetryPolicy,
    throttle: Arc<Throttle>,
}

impl Retry {
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        Self {
            policy,
            throttle: Arc::default(),
        }
    }

    /// Makes attempts until one succeeds or there is none left. Each is told how many were before.
    pub(crate) async fn run<T, F>(
        &self,
        deadline: Option<Instant>,
        mut attempt: impl FnMut(u32) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut attempts = 0;
        loop {
            let result = attempt(attempts).await;
            attempts += 1;
            let status = match result {
                Err(status) if self.policy.concerns(&status) => status,
                Err(status) => return Err(status),
                Ok(answer) => {
                    self.throttle.succeeded();
                    return Ok(answer);
                }
            };
            let may_retry = self.throttle.failed();
            let wait = self.policy.wait(attempts, &status, fastrand::f64());
            let in_time = |wait: &Duration| {
                let left = |at: Instant| at.saturating_duration_since(Instant::now());
                deadline.is_none_or(|at| *wait < left(at))
            };
            match wait.filter(in_time) {
                Some(wait) if may_retry => {
                    trace::retrying(attempts, &status, wait);
                    sleep(wait).await;
                }
                _ => return Err(status),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use prost::Message as _;
    use prost_types::Any;

    use super::*;
    use crate::{
        proto::rpc,
        status::{local, mark},
    };

    fn unavailable() -> Status {
        mark(Status::unavailable("down"), Origin::Server)
    }

    fn with_delay(delay: prost_types::Duration) -> Status {
        let info = RetryInfo {
            retry_delay: Some(delay),
        };
        let status = rpc::Status {
            code: 14,
            details: vec![Any::from_msg(&info).expect("it encodes")],
            ..rpc::Status::default()
        };
        let details = status.encode_to_vec().into();
        mark(
            Status::with_details(Code::Unavailable, "", details),
            Origin::Server,
        )
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn each_wait_is_twice_the_one_before_up_to_the_most() {
        let policy = RetryPolicy::default().max_attempts(NonZeroU32::MAX);
        let table = [
            (1, 0.5),
            (2, 1.0),
            (3, 2.0),
            (4, 4.0),
            (5, 8.0),
            (6, 10.0),
            (u32::MAX - 1, 10.0),
        ];
        for (attempts, expected) in table {
            for (random, jitter) in [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)] {
                let wait = policy.wait(attempts, &unavailable(), random);
                let wait = wait.expect("attempts are left").as_secs_f64();
                assert!(
                    (wait - expected * jitter).abs() < 1e-6,
                    "{attempts}: {wait}"
                );
            }
        }
    }

    #[test]
    fn what_the_server_says_about_the_wait_counts() {
        let policy = RetryPolicy::default();
        let delay = |seconds, nanos| with_delay(prost_types::Duration { seconds, nanos });
        let table = [
            (delay(3, 0), Some(seconds(3.0))),
            (delay(0, 1_000_000), Some(seconds(0.001))),
            (delay(0, 0), Some(seconds(0.4))), // the backoff, for this says nothing
            (delay(-1, 0), Some(seconds(0.4))),
            (delay(i64::MAX, 0), Some(Duration::from_secs(1 << 32))),
        ];
        for (status, expected) in table {
            assert_eq!(policy.wait(1, &status, 0.0), expected);
            assert!(policy.wait(1, &status, 1.0) >= expected);
        }
    }

    #[test]
    fn only_the_policys_codes_are_tried_again_and_never_the_clients_own() {
        let policy = RetryPolicy::default();
        for code in (1..=16).map(Code::from_i32) {
            let status = mark(Status::new(code, ""), Origin::Server);
            let again = policy.wait(1, &status, 0.5).is_some();
            assert_eq!(again, code == Code::Unavailable, "{code:?}");
        }
        let own = local(Code::Unavailable, "no token");
        assert_eq!(policy.wait(1, &own, 0.5), None);
        assert_eq!(policy.wait(5, &unavailable(), 0.5), None);
        assert_eq!(RetryPolicy::none().wait(1, &unavailable(), 0.5), None);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_end_with_the_policy_or_before_the_deadline() {
        let attempts = AtomicUsize::new(0);
        let fail = |before| {
            assert_eq!(attempts.fetch_add(1, Ordering::Relaxed), before as usize);
            std::future::ready(Err::<(), _>(unavailable()))
        };
        let retry = Retry::new(RetryPolicy::default());
        let begin = Instant::now();
        retry.run(None, fail).await.expect_err("it always fails");
        assert_eq!(attempts.swap(0, Ordering::Relaxed), 5);
        let waited = begin.elapsed(); // 0.5, 1, 2, 4 seconds
        assert!((seconds(6.0)..seconds(9.1)).contains(&waited), "{waited:?}");

        let begin = Instant::now();
        let deadline = Some(begin + seconds(2.5));
        let status = retry.run(deadline, fail).await.expect_err("it fails");
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(attempts.swap(0, Ordering::Relaxed), 3);
        assert!(begin.elapsed() < seconds(2.5), "it does not wait in vain");
    }

    #[tokio::test(start_paused = true)]
    async fn in_an_outage_calls_are_made_once() {
        let attempts = AtomicUsize::new(0);
        let fail = |_| {
            attempts.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Err::<(), _>(unavailable()))
        };
        let retry = Retry::new(RetryPolicy::default());
        for _ in 0..1_000 {
            let _ = retry.clone().run(None, fail).await;
        }
        let attempts = attempts.into_inner();
        assert!((1_000..1_050).contains(&attempts), "{attempts}");
    }
}

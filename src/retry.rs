//! Retries of failed calls.

mod attempt;
mod throttle;

use std::{borrow::Cow, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tonic::{Code, Extensions, Status};

use self::throttle::Limits;
pub use self::throttle::ThrottleStats;
pub(crate) use self::{attempt::Attempt, throttle::Throttle};
use crate::{
    backoff::Backoff,
    status::{CallStatusExt as _, Delivery, Origin, ServerDelay, retry, with_delivery},
    trace,
};

/// Which failed calls are retried, how often, and when.
///
/// The default is the policy that is published with the service: a call that ends with
/// `UNAVAILABLE` is attempted up to 5 times. The first retry is sent after about 0.5 seconds. The
/// delay doubles with each further retry, up to 10 seconds, and has a jitter of 20 %, so that clients
/// that failed together do not retry together. All attempts share the deadline of the call.
///
/// - The server can set the delay: `grpc-retry-pushback-ms` in the metadata of its status is the
///   exact delay in milliseconds, and a value that is negative or unreadable means that the call is
///   not retried (see
///   [gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback)).
///   Otherwise, if the details of the status contain a
///   [`RetryInfo`](crate::proto::rpc::RetryInfo), its delay is used, plus up to 20 % of jitter.
/// - A server's `RESOURCE_EXHAUSTED` is retried only if the server sent such a delay, because otherwise
///   it is not known when the quota will be available again. [Pollers](crate::Poller) handle it
///   themselves.
/// - A call whose retry would come after its deadline ends at once, with the status of its last
///   attempt.
/// - A call is not retried once Response-Headers have arrived. Most errors are Trailers-Only, which do
///   not count as such (see
///   [gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md#when-retries-are-valid)).
/// - `WaitOperation` is never retried.
/// - Calls that fail in the client itself or in a layer of its stack are not retried, unless the layer
///   [marked the status as retryable](crate::CallStatusExt::into_retryable).
/// - Retries are not throttled unless [`throttle`](Self::throttle) is set, and attempts have no timeout
///   of their own unless [`attempt_timeout`](Self::attempt_timeout) is set.
///
/// In addition, the [default stack](crate::Transport) retries calls that the server certainly did not
/// process: see there.
///
/// An operation may have been cancelled or deleted by an attempt whose response was lost. The retry
/// may then fail with `FAILED_PRECONDITION` or `NOT_FOUND`, although the first attempt succeeded. To
/// prevent such a retry, set [`idempotent`](Self::idempotent) to false.
///
/// # For one call
///
/// A policy in the extensions of a [`tonic::Request`] replaces the client's policy for that call. The call
/// still uses the throttle of the client; a throttle in the policy of the request has no effect.
///
/// ```
/// # #[cfg(not(feature = "emulator"))]
/// # fn main() {}
/// # #[cfg(feature = "emulator")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tonic::Status> {
/// # use longrunning::{OperationsClient, emulator::Emulator};
/// # let emulator = Emulator::start().await?;
/// # emulator.start_operation("operations/1")?;
/// # let client = OperationsClient::builder(emulator.endpoint()).connect().await?;
/// use std::time::Duration;
/// use longrunning::{RetryPolicy, proto::CancelOperationRequest};
/// use tonic::IntoRequest;
///
/// let mut request: tonic::Request<CancelOperationRequest> = "operations/1".into_request();
/// request.set_timeout(Duration::from_secs(3));
/// request.extensions_mut().insert(RetryPolicy::default().max_attempts(2).idempotent(false));
/// client.cancel_operation(request).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    max_attempts: usize,
    is_idempotent: bool,
    attempt_timeout: Option<Duration>,
    backoff: Backoff,
    codes: Vec<Code>,
    /// Whether a server's `RESOURCE_EXHAUSTED` with a delay is retried, even if `codes` does not contain
    /// it.
    quota: bool,
    throttle: Option<Limits>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            is_idempotent: true,
            attempt_timeout: None,
            backoff: Backoff {
                initial: Duration::from_millis(500),
                multiplier: 2.0,
                maximum: Duration::from_secs(10),
            },
            codes: vec![Code::Unavailable],
            quota: true,
            throttle: None,
        }
    }
}

impl RetryPolicy {
    /// Returns a policy without retries: the server processes a call at most once.
    #[must_use]
    pub fn none() -> Self {
        Self::default().max_attempts(1)
    }

    /// Sets the maximum number of attempts, including the first. 0 counts as 1.
    ///
    /// Defaults to 5.
    #[must_use]
    pub const fn max_attempts(mut self, attempts: usize) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Sets whether a call may be processed more than once.
    ///
    /// If set to false, a call is retried only if no server has processed any of its attempts, that is, if
    /// its [delivery](crate::CallStatusExt::delivery) is [`NotSent`](Delivery::NotSent). This also applies to
    /// attempts that time out, to a server's `RESOURCE_EXHAUSTED`, and to statuses that a layer has marked as
    /// retryable. The errors of a stack that was given to [`new`](crate::OperationsClient::new) do not report
    /// whether the call was sent, so they are not retried either.
    ///
    /// Defaults to true: Get and List have no side effects, and a Cancel or Delete that is processed twice
    /// has the same effect as one that is processed once. However, the second one may fail with
    /// `FAILED_PRECONDITION` or `NOT_FOUND`.
    #[must_use]
    pub const fn idempotent(mut self, is_idempotent: bool) -> Self {
        self.is_idempotent = is_idempotent;
        self
    }

    /// Sets the timeout of each attempt.
    ///
    /// An attempt that times out is retried as if its code were retryable, while attempts remain, before
    /// the deadline of the call, and unless Response-Headers have arrived or
    /// [`idempotent`](Self::idempotent) forbids it. The timeout covers the wait for
    /// a connection and for the answer, but not the wait for a token. It is sent to the server as
    /// `grpc-timeout`, and the attempt is cancelled when it has passed. If the last attempt times out, the
    /// call ends with `DEADLINE_EXCEEDED`. The server may have processed an attempt that timed out, and
    /// may process the retry as well. `WaitOperation` has no attempt timeout.
    ///
    /// Defaults to none: an attempt may take as long as the call.
    #[must_use]
    pub const fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// Sets the delay before the first retry.
    ///
    /// Defaults to 500 milliseconds.
    #[must_use]
    pub const fn initial_backoff(mut self, backoff: Duration) -> Self {
        self.backoff.initial = backoff;
        self
    }

    /// Sets the maximum delay, before jitter.
    ///
    /// Defaults to 10 seconds.
    #[must_use]
    pub const fn max_backoff(mut self, backoff: Duration) -> Self {
        self.backoff.maximum = backoff;
        self
    }

    /// Sets the factor by which each delay is longer than the previous one. Less than 1 counts as 1.
    ///
    /// Defaults to 2.
    #[must_use]
    pub const fn multiplier(mut self, multiplier: f64) -> Self {
        self.backoff.multiplier = multiplier.max(1.0);
        self
    }

    /// Sets the status codes that are retried.
    ///
    /// A server's `RESOURCE_EXHAUSTED` with a delay is retried whatever the list. If the list contains
    /// `RESOURCE_EXHAUSTED`, it is retried even if the server sent no delay.
    ///
    /// Defaults to `UNAVAILABLE` only, as in [AIP-194](https://google.aip.dev/194).
    #[must_use]
    pub fn codes(mut self, codes: impl IntoIterator<Item = Code>) -> Self {
        self.codes = codes.into_iter().collect();
        self
    }

    /// Sets a retry throttle, which suspends retries while many calls fail, so that retries do not
    /// overload a failing server.
    ///
    /// An attempt that fails with a retryable status takes one of `max_tokens`, and a successful call adds
    /// `token_ratio` of a token. Calls are retried only while more than half of the tokens are left;
    /// otherwise a call ends with the status of its attempt. A client and its clones share the tokens. `max_tokens` is clamped to 1..=1,000, and `token_ratio` to
    /// 0.001..=`max_tokens`. See
    /// [gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md#throttling-retry-attempts-and-hedged-rpcs).
    ///
    /// Set it where many clients, or one with many calls, share a server that may be overloaded:
    /// without it, a server that fails every call gets up to [`max_attempts`](Self::max_attempts) times
    /// the load. It has no effect on a client with few calls, because its tokens do not run out.
    ///
    /// A connection that breaks fails all calls on it at once. For those calls to be retried,
    /// `max_tokens` must be more than twice their number. Many servers allow 100 streams on a
    /// connection, so choose more than 200.
    ///
    /// With the feature `tracing`, events report when the throttle starts and when it stops.
    ///
    /// Defaults to no throttle, as in the published policy.
    #[must_use]
    pub const fn throttle(mut self, max_tokens: usize, token_ratio: f64) -> Self {
        self.throttle = Some(Limits::new(max_tokens, token_ratio));
        self
    }

    /// Removes the maximum number of attempts, unless the policy disables retries.
    pub(crate) fn with_unlimited_attempts(mut self) -> Self {
        if self.max_attempts > 1 {
            self.max_attempts = usize::MAX;
        }
        self
    }

    /// Returns the policy in the extensions of a call, for a caller that retries the call itself. A policy without
    /// retries is left in its place.
    pub(crate) fn take_from(extensions: &mut Extensions) -> Option<Self> {
        let policy = extensions.remove::<Self>()?;
        extensions.insert(policy.clone().max_attempts(1));
        Some(policy)
    }

    /// Returns whether a call that failed with this status is safe to retry.
    fn allows_retry(&self, status: &Status) -> bool {
        self.is_idempotent || status.delivery() == Some(Delivery::NotSent)
    }

    pub(crate) fn retries(&self, status: &Status, asked: Option<ServerDelay>) -> bool {
        match (retry(status), status.origin()) {
            (Some(retry), _) => retry,
            (None, Some(Origin::Client)) => false,
            (None, origin) => {
                let is_quota = self.quota
                    && status.code() == Code::ResourceExhausted
                    && origin == Some(Origin::Server)
                    && asked.is_some();
                is_quota || self.codes.contains(&status.code())
            }
        }
    }

    /// Returns the delay before the next attempt, or `None` if there is none.
    ///
    /// `backoffs` is the number of previous delays since the last pushback.
    fn delay(
        &self,
        attempts: usize,
        backoffs: u32,
        asked: Option<ServerDelay>,
        random: f64,
    ) -> Option<Duration> {
        if attempts >= self.max_attempts {
            return None;
        }
        match asked {
            Some(ServerDelay::NoRetry) => None,
            Some(ServerDelay::Exactly(delay)) => Some(delay),
            // The server may have sent the same delay to many clients.
            Some(ServerDelay::AtLeast(delay)) if !delay.is_zero() => {
                Some(delay.saturating_add(delay.mul_f64(0.2 * random)))
            }
            _ => Some(self.backoff.delay(backoffs, random)),
        }
    }
}

/// The timeout of each attempt of a single call, set in the extensions of its [`tonic::Request`].
///
/// It replaces the [`attempt_timeout`](RetryPolicy::attempt_timeout) of the retry policy. If neither the
/// client nor the request has a policy, it applies to the only attempt. `WaitOperation` ignores it. To set
/// the timeout of the whole call, use [`tonic::Request::set_timeout`].
///
/// ```
/// # #[cfg(not(feature = "emulator"))]
/// # fn main() {}
/// # #[cfg(feature = "emulator")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tonic::Status> {
/// # use longrunning::{OperationsClient, emulator::Emulator};
/// # let emulator = Emulator::start().await?;
/// # emulator.start_operation("operations/1")?;
/// # let client = OperationsClient::builder(emulator.endpoint()).connect().await?;
/// use std::time::Duration;
/// use longrunning::{AttemptTimeout, proto::GetOperationRequest};
/// use tonic::IntoRequest;
///
/// let mut request: tonic::Request<GetOperationRequest> = "operations/1".into_request();
/// request.set_timeout(Duration::from_secs(5));
/// request.extensions_mut().insert(AttemptTimeout(Duration::from_secs(1)));
/// client.get_operation(request).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(clippy::exhaustive_structs)]
pub struct AttemptTimeout(pub Duration);

/// The retries of a client and its clones, which share the tokens of the throttle.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    policy: RetryPolicy,
    throttle: Option<Arc<Throttle>>,
}

impl Retry {
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        let throttle = policy.throttle.map(Throttle::new).map(Arc::new);
        Self { policy, throttle }
    }

    /// Returns the retries of one call: those of the client, unless the request has a [`RetryPolicy`] or
    /// an [`AttemptTimeout`].
    pub(crate) fn of_call<'a>(
        extensions: &mut Extensions,
        of_client: Option<&'a Self>,
    ) -> Option<Cow<'a, Self>> {
        let policy = extensions.remove::<RetryPolicy>();
        let attempt_timeout = extensions.remove::<AttemptTimeout>();
        if policy.is_none() && attempt_timeout.is_none() {
            return of_client.map(Cow::Borrowed);
        }
        let mut retry = of_client.cloned().unwrap_or_else(|| Self {
            policy: RetryPolicy::none(),
            throttle: None,
        });
        if let Some(policy) = policy {
            // A poller handles an exhausted quota itself.
            let quota = policy.quota && of_client.is_none_or(|retry| retry.policy.quota);
            retry.policy = RetryPolicy { quota, ..policy };
        }
        if let Some(AttemptTimeout(timeout)) = attempt_timeout {
            retry.policy.attempt_timeout = Some(timeout);
        }
        Some(Cow::Owned(retry))
    }

    pub(crate) fn policy(&self) -> &RetryPolicy {
        &self.policy
    }

    pub(crate) fn throttle(&self) -> Option<&Arc<Throttle>> {
        self.throttle.as_ref()
    }

    /// Disables retries of a `RESOURCE_EXHAUSTED` with a delay, unless `codes` contains it.
    pub(crate) fn without_quota(mut self) -> Self {
        self.policy.quota = false;
        self
    }

    /// Disables all retries, and the throttle. The attempt timeout is kept.
    pub(crate) fn without_retries(mut self) -> Self {
        self.policy.max_attempts = 1;
        self.throttle = None;
        self
    }

    /// Calls `attempt` until it succeeds or the policy allows no further retry.
    pub(crate) async fn run<T, F>(
        &self,
        first: &Attempt,
        mut attempt: impl FnMut(Attempt) -> F,
        observer: &impl AttemptObserver,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let throttle = self.throttle.as_deref();
        let mut failures = Failures::new(&self.policy);
        let mut begun = first.begun;
        loop {
            let this = first.again(failures.count, begun, self.policy.attempt_timeout);
            let result = attempt(this).await;
            observer.attempt_ended(&result);
            let status = match result {
                Ok(answer) => {
                    if let Some(throttle) = throttle {
                        observer.in_call(|| throttle.succeeded());
                    }
                    return Ok(answer);
                }
                Err(status) => failures.covering(status),
            };
            let asked = ServerDelay::of(&status);
            let has_timed_out = this.has_timed_out(&status) && retry(&status).is_none();
            let is_retryable = has_timed_out || self.policy.retries(&status, asked);
            // A pushback that forbids a retry takes a token whatever the code, see gRFC A6.
            let takes_token = is_retryable || asked == Some(ServerDelay::NoRetry);
            let is_throttled = takes_token
                && throttle.is_some_and(|throttle| !observer.in_call(|| throttle.failed()));
            if !is_retryable {
                return Err(status);
            }
            let delay = failures.delay(&status, asked);
            let in_time = |delay: Duration| {
                let left = |at: Instant| at.saturating_duration_since(Instant::now());
                first.call_deadline.is_none_or(|it| delay < left(it.at()))
            };
            let Some(delay) = delay.filter(|delay| in_time(*delay)) else {
                return Err(status);
            };
            if let Some(throttle) = throttle.filter(|_| is_throttled) {
                throttle.suppressed();
                return Err(status);
            }
            observer.in_call(|| trace::retrying(failures.count, &status, delay));
            sleep(delay).await;
            // If the runtime was busy, the sleep may have taken longer than the delay.
            if !in_time(Duration::ZERO) {
                return Err(status);
            }
            begun = Instant::now();
        }
    }
}

/// Observes the attempts of a call.
pub(crate) trait AttemptObserver {
    fn attempt_ended<T>(&self, result: &Result<T, Status>);

    /// Calls a function that emits events of the call.
    fn in_call<T>(&self, f: impl FnOnce() -> T) -> T;
}

/// Counts the failed attempts of a call, and computes the delay before each retry.
#[derive(Debug)]
pub(crate) struct Failures<'a> {
    policy: &'a RetryPolicy,
    /// The number of failed attempts that count towards the maximum.
    count: usize,
    /// The number of backoffs since the last pushback.
    backoffs: u32,
    /// The number of consecutive attempts that the server rejected because of its quota.
    rejections: u32,
    /// The combined delivery of the earlier attempts.
    delivery: Delivery,
}

impl<'a> Failures<'a> {
    pub(crate) fn new(policy: &'a RetryPolicy) -> Self {
        Self {
            policy,
            count: 0,
            backoffs: 0,
            rejections: 0,
            delivery: Delivery::NotSent,
        }
    }

    /// Returns the status with the delivery of all attempts so far. An earlier attempt that was answered counts as
    /// `MaybeSent`.
    pub(crate) fn covering(&mut self, status: Status) -> Status {
        let this = status.delivery().unwrap_or(Delivery::MaybeSent);
        let covering = this.max(self.delivery);
        self.delivery = covering.min(Delivery::MaybeSent);
        with_delivery(status, covering)
    }

    /// Counts a failed attempt, and returns the delay before the next one, or `None` if the call is not retried.
    pub(crate) fn delay(
        &mut self,
        status: &Status,
        asked: Option<ServerDelay>,
    ) -> Option<Duration> {
        self.count += 1;
        self.rejections = 0;
        let delay = self
            .policy
            .delay(self.count, self.backoffs, asked, fastrand::f64());
        // See https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
        self.backoffs = match asked {
            Some(ServerDelay::Exactly(_)) => 0,
            _ => self.backoffs.saturating_add(1),
        };
        delay.filter(|_| self.policy.allows_retry(status))
    }

    /// Returns the delay after an attempt that the server rejected because of its quota, or `None` if the policy
    /// disables retries. The attempt does not count towards the maximum, because the server is healthy.
    ///
    /// If a rate limiter reduces the rate, the first retry has the delay that the server requested. Otherwise, and if the
    /// same call is rejected again, the delay is at least the backoff.
    pub(crate) fn delay_after_rejection(
        &mut self,
        status: &Status,
        asked: Option<ServerDelay>,
        is_rate_limited: bool,
    ) -> Option<Duration> {
        let random = fastrand::f64();
        let delay = self.policy.delay(1, 0, asked, random);
        let delay = match asked {
            Some(ServerDelay::Exactly(_)) if self.rejections == 0 => delay,
            _ if is_rate_limited && self.rejections == 0 => delay,
            _ => {
                let backoffs = self.rejections.saturating_sub(u32::from(is_rate_limited));
                let backoff = self.policy.backoff.delay(backoffs, random);
                delay.map(|delay| delay.max(backoff))
            }
        };
        self.rejections = self.rejections.saturating_add(1);
        delay.filter(|_| self.policy.allows_retry(status))
    }

    /// Returns the number of consecutive attempts that the server rejected because of its quota.
    pub(crate) fn rejections(&self) -> u32 {
        self.rejections
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{
        deadline::Deadline,
        status::{local, mark},
    };

    impl AttemptObserver for () {
        fn attempt_ended<T>(&self, _: &Result<T, Status>) {}

        fn in_call<T>(&self, f: impl FnOnce() -> T) -> T {
            f()
        }
    }

    fn of_server(code: Code) -> Status {
        mark(Status::new(code, ""), Origin::Server, Delivery::Answered)
    }

    /// The first attempt of a call without a deadline.
    fn first() -> Attempt {
        Attempt::first(Instant::now(), None)
    }

    fn unavailable() -> Status {
        of_server(Code::Unavailable)
    }

    fn with_pushback(pushback: &'static str) -> Status {
        let mut status = unavailable();
        let pushback = pushback.parse().expect("ASCII");
        status
            .metadata_mut()
            .insert("grpc-retry-pushback-ms", pushback);
        status
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn each_delay_is_twice_the_one_before_up_to_the_maximum() {
        let policy = RetryPolicy::default().max_attempts(usize::MAX);
        let table = [
            (1, 0.5),
            (2, 1.0),
            (3, 2.0),
            (4, 4.0),
            (5, 8.0),
            (6, 10.0),
            (u32::MAX as usize, 10.0),
        ];
        for (attempts, expected) in table {
            for (random, jitter) in [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)] {
                let backoffs = u32::try_from(attempts - 1).expect("small");
                let delay = policy.delay(attempts, backoffs, None, random);
                let delay = delay.expect("attempts are left").as_secs_f64();
                assert!(
                    (delay - expected * jitter).abs() < 1e-6,
                    "{attempts}: {delay}"
                );
            }
        }
    }

    #[test]
    fn a_delay_of_the_server_replaces_the_backoff() {
        let policy = RetryPolicy::default();
        let delay = |asked, random| policy.delay(1, 0, Some(asked), random);
        let exactly = ServerDelay::Exactly(seconds(3.0));
        let at_least = ServerDelay::AtLeast(seconds(3.0));
        for random in [0.0, 1.0] {
            assert_eq!(delay(ServerDelay::NoRetry, random), None);
            assert_eq!(delay(exactly, random), Some(seconds(3.0)));
            let with_jitter = Some(seconds(3.0 + 0.6 * random));
            assert_eq!(delay(at_least, random), with_jitter);
        }
        let longest = ServerDelay::AtLeast(Duration::from_secs(1 << 32));
        assert!(delay(longest, 1.0) > delay(longest, 0.0));
    }

    #[tokio::test]
    async fn a_pushback_that_forbids_a_retry_takes_a_token_with_every_code() {
        let retry = Retry::new(RetryPolicy::default().throttle(2, 0.1));
        let attempt = first();
        let result = retry.run(
            &attempt,
            |_| {
                let mut denied = Status::permission_denied("no");
                *denied.metadata_mut() = with_pushback("-1").metadata().clone();
                std::future::ready(Err::<(), _>(denied))
            },
            &(),
        );
        assert_eq!(
            result.await.expect_err("it fails").code(),
            Code::PermissionDenied
        );
        // One of two tokens is left, so that nothing is retried.
        let attempts = AtomicUsize::new(0);
        let fail = |_| {
            attempts.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Err::<(), _>(unavailable()))
        };
        retry.run(&first(), fail, &()).await.expect_err("it fails");
        assert_eq!(attempts.into_inner(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pushback_resets_the_backoff() {
        let mut times = Vec::new();
        let attempt = |attempt: Attempt| {
            times.push(Instant::now());
            std::future::ready(Err::<(), _>(match attempt.previous {
                2 => with_pushback("7000"),
                _ => unavailable(),
            }))
        };
        let result = Retry::new(RetryPolicy::default())
            .run(&first(), attempt, &())
            .await;
        result.expect_err("it always fails");
        let delays: Vec<u128> = times
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_millis())
            .collect();
        // 20 % of jitter, but not for the pushback; and a timer of 1 ms.
        let expected = [400..=601, 800..=1_201, 7_000..=7_001, 400..=601];
        assert_eq!(delays.len(), expected.len());
        for (delay, expected) in delays.iter().zip(expected) {
            assert!(expected.contains(delay), "{delays:?}");
        }
    }

    #[test]
    fn only_the_policys_codes_are_retried_and_never_the_clients_own() {
        let policy = RetryPolicy::default();
        for code in (1..=16).map(Code::from_i32) {
            let retried = policy.retries(&of_server(code), None);
            assert_eq!(retried, code == Code::Unavailable, "{code:?}");
        }
        let own = local(Code::Unavailable, "no token");
        assert!(!policy.retries(&own, None));
        assert_eq!(policy.delay(5, 4, None, 0.5), None);
        assert_eq!(RetryPolicy::none().delay(1, 0, None, 0.5), None);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_end_with_the_policy_or_before_the_deadline() {
        let attempts = AtomicUsize::new(0);
        let fail = |attempt: Attempt| {
            let before = attempts.fetch_add(1, Ordering::Relaxed);
            assert_eq!(before, attempt.previous);
            std::future::ready(Err::<(), _>(unavailable()))
        };
        let retry = Retry::new(RetryPolicy::default());
        let begin = Instant::now();
        retry
            .run(&first(), fail, &())
            .await
            .expect_err("it always fails");
        assert_eq!(attempts.swap(0, Ordering::Relaxed), 5);
        let waited = begin.elapsed(); // 0.5, 1, 2, 4 seconds
        assert!((seconds(6.0)..seconds(9.1)).contains(&waited), "{waited:?}");

        let begin = Instant::now();
        let call = Attempt::first(begin, Deadline::after(seconds(2.5), begin));
        let status = retry.run(&call, fail, &()).await.expect_err("it fails");
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(attempts.swap(0, Ordering::Relaxed), 3);
        assert!(begin.elapsed() < seconds(2.5), "it does not wait in vain");
    }

    #[tokio::test(start_paused = true)]
    async fn in_an_outage_a_throttle_ends_retries() {
        let attempts = AtomicUsize::new(0);
        let fail = |_| {
            attempts.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Err::<(), _>(unavailable()))
        };
        let retry = Retry::new(RetryPolicy::default().throttle(100, 0.1));
        for _ in 0..1_000 {
            let _ = retry.clone().run(&first(), fail, &()).await;
        }
        let throttled = attempts.swap(0, Ordering::Relaxed);
        assert!((1_000..1_050).contains(&throttled), "{throttled}");

        let retry = Retry::new(RetryPolicy::default());
        for _ in 0..1_000 {
            let _ = retry.clone().run(&first(), fail, &()).await;
        }
        assert_eq!(attempts.into_inner(), 5_000);
    }
}

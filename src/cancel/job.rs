//! Cancellation of one of many operations, with a shared rate limiter and a shared deadline.

use std::{borrow::Cow, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Request, Status};

use super::report::Attempts;
use crate::{
    client::{GrpcStack, OperationsClient},
    poll::Target,
    proto::CancelOperationRequest,
    rate::{Permit, RateLimiter},
    retry::{Failures, RetryPolicy},
    status::{
        CallStatusExt as _, Delivery, ServerDelay, is_quota_rejection, is_transient, local, retry,
    },
    trace,
    transport::Counter,
};

/// The state shared by all cancellations of a stream.
#[derive(Clone, Debug)]
pub(super) struct Job<S> {
    /// A client without retries, because `Job` retries calls itself.
    pub(super) client: OperationsClient<S>,
    /// The retry policy for requests without their own [`RetryPolicy`].
    pub(super) policy: RetryPolicy,
    /// `None` if the rate limit is disabled.
    pub(super) limiter: Option<Arc<RateLimiter>>,
    pub(super) deadline: Option<Instant>,
    pub(super) totals: Arc<Totals>,
}

/// Counters over all names of a stream.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) attempts: Counter,
    pub(super) quota_rejections: Counter,
}

struct DeadlinePassed;

impl<S: GrpcStack + Sync> Job<S> {
    /// Cancels an operation. The delivery of the returned status covers all attempts.
    pub(super) async fn run(
        self: Arc<Self>,
        mut request: Request<CancelOperationRequest>,
        attempts: Attempts,
    ) -> Result<(), Status> {
        let policy = RetryPolicy::take_from(request.extensions_mut());
        let mut policy = policy.map_or(Cow::Borrowed(&self.policy), Cow::Owned);
        if self.deadline.is_some() {
            policy = Cow::Owned(policy.into_owned().with_unlimited_attempts());
        }
        let target = Target::new(request, |request| request.name);
        let mut failures = Failures::new(&policy);
        let mut last = None;
        loop {
            let Ok(permit) = self.permit().await else {
                return Err(last.unwrap_or_else(|| not_attempted(&target.name)));
            };
            if last.is_some() {
                self.client.count_retry();
            }
            let before = attempts.started();
            let result = target.cancel(&self.client, self.left()).await;
            attempts.ended();
            self.observe(permit, &result, failures.rejections());
            let status = match result {
                Ok(()) => return Ok(()),
                // The client rejected the request.
                Err(status) if status.attempts().is_none() => {
                    attempts.restore(before);
                    return Err(status);
                }
                Err(status) => status,
            };
            let has_reached_server = status.delivery() != Some(Delivery::NotSent);
            let may_have_succeeded = has_reached_server && !is_quota_rejection(&status);
            let status = failures.covering(status);
            let delay = self.delay(&policy, &mut failures, &status);
            let Some(delay) = delay else {
                return Err(status);
            };
            let made = attempts.failed(may_have_succeeded);
            trace::retrying(made, &status, delay);
            last = Some(status);
            sleep(delay).await;
        }
    }

    /// Waits until the rate limiter permits the next attempt, or until the deadline passes.
    async fn permit(&self) -> Result<Option<Permit>, DeadlinePassed> {
        if self.left() == Some(Duration::ZERO) {
            return Err(DeadlinePassed);
        }
        let Some(limiter) = &self.limiter else {
            return Ok(None);
        };
        let permit = match self.deadline {
            Some(deadline) => timeout_at(deadline, limiter.acquire()).await,
            None => Ok(limiter.acquire().await),
        };
        match permit {
            Ok(permit) if self.left() != Some(Duration::ZERO) => Ok(Some(permit)),
            _ => Err(DeadlinePassed),
        }
    }

    /// Counts an attempt, and reports its result to the rate limiter.
    fn observe(
        &self,
        permit: Option<Permit>,
        result: &Result<(), Status>,
        earlier_rejections: u32,
    ) {
        let failure = result.as_ref().err();
        if failure.is_some_and(|status| status.attempts().is_none()) {
            return; // no attempt was made
        }
        self.totals.attempts.increment();
        if failure.is_some_and(is_quota_rejection) {
            self.totals.quota_rejections.increment();
        }
        if let Some((limiter, permit)) = self.limiter.as_ref().zip(permit) {
            limiter.record(permit, result, earlier_rejections);
        }
    }

    /// Returns the delay before the next attempt, or `None` if the call is not retried.
    fn delay(
        &self,
        policy: &RetryPolicy,
        failures: &mut Failures<'_>,
        status: &Status,
    ) -> Option<Duration> {
        let asked = ServerDelay::of(status);
        let delay = if retry(status) == Some(false) {
            None // Response-Headers have arrived
        } else if is_quota_rejection(status) {
            failures.delay_after_rejection(status, asked, self.limiter.is_some())
        } else if is_transient(status) || policy.retries(status, asked) {
            failures.delay(status, asked)
        } else {
            None
        };
        let delay = delay.filter(|delay| self.left().is_none_or(|left| *delay < left));
        delay.map(|delay| delay.clamp(MIN_DELAY, MAX_DELAY))
    }

    fn left(&self) -> Option<Duration> {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        self.deadline.map(left)
    }
}

/// The minimum delay before a retry, even if the server requests none.
const MIN_DELAY: Duration = Duration::from_millis(1);

/// The maximum delay before a retry, even if the server requests a longer one.
const MAX_DELAY: Duration = Duration::from_secs(3600);

fn not_attempted(name: &str) -> Status {
    let message = format!(
        "operation {name:?} was not cancelled: the deadline passed before the first attempt: set a later deadline"
    );
    local(Code::DeadlineExceeded, message)
}

//! Cancelling many operations.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tokio::{
    task::{Id, JoinError, JoinSet},
    time::Instant,
};
use tonic::{IntoRequest, Status};

use super::{
    held::HeldReports,
    job::Job,
    report::{Attempts, CancelReport},
};
use crate::{
    client::{GrpcStack, OperationsClient},
    proto::CancelOperationRequest,
    rate::RateLimiter,
    task::{not_run, runtime},
    trace,
};

impl<S: GrpcStack + Sync> OperationsClient<S> {
    /// Cancels many operations, at a rate that adapts to the quota of the server.
    ///
    /// Takes a stream of names, and returns a stream that yields one [`CancelReport`] for each name, in the order of
    /// completion. As with [`cancel_operation`](Self::cancel_operation), success means that the server accepted the
    /// request. A failure does not affect the other names. No call is sent before the stream is polled. The memory use
    /// does not depend on the number of names.
    ///
    /// The items of the stream can be names, operations, or [`tonic::Request`]s. `tokio_stream::iter` converts an
    /// iterator to a stream, `tokio_stream::wrappers::ReceiverStream` a channel, and [`operations`](Self::operations)
    /// returns a stream of results, from which errors must be filtered first. A stream that is not `Unpin` must be
    /// pinned, for example with `Box::pin`.
    ///
    /// ```
    /// # #[cfg(not(feature = "emulator"))]
    /// # fn main() {}
    /// # #[cfg(feature = "emulator")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// # use longrunning::{OperationsClient, emulator::Emulator};
    /// # let emulator = Emulator::start().await?;
    /// # let client = OperationsClient::builder(emulator.endpoint()).connect().await?;
    /// let names = tokio_stream::iter((0..1_000).map(|n| format!("operations/{n}")));
    /// let mut reports = client.cancel_operations(names).max_in_flight(50);
    /// while let Some(report) = reports.next().await {
    ///     if let Err(status) = report.result {
    ///         eprintln!("{}: {status}", report.name);
    ///     }
    /// }
    /// # assert_eq!(emulator.calls().len(), 1_000);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Rate
    ///
    /// Each attempt is one call to the server. Calls are sent at a rate that starts at 1,900 calls per second, and
    /// doubles every 0.3 seconds until the server rejects a call with `RESOURCE_EXHAUSTED`. The rate is then reduced to
    /// about 0.7 times the rate at which that call was sent, at most once per round trip and per quarter of a second. A
    /// share of less than 2 % of rejected calls does not reduce the rate, and at most 3 consecutive rejections of a
    /// name count. It approaches the rejected rate again, stays just below it, and after 2 seconds probes for a higher
    /// rate, like the congestion window of CUBIC ([RFC 9438](https://www.rfc-editor.org/rfc/rfc9438#section-4.2)). A
    /// high latency does not reduce the rate, but slows its growth. The rate grows only while it is the limiting
    /// factor. It does not grow while the stream of names is pending or
    /// [`max_in_flight`](CancelOperations::max_in_flight) is reached. Each stream has its own rate,
    /// except that [`OperationSet::cancel_all`](crate::OperationSet::cancel_all) uses that of the set.
    ///
    /// The number of names in flight is limited separately. With the default of 100, a server with a latency of 50 ms
    /// receives at most 2,000 calls per second.
    ///
    /// # Retries
    ///
    /// Transient failures are retried with the backoff of the request's [`RetryPolicy`], or else the client's, or else
    /// the default policy. A delay that the server requests, of at most 1 hour, replaces the backoff. A name that waits
    /// for a retry counts as in flight.
    ///
    /// | Failure | Retries |
    /// |---|---|
    /// | `RESOURCE_EXHAUSTED` from the server, because its quota is exceeded | until the [deadline](CancelOperations::deadline); without a deadline, any number of times, so that a name that is always rejected stays in flight |
    /// | `UNAVAILABLE`; `DEADLINE_EXCEEDED`; `CANCELLED` or `RESOURCE_EXHAUSTED` that came from a connection or a proxy and not from the server; the [codes](crate::RetryPolicy::codes) of the policy; a status that is [marked as retryable](crate::CallStatusExt::into_retryable) | until the deadline; without a deadline, up to the [maximum number of attempts](crate::RetryPolicy::max_attempts) |
    /// | any other | none |
    ///
    /// With the default policy and without a deadline, the retries cover an outage of about 6 seconds. If the
    /// server may be unavailable for longer, set a deadline.
    ///
    /// As for any other call, there is no retry after Response-Headers, after a pushback that forbids it, with
    /// [`RetryPolicy::none`], or if [`idempotent`](crate::RetryPolicy::idempotent) forbids it. The call timeout of the
    /// request, or else of the client, or else 10 seconds, applies to each attempt and not to all attempts together.
    /// The policy's [throttle](crate::RetryPolicy::throttle) is not used: retries are already limited by the maximum
    /// number of names in flight. Each attempt is a call of its own in spans and metrics.
    ///
    /// # Back-pressure and dropping
    ///
    /// Each name is cancelled in its own task, so a slow consumer does not delay calls in flight. The task runs on the
    /// runtime that was current when the stream was polled. If that runtime is not driven any more, the other names
    /// wait for it, too. With the feature `tracing`, the task runs in the caller's span. Task-local values of the
    /// caller are not available in the task. A name counts as in flight until the consumer has received its report, so
    /// if the consumer stops polling, no new calls are started.
    ///
    /// [`stop`](CancelOperations::stop) ends the stream after the reports of the names in flight. Dropping the stream
    /// aborts the calls in flight, and their names have no report. The server may already have accepted some of them.
    ///
    /// If your stack panics, the panic is resumed in the task that polls the stream, and no report is yielded for that
    /// name. If the stream is polled again, it continues with the other names.
    ///
    /// [`RetryPolicy`]: crate::RetryPolicy
    /// [`RetryPolicy::none`]: crate::RetryPolicy::none
    pub fn cancel_operations<N>(&self, names: N) -> CancelOperations<S, N>
    where
        N: Stream<Item: IntoRequest<CancelOperationRequest>>,
    {
        let (client, policy) = self.clone().without_retries();
        CancelOperations {
            names: Some(names),
            max_in_flight: 100,
            job: Arc::new(Job {
                client,
                policy,
                limiter: Some(Arc::new(RateLimiter::new(f64::INFINITY))),
                deadline: None,
                totals: Arc::default(),
            }),
            tasks: JoinSet::new(),
            in_flight: HashMap::new(),
            outcome_timeout: None,
            held: None,
        }
    }
}

pin_project! {
    /// A stream of [`CancelReport`]s, returned by [`OperationsClient::cancel_operations`].
    ///
    /// Call the setters before the stream is polled for the first time.
    #[derive(Debug)]
    #[must_use = "nothing is cancelled before the stream is polled"]
    pub struct CancelOperations<S, N> {
        // `None` after the stream of names has ended.
        #[pin]
        names: Option<N>,
        max_in_flight: usize,
        job: Arc<Job<S>>,
        // The tasks whose reports have not been yielded yet.
        tasks: JoinSet<Result<(), Status>>,
        in_flight: HashMap<Id, (String, Attempts)>,
        // If outcomes are requested.
        outcome_timeout: Option<Duration>,
        // Created when the first report is held.
        held: Option<HeldReports<S>>,
    }
}

/// Statistics of a [`CancelOperations`] stream, returned by [`CancelOperations::stats`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct CancelStats {
    /// The number of names in flight. This includes names that wait for a retry or for the rate limit, and names whose
    /// reports have not been received yet.
    pub in_flight: usize,
    /// The number of reports that wait for the [outcome](CancelOperations::outcomes) of their operation.
    pub awaiting_outcome: usize,
    /// The number of attempts that have ended.
    pub attempts: u64,
    /// The number of attempts that the server rejected because its quota was exceeded.
    pub quota_rejections: u64,
    /// The current rate limit, in calls per second, or `None` if it is disabled.
    pub rate_limit: Option<f64>,
}

impl<S: Clone, N> CancelOperations<S, N> {
    /// Sets the maximum number of names in flight.
    ///
    /// To reach `r` calls per second, the maximum must be greater than `r` times the latency of the server in seconds.
    /// 0 is treated as 1.
    ///
    /// Defaults to 100, the number of streams that Google's front ends allow on a connection.
    pub fn max_in_flight(mut self, names: usize) -> Self {
        self.max_in_flight = names.max(1);
        self
    }

    /// Sets the maximum rate, in calls per second.
    ///
    /// Use it if you know the quota, or to leave a part of it to other clients. Less than 1 is treated as 1.
    ///
    /// Defaults to no maximum.
    pub fn max_rate(self, calls_per_second: f64) -> Self {
        let limiter = RateLimiter::new(calls_per_second);
        self.limiter(Some(Arc::new(limiter)))
    }

    /// Disables the rate limit.
    ///
    /// Only [`max_in_flight`](Self::max_in_flight) then limits the calls. Use it for servers without a quota. A server
    /// with a quota may reject most calls, which are then retried with exponential backoff.
    ///
    /// Defaults to a rate that adapts to the quota of the server.
    pub fn fixed(self) -> Self {
        self.limiter(None)
    }

    /// Waits for the outcome of each operation before its report is yielded.
    ///
    /// Once the server has accepted the cancel call, the operation is watched until it is done, and its outcome is in
    /// [`CancelReport::outcome`]. All operations are watched by one [`OperationSet`](crate::OperationSet), which shares
    /// the rate limit of this stream; with [`fixed`](Self::fixed), the polls have a separate, adaptive rate limit. The
    /// timeout of an operation starts when the stream receives the response to its cancel call. If the operation is not
    /// known to be done when the timeout or the [deadline](Self::deadline) passes, the outcome is
    /// [`Unknown`](crate::CancelOutcome::Unknown) with the status `DEADLINE_EXCEEDED`.
    ///
    /// An operation is polled at least once in an eighth of the timeout or 20 seconds, whichever is less, so the
    /// outcome of an operation that ends shortly before the timeout can be unknown.
    ///
    /// The polls do not have the metadata and extensions of the requests. If the stream of names contains a name more
    /// than once, the timeout starts with the first response.
    ///
    /// Reports that wait for an outcome do not count as in flight, but at most 100,000 reports wait at the same time.
    ///
    /// Defaults to no outcomes: a report is yielded when its cancel call has succeeded or failed.
    pub fn outcomes(mut self, timeout: Duration) -> Self {
        self.outcome_timeout = Some(timeout.min(MAX_TIMEOUT));
        self
    }

    pub(super) fn limiter(mut self, limiter: Option<Arc<RateLimiter>>) -> Self {
        Arc::make_mut(&mut self.job).limiter = limiter;
        self
    }

    /// Sets the deadline for all names together.
    ///
    /// Until the deadline, transient failures are retried without a maximum number of attempts. If the backoff of a
    /// name would end after the deadline, the name fails immediately with the status of its last attempt. A name that
    /// waits for the rate limit when the deadline passes also fails with that status. When the deadline passes, calls
    /// in flight end with `DEADLINE_EXCEEDED`.
    ///
    /// The deadline does not end the stream. Names that have not been attempted by then are reported as
    /// `DEADLINE_EXCEEDED`, until the stream of names ends, so that each name has a report. To leave the remaining
    /// names in a channel, call [`stop`](Self::stop) instead.
    ///
    /// Defaults to no deadline.
    pub fn deadline(mut self, deadline: Instant) -> Self {
        Arc::make_mut(&mut self.job).deadline = Some(deadline);
        self
    }

    /// Returns the current statistics of the stream.
    pub fn stats(&self) -> CancelStats {
        let job = &self.job;
        CancelStats {
            in_flight: self.tasks.len(),
            awaiting_outcome: self.held.as_ref().map_or(0, HeldReports::len),
            attempts: job.totals.attempts.get(),
            quota_rejections: job.totals.quota_rejections.get(),
            rate_limit: job.limiter.as_ref().map(|limiter| limiter.rate()),
        }
    }
}

impl<S: GrpcStack + Sync, N> CancelOperations<S, N>
where
    N: Stream<Item: IntoRequest<CancelOperationRequest>> + Unpin,
{
    /// Returns the next report, or `None` after the last one.
    ///
    /// This is the same as `StreamExt::next`, without the need for another crate. This method is cancel safe.
    pub async fn next(&mut self) -> Option<CancelReport> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Stops reading names, and returns the stream of the remaining names.
    ///
    /// This stream then ends after the reports of the names in flight. Returns `None` if the stream of names has ended.
    ///
    /// ```
    /// # #[cfg(not(feature = "emulator"))]
    /// # fn main() {}
    /// # #[cfg(feature = "emulator")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// # use longrunning::{OperationsClient, emulator::Emulator};
    /// # let emulator = Emulator::start().await?;
    /// # let client = OperationsClient::builder(emulator.endpoint()).connect().await?;
    /// # let names = tokio_stream::iter((0..1_000_000).map(|n| format!("operations/{n}")));
    /// use std::time::Duration;
    ///
    /// let mut reports = client.cancel_operations(names);
    /// # let write_to_journal = |report: longrunning::CancelReport| drop(report);
    /// let all = async {
    ///     while let Some(report) = reports.next().await {
    ///         write_to_journal(report);
    ///     }
    /// };
    /// if tokio::time::timeout(Duration::from_millis(10), all).await.is_err() {
    ///     let _remaining = reports.stop();
    ///     while let Some(report) = reports.next().await {
    ///         write_to_journal(report);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn stop(&mut self) -> Option<N> {
        self.names.take()
    }
}

impl<S: GrpcStack + Sync, N> Stream for CancelOperations<S, N>
where
    N: Stream<Item: IntoRequest<CancelOperationRequest>>,
{
    type Item = CancelReport;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        loop {
            let held = match this.held {
                Some(held) => held.poll_next(cx),
                None => Poll::Ready(None),
            };
            if let Poll::Ready(Some(report)) = held {
                return Poll::Ready(Some(report));
            }
            let awaiting = this.held.as_ref().map_or(0, HeldReports::len);
            while this.tasks.len() < *this.max_in_flight
                && this.tasks.len() + awaiting < MAX_AWAITING_OUTCOME
                && let Some(names) = this.names.as_mut().as_pin_mut()
                && let Poll::Ready(name) = names.poll_next(cx)
            {
                let Some(request) = name.map(IntoRequest::into_request) else {
                    this.names.set(None);
                    break;
                };
                let name = request.get_ref().name.clone();
                let attempts = Attempts::default();
                let runtime = match runtime("a call") {
                    Ok(runtime) => runtime,
                    Err(status) => return Poll::Ready(Some(attempts.report(name, Err(status)))),
                };
                let task = Arc::clone(this.job).run(request, attempts.clone());
                let task = this.tasks.spawn_on(trace::in_current_span(task), &runtime);
                this.in_flight.insert(task.id(), (name, attempts));
            }
            let ended = match this.tasks.poll_join_next_with_id(cx) {
                Poll::Ready(Some(ended)) => ended,
                Poll::Ready(None) if this.names.is_none() && held.is_ready() => {
                    return Poll::Ready(None);
                }
                // The stream of names has registered the waker, or the held reports have.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            };
            let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
            // Remove the entry first: `not_run` resumes the panic of a task.
            let (name, attempts) = this.in_flight.remove(&id).unwrap_or_default();
            let result = ended.map_or_else(|error| Err(not_run(error)), |(_, result)| result);
            let report = attempts.report(name, result);
            match *this.outcome_timeout {
                Some(timeout) if report.result.is_ok() => {
                    let job = &*this.job;
                    let held = this.held.get_or_insert_with(|| {
                        let set = job.client.operation_set();
                        let delay = timeout / 8;
                        let set = set
                            .initial_delay(delay.min(INITIAL_OUTCOME_DELAY))
                            .max_delivery_delay(delay.min(MAX_OUTCOME_DELAY));
                        let set = match &job.limiter {
                            Some(limiter) => set.with_limiter(Arc::clone(limiter)),
                            None => set,
                        };
                        HeldReports::new(set, timeout, job.deadline)
                    });
                    held.hold(report);
                }
                _ => return Poll::Ready(Some(report)),
            }
        }
    }
}

/// The maximum number of reports that wait for an outcome, so that the memory use does not depend on the number of
/// names.
const MAX_AWAITING_OUTCOME: usize = 100_000;

/// The maximum delay before the first poll of an operation whose outcome is awaited.
const INITIAL_OUTCOME_DELAY: Duration = Duration::from_secs(1);

/// The maximum delay between two polls of an operation whose outcome is awaited.
const MAX_OUTCOME_DELAY: Duration = Duration::from_secs(20);

/// A timeout that never passes, but can be added to an `Instant`.
const MAX_TIMEOUT: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

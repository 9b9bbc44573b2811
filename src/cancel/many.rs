//! Cancelling many operations.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tokio::{
    task::{Id, JoinError, JoinSet},
    time::Instant,
};
use tonic::{IntoRequest, Status};

use super::{
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
    /// Each attempt is one call to the server. Calls are sent at a rate that starts at 1,900 calls per second, and doubles
    /// every 0.3 seconds until the server rejects a call with `RESOURCE_EXHAUSTED`. The rate is then reduced to about 0.7
    /// times the rate at which that call was sent, at most once per round trip and per quarter of a second. A share of less
    /// than 2 % of rejected calls does not reduce the rate, and at most 3 consecutive rejections of a name count. It approaches the rejected rate again,
    /// stays just below it, and after 2 seconds probes for a higher rate, like the congestion window of CUBIC
    /// ([RFC 9438](https://www.rfc-editor.org/rfc/rfc9438#section-4.2)). A high latency does not reduce the rate, but
    /// slows its growth. The rate grows only while it is the limiting factor. It does not grow while the stream of names is
    /// pending or [`max_in_flight`](CancelOperations::max_in_flight) is reached. Each stream has its own rate.
    ///
    /// The number of names in flight is limited separately. With the default of 100, a server with a latency of 50 ms
    /// receives at most 2,000 calls per second.
    ///
    /// # Retries
    ///
    /// Transient failures are retried with the backoff of the request's [`RetryPolicy`], or else the client's, or else the
    /// default policy. A delay that the server requests, of at most 1 hour, replaces the backoff. A name that waits for a retry counts as in
    /// flight.
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
    /// [`RetryPolicy::none`], or if [`idempotent`](crate::RetryPolicy::idempotent) forbids it. The call timeout of the request, or else of the client, or else 10 seconds, applies to
    /// each attempt and not to all attempts together. The policy's [throttle](crate::RetryPolicy::throttle) is not
    /// used: retries are already limited by the maximum number of names in flight. Each attempt is a call of its own in
    /// spans and metrics.
    ///
    /// # Back-pressure and dropping
    ///
    /// Each name is cancelled in its own task, so a slow consumer does not delay calls in flight. The task runs on the
    /// runtime that was current when the stream was polled. If that runtime is not driven any more, the other names wait
    /// for it, too. With the feature `tracing`, the task runs in the caller's
    /// span. Task-local values of the caller are not available in the task. A name counts as in flight until the
    /// consumer has received its report, so if the consumer stops polling, no new calls are started.
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
    }
}

/// Statistics of a [`CancelOperations`] stream, returned by [`CancelOperations::stats`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct CancelStats {
    /// The number of names in flight. This includes names that wait for a retry or for the rate limit, and names whose
    /// reports have not been received yet.
    pub in_flight: usize,
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
    /// To reach `r` calls per second, the maximum must be greater than `r` times the latency of the server in seconds. 0
    /// is treated as 1.
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
    pub fn max_rate(mut self, calls_per_second: f64) -> Self {
        let limiter = RateLimiter::new(calls_per_second);
        Arc::make_mut(&mut self.job).limiter = Some(Arc::new(limiter));
        self
    }

    /// Disables the rate limit.
    ///
    /// Only [`max_in_flight`](Self::max_in_flight) then limits the calls. Use it for servers without a quota. A server
    /// with a quota may reject most calls, which are then retried with exponential backoff.
    ///
    /// Defaults to a rate that adapts to the quota of the server.
    pub fn fixed(mut self) -> Self {
        Arc::make_mut(&mut self.job).limiter = None;
        self
    }

    /// Sets the deadline for all names together.
    ///
    /// Until the deadline, transient failures are retried without a maximum number of attempts. If the backoff of a
    /// name would end after the deadline, the name fails immediately with the status of its last attempt. A name that waits
    /// for the rate limit when the deadline passes also fails with that status. When the deadline passes,
    /// calls in flight end with `DEADLINE_EXCEEDED`.
    ///
    /// The deadline does not end the stream. Names that have not been attempted by then are reported as
    /// `DEADLINE_EXCEEDED`, until the stream of names ends, so that each name has a report. To leave the remaining names
    /// in a channel, call [`stop`](Self::stop) instead.
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
        while this.tasks.len() < *this.max_in_flight
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
        let Some(ended) = ready!(this.tasks.poll_join_next_with_id(cx)) else {
            return if this.names.is_none() {
                Poll::Ready(None)
            } else {
                Poll::Pending // the stream of names has registered the waker
            };
        };
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        // Remove the entry first: `not_run` resumes the panic of a task.
        let (name, attempts) = this.in_flight.remove(&id).unwrap_or_default();
        let result = ended.map_or_else(|error| Err(not_run(error)), |(_, result)| result);
        Poll::Ready(Some(attempts.report(name, result)))
    }
}

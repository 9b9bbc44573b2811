//! Watching one operation until it is done.

mod call;
mod cancel_on_drop;
mod classify;
mod observed;
mod policy;
mod run;

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tokio::time::Instant;
use tonic::{IntoRequest, Status};

pub(crate) use self::{
    call::Target,
    classify::{cannot_wait, has_untyped_response, is_specific_to_wait},
};
pub use self::{cancel_on_drop::CancelOnDrop, policy::PollPolicy};
use self::{observed::ObservedWait, run::Polled};
use crate::{
    client::{GrpcStack, OperationsClient},
    operation::Operation,
    proto::{GetOperationRequest, KnownState},
    status::Delivery,
    task::Task,
    transport::Transport,
};

/// Polls an operation until it is done.
///
/// [`until_done`](Self::until_done) returns the done operation; [`next`](Self::next) and the [`Stream`] implementation
/// yield each state.
///
/// It owns a clone of its client, so it can be moved to a task. It has no state that must be saved: after a restart of
/// your program, create a poller from the name of the operation, or from a stored [`Operation`].
///
/// # Polls
///
/// The poller calls `WaitOperation`, which responds when the operation is done, or after the
/// [timeout](PollPolicy::wait_timeout) of the policy. Each poll starts one [delay](PollPolicy) after the start of the
/// previous poll, or, if the previous poll takes longer, when it ends. So a server that responds to `WaitOperation`
/// immediately gets no more calls than one that does not implement it.
///
/// `GetOperation` is used instead:
///
/// - for 10 minutes after the server returned `UNIMPLEMENTED` to the client or one of its clones. An HTTP 404 that did
///   not come from a gRPC server is ignored, although gRPC also maps it to `UNIMPLEMENTED`.
/// - if the client and its clones have as many `WaitOperation` calls in flight as their
///   [limit](OperationsClient::max_concurrent_waits) allows. Such a call occupies a stream of a connection, and servers
///   allow few streams.
/// - after a failed `WaitOperation`, because the failure may be specific to that method.
/// - if [`wait_timeout`](PollPolicy::wait_timeout) is zero, or if the remaining total timeout is at most the initial
///   delay or 1 second, whichever is less.
/// - to confirm a done operation whose response has no type URL. Some servers return this from `WaitOperation` while
///   the operation is still running.
/// - for the first state of [`next`](Self::next) or the stream, which is returned immediately unless another poll is in
///   progress. For later states, `WaitOperation` makes the server wait no longer than the delay between two polls, so
///   that progress is visible.
///
/// The deadline of a `WaitOperation` is up to 10 seconds after the server is due to respond. A `GetOperation` uses the
/// timeout of the request, or else of the client, or else 10 seconds. Neither deadline is later than the end of the
/// [total timeout](PollPolicy::total_timeout).
///
/// # Failures
///
/// A poll that fails does not mean that the operation has failed. By default, polling continues after the following
/// failures. [`transient_codes`](PollPolicy::transient_codes) replaces the first three items, and
/// [`max_failures`](PollPolicy::max_failures) limits the number of consecutive failures:
///
/// - `UNAVAILABLE` and `DEADLINE_EXCEEDED`, whether or not the server sent them.
/// - `RESOURCE_EXHAUSTED`, unless its [origin](crate::CallStatusExt::origin) is the client, for example because a
///   response is too large, a layer limits the load, or a generated server runs in the same process.
/// - `CANCELLED`, if a proxy or the peer has reset the call.
/// - Any status that a layer of the stack has [marked as
///   retryable](crate::CallStatusExt::into_retryable).
/// - Any failure of `WaitOperation` except for `NOT_FOUND` and failures of the client itself. A `GetOperation` follows.
///
/// The next poll starts one delay after the end of the failed one. If the failure may be specific to `WaitOperation`,
/// `GetOperation` follows after a random part of the initial delay. After any failed `WaitOperation`, it follows before
/// the total timeout. If the server requests a longer delay, in `grpc-retry-pushback-ms` or
/// [`RetryInfo`](crate::proto::rpc::RetryInfo), that delay is used instead. It is limited to 1 hour; up to 20 % of
/// jitter is then added to a `RetryInfo`. Any other failure ends polling with its status unchanged. Without a total
/// timeout and without `max_failures`, the poller retries an unreachable server indefinitely.
///
/// # Dropping
///
/// A poll in progress is owned by the poller, not by the future that waits for it. If a timeout or `select!` drops that
/// future, the poller resumes the same poll when it is polled again. While the poller is not polled, at most one more
/// call is made. Dropping the poller aborts the call in flight. It does not cancel the operation; use
/// [`cancel_on_drop`](Self::cancel_on_drop) for that.
///
/// # Tasks and runtimes
///
/// Each poll runs in its own task, on the runtime that was current when the poll started. While that runtime runs, the
/// poll ends by its deadline even if the poller is no longer polled. If that runtime is shut down, the poll is repeated
/// on the runtime that polls the poller next. With the feature `tracing`, the calls run in the span of the wait, which
/// is a child of the caller's span. Task-local values of the caller are not available in the task.
///
/// If your stack panics, the panic is resumed in the task that polls the poller. If the poller is polled afterwards, it
/// starts a new poll.
///
/// # Example
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
/// # emulator.set_metadata("operations/1", &prost_types::Duration::default())?;
/// # emulator.complete_without_result("operations/1")?;
/// # let client = OperationsClient::builder(emulator.endpoint()).connect().await?;
/// let mut states = client.poller("operations/1");
/// while let Some(state) = states.next().await {
///     // The type depends on the service.
///     let spent: Option<prost_types::Duration> = state?.metadata_as()?;
///     println!("spent: {spent:?}");
/// }
/// # Ok(())
/// # }
/// ```
pub struct Poller<S = Transport> {
    client: OperationsClient<S>,
    target: Target,
    policy: PollPolicy,
    /// The start of the total timeout. `None` until the next poll starts it.
    begun: Option<Instant>,
    /// The task of the current poll, including the delay before it. It returns `None` if the total timeout passes
    /// before the poll is due.
    poll: Option<Task<Option<Polled>>>,
    /// When the next poll is due. `None` before the first one.
    due: Option<Instant>,
    /// The number of completed polls. A WaitOperation that is unimplemented or needs confirmation does not count.
    polls: u32,
    /// The number of polls that have failed since the last success.
    failures: usize,
    /// Whether any poll has returned a state.
    has_state: bool,
    /// The combined delivery of all polls.
    delivery: Delivery,
    /// Whether the next poll uses GetOperation, because the last WaitOperation failed or needs confirmation.
    get_next: bool,
    latest: Option<Operation>,
    /// The status of the last poll, if it failed.
    failure: Option<Status>,
    /// Whether the stream has ended.
    has_ended: bool,
    /// `None` before the first poll, and once the wait has ended.
    observed: Option<ObservedWait>,
}

impl<S: GrpcStack + Sync> OperationsClient<S> {
    /// Returns a [`Poller`] for an operation, with the default [`PollPolicy`].
    ///
    /// No call is sent before the poller is polled. If the request is an [`Operation`], the poller also keeps its state
    /// as [`latest`](Poller::latest). A done operation is returned without a call, even if its name is empty, as in the
    /// response to a request with `validate_only` ([AIP-151](https://google.aip.dev/151),
    /// [AIP-163](https://google.aip.dev/163)). Only a response without a type URL is confirmed with a call, see
    /// [Polls](Poller#polls).
    ///
    /// The metadata and extensions of a [`tonic::Request`] are added to every call. Its timeout applies to each
    /// `GetOperation`.
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
    /// # emulator.complete_without_result("operations/1")?;
    /// # let client = OperationsClient::builder(emulator.endpoint()).connect().await?;
    /// let operation = client.poller("operations/1").until_done().await?;
    /// assert!(operation.done);
    ///
    /// let mut poller = client.poller("operations/1");
    /// let task = tokio::spawn(async move { poller.until_done().await });
    /// # assert!(task.await.expect("no panic")?.done);
    /// # Ok(())
    /// # }
    /// ```
    pub fn poller(&self, request: impl IntoRequest<GetOperationRequest>) -> Poller<S> {
        let mut request = request.into_request();
        let state = KnownState::take(request.extensions_mut());
        let name = &request.get_ref().name;
        let is_trusted = |state: &Operation| name.is_empty() || !has_untyped_response(state);
        let state = state.filter(|state| state.name == *name && is_trusted(state));
        let target = Target::new(request, |request| request.name);
        Poller {
            latest: state,
            ..Poller::new(self.clone(), target)
        }
    }
}

impl<S: GrpcStack + Sync> Poller<S> {
    pub(crate) fn new(client: OperationsClient<S>, target: Target) -> Self {
        Self {
            client,
            target,
            policy: PollPolicy::default(),
            begun: None,
            poll: None,
            due: None,
            polls: 0,
            failures: 0,
            has_state: false,
            delivery: Delivery::NotSent,
            get_next: false,
            latest: None,
            failure: None,
            has_ended: false,
            observed: None,
        }
    }

    /// Sets when the total timeout begins. Defaults to the first poll.
    pub(crate) fn begun(self, begun: Instant) -> Self {
        Self {
            begun: Some(begun),
            ..self
        }
    }

    /// Sets the policy.
    ///
    /// A poll in progress is replaced by one under this policy, which starts immediately unless the last poll failed.
    /// The total timeout begins again.
    ///
    /// Defaults to [`PollPolicy::default`].
    #[must_use]
    pub fn policy(self, policy: PollPolicy) -> Self {
        Self {
            policy,
            begun: None,
            poll: None,
            // A delay after a failure is kept.
            due: self.due.filter(|_| self.failure.is_some()),
            failures: 0,
            delivery: match self.poll {
                Some(_) => self.delivery.max(Delivery::MaybeSent),
                None => self.delivery,
            },
            ..self
        }
    }

    /// Returns the name of the operation.
    pub fn name(&self) -> &str {
        &self.target.name
    }

    /// Returns the latest known state of the operation, if there is one.
    pub fn latest(&self) -> Option<&Operation> {
        self.latest.as_ref()
    }

    /// Asks the server to cancel the operation, as [`OperationsClient::cancel_operation`] does.
    ///
    /// The call has the same metadata and timeout as a `GetOperation` of this poller. Polling continues, and
    /// [`until_done`](Self::until_done) returns how the operation ended.
    ///
    /// # Errors
    ///
    /// As [`OperationsClient::cancel_operation`].
    pub async fn cancel(&self) -> Result<(), Status> {
        self.target.cancel(&self.client, None).await
    }

    /// Polls until the operation is done, and returns it.
    ///
    /// [`Operation::outcome`] returns its outcome.
    ///
    /// This method is cancel safe, see [Dropping](Self#dropping). Once the operation is done, another call returns it
    /// again. After an error, another call resumes polling. Once the total timeout has passed, it returns
    /// `DEADLINE_EXCEEDED` without sending a call; set a new [`policy`](Self::policy) to continue.
    ///
    /// # Errors
    ///
    /// - `DEADLINE_EXCEEDED`: the [total timeout](PollPolicy::total_timeout) has passed. [`latest`](Self::latest)
    ///   returns the last known state. The operation continues.
    /// - `FAILED_PRECONDITION`: there is no tokio runtime.
    /// - `UNAVAILABLE`: the current runtime is shutting down, so that the poll cannot run.
    /// - `INTERNAL`: the server returned a different operation, whose name has another last segment.
    /// - The status of a poll after which [polling does not continue](Self#failures), among them `NOT_FOUND`: the
    ///   server has no such operation, or has deleted it.
    pub async fn until_done(&mut self) -> Result<Operation, Status> {
        loop {
            let state = poll_fn(|cx| self.poll_state(cx, false)).await?;
            if state.done {
                return Ok(state);
            }
        }
    }

    /// Returns the next state, or `None` after the last one or after an error.
    ///
    /// This is the same as `StreamExt::next`, without the need for another crate. This method is cancel safe.
    pub async fn next(&mut self) -> Option<Result<Operation, Status>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

/// Yields the state of the operation after each successful poll.
///
/// A state is yielded even if it has not changed. The last item is the done state, or the error that ends polling, see
/// [`until_done`](Poller::until_done).
///
/// Progress is in the metadata of each state, see [`Operation::metadata_as`].
impl<S: GrpcStack + Sync> Stream for Poller<S> {
    type Item = Result<Operation, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let state = ready!(self.poll_state(cx, true));
        self.has_ended = state.as_ref().map_or(true, |state| state.done);
        Poll::Ready(Some(state))
    }
}

// Nothing in it is pinned: the poll is a task.
impl<S> Unpin for Poller<S> {}

impl<S> fmt::Debug for Poller<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller")
            .field("name", &self.target.name)
            .field("policy", &self.policy)
            .field("latest", &self.latest)
            .finish_non_exhaustive()
    }
}

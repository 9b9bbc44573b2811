//! Watching one operation until it is done.

mod failure;
mod look;
mod observed;
mod policy;
mod states;
mod step;

use std::{fmt, future::poll_fn, pin::Pin, time::Duration};

use futures_core::Stream as _;
use tokio::time::Instant;
use tonic::{IntoRequest, Status};

pub(crate) use self::look::Target;
pub use self::policy::PollPolicy;
use self::{look::Seen, observed::ObservedWait};
use crate::{
    client::{GrpcStack, OperationsClient},
    operation::Operation,
    proto::GetOperationRequest,
    task::Task,
    transport::Transport,
};

/// Watches one operation: until it is done with [`until_done`](Self::until_done), or state by
/// state as a [`Stream`](futures_core::Stream).
///
/// It owns a clone of its client, so that it can be spawned. It holds nothing that the server or
/// another process would miss: after a restart, a poller made of the operation's name goes on.
///
/// # How it looks
///
/// The poller calls `WaitOperation`, which responds as soon as the operation is done, for one
/// [period](PollPolicy::wait_timeout) after another. If a server answers `UNIMPLEMENTED`, the client and
/// its clones poll with `GetOperation` for the next 10 minutes: the first poll is immediate, and the
/// growing [delays](PollPolicy) separate the others. An HTTP 404 from something that is not a gRPC server
/// is not treated like this, although gRPC also maps it to `UNIMPLEMENTED`.
///
/// A Wait that comes back early, the operation not done, is followed by the rest of the delay that
/// would have followed a Get. So a server that does not really wait sees no more calls than one
/// that cannot.
///
/// A `WaitOperation` call occupies a stream of a connection, and servers allow few streams. A client and its
/// clones therefore have a [limit](OperationsClient::max_concurrent_waits) on such calls in flight, and
/// further pollers use `GetOperation` meanwhile.
///
/// If `WaitOperation` returns a done operation whose response has no type URL, the poller confirms it
/// with one `GetOperation` at once: some servers return this while the operation is still running. An
/// error of that `GetOperation` is handled like any other.
///
/// Every look has a deadline: a Wait its slice and 10 s for the answer, a Get what its request or
/// the client has for a timeout, else 10 s; and none has more than is left of the [total
/// timeout](PollPolicy::total_timeout). A Wait leaves some of that for a Get.
///
/// # Failures
///
/// A poll that fails says nothing about the operation. Polling continues after these failures, with the
/// same growing delays:
///
/// - `UNAVAILABLE` and `DEADLINE_EXCEEDED`, whether or not it is the server's word.
/// - `RESOURCE_EXHAUSTED`, unless it was decided here: for an answer that is too large, by a layer
///   that sheds load, or by a server in this very process. The server's quota will have room again,
///   and the operation goes on in the meantime.
/// - `CANCELLED` without the server's word: a proxy or peer has reset the call.
/// - Any status that a layer of the stack has [marked as
///   retryable](crate::CallStatusExt::into_retryable).
///
/// It may be Wait alone that fails: a service may let one look and not wait, a proxy cut off calls
/// that hang. So a Wait that failed in any way is followed by a Get, except for `NOT_FOUND`, and
/// for what was decided here and will not pass, such as a name that cannot be meant. The Get comes
/// after a part of the initial delay, chosen at random for those whose Waits were cut off at the
/// same time, or after the rest of the growing delay where the failure is one of those above; but
/// before a quarter is over of what is left of the total timeout.
///
/// A longer pause that the server asks for by [`RetryInfo`](crate::proto::rpc::RetryInfo) is kept,
/// up to an hour, and made longer by up to 20 % at random. Any other failure ends the poll with its
/// status unchanged. Without a total timeout a server that cannot be reached is asked for ever.
///
/// # Dropping
///
/// A call in flight belongs to the poller, not to the future or stream item that waits for it.
/// Dropped by a timeout or `select!`, these lose nothing: the poller goes on from where it was,
/// with the same call or the rest of the same pause. While nobody polls the poller, no call begins.
/// Dropping the poller ends its call. It never stops the operation.
///
/// # Tasks and runtimes
///
/// A call runs as a task of the runtime that the poller was polled in when it began, and so does a
/// pause: while that runtime runs, the call ends by its deadline though nobody polls the poller,
/// and while it stands still, so does the poller. Once it has ended, the poller looks again in the
/// runtime that polls. With the feature `tracing`, the task runs in the caller's span. The caller's
/// task-locals are not available in it.
///
/// A panic of one's own stack goes on in who polls. Polled again, the poller looks again.
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
///     // Whatever type the service's progress has.
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
    /// When the first look began.
    begun: Option<Instant>,
    /// A look, or the pause before it, which brings nothing.
    step: Option<Task<Option<Seen>>>,
    /// How many looks have ended.
    looks: u32,
    /// The next look comes so long after an instant.
    due: Option<(Instant, Duration)>,
    /// Whether the next poll uses GetOperation, because the last WaitOperation failed or needs
    /// confirmation.
    get_next: bool,
    latest: Option<Operation>,
    /// Why the last look, if it failed, did.
    failure: Option<Status>,
    /// Whether the stream has come to its end.
    ended: bool,
    /// `None` before the first poll, and once the wait has ended.
    observed: Option<ObservedWait>,
}

impl<S: GrpcStack + Sync> OperationsClient<S> {
    /// Returns a poller of an operation, with the default [`PollPolicy`]. It does nothing before
    /// it is polled.
    ///
    /// The metadata of a whole [`tonic::Request`] go along with every look. Its timeout counts for
    /// each Get.
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
        let request = request.into_request();
        Poller::new(self.clone(), Target::new(request, |request| request.name))
    }
}

impl<S: GrpcStack + Sync> Poller<S> {
    pub(crate) fn new(client: OperationsClient<S>, target: Target) -> Self {
        Self {
            client: client.for_polls(),
            target,
            policy: PollPolicy::default(),
            begun: None,
            step: None,
            looks: 0,
            due: None,
            get_next: false,
            latest: None,
            failure: None,
            ended: false,
            observed: None,
        }
    }

    /// Sets since when the total timeout runs. Default is the first look.
    pub(crate) fn begun(self, begun: Instant) -> Self {
        Self {
            begun: Some(begun),
            ..self
        }
    }

    /// Sets how often to look, and how long. Default is [`PollPolicy::default`].
    ///
    /// A look that is under way is given up for one by this policy, and its total timeout runs from
    /// that one on.
    #[must_use]
    pub fn policy(self, policy: PollPolicy) -> Self {
        Self {
            policy,
            begun: None,
            step: None,
            ..self
        }
    }

    /// Returns the name of the operation.
    pub fn name(&self) -> &str {
        &self.target.name
    }

    /// Returns the latest state seen, if any was.
    pub fn latest(&self) -> Option<&Operation> {
        self.latest.as_ref()
    }

    /// Returns the operation once it is done, however it ended: [`Operation::outcome`] tells.
    ///
    /// The future is safe to drop at any time: see [Dropping](Self#dropping). Once the operation
    /// is done, another call returns it again; after an error of a look, another call looks again.
    /// Once the total timeout is over it looks no more: with another [`policy`](Self::policy), or
    /// made anew of the [name](Self::name), it goes on.
    ///
    /// # Errors
    ///
    /// - `DEADLINE_EXCEEDED`: the [total timeout](PollPolicy::total_timeout) is over. What was seen
    ///   last is in [`latest`](Self::latest), and the operation goes on.
    /// - `FAILED_PRECONDITION`: outside a tokio runtime, or in one without timers.
    /// - `UNAVAILABLE`: the runtime ended in the meantime.
    /// - `INTERNAL`: the server returned a different operation, whose name has another last segment.
    /// - Those of a poll, if [polling does not continue after them](Self#failures), among them
    ///   `NOT_FOUND`: the server knows no such operation, or has forgotten it.
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

// Nothing in it is pinned in place: the step is a task.
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

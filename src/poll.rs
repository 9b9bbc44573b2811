//! Watching one operation until it is done.

mod failure;
mod look;
mod policy;
mod states;

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;
use tonic::{IntoRequest, Status};

pub(crate) use self::look::Target;
pub use self::policy::PollPolicy;
use self::{
    failure::{cannot_wait, is_transient, time_is_up, was_cut_off},
    look::{Look, Seen},
};
use crate::{
    client::{OperationsClient, Stack},
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
/// With `WaitOperation`, whose answer comes as soon as the operation is done, asked for one
/// [slice of time](PollPolicy::wait) after the other. A server that cannot wait says
/// `UNIMPLEMENTED`; the client and its clones remember it, and look with `GetOperation` and the
/// growing [delays](PollPolicy) between. A 404 of something that is no gRPC server does not count
/// as that word, though gRPC reads it as `UNIMPLEMENTED` too: it ends the poll.
///
/// A Wait that comes back early, the operation not done, is followed by the rest of the delay that
/// would have followed a Get. So a server that does not really wait sees no more calls than one
/// that cannot.
///
/// A Wait takes one of the streams of a connection, of which servers allow few. So a client and its
/// clones have at most 50 of them under way, and further pollers look with Get meanwhile.
///
/// # Failures
///
/// A look that fails says nothing of the operation. These failures are ridden on, with the same
/// growing delays, or longer ones where the server asks for them by
/// [`RetryInfo`](crate::proto::rpc::RetryInfo):
///
/// - `UNAVAILABLE` and `DEADLINE_EXCEEDED`, whoever said it.
/// - `RESOURCE_EXHAUSTED`, unless it is this client's own, for an answer that is too large. The
///   quota will have room again, and the operation goes on in the meantime.
/// - A Wait that ended without a word of the server, say because a proxy cuts off calls that hang.
///
/// A Wait that failed is followed by a Get, for it may be Wait alone that fails. Any other failure
/// ends the poll with the server's status unchanged. Without a [total
/// timeout](PollPolicy::total_timeout) a server that cannot be reached is asked for ever.
///
/// # Dropping
///
/// A call in flight belongs to the poller, not to the future or stream item that waits for it.
/// Dropped by a timeout or `select!`, these lose nothing: the poller goes on from where it was,
/// with the same call. That call runs as a task, and so ends in time though nobody polls the
/// poller. Dropping the poller ends the task and the call. It never stops the operation.
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
/// use tokio_stream::StreamExt as _;
///
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
    look: Option<Task<Option<Seen>>>,
    /// How many looks have ended.
    looks: u32,
    /// The next look comes so long after an instant.
    due: Option<(Instant, Duration)>,
    /// Whether the last look was a Wait, and failed.
    wait_failed: bool,
    latest: Option<Operation>,
    /// Why the last look, if it failed, did.
    failure: Option<Status>,
    /// Whether the stream has come to its end.
    ended: bool,
}

impl<S: Stack + Sync> OperationsClient<S> {
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
    /// # Ok(())
    /// # }
    /// ```
    pub fn poller(&self, request: impl IntoRequest<GetOperationRequest>) -> Poller<S> {
        let request = request.into_request();
        Poller::new(self.clone(), Target::new(request, |request| request.name))
    }
}

impl<S: Stack + Sync> Poller<S> {
    pub(crate) fn new(client: OperationsClient<S>, target: Target) -> Self {
        Self {
            client,
            target,
            policy: PollPolicy::default(),
            begun: None,
            look: None,
            looks: 0,
            due: None,
            wait_failed: false,
            latest: None,
            failure: None,
            ended: false,
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
    #[must_use]
    pub fn policy(self, policy: PollPolicy) -> Self {
        Self { policy, ..self }
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
    /// is done, another call returns it again; after an error, another call looks again.
    ///
    /// # Errors
    ///
    /// - `DEADLINE_EXCEEDED`: the [total timeout](PollPolicy::total_timeout) is over. What was seen
    ///   last is in [`latest`](Self::latest), and the operation goes on.
    /// - `FAILED_PRECONDITION`: outside a tokio runtime.
    /// - The server's own, if they are [none to ride on](Self#failures), among them `NOT_FOUND`: it
    ///   knows no such operation, or has forgotten it.
    pub async fn until_done(&mut self) -> Result<Operation, Status> {
        loop {
            let state = poll_fn(|cx| self.poll_state(cx, false)).await?;
            if state.done {
                return Ok(state);
            }
        }
    }

    /// The next state of the operation; once it is done, that one again.
    fn poll_state(
        &mut self,
        cx: &mut Context<'_>,
        watched: bool,
    ) -> Poll<Result<Operation, Status>> {
        if let Some(done) = self.latest.as_ref().filter(|latest| latest.done) {
            return Poll::Ready(Ok(done.clone()));
        }
        loop {
            let look = match &mut self.look {
                Some(look) => look,
                None => {
                    let look = self.next_look(watched);
                    self.look.insert(Task::spawn(look.run())?)
                }
            };
            let seen = ready!(Pin::new(look).poll(cx));
            self.look = None;
            let Some(seen) = seen? else {
                let limit = self.policy.limit().unwrap_or_default();
                return Poll::Ready(Err(time_is_up(self.name(), limit, self.failure.clone())));
            };
            if let Some(state) = self.note(seen)? {
                return Poll::Ready(Ok(state));
            }
        }
    }

    fn next_look(&mut self, watched: bool) -> Look<S> {
        let begun = *self.begun.get_or_insert_with(Instant::now);
        let slice = self.policy.slice();
        Look {
            client: self.client.clone(),
            target: self.target.clone(),
            due: self.due,
            delay: self.policy.backoff().delay(self.looks, fastrand::f64()),
            slice: slice.filter(|_| !self.wait_failed),
            watched,
            // An end so far off that no clock reaches it is no limit.
            limit: self
                .policy
                .limit()
                .and_then(|limit| begun.checked_add(limit)),
            least: self.policy.backoff().initial,
        }
    }

    /// Takes note of what a look brought: a state, nothing yet, or the end of the poll.
    fn note(&mut self, seen: Seen) -> Result<Option<Operation>, Status> {
        let Seen {
            result,
            by_wait,
            next,
        } = seen;
        if by_wait && result.as_ref().is_err_and(cannot_wait) {
            self.client.remember_that_it_cannot_wait();
            return Ok(None);
        }
        self.looks = self.looks.saturating_add(1);
        self.due = Some(next);
        self.wait_failed = by_wait && result.is_err();
        match result {
            Ok(state) => {
                self.failure = None;
                self.latest = Some(state.clone());
                Ok(Some(state))
            }
            Err(status) if is_transient(&status) || by_wait && was_cut_off(&status) => {
                self.failure = Some(status);
                Ok(None)
            }
            Err(status) => Err(status),
        }
    }
}

// Nothing in it is pinned in place: the look is in a box.
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

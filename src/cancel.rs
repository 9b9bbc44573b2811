//! Cancelling one operation and learning how it ended, and cancelling many.

mod all;
mod held;
mod job;
mod many;
mod outcome;
mod report;

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, IntoRequest, Status};

pub use self::{
    many::{CancelOperations, CancelStats},
    outcome::CancelOutcome,
    report::CancelReport,
};
use crate::{
    client::{GrpcStack, OperationsClient},
    poll::{PollPolicy, Poller, Target},
    proto::CancelOperationRequest,
};

impl<S: GrpcStack + Sync> OperationsClient<S> {
    /// Cancels an operation, and waits for the outcome.
    ///
    /// Cancellation is best effort: a successful cancel call means that the server has accepted the request.
    /// The client then polls the operation with this policy, like a [`Poller`], until it is done. The
    /// [`CancelOutcome`] reports what the server returned, and nothing else. The policy's [total
    /// timeout](PollPolicy::total_timeout) includes the cancel call. If the policy sets none, it is 5 minutes,
    /// so that this method returns even if the operation does not stop. When it has passed, the outcome is
    /// [`Running`](CancelOutcome::Running), with the last known state, or
    /// [`Unknown`](CancelOutcome::Unknown) if no state is known.
    ///
    /// The metadata and the extensions of a [`tonic::Request`] are added to every call, so a
    /// [`RetryPolicy`](crate::RetryPolicy) in the extensions applies to the cancel call and to each Get. The
    /// timeout of the request applies to the same calls.
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
    /// use longrunning::{CancelOutcome, PollPolicy};
    ///
    /// let policy = PollPolicy::default().total_timeout(Duration::from_secs(60));
    /// match client.cancel_and_wait("operations/1", policy).await? {
    ///     CancelOutcome::Cancelled(_) => println!("stopped"),
    ///     CancelOutcome::Succeeded(_) => println!("completed first"),
    ///     other => println!("{other:?}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Dropping
    ///
    /// A dropped future ends its call and stops watching. The cancel request is not taken back:
    /// the server may have it already, and if it has, the operation goes on to stop. Calling again
    /// does no harm, but may meet the refusal of a server that takes one request only, see below.
    ///
    /// # Errors
    ///
    /// An error is that of the cancel call: no server is known to have taken the request.
    ///
    /// - `NOT_FOUND`: the server knows no such operation. If the client retried, the request that
    ///   got lost on the way back may have been taken, and the operation deleted since.
    /// - `UNIMPLEMENTED`: it cannot cancel operations.
    /// - `FAILED_PRECONDITION`, `INVALID_ARGUMENT`: it does not take the request. It may be that the operation cannot
    ///   be cancelled; or that it is stopping already, for an earlier call or attempt whose response was lost. Because
    ///   some servers return this for a done operation, the operation is polled once before this status is returned:
    ///   either it was not done, or that poll failed. Use a [`poller`](Self::poller) to wait for it.
    /// - `DEADLINE_EXCEEDED`, `UNAVAILABLE`: there was no answer, and the server may have taken the
    ///   request all the same. Call again, or use a [`poller`](Self::poller).
    pub async fn cancel_and_wait(
        &self,
        request: impl IntoRequest<CancelOperationRequest>,
        policy: PollPolicy,
    ) -> Result<CancelOutcome, Status> {
        let target = Target::new(request.into_request(), |request| request.name);
        let begun = Instant::now();
        let limit = policy.limit().unwrap_or(TOTAL_TIMEOUT);
        let policy = policy.total_timeout(limit);
        let left = || Some(limit.saturating_sub(begun.elapsed()));
        match target.cancel(self, left()).await {
            Ok(()) => {}
            Err(refusal) if may_be_done(&refusal) => {
                return match target.get(self, left()).await {
                    Ok(state) if state.done => Ok(CancelOutcome::of(state)),
                    // The server's status for the cancel call is more useful than that of this poll.
                    _ => Err(refusal),
                };
            }
            Err(status) => return Err(status),
        }
        let mut poller = Poller::new(self.clone(), target)
            .policy(policy)
            .begun(begun);
        let end = poller.until_done().await;
        Ok(match (end, poller.latest()) {
            (Ok(state), _) => CancelOutcome::of(state),
            (Err(status), _) if status.code() == Code::NotFound => CancelOutcome::NotFound,
            (Err(status), Some(state))
                if status.code() == Code::DeadlineExceeded && begun.elapsed() >= limit =>
            {
                CancelOutcome::Running(state.clone())
            }
            (Err(status), _) => CancelOutcome::Unknown(status),
        })
    }
}

/// The total timeout of `cancel_and_wait` if the policy sets none.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(300);

/// Whether it is how some servers say that the operation is done already.
fn may_be_done(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::FailedPrecondition | Code::InvalidArgument
    )
}

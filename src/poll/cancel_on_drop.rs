//! A guard that cancels an operation when it is dropped.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    time::Duration,
};

use tokio::runtime::Handle;
use tonic::Status;

use super::Poller;
use crate::{client::GrpcStack, task::runtime, trace, transport::Transport};

/// A [`Poller`] that cancels its operation when dropped, returned by [`Poller::cancel_on_drop`].
///
/// It dereferences to the poller.
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
///
/// let mut poller = client.poller("operations/1").cancel_on_drop()?;
/// let result = tokio::time::timeout(Duration::from_millis(10), poller.until_done()).await;
/// assert!(result.is_err(), "the operation is still running");
/// drop(poller); // cancels it
/// # emulator.wait_until(|emulator| emulator.operation("operations/1").is_some_and(|it| it.done)).await;
/// # Ok(())
/// # }
/// ```
#[must_use = "if unused, the operation is cancelled immediately"]
pub struct CancelOnDrop<S: GrpcStack + Sync = Transport> {
    poller: Poller<S>,
    /// `None` once it is disarmed.
    runtime: Option<Handle>,
}

impl<S: GrpcStack + Sync> Poller<S> {
    /// Wraps the poller in a guard that cancels the operation on drop.
    ///
    /// Nothing is cancelled if the latest state of the poller is done, or if the guard was
    /// [disarmed](CancelOnDrop::disarm).
    ///
    /// On drop, the guard spawns a task that makes one cancel call with a timeout of at most 10 seconds, including retries. The task
    /// runs on the runtime from which this method was called. It is the only task of this crate that can outlive the value that started it. The runtime must keep running
    /// until the call has ended: if `main` returns immediately after the drop, the call is lost. Use
    /// [`cancel`](Self::cancel) where you can await it. The result of the call is discarded. With the feature `tracing`, a failure
    /// is logged as a warning.
    ///
    /// # Errors
    ///
    /// `FAILED_PRECONDITION`: there is no tokio runtime.
    pub fn cancel_on_drop(self) -> Result<CancelOnDrop<S>, Status> {
        Ok(CancelOnDrop {
            runtime: Some(runtime("a guard that cancels an operation")?),
            poller: self,
        })
    }
}

impl<S: GrpcStack + Sync> CancelOnDrop<S> {
    /// Disarms the guard, so that dropping it does not cancel the operation.
    pub fn disarm(&mut self) {
        self.runtime = None;
    }
}

impl<S: GrpcStack + Sync> fmt::Debug for CancelOnDrop<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelOnDrop")
            .field("poller", &self.poller)
            .field("is_armed", &self.runtime.is_some())
            .finish()
    }
}

impl<S: GrpcStack + Sync> Deref for CancelOnDrop<S> {
    type Target = Poller<S>;

    fn deref(&self) -> &Self::Target {
        &self.poller
    }
}

impl<S: GrpcStack + Sync> DerefMut for CancelOnDrop<S> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.poller
    }
}

impl<S: GrpcStack + Sync> Drop for CancelOnDrop<S> {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else {
            return;
        };
        if self.latest().is_some_and(|latest| latest.done) {
            return;
        }
        let (client, target) = (self.poller.client.clone(), self.poller.target.clone());
        let cancel = async move {
            if let Err(failure) = target.cancel(&client, Some(TIMEOUT)).await {
                trace::cancel_on_drop_failed(&target.name, &failure);
            }
        };
        runtime.spawn(trace::in_current_span(cancel));
    }
}

/// The maximum duration of the cancel call, including its retries.
const TIMEOUT: Duration = Duration::from_secs(10);

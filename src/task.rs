//! What is needed of tokio, and a call in a task of its own: it goes on while nobody polls for it,
//! and ends with its owner.
//!
//! Whoever stops polling for an answer would otherwise keep the call's stream, and the room of its
//! connection for bytes that nobody reads, from the calls beside it.

use std::{
    mem,
    panic::resume_unwind,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    runtime::Handle,
    task::{JoinError, JoinHandle},
};
use tonic::{Code, Status};

use crate::status::{Delivery, Origin, caused, local};

#[derive(Debug)]
pub(crate) struct Task<T>(JoinHandle<T>);

impl<T: Send + 'static> Task<T> {
    /// Begins at once.
    ///
    /// # Errors
    ///
    /// `FAILED_PRECONDITION`: there is no tokio runtime here.
    pub(crate) fn spawn(future: impl Future<Output = T> + Send + 'static) -> Result<Self, Status> {
        Ok(Self(runtime("a call")?.spawn(future)))
    }

    /// Polls the task in a place, or one made for it. Only a task that goes on is in it afterwards.
    ///
    /// One whose runtime has ended since it was polled last is made once more: that which polls now
    /// may live.
    pub(crate) fn poll_in(
        place: &mut Option<Self>,
        cx: &mut Context<'_>,
        mut make: impl FnMut() -> Result<Self, Status>,
    ) -> Poll<Result<T, Status>> {
        let mut again = place.is_some();
        loop {
            // Out of its place, which so is empty if it panics.
            let mut task = match place.take() {
                Some(task) => task,
                None => make()?,
            };
            match Pin::new(&mut task).poll(cx) {
                Poll::Pending => {
                    *place = Some(task);
                    return Poll::Pending;
                }
                Poll::Ready(Err(_)) if mem::take(&mut again) => {}
                ended => return ended,
            }
        }
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(not_run)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The runtime that the caller is in, which this needs.
///
/// # Errors
///
/// `FAILED_PRECONDITION`: it is in none.
pub(crate) fn runtime(what: &str) -> Result<Handle, Status> {
    Handle::try_current().map_err(|_| {
        local(
            Code::FailedPrecondition,
            format!("{what} needs a tokio runtime: run it within one"),
        )
    })
}

/// The status of a call whose task did not come to its end. A panic goes on here.
pub(crate) fn not_run(error: JoinError) -> Status {
    let error = match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(error) => error,
    };
    caused(
        Code::Unavailable,
        "the tokio runtime that made the call has ended",
        Origin::Client,
        Delivery::MaybeSent,
        error,
    )
}

//! Outcome of a cancellation.

use tonic::Status;

use crate::operation::{Operation, Outcome};

/// The outcome of a cancellation, returned by
/// [`OperationsClient::cancel_and_wait`](crate::OperationsClient::cancel_and_wait) and in
/// [`CancelReport::outcome`](crate::CancelReport::outcome).
///
/// Each variant reports what the server returned. If a service reports a cancellation in its own way, for
/// example in the response, the outcome is the one that it sent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CancelOutcome {
    /// The operation was cancelled: its error is `CANCELLED`.
    Cancelled(Operation),
    /// The operation completed, before or despite the cancellation: it has a response.
    Succeeded(Operation),
    /// The operation failed: it has another error.
    Failed(Operation),
    /// The operation is done, but the server set neither a response nor an error, so its outcome is not known.
    DoneWithoutResult(Operation),
    /// The total timeout of [`cancel_and_wait`](crate::OperationsClient::cancel_and_wait) has passed. This is the last
    /// state that was received after the cancel call. A [`CancelReport`](crate::CancelReport) never has this outcome.
    Running(Operation),
    /// The server accepted the cancel call, and a poll ended with `NOT_FOUND`. Unless a custom layer returned
    /// this status, the server has deleted the operation since, or it accepts cancel calls for unknown names,
    /// as some servers do.
    NotFound,
    /// The server accepted the cancel call, but the outcome is not known: polling failed permanently, no state was
    /// received within the total timeout of [`cancel_and_wait`](crate::OperationsClient::cancel_and_wait), or the
    /// operation was not known to be done when the timeout of [`outcomes`](crate::CancelOperations::outcomes) or the
    /// deadline passed.
    Unknown(Status),
}

impl CancelOutcome {
    /// Returns the last known state of the operation, if there is one.
    pub fn operation(&self) -> Option<&Operation> {
        match self {
            Self::Cancelled(state)
            | Self::Succeeded(state)
            | Self::Failed(state)
            | Self::DoneWithoutResult(state)
            | Self::Running(state) => Some(state),
            Self::NotFound | Self::Unknown(_) => None,
        }
    }

    pub(super) fn of(state: Operation) -> Self {
        match state.outcome() {
            Outcome::Cancelled(_) => Self::Cancelled(state),
            Outcome::DoneWithoutResult => Self::DoneWithoutResult(state),
            Outcome::Failed(_) => Self::Failed(state),
            Outcome::Running => Self::Running(state),
            Outcome::Succeeded => Self::Succeeded(state),
        }
    }
}

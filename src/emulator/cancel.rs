//! What the server does about a cancel.

use std::{sync::Arc, time::Duration};

use prost::{Message, Name};
use prost_types::Any;
use tonic::{Code, Status};

use super::{
    Emulator, Shared, lock,
    operations::{End, pack},
};
use crate::proto::{operation, rpc};

impl Emulator {
    /// Settles what is done about cancels, where [`on_cancel_of`](Self::on_cancel_of) says nothing.
    pub fn on_cancel(&self, behavior: CancelBehavior) {
        lock(&self.shared.script).on_cancel = behavior;
    }

    /// Settles what is done about cancels of one operation, which need not exist yet.
    pub fn on_cancel_of(&self, name: impl Into<String>, behavior: CancelBehavior) {
        let mut script = lock(&self.shared.script);
        script.on_cancel_of.insert(name.into(), behavior);
    }
}

/// What a server does about a cancel. Each is how some real one behaves.
///
/// The cancel of an operation that is done changes nothing, and is answered with OK; that of an
/// unknown one is answered with `NOT_FOUND`. Only [`Refuse`](Self::Refuse) comes before both.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum CancelBehavior {
    /// Ends the operation at once with error code 1 (`CANCELLED`), and keeps it on record.
    #[default]
    Cancel,
    /// Says OK, and does as [`Cancel`](Self::Cancel) after so long.
    CancelAfter(Duration),
    /// Says OK, and the operation runs on.
    Ignore,
    /// Says OK, and the operation completes with this response. See [`complete`](Self::complete).
    Complete(Any),
    /// Says OK, and the operation ends with neither error nor response.
    CompleteWithoutResult,
    /// Says OK, and the operation fails with this error. See [`fail`](Self::fail).
    Fail(rpc::Status),
    /// Says OK, and takes the operation off the record.
    Delete,
    /// Says this, whatever the operation is: code, message, details and metadata.
    Refuse(Status),
}

impl CancelBehavior {
    /// Makes a [`Complete`](Self::Complete) of a message.
    pub fn complete<M: Message + Name>(response: &M) -> Self {
        Self::Complete(pack(response))
    }

    /// Makes a [`Fail`](Self::Fail) of a status, whose metadata has no place in an operation.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT`: the details of the status are not a `google.rpc.Status`.
    pub fn fail(error: &Status) -> Result<Self, Status> {
        error.try_into().map(Self::Fail)
    }
}

impl Shared {
    pub(super) fn cancel(self: &Arc<Self>, name: &str) -> Result<(), Status> {
        let behavior = {
            let script = lock(&self.script);
            let of_this = script.on_cancel_of.get(name);
            of_this.unwrap_or(&script.on_cancel).clone()
        };
        if let CancelBehavior::Refuse(status) = behavior {
            return Err(status);
        }
        if lock(&self.store).find(name)?.done {
            return Ok(());
        }
        let acted = match behavior {
            CancelBehavior::Cancel => self.end(name, cancelled()),
            CancelBehavior::CancelAfter(delay) => self.end_after(name, cancelled(), delay),
            CancelBehavior::Complete(any) => self.end(name, Some(operation::Result::Response(any))),
            CancelBehavior::CompleteWithoutResult => self.end(name, None),
            CancelBehavior::Fail(error) => self.end(name, Some(operation::Result::Error(error))),
            CancelBehavior::Delete => self.remove(name).map(drop),
            CancelBehavior::Ignore | CancelBehavior::Refuse(_) => Ok(()),
        };
        match acted {
            // Another call was faster since the look above: then it was done.
            Err(status) if status.code() == Code::FailedPrecondition => Ok(()),
            acted => acted,
        }
    }
}

fn cancelled() -> End {
    Some(operation::Result::Error(rpc::Status {
        code: rpc::Code::Cancelled.into(),
        message: "the operation was cancelled".to_owned(),
        details: Vec::new(),
    }))
}

//! Classification of poll results: transient failures, and done operations that need confirmation.

use std::time::Duration;

use tonic::{Code, Status};

use crate::{
    operation::Operation,
    proto::operation,
    status::{CallStatusExt as _, Delivery, Origin, caused, local, retry, with_delivery},
};

/// Whether it is the word of a server that knows no Wait. One in this very process counts, whose
/// statuses are the client's own; a 404, of a proxy or a wrong endpoint, does not.
pub(super) fn cannot_wait(status: &Status) -> bool {
    status.code() == Code::Unimplemented && status.origin() != Some(Origin::Transport)
}

/// Returns whether an operation is done with a response that has no type URL.
///
/// Some servers, including Google's showcase server, return this from WaitOperation while the
/// operation is still running.
pub(super) fn has_untyped_response(operation: &Operation) -> bool {
    let Some(operation::Result::Response(response)) = &operation.result else {
        return false;
    };
    operation.done && response.type_url.is_empty()
}

/// Whether the next look may well succeed.
///
/// [AIP-194](https://google.aip.dev/194) has calls retried for `UNAVAILABLE` alone, and not beyond
/// their deadline. But a poll asks anew, within a deadline of its own.
pub(super) fn is_transient(status: &Status) -> bool {
    // A layer of the stack has marked it as retryable.
    if retry(status) == Some(true) {
        return true;
    }
    match status.code() {
        Code::DeadlineExceeded | Code::Unavailable => true,
        Code::ResourceExhausted => status.origin() != Some(Origin::Client),
        // A reset of the call: nobody said that the operation was cancelled.
        Code::Cancelled => status.origin() == Some(Origin::Transport),
        _ => false,
    }
}

/// Whether a Wait that failed so says nothing certain, and only a Get can tell what is wrong.
pub(super) fn may_be_wait_alone(status: &Status) -> bool {
    status.code() != Code::NotFound && status.origin() != Some(Origin::Client)
}

/// The end of a poll that may look no longer, and why its last look failed, if it did.
pub(super) fn time_is_up(
    name: &str,
    limit: Duration,
    failure: Option<Status>,
    delivery: Delivery,
) -> Status {
    let message = format!("operation {name:?} was not done within {limit:?}");
    let Some(failure) = failure else {
        return with_delivery(local(Code::DeadlineExceeded, message), delivery);
    };
    let (code, text) = (failure.code_name(), failure.message());
    let message = format!("{message}; the last look failed: {code}: {text}");
    let (code, origin) = (Code::DeadlineExceeded, Origin::Client);
    caused(code, message, origin, delivery, failure)
}

//! Classification of the results of polls.

use tonic::{Code, Status};

use crate::{
    operation::Operation,
    proto::operation,
    status::{CallStatusExt as _, Origin},
};

/// Returns whether a server does not implement WaitOperation. A server in this process counts, although its
/// statuses are the client's own; an HTTP 404 of a proxy or a wrong endpoint does not.
pub(crate) fn cannot_wait(status: &Status) -> bool {
    status.code() == Code::Unimplemented && status.origin() != Some(Origin::Transport)
}

/// Returns whether a failure may be specific to WaitOperation, so that GetOperation may succeed.
pub(crate) fn is_specific_to_wait(status: &Status) -> bool {
    status.code() != Code::NotFound && status.origin() != Some(Origin::Client)
}

/// Returns whether an operation is done with a response that has no type URL.
///
/// Some servers, including Google's showcase server, return this from WaitOperation while the
/// operation is still running.
pub(crate) fn has_untyped_response(operation: &Operation) -> bool {
    let Some(operation::Result::Response(response)) = &operation.result else {
        return false;
    };
    operation.done && response.type_url.is_empty()
}

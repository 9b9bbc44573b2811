//! What happens unseen, told to the crate `tracing` where the feature of that name is on.
//!
//! The events have the target `longrunning`, and the level DEBUG unless a function says otherwise. None
//! holds a secret: a status of this crate never does.

#![cfg_attr(not(feature = "tracing"), allow(unused_variables))]

use std::time::Duration;

use http::uri::Authority;
use tonic::Status;

macro_rules! event {
    ($($what:tt)*) => {
        #[cfg(feature = "tracing")]
        tracing::debug!(target: "longrunning", $($what)*);
    };
}

/// Has what becomes a task of its own stay in the span of who makes it.
pub(crate) fn in_span<F: Future>(future: F) -> impl Future<Output = F::Output> {
    #[cfg(feature = "tracing")]
    let future = tracing::Instrument::in_current_span(future);
    future
}

pub(crate) fn connected(to: &Authority) {
    event!(%to, "connected");
}

pub(crate) fn not_connected(to: &Authority, failure: &Status) {
    event!(%to, failure = failure.message(), "cannot connect");
}

pub(crate) fn disconnected(from: &Authority) {
    event!(%from, "disconnected");
}

/// Logs a warning, because
/// [gRFC A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md#basic-keepalive)
/// requires a level that is enabled by default.
pub(crate) fn too_many_pings(from: &Authority) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: "longrunning",
        %from,
        "too_many_pings: the keepalive interval of new connections is doubled"
    );
}

pub(crate) fn token(next: Duration) {
    event!(renewed_in = ?next, "a token has come");
}

pub(crate) fn no_token(failure: &Status, wait: Duration) {
    event!(code = ?failure.code(), failure = failure.message(), ?wait, "no token has come");
}

pub(crate) fn throttle_started() {
    event!("retry throttle started: failed calls are not retried");
}

pub(crate) fn throttle_stopped() {
    event!("retry throttle stopped");
}

pub(crate) fn retrying(attempts: u32, failure: &Status, wait: Duration) {
    event!(attempts, code = ?failure.code(), ?wait, "an attempt failed");
}

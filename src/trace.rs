//! Events for the crate `tracing`, if the feature `tracing` is enabled.
//!
//! Events have the target `longrunning`, and the level DEBUG unless a function documents another. They
//! contain no secrets, except those that a custom source puts into its message.

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

pub(crate) fn token_refreshed(renewed_in: Duration) {
    event!(?renewed_in, "token refreshed");
}

/// Emits a warning, because calls succeed until the current token expires.
pub(crate) fn token_refresh_failed(failure: &Status, retry_in: Duration) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: "longrunning",
        code = ?failure.code(),
        failure = failure.message(),
        ?retry_in,
        "token refresh failed"
    );
}

/// Emits a warning: calls with this token fail, although it has not expired.
pub(crate) fn token_rejected(renewed_in: Duration) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: "longrunning",
        ?renewed_in,
        "token rejected by a server"
    );
}

/// Emits a warning, because the program otherwise seems to work: tokens are still fetched with the last
/// good content of a file that was deleted or became invalid.
#[cfg(feature = "_google")]
pub(crate) fn credentials_file_unreadable(failure: &Status) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: "longrunning",
        failure = failure.message(),
        "credentials file cannot be read or parsed; using its last good content"
    );
}

pub(crate) fn throttle_started() {
    event!("retry throttle started: failed calls are not retried");
}

pub(crate) fn throttle_stopped() {
    event!("retry throttle stopped");
}

pub(crate) fn retrying(attempts: usize, failure: &Status, wait: Duration) {
    event!(attempts, code = ?failure.code(), ?wait, "an attempt failed");
}

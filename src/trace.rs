//! Spans and events for the crate `tracing`, if the feature `tracing` is enabled.
//!
//! Their names, fields and levels are listed in the guide `observability`. All have the target `longrunning`.
//! They contain no secrets, unless a custom source of tokens puts one into the message of its status.

#![cfg_attr(not(feature = "tracing"), allow(unused_variables))]

use std::{net::SocketAddr, time::Duration};

use http::uri::Authority;
use tonic::{Code, Status};
#[cfg(feature = "tracing")]
use tracing::field::display;

#[cfg(feature = "tracing")]
use crate::status::CallStatusExt as _;

/// A span, which is disabled if no subscriber is interested, or if the feature `tracing` is off.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    #[cfg(feature = "tracing")]
    inner: tracing::Span,
}

/// Creates a span of level INFO. Field names are string literals, because some of them contain keywords.
/// Integers must be `i64`: OpenTelemetry has no other integer type, so `tracing-opentelemetry` would convert them
/// to strings.
macro_rules! span {
    ($name:literal, $($field:literal = $value:expr,)*) => {
        Span {
            #[cfg(feature = "tracing")]
            inner: {
                use tracing::field::Empty;
                tracing::info_span!(target: "longrunning", $name, $($field = $value,)*)
            },
        }
    };
}

impl Span {
    pub(crate) fn call(method: &'static str, server: Option<(&str, u16)>, operation: &str) -> Self {
        span!(
            "call",
            "otel.name" = method,
            "otel.kind" = "internal",
            "otel.status_code" = Empty,
            "otel.status_description" = Empty,
            "rpc.system.name" = "grpc",
            "rpc.method" = method,
            "rpc.response.status_code" = Empty,
            "error.type" = Empty,
            "server.address" = server.map(|(host, _)| host),
            "server.port" = server.map(|(_, port)| i64::from(port)),
            "gcp.resource.destination.id" = (!operation.is_empty()).then_some(operation),
            "longrunning.attempt_count" = Empty,
            "longrunning.origin" = Empty,
            "longrunning.delivery" = Empty,
            "longrunning.dropped" = Empty,
        )
    }

    pub(crate) fn disabled() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            inner: tracing::Span::none(),
        }
    }

    /// `resend_count` is the number of earlier attempts of the call.
    pub(crate) fn attempt(
        method: &'static str,
        server: Option<(&str, u16)>,
        resend_count: usize,
        is_transparent: bool,
    ) -> Self {
        span!(
            "attempt",
            "otel.name" = method,
            "otel.kind" = "client",
            "otel.status_code" = Empty,
            "otel.status_description" = Empty,
            "rpc.system.name" = "grpc",
            "rpc.method" = method,
            "rpc.response.status_code" = Empty,
            "error.type" = Empty,
            "server.address" = server.map(|(host, _)| host),
            "server.port" = server.map(|(_, port)| i64::from(port)),
            "network.peer.address" = Empty,
            "network.peer.port" = Empty,
            "gcp.grpc.resend_count" = (resend_count > 0).then_some(resend_count as i64),
            "longrunning.transparent_retry" = is_transparent,
            "longrunning.connection.id" = Empty,
            "longrunning.queue.duration" = Empty,
            "longrunning.origin" = Empty,
            "longrunning.delivery" = Empty,
            "longrunning.dropped" = Empty,
        )
    }

    pub(crate) fn wait(operation: &str) -> Self {
        span!(
            "wait",
            "otel.name" = "longrunning.wait",
            "otel.kind" = "internal",
            "otel.status_code" = Empty,
            "otel.status_description" = Empty,
            "error.type" = Empty,
            "gcp.resource.destination.id" = operation,
            "gcp.longrunning.done" = Empty,
            "gcp.longrunning.status_code" = Empty,
            "longrunning.poll_count" = Empty,
            "longrunning.outcome" = Empty,
            "longrunning.dropped" = Empty,
        )
    }

    pub(crate) fn is_enabled(&self) -> bool {
        #[cfg(feature = "tracing")]
        return !self.inner.is_disabled();
        #[cfg(not(feature = "tracing"))]
        false
    }

    /// Calls a function within this span.
    pub(crate) fn in_scope<T>(&self, f: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        return self.inner.in_scope(f);
        #[cfg(not(feature = "tracing"))]
        f()
    }

    /// Ends the span. Subscribers may take the last exit of a span as its end, so it is entered once more.
    pub(crate) fn end(&self) {
        self.in_scope(|| ());
    }

    /// Records how long an attempt was queued.
    pub(crate) fn queued(&self, queued: Duration) {
        #[cfg(feature = "tracing")]
        self.inner
            .record("longrunning.queue.duration", queued.as_secs_f64());
    }

    /// Records the connection of an attempt.
    pub(crate) fn connection(&self, id: u64, peer: Option<SocketAddr>) {
        #[cfg(feature = "tracing")]
        {
            self.inner.record("longrunning.connection.id", id as i64);
            if let Some(peer) = peer {
                self.inner
                    .record("network.peer.address", display(peer.ip()));
                let port = i64::from(peer.port());
                self.inner.record("network.peer.port", port);
            }
        }
    }

    pub(crate) fn attempts(&self, attempts: usize) {
        #[cfg(feature = "tracing")]
        self.inner
            .record("longrunning.attempt_count", attempts as i64);
    }

    /// Records the status of a call or an attempt. `None` is OK.
    pub(crate) fn status(&self, failure: Option<&Status>) {
        #[cfg(feature = "tracing")]
        {
            let code = failure.map_or("OK", |failure| failure.code_name());
            self.inner.record("rpc.response.status_code", code);
            if let Some(failure) = failure {
                self.failed(failure);
                if let Some(origin) = failure.origin() {
                    self.inner.record("longrunning.origin", display(origin));
                }
                if let Some(delivery) = failure.delivery() {
                    let delivery = delivery.to_string().replace(' ', "_");
                    self.inner.record("longrunning.delivery", delivery);
                }
            }
        }
    }

    /// Records that the future of a call or an attempt was dropped.
    pub(crate) fn dropped_call(&self) {
        #[cfg(feature = "tracing")]
        {
            // As in https://github.com/grpc/grpc/blob/master/doc/statuscodes.md
            self.inner.record("rpc.response.status_code", "CANCELLED");
            self.inner.record("otel.status_code", "ERROR");
            self.inner.record("error.type", "CANCELLED");
        }
        self.dropped();
    }

    /// Records that a future was dropped.
    pub(crate) fn dropped(&self) {
        #[cfg(feature = "tracing")]
        self.inner.record("longrunning.dropped", true);
    }

    /// Records a failure.
    pub(crate) fn failed(&self, failure: &Status) {
        #[cfg(feature = "tracing")]
        {
            self.inner.record("otel.status_code", "ERROR");
            self.inner
                .record("otel.status_description", failure.message());
            self.inner.record("error.type", failure.code_name());
        }
    }

    pub(crate) fn polls(&self, polls: u32) {
        #[cfg(feature = "tracing")]
        self.inner
            .record("longrunning.poll_count", i64::from(polls));
    }

    /// Records that the operation is done, with this outcome. The code is that of its error, or OK.
    pub(crate) fn done(&self, outcome: &str, code: Code) {
        #[cfg(feature = "tracing")]
        {
            self.inner.record("gcp.longrunning.done", true);
            let code = i64::from(i32::from(code));
            self.inner.record("gcp.longrunning.status_code", code);
            self.inner.record("longrunning.outcome", outcome);
        }
    }
}

/// Attaches the current span to a future that is spawned as a task.
pub(crate) fn in_current_span<F: Future>(future: F) -> impl Future<Output = F::Output> {
    #[cfg(feature = "tracing")]
    let future = tracing::Instrument::in_current_span(future);
    future
}

macro_rules! event {
    ($level:ident, $($what:tt)*) => {
        #[cfg(feature = "tracing")]
        tracing::event!(target: "longrunning", tracing::Level::$level, $($what)*);
    };
}

pub(crate) fn connected(
    server: &Authority,
    connection: u64,
    peer: Option<SocketAddr>,
    max_streams: usize,
) {
    #[cfg(feature = "tracing")]
    let peer = peer.map(display);
    event!(DEBUG, %server, connection, peer, max_streams, "connected");
}

pub(crate) fn connect_failed(server: &Authority, failure: &Status) {
    event!(WARN, %server, failure = failure.message(), "connect failed");
}

/// Emits a warning if the peer did not answer a ping within `keepalive_timeout`.
pub(crate) fn connection_closed(
    server: &Authority,
    connection: u64,
    age: Duration,
    reason: &str,
    keepalive_timeout: Option<Duration>,
) {
    if let Some(timeout) = keepalive_timeout {
        event!(WARN, %server, connection, ?age, ?timeout, "connection closed: keepalive timed out");
    } else {
        event!(DEBUG, %server, connection, ?age, reason, "connection closed");
    }
}

/// Emits a warning, because [gRFC
/// A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md#basic-keepalive) requires a level that
/// is enabled by default.
pub(crate) fn too_many_pings(server: &Authority, connection: u64) {
    event!(
        WARN,
        %server,
        connection,
        "too_many_pings: the keepalive interval of new connections is doubled"
    );
}

pub(crate) fn token_refreshed(refresh_in: Duration) {
    event!(DEBUG, ?refresh_in, "token refreshed");
}

/// Emits a warning, because calls succeed until the current token expires.
pub(crate) fn token_refresh_failed(failure: &Status, retry_in: Duration) {
    event!(
        WARN,
        code = failure.code_name(),
        failure = failure.message(),
        ?retry_in,
        "token refresh failed"
    );
}

/// Emits a warning: calls with this token fail, although it has not expired.
pub(crate) fn token_rejected(refresh_in: Duration) {
    event!(WARN, ?refresh_in, "token rejected by a server");
}

/// Emits a warning, because the program otherwise seems to work: tokens are still fetched with the last
/// good content of a file that was deleted or became invalid.
#[cfg(feature = "_google")]
pub(crate) fn credentials_file_unreadable(failure: &Status) {
    event!(
        WARN,
        failure = failure.message(),
        "credentials file cannot be read or parsed; using its last good content"
    );
}

/// Emits a warning: failed calls are not retried until the throttle stops.
pub(crate) fn throttle_started() {
    event!(WARN, "retry throttle started: failed calls are not retried");
}

pub(crate) fn throttle_stopped() {
    event!(DEBUG, "retry throttle stopped");
}

/// Reports that the cancel call of a dropped guard failed. This is a warning because the operation may continue to run.
pub(crate) fn cancel_on_drop_failed(operation: &str, failure: &Status) {
    event!(
        WARN,
        operation,
        code = failure.code_name(),
        failure = failure.message(),
        "cancel on drop failed"
    );
}

/// Reports that the rate limiter decreased the rate, to `rate` calls per second.
pub(crate) fn rate_decreased(rate: f64) {
    event!(DEBUG, rate, "rate decreased");
}

/// Reports that an [`OperationSet`](crate::OperationSet) polls the operations under a parent one by one.
pub(crate) fn listing_stopped(parent: &str, reason: &str) {
    event!(DEBUG, parent, reason, "listing stopped");
}

pub(crate) fn retrying(attempts: usize, failure: &Status, delay: Duration) {
    event!(
        DEBUG,
        attempts,
        code = failure.code_name(),
        failure = failure.message(),
        ?delay,
        "retrying"
    );
}

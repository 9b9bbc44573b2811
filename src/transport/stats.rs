//! Statistics of a transport: a snapshot, and the counters behind its totals.

use std::{
    net::SocketAddr,
    ops::AddAssign,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A snapshot of the state of a [`Transport`](super::Transport), returned by [`Transport::stats`](super::Transport::stats).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TransportStats {
    /// The connections that accept new calls, oldest first.
    pub connections: Vec<ConnectionStats>,
    /// The number of open connections, including those that accept no new calls and close once their calls have
    /// ended.
    pub open_connections: usize,
    /// The [maximum](crate::ClientBuilder::max_connections) number of connections that accept new calls.
    pub max_connections: usize,
    /// The number of connections that are being opened, including those that are backing off.
    pub connecting: usize,
    /// The number of calls that wait for a stream.
    pub queued_calls: usize,
    /// The [maximum](crate::ClientBuilder::max_queued_calls) of `queued_calls`.
    pub max_queued_calls: usize,
    /// How long the oldest queued call has waited; zero if no calls are queued.
    pub queue_age: Duration,
    /// The number of callers that wait for space in the queue.
    pub blocked_callers: usize,
    /// Totals since the transport was created.
    pub totals: TransportTotals,
}

impl TransportStats {
    /// Returns the number of streams in use, on all connections that accept new calls.
    pub fn streams_in_use(&self) -> usize {
        let streams = self.connections.iter().map(|it| it.streams_in_use);
        streams.sum()
    }

    /// Returns the maximum number of streams, on all connections that accept new calls.
    pub fn max_streams(&self) -> usize {
        let streams = self.connections.iter().map(|it| it.max_streams);
        streams.sum()
    }
}

/// The state of a connection, in [`TransportStats`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// The ID of the connection, unique within its transport. Spans (`longrunning.connection.id`) and events
    /// (`connection`) contain it, too.
    pub id: u64,
    /// The address of the peer; `None` for a connection through a proxy or a custom connector.
    pub peer: Option<SocketAddr>,
    /// How long ago the connection was opened.
    pub age: Duration,
    /// The number of streams in use, including `abandoned_streams`.
    pub streams_in_use: usize,
    /// The number of streams in use whose calls were dropped or timed out. They stay in use until they are reset, or
    /// until the server's response ends.
    pub abandoned_streams: usize,
    /// The maximum number of streams: the limit of the server, or
    /// [`streams_per_connection`](crate::ClientBuilder::streams_per_connection) if that is less.
    pub max_streams: usize,
}

/// Totals since a transport was created. They never decrease.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct TransportTotals {
    /// The number of connections that were opened.
    pub connection_attempts_succeeded: u64,
    /// The number of failed attempts to open a connection.
    pub connection_attempts_failed: u64,
    /// The number of connections that were closed, for any reason.
    pub disconnections: u64,
    /// The number of connections that were closed because the peer did not answer a keepalive ping.
    pub keepalive_timeouts: u64,
    /// The number of transparent retries, see [`Transport`](super::Transport).
    pub transparent_retries: u64,
    /// The number of streams that were reset because their calls were dropped or timed out.
    pub stream_resets: u64,
}

/// The counters behind [`TransportTotals`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(super) succeeded: Counter,
    pub(super) failed: Counter,
    pub(super) disconnections: Counter,
    pub(super) keepalive_timeouts: Counter,
    pub(super) transparent_retries: Counter,
    pub(super) stream_resets: Counter,
}

/// A counter of rare events. Do not increment it on every call: that would cause contention between cores.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Release);
    }

    pub(crate) fn increment(&self) {
        self.add(1);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl Counters {
    pub(crate) fn totals(&self) -> TransportTotals {
        // Read before `succeeded`: a connection is counted as opened before it is counted as closed, so this never
        // exceeds it.
        let disconnections = self.disconnections.get();
        TransportTotals {
            disconnections,
            connection_attempts_succeeded: self.succeeded.get(),
            connection_attempts_failed: self.failed.get(),
            keepalive_timeouts: self.keepalive_timeouts.get(),
            transparent_retries: self.transparent_retries.get(),
            stream_resets: self.stream_resets.get(),
        }
    }
}

impl AddAssign for TransportTotals {
    fn add_assign(&mut self, other: Self) {
        self.connection_attempts_succeeded += other.connection_attempts_succeeded;
        self.connection_attempts_failed += other.connection_attempts_failed;
        self.disconnections += other.disconnections;
        self.keepalive_timeouts += other.keepalive_timeouts;
        self.transparent_retries += other.transparent_retries;
        self.stream_resets += other.stream_resets;
    }
}

impl TransportTotals {
    /// Returns the number of connections that are open.
    pub(crate) fn open_connections(&self) -> usize {
        let open = self
            .connection_attempts_succeeded
            .saturating_sub(self.disconnections);
        open as usize
    }
}

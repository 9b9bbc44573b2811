//! WaitOperation: whether the server implements it, and the permits for concurrent calls.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::OperationsClient;

/// What a client and its clones share about WaitOperation.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// When the server last answered that it does not implement it.
    unimplemented_at: Mutex<Option<Instant>>,
    under_way: AtomicUsize,
}

impl Waits {
    fn unimplemented_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.unimplemented_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave for a Wait, until it is dropped.
pub(crate) struct Leave<'a>(&'a Waits);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> OperationsClient<S> {
    /// Sets the maximum number of concurrent WaitOperation calls of [pollers](crate::Poller), including those
    /// of clones.
    ///
    /// Further pollers use GetOperation. With 0, all of them do. Over the default transport, these calls never
    /// occupy more than half of the streams.
    ///
    /// Defaults to 50, half of the streams that Google's front ends allow on a connection.
    #[must_use]
    pub const fn max_concurrent_waits(mut self, waits: usize) -> Self {
        self.settings.max_waits = Some(waits);
        self
    }

    /// Gives leave for a Wait, if the server can wait and few others are under way.
    pub(crate) fn may_wait(&self) -> Option<Leave<'_>> {
        let waits = &self.shared.waits;
        let unimplemented_at = *waits.unimplemented_at();
        if unimplemented_at.is_some_and(|at| at.elapsed() < UNIMPLEMENTED) {
            return None;
        }
        let before = waits.under_way.fetch_add(1, Ordering::Relaxed);
        let leave = Leave(waits);
        let most = self.settings.max_waits.unwrap_or(AT_ONCE);
        // At most half of the streams, so that other calls find a free one.
        let half = self.shared.capacity().map(|streams| streams / 2);
        (before < half.map_or(most, |half| half.min(most))).then_some(leave)
    }

    /// Notes that the server does not implement WaitOperation. It is not called for 10 minutes.
    pub(crate) fn wait_is_unimplemented(&self) {
        *self.shared.waits.unimplemented_at() = Some(Instant::now());
    }
}

/// How long WaitOperation is not called after an `UNIMPLEMENTED`. The server may be replaced by one that
/// implements it, or only some of several replicas may lack it.
const UNIMPLEMENTED: Duration = Duration::from_secs(600);

/// Half of the streams that Google's front ends allow on a connection: Waits, which take them for a
/// minute, must not keep other calls from them.
const AT_ONCE: usize = 50;

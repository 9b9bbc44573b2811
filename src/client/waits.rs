//! WaitOperation: whether the server implements it, and the permits for concurrent calls.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::OperationsClient;

/// The WaitOperation state shared by a client and its clones.
#[derive(Debug)]
pub(crate) struct Waits {
    /// When the server last answered that it does not implement it.
    unimplemented_at: Mutex<Option<Instant>>,
    /// Created with the maximum number of permits. `wait_permit` enforces the limit, because clones can have different
    /// limits.
    permits: Semaphore,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            unimplemented_at: Mutex::default(),
            permits: Semaphore::new(Semaphore::MAX_PERMITS),
        }
    }
}

impl Waits {
    fn unimplemented_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.unimplemented_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

    /// Returns a permit for a WaitOperation call, unless the server does not implement it or the limit is reached.
    pub(crate) fn wait_permit(&self) -> Option<SemaphorePermit<'_>> {
        let waits = &self.shared.waits;
        let unimplemented_at = *waits.unimplemented_at();
        if unimplemented_at.is_some_and(|at| at.elapsed() < UNIMPLEMENTED) {
            return None;
        }
        let max = self.settings.max_waits.unwrap_or(MAX_WAITS);
        // At most half of the streams, so that other calls find a free one.
        let max = self
            .shared
            .capacity()
            .map_or(max, |streams| max.min(streams / 2));
        let permit = waits.permits.try_acquire().ok()?;
        let in_use = Semaphore::MAX_PERMITS - waits.permits.available_permits();
        (in_use <= max).then_some(permit)
    }

    /// Records that the server does not implement WaitOperation. It is not called for 10 minutes.
    pub(crate) fn wait_is_unimplemented(&self) {
        *self.shared.waits.unimplemented_at() = Some(Instant::now());
    }
}

/// How long WaitOperation is not called after an `UNIMPLEMENTED`. The server may be replaced by one that
/// implements it, or only some of several replicas may lack it.
const UNIMPLEMENTED: Duration = Duration::from_secs(600);

/// Half of the streams that Google's front ends allow on a connection. These calls occupy a stream for up to a
/// minute, and must leave streams for other calls.
const MAX_WAITS: usize = 50;

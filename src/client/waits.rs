//! What a client and its clones know in common of waiting: whether the server can, and how many
//! Waits are under way.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::OperationsClient;

/// Half of the streams that Google's front ends allow on a connection: Waits, which take them for a
/// minute, must not keep other calls from them.
const AT_ONCE: usize = 50;

#[derive(Debug)]
pub(crate) struct Waits {
    /// Whether the server has said that it cannot.
    cannot: AtomicBool,
    room: Semaphore,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            cannot: AtomicBool::new(false),
            room: Semaphore::new(AT_ONCE),
        }
    }
}

impl<S> OperationsClient<S> {
    /// Gives leave for a Wait, if the server can wait and few others are under way.
    pub(crate) fn may_wait(&self) -> Option<SemaphorePermit<'_>> {
        let waits = !self.waits.cannot.load(Ordering::Relaxed);
        waits.then(|| self.waits.room.try_acquire().ok())?
    }

    pub(crate) fn remember_that_it_cannot_wait(&self) {
        self.waits.cannot.store(true, Ordering::Relaxed);
    }
}

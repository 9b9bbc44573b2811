//! What a client and its clones know in common of waiting: whether the server can, and how many
//! Waits are under way.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use super::OperationsClient;

#[derive(Default)]
pub(crate) struct Waits {
    /// Whether the server has said that it cannot.
    cannot: AtomicBool,
    under_way: AtomicUsize,
    /// How many calls the stack can carry at once, if it tells.
    capacity: Option<Box<dyn Fn() -> usize + Send + Sync>>,
}

impl Waits {
    fn of(capacity: impl Fn() -> usize + Send + Sync + 'static) -> Self {
        Self {
            capacity: Some(Box::new(capacity)),
            ..Self::default()
        }
    }

    /// At most half of the streams, so that a call finds one that is not taken for a minute.
    fn at_once(&self, most: usize) -> usize {
        self.capacity
            .as_ref()
            .map_or(most, |capacity| (capacity() / 2).min(most))
    }
}

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waits")
            .field("cannot", &self.cannot)
            .field("under_way", &self.under_way)
            .finish_non_exhaustive()
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
    /// Sets how many WaitOperations of [pollers](crate::Poller) may be under way at once, those of
    /// clones included. Pollers beyond that look with GetOperation, and so do all with 0. Default is
    /// 50, half of the streams that Google's front ends allow on a connection.
    ///
    /// Over this crate's own connections they never take more than half of the streams.
    #[must_use]
    pub const fn with_max_waits(mut self, waits: usize) -> Self {
        self.settings.max_waits = Some(waits);
        self
    }

    /// Sets how many calls the stack can carry at once, as far as it knows at the time.
    pub(crate) fn with_capacity(
        mut self,
        capacity: impl Fn() -> usize + Send + Sync + 'static,
    ) -> Self {
        self.waits = Arc::new(Waits::of(capacity));
        self
    }

    /// Gives leave for a Wait, if the server can wait and few others are under way.
    pub(crate) fn may_wait(&self) -> Option<Leave<'_>> {
        if self.waits.cannot.load(Ordering::Relaxed) {
            return None;
        }
        let before = self.waits.under_way.fetch_add(1, Ordering::Relaxed);
        let leave = Leave(&self.waits);
        let most = self.settings.max_waits.unwrap_or(AT_ONCE);
        (before < self.waits.at_once(most)).then_some(leave)
    }

    pub(crate) fn remember_that_it_cannot_wait(&self) {
        self.waits.cannot.store(true, Ordering::Relaxed);
    }
}

/// Half of the streams that Google's front ends allow on a connection: Waits, which take them for a
/// minute, must not keep other calls from them.
const AT_ONCE: usize = 50;

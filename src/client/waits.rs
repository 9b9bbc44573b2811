//! What a client and its clones know in common of waiting: whether the server can, and how many
//! Waits are under way.

use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::OperationsClient;

/// Half of the streams that Google's front ends allow on a connection: Waits, which take them for a
/// minute, must not keep other calls from them.
const AT_ONCE: usize = 50;

#[derive(Default)]
pub(crate) struct Waits {
    /// Whether the server has said that it cannot.
    cannot: AtomicBool,
    under_way: AtomicUsize,
    /// How many calls the stack can carry at once, if it tells.
    capacity: Option<Box<dyn Fn() -> usize + Send + Sync>>,
}

impl Waits {
    pub(super) fn of(capacity: impl Fn() -> usize + Send + Sync + 'static) -> Self {
        Self {
            capacity: Some(Box::new(capacity)),
            ..Self::default()
        }
    }

    /// At most half of the streams, so that a call finds one that is not taken for a minute.
    fn at_once(&self) -> usize {
        self.capacity
            .as_ref()
            .map_or(AT_ONCE, |capacity| (capacity() / 2).min(AT_ONCE))
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
    /// Gives leave for a Wait, if the server can wait and few others are under way.
    pub(crate) fn may_wait(&self) -> Option<Leave<'_>> {
        if self.waits.cannot.load(Ordering::Relaxed) {
            return None;
        }
        let before = self.waits.under_way.fetch_add(1, Ordering::Relaxed);
        let leave = Leave(&self.waits);
        (before < self.waits.at_once()).then_some(leave)
    }

    pub(crate) fn remember_that_it_cannot_wait(&self) {
        self.waits.cannot.store(true, Ordering::Relaxed);
    }
}

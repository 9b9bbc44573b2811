//! Callers that wait until the queue is not full.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// Whether the queue accepts calls, and who waits for that.
///
/// After the queue was full, callers wait until an eighth of it is free. Then as many are woken as there
/// is room for, in the order in which they registered. A caller that is woken and finds the queue full
/// again keeps its place.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    full: QueueFull,
    waiting: BTreeMap<u64, Waker>,
    next: u64,
}

/// Whether the queue was full, and an eighth of it has not been free since. It is read without the
/// pool's lock.
#[derive(Clone, Debug, Default)]
pub(crate) struct QueueFull(Arc<AtomicBool>);

impl QueueFull {
    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Readiness {
    /// Returns a view of whether the queue is full.
    pub(crate) fn queue_full(&self) -> QueueFull {
        self.full.clone()
    }

    /// Returns how many callers wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Notes that the queue is full.
    pub(crate) fn set_full(&self) {
        self.full.0.store(true, Ordering::Release);
    }

    /// Polls whether the queue accepts calls. Returns also a waker that is to be dropped without the
    /// pool's lock.
    pub(crate) fn poll(
        &mut self,
        registration: &mut Option<u64>,
        cx: &mut Context<'_>,
    ) -> (Poll<()>, Option<Waker>) {
        if !self.full.get() {
            let unused = registration.take().and_then(|r| self.unregister(r));
            return (Poll::Ready(()), unused);
        }
        let registration = *registration.get_or_insert_with(|| {
            self.next += 1;
            self.next
        });
        let replaced = self.waiting.insert(registration, cx.waker().clone());
        (Poll::Pending, replaced)
    }

    /// Ends a registration. Returns its waker, which is to be dropped without the pool's lock.
    pub(crate) fn unregister(&mut self, registration: u64) -> Option<Waker> {
        self.waiting.remove(&registration)
    }

    /// Notes how many calls are queued. Returns the callers to wake.
    pub(crate) fn update(&mut self, queued: usize, bound: usize) -> Vec<Waker> {
        let full = self.full.get();
        let is_nobody_concerned = !full && self.waiting.is_empty();
        let stays_full = full && queued > bound - bound.div_ceil(8);
        if is_nobody_concerned || stays_full {
            return Vec::new();
        }
        self.full.0.store(false, Ordering::Release);
        if queued == 0 {
            return mem::take(&mut self.waiting).into_values().collect();
        }
        std::iter::from_fn(|| self.waiting.pop_first())
            .take(bound.saturating_sub(queued))
            .map(|(_, waker)| waker)
            .collect()
    }
}

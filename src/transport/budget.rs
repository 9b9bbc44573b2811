//! The memory that responses take.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The bytes of unary responses in memory, for all connections of a pool together.
///
/// It counts the responses that are being received, and those that were delivered but not yet read by
/// their callers. Small ones are not counted: all cores would compete for the counter.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            max,
        })
    }

    pub(crate) fn is_exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.max
    }
}

/// The bytes of one response that count towards a [`Budget`], until this is dropped.
#[derive(Debug)]
pub(crate) struct Buffered {
    budget: Arc<Budget>,
    bytes: usize,
}

/// Responses up to this size are not counted, in bytes.
const SMALL: usize = 4 << 10;

impl Buffered {
    /// Counts a response that has grown to this length, unless it is small.
    pub(crate) fn count(this: &mut Option<Self>, length: usize, budget: &Arc<Budget>) {
        if length <= SMALL {
            return;
        }
        let this = this.get_or_insert_with(|| Self {
            budget: budget.clone(),
            bytes: 0,
        });
        let more = length - this.bytes;
        this.bytes = length;
        this.budget.used.fetch_add(more, Ordering::Relaxed);
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

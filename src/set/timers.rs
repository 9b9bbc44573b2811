//! Timers of the operations and parents of a set.

use std::{cmp::Reverse, collections::BinaryHeap};

use tokio::time::Instant;

/// A heap of timers. Timers are not removed when they are replaced: the caller decides which are current.
#[derive(Debug, Default)]
pub(super) struct Timers(BinaryHeap<Reverse<Timer>>);

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Timer {
    pub(super) due: Instant,
    pub(super) target: Target,
}

/// What is due: the key of an operation or of a parent.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Target {
    Operation(u32),
    Parent(u32),
}

impl Timers {
    pub(super) fn push(&mut self, due: Instant, target: Target) {
        self.0.push(Reverse(Timer { due, target }));
    }

    /// Returns when the first current timer is due, and removes those before it.
    pub(super) fn next_due(&mut self, is_current: impl Fn(&Timer) -> bool) -> Option<Instant> {
        while let Some(Reverse(timer)) = self.0.peek() {
            if is_current(timer) {
                return Some(timer.due);
            }
            self.0.pop();
        }
        None
    }

    /// Removes the first timer.
    pub(super) fn pop(&mut self) -> Option<Target> {
        let Reverse(timer) = self.0.pop()?;
        Some(timer.target)
    }

    /// Removes the timers that are not current, if they may be more than half of all. `current` is the maximum number of
    /// current timers.
    pub(super) fn compact(&mut self, current: usize, is_current: impl Fn(&Timer) -> bool) {
        if self.0.len() > 2 * current + MIN_TIMERS {
            self.0.retain(|Reverse(timer)| is_current(timer));
        }
    }
}

/// The number of timers below which all are kept.
const MIN_TIMERS: usize = 64;

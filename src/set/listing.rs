//! The choice between List and Get for the operations under a parent.

use std::{mem, time::Duration};

use tokio::time::Instant;

use super::{
    parent::{Listing, Mode, RETRY_LIST},
    state::{MIN_JITTER, Phase, State},
};
use crate::trace;

impl State {
    /// Leaves the polling of an operation to the sweeps of its parent. Returns `false`, and changes nothing, if the
    /// parent is not listed or the operation is urgent.
    pub(super) fn cover(&mut self, key: u32) -> bool {
        let entry = &mut self.entries[key as usize];
        let Some(listing) = self.parents[entry.parent as usize].listing() else {
            return false;
        };
        if entry.is_urgent {
            return false;
        }
        // The current sweep may have passed the place of the operation.
        entry.seen = listing.sweep_id;
        entry.is_absent = false;
        entry.phase = Phase::Listed;
        true
    }

    /// Starts to list the parent of an operation that was added, or brings its next sweep forward.
    pub(super) fn added_to(&mut self, parent: u32, attempts: u32, now: Instant) {
        let members = self.parents[parent as usize].members.len();
        match &self.parents[parent as usize].mode {
            Mode::Get { list_from } if members >= *list_from => self.start_listing(parent, now),
            Mode::Get { .. } => {}
            Mode::List(listing) => {
                let added = self.poll_rate(attempts) - listing.poll_rate;
                self.add_to_poll_rate(parent, added, now);
            }
        }
    }

    /// Polls an operation with the delays of a new one, because it was cancelled.
    pub(super) fn restart_delays(&mut self, name: &str, now: Instant) {
        let Some(&key) = self.index.get(name) else {
            return;
        };
        let entry = &mut self.entries[key as usize];
        let (parent, attempts) = (entry.parent, mem::take(&mut entry.attempts));
        // The server may have requested a delay.
        let is_failing = entry.failures > 0;
        let due = now + self.delay(0);
        match self.entries[key as usize].phase {
            Phase::Due(old) if old <= due || is_failing => {}
            Phase::Due(_) => self.schedule(key, due),
            Phase::Listed => {
                let added = self.poll_rate(0) - self.poll_rate(attempts);
                self.add_to_poll_rate(parent, added, now);
                self.poll_before_sweep(key, due);
            }
            Phase::InFlight(_) | Phase::Ready(_) => {}
        }
    }

    /// Schedules a poll of a listed operation before the next sweep. Returns `false`, and changes nothing, if the
    /// operation is not listed, if the sweep is earlier, or if many operations are polled before it: the polls would
    /// need more calls than another sweep.
    pub(super) fn poll_before_sweep(&mut self, key: u32, due: Instant) -> bool {
        let entry = &self.entries[key as usize];
        let (parent, is_urgent) = (entry.parent, entry.is_urgent);
        let parent = &mut self.parents[parent as usize];
        let due_at = parent.due;
        let Some(listing) = parent.listing() else {
            return false;
        };
        // The current sweep may have passed the place of the operation.
        let next_sweep = due_at.filter(|_| listing.sweep.is_none());
        let next_sweep = next_sweep.unwrap_or_else(|| listing.next_sweep(MIN_JITTER));
        if is_urgent
            || due >= next_sweep
            || listing.early_polls >= listing.pages.max(MIN_EARLY_POLLS)
        {
            return false;
        }
        listing.early_polls += 1;
        self.schedule(key, due);
        true
    }

    /// Adds to the sum of the poll rates of the operations under a listed parent, and brings the next sweep forward.
    fn add_to_poll_rate(&mut self, key: u32, added: f64, now: Instant) {
        let parent = &mut self.parents[key as usize];
        let members = parent.members.len();
        let old = parent.due;
        let Some(listing) = parent.listing() else {
            return;
        };
        listing.poll_rate += added / members as f64;
        let due = listing.next_sweep(1.0).max(now);
        // A small difference is not worth another timer.
        if listing.sweep.is_none() && old.is_none_or(|old| due + MIN_ADVANCE < old) {
            self.schedule_parent(key, due);
        }
    }

    /// Returns the rate at which an operation is to be polled, in polls per second.
    pub(super) fn poll_rate(&self, attempts: u32) -> f64 {
        1.0 / self.delay(attempts).as_secs_f64()
    }

    pub(super) fn start_listing(&mut self, parent: u32, now: Instant) {
        let members = mem::take(&mut self.parents[parent as usize].members);
        let rate = |key: &u32| self.poll_rate(self.entries[*key as usize].attempts);
        let poll_rate = members.iter().map(rate).sum::<f64>() / members.len().max(1) as f64;
        let listing = Box::new(Listing::new(now, poll_rate));
        self.parents[parent as usize].mode = Mode::List(listing);
        // The first sweep covers all operations that are inserted at the same time.
        let mut first = now + self.delay(0).mul_f64(fastrand::f64());
        for &key in &members {
            if let Phase::Due(due) = self.entries[key as usize].phase
                && self.cover(key)
            {
                first = first.min(due);
            }
        }
        self.parents[parent as usize].members = members;
        self.schedule_parent(parent, first.max(now));
    }

    /// Polls the operations of a parent one by one, for 10 minutes or until it has `list_from` members.
    pub(super) fn stop_listing(
        &mut self,
        parent: u32,
        reason: &'static str,
        list_from: usize,
        now: Instant,
    ) {
        trace::listing_stopped(&self.parents[parent as usize].name, reason);
        self.parents[parent as usize].mode = Mode::Get { list_from };
        self.schedule_parent(parent, now + RETRY_LIST);
        let members = mem::take(&mut self.parents[parent as usize].members);
        for &key in &members {
            let entry = &self.entries[key as usize];
            if matches!(entry.phase, Phase::Listed) {
                let delay = self.delay(entry.attempts);
                self.schedule(key, now + delay.mul_f64(fastrand::f64()));
            }
        }
        self.parents[parent as usize].members = members;
        self.remove_parent_if_unused(parent);
    }
}

/// The number of operations that can be polled before a sweep, even if the sweep needs fewer calls.
const MIN_EARLY_POLLS: usize = 5;

/// The minimum time by which the next sweep is brought forward.
const MIN_ADVANCE: Duration = Duration::from_millis(100);

//! Sweeps over the list of a parent.
//!
//! A sweep costs one call per page, and a GetOperation for each operation that it did not list. It replaces one
//! GetOperation for each operation. A parent is listed only while that is fewer calls.

use std::{mem, time::Duration};

use tokio::time::Instant;
use tonic::Status;

use super::{
    parent::{Mode, Probe, Sweep},
    state::{Phase, State, jitter},
};
use crate::{
    operation::Operation,
    proto::{ListOperationsRequest, ListOperationsResponse},
};

/// A ListOperations call.
#[derive(Debug)]
pub(super) struct ListCall {
    pub(super) request: ListOperationsRequest,
    /// The number of consecutive quota rejections before this call.
    pub(super) rejections: u32,
    pub(super) sweep: SweepKey,
}

/// The sweep that a call belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct SweepKey {
    pub(super) parent: u32,
    sweep_id: u32,
}

impl State {
    /// Processes a parent that is due. Returns the call to make, if any.
    pub(super) fn parent_is_due(&mut self, key: u32, now: Instant) -> Option<ListCall> {
        let sweep_id = self.sweep_id.wrapping_add(1);
        let parent = &mut self.parents[key as usize];
        parent.due = None;
        let members = parent.members.len();
        match &mut parent.mode {
            Mode::Get { list_from } => {
                *list_from = 2;
                if members >= 2 {
                    self.start_listing(key, now);
                }
                self.remove_parent_if_unused(key);
                return None;
            }
            Mode::List(listing) if members == 0 => {
                listing.sweep = None;
                self.remove_parent_if_unused(key);
                return None;
            }
            Mode::List(listing) => {
                let sweep = listing.sweep.get_or_insert_with(|| {
                    self.sweep_id = sweep_id;
                    listing.sweep_id = sweep_id;
                    listing.started = now;
                    listing.early_polls = 0;
                    Sweep {
                        is_filtered: listing.is_filtered,
                        ..Sweep::default()
                    }
                });
                if sweep.page.len() == 0 {
                    return Some(self.list_call(key));
                }
            }
        }
        self.read_page(key, now);
        None
    }

    /// Records the response to a List call.
    pub(super) fn record_page(
        &mut self,
        key: SweepKey,
        result: Result<ListOperationsResponse, Status>,
        now: Instant,
    ) {
        let parent = self.parents.get_mut(key.parent as usize);
        let Some(listing) = parent.and_then(|parent| parent.listing()) else {
            return; // listing was stopped
        };
        let is_current = listing.sweep_id == key.sweep_id;
        let Some(sweep) = listing.sweep.as_mut().filter(|_| is_current) else {
            return;
        };
        sweep.is_in_flight = false;
        let page = match result {
            Ok(page) => page,
            Err(status) => return self.record_list_failure(key.parent, &status, now),
        };
        sweep.failures = 0;
        sweep.rejections = 0;
        sweep.probe = Probe::None;
        sweep.pages += 1;
        sweep.listed += page.operations.len();
        sweep.page = page.operations.into_iter();
        sweep.token = page.next_page_token;
        let is_last = sweep.token.is_empty();
        if !is_last && sweep.tokens.is_repeated(&sweep.token) {
            return self.stop_listing(key.parent, "page token repeated", usize::MAX, now);
        }
        let pages = sweep.pages;
        let members = self.parents[key.parent as usize].members.len();
        if !is_last && pages >= members {
            return self.stop_listing(key.parent, "too many pages", 2 * members.max(1), now);
        }
        self.read_page(key.parent, now);
    }

    /// Processes the operations of a page. If there is no room for another result, continues when there is.
    fn read_page(&mut self, key: u32, now: Instant) {
        loop {
            let has_room = self.has_room();
            let Some(sweep) = self.parents[key as usize].sweep() else {
                return;
            };
            if sweep.page.len() > 0 && !has_room {
                return self.schedule_parent(key, now);
            }
            let Some(operation) = sweep.page.next() else {
                break;
            };
            sweep.listed_done += usize::from(operation.done);
            self.listed(key, operation, now);
        }
        let Some(listing) = self.parents[key as usize].listing() else {
            return;
        };
        let (delay, expected) = (listing.page_delay, listing.pages);
        match &listing.sweep {
            Some(sweep) if !sweep.token.is_empty() => {
                // There are more pages than expected.
                let is_long = sweep.pages > expected;
                let delay = if is_long { Duration::ZERO } else { delay };
                self.schedule_parent(key, now + delay);
            }
            _ => self.end_sweep(key, now),
        }
    }

    /// Records an operation of a page.
    fn listed(&mut self, parent: u32, operation: Operation, now: Instant) {
        let Some(&key) = self.index.get(operation.name.as_str()) else {
            return;
        };
        let entry = &mut self.entries[key as usize];
        if entry.parent != parent || matches!(entry.phase, Phase::Ready(_)) {
            return;
        }
        let Some(listing) = self.parents[parent as usize].listing() else {
            return;
        };
        entry.seen = listing.sweep_id;
        let was_absent = mem::take(&mut entry.is_absent);
        if operation.done {
            if let Some(sweep) = &mut listing.sweep {
                sweep.delivered += 1;
            }
            self.deliver(key, Ok(operation));
        } else if was_absent && matches!(entry.phase, Phase::Due(_)) {
            self.cover(key);
        } else if matches!(entry.phase, Phase::Listed) {
            entry.attempts = entry.attempts.saturating_add(1);
            let attempts = entry.attempts;
            self.poll_before_sweep(key, now + self.next_delay(attempts));
        }
    }

    /// Ends a sweep: schedules the operations that were not listed, and the next sweep.
    fn end_sweep(&mut self, key: u32, now: Instant) {
        let parent = &mut self.parents[key as usize];
        let Some(sweep) = parent.listing().and_then(|listing| listing.sweep.take()) else {
            return;
        };
        let members = mem::take(&mut parent.members);
        let (absent, seen, poll_rate) = self.survey(key, &members);
        let count = members.len();
        self.parents[key as usize].members = members;
        if count == 0 {
            return self.remove_parent_if_unused(key);
        }
        if sweep.pages >= seen {
            return self.stop_listing(key, "GetOperation needs fewer calls", 2 * count, now);
        }
        let Some(listing) = self.parents[key as usize].listing() else {
            return;
        };
        listing.poll_rate = poll_rate;
        listing.pages = sweep.pages;
        listing.choose_filter(&sweep, absent.len(), now);
        let due = listing.next_sweep(jitter());
        let period = due.saturating_duration_since(listing.started);
        let has_same_filter = sweep.is_filtered == listing.is_filtered;
        listing.page_delay = if has_same_filter {
            period.mul_f64(SWEEP_SHARE) / sweep.pages.max(1) as u32
        } else {
            Duration::ZERO // the number of pages is not known
        };
        self.schedule_parent(key, due.max(now));
        let spread = Duration::from_secs_f64(absent.len() as f64 / ABSENT_RATE);
        let spread = spread.min(self.settings.backoff.maximum);
        for key in absent {
            self.entries[key as usize].is_absent = true;
            self.schedule(key, now + spread.mul_f64(fastrand::f64()));
        }
    }

    /// Returns the operations that the last sweep should have listed but did not, and the number and the mean poll rate
    /// of those that it listed.
    fn survey(&mut self, parent: u32, members: &[u32]) -> (Vec<u32>, usize, f64) {
        let sweep_id = self.parents[parent as usize]
            .listing()
            .map_or(0, |listing| listing.sweep_id);
        let mut absent = Vec::new();
        let (mut count, mut sum) = (0_usize, 0.0);
        for &key in members {
            let entry = &self.entries[key as usize];
            if entry.is_urgent {
                continue;
            }
            if entry.seen == sweep_id {
                count += 1;
                sum += self.poll_rate(entry.attempts);
            } else if matches!(entry.phase, Phase::Listed) {
                absent.push(key);
            }
        }
        (absent, count, sum / count as f64)
    }

    fn list_call(&mut self, key: u32) -> ListCall {
        let parent = &mut self.parents[key as usize];
        let mut call = ListCall {
            request: ListOperationsRequest {
                name: parent.name.to_string(),
                ..ListOperationsRequest::default()
            },
            rejections: 0,
            sweep: SweepKey {
                parent: key,
                sweep_id: 0,
            },
        };
        if let Some(listing) = parent.listing() {
            call.sweep.sweep_id = listing.sweep_id;
            call.request.page_size = listing.page_size;
            if let Some(sweep) = &mut listing.sweep {
                sweep.is_in_flight = true;
                call.rejections = sweep.rejections;
                call.request.page_token.clone_from(&sweep.token);
                if sweep.is_filtered {
                    NOT_DONE.clone_into(&mut call.request.filter);
                }
            }
        }
        call
    }
}

/// The filter for operations that are not done, as Google's services understand it.
const NOT_DONE: &str = "done=false";

/// The share of the time between two sweeps over which the pages of a sweep are spread.
const SWEEP_SHARE: f64 = 0.1;

/// The rate at which operations that were not listed are confirmed, in calls per second.
const ABSENT_RATE: f64 = 500.0;

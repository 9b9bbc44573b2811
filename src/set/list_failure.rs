//! Failures of ListOperations calls, and how to find out whether only they fail.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    parent::{MAX_LIST_FAILURES, Probe, Sweep},
    state::{Phase, State, jitter},
};
use crate::status::{
    CallStatusExt as _, Delivery, Origin, ServerDelay, is_quota_rejection, is_transient,
};

impl State {
    pub(super) fn record_list_failure(&mut self, key: u32, status: &Status, now: Instant) {
        if is_transient(status) || is_back_pressure(status) {
            return self.record_transient_list_failure(key, status, now);
        }
        let Some(listing) = self.parents[key as usize].listing() else {
            return;
        };
        let Some(sweep) = &mut listing.sweep else {
            return;
        };
        if is_oversized(status) && listing.page_size > 1 {
            listing.page_size /= 2;
            return self.schedule_parent(key, now);
        }
        let is_first = sweep.token.is_empty();
        // Some servers do not use `INVALID_ARGUMENT` for a filter that they do not support.
        if sweep.is_filtered && is_first {
            *sweep = Sweep::default();
            listing.reject_filter(now);
            return self.schedule_parent(key, now);
        }
        // A page token may have expired.
        if !is_first && !sweep.was_restarted {
            *sweep = Sweep {
                is_filtered: sweep.is_filtered,
                was_restarted: true,
                ..Sweep::default()
            };
            return self.schedule_parent(key, now);
        }
        self.stop_listing(key, status.code_name(), usize::MAX, now);
    }

    fn record_transient_list_failure(&mut self, key: u32, status: &Status, now: Instant) {
        let parent = &mut self.parents[key as usize];
        let Some(sweep) = parent.sweep() else {
            return;
        };
        sweep.failures = sweep.failures.saturating_add(1);
        if is_quota_rejection(status) {
            sweep.rejections = sweep.rejections.saturating_add(1);
        }
        let failures = sweep.failures;
        if sweep.probe == Probe::Answered {
            let reason = "only ListOperations fails";
            return self.stop_listing(key, reason, usize::MAX, now);
        }
        let delay = self.delay(failures).mul_f64(jitter());
        let delay = ServerDelay::at_least(delay, status);
        self.schedule_parent(key, now + delay);
        if failures >= MAX_LIST_FAILURES || delay > self.long_delay() {
            self.probe(key, now);
        }
    }

    /// Gets one operation of a parent whose List fails. If that succeeds, only List fails; otherwise the server is
    /// probably unavailable, and the operations are not polled one by one.
    fn probe(&mut self, parent: u32, now: Instant) {
        let members = &self.parents[parent as usize].members;
        let first = fastrand::usize(..members.len().max(1));
        let is_listed = |key: &&u32| matches!(self.entries[**key as usize].phase, Phase::Listed);
        let (before, after) = members.split_at(first.min(members.len()));
        let member = after.iter().chain(before).find(is_listed).copied();
        if let Some(sweep) = self.parents[parent as usize].sweep() {
            sweep.probe = Probe::Started;
        }
        if let Some(key) = member {
            self.schedule(key, now);
        }
    }

    /// Records that a Get of an operation of a parent was answered. If the next List fails, only List fails.
    pub(super) fn record_probe(&mut self, parent: u32, now: Instant) {
        let is_delayed = self.is_delayed(parent, now);
        let Some(sweep) = self.parents[parent as usize].sweep() else {
            return;
        };
        if sweep.probe == Probe::None {
            return;
        }
        sweep.probe = Probe::Answered;
        if is_delayed {
            self.stop_listing(parent, "ListOperations is delayed", usize::MAX, now);
        }
    }

    /// Returns whether the server requested a long delay before the next List.
    pub(super) fn is_delayed(&self, parent: u32, now: Instant) -> bool {
        let due = self.parents[parent as usize].due;
        due.is_some_and(|due| due > now + self.long_delay())
    }

    /// Returns the delay that is as long as several failures.
    fn long_delay(&self) -> Duration {
        self.delay(u32::MAX).saturating_mul(MAX_LIST_FAILURES)
    }
}

/// Returns whether a response was larger than the client accepts.
fn is_oversized(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted
        && status.origin() == Some(Origin::Client)
        && status.delivery() == Some(Delivery::Answered)
}

/// Returns whether the queue of the client is full.
pub(super) fn is_back_pressure(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted
        && status.origin() == Some(Origin::Client)
        && status.delivery() == Some(Delivery::NotSent)
}

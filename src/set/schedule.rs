//! Scheduler: chooses the next call, and records the results of calls.

use std::sync::Arc;

use tokio::{sync::oneshot, time::Instant};
use tonic::Status;

use super::{
    entry::SetEntry,
    list_failure::is_back_pressure,
    parent::{MAX_LIST_FAILURES, Mode},
    state::{Driver, Phase, State, jitter},
    stats::SetStats,
    sweep::ListCall,
    timers::Target,
};
use crate::{
    operation::Operation,
    poll::{cannot_wait, has_untyped_response, is_specific_to_wait},
    proto::ListOperationsResponse,
    status::{ServerDelay, is_quota_rejection, is_transient},
};

/// A call to make.
#[derive(Debug)]
pub(super) enum Call {
    Poll(PollCall),
    List(ListCall),
}

/// A GetOperation or WaitOperation call.
#[derive(Debug)]
pub(super) struct PollCall {
    pub(super) key: u32,
    pub(super) name: Arc<str>,
    /// Whether the call counts as a WaitOperation call.
    pub(super) may_wait: bool,
    /// The number of consecutive quota rejections before this call.
    pub(super) rejections: u32,
    /// Ready if the result is no longer needed.
    pub(super) aborted: oneshot::Receiver<()>,
}

/// A call that has ended.
pub(super) enum Ended {
    Poll {
        call: PollCall,
        /// `None` if the call was aborted.
        polled: Option<Polled>,
    },
    List {
        call: ListCall,
        result: Result<ListOperationsResponse, Status>,
    },
}

/// The result of a poll.
pub(super) struct Polled {
    /// Whether it was a WaitOperation call.
    pub(super) waited: bool,
    pub(super) started: Instant,
    pub(super) result: Result<Operation, Status>,
}

impl State {
    /// Inserts an operation. Returns whether its name was absent.
    pub(super) fn insert(&mut self, entry: SetEntry, now: Instant) -> bool {
        let Some(key) = self.add(entry, now) else {
            return false;
        };
        let entry = &self.entries[key as usize];
        let (parent, attempts) = (entry.parent, entry.attempts);
        if let Phase::Due(due) = entry.phase {
            if !self.cover(key) {
                self.schedule(key, due);
            }
            self.added_to(parent, attempts, now);
            self.poll_before_sweep(key, due);
        }
        true
    }

    /// Returns the next call, or else the time at which it is due. `Err(None)` means that no call can start before the
    /// state changes.
    pub(super) fn next_call(&mut self, now: Instant) -> Result<Call, Option<Instant>> {
        self.driver = Driver::Running;
        loop {
            if !self.has_room() {
                self.driver = Driver::NoRoom;
                return Err(None);
            }
            if self.in_flight >= self.settings.max_in_flight {
                self.driver = Driver::Full;
                return Err(None);
            }
            let call = match self.pop_due(now) {
                Ok(Target::Operation(key)) => Call::Poll(self.poll_call(key)),
                Ok(Target::Parent(key)) => match self.parent_is_due(key, now) {
                    Some(call) => Call::List(call),
                    None => continue,
                },
                Err(due) => {
                    self.driver = due.map_or(Driver::Idle, Driver::Until);
                    return Err(due);
                }
            };
            self.in_flight += 1;
            return Ok(call);
        }
    }

    /// Records the result of a call.
    pub(super) fn record(&mut self, ended: Ended, now: Instant) {
        self.in_flight -= 1;
        match ended {
            Ended::List { call, result } => {
                self.counts.list += 1;
                self.count_failure(result.as_ref().err());
                self.record_page(call.sweep, result, now);
            }
            Ended::Poll { call, polled } => {
                self.waits -= usize::from(call.may_wait);
                let Some(polled) = polled else {
                    return;
                };
                if polled.waited {
                    self.counts.wait += 1;
                } else {
                    self.counts.get += 1;
                }
                self.count_failure(polled.result.as_ref().err());
                // It may have been removed, and its name inserted again.
                let entry = self.entries.get(call.key as usize);
                let is_current = entry.is_some_and(|entry| {
                    matches!(entry.phase, Phase::InFlight(_))
                        && Arc::ptr_eq(&entry.name, &call.name)
                });
                if is_current {
                    self.record_poll(call.key, polled, now);
                }
            }
        }
    }

    /// Schedules all calls in flight again, after the driver was dropped. One of them may have caused a panic, so their
    /// delays grow.
    pub(super) fn driver_dropped(&mut self, now: Instant) {
        self.driver = Driver::None;
        self.waits = 0;
        if std::mem::take(&mut self.in_flight) == 0 {
            return;
        }
        let polls = self.entries.iter();
        let polls = polls.filter(|(_, entry)| matches!(entry.phase, Phase::InFlight(_)));
        let polls: Vec<_> = polls.map(|(key, _)| key as u32).collect();
        for key in polls {
            let failures = self.entries[key as usize].failures;
            self.entries[key as usize].failures = failures.saturating_add(1);
            let delay = self.delay(failures.into()).mul_f64(fastrand::f64());
            self.schedule(key, now + delay);
        }
        let sweeps = self.parents.iter_mut().filter_map(|(key, parent)| {
            let sweep = parent.sweep()?;
            let was_in_flight = std::mem::take(&mut sweep.is_in_flight);
            sweep.failures = sweep.failures.saturating_add(was_in_flight.into());
            was_in_flight.then_some((key as u32, sweep.failures))
        });
        for (key, failures) in sweeps.collect::<Vec<_>>() {
            let delay = self.delay(failures).mul_f64(fastrand::f64());
            self.schedule_parent(key, now + delay);
        }
    }

    pub(super) fn stats(&self) -> SetStats {
        let listed = self.parents.iter().map(|(_, parent)| parent);
        let listed = listed.filter(|parent| matches!(parent.mode, Mode::List(_)));
        let (listed_parents, listed_operations) = listed
            .fold((0, 0), |(parents, operations), parent| {
                (parents + 1, operations + parent.members.len())
            });
        SetStats {
            len: self.entries.len(),
            untaken: self.untaken(),
            in_flight: self.in_flight,
            listed_parents,
            listed_operations,
            results: self.counts.results,
            list_calls: self.counts.list,
            get_calls: self.counts.get,
            wait_calls: self.counts.wait,
            transient_failures: self.counts.transient_failures,
            quota_rejections: self.counts.quota_rejections,
            rate_limit: self.settings.limiter.rate(),
        }
    }

    fn poll_call(&mut self, key: u32) -> PollCall {
        let settings = &self.settings;
        // A WaitOperation call can last a minute. The other half is reserved for calls that end soon.
        let max_waits = settings.max_in_flight.min(settings.max_untaken) / 2;
        let entry = &mut self.entries[key as usize];
        let (abort, aborted) = oneshot::channel();
        entry.phase = Phase::InFlight(abort);
        let may_wait = entry.is_urgent && !entry.get_next && self.waits < max_waits;
        self.waits += usize::from(may_wait);
        PollCall {
            key,
            name: Arc::clone(&entry.name),
            may_wait,
            rejections: entry.rejections.into(),
            aborted,
        }
    }

    fn record_poll(&mut self, key: u32, polled: Polled, now: Instant) {
        let Polled {
            waited,
            started,
            result,
        } = polled;
        let entry = &mut self.entries[key as usize];
        entry.get_next = false;
        let parent = entry.parent;
        let is_transient_failure =
            |status: &Status| is_transient(status) || is_back_pressure(status);
        let has_answered = !waited && !result.as_ref().is_err_and(is_transient_failure);
        if has_answered {
            self.record_probe(parent, now);
        }
        let entry = &mut self.entries[key as usize];
        if waited && result.as_ref().is_err_and(cannot_wait) {
            return self.schedule(key, now);
        }
        let status = match result {
            Ok(operation) if waited && has_untyped_response(&operation) => {
                entry.get_next = true;
                return self.schedule(key, now);
            }
            Ok(operation) if operation.done => return self.deliver(key, Ok(operation)),
            Ok(_) => return self.record_running(key, started, now),
            Err(status) => status,
        };
        if !is_transient_failure(&status) {
            if waited && is_specific_to_wait(&status) {
                entry.get_next = true;
                let delay = self.delay(0).mul_f64(fastrand::f64());
                return self.schedule(key, now + delay);
            }
            return self.deliver(key, Err(status));
        }
        entry.get_next = waited;
        let failures = entry.failures;
        entry.failures = failures.saturating_add(1);
        if is_quota_rejection(&status) {
            entry.rejections = entry.rejections.saturating_add(1);
        }
        let attempts = entry.attempts.max(failures.into());
        let is_absent = entry.is_absent;
        // The server is unavailable, or List returns the operation.
        let is_left_to_list = if self.parents[parent as usize].is_probed() {
            !self.is_delayed(parent, now)
        } else {
            !is_absent
        };
        if is_left_to_list && self.cover(key) {
            return;
        }
        // Only Get fails, so List must return the operations that are done.
        if is_absent
            && u32::from(failures) >= MAX_LIST_FAILURES
            && let Some(listing) = self.parents[parent as usize].listing()
        {
            listing.reject_filter(now);
        }
        let delay = self.delay(attempts).mul_f64(jitter());
        self.schedule(key, now + ServerDelay::at_least(delay, &status));
    }

    fn record_running(&mut self, key: u32, started: Instant, now: Instant) {
        let entry = &mut self.entries[key as usize];
        entry.attempts = entry.attempts.saturating_add(1);
        entry.failures = 0;
        entry.rejections = 0;
        let (attempts, is_absent) = (entry.attempts, entry.is_absent);
        let due = (started + self.next_delay(attempts)).max(now);
        // The server may never list it.
        if is_absent || !self.poll_before_sweep(key, due) && !self.cover(key) {
            self.schedule(key, due);
        }
    }

    fn count_failure(&mut self, status: Option<&Status>) {
        let Some(status) = status else {
            return;
        };
        self.counts.transient_failures += u64::from(is_transient(status));
        self.counts.quota_rejections += u64::from(is_quota_rejection(status));
    }
}

//! The operations of a set, their timers, and the results that have not been taken.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use slab::Slab;
use tokio::{sync::oneshot, time::Instant};
use tonic::Status;

use super::{
    entry::SetEntry,
    parent::{Mode, Parent, parent_of},
    stats::Counts,
    timers::{Target, Timer, Timers},
};
use crate::{backoff::Backoff, operation::Operation, rate::RateLimiter};

/// The state of a set, shared by its handles and its driver.
///
/// Each operation without a result belongs to one parent, and has its own timer, is polled by the sweeps of its parent,
/// or has a call in flight. The timers of operations and parents are in one heap, so that calls start in the order in
/// which they are due.
#[derive(Debug)]
pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) entries: Slab<Entry>,
    pub(super) index: HashMap<Arc<str>, u32>,
    pub(super) parents: Slab<Parent>,
    parent_index: HashMap<Arc<str>, u32>,
    timers: Timers,
    /// The keys of the operations with a result.
    ready: VecDeque<u32>,
    /// The number of calls in flight.
    pub(super) in_flight: usize,
    /// The number of WaitOperation calls in flight.
    pub(super) waits: usize,
    /// The number of the last sweep.
    pub(super) sweep_id: u32,
    pub(super) counts: Counts,
    /// The number of results that consumers have not been notified of.
    pub(super) unnotified: usize,
    /// What the driver waits for, apart from calls in flight.
    pub(super) driver: Driver,
}

#[derive(Debug)]
pub(super) struct Settings {
    pub(super) backoff: Backoff,
    pub(super) max_untaken: usize,
    pub(super) max_in_flight: usize,
    pub(super) limiter: Arc<RateLimiter>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Driver {
    /// There is no driver.
    None,
    /// It is not waiting, or it has been notified.
    Running,
    Until(Instant),
    /// There is no timer.
    Idle,
    /// There are too many calls in flight.
    Full,
    /// There are too many untaken results.
    NoRoom,
}

/// An operation.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    pub(super) phase: Phase,
    pub(super) inserted_at: SystemTime,
    pub(super) attempts: u32,
    pub(super) parent: u32,
    /// The position in the members of the parent.
    position: u32,
    /// The last sweep that listed the operation, or the current one when the operation was added to the listing.
    pub(super) seen: u32,
    /// The number of consecutive transient failures.
    pub(super) failures: u16,
    /// The number of consecutive quota rejections.
    pub(super) rejections: u8,
    pub(super) is_urgent: bool,
    /// Whether the last sweep did not list the operation.
    pub(super) is_absent: bool,
    /// Whether the next poll is a GetOperation, although the operation is urgent.
    pub(super) get_next: bool,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// The sweeps of its parent cover the operation.
    Listed,
    /// The next poll is due at this time.
    Due(Instant),
    InFlight(#[expect(dead_code, reason = "the call ends when it is dropped")] oneshot::Sender<()>),
    Ready(Box<Result<Operation, Status>>),
}

/// The result of [`State::take`].
pub(super) enum Taken {
    Result(String, Result<Operation, Status>),
    /// There are operations, but none has a result.
    Pending,
    Empty,
}

impl State {
    pub(super) fn new(settings: Settings) -> Self {
        let mut parents = Slab::new();
        // Names without a parent share one that is never listed.
        parents.insert(Parent::new(Arc::from(""), usize::MAX));
        Self {
            settings,
            entries: Slab::new(),
            index: HashMap::new(),
            parents,
            parent_index: HashMap::new(),
            timers: Timers::default(),
            ready: VecDeque::new(),
            in_flight: 0,
            waits: 0,
            sweep_id: 0,
            counts: Counts::default(),
            unnotified: 0,
            driver: Driver::None,
        }
    }

    /// Adds an operation, unless its name is present. Returns its key.
    pub(super) fn add(&mut self, entry: SetEntry, now: Instant) -> Option<u32> {
        if self.index.contains_key(entry.name.as_str()) {
            return None;
        }
        let name: Arc<str> = entry.name.into();
        let parent = self.parent(&name);
        let delay = if entry.urgent {
            Duration::ZERO
        } else {
            self.delay(entry.attempts).mul_f64(fastrand::f64())
        };
        let position = self.parents[parent as usize].members.len();
        let key = self.entries.insert(Entry {
            name: Arc::clone(&name),
            phase: Phase::Due(now + delay),
            inserted_at: entry.inserted_at,
            attempts: entry.attempts,
            parent,
            position: position as u32,
            seen: 0,
            failures: 0,
            rejections: 0,
            is_urgent: entry.urgent,
            is_absent: false,
            get_next: false,
        }) as u32;
        self.parents[parent as usize].members.push(key);
        self.index.insert(name, key);
        if let Some(done) = entry.done {
            self.deliver(key, Ok(done));
        }
        Some(key)
    }

    /// Removes an operation. Returns `None` if it is not in the set.
    pub(super) fn remove(&mut self, name: &str) -> Option<Entry> {
        let key = *self.index.get(name)?;
        if matches!(self.entries[key as usize].phase, Phase::Ready(_)) {
            self.ready.retain(|ready| *ready != key);
        } else {
            self.leave_parent(key);
        }
        Some(self.forget(key))
    }

    /// Takes the next result.
    pub(super) fn take(&mut self) -> Taken {
        let Some(key) = self.ready.pop_front() else {
            return if self.entries.is_empty() {
                Taken::Empty
            } else {
                Taken::Pending
            };
        };
        let entry = self.forget(key);
        match entry.phase {
            Phase::Ready(result) => Taken::Result(entry.name.to_string(), *result),
            _ => Taken::Pending, // unreachable: `ready` holds only such keys
        }
    }

    /// Takes the next result, or else any operation, with a status that explains why it cannot be watched. Returns
    /// `None` if it is watched.
    pub(super) fn take_unwatched(
        &mut self,
        status: Status,
    ) -> Option<(String, Result<Operation, Status>)> {
        if let Taken::Result(name, result) = self.take() {
            return Some((name, result));
        }
        if self.driver != Driver::None {
            return None; // another consumer has started it
        }
        let mut members = self.parents.iter().map(|(_, parent)| &parent.members);
        let key = *members.find_map(|members| members.last())?;
        self.leave_parent(key);
        let entry = self.forget(key);
        Some((entry.name.to_string(), Err(status)))
    }

    /// Returns the names of the operations that are not known to be done.
    pub(super) fn unfinished(&self) -> Vec<String> {
        let entries = self.entries.iter().map(|(_, entry)| entry);
        let entries = entries.filter(|entry| !matches!(entry.phase, Phase::Ready(_)));
        entries.map(|entry| entry.name.to_string()).collect()
    }

    pub(super) fn snapshot(&mut self) -> Vec<SetEntry> {
        let entries = self.entries.iter().map(|(_, entry)| entry.to_public());
        entries.collect()
    }

    /// Records the final result of an operation, for a consumer.
    pub(super) fn deliver(&mut self, key: u32, result: Result<Operation, Status>) {
        self.leave_parent(key);
        self.entries[key as usize].phase = Phase::Ready(Box::new(result));
        self.ready.push_back(key);
        self.unnotified += 1;
        self.counts.results += 1;
    }

    /// Sets the time of the next poll of an operation.
    pub(super) fn schedule(&mut self, key: u32, due: Instant) {
        self.entries[key as usize].phase = Phase::Due(due);
        self.push_timer(due, Target::Operation(key));
    }

    pub(super) fn schedule_parent(&mut self, key: u32, due: Instant) {
        self.parents[key as usize].due = Some(due);
        self.push_timer(due, Target::Parent(key));
    }

    /// Removes the first timer and returns its target if it is due. Otherwise returns when it will be due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Result<Target, Option<Instant>> {
        match self.next_due() {
            Some(due) if due <= now => self.timers.pop().ok_or(None),
            due => Err(due),
        }
    }

    /// Returns when the first timer is due.
    pub(super) fn next_due(&mut self) -> Option<Instant> {
        let (entries, parents) = (&self.entries, &self.parents);
        self.timers
            .next_due(|timer| is_current(timer, entries, parents))
    }

    /// Returns whether another result fits, in addition to those of the calls in flight.
    pub(super) fn has_room(&self) -> bool {
        self.ready.len() + self.in_flight < self.settings.max_untaken
    }

    /// Returns the delay between two polls of an operation that has been polled `attempts` times, without jitter.
    pub(super) fn delay(&self, attempts: u32) -> Duration {
        let backoff = self.settings.backoff;
        // The first poll has no fixed delay.
        let earlier = attempts.saturating_sub(1);
        backoff.delay(earlier, 0.5).max(backoff.initial)
    }

    /// Returns the delay until the next poll of an operation that has been polled `attempts` times.
    ///
    /// Operations that are inserted at the same time are polled almost in step, until their delay has reached its
    /// maximum: then one random delay spreads them.
    pub(super) fn next_delay(&self, attempts: u32) -> Duration {
        let maximum = self.settings.backoff.maximum;
        let is_spread = self.delay(attempts) >= maximum
            && attempts
                .checked_sub(1)
                .is_some_and(|earlier| self.delay(earlier) < maximum);
        let factor = if is_spread { fastrand::f64() } else { jitter() };
        self.delay(attempts).mul_f64(factor)
    }

    /// Returns whether the driver must be notified because of a change.
    pub(super) fn must_notify_driver(&mut self) -> bool {
        let must_notify = match self.driver {
            Driver::None | Driver::Running => false,
            Driver::Until(until) => self.next_due().is_some_and(|due| due < until),
            Driver::Idle => self.next_due().is_some(),
            Driver::Full => self.in_flight < self.settings.max_in_flight,
            Driver::NoRoom => self.has_room(),
        };
        if must_notify {
            self.driver = Driver::Running;
        }
        must_notify
    }

    pub(super) fn untaken(&self) -> usize {
        self.ready.len()
    }

    /// Removes a parent without operations, unless it is being listed, or the server rejects to list it. The latter is
    /// remembered for some parents.
    pub(super) fn remove_parent_if_unused(&mut self, key: u32) {
        let parent = &mut self.parents[key as usize];
        let is_used = match &parent.mode {
            Mode::Get { list_from } => {
                let is_rejected = *list_from == usize::MAX && parent.due.is_some();
                key == 0 || is_rejected && self.parent_index.len() <= MAX_UNUSED_PARENTS
            }
            Mode::List(listing) => listing.sweep.is_some(),
        };
        if parent.members.is_empty() && !is_used {
            let parent = self.parents.remove(key as usize);
            self.parent_index.remove(&parent.name);
        }
    }

    /// Returns the key of the parent of an operation.
    fn parent(&mut self, name: &str) -> u32 {
        let Some(parent) = parent_of(name) else {
            return 0;
        };
        if let Some(key) = self.parent_index.get(parent) {
            return *key;
        }
        let name: Arc<str> = parent.into();
        let key = self.parents.insert(Parent::new(Arc::clone(&name), 2)) as u32;
        self.parent_index.insert(name, key);
        key
    }

    fn leave_parent(&mut self, key: u32) {
        let entry = &self.entries[key as usize];
        let (parent, position) = (entry.parent, entry.position);
        let members = &mut self.parents[parent as usize].members;
        members.swap_remove(position as usize);
        if let Some(moved) = members.get(position as usize) {
            self.entries[*moved as usize].position = position;
        }
        self.remove_parent_if_unused(parent);
    }

    fn forget(&mut self, key: u32) -> Entry {
        let entry = self.entries.remove(key as usize);
        self.index.remove(&entry.name);
        entry
    }

    fn push_timer(&mut self, due: Instant, target: Target) {
        self.timers.push(due, target);
        let (entries, parents) = (&self.entries, &self.parents);
        let current = entries.len() + parents.len();
        self.timers
            .compact(current, |timer| is_current(timer, entries, parents));
    }
}

/// Returns whether an operation or a parent still has this timer.
fn is_current(timer: &Timer, entries: &Slab<Entry>, parents: &Slab<Parent>) -> bool {
    match timer.target {
        Target::Operation(key) => {
            let entry = entries.get(key as usize);
            entry.is_some_and(|entry| matches!(entry.phase, Phase::Due(due) if due == timer.due))
        }
        Target::Parent(key) => {
            let parent = parents.get(key as usize);
            parent.is_some_and(|parent| parent.due == Some(timer.due))
        }
    }
}

/// The number of parents above which those without operations are removed.
const MAX_UNUSED_PARENTS: usize = 10_000;

impl Entry {
    fn to_public(&self) -> SetEntry {
        let done = match &self.phase {
            Phase::Ready(result) => result.as_ref().as_ref().ok().cloned(),
            _ => None,
        };
        SetEntry {
            name: self.name.to_string(),
            inserted_at: self.inserted_at,
            attempts: self.attempts,
            urgent: self.is_urgent,
            done,
        }
    }
}

/// Returns a random factor for a delay, so that sets do not poll in step. It never makes a delay longer.
pub(super) fn jitter() -> f64 {
    MIN_JITTER + (1.0 - MIN_JITTER) * fastrand::f64()
}

pub(super) const MIN_JITTER: f64 = 0.8;

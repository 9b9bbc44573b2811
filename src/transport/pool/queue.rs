//! The queue of calls that wait for a stream.

use std::{collections::BTreeMap, mem, time::Duration};

use tokio::time::Instant;

use crate::transport::call::Call;

/// The calls that wait for a stream, by the number of their arrival.
///
/// The oldest call is taken first. Under overload that would give each stream to the call that is
/// about to expire, so that none succeeds. So once the queue is [congested](Self::is_congested), the
/// newest is taken first, until the queue has been empty. Of ten calls one is still the oldest, if it
/// has much time left: a call without a deadline is not starved.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Calls that were taken and put back. They are taken first.
    returned: BTreeMap<u64, Call>,
    waiting: BTreeMap<u64, Call>,
    /// The number of the next call.
    next: u64,
    congested: bool,
    /// The calls taken since the oldest was taken last.
    taken: u32,
    /// When expired calls were removed last.
    swept: Option<Instant>,
    bound: usize,
}

impl Queue {
    pub(crate) fn new(bound: usize) -> Self {
        Self {
            returned: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next: 0,
            congested: false,
            taken: 0,
            swept: None,
            bound,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.returned.len() + self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn bound(&self) -> usize {
        self.bound
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.bound
    }

    /// Adds a call; returns its number.
    pub(crate) fn push(&mut self, mut call: Call) -> u64 {
        let number = self.next;
        self.next += 1;
        call.number = number;
        self.waiting.insert(number, call);
        number
    }

    /// Puts back a call that was taken and not sent, or not processed.
    pub(crate) fn put_back(&mut self, call: Call) {
        self.returned.insert(call.number, call);
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        self.waiting.contains_key(&number) || self.returned.contains_key(&number)
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<Call> {
        let removed = self.waiting.remove(&number);
        let removed = removed.or_else(|| self.returned.remove(&number));
        self.note_emptiness();
        removed
    }

    /// Removes the calls whose deadline has passed, but not more often than every 10 ms. Callers that
    /// are polled remove theirs themselves.
    pub(crate) fn remove_expired(&mut self, now: Instant) -> Vec<Call> {
        const INTERVAL: Duration = Duration::from_millis(10);
        if self.swept.is_some_and(|swept| now < swept + INTERVAL) {
            return Vec::new();
        }
        self.swept = Some(now);
        let mut expired = Vec::new();
        for calls in [&mut self.waiting, &mut self.returned] {
            let late = calls.iter().filter(|(_, call)| call.has_expired(now));
            let late: Vec<u64> = late.map(|(number, _)| *number).collect();
            expired.extend(late.iter().filter_map(|number| calls.remove(number)));
        }
        self.note_emptiness();
        expired
    }

    /// Takes the next call for a connection. With `any`, also one that should avoid it.
    pub(crate) fn pop(&mut self, connection: u64, any: bool, now: Instant) -> Option<Call> {
        let mut returned = self.returned.iter();
        let next = returned.find(|(_, call)| any || call.avoid != Some(connection));
        if let Some(number) = next.map(|(number, _)| *number) {
            return self.returned.remove(&number);
        }
        self.congested |= self.is_congested(now);
        let oldest = self.waiting.first_key_value();
        let has_time = oldest.is_some_and(|(_, call)| has_time(call, now));
        let oldest = !self.congested || (self.taken >= 9 && has_time);
        self.taken = if oldest { 0 } else { self.taken + 1 };
        let taken = match oldest {
            true => self.waiting.pop_first(),
            false => self.waiting.pop_last(),
        };
        self.note_emptiness();
        taken.map(|(_, call)| call)
    }

    /// Removes all calls.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Call> + use<> {
        self.congested = false;
        let calls = [&mut self.returned, &mut self.waiting].map(mem::take);
        calls.into_iter().flat_map(BTreeMap::into_values)
    }

    /// Whether the oldest call has waited for a second, or for a quarter of its time.
    fn is_congested(&self, now: Instant) -> bool {
        let oldest = self.waiting.first_key_value();
        oldest.is_some_and(|(_, call)| {
            let quarter = call.deadline.map_or(CONGESTED, |d| d.timeout() / 4);
            now.saturating_duration_since(call.queued) >= quarter.min(CONGESTED)
        })
    }

    fn note_emptiness(&mut self) {
        self.congested &= !self.waiting.is_empty();
    }
}

/// How long the oldest call waits at most before the newest is taken first.
const CONGESTED: Duration = Duration::from_secs(1);

/// Whether more than half of the call's time is left.
fn has_time(call: &Call, now: Instant) -> bool {
    call.deadline
        .is_none_or(|deadline| now + deadline.timeout() / 2 < deadline.at())
}

//! The queue of calls that wait for a stream.

use std::{collections::VecDeque, mem, time::Duration};

use tokio::time::Instant;

use crate::transport::call::PendingCall;

/// The calls that wait for a stream, in the order of their arrival.
///
/// The oldest call is taken first. Under overload that would give each stream to the call that is
/// about to expire, so that none succeeds. So once the queue is [congested](Self::is_congested), the
/// newest is taken first, until the queue has been empty. One of ten calls is still the oldest, if
/// more than half of its time is left: a call without a deadline is not starved.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Calls that were taken and put back. They are taken first, and count beyond the bound.
    returned: VecDeque<Box<PendingCall>>,
    /// Calls by their numbers. `None` is a call that was removed; the first and the last are calls.
    waiting: VecDeque<(u64, Option<Box<PendingCall>>)>,
    /// The number of calls in `waiting`.
    count: usize,
    /// The number of the next call.
    next: u64,
    congested: bool,
    /// The number of calls taken since the oldest was taken last.
    newest_taken: u32,
    /// When expired calls were removed last.
    swept_at: Option<Instant>,
    bound: usize,
}

impl Queue {
    pub(crate) fn new(bound: usize) -> Self {
        Self {
            returned: VecDeque::new(),
            waiting: VecDeque::new(),
            count: 0,
            next: 0,
            congested: false,
            newest_taken: 0,
            swept_at: None,
            bound,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.returned.len() + self.count
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

    /// Returns how long the oldest queued call has waited; zero if no calls are queued.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        let oldest = self.oldest().into_iter();
        let oldest = oldest.chain(self.returned.front().map(|call| &**call));
        let queued_at = oldest.map(|call| call.queued_at).min();
        queued_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    /// Adds a call, and returns its number; or returns the call if the queue is full.
    pub(crate) fn push(&mut self, mut call: Box<PendingCall>) -> Result<u64, Box<PendingCall>> {
        if self.is_full() {
            return Err(call);
        }
        let number = self.next;
        self.next += 1;
        call.number = number;
        self.waiting.push_back((number, Some(call)));
        self.count += 1;
        Ok(number)
    }

    /// Puts back a call that was taken and not sent, or not processed.
    pub(crate) fn put_back(&mut self, call: Box<PendingCall>) {
        self.returned.push_back(call);
    }

    /// Returns since when a call has been queued.
    pub(crate) fn queued_at(&self, number: u64) -> Option<Instant> {
        let waiting = self.position(number);
        let waiting = waiting.and_then(|index| self.waiting[index].1.as_ref());
        let mut returned = self.returned.iter();
        let call = waiting.or_else(|| returned.find(|call| call.number == number));
        call.map(|call| call.queued_at)
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<Box<PendingCall>> {
        let index = self.position(number);
        if let Some(call) = index.and_then(|index| self.waiting[index].1.take()) {
            self.note_removed(1);
            return Some(call);
        }
        let mut returned = self.returned.iter();
        let index = returned.position(|call| call.number == number)?;
        self.returned.remove(index)
    }

    /// Removes the calls whose deadline has passed, at most every 10 ms. Callers that are polled remove
    /// theirs themselves.
    pub(crate) fn remove_expired(&mut self, now: Instant) -> Vec<Box<PendingCall>> {
        const INTERVAL: Duration = Duration::from_millis(10);
        if self.swept_at.is_some_and(|swept| now < swept + INTERVAL) {
            return Vec::new();
        }
        self.swept_at = Some(now);
        let waiting = self.waiting.iter_mut();
        let expired = waiting.filter_map(|(_, call)| call.take_if(|call| call.has_expired(now)));
        let mut expired: Vec<Box<PendingCall>> = expired.collect();
        self.note_removed(expired.len());
        let (returned, kept) = mem::take(&mut self.returned)
            .into_iter()
            .partition(|call| call.has_expired(now));
        self.returned = kept;
        expired.extend::<VecDeque<_>>(returned);
        expired
    }

    /// Takes the next call for a connection. With `any`, also one that should avoid it.
    pub(crate) fn pop(
        &mut self,
        connection: u64,
        any: bool,
        now: Instant,
    ) -> Option<Box<PendingCall>> {
        let mut returned = self.returned.iter();
        if let Some(index) = returned.position(|call| any || call.avoid != Some(connection)) {
            return self.returned.remove(index);
        }
        self.congested |= self.is_congested(now);
        let oldest = self.oldest();
        let has_time = oldest.is_some_and(|call| has_time(call, now));
        let (_, call) = if !self.congested || (self.newest_taken >= 9 && has_time) {
            self.newest_taken = 0;
            self.waiting.pop_front()?
        } else {
            self.newest_taken += 1;
            self.waiting.pop_back()?
        };
        self.note_removed(1);
        call
    }

    /// Removes all calls.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Box<PendingCall>> + use<> {
        self.count = 0;
        self.congested = false;
        let waiting = mem::take(&mut self.waiting).into_iter();
        let waiting = waiting.filter_map(|(_, call)| call);
        mem::take(&mut self.returned).into_iter().chain(waiting)
    }

    fn position(&self, number: u64) -> Option<usize> {
        self.waiting
            .binary_search_by_key(&number, |(number, _)| *number)
            .ok()
    }

    fn oldest(&self) -> Option<&PendingCall> {
        self.waiting.front()?.1.as_deref()
    }

    /// Restores the invariants after calls were removed from `waiting`.
    fn note_removed(&mut self, calls: usize) {
        self.count -= calls;
        self.congested &= self.count > 0;
        while self.waiting.front().is_some_and(|(_, call)| call.is_none()) {
            self.waiting.pop_front();
        }
        while self.waiting.back().is_some_and(|(_, call)| call.is_none()) {
            self.waiting.pop_back();
        }
        // In linear time, but only after as many were removed.
        if self.waiting.len() > 2 * self.count + 16 {
            self.waiting.retain(|(_, call)| call.is_some());
        }
    }

    /// Whether the oldest call has waited for a second, or for a quarter of its time.
    fn is_congested(&self, now: Instant) -> bool {
        self.oldest().is_some_and(|call| {
            let quarter = call.deadline.map_or(CONGESTED, |d| d.timeout() / 4);
            now.saturating_duration_since(call.queued_at) >= quarter.min(CONGESTED)
        })
    }
}

/// How long the oldest call waits at most before the newest is taken first.
const CONGESTED: Duration = Duration::from_secs(1);

/// Whether more than half of the call's time is left.
fn has_time(call: &PendingCall, now: Instant) -> bool {
    call.deadline
        .is_none_or(|deadline| now + deadline.timeout() / 2 < deadline.at())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;
    use tokio::sync::oneshot;

    use super::*;
    use crate::{deadline::Deadline, transport::call::RequestHead};

    const SECOND: Duration = Duration::from_secs(1);

    fn call(timeout: Option<Duration>) -> Box<PendingCall> {
        let queued_at = Instant::now();
        Box::new(PendingCall {
            head: RequestHead::Any(Request::new(())),
            body: Bytes::new(),
            unary: None,
            deadline: timeout.and_then(|timeout| Deadline::after(timeout, queued_at)),
            queued_at,
            number: 0,
            refused: false,
            avoid: None,
            reply: oneshot::channel().0,
        })
    }

    fn push(queue: &mut Queue, timeout: Option<Duration>) -> u64 {
        queue.push(call(timeout)).expect("the queue is not full")
    }

    fn pop(queue: &mut Queue) -> Option<u64> {
        queue.pop(1, false, Instant::now()).map(|call| call.number)
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_call_is_taken_first() {
        let mut queue = Queue::new(10);
        for number in 0..5 {
            assert_eq!(push(&mut queue, Some(SECOND)), number);
        }
        tokio::time::advance(SECOND / 5).await;
        queue.remove(1).expect("it is there");
        assert!(queue.remove(1).is_none());
        assert_eq!(queue.len(), 4);
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue)).collect();
        assert_eq!(order, [0, 2, 3, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_congested_queue_gives_the_newest_until_it_has_been_empty() {
        let mut queue = Queue::new(10);
        for _ in 0..4 {
            push(&mut queue, Some(SECOND));
        }
        tokio::time::advance(SECOND / 4).await; // a quarter of its time
        assert_eq!(pop(&mut queue), Some(3));
        push(&mut queue, Some(SECOND));
        assert_eq!(pop(&mut queue), Some(4));
        let rest: Vec<_> = std::iter::from_fn(|| pop(&mut queue)).collect();
        assert_eq!(rest, [2, 1, 0]);
        push(&mut queue, Some(SECOND));
        push(&mut queue, Some(SECOND));
        assert_eq!(pop(&mut queue), Some(5));
    }

    #[tokio::test(start_paused = true)]
    async fn of_ten_calls_one_is_the_oldest_if_it_has_time() {
        let mut queue = Queue::new(100);
        push(&mut queue, None);
        push(&mut queue, Some(SECOND));
        tokio::time::advance(SECOND).await;
        for _ in 0..30 {
            push(&mut queue, Some(SECOND));
        }
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue)).take(20).collect();
        assert_eq!(order[9], 0, "without a deadline");
        assert_eq!(order[19], 13, "and not the one that has expired: {order:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_put_back_is_taken_first_but_not_by_the_connection_that_failed_it() {
        let mut queue = Queue::new(10);
        push(&mut queue, None);
        push(&mut queue, None);
        let now = Instant::now();
        let mut failed = queue.pop(1, false, now).expect("it is there");
        failed.avoid = Some(1);
        queue.put_back(failed);
        assert!(queue.queued_at(0).is_some());
        assert_eq!(queue.pop(1, false, now).map(|call| call.number), Some(1));
        assert!(queue.pop(1, false, now).is_none());
        assert_eq!(queue.pop(1, true, now).map(|call| call.number), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_were_removed_take_no_room() {
        let mut queue = Queue::new(1_000_000);
        push(&mut queue, None); // it stays
        let mut last = push(&mut queue, None);
        for _ in 0..100_000 {
            let next = push(&mut queue, None);
            queue.remove(last).expect("it is there");
            last = next;
        }
        assert_eq!(queue.len(), 2);
        assert!(queue.waiting.len() < 50, "{}", queue.waiting.len());
    }

    #[tokio::test(start_paused = true)]
    async fn expired_calls_are_removed_from_a_full_queue() {
        let mut queue = Queue::new(3);
        push(&mut queue, Some(SECOND));
        push(&mut queue, Some(3 * SECOND));
        push(&mut queue, None);
        assert!(queue.push(call(None)).is_err());
        tokio::time::advance(2 * SECOND).await;
        let mut returned = call(Some(SECOND));
        returned.deadline = Deadline::after(Duration::ZERO, Instant::now());
        queue.put_back(returned);
        let expired = queue.remove_expired(Instant::now());
        assert_eq!(expired.len(), 2);
        assert_eq!(queue.len(), 2);
    }
}

//! One attempt of a call: its place among the others, and its deadline.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};

use crate::deadline::Deadline;

/// One attempt of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    /// The number of attempts before this one.
    pub(crate) previous: usize,
    pub(crate) begun: Instant,
    pub(crate) call_deadline: Option<Deadline>,
    /// That of the call, or that of the attempt if it is earlier.
    pub(crate) deadline: Option<Deadline>,
    timeout: Option<Duration>,
    /// Whether the attempt was queued before, and its credentials expired.
    pub(crate) is_resent: bool,
}

impl Attempt {
    pub(crate) fn first(begun: Instant, deadline: Option<Deadline>) -> Self {
        Self {
            previous: 0,
            begun,
            call_deadline: deadline,
            deadline,
            timeout: None,
            is_resent: false,
        }
    }

    /// Returns an attempt of the same call that begins at this instant.
    pub(super) fn again(&self, previous: usize, begun: Instant, timeout: Option<Duration>) -> Self {
        let mut attempt = Self {
            previous,
            begun,
            timeout,
            ..*self
        };
        attempt.extend(Duration::ZERO);
        attempt
    }

    /// Extends the attempt by the time for which it waited for a token. Its call is not extended.
    pub(crate) fn extend(&mut self, waited: Duration) {
        self.timeout = self.timeout.map(|timeout| timeout.saturating_add(waited));
        let own = self.timeout;
        let own = own.and_then(|timeout| Deadline::after(timeout, self.begun));
        let of_call = self.call_deadline;
        let is_earlier = |own: &Deadline| of_call.is_none_or(|of_call| own.at() < of_call.at());
        self.deadline = own.filter(is_earlier).or(of_call);
    }

    /// Returns whether the attempt's own deadline is earlier than that of the call.
    pub(crate) fn has_own_deadline(&self) -> bool {
        let at = |deadline: Option<Deadline>| deadline.map(|deadline| deadline.at());
        at(self.deadline) != at(self.call_deadline)
    }

    pub(crate) fn without_own_deadline(&self) -> Self {
        Self {
            deadline: self.call_deadline,
            ..*self
        }
    }

    /// Returns whether the attempt's own deadline ended it, and not that of its call.
    pub(super) fn has_timed_out(&self, status: &Status) -> bool {
        let has_passed = |deadline: Deadline| deadline.has_passed_for_caller(Instant::now());
        self.has_own_deadline()
            && status.code() == Code::DeadlineExceeded
            && self.deadline.is_some_and(has_passed)
    }
}

//! Report on the cancellation of one operation.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tokio::time::Instant;
use tonic::Status;

use super::outcome::CancelOutcome;
use crate::status::{CallStatusExt as _, Delivery, with_attempts, with_delivery};

/// The report on the cancellation of one operation, yielded by [`CancelOperations`](super::CancelOperations).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CancelReport {
    /// The name of the operation.
    pub name: String,
    /// The result of the last attempt: `Ok` if the server accepted the request, otherwise the status, as
    /// [`cancel_operation`](crate::OperationsClient::cancel_operation) returns it.
    ///
    /// [`CallStatusExt::origin`](crate::CallStatusExt::origin) returns where the status came from. If there was no
    /// attempt, the status contains the reason.
    pub result: Result<(), Status>,
    /// The number of attempts, including the first. 0 if the deadline passed before the first attempt, or if the
    /// request was rejected without one, for example because the name is empty.
    pub attempts: usize,
    /// The time at which the first attempt started. `None` if there was none.
    pub first_attempt_at: Option<SystemTime>,
    /// The time at which the last attempt started. `None` if there was none.
    pub last_attempt_at: Option<SystemTime>,
    /// The time at which the last attempt ended. `None` if there was none, or if its runtime was shut down.
    pub ended_at: Option<SystemTime>,
    /// The outcome of the operation, if [`outcomes`](super::CancelOperations::outcomes) is set and the server accepted
    /// the request. Otherwise `None`.
    ///
    /// If the operation is not known to be done when the timeout or the deadline passes, the outcome is
    /// [`Unknown`](crate::CancelOutcome::Unknown) with the status `DEADLINE_EXCEEDED`.
    pub outcome: Option<CancelOutcome>,
    /// Whether an attempt before the last one may have cancelled the operation, although the result is an error.
    ///
    /// That attempt may have reached the server, and failed for a reason other than the quota. The result may then be
    /// `NOT_FOUND` or `FAILED_PRECONDITION` because the operation is deleted or done. Call
    /// [`get_operation`](crate::OperationsClient::get_operation) to read the state of the operation.
    pub earlier_attempt_may_have_succeeded: bool,
}

impl CancelReport {
    /// Returns whether a server may have processed any of the attempts.
    ///
    /// [`Answered`](Delivery::Answered) means that the server responded to the last attempt. If the response is an
    /// error, check [`earlier_attempt_may_have_succeeded`](Self::earlier_attempt_may_have_succeeded) for the earlier
    /// attempts.
    pub fn delivery(&self) -> Delivery {
        match &self.result {
            Ok(()) => Delivery::Answered,
            Err(status) => status.delivery().unwrap_or(Delivery::MaybeSent),
        }
    }
}

/// The attempts to cancel one operation. They are shared by the stream and the task, so that the stream can report
/// them even if the runtime of the task was shut down.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempts(Arc<Mutex<Counts>>);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    attempts: usize,
    first: Option<(SystemTime, Instant)>,
    last: Option<SystemTime>,
    ended: Option<(SystemTime, Instant)>,
    /// Whether the last attempt may have cancelled the operation, although it failed.
    last_may_have_succeeded: bool,
    /// Whether an attempt before the last one may have cancelled the operation.
    earlier_may_have_succeeded: bool,
}

impl Attempts {
    /// Counts an attempt. Returns the counts before it.
    pub(super) fn started(&self) -> Counts {
        let now = SystemTime::now();
        let mut counts = self.lock();
        let before = *counts;
        counts.attempts += 1;
        counts.first.get_or_insert_with(|| (now, Instant::now()));
        counts.last = Some(now);
        counts.ended = None;
        counts.earlier_may_have_succeeded |= counts.last_may_have_succeeded;
        counts.last_may_have_succeeded = false;
        before
    }

    pub(super) fn ended(&self) {
        self.lock().ended = Some((SystemTime::now(), Instant::now()));
    }

    /// Restores the counts before an attempt that was not made.
    pub(super) fn restore(&self, before: Counts) {
        *self.lock() = before;
    }

    /// Records a failed attempt that will be retried. Returns the number of attempts so far.
    pub(super) fn failed(&self, may_have_succeeded: bool) -> usize {
        let mut counts = self.lock();
        counts.last_may_have_succeeded = may_have_succeeded;
        counts.attempts
    }

    pub(super) fn report(&self, name: String, result: Result<(), Status>) -> CancelReport {
        let counts = self.lock();
        let result = result.map_err(|status| match counts.first {
            Some((_, first)) => {
                let ended = counts.ended.map_or_else(Instant::now, |(_, ended)| ended);
                with_attempts(status, counts.attempts, ended - first)
            }
            None => with_delivery(status, Delivery::NotSent),
        });
        CancelReport {
            name,
            attempts: counts.attempts,
            first_attempt_at: counts.first.map(|(at, _)| at),
            last_attempt_at: counts.last,
            ended_at: counts.ended.map(|(at, _)| at),
            outcome: None,
            earlier_attempt_may_have_succeeded: result.is_err()
                && counts.earlier_may_have_succeeded,
            result,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

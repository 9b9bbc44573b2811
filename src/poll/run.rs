//! Poll loop: starts each poll when it is due, and records its result.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tonic::{Code, Status};

use super::{
    PollPolicy, Poller,
    call::Target,
    classify::{cannot_wait, has_untyped_response, is_specific_to_wait},
    observed::ObservedWait,
};
use crate::{
    client::{GrpcStack, OperationsClient},
    operation::Operation,
    recorder::PollMethod,
    status::{CallStatusExt as _, Delivery, Origin, ServerDelay, caused, local, with_delivery},
    task::Task,
    trace::in_current_span,
};

impl<S: GrpcStack + Sync> Poller<S> {
    /// Polls for the next state of the operation. Once it is done, returns that state again.
    ///
    /// `every_state` is false if the caller is only interested in the last state.
    pub(super) fn poll_state(
        &mut self,
        cx: &mut Context<'_>,
        every_state: bool,
    ) -> Poll<Result<Operation, Status>> {
        if let Some(done) = self.latest.as_ref().filter(|latest| latest.done) {
            return Poll::Ready(Ok(done.clone()));
        }
        let state = loop {
            let mut poll = self.poll.take();
            let polled = Task::poll_in(&mut poll, cx, || self.start(every_state));
            self.poll = poll;
            let state = ready!(polled).and_then(|polled| self.record(polled));
            if let Some(state) = state.transpose() {
                break state;
            }
        };
        if !matches!(&state, Ok(state) if !state.done)
            && let Some(observed) = self.observed.take()
        {
            observed.end(state.as_ref());
        }
        Poll::Ready(state)
    }

    /// Starts the next poll, in a task that first waits until it is due.
    fn start(&mut self, every_state: bool) -> Result<Task<Option<Polled>>, Status> {
        let now = Instant::now();
        let begun = *self.begun.get_or_insert(now);
        let deadline = self.policy.deadline(begun);
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(self.timed_out());
        }
        let due = *self.due.get_or_insert(now);
        let once = Once {
            client: self.client.clone().for_polls(),
            target: self.target.clone(),
            policy: self.policy,
            deadline,
            delay: self.policy.delay(self.polls),
            // The first of all states is returned at once.
            may_wait: !(self.get_next || every_state && !self.has_state),
            every_state,
        };
        let observed = self.observed.get_or_insert_with(|| {
            let (client, name) = (&self.client, &self.target.name);
            ObservedWait::start(client, name)
        });
        let call = observed.span().in_scope(|| in_current_span(once.run()));
        Task::spawn(async move {
            let until = deadline.map_or(due, |deadline| due.min(deadline));
            if until > now {
                sleep_until(until).await;
            }
            let has_passed = |deadline: Instant| deadline <= Instant::now();
            if until < due || deadline.is_some_and(has_passed) {
                return None;
            }
            Some(call.await)
        })
    }

    /// Records the result of a poll, and schedules the next one. Returns the state that the caller waits for, if
    /// there is one.
    fn record(&mut self, polled: Option<Polled>) -> Result<Option<Operation>, Status> {
        let Some(polled) = polled else {
            return Ok(None); // the total timeout has passed
        };
        let Polled { result, method, .. } = polled;
        if let Some(observed) = &mut self.observed {
            observed.polled(method, &result);
        }
        let delivery = match &result {
            Ok(_) => Delivery::Answered,
            Err(status) => status.delivery().unwrap_or(Delivery::MaybeSent),
        };
        self.delivery = self.delivery.max(delivery);
        let by_wait = method == PollMethod::Wait;
        if by_wait && result.as_ref().is_err_and(cannot_wait) {
            self.client.wait_is_unimplemented();
            self.due = Some(polled.ended);
            return Ok(None);
        }
        if by_wait && result.as_ref().is_ok_and(has_untyped_response) {
            self.failure = None;
            self.get_next = true;
            self.due = Some(polled.ended);
            return Ok(None);
        }
        self.polls = self.polls.saturating_add(1);
        match result {
            Ok(state) => {
                self.failures = 0;
                self.failure = None;
                self.get_next = false;
                self.due = Some(polled.started + polled.delay);
                self.has_state = true;
                self.latest = Some(state.clone());
                Ok(Some(state))
            }
            Err(status) => self.record_failure(status, by_wait, polled.ended, polled.delay),
        }
    }

    /// Schedules the poll after one that failed. Returns the status if polling ends.
    fn record_failure(
        &mut self,
        status: Status,
        by_wait: bool,
        ended: Instant,
        delay: Duration,
    ) -> Result<Option<Operation>, Status> {
        let is_transient = self.policy.tolerates(&status);
        let wait_alone_may_fail = by_wait && !is_transient && is_specific_to_wait(&status);
        let delay = if wait_alone_may_fail {
            // Random, because one event, such as a closed connection, may end many WaitOperation calls at once.
            self.policy.initial().mul_f64(fastrand::f64())
        } else {
            delay
        };
        let delay = if by_wait {
            self.in_time(delay, ended)
        } else {
            delay
        };
        self.due = Some(ended + ServerDelay::at_least(delay, &status));
        self.failure = Some(status.clone());
        if is_transient {
            self.failures = self.failures.saturating_add(1);
        }
        if wait_alone_may_fail || is_transient && self.failures <= self.policy.max_failures {
            self.get_next = by_wait;
            return Ok(None);
        }
        self.failures = 0;
        self.get_next = false;
        Err(status)
    }

    /// Reduces the delay before the GetOperation that follows a failed WaitOperation, so that it ends before the
    /// deadline.
    fn in_time(&self, delay: Duration, now: Instant) -> Duration {
        let deadline = self.begun.and_then(|begun| self.policy.deadline(begun));
        let left = deadline.map(|at| at.saturating_duration_since(now));
        left.map_or(delay, |left| delay.min(left / 4))
    }

    /// Returns the status for a total timeout that has passed.
    fn timed_out(&self) -> Status {
        let (name, timeout) = (self.name(), self.policy.limit().unwrap_or_default());
        let message = format!("operation {name:?} was not done within {timeout:?}");
        let Some(failure) = self.failure.clone() else {
            return with_delivery(local(Code::DeadlineExceeded, message), self.delivery);
        };
        let (code, text) = (failure.code_name(), failure.message());
        let message = format!("{message}; the last poll failed: {code}: {text}");
        let (code, origin) = (Code::DeadlineExceeded, Origin::Client);
        caused(code, message, origin, self.delivery, failure)
    }
}

/// One poll.
struct Once<S> {
    client: OperationsClient<S>,
    target: Target,
    policy: PollPolicy,
    /// The deadline set by the total timeout.
    deadline: Option<Instant>,
    /// The delay between the start of this poll and the next one.
    delay: Duration,
    may_wait: bool,
    every_state: bool,
}

/// The result of a poll.
pub(super) struct Polled {
    result: Result<Operation, Status>,
    method: PollMethod,
    started: Instant,
    ended: Instant,
    delay: Duration,
}

impl<S: GrpcStack + Sync> Once<S> {
    async fn run(self) -> Polled {
        let started = Instant::now();
        let left = self
            .deadline
            .map(|deadline| deadline.saturating_duration_since(started));
        let timeout = self.wait_timeout(left);
        let permit = timeout.and_then(|timeout| Some((timeout, self.client.wait_permit()?)));
        let (method, result) = match &permit {
            Some((timeout, _)) => {
                let result = self.target.wait(&self.client, *timeout, left).await;
                (PollMethod::Wait, result)
            }
            None => (PollMethod::Get, self.target.get(&self.client, left).await),
        };
        Polled {
            result,
            method,
            started,
            ended: Instant::now(),
            delay: self.delay,
        }
    }

    /// Returns for how long WaitOperation makes the server wait; `None` for a GetOperation.
    fn wait_timeout(&self, left: Option<Duration>) -> Option<Duration> {
        let timeout = self.policy.wait().filter(|_| self.may_wait)?;
        let timeout = match left {
            Some(left) if left <= self.policy.min_wait() => return None,
            // The last state must arrive before the deadline.
            Some(left) => timeout.min(left.mul_f64(0.8)),
            None => timeout,
        };
        Some(if self.every_state {
            timeout.min(self.delay)
        } else {
            timeout.mul_f64(0.8 + 0.2 * fastrand::f64())
        })
    }
}

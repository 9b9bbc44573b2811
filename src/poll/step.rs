//! What a poller does next, and what it makes of a look.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tonic::Status;

use super::{
    Poller,
    failure::{cannot_wait, has_untyped_response, is_transient, may_be_wait_alone, time_is_up},
    look::{Look, Seen},
    observed::ObservedWait,
};
use crate::{
    client::GrpcStack,
    operation::Operation,
    recorder::PollMethod,
    status::{CallStatusExt as _, Delivery},
    task::Task,
    trace::in_current_span,
};

impl<S: GrpcStack + Sync> Poller<S> {
    /// The next state of the operation; once it is done, that one again.
    pub(super) fn poll_state(
        &mut self,
        cx: &mut Context<'_>,
        watched: bool,
    ) -> Poll<Result<Operation, Status>> {
        if let Some(done) = self.latest.as_ref().filter(|latest| latest.done) {
            return Poll::Ready(Ok(done.clone()));
        }
        let state = ready!(self.poll_running(cx, watched));
        match &state {
            Ok(state) if !state.done => {}
            ended => {
                if let Some(observed) = self.observed.take() {
                    observed.end(ended.as_ref());
                }
            }
        }
        Poll::Ready(state)
    }

    /// Polls for the next state of an operation that is not done yet.
    fn poll_running(
        &mut self,
        cx: &mut Context<'_>,
        watched: bool,
    ) -> Poll<Result<Operation, Status>> {
        loop {
            let mut step = self.step.take();
            let ended = Task::poll_in(&mut step, cx, || self.next_step(watched));
            self.step = step;
            let Some(seen) = ready!(ended)? else {
                continue; // the pause is over
            };
            if let Some(state) = self.note(seen)? {
                return Poll::Ready(Ok(state));
            }
        }
    }

    /// Begins the pause before the next look, or once that is over, the look: so that none is made
    /// while nobody polls.
    fn next_step(&mut self, watched: bool) -> Result<Task<Option<Seen>>, Status> {
        let now = Instant::now();
        let begun = *self.begun.get_or_insert(now);
        let total = self.policy.limit();
        // An end so far off that no clock reaches it is no limit.
        let limit = total.and_then(|total| begun.checked_add(total));
        let left = limit.map_or(Duration::MAX, |limit| limit.saturating_duration_since(now));
        if left.is_zero() {
            let (total, failure) = (total.unwrap_or_default(), self.failure.clone());
            return Err(time_is_up(self.name(), total, failure, self.delivery()));
        }
        let rest = self.due.map_or(Duration::ZERO, |(since, pause)| {
            pause.saturating_sub(now.saturating_duration_since(since))
        });
        if !rest.is_zero() {
            let pause = rest.min(left);
            // In no span: that of a caller which has gone would stay open.
            return Task::spawn(async move {
                sleep(pause).await;
                None
            });
        }
        let backoff = self.policy.backoff();
        let look = Look {
            client: self.client.clone(),
            target: self.target.clone(),
            initial: backoff.initial,
            delay: backoff.delay(self.looks, fastrand::f64()),
            // Who watches wants to see at once how it is.
            slice: match self.get_next || watched && self.looks == 0 {
                true => None,
                false => self.policy.slice(),
            },
            watched,
            limit,
        };
        let observed = self.observed.get_or_insert_with(|| {
            let (client, name) = (&self.client, &self.target.name);
            ObservedWait::start(client, name)
        });
        let span = observed.span();
        span.in_scope(|| Task::spawn(in_current_span(async { Some(look.run().await) })))
    }

    /// Returns whether a server may have processed any of the polls.
    fn delivery(&self) -> Delivery {
        let failure = self.failure.as_ref().and_then(|failure| failure.delivery());
        match failure {
            _ if self.latest.is_some() => Delivery::Answered,
            Some(delivery) if self.looks == 1 => delivery,
            // Earlier failures are not kept.
            failure => failure.map_or(Delivery::MaybeSent, |it| it.max(Delivery::MaybeSent)),
        }
    }

    /// Takes note of what a look brought: a state, nothing yet, or the end of the poll.
    fn note(&mut self, seen: Seen) -> Result<Option<Operation>, Status> {
        let Seen {
            result,
            by_wait,
            next,
        } = seen;
        if let Some(observed) = &mut self.observed {
            let method = if by_wait {
                PollMethod::Wait
            } else {
                PollMethod::Get
            };
            observed.polled(method, &result);
        }
        if by_wait && result.as_ref().is_err_and(cannot_wait) {
            self.client.wait_is_unimplemented();
            return Ok(None);
        }
        let needs_confirmation = by_wait && result.as_ref().is_ok_and(has_untyped_response);
        self.get_next = by_wait && (needs_confirmation || result.is_err());
        if needs_confirmation {
            self.failure = None;
            return Ok(None);
        }
        self.looks = self.looks.saturating_add(1);
        self.due = Some(next);
        match result {
            Ok(state) => {
                self.failure = None;
                self.latest = Some(state.clone());
                Ok(Some(state))
            }
            Err(status) if is_transient(&status) || by_wait && may_be_wait_alone(&status) => {
                self.failure = Some(status);
                Ok(None)
            }
            Err(status) => Err(status),
        }
    }
}

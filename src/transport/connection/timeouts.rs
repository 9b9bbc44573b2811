//! What a connection does at certain times: deadlines, keepalive, resets, its own end.

use std::{
    mem,
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{task::unconstrained, time::Instant};

use super::{Connection, earlier};
use crate::transport::{connector::WINDOW, exchange::Exchange};

/// How often the budget for responses is checked while it is exceeded.
const BUDGET_INTERVAL: Duration = Duration::from_millis(10);

impl Connection {
    /// Does what is due at this time. Returns whether the connection has to end.
    pub(super) fn handle_timeouts(&mut self, now: Instant) -> bool {
        let is_due = |due: Option<Instant>| due.is_some_and(|due| now >= due);
        if is_due(self.deadline) {
            self.expire(now);
        }
        if let Err(timeout) = self.keepalive.check(now) {
            let _ = self.link.timed_out.set(timeout);
            self.link.counters.keepalive_timeouts.increment();
            return true;
        }
        if is_due(self.take_at) {
            self.take_at = None;
            self.handle.request_take();
        }
        if is_due(self.abandoned.due()) {
            self.reset_abandoned(now);
        }
        if is_due(self.check_budget_at) {
            self.release_window();
        }
        self.update_timeouts(now);
        if self.lifetime.take_expired(now) {
            self.retire("the maximum connection age was reached");
        }
        if self.lifetime.is_idle(now) && self.sender.is_some() {
            // The pool may refuse, and then the idle timeout starts again.
            self.lifetime.keep(now);
            let pool = self.pool.upgrade();
            if pool.is_some_and(|pool| pool.remove_idle(&self.handle)) {
                self.close("the idle timeout has passed");
            }
        }
        self.lifetime.close_timed_out(now)
    }

    fn update_timeouts(&mut self, now: Instant) {
        let has_calls = !self.exchanges.is_empty();
        self.lifetime.update(has_calls, self.sender.is_some(), now);
        self.keepalive.set_busy(has_calls || self.calls_queued);
    }

    /// Ends the exchanges whose deadline has passed. Their callers, which would have ended them, are
    /// not polled.
    fn expire(&mut self, now: Instant) {
        let has_passed = |exchange: &Exchange| exchange.deadline().is_some_and(|at| at <= now);
        if self.exchanges.iter().any(has_passed) {
            for mut exchange in mem::take(&mut self.exchanges) {
                if has_passed(&exchange) {
                    let end = exchange.expire(now);
                    self.exchange_ended(end, now);
                } else {
                    self.exchanges.push(exchange.reset_waker());
                }
            }
            // The exchanges have to register with their new set.
            self.needs_round = true;
        }
        let deadlines = self.exchanges.iter().map(Exchange::deadline);
        self.deadline = deadlines.fold(None, earlier);
    }

    pub(super) fn suspect(&mut self, now: Instant) {
        if self.keepalive.suspect(now) {
            self.send_probe();
        }
    }

    /// Sends SETTINGS that change nothing. The peer has to acknowledge them, and strict servers do not
    /// count them as PINGs. Returns whether they were sent: not while the previous ones are
    /// unacknowledged.
    fn send_probe(&mut self) -> bool {
        let http2 = self.http2.as_mut();
        let sent = http2.is_some_and(|http2| http2.set_initial_window_size(WINDOW).is_ok());
        if sent {
            self.link.probes.fetch_add(1, Ordering::Relaxed);
            self.needs_round = true;
        }
        sent
    }

    fn reset_abandoned(&mut self, now: Instant) {
        if !self.link.io.is_write_blocked() {
            // Before the acknowledgement is noted: streams are reset one interval after it.
            self.abandoned.reset(now);
            if self.abandoned.need_probe() {
                let probes = self.link.probes.load(Ordering::Relaxed);
                // It can only be sent once all those before it were acknowledged.
                if self.send_probe() {
                    self.abandoned.acknowledge(probes);
                }
                self.keepalive.await_probe(now);
            }
            if self.calls_queued && self.abandoned.are_exhausted(self.stream_limit(), now) {
                self.retire("most of its streams are abandoned and wait to be reset");
            }
        }
        self.abandoned.postpone(now);
    }

    /// Releases withheld window: that of all exchanges, or of the oldest while the budget is exceeded.
    fn release_window(&mut self) {
        self.check_budget_at = None;
        if !self.link.check_budget() {
            return self.exchanges.iter_mut().for_each(Exchange::release);
        }
        let withheld = self.exchanges.iter_mut().filter(|e| e.is_withheld());
        if let Some(oldest) = withheld.min_by_key(|exchange| exchange.number()) {
            oldest.release();
        }
    }

    /// Sets the timer to the next instant at which something is due.
    pub(super) fn set_timer(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()> {
        if self.link.withholds.swap(false, Ordering::Relaxed) {
            let next = now + BUDGET_INTERVAL;
            self.check_budget_at = self.check_budget_at.or(Some(next));
        }
        self.update_timeouts(now);
        let due = [
            self.deadline,
            self.keepalive.due(),
            self.lifetime.due(),
            self.take_at,
            self.check_budget_at,
            self.abandoned.due(),
        ];
        let Some(due) = due.into_iter().fold(None, earlier) else {
            return Poll::Pending;
        };
        // A reset of the timer costs more than a wake-up that comes too early.
        let set = self.timer.deadline();
        if set > due || set <= now {
            self.timer.as_mut().reset(due);
            return Pin::new(&mut unconstrained(self.timer.as_mut())).poll(cx);
        }
        Poll::Pending
    }
}

//! The progress of an attempt, reported by the connection's task to the caller.

use std::{
    mem,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Context,
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::time::Instant;
use tonic::Status;

/// The progress of an attempt within the stack, which the caller cannot see itself.
///
/// Created only for attempts that a span or a recorder observes, and for attempts that may time out before their
/// call.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    state: Mutex<State>,
    /// Woken when the attempt has failed and is retried transparently.
    caller: AtomicWaker,
}

#[derive(Debug, Default)]
struct State {
    /// Whether Response-Headers have arrived. The attempt is not retried after that.
    is_committed: bool,
    sent: Sent,
    /// When the request was queued, if it is still queued. Earlier periods in the queue are included in
    /// `sent.queued`.
    queued_at: Option<Instant>,
    failed: Vec<FailedAttempt>,
    /// The size of the response's message, in bytes, before it was decompressed.
    received: usize,
}

/// How far the request of an attempt has progressed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    /// Whether the request was given to the stack and, if that is the default stack, to a connection.
    pub(crate) is_sent: bool,
    /// How long the request was queued by the default stack.
    pub(crate) queued: Option<Duration>,
    pub(crate) connection: Option<SentOn>,
}

/// The connection that a request was given to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SentOn {
    pub(crate) id: u64,
    pub(crate) peer: Option<SocketAddr>,
}

/// An attempt that failed and is retried transparently.
#[derive(Debug)]
pub(crate) struct FailedAttempt {
    pub(crate) at: Instant,
    pub(crate) failure: Status,
    pub(crate) sent: Sent,
}

impl Progress {
    /// Records that the request was given to the stack.
    pub(crate) fn given_to_stack(&self) {
        self.lock().sent.is_sent = true;
    }

    /// Records that the request has reached the queue of the default stack.
    pub(crate) fn queued(&self, now: Instant) {
        let mut state = self.lock();
        state.sent = Sent {
            queued: state.sent.queued,
            ..Sent::default()
        };
        state.queued_at = Some(now);
    }

    /// Records that the request has left the queue without being sent.
    pub(crate) fn dequeued(&self, now: Instant) {
        let mut state = self.lock();
        state.sent.queued = state.queued_for(now);
        state.queued_at = None;
    }

    /// Records that the request was given to a connection.
    pub(crate) fn sent_on(&self, connection: SentOn, now: Instant) {
        let mut state = self.lock();
        state.sent = Sent {
            is_sent: true,
            queued: state.queued_for(now),
            connection: Some(connection),
        };
        state.queued_at = None;
    }

    /// Records that the attempt failed and is retried transparently. `is_sent` is whether any part of the request
    /// was sent.
    pub(crate) fn retried(&self, at: Instant, failure: Status, is_sent: bool) {
        let mut state = self.lock();
        let sent = Sent {
            is_sent,
            ..mem::take(&mut state.sent)
        };
        state.queued_at = Some(at);
        state.failed.push(FailedAttempt { at, failure, sent });
        drop(state);
        self.caller.wake();
    }

    /// Records that Response-Headers have arrived.
    pub(crate) fn commit(&self) {
        self.lock().is_committed = true;
    }

    pub(crate) fn is_committed(&self) -> bool {
        self.lock().is_committed
    }

    /// Records the size of the response message, in bytes.
    pub(crate) fn received(&self, bytes: usize) {
        self.lock().received = bytes;
    }

    /// Returns how far the request has progressed, and the size of the response message in bytes.
    pub(crate) fn result(&self, now: Instant) -> (Sent, usize) {
        let state = self.lock();
        let sent = Sent {
            queued: state.queued_for(now),
            ..state.sent
        };
        (sent, state.received)
    }

    /// Takes the failed attempts. Registers `caller`, if given, to be woken when the next one fails.
    pub(crate) fn take_failed(&self, caller: Option<&Context<'_>>) -> Vec<FailedAttempt> {
        if let Some(caller) = caller {
            self.caller.register(caller.waker());
        }
        mem::take(&mut self.lock().failed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the total time that the request was queued.
    fn queued_for(&self, now: Instant) -> Option<Duration> {
        let current = self.queued_at.map(|at| now.saturating_duration_since(at));
        let all = self.sent.queued.into_iter().chain(current);
        all.reduce(|one, other| one + other)
    }
}

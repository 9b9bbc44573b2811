//! The state that the calls of one connection share.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::uri::Authority;
use tonic::{Code, Status};

use super::counted_io::Counters;
use crate::status::{Origin, caused, classify};

/// What the calls of one connection need to know about it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) authority: Authority,
    pub(crate) counters: Arc<Counters>,
    pub(crate) budget: Arc<Budget>,
    /// Probes that were sent: frames that the peer has to acknowledge.
    pub(crate) probes: AtomicUsize,
    /// Requests that HTTP/2 has not written to their ends.
    pub(crate) unsent: AtomicUsize,
    /// Whether something waits until the budget is no longer exceeded.
    pub(crate) held_back: AtomicBool,
    /// How long the peer did not answer, if that ended the connection.
    pub(crate) unanswered: OnceLock<Duration>,
}

impl Link {
    /// Whether the budget is exceeded. If so, whoever asks holds something back, and the
    /// connection's task has to look again.
    pub(crate) fn is_over_budget(&self) -> bool {
        let exceeded = self.budget.used.load(Ordering::Relaxed) > self.budget.max;
        if exceeded {
            self.held_back.store(true, Ordering::Relaxed);
        }
        exceeded
    }

    /// Returns how many reads there were, beyond one for each probe. If it has not grown since a
    /// request was sent, nothing has come but perhaps what was asked for.
    pub(crate) fn unasked_reads(&self) -> isize {
        let probes = self.probes.load(Ordering::Relaxed);
        self.counters.reads() as isize - probes as isize
    }

    /// Returns the status of a call that failed on this connection.
    pub(crate) fn failed(&self, error: h2::Error) -> Status {
        let authority = &self.authority;
        if let Some(timeout) = self.unanswered.get() {
            let message = format!(
                "{authority}: the connection is dead: no sign of life within {timeout:?}, although asked for one"
            );
            return caused(Code::Unavailable, message, Origin::Transport, error);
        }
        let status = classify(error.into());
        let message = format!("{authority}: {}", status.message());
        caused(status.code(), message, Origin::Transport, status)
    }
}

/// The body of a request, as HTTP/2 holds it until it is written.
#[derive(Debug)]
pub(crate) struct RequestBody {
    data: Bytes,
    link: Arc<Link>,
}

impl RequestBody {
    pub(crate) fn new(data: Bytes, link: Arc<Link>) -> Self {
        link.unsent.fetch_add(1, Ordering::Relaxed);
        Self { data, link }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.link.unsent.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Buf for RequestBody {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }
}

/// The bytes of answers that are held in memory, for all connections of a pool together.
///
/// It counts the answers that are being read and those that were delivered but not taken by their
/// callers. Small ones are not counted: they would only make all cores compete for the counter.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    /// Answers up to this size are not counted, in bytes.
    pub(crate) const SMALL: usize = 4 << 10;

    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            max,
        })
    }
}

/// Bytes that count towards a [`Budget`] until this is dropped.
#[derive(Debug)]
pub(crate) struct Buffered {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Buffered {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

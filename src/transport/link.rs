//! What the exchanges of one connection share.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::uri::Authority;
use tonic::{Code, Status};

use super::{budget::Budget, counted_io::IoState};
use crate::status::{Origin, caused, classify};

/// The part of a connection's state that its exchanges and the readers of its responses need.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) authority: Authority,
    pub(crate) io: Arc<IoState>,
    pub(crate) budget: Arc<Budget>,
    /// How many probes were sent: frames that the server has to acknowledge.
    pub(crate) probes: AtomicUsize,
    /// Requests that HTTP/2 has not written completely.
    pub(crate) unsent: AtomicUsize,
    /// Whether something is withheld because the budget was exceeded.
    pub(crate) withholds: AtomicBool,
    /// Whether a streamed response has begun. The connection's task clears it.
    pub(crate) stream_begun: AtomicBool,
    /// The keepalive timeout that ended the connection, if one did.
    pub(crate) timed_out: OnceLock<Duration>,
}

impl Link {
    /// Returns whether the budget is exceeded. If so, the caller has to withhold window or requests, and
    /// the connection's task checks the budget again later.
    pub(crate) fn check_budget(&self) -> bool {
        let exceeded = self.budget.is_exceeded();
        if exceeded {
            self.withholds.store(true, Ordering::Relaxed);
        }
        exceeded
    }

    /// Returns the number of reads minus the number of probes. If it has not grown since a request was
    /// sent, most likely nothing but acknowledgements was received. An error costs one ping.
    pub(crate) fn unprobed_reads(&self) -> isize {
        let probes = self.probes.load(Ordering::Relaxed);
        self.io.reads() as isize - probes as isize
    }

    /// Returns the status of a call that failed on this connection.
    pub(crate) fn failed(&self, error: h2::Error) -> Status {
        let authority = &self.authority;
        if let Some(timeout) = self.timed_out.get() {
            let message = format!(
                "{authority}: keepalive timed out: no data received within {timeout:?} of a ping"
            );
            return caused(Code::Unavailable, message, Origin::Transport, error);
        }
        let status = classify(error.into());
        let message = format!("{authority}: {}", status.message());
        caused(status.code(), message, Origin::Transport, status)
    }
}

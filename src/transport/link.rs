//! What the exchanges of one connection share.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::uri::Authority;
use tonic::{Code, Status};

use super::{budget::Budget, counted_io::IoState, stats::Counters};
use crate::status::{Delivery, Origin, classify, reworded, with_retry};

/// The part of a connection's state that its exchanges and the readers of its responses need.
#[derive(Debug)]
pub(crate) struct Link {
    /// The number of the connection.
    pub(crate) id: u64,
    pub(crate) authority: Authority,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) counters: Arc<Counters>,
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
    /// The error message for the server's GOAWAY, with its error code and debug data.
    pub(crate) go_away: OnceLock<String>,
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

    /// Notes the server's GOAWAY, if this error is one.
    pub(crate) fn note_go_away(&self, error: &h2::Error) {
        if error.is_go_away()
            && error.is_remote()
            && let Some(reason) = error.reason()
        {
            let text = || format!("the server closed the connection: GOAWAY {reason:?}: {error}");
            self.go_away.get_or_init(text);
        }
    }

    /// Returns the status of a call that failed on this connection.
    pub(crate) fn failed(&self, error: h2::Error, delivery: Delivery) -> Status {
        self.note_go_away(&error);
        let ended = self.ended(&error);
        let cause = classify(error.into());
        let (code, message) = match &ended {
            Some(message) => (Code::Unavailable, message.as_str()),
            None => (cause.code(), cause.message()),
        };
        let message = format!("{}: {message}", self.authority);
        let status = reworded(&cause, code, message, Origin::Transport, delivery);
        if delivery == Delivery::Answered {
            // A call is not retried once Response-Headers have arrived.
            with_retry(status, false)
        } else {
            status
        }
    }

    /// Returns why the connection has ended, if that is what this error is about, and if it is known.
    fn ended(&self, error: &h2::Error) -> Option<String> {
        if let Some(timeout) = self.timed_out.get() {
            return Some(format!(
                "keepalive timed out: no data received within {timeout:?} of a ping"
            ));
        }
        self.go_away.get().filter(|_| !error.is_reset()).cloned()
    }
}

//! Keepalive: whether the peer of a connection is alive.

use std::{
    task::{Context, Waker},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::Instant;

/// Decides when the peer is asked for a sign of life, and when it is dead.
///
/// The peer is asked with a PING when nothing has come for the keepalive interval although calls
/// wait, and when the deadline of a call has passed and nothing has come since the call was sent.
/// Every byte that comes is a sign of life.
pub(crate) struct Keepalive {
    ping: Option<PingPong>,
    interval: Duration,
    timeout: Duration,
    /// The socket's reads, and when they changed last.
    reads: usize,
    read_at: Instant,
    /// Since when calls wait.
    busy_since: Option<Instant>,
    /// When the peer was pinged last, unless a call was answered since.
    pinged: Option<Instant>,
    asked: Option<Asked>,
    /// Since when a probe is not acknowledged that was sent for another reason.
    probed_at: Option<Instant>,
}

/// A question that the peer has not answered.
#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Instant,
    timeout: Duration,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    Alive,
    /// Ask for a sign of life with a frame that strict servers do not count.
    Probe,
    /// The peer did not answer within this time.
    Dead(Duration),
}

/// How long a suspect peer may take to answer.
const SUSPECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The least time between pings without an answer to a call between them: strict servers close
/// the connection on more, see [gRFC A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md).
const STRICT: Duration = Duration::from_secs(300);

impl Keepalive {
    pub(crate) fn new(
        ping: Option<PingPong>,
        interval: Duration,
        timeout: Duration,
        reads: usize,
        now: Instant,
    ) -> Self {
        Self {
            ping,
            interval,
            timeout,
            reads,
            read_at: now,
            busy_since: None,
            pinged: None,
            asked: None,
            probed_at: None,
        }
    }

    /// Notes how many reads there were.
    pub(crate) fn observe(&mut self, reads: usize, now: Instant) {
        if self.reads != reads {
            self.reads = reads;
            self.read_at = now;
            self.asked = None;
            self.probed_at = None;
        }
    }

    /// Notes that the peer has to acknowledge a probe.
    pub(crate) fn probed(&mut self, now: Instant) {
        self.probed_at = self.probed_at.or(Some(now));
    }

    /// Notes whether calls wait for the peer.
    pub(crate) fn set_busy(&mut self, busy: bool, now: Instant) {
        self.busy_since = match busy {
            true => self.busy_since.or(Some(now)),
            false => None,
        };
    }

    /// Notes that a call was answered.
    pub(crate) fn answered(&mut self) {
        self.pinged = None;
    }

    /// Whether something has come after this instant.
    pub(crate) fn has_read_since(&self, instant: Instant) -> bool {
        self.read_at > instant
    }

    /// Whether the peer was asked and has not answered yet.
    pub(crate) fn is_suspect(&self) -> bool {
        self.asked.is_some()
    }

    /// Asks the peer for a sign of life, because a call was not answered in time.
    pub(crate) fn suspect(&mut self, now: Instant) -> Verdict {
        if self.asked.is_some() {
            return Verdict::Alive;
        }
        self.asked = Some(Asked {
            at: now,
            timeout: SUSPECT_TIMEOUT,
        });
        match self.pinged.is_some_and(|pinged| now < pinged + STRICT) {
            true => Verdict::Probe,
            false => {
                self.send_ping(now);
                Verdict::Alive
            }
        }
    }

    /// Does what is due.
    pub(crate) fn check(&mut self, now: Instant) -> Verdict {
        if self.probe_ends().is_some_and(|end| now >= end) {
            return Verdict::Dead(SUSPECT_TIMEOUT);
        }
        if let Some(asked) = self.asked {
            return match asked.at.checked_add(asked.timeout) {
                Some(end) if now >= end => Verdict::Dead(asked.timeout),
                _ => Verdict::Alive,
            };
        }
        if self.ping_due().is_some_and(|due| now >= due) {
            self.asked = Some(Asked {
                at: now,
                timeout: self.timeout,
            });
            self.send_ping(now);
        }
        Verdict::Alive
    }

    /// Returns when [`check`](Self::check) is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        let due = match self.asked {
            Some(asked) => asked.at.checked_add(asked.timeout),
            None => self.ping_due(),
        };
        due.into_iter().chain(self.probe_ends()).min()
    }

    fn probe_ends(&self) -> Option<Instant> {
        self.probed_at.map(|at| at + SUSPECT_TIMEOUT)
    }

    fn ping_due(&self) -> Option<Instant> {
        self.busy_since?
            .max(self.read_at)
            .checked_add(self.interval)
    }

    fn send_ping(&mut self, now: Instant) {
        self.pinged = Some(now);
        if let Some(ping) = &mut self.ping {
            // Only one can be under way: the last answer has to be taken first.
            let _ = ping.poll_pong(&mut Context::from_waker(Waker::noop()));
            let _ = ping.send_ping(Ping::opaque());
        }
    }
}

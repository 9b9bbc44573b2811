//! Keepalive: whether the peer of a connection is alive.

use std::{
    task::{Context, Waker},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::Instant;

/// Decides when the peer is pinged, and when it is dead.
///
/// The peer is pinged when calls wait and nothing was received for the keepalive interval, and when
/// the deadline of a call has passed and nothing was received since the call was sent. Any data
/// received shows that the peer is alive. As in
/// [gRFC A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md#basic-keepalive), the
/// interval does not restart when a call begins: if it has passed by then, a ping is sent with the call.
pub(crate) struct Keepalive {
    ping: Option<PingPong>,
    interval: Duration,
    timeout: Duration,
    /// The number of reads from the socket, and when it last changed.
    reads: usize,
    read_at: Instant,
    /// Whether there are calls on the connection, or queued.
    busy: bool,
    /// When the last PING was sent, unless a call was answered since.
    last_ping: Option<Instant>,
    /// A PING or a probe that the peer has not acknowledged.
    unacknowledged: Option<Sent>,
    /// Since when an acknowledgement of a probe is awaited that was sent for another reason.
    probe_awaited_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Instant,
    timeout: Duration,
}

impl Sent {
    fn ends(&self) -> Option<Instant> {
        self.at.checked_add(self.timeout)
    }
}

/// How long a suspect peer may take to acknowledge a ping.
const SUSPECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The minimum time between the last PING and one for a suspect peer, unless a call was answered
/// between them. Strict servers close the connection on more, see [gRFC A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md).
const PING_INTERVAL: Duration = Duration::from_secs(300);

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
            busy: false,
            last_ping: None,
            unacknowledged: None,
            probe_awaited_since: None,
        }
    }

    /// Updates the number of reads from the socket.
    pub(crate) fn observe(&mut self, reads: usize, now: Instant) {
        if self.reads != reads {
            self.reads = reads;
            self.read_at = now;
            self.unacknowledged = None;
            self.probe_awaited_since = None;
        }
    }

    /// Notes that the peer has to acknowledge a probe.
    pub(crate) fn await_probe(&mut self, now: Instant) {
        self.probe_awaited_since = self.probe_awaited_since.or(Some(now));
    }

    /// Notes whether calls wait for the peer.
    pub(crate) fn set_busy(&mut self, busy: bool) {
        self.busy = busy;
    }

    /// Notes that a call was answered.
    pub(crate) fn answered(&mut self) {
        self.last_ping = None;
    }

    /// Returns whether anything was received after this instant.
    pub(crate) fn has_read_since(&self, instant: Instant) -> bool {
        self.read_at > instant
    }

    /// Returns whether the peer was pinged and has sent nothing since.
    pub(crate) fn is_suspect(&self) -> bool {
        self.unacknowledged.is_some()
    }

    /// Pings the peer, because a call was not answered in time. Returns whether a probe has to be sent
    /// instead, because another PING may be one too many.
    pub(crate) fn suspect(&mut self, now: Instant) -> bool {
        let suspected = Sent {
            at: now,
            timeout: SUSPECT_TIMEOUT,
        };
        if let Some(sent) = &mut self.unacknowledged {
            // A keepalive ping was sent, with a timeout that may be longer.
            if sent.ends().is_none_or(|end| suspected.ends() < Some(end)) {
                *sent = suspected;
            }
            return false;
        }
        self.unacknowledged = Some(suspected);
        let last = self.last_ping;
        let is_early = last.is_some_and(|last| now < last + PING_INTERVAL);
        if !is_early {
            self.send_ping(now);
        }
        is_early
    }

    /// Pings the peer if that is due.
    ///
    /// # Errors
    ///
    /// The peer is dead: it has sent nothing within this timeout of a ping.
    pub(crate) fn check(&mut self, now: Instant) -> Result<(), Duration> {
        if self.probe_ends().is_some_and(|end| now >= end) {
            return Err(SUSPECT_TIMEOUT);
        }
        if let Some(sent) = self.unacknowledged {
            let has_timed_out = sent.ends().is_some_and(|end| now >= end);
            return if has_timed_out {
                Err(sent.timeout)
            } else {
                Ok(())
            };
        }
        if self.ping_due().is_some_and(|due| now >= due) {
            self.unacknowledged = Some(Sent {
                at: now,
                timeout: self.timeout,
            });
            self.send_ping(now);
        }
        Ok(())
    }

    /// Returns when [`check`](Self::check) is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        let due = match self.unacknowledged {
            Some(sent) => sent.ends(),
            None => self.ping_due(),
        };
        due.into_iter().chain(self.probe_ends()).min()
    }

    fn probe_ends(&self) -> Option<Instant> {
        self.probe_awaited_since.map(|at| at + SUSPECT_TIMEOUT)
    }

    fn ping_due(&self) -> Option<Instant> {
        let due = self.read_at.checked_add(self.interval);
        due.filter(|_| self.busy)
    }

    fn send_ping(&mut self, now: Instant) {
        self.last_ping = Some(now);
        if let Some(ping) = &mut self.ping {
            // There can be only one at a time: the last PONG has to be taken first.
            let _ = ping.poll_pong(&mut Context::from_waker(Waker::noop()));
            let _ = ping.send_ping(Ping::opaque());
        }
    }
}

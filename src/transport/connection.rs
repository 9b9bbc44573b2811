//! What is known of a connection.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::uri::Authority;
use tokio::{sync::Notify, time::Instant};
use tonic::{Code, Status};

use super::traffic::Traffic;
use crate::status::{Origin, caused, classify};

/// What the calls on a connection share with the pool, and with the task that drives it.
#[derive(Debug)]
pub(crate) struct Connection {
    authority: Authority,
    traffic: Arc<Traffic>,
    opened: Instant,
    /// How many streams the server allows.
    limit: AtomicUsize,
    /// Calls that hold a stream. Changes under the pool's lock only.
    calls: AtomicUsize,
    /// Calls that ever held one.
    uses: AtomicUsize,
    answered: AtomicBool,
    /// Whether a call has failed on it.
    disappointed: AtomicBool,
    /// The traffic's reads when it became suspect: it is suspect while they stay that many.
    suspect: AtomicUsize,
    suspected: Notify,
    /// When it was pinged since it answered a call last: in milliseconds after it was opened, or 0.
    pinged: AtomicU64,
    /// Whether the peer is to be asked for a sign of life otherwise than by a ping.
    probe: AtomicBool,
    /// Whether the pool has let go of it.
    retired: AtomicBool,
    end: OnceLock<End>,
}

/// How a connection ended, where the error of a call does not tell.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// It closed, and h2 gave each of its calls the reason.
    Closed,
    /// The peer gave no sign of life for so long, although it was asked for one.
    Unanswered(Duration),
    /// Its task was dropped.
    Abandoned,
}

const ABANDONED: &str = "the tokio runtime that drove the connection has ended";

const NOT_SUSPECT: usize = usize::MAX;

/// How many streams of a connection are used where the server allows more, or any number.
///
/// With one task a connection it is no gain to have more on it. And h2 gives up a connection with
/// too many small DATA frames that are not read yet: with the window of 5 MiB, more than 10,000.
const STREAMS: usize = 1_000;

/// The least time between pings without an answer to a call between them: strict servers close
/// the connection on more, see [gRFC A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md).
const STRICT: Duration = Duration::from_secs(300);

impl Connection {
    pub(crate) fn new(authority: Authority, traffic: Arc<Traffic>, limit: usize) -> Self {
        Self {
            authority,
            traffic,
            opened: Instant::now(),
            limit: limit.min(STREAMS).into(),
            calls: 0.into(),
            uses: 0.into(),
            answered: false.into(),
            disappointed: false.into(),
            suspect: NOT_SUSPECT.into(),
            suspected: Notify::new(),
            pinged: 0.into(),
            probe: false.into(),
            retired: false.into(),
            end: OnceLock::new(),
        }
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Notes how many streams the server allows; returns whether that is news.
    pub(crate) fn allow(&self, limit: usize) -> bool {
        let limit = limit.min(STREAMS);
        self.limit.swap(limit, Ordering::Relaxed) != limit
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    pub(crate) fn uses(&self) -> usize {
        self.uses.load(Ordering::Relaxed)
    }

    pub(crate) fn take_stream(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.uses.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn return_stream(&self) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
    }

    /// Notes that a call has failed.
    pub(crate) fn disappointed(&self) {
        self.disappointed.store(true, Ordering::Relaxed);
    }

    /// Whether calls have failed on it, or will now that it goes, and it has answered none.
    pub(crate) fn was_useless(&self) -> bool {
        let fails = self.disappointed.load(Ordering::Relaxed) || self.calls() > 0;
        fails && !self.has_answered()
    }

    /// Notes that a call was answered; returns whether it was the first one.
    pub(crate) fn answered(&self) -> bool {
        if self.pinged.load(Ordering::Relaxed) != 0 {
            self.pinged.store(0, Ordering::Relaxed);
        }
        !self.has_answered() && !self.answered.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed) == self.traffic.reads()
    }

    /// Suspects the connection: nothing has come on it since its reads were so many, although a
    /// call waited for an answer until its deadline.
    pub(crate) fn suspect(&self, reads: usize) {
        if self.traffic.reads() == reads && !self.is_suspect() {
            self.suspect.store(reads, Ordering::Relaxed);
            self.suspected.notify_one();
        }
    }

    /// Returns when it has become suspect: the peer is to be asked, once.
    pub(crate) async fn suspected(&self) {
        self.suspected.notified().await;
    }

    /// Notes that it is pinged.
    pub(crate) fn pinged(&self) {
        self.note_ping(self.pinged.load(Ordering::Relaxed));
    }

    /// Has the peer asked for a sign of life that is no answer to a ping.
    pub(crate) fn probe(&self) {
        self.probe.store(true, Ordering::Relaxed);
    }

    /// Whether the peer is to be asked so, now.
    pub(crate) fn takes_probe(&self) -> bool {
        self.probe.load(Ordering::Relaxed) && self.probe.swap(false, Ordering::Relaxed)
    }

    /// Notes that the pool has let go of it.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Notes how it ended. The first word counts.
    pub(crate) fn end(&self, end: End) {
        let _ = self.end.set(end);
    }

    /// Whether a strict server would take a ping. If so, the caller is to send it.
    pub(crate) fn may_ping(&self) -> bool {
        let pinged = self.pinged.load(Ordering::Relaxed);
        let next = Duration::from_millis(pinged) + STRICT;
        let early = pinged != 0 && self.opened.elapsed() < next;
        !early && self.note_ping(pinged)
    }

    /// Notes a ping, unless another was noted since.
    fn note_ping(&self, last: u64) -> bool {
        let now = self.opened.elapsed().as_millis().try_into();
        let now = now.unwrap_or(u64::MAX).max(1);
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        let noted = self.pinged.compare_exchange(last, now, success, failure);
        noted.is_ok()
    }

    /// The status of a call that failed on this connection.
    pub(crate) fn failed(&self, error: h2::Error) -> Status {
        let why = match self.end.get() {
            Some(End::Unanswered(patience)) => {
                format!(
                    "the connection is dead: no sign of life within {patience:?}, although asked for one"
                )
            }
            Some(End::Abandoned) => ABANDONED.to_owned(),
            Some(End::Closed) | None => {
                let found = classify(error.into());
                let message = format!("{}: {}", self.authority, found.message());
                return caused(found.code(), message, Origin::Transport, found);
            }
        };
        let message = format!("{}: {why}", self.authority);
        caused(Code::Unavailable, message, Origin::Transport, error)
    }
}

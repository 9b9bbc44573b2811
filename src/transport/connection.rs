//! One connection, and the task that drives it.

use std::{
    convert::Infallible,
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, Reason, client::SendRequest};
use http::uri::Authority;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status};

use super::{
    connect::{Http2, Opened},
    pool::{Limits, Pool},
    traffic::Traffic,
};
use crate::status::{Origin, caused, classify, mark};

/// What is known of a connection. The calls on it share this with the task that drives it.
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
    /// The traffic's reads when it became suspect: it is suspect while they stay that many.
    suspect: AtomicUsize,
    suspected: Notify,
    /// When it was pinged since it answered a call last: in milliseconds after it was opened, or 0.
    pinged: AtomicU64,
    /// Whether the pool has let go of it.
    retired: AtomicBool,
    end: OnceLock<End>,
}

/// How a connection ended, where the error of a call does not tell.
#[derive(Clone, Copy, Debug)]
enum End {
    /// It closed, and h2 gave each of its calls the reason.
    Closed,
    /// A ping stayed unanswered so long.
    Unanswered(Duration),
    /// Its task was dropped.
    Abandoned,
}

const NOT_SUSPECT: usize = usize::MAX;

/// How many streams of a connection are used where the server allows more, or any number.
///
/// With one task a connection it is no gain to have more on it. And h2 gives up a connection with
/// too many small DATA frames that are not read yet: with the window of 5 MiB, more than 10,000.
const STREAMS: usize = 1_000;

/// How long a suspect has to answer.
const SUSPECT_PATIENCE: Duration = Duration::from_secs(5);

/// The least time between pings without an answer to a call between them: strict servers close
/// the connection on more, see [gRFC A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md).
const STRICT: Duration = Duration::from_secs(300);

/// How long a connection that nobody needs may take to say good-bye.
const FAREWELL: Duration = Duration::from_secs(1);

impl Connection {
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
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

    pub(crate) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Notes that a call was answered; returns whether it was the first one.
    pub(crate) fn answered(&self) -> bool {
        if self.pinged.load(Ordering::Relaxed) != 0 {
            self.pinged.store(0, Ordering::Relaxed);
        }
        !self.has_answered() && !self.answered.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed) == self.traffic.reads()
    }

    /// Suspects the connection: nothing has come on it since its reads were so many, although a
    /// call waited for an answer until its deadline.
    pub(crate) fn suspect(&self, reads: usize) {
        if self.traffic.reads() == reads && !self.is_suspect() && self.may_ping() {
            self.suspect.store(reads, Ordering::Relaxed);
            self.suspected.notify_one();
        }
    }

    /// Whether a strict server would take a ping. If so, the caller is to send it.
    fn may_ping(&self) -> bool {
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
        let lost = |why: String| {
            let message = format!("{}: {why}", self.authority);
            (Code::Unavailable, message)
        };
        let (code, message) = match self.end.get() {
            Some(End::Unanswered(patience)) => lost(format!(
                "the connection is dead: no answer to a ping within {patience:?}"
            )),
            Some(End::Abandoned) => {
                lost("the tokio runtime that drove the connection has ended".to_owned())
            }
            Some(End::Closed) | None => {
                let found = classify(error.into());
                let message = format!("{}: {}", self.authority, found.message());
                return caused(found.code(), message, Origin::Transport, found);
            }
        };
        caused(code, message, Origin::Transport, error)
    }

    /// The status of the calls that still waited for a stream when it ended.
    pub(crate) fn lost(&self) -> Status {
        let why = match self.end.get() {
            Some(End::Abandoned) => "the tokio runtime that drove the connection has ended",
            Some(End::Unanswered(_)) => "the connection is dead: no answer to a ping",
            Some(End::Closed) | None => "the server closes connections without answering calls",
        };
        let message = format!("{}: {why}", self.authority);
        mark(Status::unavailable(message), Origin::Transport)
    }

    /// Whether its task was dropped, which only the end of its runtime does.
    pub(crate) fn is_abandoned(&self) -> bool {
        matches!(self.end.get(), Some(End::Abandoned))
    }
}

/// A connection as the pool holds it. Once dropped, it ends with the last call on it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) connection: Arc<Connection>,
    pub(crate) sender: SendRequest<Bytes>,
    /// Wakes the driver when it is dropped.
    _retired: oneshot::Sender<Infallible>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.connection.retired.store(true, Ordering::Release);
    }
}

/// The future that drives a connection until it ends.
pub(crate) struct Driver {
    http2: Http2,
    connection: Arc<Connection>,
    pool: Weak<Pool>,
    watch: Pin<Box<dyn Future<Output = End> + Send>>,
    /// Tells whether the server lets the connection take more streams. Dropped with the member,
    /// for a connection with a sender never ends by itself.
    probe: Option<SendRequest<Bytes>>,
}

impl Driver {
    pub(crate) fn new(
        opened: Opened,
        authority: Authority,
        limits: Limits,
        pool: Weak<Pool>,
    ) -> (Member, Self) {
        let Opened {
            sender,
            mut http2,
            traffic,
        } = opened;
        let connection = Arc::new(Connection {
            authority,
            traffic,
            opened: Instant::now(),
            limit: http2.max_concurrent_send_streams().min(STREAMS).into(),
            calls: 0.into(),
            uses: 0.into(),
            answered: false.into(),
            suspect: NOT_SUSPECT.into(),
            suspected: Notify::new(),
            pinged: 0.into(),
            retired: false.into(),
            end: OnceLock::new(),
        });
        let (member, retired) = oneshot::channel();
        let watch = watch(
            connection.clone(),
            http2.ping_pong(),
            limits,
            pool.clone(),
            retired,
        );
        let driver = Self {
            http2,
            connection: connection.clone(),
            pool,
            watch: Box::pin(watch),
            probe: Some(sender.clone()),
        };
        let member = Member {
            connection,
            sender,
            _retired: member,
        };
        (member, driver)
    }

    /// Heeds a server that had too many pings.
    fn complained(&self, error: &h2::Error) {
        let calm = error.is_remote() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
        if let Some(pool) = self.pool.upgrade().filter(|_| calm && error.is_go_away()) {
            pool.ping_less();
        }
    }

    /// Tells the pool what the server has announced meanwhile.
    fn announce(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        let closing = match &mut self.probe {
            Some(probe) => matches!(probe.poll_ready(&mut cx), Poll::Ready(Err(_))),
            None => return,
        };
        let limit = self.http2.max_concurrent_send_streams().min(STREAMS);
        let changed = self.connection.limit.swap(limit, Ordering::Relaxed) != limit;
        if !closing && !changed {
            return;
        }
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        if closing {
            self.probe = None;
            pool.retire(&self.connection);
        } else {
            pool.serve();
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.connection.retired.load(Ordering::Acquire) {
            this.probe = None;
        }
        let end = match Pin::new(&mut this.http2).poll(cx) {
            Poll::Ready(closed) => {
                if let Err(error) = closed {
                    this.complained(&error);
                }
                Poll::Ready(End::Closed)
            }
            Poll::Pending => this.watch.as_mut().poll(cx),
        };
        match end {
            Poll::Ready(end) => {
                let _ = this.connection.end.set(end);
                Poll::Ready(())
            }
            Poll::Pending => {
                this.announce();
                Poll::Pending
            }
        }
    }
}

impl Drop for Driver {
    /// Runs before the fields are dropped, so before any call sees that its connection is gone.
    fn drop(&mut self) {
        let _ = self.connection.end.set(End::Abandoned);
        if let Some(pool) = self.pool.upgrade() {
            pool.ended(&self.connection);
        }
    }
}

/// Ends when the connection is dead, or takes too long to say good-bye.
async fn watch(
    connection: Arc<Connection>,
    ping: Option<PingPong>,
    limits: Limits,
    pool: Weak<Pool>,
    retired: oneshot::Receiver<Infallible>,
) -> End {
    let dead = async {
        match ping {
            Some(ping) => dead(&connection, ping, &limits).await,
            None => pending().await,
        }
    };
    tokio::select! {
        patience = dead => End::Unanswered(patience),
        () = dismiss_idle(&connection, limits.idle, &pool) => End::Closed,
        () = farewell(&connection, retired) => End::Closed,
    }
}

/// Returns when a ping stayed unanswered.
async fn dead(connection: &Connection, mut ping: PingPong, limits: &Limits) -> Duration {
    loop {
        let patience = tokio::select! {
            () = connection.suspected.notified() => SUSPECT_PATIENCE,
            () = quiet(connection, limits.keepalive) => {
                connection.note_ping(connection.pinged.load(Ordering::Relaxed));
                limits.keepalive_timeout
            }
        };
        let mut reads = connection.traffic.reads();
        if ping.send_ping(Ping::opaque()).is_err() {
            continue;
        }
        let mut pong = std::pin::pin!(std::future::poll_fn(|cx| ping.poll_pong(cx)));
        while timeout(patience, pong.as_mut()).await.is_err() {
            // Whatever has come shows that the connection lives.
            let before = std::mem::replace(&mut reads, connection.traffic.reads());
            if before == reads {
                return patience;
            }
        }
    }
}

/// Returns when nothing has come for so long, and a call waits.
async fn quiet(connection: &Connection, interval: Duration) {
    loop {
        let reads = connection.traffic.reads();
        sleep(interval).await;
        if connection.calls() > 0 && connection.traffic.reads() == reads {
            return;
        }
    }
}

/// Has the pool dismiss the connection whenever it was idle for so long.
async fn dismiss_idle(connection: &Connection, interval: Duration, pool: &Weak<Pool>) {
    loop {
        let uses = connection.uses();
        sleep(interval).await;
        let idle = connection.calls() == 0 && connection.uses() == uses;
        if let Some(pool) = pool.upgrade().filter(|_| idle) {
            pool.dismiss(connection);
        }
    }
}

/// Returns when the pool has let go of the connection, no call is on it, and still it has not
/// closed: a peer that takes no bytes could keep it for ever.
async fn farewell(connection: &Connection, retired: oneshot::Receiver<Infallible>) {
    let _ = retired.await;
    loop {
        sleep(FAREWELL).await;
        if connection.calls() == 0 {
            return;
        }
    }
}

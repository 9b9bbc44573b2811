//! The task that drives a connection, and watches whether it lives.

use std::{
    convert::Infallible,
    future::{pending, poll_fn},
    mem,
    pin::{Pin, pin},
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, Reason, client::SendRequest};
use http::uri::Authority;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    connect::{Http2, Opened},
    connection::{Connection, End},
    pool::Pool,
};

/// How many connections there may be, and how long they are kept.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) connections: usize,
    /// How long nothing comes on a connection with calls before it is pinged.
    pub(crate) keepalive: Duration,
    /// How long the answer to that ping may take.
    pub(crate) keepalive_timeout: Duration,
    /// How long a connection beside others is kept without calls.
    pub(crate) idle: Duration,
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
        self.connection.retire();
    }
}

/// How long a suspect has to answer.
const SUSPECT_PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection that nobody needs may take to say good-bye.
const FAREWELL: Duration = Duration::from_secs(1);

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
        let limit = http2.max_concurrent_send_streams();
        let connection = Arc::new(Connection::new(authority, traffic, limit));
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

    /// Heeds a server that had too many pings. It says so in words; the code alone may be for
    /// something else.
    fn complained(&self, error: &h2::Error) {
        let calm = error.is_remote() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
        let complained = calm && error.to_string().contains("too_many_pings");
        if let Some(pool) = self.pool.upgrade().filter(|_| complained) {
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
        let limit = self.http2.max_concurrent_send_streams();
        let changed = self.connection.allow(limit);
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
        if this.connection.is_retired() {
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
                this.connection.end(end);
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
        self.connection.end(End::Abandoned);
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
            () = connection.suspected() => SUSPECT_PATIENCE,
            () = quiet(connection, limits.keepalive) => {
                connection.pinged();
                limits.keepalive_timeout
            }
        };
        let mut reads = connection.traffic().reads();
        if ping.send_ping(Ping::opaque()).is_err() {
            continue;
        }
        let mut pong = pin!(poll_fn(|cx| ping.poll_pong(cx)));
        while timeout(patience, pong.as_mut()).await.is_err() {
            // Whatever has come shows that the connection lives.
            let before = mem::replace(&mut reads, connection.traffic().reads());
            if before == reads {
                return patience;
            }
        }
    }
}

/// Returns when nothing has come for so long, and a call waits.
async fn quiet(connection: &Connection, interval: Duration) {
    loop {
        let reads = connection.traffic().reads();
        sleep(interval).await;
        if connection.calls() > 0 && connection.traffic().reads() == reads {
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

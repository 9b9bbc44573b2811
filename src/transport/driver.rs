//! The task that drives a connection.

use std::{
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::{Reason, client::SendRequest};
use http::uri::Authority;

use super::{
    connect::{Http2, Opened, WINDOW},
    connection::{Connection, End},
    members::Member,
    pool::{Limits, Pool},
    watch::watch,
};

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
        let probe = Some(sender.clone());
        let (member, retired) = Member::new(connection.clone(), sender);
        let watch = watch(
            connection.clone(),
            http2.ping_pong(),
            limits,
            pool.clone(),
            retired,
        );
        let driver = Self {
            http2,
            connection,
            pool,
            watch: Box::pin(watch),
            probe,
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
                if this.connection.takes_probe() {
                    // It changes nothing, and yet the server has to acknowledge it. An error says
                    // that it has not acknowledged the last one.
                    let _ = this.http2.set_initial_window_size(WINDOW);
                    cx.waker().wake_by_ref();
                }
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

//! Opens connections, each in the task that drives it afterwards.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Arc, Weak},
    task::Poll,
};

use tokio::{
    runtime,
    time::{Instant, sleep_until},
};
use tonic::Status;

use super::{
    connection::Connection,
    connector::Opened,
    pool::{Attempt, Pool},
};
use crate::status::{Delivery, Origin, mark};

/// Spawns the task of a connection, which opens it first.
pub(crate) fn spawn_connection(pool: &Arc<Pool>, attempt: Attempt) {
    let runtime = attempt.runtime.clone();
    let guard = AttemptGuard {
        pool: Arc::downgrade(pool),
        attempt: Some(attempt),
        is_polled: false,
    };
    runtime.spawn(async move {
        if let Some(connection) = open(guard).await {
            connection.await;
        }
    });
}

/// Opens the first connection of a pool, whether or not a call needs it.
///
/// # Errors
///
/// `UNAVAILABLE`: it cannot be opened.
pub(crate) async fn connect_first(
    pool: &Arc<Pool>,
    runtime: runtime::Handle,
) -> Result<(), Status> {
    let opened = pool.connector.connect().await;
    let opened = opened.inspect_err(|failure| pool.note_connect_failed(failure))?;
    let attempt = pool.register_attempt(runtime);
    if let Some(connection) = Connection::new(opened, pool, &attempt.handle) {
        attempt.runtime.spawn(connection);
    }
    pool.open_if_needed(); // the minimum may be more than one
    Ok(())
}

/// Opens a connection. `None` if that failed, or if the pool was dropped.
async fn open(mut guard: AttemptGuard) -> Option<Connection> {
    let attempt = guard.attempt.clone()?;
    let opened = guard.connect(&attempt).await;
    guard.attempt = None;
    let pool = guard.pool.upgrade()?;
    let connection = match opened? {
        Ok(opened) => Connection::new(opened, &pool, &attempt.handle),
        Err(failure) => {
            pool.not_opened(&attempt.handle, &failure);
            None
        }
    };
    // More may be needed, and how many streams each has is known now.
    pool.open_if_needed();
    connection
}

/// Reports an attempt that was dropped before its end to the pool.
struct AttemptGuard {
    pool: Weak<Pool>,
    /// `None` once the attempt has ended.
    attempt: Option<Attempt>,
    /// Whether the connector is being polled. If this is dropped meanwhile, the connector panicked.
    is_polled: bool,
}

impl AttemptGuard {
    /// Connects when the attempt is due. `None` if the pool is dropped before.
    async fn connect(&mut self, attempt: &Attempt) -> Option<Result<Opened, Status>> {
        // The pool is not kept alive by its own attempts.
        let connector = self.pool.upgrade()?.connector.clone();
        let starts_at = attempt.starts_at;
        let mut connect = pin!(async move {
            if starts_at > Instant::now() {
                sleep_until(starts_at).await;
            }
            connector.connect().await
        });
        poll_fn(|cx| {
            // The pool wakes this when it is dropped.
            attempt.handle.register(cx);
            if self.pool.strong_count() == 0 {
                return Poll::Ready(None);
            }
            self.is_polled = true;
            let opened = connect.as_mut().poll(cx);
            self.is_polled = false;
            opened.map(Some)
        })
        .await
    }
}

impl Drop for AttemptGuard {
    fn drop(&mut self) {
        let (Some(attempt), Some(pool)) = (self.attempt.take(), self.pool.upgrade()) else {
            return;
        };
        if !self.is_polled {
            return pool.attempt_dropped(&attempt.handle);
        }
        let message = format!(
            "cannot connect to {}: the connector panicked",
            pool.connector.authority
        );
        let failure = mark(
            Status::unavailable(message),
            Origin::Transport,
            Delivery::NotSent,
        );
        pool.not_opened(&attempt.handle, &failure);
    }
}

//! Opens connections, each in the task that drives it afterwards.

use std::{
    future::poll_fn,
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
    pool::{Attempt, Pool},
};
use crate::status::{Origin, mark};

/// Spawns the task of a connection, which opens it first.
pub(crate) fn open(pool: &Arc<Pool>, attempt: Attempt) {
    let runtime = attempt.runtime.clone();
    runtime.spawn(run(Opening {
        pool: Arc::downgrade(pool),
        attempt: Some(attempt),
    }));
}

/// Opens a connection on the caller's runtime, whether or not a call needs it.
///
/// # Errors
///
/// `UNAVAILABLE`: it cannot be opened.
pub(crate) async fn open_first(pool: &Arc<Pool>, runtime: runtime::Handle) -> Result<(), Status> {
    let opened = pool.connector.connect().await?;
    let attempt = pool.attempt_now(runtime);
    if let Some(connection) = Connection::new(opened, pool, &attempt.handle) {
        tokio::spawn(connection);
    }
    pool.open_if_needed(); // the minimum may be more than one
    Ok(())
}

async fn run(mut opening: Opening) {
    let Some(attempt) = &opening.attempt else {
        return;
    };
    let handle = attempt.handle.clone();
    let begins = attempt.begins;
    let weak = opening.pool.clone();
    let connect = async move {
        if begins > Instant::now() {
            sleep_until(begins).await;
        }
        let pool = weak.upgrade()?;
        // The pool is not kept alive by its own attempts.
        let connector = pool.connector.clone();
        drop(pool);
        Some(connector.connect().await)
    };
    let mut connect = std::pin::pin!(connect);
    let opened = poll_fn(|cx| {
        handle.begin(cx);
        handle.end();
        match opening.pool.strong_count() {
            0 => Poll::Ready(None),
            _ => connect.as_mut().poll(cx),
        }
    })
    .await;
    let (Some(opened), Some(pool)) = (opened, opening.pool.upgrade()) else {
        opening.attempt = None;
        return;
    };
    opening.attempt = None;
    let connection = match opened {
        Ok(opened) => Connection::new(opened, &pool, &handle),
        Err(failure) => {
            pool.not_opened(&handle, &failure);
            None
        }
    };
    // There may be need of more, and how many streams each has is known now.
    pool.open_if_needed();
    drop((opening, pool));
    if let Some(connection) = connection {
        connection.await;
    }
}

/// An attempt to open a connection. Dropped before its end, it reports that to the pool.
struct Opening {
    pool: Weak<Pool>,
    attempt: Option<Attempt>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let (Some(attempt), Some(pool)) = (self.attempt.take(), self.pool.upgrade()) else {
            return;
        };
        if !std::thread::panicking() {
            return pool.opening_dropped(&attempt.handle);
        }
        let message = format!(
            "cannot connect to {}: the connector panicked",
            pool.connector.authority()
        );
        let failure = mark(Status::unavailable(message), Origin::Transport);
        pool.not_opened(&attempt.handle, &failure);
    }
}

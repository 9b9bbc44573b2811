//! The task that opens a connection.

use std::{
    convert::Infallible,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{sync::oneshot, time::sleep};
use tonic::Status;

use super::{connect::Connector, pool::Pool};
use crate::{
    backoff::Backoff,
    status::{Origin, mark},
};

/// The task that opens connections, one at a time, while calls wait that no connection can take.
#[derive(Debug, Default)]
pub(crate) enum Opener {
    #[default]
    Idle,
    Connecting,
    /// After a failure. Who finds no connection gets it meanwhile, or waits where there is none to
    /// tell.
    Resting(Option<Status>),
}

/// The opener's task: one attempt, and after a failure the rest before the next.
pub(crate) struct Opening {
    pool: Weak<Pool>,
    connector: Arc<Connector>,
    number: u64,
    done: bool,
}

impl Opening {
    pub(crate) fn new(pool: Weak<Pool>, connector: Arc<Connector>, number: u64) -> Self {
        Self {
            pool,
            connector,
            number,
            done: false,
        }
    }

    pub(crate) async fn run(mut self, rest: Duration, closed: oneshot::Receiver<Infallible>) {
        tokio::select! {
            () = self.open(rest) => {}
            _ = closed => {} // the pool is gone, or has need of a connection now
        }
    }

    async fn open(&mut self, mut rest: Duration) {
        if rest.is_zero() {
            match self.connector.connect().await {
                Ok(opened) => {
                    self.done = true;
                    if let Some(pool) = self.pool.upgrade() {
                        pool.add(opened);
                    }
                    return;
                }
                Err(failure) => match self.pool.upgrade() {
                    Some(pool) => rest = pool.failed(failure),
                    None => return,
                },
            }
        }
        sleep(rest).await;
        self.done = true;
        if let Some(pool) = self.pool.upgrade() {
            pool.rested(self.number);
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if let Some(pool) = self.pool.upgrade() {
            let message = "the tokio runtime that connected has ended";
            let failure = Status::unavailable(format!("{}: {message}", self.connector.authority()));
            pool.abandoned(self.number, mark(failure, Origin::Transport));
        }
    }
}

/// How long to rest after so many failures in a row.
pub(crate) fn rest(failures: u32) -> Duration {
    const BACKOFF: Backoff = Backoff {
        initial: Duration::from_millis(100),
        multiplier: 2.0,
        maximum: Duration::from_secs(5),
    };
    let earlier = failures.checked_sub(1);
    earlier.map_or(Duration::ZERO, |n| BACKOFF.delay(n, fastrand::f64()))
}

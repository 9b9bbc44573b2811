//! How a pool has connections opened: one at a time, with rests after failures.

use std::{
    convert::Infallible,
    sync::{Arc, MutexGuard, Weak},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tonic::Status;

use super::{
    connect::Connector,
    pool::{Pool, State},
};
use crate::{
    backoff::Backoff,
    status::{Origin, mark},
    trace,
};

/// The task that opens connections, one at a time, while calls wait that no connection can take.
#[derive(Debug, Default)]
pub(crate) enum Opener {
    #[default]
    Idle,
    Connecting,
    /// After a failure, until then. Who finds no connection gets it meanwhile, or waits where there
    /// is none to tell.
    Resting(Option<Status>, Instant),
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

impl Pool {
    /// Has another connection opened, if there may be one.
    pub(super) fn open_another(self: &Arc<Self>, mut state: MutexGuard<'_, State>) -> Spawned {
        state.end_rest();
        match &state.opener {
            Opener::Connecting | Opener::Resting(None, _) => Spawned::Done,
            Opener::Resting(Some(failure), _) => {
                let failure = failure.clone();
                drop(state);
                self.fail_waiting(&failure);
                Spawned::Done
            }
            Opener::Idle => {
                // A server that allows no streams just now means the client, not the connection.
                let more = state.members.len() < self.limits.connections;
                match more && state.members.banned().is_none() {
                    true => self.start(state, Opener::Connecting, Duration::ZERO),
                    false => Spawned::Done,
                }
            }
        }
    }

    /// Starts the opener's task, with a rest or an attempt.
    pub(super) fn start(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        opener: Opener,
        rest: Duration,
    ) -> Spawned {
        let (turn, runtime) = match state.waiting.first() {
            Some((turn, runtime)) => (Some(turn), Some(runtime)),
            None => (None, state.runtime.clone()),
        };
        let Some(runtime) = runtime else {
            return Spawned::Done; // cannot be: who has had a connection opened has set it
        };
        state.opener = opener;
        state.opening_for = turn;
        state.openings += 1;
        let number = state.openings;
        state.spawning = Some(number);
        let (closing, closed) = oneshot::channel();
        let before = state.closing.replace(closing);
        // A runtime that has ended drops the task at once, and that takes the lock.
        drop(state);
        drop(before);
        let opening = Opening::new(Arc::downgrade(self), self.connector.clone(), number);
        runtime.spawn(opening.run(rest, closed));
        let mut state = self.lock();
        match state.spawning.take_if(|spawning| *spawning == number) {
            Some(_) => Spawned::Done,
            None => Spawned::Refused,
        }
    }

    /// Notes that there is no connection for now; returns how long to rest before the next attempt.
    pub(crate) fn failed(&self, failure: Status) -> Duration {
        trace::not_connected(self.connector.authority(), &failure);
        let mut state = self.lock();
        state.failures += 1;
        let rest = rest(state.failures);
        state.opener = Opener::Resting(Some(failure.clone()), Instant::now() + rest);
        drop(state);
        self.fail_waiting(&failure);
        rest
    }

    /// Notes that the next attempt may be made, and makes it if a call waits.
    pub(crate) fn rested(self: &Arc<Self>, opening: u64) {
        let mut state = self.lock();
        if state.openings == opening {
            state.opener = Opener::Idle;
        }
        drop(state);
        self.serve();
    }

    /// Notes that the task which connected is gone with its runtime. So is the call that it was
    /// for; others may be on runtimes that live.
    pub(crate) fn abandoned(self: &Arc<Self>, opening: u64, failure: Status) {
        let mut state = self.lock();
        if state.openings != opening {
            return;
        }
        state.opener = Opener::Idle;
        let turn = state.opening_for.take();
        let gone = turn.and_then(|turn| state.waiting.leave(&turn));
        let refused = state.spawning.take_if(|spawning| *spawning == opening);
        drop(state);
        if let Some(waiting) = gone {
            waiting.end(Err(failure));
        }
        // Where the runtime refused the task, its spawner goes on: thousands of calls may wait.
        if refused.is_none() {
            self.serve();
        }
    }
}

impl State {
    /// Ends a rest whose time is over. Its task would do so, too, but it may be on a runtime that
    /// stands still between calls.
    pub(super) fn end_rest(&mut self) {
        if matches!(self.opener, Opener::Resting(_, until) if Instant::now() >= until) {
            self.opener = Opener::Idle;
        }
    }
}

/// What became of a task.
pub(super) enum Spawned {
    Done,
    /// Its runtime has ended.
    Refused,
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

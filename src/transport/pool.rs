//! The connections, and the calls that wait for one.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep},
};
use tonic::{Code, Status};

use super::{
    connect::{Connector, Opened},
    connection::Connection,
    driver::Driver,
    lease::{Granted, Lease},
    members::{Member, Members},
    opening::{Opener, Spawned, rest},
    queue::{Queue, Turn},
};
use crate::{
    status::local,
    task::{runtime, timers},
    trace,
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

/// The connections to a server, and the calls that wait for a stream, in order.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(super) connector: Arc<Connector>,
    pub(super) limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) members: Members,
    pub(super) waiting: Queue,
    pub(super) opener: Opener,
    /// Counts the opener's tasks, so that one that was given up has no say any more.
    pub(super) openings: u64,
    /// Ends the opener's task when it is dropped.
    pub(super) closing: Option<oneshot::Sender<Infallible>>,
    /// How many connections failed since one was good, while there is no other.
    pub(super) failures: u32,
    /// How much longer than set the time before a ping is, for a server that wants fewer.
    pub(super) patience: u32,
    /// Where a connection is opened that no call waits for: the runtime of who came last to have one.
    pub(super) runtime: Option<Handle>,
    /// The call on whose runtime the opener's task is.
    pub(super) opening_for: Option<Turn>,
    /// The opener's task that is being spawned.
    pub(super) spawning: Option<u64>,
}

impl Pool {
    pub(crate) fn new(connector: Connector, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            connector: Arc::new(connector),
            limits,
            state: Mutex::default(),
        })
    }

    pub(crate) fn connections(&self) -> usize {
        self.lock().members.len()
    }

    /// How many streams there are; before the first connection, how many there are at least.
    ///
    /// Connections that may be opened do not count: the server may not take them.
    pub(crate) fn capacity(&self) -> usize {
        let state = self.lock();
        match state.members.is_empty() {
            true => self.limits.connections,
            false => state.members.streams(),
        }
    }

    /// Opens a connection, whether or not a call needs it.
    pub(crate) async fn open_one(self: &Arc<Self>) -> Result<(), Status> {
        let runtime = runtime("a connection")?;
        timers("a connection", || drop(sleep(Duration::ZERO)))?;
        let opened = self.connector.connect().await?;
        self.lock().runtime = Some(runtime);
        self.add(opened);
        Ok(())
    }

    /// Takes a stream for a call, or waits for one.
    ///
    /// The future may be dropped at any time: the place is free, or goes to the next in order.
    pub(crate) async fn stream(
        self: &Arc<Self>,
        turn: &mut Turn,
        deadline: Option<Instant>,
    ) -> Result<Granted, Status> {
        let (mut receiver, _place) = {
            let mut state = self.lock();
            if state.waiting.comes_first(turn)
                && let Some(granted) = self.grant(&state)
            {
                return Ok(granted);
            }
            state.end_rest();
            if let Opener::Resting(Some(failure), _) = &state.opener
                && state.members.is_empty()
            {
                return Err(failure.clone());
            }
            let runtime = runtime("a call that has to connect")?;
            timers("a call that has to connect", || drop(sleep(Duration::ZERO)))?;
            let receiver = state.waiting.join(turn, runtime.clone());
            state.runtime = Some(runtime);
            let banned = state.members.banned();
            let banned =
                banned.map(|connection| (connection.clone(), connection.traffic().reads()));
            let place = Place {
                pool: self,
                turn,
                deadline,
                banned,
            };
            (receiver, place)
        };
        self.serve();
        match (&mut receiver).await {
            Ok(result) => result,
            // Cannot be: who takes a sender out of the queue sends, and the pool is alive.
            Err(_) => Err(local(Code::Internal, "the queue for connections is gone")),
        }
    }

    /// Gives streams to the calls that wait, in order, and has another connection opened if they
    /// need it.
    pub(crate) fn serve(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            if state.waiting.is_empty() {
                return;
            }
            let Some(granted) = self.grant(&state) else {
                match self.open_another(state) {
                    Spawned::Refused => continue, // for another call, on its own runtime
                    Spawned::Done => return,
                }
            };
            let next = state.waiting.pop();
            drop(state);
            if let Some(waiting) = next {
                waiting.end(Ok(granted));
            }
        }
    }

    /// Takes in a connection, and lets it take calls.
    pub(crate) fn add(self: &Arc<Self>, opened: Opened) {
        let authority = self.connector.authority().clone();
        trace::connected(&authority);
        let mut limits = self.limits.clone();
        limits.keepalive = limits.keepalive.saturating_mul(1 << self.lock().patience);
        let (member, driver) = Driver::new(opened, authority, limits, Arc::downgrade(self));
        {
            let mut state = self.lock();
            state.members.add(member);
            state.opener = Opener::Idle;
        }
        tokio::spawn(driver);
        self.serve();
    }

    /// Pings later from now on, see
    /// [gRFC A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md).
    pub(crate) fn ping_less(&self) {
        let mut state = self.lock();
        state.patience = (state.patience + 1).min(16);
    }

    /// Retires an idle connection if there is another that takes calls.
    pub(crate) fn dismiss(&self, connection: &Connection) {
        let mut state = self.lock();
        if state.members.has_other_than(connection) && connection.calls() == 0 {
            let member = state.members.remove(connection);
            drop(state);
            drop(member);
        }
    }

    /// Notes that a connection has ended.
    pub(crate) fn ended(self: &Arc<Self>, connection: &Connection) {
        trace::disconnected(self.connector.authority());
        self.retire(connection);
    }

    /// Notes that a connection takes no more calls. Those on it may end. After one that was of no
    /// use, the next may have to wait.
    pub(crate) fn retire(self: &Arc<Self>, connection: &Connection) {
        let mut state = self.lock();
        let member = state.lose(connection);
        let was_useless = member.is_some() && connection.was_useless();
        state.failures += u32::from(was_useless);
        // One may just have come at the end of its time.
        let rest = rest(state.failures.saturating_sub(1));
        let rest = rest.saturating_sub(connection.opened().elapsed());
        if was_useless && !rest.is_zero() && matches!(state.opener, Opener::Idle) {
            // The calls wait for it: they can be made, only not that often.
            let until = Instant::now() + rest;
            self.start(state, Opener::Resting(None, until), rest);
        } else {
            drop(state);
        }
        drop(member);
        self.serve();
    }

    /// Ends the waiting of all calls, unless there is a connection that can serve them.
    pub(crate) fn fail_waiting(&self, status: &Status) {
        let mut state = self.lock();
        if state.members.is_empty() {
            let waiting = state.waiting.take_all();
            drop(state);
            for waiting in waiting {
                waiting.end(Err(status.clone()));
            }
        }
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    fn grant(self: &Arc<Self>, state: &State) -> Option<Granted> {
        let member = state.members.take_stream()?;
        let lease = Lease::new(member.connection.clone(), self.clone());
        Some((lease, member.sender.clone()))
    }

    pub(crate) fn returned(self: &Arc<Self>, connection: &Connection) {
        let state = self.lock();
        connection.return_stream();
        let serve = !state.waiting.is_empty();
        drop(state);
        if serve {
            self.serve();
        }
    }

    pub(crate) fn answered(&self) {
        self.lock().failures = 0;
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets a connection go that takes no more calls.
    fn lose(&mut self, connection: &Connection) -> Option<Member> {
        let member = self.members.remove(connection)?;
        if connection.has_answered() && self.members.is_empty() {
            self.failures = 0;
            // The rest was for connections beside this one: now there is need of one.
            if matches!(self.opener, Opener::Resting(..)) {
                self.opener = Opener::Idle;
            }
        }
        Some(member)
    }
}

/// Takes a call out of the queue when it does not wait any more.
struct Place<'a> {
    pool: &'a Pool,
    turn: &'a Turn,
    deadline: Option<Instant>,
    /// Where it would have gone if the server allowed streams, and the traffic's reads by then.
    banned: Option<(Arc<Connection>, usize)>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let left = self.pool.lock().waiting.leave(self.turn);
        let late = left.is_some() && self.deadline.is_some_and(|at| Instant::now() >= at);
        if let Some((connection, reads)) = self.banned.as_ref().filter(|_| late) {
            connection.suspect(*reads);
        }
    }
}

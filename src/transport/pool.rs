//! The connections, and the calls that wait for one.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, sync::oneshot};
use tonic::{Code, Status};

use super::{
    connect::{Connector, Opened},
    connection::Connection,
    driver::{Driver, Limits, Member},
    lease::{Granted, Lease},
    opening::{Opener, Opening, rest},
    queue::{Queue, Turn},
};
use crate::{status::local, task::runtime, trace};

/// The connections to a server, oldest first, and the calls that wait for a stream, in order.
#[derive(Debug)]
pub(crate) struct Pool {
    connector: Arc<Connector>,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    members: Vec<Member>,
    waiting: Queue,
    opener: Opener,
    /// Ends the opener's task when the pool is dropped.
    closing: Option<oneshot::Sender<Infallible>>,
    /// How many connections failed since a call was answered last.
    failures: u32,
    /// How much longer than set the time before a ping is, for a server that wants fewer.
    patience: u32,
    /// Where connections are opened: the runtime of who came last to have one opened.
    runtime: Option<Handle>,
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

    /// How many streams there are, for the server may not take more connections; before the first,
    /// one for each that may be opened.
    pub(crate) fn capacity(&self) -> usize {
        let state = self.lock();
        if state.members.is_empty() {
            return self.limits.connections;
        }
        let limits = state.members.iter().map(|member| member.connection.limit());
        limits.fold(0, usize::saturating_add)
    }

    /// Opens a connection, whether or not a call needs it.
    pub(crate) async fn open_one(self: &Arc<Self>) -> Result<(), Status> {
        let runtime = runtime("a connection")?;
        let opened = self.connector.connect().await?;
        self.lock().runtime = Some(runtime);
        self.add(opened);
        Ok(())
    }

    /// Takes a stream for a call, or waits for one.
    ///
    /// The future may be dropped at any time: the place is free, or goes to the next in order.
    pub(crate) async fn stream(self: &Arc<Self>, turn: &mut Turn) -> Result<Granted, Status> {
        let (mut receiver, _place) = {
            let mut state = self.lock();
            if state.waiting.comes_first(turn)
                && let Some(granted) = state.grant(self)
            {
                return Ok(granted);
            }
            if let Opener::Resting(Some(failure)) = &state.opener
                && state.members.is_empty()
            {
                return Err(failure.clone());
            }
            state.runtime = Some(runtime("a call that has to connect")?);
            let receiver = state.waiting.join(turn);
            (receiver, Place { pool: self, turn })
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
            let Some(granted) = state.grant(self) else {
                return self.open_another(state);
            };
            let next = state.waiting.pop();
            drop(state);
            if let Some(waiting) = next {
                // A call that is gone gives it back with this.
                drop(waiting.send(Ok(granted)));
            }
        }
    }

    fn open_another(self: &Arc<Self>, state: MutexGuard<'_, State>) {
        match &state.opener {
            Opener::Connecting | Opener::Resting(None) => {}
            Opener::Resting(Some(failure)) => {
                let failure = failure.clone();
                drop(state);
                self.fail_waiting(&failure);
            }
            Opener::Idle => {
                // A server that allows no streams just now means the client, not the connection.
                let banned = state.members.iter().any(|m| m.connection.limit() == 0);
                if state.members.len() < self.limits.connections && !banned {
                    self.start(state, Opener::Connecting, Duration::ZERO);
                }
            }
        }
    }

    fn start(self: &Arc<Self>, mut state: MutexGuard<'_, State>, opener: Opener, rest: Duration) {
        let Some(runtime) = state.runtime.clone() else {
            return; // cannot be: who waits, or has had a connection opened, has set it
        };
        state.opener = opener;
        let (closing, closed) = oneshot::channel();
        state.closing = Some(closing);
        // A runtime that has ended drops the task at once, and that takes the lock.
        drop(state);
        let opening = Opening::new(Arc::downgrade(self), self.connector.clone());
        runtime.spawn(opening.run(rest, closed));
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
            state.members.push(member);
            state.opener = Opener::Idle;
        }
        tokio::spawn(driver);
        self.serve();
    }

    /// Notes that a connection takes no more calls. Those on it may end.
    pub(crate) fn retire(self: &Arc<Self>, connection: &Connection) {
        let member = self.lock().remove(connection);
        drop(member);
        self.serve();
    }

    /// Pings later from now on, see
    /// [gRFC A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md).
    pub(crate) fn ping_less(&self) {
        let mut state = self.lock();
        state.patience = (state.patience + 1).min(16);
    }

    /// Retires an idle connection if there is another.
    pub(crate) fn dismiss(&self, connection: &Connection) {
        let mut state = self.lock();
        if state.members.len() > 1 && connection.calls() == 0 {
            let member = state.remove(connection);
            drop(state);
            drop(member);
        }
    }

    /// Notes that a connection has ended.
    pub(crate) fn ended(self: &Arc<Self>, connection: &Connection) {
        trace::disconnected(self.connector.authority());
        let mut state = self.lock();
        let member = state.remove(connection);
        if connection.was_useless() {
            state.failures += 1;
            // One may just have come at the end of its time.
            let rest = rest(state.failures - 1).saturating_sub(connection.opened().elapsed());
            if !rest.is_zero() && matches!(state.opener, Opener::Idle) {
                // The calls wait for it: they can be made, only not that often.
                self.start(state, Opener::Resting(None), rest);
                drop(member);
                return self.serve();
            }
        }
        drop(state);
        drop(member);
        if connection.is_abandoned() {
            self.fail_waiting(&connection.abandoned());
        }
        self.serve();
    }

    /// Ends the waiting of all calls, unless there is a connection that can serve them.
    pub(crate) fn fail_waiting(&self, status: &Status) {
        let mut state = self.lock();
        if state.members.is_empty() {
            let waiting = state.waiting.take_all();
            drop(state);
            for waiting in waiting {
                let _ = waiting.send(Err(status.clone()));
            }
        }
    }

    /// Notes that there is no connection for now; returns how long to rest before the next attempt.
    pub(crate) fn failed(&self, failure: Status) -> Duration {
        trace::not_connected(self.connector.authority(), &failure);
        let mut state = self.lock();
        state.failures += 1;
        let rest = rest(state.failures);
        state.opener = Opener::Resting(Some(failure.clone()));
        drop(state);
        self.fail_waiting(&failure);
        rest
    }

    /// Notes that the next attempt may be made, and makes it if a call waits.
    pub(crate) fn rested(self: &Arc<Self>) {
        self.lock().opener = Opener::Idle;
        self.serve();
    }

    /// Notes that the task which connected is gone.
    pub(crate) fn abandoned(&self, failure: &Status) {
        self.lock().opener = Opener::Idle;
        self.fail_waiting(failure);
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes a stream of the oldest connection that has one; of a suspect only if no other has.
    fn grant(&self, pool: &Arc<Pool>) -> Option<Granted> {
        let free = |member: &&Member| member.connection.calls() < member.connection.limit();
        let mut members = self.members.iter().filter(free);
        let sound = members
            .clone()
            .find(|member| !member.connection.is_suspect());
        let member = sound.or_else(|| members.next())?;
        member.connection.take_stream();
        let lease = Lease::new(member.connection.clone(), pool.clone());
        Some((lease, member.sender.clone()))
    }

    fn remove(&mut self, connection: &Connection) -> Option<Member> {
        let same = |member: &Member| std::ptr::eq(&*member.connection, connection);
        let index = self.members.iter().position(same)?;
        Some(self.members.remove(index))
    }
}

/// Takes a call out of the queue when it does not wait any more.
struct Place<'a> {
    pool: &'a Pool,
    turn: &'a Turn,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let left = self.pool.lock().waiting.leave(self.turn);
        drop(left);
    }
}

//! The connections, and the calls that wait for one.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep},
};
use tonic::{Code, Status};

use super::{
    connect::{Connector, Opened},
    connection::{Connection, Driver, Member},
};
use crate::{
    backoff::Backoff,
    status::{Origin, local, mark},
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
    waiting: BTreeMap<u64, oneshot::Sender<Result<Lease, Status>>>,
    turns: u64,
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

/// The task that opens connections, one at a time, while calls wait that no connection can take.
#[derive(Debug, Default)]
enum Opener {
    #[default]
    Idle,
    Connecting,
    /// After a failure. Who finds no connection gets it meanwhile.
    Resting(Status),
}

/// The place of a call in the order of those that wait. It keeps it when it has to wait again.
#[derive(Debug, Default)]
pub(crate) struct Turn(Option<u64>);

impl Turn {
    pub(crate) fn has_waited(&self) -> bool {
        self.0.is_some()
    }
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

    /// Opens a connection, whether or not a call needs it.
    pub(crate) async fn open_one(self: &Arc<Self>) -> Result<(), Status> {
        let runtime = runtime()?;
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
    ) -> Result<Lease, Status> {
        let (receiver, _place) = {
            let mut state = self.lock();
            let first = state.waiting.first_key_value().map(|(&first, _)| first);
            if first.is_none_or(|first| turn.0.is_some_and(|turn| turn < first))
                && let Some(lease) = state.lease(self)
            {
                drop(state);
                return Ok(lease.until(deadline));
            }
            if let Opener::Resting(failure) = &state.opener
                && state.members.is_empty()
            {
                return Err(failure.clone());
            }
            state.runtime = Some(runtime()?);
            let turn = *turn.0.get_or_insert_with(|| {
                state.turns += 1;
                state.turns
            });
            let (sender, receiver) = oneshot::channel();
            state.waiting.insert(turn, sender);
            (receiver, Place { pool: self, turn })
        };
        self.serve();
        match receiver.await {
            Ok(result) => result.map(|lease| lease.until(deadline)),
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
            let Some(lease) = state.lease(self) else {
                return self.open_another(state);
            };
            let next = state.waiting.pop_first();
            drop(state);
            if let Some((_, waiting)) = next {
                // A call that is gone gives it back with this.
                drop(waiting.send(Ok(lease)));
            }
        }
    }

    fn open_another(self: &Arc<Self>, state: MutexGuard<'_, State>) {
        match &state.opener {
            Opener::Connecting => {}
            Opener::Resting(failure) => {
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

    fn start(self: &Arc<Self>, mut state: MutexGuard<'_, State>, as_: Opener, rest: Duration) {
        let Some(runtime) = state.runtime.clone() else {
            return; // cannot be: who waits, or has had a connection opened, has set it
        };
        state.opener = as_;
        let (closing, closed) = oneshot::channel();
        state.closing = Some(closing);
        // A runtime that has ended drops the task at once, and that takes the lock.
        drop(state);
        let opening = Opening {
            pool: Arc::downgrade(self),
            connector: self.connector.clone(),
            done: false,
        };
        runtime.spawn(opening.run(rest, closed));
    }

    /// Takes in a connection, and lets it take calls.
    fn add(self: &Arc<Self>, opened: Opened) {
        let authority = self.connector.authority().clone();
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
        let mut state = self.lock();
        let member = state.remove(connection);
        if connection.uses() > 0 && !connection.has_answered() {
            state.failures += 1;
            // One may just have come at the end of its time.
            let rest = rest(state.failures - 1).saturating_sub(connection.opened().elapsed());
            if !rest.is_zero() && matches!(state.opener, Opener::Idle) {
                self.start(state, Opener::Resting(connection.lost()), rest);
                drop(member);
                return self.serve();
            }
        }
        drop(state);
        drop(member);
        if connection.is_abandoned() {
            self.fail_waiting(&connection.lost());
        }
        self.serve();
    }

    /// Ends the waiting of all calls, unless there is a connection that can serve them.
    fn fail_waiting(&self, status: &Status) {
        let mut state = self.lock();
        if state.members.is_empty() {
            let waiting = mem::take(&mut state.waiting);
            drop(state);
            for waiting in waiting.into_values() {
                let _ = waiting.send(Err(status.clone()));
            }
        }
    }

    fn failed(&self, failure: Status) -> Duration {
        let mut state = self.lock();
        state.failures += 1;
        let rest = rest(state.failures);
        state.opener = Opener::Resting(failure.clone());
        drop(state);
        self.fail_waiting(&failure);
        rest
    }

    fn returned(self: &Arc<Self>, connection: &Connection) {
        let state = self.lock();
        connection.return_stream();
        let serve = !state.waiting.is_empty();
        drop(state);
        if serve {
            self.serve();
        }
    }

    fn answered(&self) {
        self.lock().failures = 0;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes a stream of the oldest connection that has one; of a suspect only if no other has.
    fn lease(&self, pool: &Arc<Pool>) -> Option<Lease> {
        let free = |member: &&Member| member.connection.calls() < member.connection.limit();
        let mut members = self.members.iter().filter(free);
        let sound = members
            .clone()
            .find(|member| !member.connection.is_suspect());
        let member = sound.or_else(|| members.next())?;
        member.connection.take_stream();
        Some(Lease {
            reads: member.connection.traffic().reads(),
            connection: member.connection.clone(),
            sender: Some(member.sender.clone()),
            pool: pool.clone(),
            deadline: None,
            completed: false,
        })
    }

    fn remove(&mut self, connection: &Connection) -> Option<Member> {
        let same = |member: &Member| std::ptr::eq(&*member.connection, connection);
        let index = self.members.iter().position(same)?;
        Some(self.members.remove(index))
    }
}

/// A stream of a connection, for one call.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Arc<Connection>,
    sender: Option<SendRequest<Bytes>>,
    pool: Arc<Pool>,
    deadline: Option<Instant>,
    /// The traffic's reads when something of this call moved last.
    reads: usize,
    completed: bool,
}

impl Lease {
    fn until(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline;
        self
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The means to send the request, once.
    pub(crate) fn sender(&mut self) -> Option<SendRequest<Bytes>> {
        self.progressed();
        self.sender.take()
    }

    pub(crate) fn answered(&mut self) {
        self.progressed();
        if self.connection.answered() {
            self.pool.answered();
        }
    }

    pub(crate) fn progressed(&mut self) {
        self.reads = self.connection.traffic().reads();
    }

    pub(crate) fn completed(mut self) {
        self.completed = true;
    }

    pub(crate) fn failed(mut self, error: h2::Error) -> Status {
        self.completed = true;
        self.connection.failed(error)
    }

    /// Tells that the connection takes no more calls.
    pub(crate) fn retire(&self) {
        self.pool.retire(&self.connection);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let late = || self.deadline.is_some_and(|at| Instant::now() >= at);
        if !self.completed && late() {
            self.connection.suspect(self.reads);
        }
        self.pool.returned(&self.connection);
    }
}

/// A call's place in the queue. Declared after the receiver, it is dropped before it, so that
/// nothing is sent to a call that is gone.
struct Place<'a> {
    pool: &'a Pool,
    turn: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let waiting = self.pool.lock().waiting.remove(&self.turn);
        drop(waiting);
    }
}

/// The opener's task: one attempt, and after a failure the rest before the next.
struct Opening {
    pool: Weak<Pool>,
    connector: Arc<Connector>,
    done: bool,
}

impl Opening {
    async fn run(mut self, rest: Duration, closed: oneshot::Receiver<Infallible>) {
        tokio::select! {
            () = self.open(rest) => {}
            _ = closed => {} // the pool is gone
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
            pool.lock().opener = Opener::Idle;
            pool.serve();
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if let Some(pool) = self.pool.upgrade() {
            pool.lock().opener = Opener::Idle;
            let message = "the tokio runtime that connected has ended";
            let failure = Status::unavailable(format!("{}: {message}", self.connector.authority()));
            pool.fail_waiting(&mark(failure, Origin::Transport));
        }
    }
}

/// How long to rest after so many failures in a row.
fn rest(failures: u32) -> Duration {
    const BACKOFF: Backoff = Backoff {
        initial: Duration::from_millis(100),
        multiplier: 2.0,
        maximum: Duration::from_secs(5),
    };
    let earlier = failures.checked_sub(1);
    earlier.map_or(Duration::ZERO, |n| BACKOFF.delay(n, fastrand::f64()))
}

fn runtime() -> Result<Handle, Status> {
    Handle::try_current().map_err(|_| {
        local(
            Code::FailedPrecondition,
            "a call that has to connect needs a tokio runtime: make it within one",
        )
    })
}

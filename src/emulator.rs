//! An in-memory implementation of `google.longrunning.Operations`, for tests.
//!
//! An [`Emulator`] serves all five methods, over HTTP/2 on a loopback port or in process. A test starts
//! operations, decides how they end, injects faults, and examines the calls that were received:
//!
//! ```
//! use longrunning::{OperationsClient, emulator::Emulator};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let emulator = Emulator::start().await?;
//! emulator.start_operation("operations/1")?;
//!
//! let client = OperationsClient::builder(emulator.endpoint()).connect().await?;
//! client.cancel_operation("operations/1").await?;
//!
//! let operation = emulator.operation("operations/1").expect("it stays on record");
//! assert!(operation.done);
//! assert_eq!(emulator.calls()[0].name(), "operations/1");
//! # Ok(())
//! # }
//! ```
//!
//! Faults and other behavior of servers: [`on_cancel`](Emulator::on_cancel), [`on_wait`](Emulator::on_wait),
//! [`delay`](Emulator::delay), [`delay_with`](Emulator::delay_with), [`fail_next`](Emulator::fail_next),
//! [`lose_next`](Emulator::lose_next), [`reset_next`](Emulator::reset_next),
//! [`unimplement`](Emulator::unimplement), [`require`](Emulator::require), [`quota`](Emulator::quota),
//! [`restart`](Emulator::restart), and a limit on [streams](EmulatorBuilder::max_concurrent_streams).
//! The guide [`testing`](crate::guide::testing) shows how to test a service with it.
//!
//! A call's deadline never turns into `CANCELLED` here. A late answer stays late: it comes when
//! its delay is over, whatever the `grpc-timeout`, as a stuck server's would, and it is up to the
//! client to give up. Only a call that arrives with no time left is answered
//! `DEADLINE_EXCEEDED`, and a Wait returns the latest state before its deadline.
//!
//! # Checks of requests
//!
//! Over sockets, a request is checked before it counts as a call, by the rules of
//! [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md) and the
//! defaults of gRPC's servers:
//!
//! | Request | Answer |
//! |---|---|
//! | a method other than POST | HTTP 405 |
//! | a missing content-type, or one other than `application/grpc` with an optional `+` suffix and parameters; `application/grpc-web` is another protocol | HTTP 415 |
//! | a suffix other than `+proto`, such as `application/grpc+json` | `UNIMPLEMENTED` |
//! | an invalid `grpc-timeout` | HTTP 400 |
//! | an unknown path | `UNIMPLEMENTED` |
//! | a message larger than 4 MiB | `RESOURCE_EXHAUSTED` |
//! | no message, a truncated one, or bytes after the first | `INTERNAL` |
//! | a compressed message with a `grpc-encoding` | `UNIMPLEMENTED`, and `grpc-accept-encoding: identity` |
//! | a compressed message without a `grpc-encoding`, or an unknown Compressed-Flag | `INTERNAL` |
//!
//! A message that is not compressed is served whatever its `grpc-encoding`. In process, through
//! [`Emulator::service`], there is no HTTP, and none of these checks: tonic's generated server
//! reads the request by its own rules.

mod calls;
mod cancel;
mod deadline;
mod filter;
mod list;
mod operations;
mod quota;
mod request;
mod script;
mod server;
mod service;
mod wait;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use tonic::Status;

use self::{
    calls::Log,
    operations::Store,
    script::Script,
    server::{Server, Tasks},
};
pub use self::{
    calls::{Call, CallOutcome, CallRequest, Method},
    cancel::CancelBehavior,
    service::EmulatorService,
    wait::WaitBehavior,
};
use crate::{proto::operations_server::OperationsServer, task::runtime};

/// An in-memory server of `google.longrunning.Operations`.
///
/// Dropping it closes its port and its connections and ends its tasks; [`shutdown`](Self::shutdown)
/// also waits until that is done. All methods take `&self`: tasks share it in an [`Arc`].
pub struct Emulator {
    shared: Arc<Shared>,
    /// `None` for an in-process emulator.
    server: Option<Server>,
}

impl Emulator {
    /// Serves on a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// - `FAILED_PRECONDITION`: there is no tokio runtime here.
    /// - `UNAVAILABLE`: the port cannot be had.
    ///
    /// # Panics
    ///
    /// In a tokio runtime that was built without I/O or time, as tokio's own types do.
    pub async fn start() -> Result<Self, Status> {
        Self::builder().start().await
    }

    /// Creates an in-process emulator: it has no socket, and is called only through [`service`](Self::service).
    ///
    /// ```
    /// use longrunning::{OperationsClient, emulator::Emulator};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// let emulator = Emulator::in_process()?;
    /// emulator.start_operation("operations/1")?;
    /// let client = OperationsClient::new(emulator.service());
    /// client.cancel_operation("operations/1").await?;
    /// # assert!(emulator.operation("operations/1").is_some_and(|operation| operation.done));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// `FAILED_PRECONDITION`: there is no tokio runtime.
    pub fn in_process() -> Result<Self, Status> {
        Ok(Self {
            shared: Shared::new()?,
            server: None,
        })
    }

    /// Returns a builder, for a certain port or a limit on streams.
    pub fn builder() -> EmulatorBuilder {
        EmulatorBuilder::default()
    }

    /// Returns the endpoint of the emulator, such as `http://127.0.0.1:50051`.
    ///
    /// The port is 0, to which nothing can connect, if the emulator is [in process](Self::in_process).
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// Returns the port of the emulator, or 0 if it is [in process](Self::in_process).
    pub fn port(&self) -> u16 {
        self.server
            .as_ref()
            .map_or(0, |server| server.address.port())
    }

    /// Returns the service to be called in process, without a socket.
    ///
    /// It goes on answering when the emulator has shut down, except that nothing ends by itself
    /// any more.
    ///
    /// ```
    /// use longrunning::{OperationsClient, emulator::Emulator};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// let emulator = Emulator::start().await?;
    /// emulator.start_operation("operations/1")?;
    /// let client = OperationsClient::new(emulator.service());
    /// assert!(!client.get_operation("operations/1").await?.done);
    /// # Ok(())
    /// # }
    /// ```
    pub fn service(&self) -> OperationsServer<EmulatorService> {
        OperationsServer::new(EmulatorService::new(Arc::clone(&self.shared)))
    }

    /// Waits until the condition holds. It is looked at now and after every change of a call, an
    /// operation or a connection, so nothing need sleep or poll.
    ///
    /// A condition that never comes true is waited for forever: `tokio::time::timeout` bounds it.
    /// Dropping the future is safe.
    ///
    /// ```
    /// use longrunning::{OperationsClient, emulator::Emulator};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// let emulator = Emulator::start().await?;
    /// emulator.start_operation("operations/1")?;
    /// let client = OperationsClient::new(emulator.service());
    /// let call = tokio::spawn(async move { client.wait_operation("operations/1").await });
    /// emulator.wait_until(|emulator| emulator.in_flight() == 1).await;
    /// call.abort();
    /// emulator.wait_until(|emulator| emulator.in_flight() == 0).await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn wait_until(&self, mut condition: impl FnMut(&Self) -> bool) {
        let mut changes = self.shared.changes.subscribe();
        // What happens between the look and the wait is seen: the receiver is older than both.
        while !condition(self) && changes.changed().await.is_ok() {}
    }

    /// Closes the port and the connections, and returns when the last task has ended.
    ///
    /// Calls in flight are cut off.
    pub async fn shutdown(self) {
        self.stop().await;
        self.shared.tasks.close();
        self.shared.tasks.closed().await;
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.close();
        }
        self.shared.tasks.close();
    }
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator")
            .field("endpoint", &self.endpoint())
            .finish_non_exhaustive()
    }
}

/// A builder for an [`Emulator`] with a certain port or a limit on streams.
#[derive(Clone, Debug, Default)]
pub struct EmulatorBuilder {
    port: u16,
    max_concurrent_streams: Option<usize>,
}

impl EmulatorBuilder {
    /// Sets the port on 127.0.0.1. Defaults to 0, which means any free port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Sets the maximum number of concurrent streams on a connection, as announced to clients.
    ///
    /// Further calls are refused with `REFUSED_STREAM`. Google's front ends allow 100. Defaults to no limit.
    #[must_use]
    pub fn max_concurrent_streams(self, limit: usize) -> Self {
        Self {
            max_concurrent_streams: Some(limit),
            ..self
        }
    }

    /// Starts the emulator.
    ///
    /// # Errors
    ///
    /// As [`Emulator::start`].
    ///
    /// # Panics
    ///
    /// As [`Emulator::start`].
    pub async fn start(self) -> Result<Emulator, Status> {
        let shared = Shared::new()?;
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let runtime = &shared.tasks.runtime;
        let listener = server::listen(wanted, runtime, "use port 0 for any free port")?;
        let address = listener.local_addr().unwrap_or(wanted);
        let max_streams = self.max_concurrent_streams;
        let max_streams = max_streams.map(|max| u32::try_from(max).unwrap_or(u32::MAX));
        let server = Server::new(address, max_streams, shared.tasks.runtime.clone());
        let service = OperationsServer::new(EmulatorService::new(Arc::clone(&shared)));
        server.serve(listener, service, &shared);
        Ok(Emulator {
            shared,
            server: Some(server),
        })
    }
}

/// What the handle, the service and the tasks have in common. No two of its locks are ever held
/// together, and none is while foreign code runs.
struct Shared {
    /// Told of every change of what follows.
    changes: watch::Sender<()>,
    log: Mutex<Log>,
    script: Mutex<Script>,
    store: Mutex<Store>,
    tasks: Tasks,
}

impl Shared {
    fn new() -> Result<Arc<Self>, Status> {
        Ok(Arc::new(Self {
            changes: watch::Sender::default(),
            log: Mutex::default(),
            script: Mutex::default(),
            store: Mutex::default(),
            tasks: Tasks::new(runtime("an emulator")?),
        }))
    }

    fn changed(&self) {
        self.changes.send_replace(());
    }
}

/// Locks it. A panic elsewhere does not spread: what is guarded is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! HTTP/2 on a loopback port, and the tasks that it takes.
//!
//! tonic's own server is left out: it answers a passed deadline with CANCELLED, and its feature
//! would change which codes tonic's client gives to failures.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper::{rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Handle,
    sync::watch,
};
use tonic::{Code, Status};
use tower::Service as _;

use super::{Emulator, EmulatorService, Shared, lock, request, script};
use crate::{Delivery, Origin, proto::operations_server::OperationsServer, status::caused};

impl Emulator {
    /// Closes every open connection gracefully with `GOAWAY`, like a server that limits the age of its
    /// connections. Calls in flight complete, and new calls need another connection.
    /// This has no effect on an emulator that is [in process](Self::in_process).
    pub fn drain_connections(&self) {
        if let Some(server) = &self.server {
            server.cuts.send_modify(|_| {});
        }
    }

    /// Closes every open connection immediately, without answering the calls in flight. New connections
    /// are accepted. This has no effect on an emulator that is [in process](Self::in_process).
    pub fn abort_connections(&self) {
        if let Some(server) = &self.server {
            server.cuts.send_modify(|cuts| *cuts += 1);
        }
    }

    /// Stops the server: closes the port and all connections, without answering the calls in flight.
    ///
    /// The operations, the recorded calls and all settings are kept, and [`service`](Self::service) keeps
    /// working. [`restart`](Self::restart) starts the server again. This has no effect on an emulator that
    /// is [in process](Self::in_process).
    ///
    /// The server runs on the runtime in which the emulator was created. This method waits until the tasks of
    /// the server have ended, so it does not return while that runtime exists but is not driven.
    pub async fn stop(&self) {
        if let Some(server) = &self.server {
            server.stop().await;
        }
    }

    /// Restarts the server on the same port, and on the runtime in which the emulator was created. If it is
    /// running, it is [stopped](Self::stop) first.
    ///
    /// ```
    /// use longrunning::{OperationsClient, emulator::Emulator};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// let emulator = Emulator::start().await?;
    /// emulator.start_operation("operations/1")?;
    /// let client = OperationsClient::builder(emulator.endpoint()).connect().await?;
    /// emulator.restart().await?;
    /// assert!(!client.get_operation("operations/1").await?.done);
    /// assert_eq!(emulator.accepted_connections(), 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// - `FAILED_PRECONDITION`: the emulator is [in process](Self::in_process).
    /// - `UNAVAILABLE`: the port cannot be bound, for example because another process uses it, or the runtime
    ///   in which the emulator was created has shut down.
    pub async fn restart(&self) -> Result<(), Status> {
        let Some(server) = &self.server else {
            return Err(Status::failed_precondition(
                "an in-process emulator cannot be restarted: use Emulator::start for one with a port",
            ));
        };
        let _alone = server.changing.lock().await;
        server.close_and_wait().await;
        let runtime = &self.shared.tasks.runtime;
        let listener = listen(
            server.address,
            runtime,
            "stop the process that uses the port",
        )?;
        *lock(&server.tasks) = Tasks::new(runtime.clone());
        server.serve(listener, self.service(), &self.shared);
        Ok(())
    }
}

/// Binds a TCP listener on a runtime. The error message ends with `remedy`.
///
/// # Errors
///
/// `UNAVAILABLE`: the address cannot be bound, or the runtime has shut down.
pub(super) fn listen(
    wanted: SocketAddr,
    runtime: &Handle,
    remedy: &str,
) -> Result<TcpListener, Status> {
    let listen = || {
        let _runtime = runtime.enter();
        let socket = TcpSocket::new_v4()?;
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(wanted)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error: io::Error| {
        let message = format!("cannot listen on {wanted}: {error}: {remedy}");
        let (origin, delivery) = (Origin::Client, Delivery::NotSent);
        caused(Code::Unavailable, message, origin, delivery, error)
    })
}

/// The HTTP/2 server of an emulator.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    max_streams: Option<u32>,
    /// The tasks of the listener and of the connections.
    tasks: Mutex<Tasks>,
    /// Held while the server is stopped or restarted.
    changing: tokio::sync::Mutex<()>,
    /// The number of times that connections were aborted. A notification without an increase drains them.
    cuts: watch::Sender<u64>,
}

impl Server {
    pub(super) fn new(address: SocketAddr, max_streams: Option<u32>, runtime: Handle) -> Self {
        Self {
            address,
            max_streams,
            tasks: Mutex::new(Tasks::new(runtime)),
            changing: tokio::sync::Mutex::default(),
            cuts: watch::Sender::default(),
        }
    }

    /// Spawns a task that accepts connections until the server is closed.
    pub(super) fn serve(
        &self,
        listener: TcpListener,
        service: OperationsServer<EmulatorService>,
        shared: &Arc<Shared>,
    ) {
        let tasks = lock(&self.tasks).clone();
        let (shared, cuts) = (Arc::clone(shared), self.cuts.clone());
        let mut http2 = http2::Builder::new(tasks.clone());
        http2
            .max_concurrent_streams(self.max_streams)
            // With small windows, h2 treats many small requests on one connection as a flood.
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let connections = tasks.clone();
        tasks.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let shared = Arc::clone(&shared);
                        let cuts = cuts.subscribe();
                        let connection = connection(stream, &http2, service.clone(), shared, cuts);
                        connections.spawn(connection);
                    }
                    // The process is probably out of file descriptors: wait until some are free.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
    }

    pub(super) fn close(&self) {
        lock(&self.tasks).close();
    }

    /// Closes the port and the connections, and waits until the last task has ended.
    pub(super) async fn stop(&self) {
        let _alone = self.changing.lock().await;
        self.close_and_wait().await;
    }

    async fn close_and_wait(&self) {
        let tasks = lock(&self.tasks).clone();
        tasks.close();
        tasks.closed().await;
    }
}

/// Serves one connection to its end.
fn connection(
    stream: TcpStream,
    http2: &http2::Builder<Tasks>,
    service: OperationsServer<EmulatorService>,
    shared: Arc<Shared>,
    mut cuts: watch::Receiver<u64>,
) -> impl Future<Output = ()> + Send + use<> {
    let open = shared.count_connection();
    let number = open.number;
    let before = *cuts.borrow_and_update();
    let answer = service_fn(move |request| {
        let mut service = service.clone();
        async move {
            let mut request = match request::check(request).await {
                Ok(request) => request,
                Err(rejection) => return Ok(rejection.into_response()),
            };
            request.extensions_mut().insert(ConnectionNumber(number));
            let Ok(response) = service.call(request).await;
            match script::reset(&response) {
                Some(reason) => Err(h2::Error::from(reason)),
                None => Ok(response),
            }
        }
    });
    // Small answers are all there is: waiting for more to send would only cost time.
    let alive = stream.set_nodelay(true).is_ok();
    let serving = http2.serve_connection(TokioIo::new(stream), answer);
    async move {
        let _open = open;
        if !alive {
            return;
        }
        let mut serving = pin!(serving);
        loop {
            tokio::select! {
                _ = &mut serving => return,
                changed = cuts.changed() => match changed.map(|()| *cuts.borrow_and_update()) {
                    Ok(now) if now == before => serving.as_mut().graceful_shutdown(),
                    _ => return,
                },
            }
        }
    }
}

/// The number of the connection on which a request arrived, stored in the request's extensions.
#[derive(Clone, Copy)]
pub(super) struct ConnectionNumber(pub(super) usize);

/// Spawns tasks, and ends them all.
#[derive(Clone)]
pub(super) struct Tasks {
    /// Each task holds a receiver as long as it lives.
    closed: watch::Sender<bool>,
    pub(super) runtime: Handle,
}

impl Tasks {
    pub(super) fn new(runtime: Handle) -> Self {
        Self {
            closed: watch::Sender::default(),
            runtime,
        }
    }

    /// Spawns a task, that is dropped where it stands when the emulator closes.
    pub(super) fn spawn<F: Future<Output: Send> + Send + 'static>(&self, task: F) {
        let mut closed = self.closed.subscribe();
        self.runtime.spawn(async move {
            tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => {}
                _ = task => {}
            }
        });
    }

    /// Ends all tasks, and every later one before it starts.
    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Waits until no task is left.
    pub(super) async fn closed(&self) {
        self.closed.closed().await;
    }
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

/// The maximum number of connections that wait to be accepted.
const BACKLOG: u32 = 1024;
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 5 * 1024 * 1024;

//! HTTP/2 on a loopback port, and the tasks that it takes.
//!
//! tonic's own server is left out: it answers a passed deadline with CANCELLED, and its feature
//! would change which codes tonic's client gives to failures.

use std::{pin::pin, sync::Arc, time::Duration};

use hyper::{rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::watch,
};
use tower::Service as _;

use super::{Emulator, Service, Shared, request, script};
use crate::proto::operations_server::OperationsServer;

impl Emulator {
    /// Asks every open connection to close, as servers do that limit their age: calls in flight
    /// are answered, further ones go elsewhere (`GOAWAY`). New connections are welcome.
    pub fn drain_connections(&self) {
        self.shared.tasks.cuts.send_modify(|_| {});
    }

    /// Cuts every open connection without a word, calls in flight included. New connections are
    /// welcome.
    pub fn cut_connections(&self) {
        self.shared.tasks.cuts.send_modify(|cuts| *cuts += 1);
    }
}

/// Accepts connections in a task, until the emulator closes.
pub(super) fn serve(emulator: &Emulator, listener: TcpListener, max_streams: Option<u32>) {
    let shared = Arc::clone(&emulator.shared);
    let service = emulator.service();
    let mut http2 = http2::Builder::new(shared.tasks.clone());
    http2
        .max_concurrent_streams(max_streams)
        // With small windows, h2 takes many small requests on one connection for a flood.
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // A test may well drop a thousand calls at once; that is no attack either.
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS);
    emulator.shared.tasks.spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection =
                        connection(stream, &http2, service.clone(), Arc::clone(&shared));
                    shared.tasks.spawn(connection);
                }
                // Out of file descriptors, most likely: some will be free again.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
}

/// Serves one connection to its end.
fn connection(
    stream: TcpStream,
    http2: &http2::Builder<Tasks>,
    service: OperationsServer<Service>,
    shared: Arc<Shared>,
) -> impl Future<Output = ()> + Send + use<> {
    let open = shared.count_connection();
    let mut cuts = shared.tasks.cuts.subscribe();
    let before = *cuts.borrow_and_update();
    let answer = service_fn(move |request| {
        let mut service = service.clone();
        async move {
            let request = match request::check(request).await {
                Ok(request) => request,
                Err(rejection) => return Ok(rejection.into_response()),
            };
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
                told = cuts.changed() => match told.map(|()| *cuts.borrow_and_update()) {
                    Ok(now) if now == before => serving.as_mut().graceful_shutdown(),
                    _ => return,
                },
            }
        }
    }
}

/// Spawns tasks, and ends them all.
#[derive(Clone)]
pub(super) struct Tasks {
    /// Each task holds a receiver as long as it lives.
    closed: watch::Sender<bool>,
    /// How often the connections were cut. Who is told of it and finds no cut is to drain: so a
    /// drain hides no cut before it.
    cuts: watch::Sender<u64>,
    runtime: Handle,
}

impl Tasks {
    pub(super) fn new(runtime: Handle) -> Self {
        Self {
            closed: watch::Sender::default(),
            cuts: watch::Sender::default(),
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

const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 5 * 1024 * 1024;
const MAX_RESETS: usize = 100_000;

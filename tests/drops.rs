//! Callers that go away by the hundred: the connection and its neighbours live, also with servers that
//! close a connection on which too many streams are reset.

mod support;

use std::{
    convert::Infallible,
    future::poll_fn,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    future::try_join_all,
    stream::{FuturesUnordered, StreamExt as _},
};
use h2::Reason;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use longrunning::{
    OperationsClient, RetryPolicy,
    proto::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        ListOperationsResponse, Operation, WaitOperationRequest,
        operations_server::{Operations, OperationsServer},
    },
};
use tokio::{
    net::TcpListener,
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{Code, Status, transport::server::TcpIncoming};

use self::support::{Stage, until};

const NAME: &str = "operations/1";
const SLOW: &str = "operations/slow";

/// How long a server stands still.
const FREEZE: Duration = Duration::from_millis(400);

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    calls: AtomicUsize,
    /// Whether the server's thread stands still with the next call.
    freezes: AtomicBool,
}

impl Seen {
    fn connected(&self) {
        self.connections.fetch_add(1, Ordering::SeqCst);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Returns at once, but never for a slow operation.
    async fn call(&self, name: &[u8]) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.freezes.swap(false, Ordering::SeqCst) {
            thread::sleep(FREEZE);
        }
        if name.ends_with(b"slow") {
            sleep(Duration::from_secs(60)).await;
        }
    }
}

/// A server with the guard against early resets that it has by default.
struct Guarded {
    name: &'static str,
    addr: SocketAddr,
    seen: Arc<Seen>,
    _stage: Stage,
}

impl Guarded {
    fn start<F>(name: &'static str, serve: fn(StdListener, Arc<Seen>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let addr = listener.local_addr().expect("a bound socket");
        let seen = Arc::<Seen>::default();
        let stage = Stage::run(serve(listener, seen.clone()));
        Self {
            name,
            addr,
            seen,
            _stage: stage,
        }
    }

    fn all() -> [Self; 3] {
        [
            Self::start("h2, counting as nghttp2", serve_h2),
            Self::start("hyper", serve_hyper),
            Self::start("tonic", serve_tonic),
        ]
    }

    async fn client(&self) -> OperationsClient {
        OperationsClient::builder(format!("http://{}", self.addr))
            .retry(RetryPolicy::none())
            .max_connections(1)
            .connect()
            .await
            .expect("a server")
    }

    /// Makes calls beside the test until the result is dropped; each has to succeed.
    fn neighbour(&self, client: &OperationsClient) -> JoinSet<()> {
        let (client, name) = (client.clone(), self.name);
        let mut neighbour = JoinSet::new();
        neighbour.spawn(async move {
            loop {
                let result = client.cancel_operation(NAME).await;
                assert!(result.is_ok(), "{name}: {result:?}");
                sleep(Duration::from_millis(1)).await;
            }
        });
        neighbour
    }

    async fn lives(&self, client: &OperationsClient, mut neighbour: JoinSet<()>) {
        sleep(Duration::from_millis(100)).await;
        assert!(
            neighbour.try_join_next().is_none(),
            "{}: a neighbour failed",
            self.name
        );
        let result = client.cancel_operation(NAME).await;
        assert!(result.is_ok(), "{}: {result:?}", self.name);
        let connections = self.seen.connections.load(Ordering::SeqCst);
        assert_eq!(connections, 1, "{}", self.name);
    }
}

/// The resets that a connection of nghttp2, and so of Node.js, accepts by default: a thousand at once,
/// and 33 a second.
struct Resets {
    left: f64,
    since: Instant,
}

impl Resets {
    const MAX: f64 = 1_000.0;
    const PER_SECOND: f64 = 33.0;

    fn new() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            left: Self::MAX,
            since: Instant::now(),
        }))
    }

    /// Counts a reset; returns whether it is one too many.
    fn are_too_many(&mut self) -> bool {
        let refill = self.since.elapsed().as_secs_f64() * Self::PER_SECOND;
        self.since = Instant::now();
        self.left = (self.left + refill).min(Self::MAX) - 1.0;
        self.left < 0.0
    }
}

async fn serve_h2(listener: StdListener, seen: Arc<Seen>) {
    let listener = TcpListener::from_std(listener).expect("a socket");
    loop {
        let (io, _) = listener.accept().await.expect("a connection");
        seen.connected();
        let seen = seen.clone();
        support::spawn(async move {
            let Ok(mut connection) = h2::server::handshake(io).await else {
                return;
            };
            let resets = Resets::new();
            let too_many = Arc::<Notify>::default();
            loop {
                let accepted = tokio::select! {
                    accepted = connection.accept() => accepted,
                    () = too_many.notified() => {
                        connection.abrupt_shutdown(Reason::INTERNAL_ERROR);
                        continue;
                    }
                };
                let Some(Ok((request, mut respond))) = accepted else {
                    return;
                };
                let (seen, resets, too_many) = (seen.clone(), resets.clone(), too_many.clone());
                support::spawn(async move {
                    let mut name = Vec::new();
                    let mut body = request.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        let _ = body.flow_control().release_capacity(data.len());
                        name.extend_from_slice(&data);
                    }
                    let reset = poll_fn(|cx| respond.poll_reset(cx));
                    tokio::select! {
                        () = seen.call(&name) => {}
                        _ = reset => {
                            if resets.lock().expect("no panic").are_too_many() {
                                too_many.notify_one();
                            }
                            return;
                        }
                    }
                    let Ok(mut body) =
                        respond.send_response(head().body(()).expect("a head"), false)
                    else {
                        return;
                    };
                    let _ = body.send_data(Bytes::from_static(&[0; 5]), false);
                    let _ = body.send_trailers(trailers());
                });
            }
        });
    }
}

fn head() -> http::response::Builder {
    Response::builder().header("content-type", "application/grpc")
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))])
}

async fn serve_hyper(listener: StdListener, seen: Arc<Seen>) {
    let listener = TcpListener::from_std(listener).expect("a socket");
    loop {
        let (io, _) = listener.accept().await.expect("a connection");
        seen.connected();
        let seen = seen.clone();
        support::spawn(async move {
            let answer = service_fn(move |request: Request<Incoming>| {
                let seen = seen.clone();
                async move {
                    let body = request.into_body().collect().await;
                    let name = body.map(|body| body.to_bytes()).unwrap_or_default();
                    seen.call(&name).await;
                    let body = Full::new(Bytes::from_static(&[0; 5]));
                    let body = body.with_trailers(async { Some(Ok(trailers())) });
                    Ok::<_, Infallible>(head().body(body).expect("a response"))
                }
            });
            let _ = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(io), answer)
                .await;
        });
    }
}

async fn serve_tonic(listener: StdListener, seen: Arc<Seen>) {
    let listener = TcpListener::from_std(listener).expect("a socket");
    let counted = seen.clone();
    let incoming = TcpIncoming::from(listener).inspect(move |_| counted.connected());
    tonic::transport::Server::builder()
        .serve_with_incoming(OperationsServer::new(Service(seen)), incoming)
        .await
        .expect("it serves");
}

struct Service(Arc<Seen>);

#[tonic::async_trait]
impl Operations for Service {
    async fn cancel_operation(
        &self,
        request: tonic::Request<CancelOperationRequest>,
    ) -> Result<tonic::Response<()>, Status> {
        self.0.call(request.get_ref().name.as_bytes()).await;
        Ok(tonic::Response::new(()))
    }

    async fn get_operation(
        &self,
        _: tonic::Request<GetOperationRequest>,
    ) -> Result<tonic::Response<Operation>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete_operation(
        &self,
        _: tonic::Request<DeleteOperationRequest>,
    ) -> Result<tonic::Response<()>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_operations(
        &self,
        _: tonic::Request<ListOperationsRequest>,
    ) -> Result<tonic::Response<ListOperationsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn wait_operation(
        &self,
        _: tonic::Request<WaitOperationRequest>,
    ) -> Result<tonic::Response<Operation>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Polls so many calls once, and returns them.
async fn begin<'a, F: Future<Output = Result<(), Status>> + 'a>(
    calls: usize,
    call: impl Fn() -> F,
) -> FuturesUnordered<F> {
    let mut begun: FuturesUnordered<F> = (0..calls).map(|_| call()).collect();
    let first = poll_fn(|cx| Poll::Ready(begun.poll_next_unpin(cx))).await;
    assert!(first.is_pending());
    begun
}

#[tokio::test]
async fn calls_that_are_dropped_before_they_are_written_are_never_sent() {
    for server in Guarded::all() {
        let client = server.client().await;
        let neighbour = server.neighbour(&client);
        until("the neighbour calls", || server.seen.calls() > 1).await;
        for _ in 0..10 {
            let before = server.seen.calls();
            drop(begin(1_000, || client.cancel_operation(SLOW)).await);
            sleep(Duration::from_millis(10)).await;
            let sent = server.seen.calls() - before;
            assert!(sent < 100, "{}: {sent}", server.name); // the neighbour's
        }
        server.lives(&client, neighbour).await;
    }
}

/// The connection runs on a thread of its own, and takes most of the calls before they are dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn calls_that_are_sent_and_dropped_by_the_thousand_do_not_end_the_connection() {
    for server in Guarded::all() {
        let client = server.client().await;
        let neighbour = server.neighbour(&client);
        until("the neighbour calls", || server.seen.calls() > 1).await;
        let before = server.seen.calls();
        for _ in 0..4 {
            drop(begin(1_000, || client.cancel_operation(SLOW)).await);
            // Meanwhile the streams are reset, as many as may be.
            sleep(Duration::from_millis(50)).await;
        }
        let sent = server.seen.calls() - before;
        assert!(sent > 500, "{}: {sent}", server.name);
        server.lives(&client, neighbour).await;
    }
}

/// Resets are limited, so that the streams run out. Then another connection is opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn calls_that_are_dropped_for_seconds_do_not_take_all_streams_from_others() {
    for server in Guarded::all() {
        let client = server.client().await;
        let mut neighbour = server.neighbour(&client);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            drop(begin(1_000, || client.cancel_operation(SLOW)).await);
            sleep(Duration::from_millis(10)).await;
        }
        let end = neighbour.try_join_next();
        assert!(end.is_none(), "{}: a neighbour failed", server.name);
        let connections = server.seen.connections.load(Ordering::SeqCst);
        assert!(
            (2..5).contains(&connections),
            "{}: {connections}",
            server.name
        );
    }
}

#[tokio::test]
async fn calls_that_are_dropped_together_after_they_were_written_do_not_end_the_connection() {
    for server in Guarded::all() {
        let client = server.client().await;
        let neighbour = server.neighbour(&client);
        for _ in 0..5 {
            let before = server.seen.calls();
            let mut calls = begin(150, || client.cancel_operation(SLOW)).await;
            tokio::select! {
                () = until("they are written", || server.seen.calls() >= before + 150) => {}
                end = calls.next() => panic!("{}: {end:?}", server.name),
            }
            drop(calls);
        }
        server.lives(&client, neighbour).await;
    }
}

#[tokio::test]
async fn one_bad_name_among_28_ends_the_others_and_not_the_connection() {
    for server in Guarded::all() {
        let client = server.client().await;
        let neighbour = server.neighbour(&client);
        for _ in 0..50 {
            let names = std::iter::repeat_n(SLOW, 28).chain([""]);
            let all = try_join_all(names.map(|name| client.cancel_operation(name))).await;
            let status = all.expect_err("the last name is empty");
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        }
        server.lives(&client, neighbour).await;
    }
}

#[tokio::test]
async fn deadlines_that_pass_together_while_the_server_stands_still_do_not_end_the_connection() {
    for server in Guarded::all() {
        let client = server.client().await;
        let hurried = client.clone().timeout(FREEZE / 4);
        for _ in 0..3 {
            server.seen.freezes.store(true, Ordering::SeqCst);
            let freezes = tokio::spawn({
                let client = client.clone();
                async move { client.cancel_operation(NAME).await }
            });
            until("it stands still", || {
                !server.seen.freezes.load(Ordering::SeqCst)
            })
            .await;
            let begin = Instant::now();
            let calls: FuturesUnordered<_> =
                (0..60).map(|_| hurried.cancel_operation(NAME)).collect();
            let results: Vec<_> = calls.collect().await;
            assert!(begin.elapsed() < FREEZE, "{:?}", begin.elapsed());
            for result in results {
                let status = result.expect_err("the server stands still");
                assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
            }
            let end = freezes.await.expect("no panic");
            assert!(end.is_ok(), "{}: {end:?}", server.name);
        }
        server.lives(&client, JoinSet::new()).await;
    }
}

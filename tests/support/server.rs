//! A sound gRPC server for the service, with limits and habits as a test sets them.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{
    RecvStream,
    server::{self, SendResponse},
};
use http::{HeaderMap, Request, Response};
use longrunning::proto::Operation;
use prost::Message as _;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::Stage;

/// How a server behaves.
#[derive(Clone, Debug)]
pub(crate) struct Habits {
    /// How many streams it allows on a connection; `None`: it does not say.
    pub(crate) streams: Option<u32>,
    /// How long it takes to answer.
    pub(crate) latency: Duration,
    /// After how long a connection is told to go away.
    pub(crate) age: Option<Duration>,
    /// How many bytes of response an answer has.
    pub(crate) bytes: usize,
    /// How many calls it answers with UNAVAILABLE first.
    pub(crate) failures: usize,
    /// How many streams may be reset before they are accepted; `None`: as many as h2 allows by
    /// default, which is 20. Then it closes the connection.
    pub(crate) early_resets: Option<usize>,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            streams: Some(100),
            latency: Duration::ZERO,
            age: None,
            bytes: 0,
            failures: 0,
            early_resets: Some(10_000),
        }
    }
}

/// What a server has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Connections accepted.
    pub(crate) connections: AtomicUsize,
    /// Connections that are open.
    pub(crate) open: AtomicUsize,
    /// Calls begun.
    pub(crate) calls: AtomicUsize,
    /// Calls answered.
    pub(crate) answers: AtomicUsize,
    /// Calls that the client reset before the answer.
    pub(crate) resets: AtomicUsize,
    /// The most calls in flight on one connection.
    pub(crate) most: AtomicUsize,
    /// The heads of all calls.
    pub(crate) heads: Mutex<Vec<http::request::Parts>>,
    /// When each of them came.
    pub(crate) arrivals: Mutex<Vec<std::time::Instant>>,
}

impl Seen {
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn resets(&self) -> usize {
        self.resets.load(Ordering::SeqCst)
    }

    /// Calls that are neither answered nor reset, or fewer.
    pub(crate) fn in_flight(&self) -> usize {
        let calls = self.calls();
        calls.saturating_sub(self.answers.load(Ordering::SeqCst) + self.resets())
    }

    /// A header of each call.
    pub(crate) fn header(&self, name: &str) -> Vec<Option<String>> {
        let heads = self.heads.lock().expect("no panic");
        let value =
            |head: &http::request::Parts| Some(head.headers.get(name)?.to_str().ok()?.to_owned());
        heads.iter().map(value).collect()
    }

    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

/// A server on a free port of the loopback. It ends, and cuts its connections, when dropped.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    drain: watch::Sender<u64>,
    _stage: Stage,
}

impl Server {
    pub(crate) fn start(habits: Habits) -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), habits)
    }

    pub(crate) fn start_at(addr: SocketAddr, habits: Habits) -> Self {
        let listener = StdListener::bind(addr).expect("the port is free");
        listener.set_nonblocking(true).expect("a socket");
        let addr = listener.local_addr().expect("a bound socket");
        let seen = Arc::<Seen>::default();
        let (drain, drained) = watch::channel(0);
        let stage = Stage::run(accept(listener, habits, seen.clone(), drained));
        Self {
            addr,
            seen,
            drain,
            _stage: stage,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Sends GOAWAY on all connections. Calls in flight are answered.
    pub(crate) fn drain(&self) {
        self.drain.send_modify(|n| *n += 1);
    }
}

async fn accept(
    listener: StdListener,
    habits: Habits,
    seen: Arc<Seen>,
    drained: watch::Receiver<u64>,
) {
    let listener = TcpListener::from_std(listener).expect("a socket");
    loop {
        let (io, _) = listener.accept().await.expect("a connection");
        io.set_nodelay(true).expect("a socket");
        seen.connections.fetch_add(1, Ordering::SeqCst);
        seen.open.fetch_add(1, Ordering::SeqCst);
        let (habits, seen, drained) = (habits.clone(), seen.clone(), drained.clone());
        super::spawn(async move {
            // A client that goes away without a word is no failure of the server.
            let _ = connection(io, habits, seen.clone(), drained).await;
            seen.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn connection(
    io: TcpStream,
    habits: Habits,
    seen: Arc<Seen>,
    mut drained: watch::Receiver<u64>,
) -> Result<(), h2::Error> {
    let mut builder = server::Builder::new();
    if let Some(resets) = habits.early_resets {
        builder.max_pending_accept_reset_streams(resets);
    }
    if let Some(streams) = habits.streams {
        builder.max_concurrent_streams(streams);
    }
    drained.mark_unchanged();
    let mut http2 = builder.handshake::<_, Bytes>(io).await?;
    let old = habits.age.map(|age| Instant::now() + age);
    let mut draining = false;
    let calls = Arc::<AtomicUsize>::default();
    loop {
        let call = tokio::select! {
            call = http2.accept() => call,
            _ = drained.changed(), if !draining => None,
            () = sleep_until(old.unwrap_or_else(Instant::now)), if !draining && old.is_some() => None,
        };
        match call {
            Some(call) => {
                let (request, respond) = call?;
                seen.calls.fetch_add(1, Ordering::SeqCst);
                let now = calls.fetch_add(1, Ordering::SeqCst) + 1;
                seen.most.fetch_max(now, Ordering::SeqCst);
                let (habits, seen, calls) = (habits.clone(), seen.clone(), calls.clone());
                super::spawn(async move {
                    let end = answer(request, respond, &habits, &seen).await;
                    let counter = if end.is_ok() {
                        &seen.answers
                    } else {
                        &seen.resets
                    };
                    counter.fetch_add(1, Ordering::SeqCst);
                    calls.fetch_sub(1, Ordering::SeqCst);
                });
            }
            None if draining => return Ok(()),
            None => {
                // Also where the client has closed: then nothing more comes.
                http2.graceful_shutdown();
                draining = true;
            }
        }
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    habits: &Habits,
    seen: &Seen,
) -> Result<(), h2::Error> {
    let is_cancel = request.uri().path().ends_with("/CancelOperation");
    let (head, mut body) = request.into_parts();
    let earlier = {
        let mut heads = seen.heads.lock().expect("no panic");
        heads.push(head);
        let mut arrivals = seen.arrivals.lock().expect("no panic");
        arrivals.push(std::time::Instant::now());
        heads.len() - 1
    };
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
    }
    tokio::select! {
        () = sleep(habits.latency), if !habits.latency.is_zero() => {}
        reset = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return Err(reset?.into()),
        () = std::future::ready(()), if habits.latency.is_zero() => {}
    }
    let message = match is_cancel {
        true => Bytes::new(),
        false => operation(habits.bytes),
    };
    let head = Response::builder().header("content-type", "application/grpc");
    if earlier < habits.failures {
        let head = head.header("grpc-status", "14");
        return respond
            .send_response(head.body(()).expect("a head"), true)
            .map(drop);
    }
    let mut stream = respond.send_response(head.body(()).expect("a head"), false)?;
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(message.len()).expect("small").to_be_bytes());
    bytes.extend_from_slice(&message);
    stream.send_data(bytes.into(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}

fn operation(bytes: usize) -> Bytes {
    let operation = Operation {
        name: "x".repeat(bytes.max(1)),
        ..Operation::default()
    };
    operation.encode_to_vec().into()
}

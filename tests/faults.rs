//! Every fault has its code and its bound in time, and the client works again afterwards.
//!
//! The table runs once more in `tests/without-server`, where nothing turns on tonic's `server`
//! feature: the codes are the same.

mod support;

use std::{future::pending, io, pin::Pin, sync::Arc, time::Duration};

use longrunning::{CallStatusExt as _, ClientBuilder, OperationsClient, Origin, RetryPolicy};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Request};

use self::support::wire::{
    CONTENT_TYPE, DATA, EMPTY, END_HEADERS, END_STREAM, HEADERS, Listener, MAX_STREAMS, Peer,
};

const NAME: &str = "operations/1";

/// The deadline of every call here.
const DEADLINE: Duration = Duration::from_millis(700);

/// The time in which a connection must be open.
const CONNECT: Duration = Duration::from_millis(400);

/// What "at once" may take on a busy machine.
const SOON: Duration = Duration::from_millis(300);

type Script = Box<
    dyn Fn(usize, TcpStream) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> + Send + Sync,
>;

/// A fault, and what comes of it.
struct Row {
    fault: &'static str,
    code: Code,
    origin: Origin,
    within: Duration,
    /// What the message tells.
    tells: &'static str,
    /// How many connections there are when the client has recovered.
    connections: usize,
    /// What the server does with a connection, of which so many were before.
    script: Script,
}

/// The first connection has the fault, the others serve.
fn first<F>(script: impl Fn(Peer) -> F + Clone + Send + Sync + 'static) -> Script
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    Box::new(move |before, io| {
        let script = script.clone();
        Box::pin(async move {
            let mut peer = Peer::accept(io).await?;
            match before {
                0 => script(peer).await,
                _ => peer.serve().await,
            }
        })
    })
}

/// The first connection has the fault before HTTP/2 is up, the others serve.
fn raw<F>(script: impl Fn(TcpStream) -> F + Clone + Send + Sync + 'static) -> Script
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    Box::new(move |before, io| {
        let script = script.clone();
        Box::pin(async move {
            match before {
                0 => script(io).await,
                _ => Peer::accept(io).await?.serve().await,
            }
        })
    })
}

/// The first answer is made of these headers and data, and the connection serves on.
fn answer(
    head: &'static [(&'static str, &'static str)],
    data: Option<&'static [u8]>,
    trailers: Option<&'static [(&'static str, &'static str)]>,
) -> Script {
    first(move |mut peer| async move {
        let stream = peer.call().await?;
        let last = data.is_none() && trailers.is_none();
        peer.headers(stream, if last { END_STREAM } else { 0 }, head)
            .await?;
        if let Some(data) = data {
            let flags = if trailers.is_none() { END_STREAM } else { 0 };
            peer.frame(DATA, flags, stream, data).await?;
        }
        if let Some(trailers) = trailers {
            peer.headers(stream, END_STREAM, trailers).await?;
        }
        peer.serve().await
    })
}

const fn row(fault: &'static str, code: Code, script: Script) -> Row {
    Row {
        fault,
        code,
        origin: Origin::Transport,
        within: SOON,
        tells: "",
        connections: 1,
        script,
    }
}

impl Row {
    const fn by(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    const fn within(mut self, time: Duration) -> Self {
        self.within = time.saturating_add(SOON);
        self
    }

    const fn tells(mut self, text: &'static str) -> Self {
        self.tells = text;
        self
    }

    const fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }
}

fn builder(url: String) -> ClientBuilder {
    OperationsClient::builder(url)
        .retry(RetryPolicy::none())
        .timeout(DEADLINE)
        .connect_timeout(CONNECT)
}

async fn check(row: Row) {
    let Row {
        fault,
        code,
        origin,
        within,
        tells,
        connections,
        script,
    } = row;
    let listener = Listener::start(script);
    let client = builder(listener.url()).connect_lazy().expect("a client");
    let begin = Instant::now();
    let result = client.cancel_operation(NAME).await;
    let took = begin.elapsed();
    match (result, code) {
        (Ok(()), Code::Ok) => {}
        (Ok(()), _) => panic!("{fault}: an answer instead of {code:?}"),
        (Err(status), _) => {
            assert_eq!(status.code(), code, "{fault}: {status:?}");
            assert_eq!(status.origin(), Some(origin), "{fault}: {status:?}");
            assert!(status.message().contains(tells), "{fault}: {status:?}");
            let by_http = status.message().starts_with("HTTP status");
            if status.code() == Code::Unavailable && origin == Origin::Transport && !by_http {
                let addr = listener.addr.to_string();
                assert!(status.message().contains(&addr), "{fault}: {status:?}");
            }
        }
    }
    assert!(took < within, "{fault}: {took:?}");
    let begin = Instant::now();
    while let Err(status) = client.cancel_operation(NAME).await {
        assert!(
            begin.elapsed() < Duration::from_secs(2),
            "{fault}: not recovered: {status:?}"
        );
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(listener.accepted(), connections, "{fault}");
}

async fn check_all(rows: Vec<Row>) {
    let mut checks: JoinSet<()> = rows.into_iter().map(check).collect();
    while let Some(check) = checks.join_next().await {
        if let Err(panic) = check {
            std::panic::resume_unwind(panic.into_panic());
        }
    }
}

#[tokio::test]
async fn a_reset_by_the_server_follows_grpcs_table() {
    let table = [
        (0, Code::Internal),           // NO_ERROR
        (1, Code::Internal),           // PROTOCOL_ERROR
        (2, Code::Internal),           // INTERNAL_ERROR
        (3, Code::Internal),           // FLOW_CONTROL_ERROR
        (4, Code::Internal),           // SETTINGS_TIMEOUT
        (5, Code::Internal),           // STREAM_CLOSED
        (6, Code::Internal),           // FRAME_SIZE_ERROR
        (7, Code::Ok),                 // REFUSED_STREAM: sent again
        (8, Code::Cancelled),          // CANCEL
        (9, Code::Internal),           // COMPRESSION_ERROR
        (10, Code::Internal),          // CONNECT_ERROR
        (11, Code::ResourceExhausted), // ENHANCE_YOUR_CALM
        (12, Code::PermissionDenied),  // INADEQUATE_SECURITY
        (13, Code::Unknown),           // HTTP_1_1_REQUIRED
        (99, Code::Unknown),
    ];
    let before_headers = table.map(|(reason, code)| {
        let script = first(move |mut peer| async move {
            let stream = peer.call().await?;
            peer.reset(stream, reason).await?;
            peer.serve().await
        });
        row("a reset in place of an answer", code, script)
    });
    let after_headers = table.map(|(reason, code)| {
        let script = first(move |mut peer| async move {
            let stream = peer.call().await?;
            peer.head(stream).await?;
            peer.data(stream, EMPTY).await?;
            peer.reset(stream, reason).await?;
            peer.serve().await
        });
        // The server has begun to answer: it is not sent again.
        let code = if code == Code::Ok {
            Code::Unavailable
        } else {
            code
        };
        row("a reset within an answer", code, script)
    });
    check_all(before_headers.into_iter().chain(after_headers).collect()).await;
}

#[tokio::test]
async fn a_connection_that_is_cut_is_unavailable() {
    check_all(vec![
        row(
            "cut before the request",
            Code::Ok,
            first(|_| async { Ok(()) }),
        )
        .connections(2),
        row(
            "cut after the head of the request",
            Code::Unavailable,
            first(|mut peer| async move { peer.call_head().await.map(drop) }),
        )
        .connections(2),
        row(
            "cut after the request: the answer is lost",
            Code::Unavailable,
            first(|mut peer| async move { peer.call().await.map(drop) }),
        )
        .connections(2),
        row(
            "cut between head and trailers",
            Code::Unavailable,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                peer.head(stream).await?;
                peer.data(stream, EMPTY).await?;
                sleep(Duration::from_millis(20)).await;
                Ok(())
            }),
        )
        .connections(2),
        row(
            "cut with a TCP reset",
            Code::Unavailable,
            first(|mut peer| async move {
                peer.call().await?;
                peer.io.set_zero_linger()
            }),
        )
        .connections(2),
        row(
            "garbage in mid-life",
            Code::Unavailable,
            first(|mut peer| async move {
                peer.call().await?;
                peer.io.write_all(&[0xff; 100]).await?;
                pending().await
            }),
        )
        .connections(2),
        row(
            "an answer to a stream that was never opened",
            Code::Unavailable,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                peer.head(stream + 100).await?;
                pending().await
            }),
        )
        .connections(2),
    ])
    .await;
}

#[tokio::test]
async fn a_goaway_ends_no_call_that_the_server_can_still_answer() {
    check_all(vec![
        row(
            "GOAWAY, the call is processed and answered",
            Code::Ok,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                peer.goaway(stream, 0, "").await?;
                sleep(Duration::from_millis(20)).await;
                peer.answer(stream).await
            }),
        )
        .connections(2),
        row(
            "GOAWAY, the call is not processed",
            Code::Ok,
            first(|mut peer| async move {
                peer.call().await?;
                peer.goaway(0, 0, "").await?;
                pending().await
            }),
        )
        .connections(2),
        row(
            "GOAWAY with an error, the call is not processed",
            Code::Ok,
            first(|mut peer| async move {
                peer.call().await?;
                peer.goaway(0, 11, "too_many_pings").await
            }),
        )
        .connections(2),
        row(
            "GOAWAY, then the connection is cut: the call may be processed",
            Code::Unavailable,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                peer.goaway(stream, 0, "max_age").await
            }),
        )
        .tells("the server closed the connection: GOAWAY NO_ERROR: ")
        .connections(2),
        row(
            "GOAWAY with an error, then the connection is cut: the call may be processed",
            Code::Unavailable,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                peer.goaway(stream, 11, "too_many_pings").await
            }),
        )
        .tells("GOAWAY ENHANCE_YOUR_CALM: ")
        .tells("too_many_pings")
        .connections(2),
        row(
            "GOAWAY within the answer, then the connection is cut",
            Code::Unavailable,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                peer.head(stream).await?;
                peer.goaway(stream, 2, "out of memory").await
            }),
        )
        .tells("GOAWAY INTERNAL_ERROR: ")
        .connections(2),
        row(
            "GOAWAY as soon as the connection is up",
            Code::Ok,
            first(|mut peer| async move {
                peer.goaway(0, 0, "").await?;
                pending().await
            }),
        )
        .connections(2),
        row(
            "GOAWAY in two steps, as sound servers do it",
            Code::Ok,
            first(|mut peer| async move {
                peer.goaway(u32::MAX >> 1, 0, "").await?;
                let stream = peer.call().await?;
                peer.goaway(stream, 0, "").await?;
                peer.answer(stream).await
            }),
        )
        .connections(2),
    ])
    .await;
}

#[tokio::test]
async fn a_server_that_is_none_is_unavailable() {
    let cannot_connect = "cannot connect to ";
    check_all(vec![
        row(
            "accepts and closes",
            Code::Unavailable,
            raw(|_| async { Ok(()) }),
        )
        .tells(cannot_connect)
        .connections(2),
        row(
            "accepts and never speaks",
            Code::Unavailable,
            raw(|_io| async move {
                let _io = _io;
                pending().await
            }),
        )
        .tells("not connected within 400ms")
        .within(CONNECT)
        .connections(2),
        row(
            "HTTP/2 without settings",
            Code::Unavailable,
            raw(|io| async {
                let _peer = Peer::silent(io).await?;
                pending().await
            }),
        )
        .tells("not connected within 400ms")
        .within(CONNECT)
        .connections(2),
        row(
            "HTTP/1.1",
            Code::Unavailable,
            raw(|mut io| async move {
                io.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
                    .await?;
                io.read_to_end(&mut Vec::new()).await.map(drop)
            }),
        )
        .tells("the server speaks HTTP/1, and gRPC needs HTTP/2")
        .connections(2),
        row(
            "TLS behind http",
            Code::Unavailable,
            raw(|mut io| async move {
                let mut preface = [0; 24];
                io.read_exact(&mut preface).await?;
                io.write_all(&[21, 3, 1, 0, 2, 2, 40]).await?; // the alert of a TLS server
                io.read_to_end(&mut Vec::new()).await.map(drop)
            }),
        )
        .tells("the server speaks TLS: write https:// in the endpoint")
        .connections(2),
        row(
            "TLS behind http, closed without an alert as grpc-go and grpc-java do it",
            Code::Unavailable,
            raw(|mut io| async move { io.read_exact(&mut [0; 24]).await.map(drop) }),
        )
        .tells("if it requires TLS, use an \"https://\" endpoint")
        .connections(2),
        row(
            "garbage",
            Code::Unavailable,
            raw(|mut io| async move {
                io.write_all(&[0xff; 100]).await?;
                io.read_to_end(&mut Vec::new()).await.map(drop)
            }),
        )
        .tells(cannot_connect)
        .connections(2),
    ])
    .await;
}

#[tokio::test]
async fn silence_ends_with_the_deadline() {
    check_all(vec![
        row(
            "no answer, and the connection lives",
            Code::DeadlineExceeded,
            first(|mut peer| async move {
                peer.call().await?;
                peer.serve().await
            }),
        )
        .by(Origin::Client)
        .within(DEADLINE),
        row(
            "silence after the head",
            Code::DeadlineExceeded,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                peer.head(stream).await?;
                peer.serve().await
            }),
        )
        .by(Origin::Client)
        .within(DEADLINE),
        row(
            "a slow drip beyond the deadline",
            Code::DeadlineExceeded,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                peer.head(stream).await?;
                for _ in 0..4 {
                    peer.data(stream, &[0]).await?;
                    sleep(Duration::from_millis(300)).await;
                }
                peer.serve().await
            }),
        )
        .by(Origin::Client)
        .within(DEADLINE),
        row(
            "a slow drip within the deadline",
            Code::Ok,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                peer.head(stream).await?;
                for byte in EMPTY {
                    peer.data(stream, &[*byte]).await?;
                    sleep(Duration::from_millis(50)).await;
                }
                peer.status(stream, "0").await?;
                peer.serve().await
            }),
        )
        .within(DEADLINE),
        row(
            "a server that says CANCELLED when the deadline has passed, as tonic's does",
            Code::DeadlineExceeded,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                sleep(DEADLINE).await;
                let trailers = [(":status", "200"), CONTENT_TYPE, ("grpc-status", "1")];
                peer.headers(stream, END_STREAM, &trailers).await?;
                peer.serve().await
            }),
        )
        .by(Origin::Client)
        .within(DEADLINE),
    ])
    .await;
}

#[tokio::test]
async fn an_answer_that_is_none_has_the_code_that_grpc_gives_it() {
    const OK: &[(&str, &str)] = &[(":status", "200"), CONTENT_TYPE];
    const HTML: (&str, &str) = ("content-type", "text/html");
    let page: &[u8] = b"<html><h1>Not Found</h1></html>";
    let http = |status, code| {
        let head: &'static [(&str, &str)] = vec![(":status", status), HTML].leak();
        row("an HTML page", code, answer(head, Some(page), None))
    };
    check_all(vec![
        http("400", Code::Internal),
        http("401", Code::Unauthenticated),
        http("403", Code::PermissionDenied),
        http("404", Code::Unimplemented),
        http("429", Code::Unavailable),
        http("431", Code::Internal).tells("headers are larger than the server accepts"),
        http("500", Code::Unknown),
        http("502", Code::Unavailable),
        http("503", Code::Unavailable),
        http("504", Code::Unavailable),
        http("200", Code::Unknown),
        row("no trailers", Code::Unknown, answer(OK, Some(EMPTY), None)),
        row("a head alone", Code::Unknown, answer(OK, None, None)),
        row(
            "trailers without a status",
            Code::Unknown,
            answer(OK, Some(EMPTY), Some(&[("x", "y")])),
        ),
        row(
            "a status that is no number",
            Code::Unknown,
            answer(OK, Some(EMPTY), Some(&[("grpc-status", "fine")])),
        )
        .by(Origin::Server),
        row(
            "a status that gRPC does not know",
            Code::Unknown,
            answer(OK, Some(EMPTY), Some(&[("grpc-status", "17")])),
        )
        .by(Origin::Server),
        row(
            "details that are not base64, in trailers",
            Code::NotFound,
            answer(
                OK,
                None,
                Some(&[
                    ("grpc-status", "5"),
                    ("grpc-message", "gone"),
                    ("grpc-status-details-bin", "!!"),
                ]),
            ),
        )
        .by(Origin::Server)
        .tells("gone"),
        row(
            "details that are not base64, in the head",
            Code::NotFound,
            answer(
                &[
                    (":status", "200"),
                    CONTENT_TYPE,
                    ("grpc-status", "5"),
                    ("grpc-message", "gone"),
                    ("grpc-status-details-bin", "!!"),
                ],
                None,
                None,
            ),
        )
        .by(Origin::Server)
        .tells("gone"),
        row(
            "a message that is cut short",
            Code::Internal,
            answer(OK, Some(&[0, 0, 0, 0, 9, 1]), Some(&[("grpc-status", "0")])),
        )
        .by(Origin::Client),
        row(
            "a message that is compressed",
            Code::Internal,
            answer(
                &[(":status", "200"), CONTENT_TYPE, ("grpc-encoding", "gzip")],
                Some(&[1, 0, 0, 0, 1, 0]),
                Some(&[("grpc-status", "0")]),
            ),
        )
        .by(Origin::Client)
        .tells("gzip"),
        row(
            "two messages, and no end",
            Code::Internal,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                peer.head(stream).await?;
                peer.data(stream, EMPTY).await?;
                peer.data(stream, EMPTY).await?;
                peer.serve().await
            }),
        )
        .by(Origin::Client)
        .tells("its message is followed by more data"),
        row(
            "more data than the message has, without end",
            Code::Internal,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                peer.head(stream).await?;
                peer.data(stream, EMPTY).await?;
                // At most 1 GiB, if the client took it in.
                for _ in 0..1 << 16 {
                    peer.data(stream, &[0; 16_000]).await?;
                }
                peer.serve().await
            }),
        )
        .by(Origin::Client)
        .tells("its message is followed by more data"),
        row(
            "a status in the head, then a reset",
            Code::FailedPrecondition,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                let head = [(":status", "200"), CONTENT_TYPE, ("grpc-status", "9")];
                peer.headers(stream, 0, &head).await?;
                peer.reset(stream, 8).await?;
                peer.serve().await
            }),
        )
        .by(Origin::Server),
        row(
            "a status in the head, and no end",
            Code::FailedPrecondition,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                let head = [(":status", "200"), CONTENT_TYPE, ("grpc-status", "9")];
                peer.headers(stream, 0, &head).await?;
                peer.serve().await
            }),
        )
        .by(Origin::Server),
        row(
            "an HTTP status of a proxy, and no end",
            Code::Unavailable,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                let head = [(":status", "503"), ("content-type", "text/html")];
                peer.headers(stream, 0, &head).await?;
                peer.serve().await
            }),
        )
        .tells("HTTP status 503"),
        row(
            "an HTTP status, then a reset",
            Code::Unavailable,
            first(|mut peer| async move {
                let stream = peer.call().await?;
                let head = [(":status", "503"), ("content-type", "text/html")];
                peer.headers(stream, 0, &head).await?;
                peer.reset(stream, 0).await?;
                peer.serve().await
            }),
        )
        .tells("HTTP status 503"),
        row(
            "a status in the trailers of a response with another HTTP status",
            Code::ResourceExhausted,
            answer(
                &[(":status", "503"), CONTENT_TYPE],
                Some(EMPTY),
                Some(&[("grpc-status", "8")]),
            ),
        )
        .by(Origin::Server),
    ])
    .await;
}

#[tokio::test]
async fn oversized_headers_end_their_own_call_only() {
    let huge: &'static str = "x".repeat(1_100_000).leak();
    let head: &'static [(&str, &str)] = vec![(":status", "200"), CONTENT_TYPE, ("x", huge)].leak();
    let trailers: &'static [(&str, &str)] = vec![("x", huge), ("grpc-status", "0")].leak();
    let ok: &'static [(&str, &str)] = &[(":status", "200"), CONTENT_TYPE];
    check_all(vec![
        row(
            "1.1 MB of headers",
            Code::Internal,
            answer(head, Some(EMPTY), None),
        ),
        row(
            "1.1 MB of trailers before the status",
            Code::Unknown,
            answer(ok, Some(EMPTY), Some(trailers)),
        ),
    ])
    .await;

    let listener = Listener::start(|_, io| async { Peer::accept(io).await?.serve().await });
    let client = builder(listener.url()).connect_lazy().expect("a client");
    let mut request = Request::new(longrunning::proto::CancelOperationRequest {
        name: NAME.to_owned(),
    });
    let value = "x".repeat(9_000).parse().expect("ASCII");
    request.metadata_mut().insert("x", value);
    let status = client
        .cancel_operation(request)
        .await
        .expect_err("too long");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.origin(), Some(Origin::Client));
    client.cancel_operation(NAME).await.expect("an answer");
}

#[tokio::test]
async fn a_stream_that_is_always_refused_is_sent_twice_in_all() {
    let calls = Arc::<std::sync::atomic::AtomicUsize>::default();
    let counter = calls.clone();
    let listener = Listener::start(move |_, io| {
        let counter = counter.clone();
        async move {
            let mut peer = Peer::accept(io).await?;
            loop {
                let stream = peer.call().await?;
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                peer.reset(stream, 7).await?;
            }
        }
    });
    let client = builder(listener.url()).connect_lazy().expect("a client");
    let status = client.cancel_operation(NAME).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), 2);
    assert_eq!(listener.accepted(), 1);
}

#[tokio::test]
async fn a_server_that_goes_away_at_once_each_time_is_not_hammered() {
    let listener = Listener::start(|_, io| async {
        let mut peer = Peer::accept(io).await?;
        peer.goaway(0, 0, "").await
    });
    let client = builder(listener.url()).connect_lazy().expect("a client");
    let end = Instant::now() + Duration::from_secs(1);
    let mut callers = JoinSet::new();
    for _ in 0..50 {
        let client = client.clone();
        callers.spawn(async move {
            while Instant::now() < end {
                let status = client.cancel_operation(NAME).await;
                let status = status.expect_err("it never answers");
                let codes = [Code::Unavailable, Code::DeadlineExceeded];
                assert!(codes.contains(&status.code()), "{status:?}");
            }
        });
    }
    sleep(Duration::from_secs(1)).await;
    let accepted = listener.accepted();
    callers.join_all().await;
    // Twice at once, and after 100, 300, 700 ms or a fifth less; at most 2 each time. Without rests
    // it would be thousands.
    assert!(accepted <= 20, "{accepted}");
}

#[tokio::test]
async fn a_thousand_callers_make_one_attempt_and_share_its_failure() {
    let listener = Listener::start(|_, _io| async {
        sleep(Duration::from_millis(50)).await;
        Ok(()) // and closed
    });
    let client = builder(listener.url()).connect_lazy().expect("a client");
    let calls: JoinSet<_> = (0..1_000)
        .map(|_| {
            let client = client.clone();
            async move { client.cancel_operation(NAME).await }
        })
        .collect();
    for result in calls.join_all().await {
        let status = result.expect_err("it closes");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    assert_eq!(listener.accepted(), 1);
}

#[tokio::test]
async fn a_name_that_is_not_found_is_unavailable() {
    let host = "a".repeat(64); // longer than a label may be: no name server is asked
    let client = builder(format!("http://{host}"))
        .connect_lazy()
        .expect("a client");
    let begin = Instant::now();
    let status = client
        .cancel_operation(NAME)
        .await
        .expect_err("no such host");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let message = status.message();
    assert!(
        message.starts_with(&format!("cannot connect to {host}: dns error")),
        "{message}"
    );
    assert!(begin.elapsed() < CONNECT + SOON);
}

#[tokio::test]
async fn a_dead_address_does_not_keep_from_the_next() {
    // The name has ::1 and 127.0.0.1, or the latter alone. Nobody listens on the former.
    let listener = Listener::start(|_, io| async { Peer::accept(io).await?.serve().await });
    let url = format!("http://localhost:{}", listener.addr.port());
    let client = builder(url).connect_lazy().expect("a client");
    client.cancel_operation(NAME).await.expect("an answer");
}

#[tokio::test]
async fn what_may_have_been_processed_is_sent_once_without_retries() {
    let calls = Arc::<std::sync::atomic::AtomicUsize>::default();
    let counter = calls.clone();
    let listener = Listener::start(move |_, io| {
        let counter = counter.clone();
        async move {
            let mut peer = Peer::accept(io).await?;
            peer.call().await?;
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok(()) // and cut
        }
    });
    let client = builder(listener.url()).connect_lazy().expect("a client");
    for call in 1..=5 {
        let status = client
            .cancel_operation(NAME)
            .await
            .expect_err("the answer is lost");
        assert_eq!(status.code(), Code::Unavailable);
        assert!(calls.load(std::sync::atomic::Ordering::SeqCst) <= call);
        sleep(Duration::from_millis(150)).await;
    }
}

/// The frame types and settings that the table has no use for are used elsewhere.
#[tokio::test]
async fn an_answer_and_unknown_frames_around_it_is_an_answer() {
    let script = first(|mut peer| async move {
        let stream = peer.call().await?;
        peer.frame(0xfa, 0, stream, b"?").await?;
        peer.settings(&[(0xfafa, 1), (MAX_STREAMS, 50)]).await?;
        peer.frame(HEADERS, END_HEADERS, stream, &[0x88]).await?;
        peer.data(stream, EMPTY).await?;
        peer.status(stream, "0").await?;
        peer.serve().await
    });
    let check = timeout(
        Duration::from_secs(10),
        check(row("unknown frames", Code::Ok, script)),
    );
    check.await.expect("it ends");
}

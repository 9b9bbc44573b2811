//! The default stack's connections: how many there are, who gets which, and how they end.

mod support;

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use longrunning::{
    CallStatusExt as _, ClientBuilder, Credentials, OperationsClient, Origin, RetryPolicy,
    Transport,
    proto::{
        GetOperationRequest, WaitOperationRequest, operations_client::OperationsClient as AnyClient,
    },
};
use tokio::{
    net::TcpStream,
    runtime::{Handle, Runtime},
    task::JoinSet,
    time::{Instant, timeout},
};
use tonic::{Code, Request, Status, body::Body};
use tower::ServiceExt as _;

use self::support::{
    server::{Habits, Server},
    until,
    wire::{self, Listener, Peer},
};

const NAME: &str = "operations/1";

/// What a call ends with, and not what a second attempt makes of it.
fn builder(url: impl Into<String>) -> ClientBuilder {
    OperationsClient::builder(url).retry(RetryPolicy::none())
}

async fn connect(server: &Server) -> OperationsClient {
    let builder = builder(server.url());
    builder.connect().await.expect("a server")
}

/// Makes so many calls at once; returns the first failure.
async fn burst(client: &OperationsClient, calls: usize) -> Result<(), Status> {
    let mut tasks = JoinSet::new();
    for _ in 0..calls {
        let client = client.clone();
        tasks.spawn(async move { client.cancel_operation(NAME).await });
    }
    let mut result = Ok(());
    while let Some(call) = tasks.join_next().await {
        result = result.and(call.expect("no panic"));
    }
    result
}

#[tokio::test]
async fn every_call_is_answered_under_any_limit() {
    for streams in [Some(1), Some(2), Some(10), Some(100), None] {
        let server = Server::start(Habits {
            streams,
            latency: Duration::from_millis(1),
            ..Habits::default()
        });
        let client = builder(server.url()).connect_lazy();
        let client = client.expect("a client");
        burst(&client, 1_000).await.expect("answers");
        let most = streams.map_or(1_000, |most| most as usize);
        assert!(
            server.seen.most() <= most,
            "{streams:?}: {}",
            server.seen.most()
        );
        assert!(server.seen.connections() <= 20, "{streams:?}");
        assert_eq!(
            server.seen.calls(),
            1_000,
            "{streams:?}: nothing was refused"
        );
    }
}

#[tokio::test]
async fn the_first_connection_is_filled_before_the_second_is_opened() {
    let server = Server::start(Habits {
        latency: Duration::from_millis(100),
        ..Habits::default()
    });
    let client = connect(&server).await;
    burst(&client, 100).await.expect("answers");
    assert_eq!(server.seen.connections(), 1);
    burst(&client, 101).await.expect("answers");
    assert_eq!(server.seen.connections(), 2);
}

#[tokio::test]
async fn calls_beyond_every_limit_wait_in_order() {
    let server = Server::start(Habits {
        streams: Some(1),
        latency: Duration::from_millis(5),
        ..Habits::default()
    });
    let builder = builder(server.url()).max_connections(1);
    let client = builder.connect().await.expect("a server");
    let ended = Arc::<std::sync::Mutex<Vec<usize>>>::default();
    let mut tasks = JoinSet::new();
    for i in 0..20 {
        let (client, ended) = (client.clone(), ended.clone());
        tasks.spawn(async move {
            client.cancel_operation(NAME).await.expect("an answer");
            ended.lock().expect("no panic").push(i);
        });
        tokio::task::yield_now().await; // it stands in the queue now
    }
    tasks.join_all().await;
    assert_eq!(*ended.lock().expect("no panic"), Vec::from_iter(0..20));
    assert_eq!(server.seen.connections(), 1);
    assert_eq!(server.seen.most(), 1);
}

#[tokio::test]
async fn a_caller_that_gives_up_frees_its_place() {
    let server = Server::start(Habits {
        streams: Some(1),
        latency: Duration::from_millis(200),
        ..Habits::default()
    });
    let builder = builder(server.url()).max_connections(1);
    let client = builder.connect().await.expect("a server");
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.cancel_operation(NAME).await }
    });
    until("the first call is there", || server.seen.calls() == 1).await;
    for _ in 0..100 {
        let call = timeout(Duration::ZERO, client.cancel_operation(NAME));
        call.await.expect_err("it waits behind the first");
    }
    client
        .cancel_operation(NAME)
        .await
        .expect("the next in order");
    first.await.expect("no panic").expect("an answer");
    assert_eq!(server.seen.calls(), 2);
}

#[tokio::test]
async fn a_call_that_is_dropped_resets_its_stream_and_frees_it() {
    let server = Server::start(Habits {
        streams: Some(1),
        latency: Duration::from_secs(60),
        ..Habits::default()
    });
    let builder = builder(server.url()).max_connections(1);
    let client = builder.connect().await.expect("a server");
    for call in 1..=50 {
        tokio::select! {
            _ = client.cancel_operation(NAME) => panic!("no answer comes"),
            () = until("the call is there", || server.seen.calls() == call) => {}
        }
        until("the reset is there", || server.seen.resets() == call).await;
    }
    assert_eq!(server.seen.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stream_is_lost_to_calls_that_are_dropped_whenever() {
    let server = Server::start(Habits {
        streams: Some(3),
        latency: Duration::from_millis(5),
        ..Habits::default()
    });
    let client = builder(server.url()).max_connections(2).connect_lazy();
    let client = client.expect("a client");
    let end = Instant::now() + Duration::from_secs(2);
    let mut callers = JoinSet::new();
    for _ in 0..200 {
        let client = client.clone();
        callers.spawn(async move {
            while Instant::now() < end {
                let patience = Duration::from_micros(fastrand::u64(..30_000));
                if let Ok(result) = timeout(patience, client.cancel_operation(NAME)).await {
                    result.expect("an answer");
                }
            }
        });
    }
    callers.join_all().await;

    // All six streams are there: they are in use at once.
    let busy: JoinSet<_> = (0..12)
        .map(|_| {
            let client = client.clone();
            async move {
                loop {
                    client.cancel_operation(NAME).await.expect("an answer");
                }
            }
        })
        .collect();
    until("six calls are there at once", || {
        server.seen.in_flight() == 6
    })
    .await;
    drop(busy);
    assert_eq!(server.seen.open(), 2);
}

/// A wake-up that is lost shows only between threads, in one of some thousand calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_waits_for_a_wake_up_that_was_lost() {
    let server = Server::start(Habits::default());
    let client = connect(&server).await;
    let client = client.timeout(Duration::from_secs(2));
    let end = Instant::now() + Duration::from_secs(4);
    let callers: JoinSet<()> = (0..2)
        .map(|_| {
            let client = client.clone();
            async move {
                while Instant::now() < end {
                    client.cancel_operation(NAME).await.expect("an answer");
                }
            }
        })
        .collect();
    callers.join_all().await;
    assert!(server.seen.calls() > 1_000, "{}", server.seen.calls());
}

#[tokio::test]
async fn idle_surplus_goes_and_the_last_connection_stays() {
    let server = Server::start(Habits {
        streams: Some(1),
        latency: Duration::from_millis(50),
        ..Habits::default()
    });
    let client = connect(&server).await;
    burst(&client, 5).await.expect("answers");
    assert!(server.seen.open() > 1, "{}", server.seen.open());
    tokio::time::pause();
    for _ in 0..70 {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    tokio::time::resume();
    until("one is left", || server.seen.open() == 1).await;
    client.cancel_operation(NAME).await.expect("it works");
    assert_eq!(server.seen.open(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_answers_at_once_do_not_end_the_connection() {
    let server = Server::start(Habits {
        streams: None,
        latency: Duration::from_millis(200),
        ..Habits::default()
    });
    let client = connect(&server).await;
    burst(&client, 5_000).await.expect("answers");
    assert_eq!(server.seen.calls(), 5_000);
}

/// The deadline of the calls that are answered late, and the time after which they are.
const HURRY: Duration = Duration::from_millis(20);
const LATE: Duration = Duration::from_millis(100);

/// Answers calls at once, except those on `operations/late`, which it answers after their deadline: when
/// the client resets the stream, and otherwise after [`LATE`].
async fn late(mut peer: Peer, late_answers: Arc<AtomicUsize>) -> io::Result<()> {
    let mut pending: VecDeque<(Instant, u32)> = VecDeque::new();
    let room_for_all_requests = (1_u32 << 30).to_be_bytes();
    peer.frame(wire::WINDOW_UPDATE, 0, 0, &room_for_all_requests)
        .await?;
    loop {
        while let Some((due, stream)) = pending.front().copied() {
            if due > Instant::now() {
                break;
            }
            peer.answer(stream).await?;
            pending.pop_front();
            late_answers.fetch_add(1, Ordering::SeqCst);
        }
        let due = pending
            .front()
            .map_or_else(|| Instant::now() + LATE, |(due, _)| *due);
        let Some(frame) = peer.next_until(due).await? else {
            continue;
        };
        if frame.kind == wire::DATA && frame.flags & wire::END_STREAM != 0 {
            if frame.payload.ends_with(b"late") {
                pending.push_back((Instant::now() + LATE, frame.stream));
            } else {
                peer.answer(frame.stream).await?;
            }
        }
        if frame.kind == wire::RST_STREAM
            && let Some(index) = pending
                .iter()
                .position(|(_, stream)| *stream == frame.stream)
        {
            pending.remove(index);
            peer.answer(frame.stream).await?;
            late_answers.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// `LATE_ANSWERS` sets how many there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_come_after_their_deadline_cost_neither_the_connection_nor_other_calls() {
    let wanted = std::env::var("LATE_ANSWERS").ok();
    let wanted = wanted.map_or(30_000, |number| number.parse().expect("a number"));
    let late_answers = Arc::<AtomicUsize>::default();
    let counter = late_answers.clone();
    let listener = Listener::start(move |_, io| {
        let counter = counter.clone();
        async move { late(Peer::accept_with(io, 1_000).await?, counter).await }
    });
    // So that a second connection could only be one that replaces the first.
    let builder = builder(listener.url()).max_connections(1);
    let client = builder.connect().await.expect("a server");
    let mut callers = JoinSet::new();
    for _ in 0..500 {
        let client = client.clone().timeout(HURRY);
        let late_answers = late_answers.clone();
        callers.spawn(async move {
            while late_answers.load(Ordering::SeqCst) < wanted {
                let result = client.cancel_operation("operations/late").await;
                let status = result.expect_err("the answer is late");
                assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
            }
        });
    }
    let mut others = 0;
    while !callers.is_empty() {
        client.cancel_operation(NAME).await.expect("an answer");
        others += 1;
        while let Some(caller) = callers.try_join_next() {
            caller.expect("no panic");
        }
    }
    assert!(others > 10, "{others}");
    assert_eq!(listener.accepted(), 1);
}

/// Begins the responses to 1,200 calls whose callers were dropped, and counts the resets.
async fn begins_and_counts_resets(io: TcpStream, calls: Arc<AtomicUsize>) -> io::Result<()> {
    let mut peer = Peer::accept_with(io, 2_000).await?;
    let mut streams = Vec::new();
    while streams.len() < 1_200 {
        streams.push(peer.call().await?);
        calls.fetch_add(1, Ordering::SeqCst);
    }
    while calls.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await; // until the callers were dropped
    }
    for stream in streams {
        peer.head(stream).await?;
    }
    let end = Instant::now() + Duration::from_secs(1);
    while let Some(frame) = peer.next_until(end).await? {
        calls.fetch_add(
            usize::from(frame.kind == wire::RST_STREAM),
            Ordering::SeqCst,
        );
    }
    calls.fetch_add(10_000, Ordering::SeqCst);
    peer.ignore(Duration::from_secs(60)).await
}

#[tokio::test]
async fn resets_are_limited_also_after_the_response_has_begun() {
    let calls = Arc::<AtomicUsize>::default();
    let counter = calls.clone();
    let listener = Listener::start(move |_, io| begins_and_counts_resets(io, counter.clone()));
    let client = builder(listener.url())
        .max_connections(1)
        .streams_per_connection(2_000);
    let client = client.connect().await.expect("a server");
    let mut callers = JoinSet::new();
    for _ in 0..1_200 {
        let client = client.clone();
        callers.spawn(async move { client.cancel_operation(NAME).await });
    }
    until("all calls are sent", || {
        calls.load(Ordering::SeqCst) == 1_200
    })
    .await;
    let begin = Instant::now();
    callers.shutdown().await;
    calls.store(0, Ordering::SeqCst);
    until("the resets were counted", || {
        calls.load(Ordering::SeqCst) >= 10_000
    })
    .await;
    let resets = calls.load(Ordering::SeqCst) - 10_000;
    // 900, and one in 33 ms.
    let periods = begin.elapsed().as_millis() / 33;
    let most = 905 + usize::try_from(periods).expect("small");
    assert!(most < 1_100, "the machine is too slow to tell: {periods}");
    assert!((800..=most).contains(&resets), "{resets} of {most}");
}

#[tokio::test]
async fn large_answers_that_nobody_reads_do_not_hold_up_other_calls() {
    let server = Server::start(Habits {
        bytes: 3 << 20,
        ..Habits::default()
    });
    let client = connect(&server).await;
    let mut unread = Vec::new();
    for _ in 0..20 {
        let message = Bytes::from_static(b"\0\0\0\0\x0e\x0a\x0coperations/1");
        let request = http::Request::post("/google.longrunning.Operations/GetOperation")
            .header("content-type", "application/grpc")
            .body(Body::new(Full::new(message)))
            .expect("a request");
        let response = client.stack().clone().oneshot(request).await;
        unread.push(response.expect("a head").into_body());
    }
    let operation = client.get_operation(NAME).await.expect("an answer");
    assert_eq!(operation.name.len(), 3 << 20);
    assert_eq!(server.seen.connections(), 1);
    // The unread answers are complete when they are read later.
    for body in unread {
        let body = body.collect().await.expect("a body");
        assert!(body.to_bytes().len() > 3 << 20);
    }
}

#[tokio::test]
async fn large_answers_arrive_whole() {
    let server = Server::start(Habits {
        bytes: 1 << 20,
        ..Habits::default()
    });
    let client = connect(&server).await;
    let mut tasks = JoinSet::new();
    for _ in 0..50 {
        let client = client.clone();
        tasks.spawn(async move { client.get_operation(NAME).await });
    }
    for operation in tasks.join_all().await {
        assert_eq!(operation.expect("an answer").name.len(), 1 << 20);
    }
}

#[tokio::test]
async fn calls_in_flight_outlive_a_goaway_and_the_next_go_elsewhere() {
    let server = Server::start(Habits {
        latency: Duration::from_millis(100),
        ..Habits::default()
    });
    let client = connect(&server).await;
    let calls = tokio::spawn({
        let client = client.clone();
        async move { burst(&client, 50).await }
    });
    until("they are in flight", || server.seen.calls() == 50).await;
    server.drain();
    while server.seen.connections() == 1 {
        // Until it has heard of it, the client takes the first, where the call is welcome yet.
        client.cancel_operation(NAME).await.expect("an answer");
    }
    calls
        .await
        .expect("no panic")
        .expect("answers all the same");
    assert_eq!(server.seen.connections(), 2);
    until("the first is gone", || server.seen.open() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_although_connections_end_every_50_ms() {
    let server = Server::start(Habits {
        latency: Duration::from_millis(2),
        age: Some(Duration::from_millis(50)),
        ..Habits::default()
    });
    let client = connect(&server).await;
    let left = Arc::new(std::sync::atomic::AtomicUsize::new(10_000));
    let mut tasks = JoinSet::new();
    for _ in 0..64 {
        let (client, left) = (client.clone(), left.clone());
        let one_less = move || {
            use std::sync::atomic::Ordering::SeqCst;
            left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1))
                .is_ok()
        };
        tasks.spawn(async move {
            while one_less() {
                client.cancel_operation(NAME).await.expect("an answer");
            }
        });
    }
    tasks.join_all().await;
    assert!(
        server.seen.connections() > 5,
        "{}",
        server.seen.connections()
    );
}

#[tokio::test]
async fn connections_that_end_before_their_first_answer_need_no_backoff_if_it_comes_later() {
    // As with a server whose connections are younger than the longest WaitOperation.
    let server = Server::start(Habits {
        latency: Duration::from_millis(150),
        age: Some(Duration::from_millis(100)),
        ..Habits::default()
    });
    let client = connect(&server).await;
    for call in 0..15 {
        let answer = timeout(Duration::from_secs(1), client.cancel_operation(NAME)).await;
        let answer = answer.unwrap_or_else(|_| panic!("call {call} waited for a backoff"));
        answer.expect("an answer");
    }
    let connections = server.seen.connections();
    assert!(connections > 10, "{connections}");
}

#[tokio::test]
async fn answers_on_a_connection_that_closes_do_not_end_the_backoff_of_others() {
    let server = Server::start(Habits {
        latency: Duration::from_secs(1),
        ..Habits::default()
    });
    let (addr, attempts) = (server.addr, Arc::<AtomicUsize>::default());
    let counter = attempts.clone();
    // Only the first connection can be opened.
    let connector = tower::service_fn(move |_| {
        let before = counter.fetch_add(1, Ordering::SeqCst);
        async move {
            if before > 0 {
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
            }
            Ok(TokioIo::new(TcpStream::connect(addr).await?))
        }
    });
    let client = builder(server.url()).connector(connector).connect().await;
    let client = client.expect("a server");
    let mut calls = JoinSet::new();
    for _ in 0..100 {
        let client = client.clone();
        calls.spawn(async move { client.cancel_operation(NAME).await });
        tokio::time::sleep(Duration::from_millis(8)).await;
    }
    server.drain();
    // Until the client has received the GOAWAY, a call goes to the connection that closes.
    let mut more = JoinSet::new();
    while attempts.load(Ordering::SeqCst) == 1 {
        let client = client.clone();
        more.spawn(async move { client.cancel_operation(NAME).await });
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!calls.is_empty(), "some are still unanswered");
    // One by one, these are answered, while new calls find no connection.
    while !calls.is_empty() {
        let status = client.cancel_operation(NAME).await.expect_err("refused");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        while let Some(answer) = calls.try_join_next() {
            answer.expect("no panic").expect("an answer");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let attempts = attempts.load(Ordering::SeqCst);
    assert!((2..10).contains(&attempts), "{attempts}");
}

#[tokio::test]
async fn callers_on_a_dead_port_share_one_attempt_and_fail_at_once() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = port.local_addr().expect("bound");
    drop(port);
    let client = builder(format!("http://{addr}")).connect_lazy();
    let client = client.expect("a client");
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..1_000 {
        let client = client.clone();
        tasks.spawn(async move { client.cancel_operation(NAME).await });
    }
    for result in tasks.join_all().await {
        let status = result.expect_err("nobody listens");
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.origin(), Some(Origin::Transport));
        let message = status.message();
        assert!(
            message.starts_with(&format!("cannot connect to {addr}: ")),
            "{message}"
        );
        assert!(message.contains("refused"), "{message}");
    }
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test]
async fn a_server_that_comes_back_is_found_again() {
    let server = Server::start(Habits::default());
    let addr = server.addr;
    let client = connect(&server).await;
    client.cancel_operation(NAME).await.expect("an answer");
    drop(server);
    let status = client.cancel_operation(NAME).await.expect_err("it is gone");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let server = Server::start_at(addr, Habits::default());
    let begin = Instant::now();
    while let Err(status) = client.cancel_operation(NAME).await {
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(begin.elapsed() < Duration::from_secs(7), "{status}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(server.seen.connections(), 1);
}

#[tokio::test]
async fn no_task_is_left_when_the_last_client_is_dropped() {
    let before = Handle::current().metrics().num_alive_tasks();
    let server = Server::start(Habits {
        streams: Some(1),
        latency: Duration::from_millis(20),
        ..Habits::default()
    });
    let client = connect(&server).await;
    let clone = client.clone();
    burst(&clone, 10).await.expect("answers");
    drop(client);
    drop(clone);
    until("no task", || {
        Handle::current().metrics().num_alive_tasks() == before
    })
    .await;
    until("no connection", || server.seen.open() == 0).await;

    let client = builder("http://127.0.0.1:1").connect_lazy();
    let client = client.expect("a client");
    client.cancel_operation(NAME).await.expect_err("no server");
    drop(client);
    until("no task", || {
        Handle::current().metrics().num_alive_tasks() == before
    })
    .await;
}

#[test]
fn without_a_runtime_a_call_fails_and_does_not_panic() {
    let client = builder("http://127.0.0.1:1").connect_lazy();
    let client = client.expect("a client");
    let status = futures_executor::block_on(client.cancel_operation(NAME));
    let status = status.expect_err("no runtime");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("tokio runtime"), "{status}");
    let connecting = builder("http://127.0.0.1:1").connect();
    let status = futures_executor::block_on(connecting).expect_err("no runtime");
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[test]
fn a_runtime_that_ends_fails_its_calls_and_another_goes_on() {
    let server = Server::start(Habits {
        latency: Duration::from_millis(100),
        ..Habits::default()
    });
    let first = Runtime::new().expect("a runtime");
    let second = Runtime::new().expect("a runtime");
    let client: OperationsClient<Transport> = first.block_on(connect(&server));
    let call = second.spawn({
        let client = client.clone();
        async move { client.cancel_operation(NAME).await }
    });
    second.block_on(until("it is in flight", || server.seen.calls() == 1));
    first.shutdown_background();
    let status = second
        .block_on(call)
        .expect("no panic")
        .expect_err("nothing drives it");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status
            .message()
            .contains("runtime that drove the connection has ended"),
        "{status}"
    );
    second
        .block_on(client.cancel_operation(NAME))
        .expect("another connection");
}

#[tokio::test]
async fn the_server_sees_the_authority_and_the_user_agent() {
    let server = Server::start(Habits::default());
    let builder = builder(server.url()).user_agent("tests/1");
    let client = builder.connect().await.expect("a server");
    client.cancel_operation(NAME).await.expect("an answer");
    let agent = concat!("tests/1 grpc-rust-longrunning/", env!("CARGO_PKG_VERSION"));
    assert_eq!(server.seen.header("user-agent"), [Some(agent.to_owned())]);
    let heads = server.seen.heads.lock().expect("no panic");
    let authority = heads[0].uri.authority().map(ToString::to_string);
    assert_eq!(authority, Some(server.addr.to_string()));
}

#[tokio::test]
async fn protocol_headers_precede_custom_metadata() {
    let server = Server::start(Habits::default());
    let auth = Credentials::bearer_token("ya29.c").interceptor().await;
    let auth = auth.expect("it is fixed");
    // With and without each of what has a place among the headers.
    let client = OperationsClient::builder(server.url()).connect().await;
    let timed = client.expect("a server");
    let untimed = OperationsClient::new(timed.stack().clone());
    for client in [&timed, &untimed] {
        let mut request = Request::new(WaitOperationRequest {
            name: NAME.to_owned(),
            ..WaitOperationRequest::default()
        });
        let metadata = request.metadata_mut();
        for name in ["a-first", "grpc-encoding", "te", "z-last"] {
            metadata.insert(name, "x".parse().expect("ASCII"));
        }
        let _ = client.wait_operation(request).await;
        let _ = client.cancel_operation(NAME).await;
        let client = client.clone().auth(auth.clone());
        let _ = client.get_operation(NAME).await;
    }
    // Another generated client over the same stack, which tonic gives its headers.
    let mut other = AnyClient::new(timed.stack().clone());
    let mut request = Request::new(GetOperationRequest::default());
    request.set_timeout(Duration::from_secs(5));
    let metadata = request.metadata_mut();
    metadata.insert("a-first", "x".parse().expect("ASCII"));
    let _ = other.get_operation(request).await;
    let protocol = [
        "grpc-timeout",
        "te",
        "content-type",
        "grpc-accept-encoding",
        "user-agent",
    ];
    let heads = server.seen.heads.lock().expect("no panic");
    assert_eq!(heads.len(), 7);
    for head in heads.iter() {
        let names: Vec<_> = head.headers.keys().map(|name| name.as_str()).collect();
        let places = names
            .iter()
            .map(|name| protocol.iter().position(|other| other == name));
        let places: Vec<_> = places.collect();
        let of_protocol = places.iter().flatten().count();
        let (first, rest) = places.split_at(of_protocol);
        assert!(first.is_sorted() && !first.contains(&None), "{names:?}");
        assert!(rest.iter().all(Option::is_none), "{names:?}");
        assert!(first.contains(&Some(4)), "missing user-agent: {names:?}");
    }
    let reserved = |head: &http::request::Parts| {
        head.headers["te"] == "trailers" && !head.headers.contains_key("grpc-encoding")
    };
    assert!(heads.iter().all(reserved));
}

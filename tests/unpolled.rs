//! Callers that are not polled while their calls are under way: they hold up nobody else.

mod support;

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::stream::{self, StreamExt as _};
use longrunning::{OperationsClient, RetryPolicy, proto::ListOperationsRequest};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::Code;

use self::support::{
    server::{Habits, Server},
    until,
    wire::{self, Listener, Peer},
};

const NAME: &str = "operations/1";

async fn connect(url: String) -> OperationsClient {
    OperationsClient::builder(url)
        .retry(RetryPolicy::none())
        .max_connections(1)
        .connect()
        .await
        .expect("a server")
}

/// Polls a future once; it must not be ready.
async fn poll_once<F: Future + Unpin>(future: &mut F) {
    let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_ready())).await;
    assert!(!first);
}

/// Makes calls one after the other, and notes how long each takes.
fn neighbour(client: &OperationsClient) -> (JoinSet<()>, Arc<Mutex<Vec<Duration>>>) {
    let times = Arc::<Mutex<Vec<Duration>>>::default();
    let (client, noted) = (client.clone(), times.clone());
    let mut neighbour = JoinSet::new();
    neighbour.spawn(async move {
        loop {
            let begin = Instant::now();
            client.cancel_operation(NAME).await.expect("an answer");
            noted.lock().expect("no panic").push(begin.elapsed());
            sleep(Duration::from_millis(2)).await;
        }
    });
    (neighbour, times)
}

#[tokio::test]
async fn a_slow_consumer_of_buffered_calls_fails_none_and_delays_no_neighbour() {
    let server = Server::start(Habits {
        streams: Some(4),
        latency: Duration::from_millis(20),
        ..Habits::default()
    });
    let client = connect(server.url()).await;
    let (neighbour, times) = neighbour(&client);
    let hurried = client.clone().timeout(Duration::from_millis(1_500));
    let mut results = stream::iter(0..12)
        .map(|_| hurried.get_operation(NAME))
        .buffer_unordered(12);
    while let Some(result) = results.next().await {
        result.expect("an answer");
        sleep(Duration::from_millis(250)).await; // the consumer is busy: nothing is polled
    }
    drop(neighbour);
    let times = times.lock().expect("no panic");
    assert!(times.len() > 50, "{}", times.len());
    // Its own 20 ms, and three rounds of the 12 calls at the start.
    let longest = times.iter().max().expect("some");
    assert!(*longest < Duration::from_millis(200), "{longest:?}");
}

#[tokio::test]
async fn a_waiter_that_is_not_polled_delays_nobody_behind_it() {
    let server = Server::start(Habits {
        streams: Some(1),
        latency: Duration::from_millis(50),
        ..Habits::default()
    });
    let client = connect(server.url()).await;
    let mut first = Box::pin(client.cancel_operation(NAME));
    poll_once(&mut first).await;
    let mut unpolled = Box::pin(client.cancel_operation(NAME));
    poll_once(&mut unpolled).await;
    let hurried = client.clone().timeout(Duration::from_secs(1));
    for _ in 0..5 {
        hurried.cancel_operation(NAME).await.expect("an answer");
    }
    first.await.expect("an answer");
    unpolled.await.expect("an answer");
}

#[tokio::test]
async fn a_call_that_is_not_polled_at_its_deadline_frees_its_stream() {
    let server = Server::start(Habits {
        streams: Some(1),
        latency: Duration::from_secs(60),
        ..Habits::default()
    });
    let client = connect(server.url()).await;
    let hurried = client.clone().timeout(Duration::from_millis(200));
    let mut unpolled = Box::pin(hurried.cancel_operation(NAME));
    poll_once(&mut unpolled).await;
    until("it is in flight", || server.seen.calls() == 1).await;
    until("its stream is reset", || server.seen.resets() == 1).await;
    let status = unpolled.await.expect_err("the server did not answer");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test]
async fn a_call_without_an_answer_does_not_hold_back_a_large_answer_under_a_small_budget() {
    let server = Server::start(Habits {
        latency: Duration::from_millis(100),
        bytes: 3 << 20,
        ..Habits::default()
    });
    let client = OperationsClient::builder(server.url())
        .max_connections(1)
        .max_buffered_bytes(1 << 20)
        .connect()
        .await
        .expect("a server");
    let first = client.get_operation(NAME);
    let second = client.get_operation(NAME);
    // More than the server may send at once, and so more than the budget while it is read.
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.expect("an answer").name.len(), 3 << 20);
    assert_eq!(second.expect("an answer").name.len(), 3 << 20);
}

/// A server that answers each call before it has read the request, which so is never sent whole.
fn early(reset: bool, answered: Arc<AtomicUsize>) -> Listener {
    Listener::start(move |_, io: TcpStream| {
        let answered = answered.clone();
        async move {
            let mut peer = Peer::accept(io).await?;
            let room_on_the_connection = (1_u32 << 30).to_be_bytes();
            peer.frame(wire::WINDOW_UPDATE, 0, 0, &room_on_the_connection)
                .await?;
            loop {
                let frame = peer.next().await?;
                if frame.kind != wire::HEADERS {
                    continue;
                }
                peer.answer(frame.stream).await?;
                if reset {
                    peer.reset(frame.stream, 0).await?;
                }
                answered.fetch_add(1, Ordering::SeqCst);
            }
            #[allow(unreachable_code)]
            io::Result::Ok(())
        }
    })
}

async fn early_answers(reset: bool) {
    let answered = Arc::<AtomicUsize>::default();
    let listener = early(reset, answered.clone());
    let client = connect(listener.url()).await;
    let client = client.timeout(Duration::from_secs(5));
    for call in 1..=1_000 {
        let result = client.list_operations(ListOperationsRequest {
            // More than the server's window for a stream.
            filter: "f".repeat(100_000),
            ..ListOperationsRequest::default()
        });
        let result = result.await;
        assert!(result.is_ok(), "{call}: {result:?}");
    }
    assert_eq!(answered.load(Ordering::SeqCst), 1_000);
    assert_eq!(listener.accepted(), 1);
}

#[tokio::test]
async fn early_answers_without_a_reset_give_every_stream_back() {
    early_answers(false).await;
}

#[tokio::test]
async fn early_answers_with_a_reset_give_every_stream_back() {
    early_answers(true).await;
}

#[tokio::test]
async fn answers_that_nobody_takes_are_bounded() {
    const ANSWER: usize = 1 << 20;
    let server = Server::start(Habits {
        streams: Some(10),
        bytes: ANSWER,
        ..Habits::default()
    });
    let client = OperationsClient::builder(server.url())
        .max_connections(1)
        .max_buffered_bytes(5 * ANSWER)
        .connect()
        .await
        .expect("a server");
    let mut unpolled: Vec<_> = (0..60)
        .map(|_| Box::pin(client.get_operation(NAME)))
        .collect();
    for call in &mut unpolled {
        poll_once(call).await;
    }
    until("answers have come", || {
        server.seen.answers.load(Ordering::SeqCst) > 5
    })
    .await;
    sleep(Duration::from_millis(300)).await;
    let sent = server.seen.calls();
    assert!(sent <= 5 + 1 + 10, "{sent} calls were sent");
    // All are served as soon as somebody takes the answers.
    let all = futures_util::future::join_all(unpolled);
    let results = timeout(Duration::from_secs(10), all).await;
    for result in results.expect("they go on") {
        result.expect("an answer");
    }
    assert_eq!(server.seen.calls(), 60);
}

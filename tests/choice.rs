//! Which connection takes a call, when connections are opened, and for how long they are used.

mod support;

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use longrunning::{ClientBuilder, OperationsClient, RetryPolicy};
use tokio::{
    net::TcpStream,
    runtime,
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{Code, Status};

use self::support::{
    server::{Habits, Server},
    until,
    wire::{Listener, Peer},
};

const NAME: &str = "operations/1";

fn builder(url: String) -> ClientBuilder {
    OperationsClient::builder(url).retry(RetryPolicy::none())
}

/// Makes so many calls at once; returns their results.
async fn burst(client: &OperationsClient, calls: usize) -> Vec<Result<(), Status>> {
    let calls: JoinSet<_> = (0..calls)
        .map(|_| {
            let client = client.clone();
            async move { client.cancel_operation(NAME).await }
        })
        .collect();
    calls.join_all().await
}

/// A server with two streams on each connection, the first of which resets every call with a code
/// once it is told to.
fn first_resets(code: u32, resets: Arc<AtomicUsize>, bad: Arc<AtomicBool>) -> Listener {
    Listener::start(move |before, io: TcpStream| {
        let (resets, bad) = (resets.clone(), bad.clone());
        async move {
            let mut peer = Peer::accept_with(io, 2).await?;
            loop {
                let stream = peer.call().await?;
                if before == 0 && bad.load(Ordering::SeqCst) {
                    resets.fetch_add(1, Ordering::SeqCst);
                    peer.reset(stream, code).await?;
                } else {
                    sleep(Duration::from_millis(5)).await;
                    peer.answer(stream).await?;
                }
            }
        }
    })
}

/// Returns a client with two connections to such a server.
async fn two_connections(listener: &Listener) -> OperationsClient {
    let client = builder(listener.url()).max_connections(2);
    let client = client.connect().await.expect("a server");
    for result in burst(&client, 4).await {
        result.expect("an answer");
    }
    assert_eq!(listener.accepted(), 2);
    client
}

#[tokio::test]
async fn a_refused_call_goes_to_another_connection() {
    let (resets, bad) = (Arc::default(), Arc::<AtomicBool>::default());
    let listener = first_resets(7, Arc::clone(&resets), bad.clone());
    let client = two_connections(&listener).await;
    bad.store(true, Ordering::SeqCst);
    for _ in 0..20 {
        client.cancel_operation(NAME).await.expect("on the other");
    }
    // After some failures in a row the connection was replaced.
    let resets = resets.load(Ordering::SeqCst);
    assert!((1..=4).contains(&resets), "{resets}");
}

#[tokio::test]
async fn a_connection_that_fails_calls_while_others_succeed_is_replaced() {
    let (resets, bad) = (Arc::default(), Arc::<AtomicBool>::default());
    let listener = first_resets(2, Arc::clone(&resets), bad.clone());
    let client = two_connections(&listener).await;
    bad.store(true, Ordering::SeqCst);
    let mut failures = 0;
    for _ in 0..50 {
        if let Err(status) = client.cancel_operation(NAME).await {
            assert_eq!(status.code(), Code::Internal, "{status:?}");
            failures += 1;
        }
    }
    assert!((1..=4).contains(&failures), "{failures}");
    for result in burst(&client, 20).await {
        result.expect("the bad one is gone");
    }
    assert_eq!(listener.accepted(), 3, "and replaced");
}

#[tokio::test]
async fn load_goes_to_the_least_loaded_connection() {
    let server = Server::start(Habits {
        streams: Some(10),
        latency: Duration::from_millis(100),
        ..Habits::default()
    });
    let client = builder(server.url()).max_connections(4);
    let client = client.connect().await.expect("a server");
    for result in burst(&client, 40).await {
        result.expect("an answer");
    }
    assert_eq!(server.seen.connections(), 4);
    // The server notes the most calls on one connection, from now on.
    server.seen.most.store(0, Ordering::SeqCst);
    for result in burst(&client, 31).await {
        result.expect("an answer");
    }
    assert!(server.seen.most() < 10, "{}", server.seen.most());
}

#[tokio::test]
async fn connections_are_opened_together_as_many_as_the_calls_need() {
    const HANDSHAKE: Duration = Duration::from_millis(200);
    let opened = Arc::<AtomicUsize>::default();
    let counter = opened.clone();
    let listener = Listener::start(move |_, io: TcpStream| {
        let counter = counter.clone();
        async move {
            sleep(HANDSHAKE).await;
            let mut peer = Peer::accept_with(io, 100).await?;
            counter.fetch_add(1, Ordering::SeqCst);
            peer.ignore(Duration::from_secs(60)).await
        }
    });
    let client = builder(listener.url()).connect_lazy().expect("a client");
    let begin = Instant::now();
    let calls: JoinSet<_> = (0..4_000)
        .map(|_| {
            let client = client.clone();
            async move { client.cancel_operation(NAME).await }
        })
        .collect();
    until("20 are open", || opened.load(Ordering::SeqCst) == 20).await;
    // One after the other it would be 4 s.
    assert!(begin.elapsed() < 10 * HANDSHAKE, "{:?}", begin.elapsed());
    assert_eq!(listener.accepted(), 20);
    drop(calls);
}

#[tokio::test]
async fn a_call_during_backoff_says_when_the_last_and_the_next_attempt_are() {
    let listener = Listener::start(|_, _: TcpStream| async { Ok(()) }); // and closed
    let client = builder(listener.url()).connect_lazy().expect("a client");
    let first = client.cancel_operation(NAME).await.expect_err("closed");
    assert!(!first.message().contains("the next"), "{first:?}");
    let status = client.cancel_operation(NAME).await.expect_err("backoff");
    assert_eq!(status.code(), Code::Unavailable);
    let message = status.message();
    assert!(
        message.starts_with("cannot connect to 127.0.0.1:"),
        "{message}"
    );
    assert!(message.contains("(the last attempt failed "), "{message}");
    assert!(message.contains(" ago, the next starts in "), "{message}");
    assert_eq!(listener.accepted(), 1);
}

/// A runtime that runs only while something is blocked on it.
fn on_demand() -> runtime::Runtime {
    let mut builder = runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

/// Polls a future once.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await;
}

fn serve() -> Listener {
    Listener::start(|_, io: TcpStream| async move { Peer::accept(io).await?.serve().await })
}

#[test]
fn a_connection_whose_runtime_stands_still_loses_its_calls_to_another() {
    let listener = serve();
    let (still, runs) = (on_demand(), on_demand());
    let client = builder(listener.url()).max_connections(1);
    let client = still.block_on(client.connect()).expect("a server");
    let answer = still.block_on(client.cancel_operation(NAME));
    answer.expect("an answer");
    // From now on nobody drives the connection.
    let begin = Instant::now();
    for _ in 0..20 {
        let answer = runs.block_on(client.cancel_operation(NAME));
        answer.expect("on another connection");
    }
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(listener.accepted(), 2);
}

#[test]
fn a_call_that_is_refused_beside_a_connection_that_stands_still_is_sent_again() {
    let listener = Listener::start(|before, io: TcpStream| async move {
        let mut peer = Peer::accept(io).await?;
        if before > 0 {
            let stream = peer.call().await?;
            peer.reset(stream, 7).await?;
        }
        peer.serve().await
    });
    let (still, runs) = (on_demand(), on_demand());
    let client = still.block_on(builder(listener.url()).connect());
    let client = client.expect("a server");
    let answer = still.block_on(client.cancel_operation(NAME));
    answer.expect("an answer");
    let answer = runs.block_on(
        client
            .timeout(Duration::from_secs(4))
            .cancel_operation(NAME),
    );
    answer.expect("an answer");
}

#[test]
fn an_attempt_on_a_runtime_that_stands_still_is_void() {
    let listener = serve();
    let (still, runs) = (on_demand(), on_demand());
    let client = builder(listener.url()).connect_timeout(Duration::from_millis(200));
    let client = client.connect_lazy().expect("a client");
    still.block_on(async {
        let call = pin!(client.cancel_operation(NAME));
        poll_once(call).await; // it begins to connect, and never goes on
    });
    let begin = Instant::now();
    let answer = runs.block_on(client.cancel_operation(NAME));
    answer.expect("on a connection of this runtime");
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test]
async fn the_minimum_of_connections_is_opened_and_restored() {
    let cut = Arc::<AtomicBool>::default();
    let cuts = cut.clone();
    let open = Arc::<AtomicUsize>::default();
    let counter = open.clone();
    let listener = Listener::start(move |before, io: TcpStream| {
        let (cuts, counter) = (cuts.clone(), counter.clone());
        async move {
            let mut peer = Peer::accept(io).await?;
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::select! {
                end = peer.serve() => end?,
                () = async {
                    while before > 0 || !cuts.load(Ordering::SeqCst) {
                        sleep(Duration::from_millis(5)).await;
                    }
                } => {}
            }
            io::Result::Ok(())
        }
    });
    let client = builder(listener.url()).min_connections(3);
    let client = client.connect().await.expect("a server");
    until("three are open", || open.load(Ordering::SeqCst) == 3).await;
    client.cancel_operation(NAME).await.expect("an answer");
    cut.store(true, Ordering::SeqCst);
    until("a fourth is open", || open.load(Ordering::SeqCst) == 4).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(listener.accepted(), 4);
}

#[tokio::test]
async fn a_minimum_above_the_maximum_is_refused() {
    let builder = builder("http://127.0.0.1:1".to_owned());
    let builder = builder.min_connections(3).max_connections(2);
    let status = builder.connect_lazy().expect_err("it makes no sense");
    assert_eq!(status.code(), Code::InvalidArgument);
    let expected = "min_connections 3: it is more than max_connections, which is 2";
    assert_eq!(status.message(), expected);
}

#[tokio::test]
async fn a_connection_that_reaches_its_maximum_age_is_replaced_without_a_failure() {
    let server = Server::start(Habits {
        latency: Duration::from_millis(20),
        ..Habits::default()
    });
    let client = builder(server.url()).max_connection_age(Duration::from_millis(200));
    let client = client.connect().await.expect("a server");
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        client.cancel_operation(NAME).await.expect("an answer");
    }
    let connections = server.seen.connections();
    assert!((4..=8).contains(&connections), "{connections}");
    until("the old ones are closed", || server.seen.open() <= 1).await;
}

#[tokio::test]
async fn no_more_streams_are_used_than_are_set() {
    let server = Server::start(Habits {
        streams: None,
        latency: Duration::from_millis(20),
        ..Habits::default()
    });
    let client = builder(server.url())
        .streams_per_connection(5)
        .max_connections(2);
    let client = client.connect().await.expect("a server");
    for result in burst(&client, 50).await {
        result.expect("an answer");
    }
    assert_eq!(server.seen.most(), 5);
    assert_eq!(server.seen.connections(), 2);
}

//! Connections that die without a word, and servers that are merely slow.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use longrunning::{CallStatusExt as _, ClientBuilder, OperationsClient, Origin, RetryPolicy};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::Code;

use self::support::wire::{Listener, Peer};

const NAME: &str = "operations/1";

fn builder(listener: &Listener) -> ClientBuilder {
    OperationsClient::builder(listener.url()).retry(RetryPolicy::none())
}

/// A server whose connections allow so many streams, serve, and from a moment on say nothing more.
struct Mortal {
    listener: Listener,
    /// Connections beyond so many live.
    dead: Arc<AtomicUsize>,
}

impl Mortal {
    fn start(streams: u32, latency: Duration) -> Self {
        let dead = Arc::<AtomicUsize>::default();
        let die = dead.clone();
        let listener = Listener::start(move |before, io: TcpStream| {
            let die = die.clone();
            async move {
                let mut peer = Peer::accept_with(io, streams).await?;
                loop {
                    let stream = peer.call().await?;
                    sleep(latency).await;
                    if before < die.load(Ordering::SeqCst) {
                        peer.pongs = false;
                        peer.ignore(Duration::from_secs(60)).await?;
                    }
                    peer.answer(stream).await?;
                }
            }
        });
        Self { listener, dead }
    }

    /// Silences the connections there are.
    fn silence(&self) {
        self.dead.store(self.listener.accepted(), Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_connection_that_dies_in_silence_is_closed_5_s_after_the_first_deadline() {
    let server = Mortal::start(100, Duration::ZERO);
    let client = builder(&server.listener).connect().await.expect("a server");
    client.cancel_operation(NAME).await.expect("an answer");
    server.silence();
    let hurried = client.clone().timeout(Duration::from_millis(200));
    let status = hurried.cancel_operation(NAME).await.expect_err("silence");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.origin(), Some(Origin::Client));

    // There is no other connection to go to. This one is given up before the call's deadline.
    let begin = Instant::now();
    let status = client.cancel_operation(NAME).await.expect_err("silence");
    let took = begin.elapsed();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(
        status
            .message()
            .contains("no data received within 5s of a ping"),
        "{status:?}"
    );
    assert!((4_500..5_500).contains(&took.as_millis()), "{took:?}");
    assert_eq!(server.listener.accepted(), 1);
    let totals = client.stack().stats().totals;
    assert_eq!((totals.keepalive_timeouts, totals.disconnections), (1, 1));

    client
        .cancel_operation(NAME)
        .await
        .expect("on another connection");
    assert_eq!(server.listener.accepted(), 2);
}

#[tokio::test]
async fn a_call_beside_a_dead_connection_goes_to_a_good_one() {
    // One stream each, so that two calls at once make two connections.
    let server = Mortal::start(2, Duration::from_millis(20));
    let client = builder(&server.listener).connect().await.expect("a server");
    let both: JoinSet<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            async move { client.cancel_operation(NAME).await }
        })
        .collect();
    for result in both.join_all().await {
        result.expect("an answer");
    }
    assert_eq!(server.listener.accepted(), 2);

    server.dead.store(1, Ordering::SeqCst); // the oldest, which calls go to first
    let hurried = client.clone().timeout(Duration::from_secs(1));
    let status = hurried.cancel_operation(NAME).await.expect_err("silence");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    // Beyond the first deadline nothing is delayed until another.
    for _ in 0..50 {
        hurried
            .cancel_operation(NAME)
            .await
            .expect("on the good one");
    }
    assert_eq!(server.listener.accepted(), 2);
}

#[tokio::test]
async fn a_server_slower_than_every_deadline_causes_no_other_connection_and_hardly_a_ping() {
    let pings = Arc::<AtomicUsize>::default();
    let counter = pings.clone();
    let listener = Listener::start(move |_, io: TcpStream| {
        let counter = counter.clone();
        async move {
            let mut peer = Peer::accept(io).await?;
            loop {
                peer.next().await?;
                counter.fetch_max(peer.pings, Ordering::SeqCst);
            }
        }
    });
    let client = builder(&listener).connect().await.expect("a server");
    let client = client.timeout(Duration::from_millis(30));
    for _ in 0..50 {
        let calls: JoinSet<_> = (0..20)
            .map(|_| {
                let client = client.clone();
                async move { client.cancel_operation(NAME).await }
            })
            .collect();
        for result in calls.join_all().await {
            let status = result.expect_err("it never answers");
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        }
    }
    assert_eq!(listener.accepted(), 1);
    // A strict server takes one at any time, and the next after 5 minutes.
    assert!(pings.load(Ordering::SeqCst) <= 1);
}

#[tokio::test]
async fn a_call_that_was_dropped_before_its_deadline_suspects_nothing() {
    let pinged = Arc::<AtomicBool>::default();
    let note = pinged.clone();
    let listener = Listener::start(move |_, io: TcpStream| {
        let note = note.clone();
        async move {
            let mut peer = Peer::accept(io).await?;
            loop {
                peer.next().await?;
                note.fetch_or(peer.pings > 0, Ordering::SeqCst);
            }
        }
    });
    let client = builder(&listener).connect().await.expect("a server");
    for _ in 0..20 {
        let call = client.cancel_operation(NAME);
        tokio::time::timeout(Duration::from_millis(10), call)
            .await
            .expect_err("it never answers");
    }
    assert!(!pinged.load(Ordering::SeqCst));
    assert_eq!(listener.accepted(), 1);
}

#[tokio::test]
async fn a_server_that_is_late_once_and_dies_then_is_found_out() {
    let listener = Listener::start(|before, io: TcpStream| async move {
        let mut peer = Peer::accept(io).await?;
        if before > 0 {
            return peer.serve().await;
        }
        // It takes a call, and answers the ping that follows its deadline, but no call.
        while peer.pings == 0 {
            tokio::select! {
                frame = peer.next() => drop(frame?),
                () = sleep(Duration::from_millis(1)) => {}
            }
        }
        peer.pongs = false;
        peer.ignore(Duration::from_secs(60)).await
    });
    let client = builder(&listener).connect().await.expect("a server");
    let client = client.timeout(Duration::from_millis(300));
    let begin = Instant::now();
    loop {
        match client.cancel_operation(NAME).await {
            Ok(()) => break,
            Err(status) if status.code() == Code::DeadlineExceeded => {}
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
        // Two deadlines, and 5 s.
        assert!(begin.elapsed() < Duration::from_secs(8));
    }
    assert_eq!(listener.accepted(), 2);
}

/// A server whose first connection allows no streams, and says nothing more.
fn dead_and_without_streams_at_first() -> Listener {
    Listener::start(|before, io: TcpStream| async move {
        if before > 0 {
            return Peer::accept(io).await?.serve().await;
        }
        let mut peer = Peer::accept_with(io, 0).await?;
        peer.pongs = false;
        peer.ignore(Duration::from_secs(60)).await
    })
}

#[tokio::test]
async fn a_connection_that_dies_while_it_allows_no_streams_is_found_out() {
    let listener = dead_and_without_streams_at_first();
    let client = builder(&listener).connect().await.expect("a server");
    let hurried = client.clone().timeout(Duration::from_millis(200));
    let status = hurried.cancel_operation(NAME).await.expect_err("silence");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(listener.accepted(), 1);
    let begin = Instant::now();
    client
        .cancel_operation(NAME)
        .await
        .expect("on another connection");
    let took = begin.elapsed();
    assert!((4_500..5_500).contains(&took.as_millis()), "{took:?}");
    assert_eq!(listener.accepted(), 2);
}

#[tokio::test]
async fn a_dead_connection_whose_streams_were_all_dropped_is_found_out() {
    let listener = Listener::start(|before, io: TcpStream| async move {
        let mut peer = Peer::accept_with(io, 10).await?;
        if before > 0 {
            return peer.serve().await;
        }
        peer.pongs = false;
        peer.ignore(Duration::from_secs(60)).await
    });
    let client = builder(&listener).max_connections(1);
    let client = client.connect().await.expect("a server");
    let mut calls: JoinSet<_> = (0..10)
        .map(|_| {
            let client = client.clone();
            async move { client.cancel_operation(NAME).await }
        })
        .collect();
    sleep(Duration::from_millis(100)).await;
    calls.shutdown().await; // long before their deadlines
    let begin = Instant::now();
    client
        .cancel_operation(NAME)
        .await
        .expect("on another connection");
    // By the probe that has to be acknowledged before the streams are reset.
    let took = begin.elapsed();
    assert!((4_000..7_000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(listener.accepted(), 2);
}

#[tokio::test]
async fn the_longest_times_are_no_times_at_all() {
    let server = Mortal::start(100, Duration::from_millis(200));
    let client = builder(&server.listener)
        .keepalive_interval(Duration::from_millis(20))
        .keepalive_timeout(Duration::MAX)
        .max_connection_age(Duration::MAX)
        .connect_timeout(Duration::MAX);
    let client = client.connect().await.expect("a server");
    client.cancel_operation(NAME).await.expect("an answer");
    assert_eq!(server.listener.accepted(), 1);
}

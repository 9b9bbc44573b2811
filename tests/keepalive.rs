//! Keepalive pings, as specified in gRFC A8. Time is paused, and a pipe joins client and server.

mod support;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use longrunning::{ClientBuilder, OperationsClient, RetryPolicy};
use tokio::{
    io::{DuplexStream, duplex},
    time::{Instant, sleep},
};
use tonic::Code;

use self::support::wire::Peer;

const NAME: &str = "operations/1";

/// An interval that is less than the minimum of 10 seconds.
const SHORT: Duration = Duration::from_millis(50);

const TIMEOUT: Duration = Duration::from_millis(100);

/// A client of a server that runs a script on each connection. It is told how many came before.
fn serve<F>(
    script: impl Fn(usize, DuplexStream) -> F + Send + Sync + 'static,
) -> (ClientBuilder, Arc<AtomicUsize>)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let accepted = Arc::<AtomicUsize>::default();
    let counter = accepted.clone();
    let connector = tower::service_fn(move |_: http::Uri| {
        let (client, server) = duplex(1 << 16);
        tokio::spawn(script(counter.fetch_add(1, Ordering::SeqCst), server));
        std::future::ready(Ok::<_, io::Error>(TokioIo::new(client)))
    });
    let builder = OperationsClient::builder("http://in-memory")
        .connector(connector)
        .keepalive_interval(SHORT)
        .keepalive_timeout(TIMEOUT)
        .timeout(Duration::from_secs(1_000))
        .retry(RetryPolicy::none());
    (builder, accepted)
}

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test(start_paused = true)]
async fn a_dead_connection_is_detected_during_a_call_and_an_idle_one_is_not_pinged() {
    let pings = Arc::<AtomicUsize>::default();
    let counter = pings.clone();
    let (builder, _) = serve(move |_, io| {
        let counter = counter.clone();
        async move {
            let mut peer = Peer::accept(io).await?;
            let stream = peer.call().await?;
            peer.answer(stream).await?;
            peer.call().await?; // idle until here
            counter.store(peer.pings, Ordering::SeqCst);
            peer.pongs = false;
            peer.ignore(DAY).await
        }
    });
    let client = builder.connect().await.expect("a server");
    client.cancel_operation(NAME).await.expect("an answer");
    sleep(Duration::from_secs(100)).await;
    let begin = Instant::now();
    let status = client.cancel_operation(NAME).await.expect_err("silence");
    assert_eq!(pings.load(Ordering::SeqCst), 0, "while it was idle");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(
        status
            .message()
            .contains("no data received within 100ms of a ping"),
        "{status:?}"
    );
    // The call was sent with a ping, because nothing was received for the interval.
    let took = begin.elapsed().as_millis();
    assert!((100..200).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn intervals_of_less_than_10_seconds_are_raised_to_10_seconds() {
    let (builder, _) = serve(|_, io| async move {
        let mut peer = Peer::accept(io).await?;
        peer.pongs = false;
        peer.ignore(DAY).await
    });
    let client = builder.connect().await.expect("a server");
    let begin = Instant::now();
    let status = client.cancel_operation(NAME).await.expect_err("silence");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let took = begin.elapsed().as_millis();
    assert!((10_100..10_200).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn too_many_pings_doubles_the_interval() {
    // As a gRPC server with a minimum of 30 s: the third ping that comes too early is too many.
    const MINIMUM: Duration = Duration::from_secs(30);
    let (builder, accepted) = serve(|_, io| async move {
        let mut peer = Peer::accept(io).await?;
        let stream = peer.call().await?;
        let mut last = Instant::now();
        let (mut strikes, mut seen) = (0, 0);
        loop {
            tokio::select! {
                frame = peer.next() => drop(frame?),
                () = sleep(Duration::from_millis(50)) => {}
            }
            if peer.pings > seen {
                seen = peer.pings;
                // The first has no predecessor.
                strikes += usize::from(seen > 1 && last.elapsed() < MINIMUM);
                last = Instant::now();
            }
            if strikes > 2 {
                peer.goaway(stream, 11, "too_many_pings").await?;
                return Ok(());
            }
            if seen == 6 {
                peer.answer(stream).await?;
            }
        }
    });
    let client = builder.max_connections(1).connect_lazy();
    let client = client.expect("a client");
    for life in 1..=2 {
        let status = client.cancel_operation(NAME).await;
        let status = status.expect_err("too many pings");
        assert_eq!(status.code(), Code::Unavailable, "{life}: {status:?}");
        assert!(
            status
                .message()
                .contains("GOAWAY ENHANCE_YOUR_CALM: connection error received"),
            "{status:?}"
        );
        assert!(status.message().contains("too_many_pings"), "{status:?}");
        sleep(Duration::from_secs(10)).await; // the backoff of a connection without an answer
    }
    client
        .cancel_operation(NAME)
        .await
        .expect("every 40 s is not too often");
    assert_eq!(accepted.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn a_goaway_for_another_reason_does_not_change_the_interval() {
    let (builder, _) = serve(|before, io| async move {
        let mut peer = Peer::accept(io).await?;
        let stream = peer.call().await?;
        if before < 6 {
            peer.answer(stream).await?;
            return peer.goaway(stream, 11, "too_many_resets").await;
        }
        peer.pongs = false;
        peer.ignore(DAY).await
    });
    let client = builder.connect().await.expect("a server");
    for _ in 0..6 {
        client.cancel_operation(NAME).await.expect("an answer");
    }
    let begin = Instant::now();
    let status = client.cancel_operation(NAME).await.expect_err("silence");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_connection_with_a_stream_limit_of_0_is_detected() {
    let (builder, accepted) = serve(|before, io| async move {
        if before > 0 {
            return Peer::accept(io).await?.serve().await;
        }
        let mut peer = Peer::accept_with(io, 0).await?;
        peer.pongs = false;
        peer.ignore(DAY).await
    });
    let client = builder.connect().await.expect("a server");
    let begin = Instant::now();
    client
        .cancel_operation(NAME)
        .await
        .expect("on another connection");
    let took = begin.elapsed().as_millis();
    assert!((10_100..12_000).contains(&took), "{took}");
    assert_eq!(accepted.load(Ordering::SeqCst), 2);
}

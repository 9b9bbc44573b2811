//! Past the limit on streams, beside a single Channel in the same run.
//!
//! Timed, and so of use in a release build on a machine at rest only:
//! `cargo test --release --test throughput -- --nocapture`.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use longrunning::{OperationsClient, RetryPolicy, Stack};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::transport::Channel;

use self::support::server::{Habits, Server};

/// Calls that succeed in a second, with so many in flight.
async fn rate<S: Stack + Sync>(client: OperationsClient<S>, in_flight: usize) -> usize
where
    S::Future: Send,
{
    let calls = Arc::<AtomicUsize>::default();
    let mut callers = JoinSet::new();
    for caller in 0..in_flight {
        let (client, calls) = (client.clone(), calls.clone());
        callers.spawn(async move {
            let name = format!("operations/{caller}");
            while client.cancel_operation(&name).await.is_ok() {
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    sleep(Duration::from_millis(500)).await; // it has opened the connections that it needs
    let (begin, before) = (Instant::now(), calls.load(Ordering::Relaxed));
    sleep(Duration::from_secs(1)).await;
    let done = calls.load(Ordering::Relaxed) - before;
    let took = begin.elapsed();
    assert!(callers.try_join_next().is_none(), "a call has failed");
    callers.shutdown().await;
    (done as f64 / took.as_secs_f64()) as usize
}

async fn one_round(streams: u32, in_flight: usize) -> (usize, usize) {
    let server = || {
        Server::start(Habits {
            streams: Some(streams),
            latency: Duration::from_millis(10),
            ..Habits::default()
        })
    };
    let channel = {
        let server = server();
        let endpoint = Channel::from_shared(server.url()).expect("a URL");
        // Else it opens more streams than there may be, before it knows.
        let channel = endpoint.connect().await.expect("a server");
        let client = OperationsClient::new(channel);
        client
            .cancel_operation("operations/0")
            .await
            .expect("an answer");
        let rate = rate(client, in_flight).await;
        tokio::task::spawn_blocking(move || drop(server))
            .await
            .expect("no panic");
        rate
    };
    let server = server();
    let client = OperationsClient::builder(server.url()).retry(RetryPolicy::none());
    let client = client.connect().await.expect("a server");
    let pool = rate(client, in_flight).await;
    tokio::task::spawn_blocking(move || drop(server))
        .await
        .expect("no panic");
    (channel, pool)
}

async fn median_ratio(streams: u32, in_flight: usize) -> f64 {
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let (channel, pool) = one_round(streams, in_flight).await;
        let ratio = pool as f64 / channel as f64;
        println!(
            "{streams} streams, {in_flight} in flight: Channel {channel}/s, here {pool}/s: {ratio:.2}"
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    ratios[2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    debug_assertions,
    ignore = "only a release build is fast enough to tell"
)]
async fn with_1_000_in_flight_it_makes_3_5_times_the_calls_of_a_channel() {
    let ratio = median_ratio(100, 1_000).await;
    assert!(ratio >= 3.5, "{ratio}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    debug_assertions,
    ignore = "only a release build is fast enough to tell"
)]
async fn with_10_streams_a_connection_it_makes_10_times_the_calls_of_a_channel() {
    let ratio = median_ratio(10, 1_000).await;
    assert!(ratio >= 10.0, "{ratio}");
}

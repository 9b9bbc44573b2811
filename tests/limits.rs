//! The server's limit on streams, when it comes late, changes, or is 0 for a while.

mod support;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use longrunning::{OperationsClient, RetryPolicy};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::Status;

use self::support::wire::{Listener, MAX_STREAMS, Peer};

const NAME: &str = "operations/1";
const MOMENT: Duration = Duration::from_millis(5);

fn client(listener: &Listener, connections: usize) -> OperationsClient {
    let builder = OperationsClient::builder(listener.url()).retry(RetryPolicy::none());
    let builder = builder.max_connections(connections);
    builder.connect_lazy().expect("a client")
}

fn calls(client: &OperationsClient, calls: usize) -> JoinSet<Result<(), Status>> {
    let call = |_| {
        let client = client.clone();
        async move { client.cancel_operation(NAME).await }
    };
    (0..calls).map(call).collect()
}

async fn all_succeed(calls: JoinSet<Result<(), Status>>) {
    for result in calls.join_all().await {
        result.expect("an answer");
    }
}

/// Takes in calls until no more come, and answers them; up to so many in all. Returns the most that
/// were there at once.
async fn serve(peer: &mut Peer, calls: usize) -> io::Result<usize> {
    let mut most = 0;
    let mut served = 0;
    while served < calls {
        let mut streams = vec![peer.call().await?];
        while let Ok(stream) = timeout(MOMENT, peer.call()).await {
            streams.push(stream?);
        }
        most = most.max(streams.len());
        for stream in streams {
            peer.answer(stream).await?;
            served += 1;
        }
    }
    Ok(most)
}

#[tokio::test]
async fn nothing_is_sent_before_the_settings_arrive_and_then_no_more_than_they_allow() {
    let most = Arc::<AtomicUsize>::default();
    let seen = most.clone();
    let listener = Listener::start(move |_, io: TcpStream| {
        let seen = seen.clone();
        async move {
            let mut peer = Peer::silent(io).await?;
            let early = timeout(Duration::from_millis(100), peer.next()).await;
            // The client's own settings are acknowledged; its window may grow.
            assert!(early.is_err() || early.is_ok_and(|frame| frame.is_ok_and(|f| f.kind == 8)));
            peer.settings(&[(MAX_STREAMS, 2)]).await?;
            loop {
                seen.fetch_max(serve(&mut peer, 1).await?, Ordering::SeqCst);
            }
        }
    });
    let client = client(&listener, 1);
    all_succeed(calls(&client, 50)).await;
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_limit_of_0_is_waited_out_and_opens_no_other_connection() {
    let listener = Listener::start(|_, io: TcpStream| async {
        let mut peer = Peer::accept_with(io, 0).await?;
        peer.ignore(Duration::from_millis(300)).await?;
        peer.settings(&[(MAX_STREAMS, 10)]).await?;
        peer.serve().await
    });
    let client = client(&listener, 20);
    let begin = Instant::now();
    all_succeed(calls(&client, 10)).await;
    assert!(begin.elapsed() >= Duration::from_millis(300));
    assert_eq!(listener.accepted(), 1);
}

#[tokio::test]
async fn a_limit_of_0_in_mid_life_is_waited_out_too() {
    let listener = Listener::start(|_, io: TcpStream| async {
        let mut peer = Peer::accept_with(io, 10).await?;
        loop {
            serve(&mut peer, 20).await?;
            peer.settings(&[(MAX_STREAMS, 0)]).await?;
            // What was under way when it came is still answered.
            while let Ok(stream) = timeout(10 * MOMENT, peer.call()).await {
                peer.answer(stream?).await?;
            }
            peer.settings(&[(MAX_STREAMS, 10)]).await?;
        }
    });
    let client = client(&listener, 1);
    all_succeed(calls(&client, 200)).await;
    assert_eq!(listener.accepted(), 1);
}

#[tokio::test]
async fn a_limit_that_shrinks_is_kept_and_one_that_grows_is_used() {
    let listener = Listener::start(|_, io: TcpStream| async {
        let mut peer = Peer::accept_with(io, 20).await?;
        for limit in [2, 1, 50, 3, 20] {
            peer.settings(&[(MAX_STREAMS, limit)]).await?;
            // Those that were sent under the former limit.
            serve(&mut peer, 50).await?;
            let most = serve(&mut peer, 100).await?;
            assert!(most <= limit as usize, "{most} of {limit}");
            assert!(most >= limit as usize / 2, "{most} of {limit}");
        }
        peer.serve().await
    });
    let client = client(&listener, 1);
    all_succeed(calls(&client, 2_000)).await;
    assert_eq!(listener.accepted(), 1);
}

#[tokio::test]
async fn a_waiting_call_fails_at_its_deadline_and_the_others_go_on() {
    let listener = Listener::start(|_, io: TcpStream| async {
        let mut peer = Peer::accept_with(io, 1).await?;
        loop {
            let stream = peer.call().await?;
            sleep(Duration::from_millis(200)).await;
            peer.answer(stream).await?;
        }
    });
    let client = client(&listener, 1);
    client.cancel_operation(NAME).await.expect("an answer");
    let hurried = client.clone().timeout(Duration::from_millis(500));
    let calls = calls(&hurried, 50);
    let begin = Instant::now();
    let results = calls.join_all().await;
    assert!(
        begin.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        begin.elapsed()
    );
    let (answered, late): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert!((1..=3).contains(&answered.len()), "{}", answered.len());
    for status in late {
        let status = status.expect_err("late");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
    }
    client.cancel_operation(NAME).await.expect("an answer");
    assert_eq!(listener.accepted(), 1);
}

#[tokio::test]
async fn who_waits_on_a_connection_that_goes_away_gets_another_at_once() {
    let listener = Listener::start(|before, io: TcpStream| async move {
        let mut peer = Peer::accept_with(io, 1).await?;
        if before == 0 {
            let stream = peer.call().await?;
            peer.goaway(stream, 0, "").await?;
            sleep(Duration::from_millis(500)).await;
            peer.answer(stream).await?;
        }
        peer.serve().await
    });
    let client = client(&listener, 1);
    let begin = Instant::now();
    let mut calls = calls(&client, 20);
    let mut times = Vec::new();
    while let Some(result) = calls.join_next().await {
        result.expect("no panic").expect("an answer");
        times.push(begin.elapsed());
    }
    let (last, others) = times.split_last().expect("20 calls");
    assert!(
        others.iter().all(|time| time.as_millis() < 400),
        "{others:?}"
    );
    assert!(
        last.as_millis() >= 500,
        "the first call was answered, too: {last:?}"
    );
    assert_eq!(listener.accepted(), 2);
}

//! How connections are opened: for whom, on which runtime, and what becomes of it when that fails.

mod support;

use std::{
    future::{Future as _, Ready, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use longrunning::{CallStatusExt as _, ClientBuilder, OperationsClient, Origin, RetryPolicy};
use tokio::{
    net::TcpStream,
    runtime,
    time::{Instant, sleep, timeout},
};
use tonic::Code;

use self::support::{
    until,
    wire::{Listener, Peer},
};

const NAME: &str = "operations/1";

fn builder(listener: &Listener) -> ClientBuilder {
    OperationsClient::builder(listener.url()).retry(RetryPolicy::none())
}

#[tokio::test]
async fn a_call_that_hears_late_of_its_failure_takes_nobody_elses_turn() {
    let listener = Listener::start(|before, io: TcpStream| async move {
        if before == 0 {
            return Ok(()); // this attempt fails
        }
        sleep(Duration::from_millis(300)).await;
        Peer::accept(io).await?.serve().await
    });
    let client = builder(&listener).connect_lazy().expect("a client");
    let mut slow = pin!(client.cancel_operation("operations/slow"));
    poll_fn(|cx| {
        assert!(slow.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    // Nobody polls it while its attempt fails, and others come.
    let other = loop {
        let client = client.clone();
        let mut other =
            tokio::spawn(async move { client.cancel_operation("operations/other").await });
        match timeout(Duration::from_millis(50), &mut other).await {
            Ok(failed) => drop(failed.expect("no panic").expect_err("the rest is not over")),
            Err(_) => break other,
        }
    };
    let status = slow.await.expect_err("it failed");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    other
        .await
        .expect("no panic")
        .expect("the second connection is good");
}

fn a_runtime() -> runtime::Runtime {
    let mut builder = runtime::Builder::new_multi_thread();
    let builder = builder.worker_threads(1).enable_all();
    builder.build().expect("a runtime")
}

#[test]
fn calls_do_not_wait_for_a_runtime_that_has_ended() {
    // One call a connection. The second connection takes its time to come.
    let second = Arc::<AtomicBool>::default();
    let may_come = second.clone();
    let listener = Listener::start(move |before, io: TcpStream| {
        let may_come = may_come.clone();
        async move {
            if before == 1 {
                until("it may", || may_come.load(Ordering::SeqCst)).await;
            }
            let mut peer = Peer::accept_with(io, 1).await?;
            loop {
                let stream = peer.call().await?;
                if before < 2 {
                    peer.ignore(Duration::from_secs(60)).await?; // it keeps its stream
                }
                peer.answer(stream).await?;
            }
        }
    });
    let living = a_runtime();
    let ending = a_runtime();
    let client = living.block_on(builder(&listener).connect());
    let client = client.expect("a server");
    let call = |runtime: &runtime::Runtime| {
        let client = client.clone();
        runtime.spawn(async move { client.cancel_operation(NAME).await })
    };
    let _holds_the_first = call(&living);
    let _holds_the_second = call(&living);
    living.block_on(until("it is asked for", || listener.accepted() == 2));
    // It waits for the third, as does one whose runtime comes to its end meanwhile.
    let waits = call(&living);
    let ended = call(&ending);
    living.block_on(async { sleep(Duration::from_millis(50)).await });
    ending.shutdown_background();
    second.store(true, Ordering::SeqCst);
    let answer = living.block_on(waits).expect("no panic");
    answer.expect("on the third");
    drop(ended);
}

/// A connector that panics at first.
#[derive(Clone)]
struct Panics(Arc<AtomicBool>, SocketAddr);

impl tower::Service<Uri> for Panics {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        assert!(self.0.swap(true, Ordering::SeqCst), "a bug");
        let io = std::net::TcpStream::connect(self.1).and_then(|io| {
            io.set_nonblocking(true)?;
            TcpStream::from_std(io)
        });
        std::future::ready(io.map(TokioIo::new))
    }
}

#[tokio::test]
async fn a_connector_that_panics_fails_the_call_and_is_asked_again() {
    let listener =
        Listener::start(|_, io: TcpStream| async move { Peer::accept(io).await?.serve().await });
    let client = builder(&listener)
        .connector(Panics(Arc::default(), listener.addr))
        .connect_lazy()
        .expect("a client");
    let status = client.cancel_operation(NAME).await.expect_err("it panics");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.origin(), Some(Origin::Transport));
    assert!(
        status.message().contains("the connector panicked"),
        "{status:?}"
    );
    let begin = Instant::now();
    while client.cancel_operation(NAME).await.is_err() {
        assert!(begin.elapsed() < Duration::from_secs(2));
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn failures_beside_a_good_connection_are_forgotten_with_it() {
    // The first connection carries one call at a time; there is no other until it has gone.
    let gone = Arc::<AtomicBool>::default();
    let is_gone = gone.clone();
    let listener = Listener::start(move |before, io: TcpStream| {
        let is_gone = is_gone.clone();
        async move {
            if before == 0 {
                let mut peer = Peer::accept_with(io, 1).await?;
                loop {
                    let stream = peer.call().await?;
                    peer.ignore(Duration::from_millis(20)).await?;
                    peer.answer(stream).await?;
                    if is_gone.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                }
            }
            if !is_gone.load(Ordering::SeqCst) {
                return Ok(());
            }
            Peer::accept(io).await?.serve().await
        }
    });
    let client = builder(&listener).max_connections(2);
    let client = client.connect().await.expect("a server");
    while listener.accepted() < 6 {
        let two = tokio::join!(client.cancel_operation(NAME), client.cancel_operation(NAME));
        two.0.expect("an answer");
        two.1.expect("an answer");
    }
    gone.store(true, Ordering::SeqCst);
    client
        .cancel_operation(NAME)
        .await
        .expect("the last answer");
    let begin = Instant::now();
    while client.cancel_operation(NAME).await.is_err() {
        sleep(Duration::from_millis(5)).await;
    }
    // After six failures the rest would be seconds.
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn a_runtime_that_stands_still_between_calls_does_not_keep_the_failure() {
    let listener = Listener::start(|before, io: TcpStream| async move {
        if before == 0 {
            return Ok(()); // this attempt fails
        }
        Peer::accept(io).await?.serve().await
    });
    let mut runtime = runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("a runtime");
    let client = builder(&listener).connect_lazy().expect("a client");
    runtime
        .block_on(client.cancel_operation(NAME))
        .expect_err("this attempt fails");
    let begin = Instant::now();
    while let Err(status) = runtime.block_on(client.cancel_operation(NAME)) {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{status:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(listener.accepted(), 2);
}

#[test]
fn a_runtime_may_end_while_thousands_of_calls_wait() {
    let listener = Listener::start(|_, io: TcpStream| async move {
        // It never says which streams it allows.
        Peer::silent(io)
            .await?
            .ignore(Duration::from_secs(60))
            .await
    });
    let mut ending = runtime::Builder::new_current_thread();
    let ending = ending.enable_all().build().expect("a runtime");
    let client = builder(&listener).connect_lazy().expect("a client");
    let begun = Arc::<AtomicUsize>::default();
    ending.block_on(async {
        let call = || {
            let (client, begun) = (client.clone(), begun.clone());
            tokio::spawn(async move {
                begun.fetch_add(1, Ordering::SeqCst);
                client.cancel_operation(NAME).await
            })
        };
        drop(call());
        until("it is asked for", || listener.accepted() == 1).await;
        // They come after the task that connects, which so goes first.
        (0..20_000).for_each(|_| drop(call()));
        until("all wait", || begun.load(Ordering::SeqCst) == 20_001).await;
    });
    drop(ending);
    let living = a_runtime();
    let hurried = client.timeout(Duration::from_millis(200));
    let status = living
        .block_on(hurried.cancel_operation(NAME))
        .expect_err("it never connects");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(listener.accepted(), 2, "on the runtime that lives");
}

#[tokio::test]
async fn who_waits_when_the_last_connection_goes_away_hears_of_no_older_failure() {
    // The first connection carries one call at a time; there is no other until it goes away.
    let away = Arc::<AtomicBool>::default();
    let is_away = away.clone();
    let listener = Listener::start(move |before, io: TcpStream| {
        let is_away = is_away.clone();
        async move {
            if before > 0 {
                return match is_away.load(Ordering::SeqCst) {
                    true => Peer::accept(io).await?.serve().await,
                    false => Ok(()),
                };
            }
            let mut peer = Peer::accept_with(io, 1).await?;
            let stream = peer.call().await?;
            peer.answer(stream).await?;
            let stream = peer.call().await?;
            tokio::select! {
                end = peer.ignore(Duration::from_secs(60)) => end?,
                () = until("it may", || is_away.load(Ordering::SeqCst)) => {}
            }
            peer.goaway(stream, 0, "").await?;
            peer.ignore(Duration::from_millis(300)).await?;
            peer.answer(stream).await?;
            peer.ignore(Duration::from_secs(60)).await
        }
    });
    let client = builder(&listener).connect().await.expect("a server");
    client.cancel_operation(NAME).await.expect("an answer");
    let call = || {
        let client = client.clone();
        tokio::spawn(async move { client.cancel_operation(NAME).await })
    };
    let held = call();
    let waits = call();
    until("connections have failed", || listener.accepted() > 4).await;
    away.store(true, Ordering::SeqCst);
    let begin = Instant::now();
    waits.await.expect("no panic").expect("on a new connection");
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
    held.await.expect("no panic").expect("the late answer");
}

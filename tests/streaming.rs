//! Another generated client over the transport: server streaming, deadlines, dead peers.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::uri::PathAndQuery;
use longrunning::{
    OperationsClient, Transport,
    proto::{
        CancelOperationRequest, GetOperationRequest, Operation,
        operations_client::OperationsClient as Stub,
    },
};
use prost::Message as _;
use tokio::{
    net::TcpStream,
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Request, Status, Streaming, client::Grpc};
use tonic_prost::ProstCodec;

use self::support::{
    server::{Habits, Server},
    until,
    wire::{self, Listener, Peer},
};

const NAME: &str = "operations/1";

async fn connect(listener: &Listener) -> OperationsClient {
    OperationsClient::builder(listener.url())
        .max_connections(1)
        .connect()
        .await
        .expect("a server")
}

/// Calls a method whose response is a stream of operations.
async fn watch(
    client: &OperationsClient,
    deadline: Option<Duration>,
) -> Result<Streaming<Operation>, Status> {
    let mut grpc: Grpc<Transport> = Grpc::new(client.stack().clone());
    grpc.ready().await?;
    let mut request = Request::new(GetOperationRequest {
        name: NAME.to_owned(),
    });
    if let Some(deadline) = deadline {
        request.set_timeout(deadline);
    }
    let path = PathAndQuery::from_static("/test.Operations/Watch");
    let codec = ProstCodec::<GetOperationRequest, Operation>::default();
    let response = grpc.server_streaming(request, path, codec).await?;
    Ok(response.into_inner())
}

/// A message in gRPC's framing.
fn message(name: String) -> Vec<u8> {
    let operation = Operation {
        name,
        ..Operation::default()
    };
    let operation = operation.encode_to_vec();
    let length = u32::try_from(operation.len()).expect("small");
    let mut bytes = vec![0];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&operation);
    bytes
}

/// Sends data in frames that every peer accepts.
async fn send(peer: &mut Peer, stream: u32, data: &[u8]) -> std::io::Result<()> {
    for chunk in data.chunks(16_384) {
        peer.frame(wire::DATA, 0, stream, chunk).await?;
    }
    Ok(())
}

#[tokio::test]
async fn messages_of_a_stream_come_as_they_are_sent() {
    let next = Arc::<Notify>::default();
    let sends = next.clone();
    let listener = Listener::start(move |_, io: TcpStream| {
        let sends = sends.clone();
        async move {
            let mut peer = Peer::accept(io).await?;
            let stream = peer.call().await?;
            peer.head(stream).await?;
            for n in 0..5 {
                sends.notified().await;
                send(&mut peer, stream, &message(n.to_string())).await?;
            }
            peer.status(stream, "0").await?;
            peer.ignore(Duration::from_secs(60)).await
        }
    });
    let client = connect(&listener).await;
    let mut stream = watch(&client, None).await.expect("a stream");
    for n in 0..5 {
        next.notify_one();
        let message = stream.message().await.expect("a message");
        assert_eq!(message.expect("not the end").name, n.to_string());
    }
    assert_eq!(stream.message().await.expect("OK"), None);
}

/// tonic drops the body of a response without messages, whose stream has ended.
#[tokio::test]
async fn errors_send_no_resets_and_do_not_count_as_such() {
    const SLOW: usize = 500;
    let resets = Arc::<AtomicUsize>::default();
    let calls = Arc::<AtomicUsize>::default();
    let (seen, waiting) = (resets.clone(), calls.clone());
    let listener = Listener::start(move |_, io: TcpStream| {
        let (seen, waiting) = (seen.clone(), waiting.clone());
        async move {
            let mut peer = Peer::accept_with(io, 1_000).await?;
            loop {
                let frame = peer.next().await?;
                if frame.kind == wire::RST_STREAM {
                    seen.fetch_add(1, Ordering::SeqCst);
                }
                if frame.kind != wire::DATA {
                    continue;
                }
                if frame.payload.ends_with(b"slow") {
                    waiting.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                let headers = [(":status", "200"), wire::CONTENT_TYPE, ("grpc-status", "5")];
                peer.headers(frame.stream, wire::END_STREAM, &headers)
                    .await?;
            }
        }
    });
    let client = connect(&listener).await;
    for _ in 0..2_000 {
        let status = watch(&client, None).await.expect_err("an error");
        assert_eq!(status.code(), Code::NotFound);
    }
    assert_eq!(resets.load(Ordering::SeqCst), 0);
    // The burst of resets is still there: at 30 a second these would take 16 s.
    let mut callers = JoinSet::new();
    for _ in 0..SLOW {
        let client = client.clone();
        callers.spawn(async move { client.cancel_operation("operations/slow").await });
    }
    until("they are sent", || calls.load(Ordering::SeqCst) == SLOW).await;
    let begin = Instant::now();
    callers.shutdown().await;
    until("they are reset", || resets.load(Ordering::SeqCst) == SLOW).await;
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
}

/// A server whose streams send 2 MiB and then nothing, and which cancels operations.
fn large_streams() -> Listener {
    Listener::start(|_, io: TcpStream| async move {
        let mut peer = Peer::accept(io).await?;
        loop {
            let frame = peer.next().await?;
            if frame.kind != wire::DATA || frame.flags & wire::END_STREAM == 0 {
                continue;
            }
            if frame.payload.ends_with(b"watch") {
                peer.head(frame.stream).await?;
                send(&mut peer, frame.stream, &message("x".repeat(2_000_000))).await?;
            } else {
                peer.answer(frame.stream).await?;
            }
        }
    })
}

#[tokio::test]
async fn streams_that_are_not_read_hold_up_no_other_call() {
    let listener = large_streams();
    let client = connect(&listener).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut grpc: Grpc<Transport> = Grpc::new(client.stack().clone());
        grpc.ready().await.expect("ready");
        let request = Request::new(GetOperationRequest {
            name: "watch".to_owned(),
        });
        let path = PathAndQuery::from_static("/test.Operations/Watch");
        let codec = ProstCodec::<GetOperationRequest, Operation>::default();
        let response = grpc.server_streaming(request, path, codec).await;
        streams.push(response.expect("a stream").into_inner());
    }
    for _ in 0..20 {
        let call = client.cancel_operation(NAME);
        let result = timeout(Duration::from_secs(2), call).await;
        result.expect("it is not held up").expect("an answer");
    }
    for stream in &mut streams {
        let message = stream.message().await.expect("a message");
        assert_eq!(message.expect("not the end").name.len(), 2_000_000);
    }
}

#[tokio::test]
async fn a_stream_that_is_dropped_is_reset_and_free_again() {
    let resets = Arc::<std::sync::atomic::AtomicUsize>::default();
    let counter = resets.clone();
    let listener = Listener::start(move |_, io: TcpStream| {
        let counter = counter.clone();
        async move {
            let mut peer = Peer::accept_with(io, 1).await?;
            loop {
                let frame = peer.next().await?;
                if frame.kind == wire::RST_STREAM {
                    counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
                if frame.kind == wire::DATA && frame.flags & wire::END_STREAM != 0 {
                    peer.head(frame.stream).await?;
                    send(&mut peer, frame.stream, &message("one".to_owned())).await?;
                }
            }
        }
    });
    let client = connect(&listener).await;
    for dropped in 1..=5 {
        let mut stream = watch(&client, None).await.expect("a stream");
        stream.message().await.expect("a message").expect("one");
        drop(stream);
        until("it is reset", || {
            resets.load(std::sync::atomic::Ordering::SeqCst) == dropped
        })
        .await;
    }
}

#[tokio::test]
async fn calls_that_wait_for_streams_which_are_dropped_together_are_answered() {
    let listener = Listener::start(|_, io: TcpStream| async move {
        let mut peer = Peer::accept_with(io, 2).await?;
        for n in 0.. {
            let stream = peer.call().await?;
            if n < 2 {
                peer.head(stream).await?;
                send(&mut peer, stream, &message("one".to_owned())).await?;
            } else {
                peer.answer(stream).await?;
            }
        }
        Ok(())
    });
    let client = connect(&listener).await;
    let mut one = watch(&client, None).await.expect("a stream");
    let mut two = watch(&client, None).await.expect("a stream");
    one.message().await.expect("a message");
    two.message().await.expect("a message");
    let calls: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.cancel_operation(NAME).await })
        })
        .collect();
    sleep(Duration::from_millis(50)).await;
    drop((one, two));
    for call in calls {
        call.await.expect("no panic").expect("an answer");
    }
}

#[tokio::test]
async fn a_stream_ends_at_its_deadline() {
    let listener = Listener::start(|_, io: TcpStream| async move {
        let mut peer = Peer::accept(io).await?;
        let stream = peer.call().await?;
        peer.head(stream).await?;
        send(&mut peer, stream, &message("one".to_owned())).await?;
        peer.ignore(Duration::from_secs(60)).await
    });
    let client = connect(&listener).await;
    let begin = Instant::now();
    let mut stream = watch(&client, Some(Duration::from_millis(300)))
        .await
        .expect("a stream");
    stream.message().await.expect("a message").expect("one");
    let status = stream.message().await.expect_err("no more comes");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test]
async fn the_timeout_of_another_stub_is_a_deadline_and_finds_a_dead_peer() {
    let listener = Listener::start(|before, io: TcpStream| async move {
        let mut peer = Peer::accept(io).await?;
        if before > 0 {
            return peer.serve().await;
        }
        peer.pongs = false;
        peer.ignore(Duration::from_secs(60)).await
    });
    let client = connect(&listener).await;
    let mut stub = Stub::new(client.stack().clone());
    let mut request = Request::new(CancelOperationRequest {
        name: NAME.to_owned(),
    });
    request.set_timeout(Duration::from_millis(200));
    let begin = Instant::now();
    let status = stub.cancel_operation(request).await.expect_err("silence");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
    // It was asked for a sign of life, and gave none.
    let request = CancelOperationRequest {
        name: NAME.to_owned(),
    };
    let status = stub.cancel_operation(request.clone()).await;
    let status = status.expect_err("the connection is dead");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(
        begin.elapsed() < Duration::from_secs(7),
        "{:?}",
        begin.elapsed()
    );
    stub.cancel_operation(request).await.expect("another one");
    assert_eq!(listener.accepted(), 2);
}

#[tokio::test]
async fn the_server_is_sent_the_time_that_is_left_after_the_queue() {
    let server = Server::start(Habits {
        streams: Some(1),
        latency: Duration::from_secs(1),
        ..Habits::default()
    });
    let client = OperationsClient::builder(server.url()).max_connections(1);
    let client = client.connect().await.expect("it listens");
    let call = || {
        let mut stub = Stub::new(client.stack().clone());
        let mut request = Request::new(CancelOperationRequest {
            name: NAME.to_owned(),
        });
        request.set_timeout(Duration::from_secs(10));
        async move { stub.cancel_operation(request).await }
    };
    let (first, second) = tokio::join!(call(), call());
    first.and(second).expect("an answer");
    let seconds = server.seen.header("grpc-timeout").into_iter().map(|value| {
        let value = value.expect("a deadline");
        let micros = value.strip_suffix('u').expect("microseconds");
        micros.parse::<f64>().expect("a number") / 1e6
    });
    let seconds: Vec<_> = seconds.collect();
    assert!(seconds[0] > 9.0, "{seconds:?}");
    assert!(seconds[1] <= 9.0, "{seconds:?}");
}

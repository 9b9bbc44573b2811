//! Delivery of failed calls, and what late calls waited for.

mod support;

use std::time::Duration;

use longrunning::{
    CallCredentials, CallStatusExt as _, ClientBuilder, Credentials, Delivery, OperationsClient,
    RetryPolicy, Token,
};
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::sleep};
use tonic::{Code, Status};

use self::support::{
    proxy::{Mood, Proxy},
    server::{Habits, Server},
    wire::{CONTENT_TYPE, END_STREAM, Listener, Peer},
};

const NAME: &str = "operations/1";

/// A client whose calls have one attempt, and this timeout in milliseconds.
fn builder(url: String, timeout: u64) -> ClientBuilder {
    OperationsClient::builder(url)
        .retry(RetryPolicy::none())
        .timeout(Duration::from_millis(timeout))
}

async fn failure(builder: ClientBuilder) -> Status {
    let client = builder.connect_lazy().expect("a client");
    client.cancel_operation(NAME).await.expect_err("it fails")
}

/// A server that never answers a call.
fn silent() -> Server {
    Server::start(Habits {
        latency: Duration::from_secs(3600),
        streams: Some(1),
        ..Habits::default()
    })
}

fn check(status: &Status, code: Code, delivery: Delivery) {
    let found = (status.code(), status.delivery());
    assert_eq!(found, (code, Some(delivery)), "{status:?}");
}

#[tokio::test]
async fn a_call_that_the_client_rejects_or_that_finds_no_server_was_not_sent() {
    let client = builder("http://127.0.0.1:1".to_owned(), 1_000).connect_lazy();
    let client = client.expect("a client");
    let status = client.cancel_operation("").await.expect_err("no name");
    check(&status, Code::InvalidArgument, Delivery::NotSent);
    let status = client.cancel_operation(NAME).await.expect_err("no server");
    check(&status, Code::Unavailable, Delivery::NotSent);
    // The next attempt to connect is not due yet.
    let status = client.cancel_operation(NAME).await.expect_err("no server");
    check(&status, Code::Unavailable, Delivery::NotSent);
}

#[tokio::test]
async fn a_call_with_a_response_is_answered() {
    type Answer = &'static [(&'static str, &'static str)];
    let answers: [(Answer, Code); 3] = [
        (
            &[(":status", "200"), CONTENT_TYPE, ("grpc-status", "7")],
            Code::PermissionDenied,
        ),
        (
            &[(":status", "503"), ("content-type", "text/html")],
            Code::Unavailable,
        ),
        (&[(":status", "200"), CONTENT_TYPE], Code::Unknown),
    ];
    for (answer, code) in answers {
        let listener = Listener::start(move |_, io: TcpStream| async move {
            let mut peer = Peer::accept(io).await?;
            let stream = peer.call().await?;
            peer.headers(stream, END_STREAM, answer).await?;
            peer.serve().await
        });
        let status = failure(builder(listener.url(), 5_000)).await;
        check(&status, code, Delivery::Answered);
    }
}

#[tokio::test]
async fn a_call_whose_connection_breaks_after_the_request_may_have_been_sent() {
    let listener = Listener::start(|_, io: TcpStream| async move {
        Peer::accept(io).await?.call().await.map(drop)
    });
    let status = failure(builder(listener.url(), 5_000)).await;
    check(&status, Code::Unavailable, Delivery::MaybeSent);
}

#[tokio::test]
async fn a_call_that_a_layer_fails_may_have_been_sent() {
    let stack = tower::service_fn(|_: http::Request<tonic::body::Body>| {
        let denied = tower::BoxError::from(Status::permission_denied("not on Sundays"));
        std::future::ready(Err::<http::Response<tonic::body::Body>, _>(denied))
    });
    let client = OperationsClient::new(stack);
    let status = client.cancel_operation(NAME).await.expect_err("denied");
    check(&status, Code::PermissionDenied, Delivery::MaybeSent);
}

#[tokio::test]
async fn a_status_of_another_crate_has_no_delivery() {
    assert_eq!(Status::unavailable("down").delivery(), None);
}

#[tokio::test]
async fn delivery_covers_earlier_attempts() {
    // The first attempt is cut off, and then no connection can be opened.
    let server = silent();
    let proxy = Proxy::start(server.addr);
    let policy = RetryPolicy::default().initial_backoff(Duration::from_millis(10));
    let client = OperationsClient::builder(proxy.url()).retry(policy);
    let client = client.connect().await.expect("a server");
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.cancel_operation(NAME).await }
    });
    support::until("the call is there", || server.seen.in_flight() == 1).await;
    proxy.mood(Mood::Refuse);
    proxy.cut();
    let status = call.await.expect("no panic").expect_err("cut off");
    check(&status, Code::Unavailable, Delivery::MaybeSent);
    assert!(status.message().contains("cannot connect"), "{status:?}");
}

#[tokio::test]
async fn a_call_that_is_never_answered_reports_how_long_it_waited() {
    let server = silent();
    let status = failure(builder(server.url(), 300)).await;
    check(&status, Code::DeadlineExceeded, Delivery::MaybeSent);
    let text = status.message();
    assert!(
        text.starts_with("no answer to CancelOperation within 300ms: waited 2")
            || text.starts_with("no answer to CancelOperation within 300ms: waited 3"),
        "{text}"
    );
    assert!(text.ends_with("ms for the answer"), "{text}");
}

#[tokio::test]
async fn a_late_call_reports_that_it_waited_for_a_stream() {
    let server = silent();
    let builder = builder(server.url(), 5_000).max_connections(1);
    let client = builder.connect().await.expect("a server");
    let first = client.clone();
    let _first = tokio::spawn(async move { first.cancel_operation(NAME).await });
    support::until("the first is there", || server.seen.in_flight() == 1).await;
    let client = client.timeout(Duration::from_millis(300));
    let status = client.cancel_operation(NAME).await.expect_err("no stream");
    check(&status, Code::DeadlineExceeded, Delivery::NotSent);
    assert!(
        status.message().ends_with("ms for a stream; not sent"),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_late_call_reports_its_waits_for_a_stream_and_for_the_answer() {
    let server = silent();
    let builder = builder(server.url(), 1_500).max_connections(1);
    let client = builder.connect().await.expect("a server");
    let first = client.clone().timeout(Duration::from_millis(700));
    let first = tokio::spawn(async move { first.cancel_operation(NAME).await });
    support::until("the first is there", || server.seen.in_flight() == 1).await;
    let status = client.cancel_operation(NAME).await.expect_err("no answer");
    first.await.expect("no panic").expect_err("no answer");
    check(&status, Code::DeadlineExceeded, Delivery::MaybeSent);
    let text = status.message();
    assert!(
        text.contains("ms for a stream, ") && text.ends_with("ms for the answer"),
        "{text}"
    );
}

#[tokio::test]
async fn a_late_call_reports_that_it_waited_for_a_connection() {
    // It accepts TCP, and then sends nothing.
    let listener = Listener::start(|_, mut io: TcpStream| async move {
        let mut bytes = Vec::new();
        io.read_to_end(&mut bytes).await.map(drop)
    });
    let status = failure(builder(listener.url(), 300)).await;
    check(&status, Code::DeadlineExceeded, Delivery::NotSent);
    assert!(
        status.message().ends_with("ms for a connection; not sent"),
        "{status:?}"
    );
}

/// Credentials whose first token takes this long.
struct Slow(Duration);

#[tonic::async_trait]
impl CallCredentials for Slow {
    async fn token(&self) -> Result<Token, Status> {
        sleep(self.0).await;
        Token::bearer("token")
    }
}

#[tokio::test]
async fn a_late_call_reports_that_it_waited_for_a_token() {
    let server = silent();
    let slow = Credentials::custom(Slow(Duration::from_secs(3600)));
    let status = failure(builder(server.url(), 150).credentials(slow)).await;
    check(&status, Code::DeadlineExceeded, Delivery::NotSent);
    assert!(
        status.message().ends_with("ms for a token; not sent"),
        "{status:?}"
    );

    let slow = Credentials::custom(Slow(Duration::from_millis(150)));
    let status = failure(builder(server.url(), 400).credentials(slow)).await;
    check(&status, Code::DeadlineExceeded, Delivery::MaybeSent);
    let text = status.message();
    assert!(text.contains("waited 1"), "{text}");
    assert!(
        text.contains("ms for a token, ") && text.ends_with("ms for the answer"),
        "{text}"
    );
}

#[tokio::test]
async fn a_late_call_reports_that_it_waited_for_room_in_the_queue() {
    let server = silent();
    let builder = builder(server.url(), 5_000)
        .max_connections(1)
        .max_queued_calls(1);
    let client = builder.connect().await.expect("a server");
    let call = || {
        let client = client.clone();
        tokio::spawn(async move { client.cancel_operation(NAME).await })
    };
    let _first = call();
    support::until("the first is there", || server.seen.in_flight() == 1).await;
    let _second = call();
    support::until("the queue is full", || {
        format!("{:?}", client.stack()).contains("queued: 1")
    })
    .await;
    let client = client.clone().timeout(Duration::from_millis(300));
    let status = client.cancel_operation(NAME).await.expect_err("no room");
    check(&status, Code::DeadlineExceeded, Delivery::NotSent);
    assert!(
        status
            .message()
            .ends_with("ms for the stack to be ready; not sent"),
        "{status:?}"
    );
}

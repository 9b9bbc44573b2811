//! What a status reports about its call: attempts, time, retry delay, and one line for logs.

mod support;

use std::{
    error::Error as _,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request as HttpRequest, Response as HttpResponse};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use longrunning::{
    CallStatusExt, Delivery, OperationsClient, Origin, PollPolicy, RetryPolicy,
    emulator::{Emulator, Method},
    proto::{
        GetOperationRequest, Operation,
        operations_server::{Operations, OperationsServer},
        rpc,
    },
};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Code, Request, Response, Status};
use tower::{ServiceExt as _, service_fn};

const NAME: &str = "operations/1";

fn brisk() -> RetryPolicy {
    RetryPolicy::default().initial_backoff(Duration::from_millis(20))
}

async fn start(policy: RetryPolicy) -> (Emulator, OperationsClient) {
    let emulator = Emulator::start().await.expect("a port");
    let client = OperationsClient::builder(emulator.endpoint()).retry(policy);
    let client = client.connect().await.expect("a client");
    (emulator, client)
}

fn with_retry_info(code: rpc::Code, delay: Duration) -> Status {
    let info = rpc::RetryInfo {
        retry_delay: Some(delay.try_into().expect("short")),
    };
    let cause = rpc::ErrorInfo::default();
    let details = [
        prost_types::Any::from_msg(&info),
        prost_types::Any::from_msg(&cause),
    ];
    rpc::Status {
        code: code.into(),
        message: "two\nlines".to_owned(),
        details: details.map(|detail| detail.expect("it encodes")).to_vec(),
    }
    .into()
}

#[tokio::test]
async fn a_status_reports_the_number_of_attempts_and_the_elapsed_time() {
    let (emulator, client) = start(brisk().max_attempts(3)).await;
    emulator.fail_next(None, 3, Status::unavailable("down"));
    let status = client.get_operation(NAME).await.expect_err("three times");
    assert_eq!(status.attempts(), Some(3));
    // Two delays of 20 and 40 ms, less 20 % of jitter.
    let elapsed = status.elapsed().expect("it was a call");
    assert!(elapsed >= Duration::from_millis(48), "{elapsed:?}");

    let status = client.get_operation(NAME).await.expect_err("not found");
    assert_eq!(
        (status.code(), status.attempts()),
        (Code::NotFound, Some(1))
    );

    let status = client.get_operation("").await.expect_err("no name");
    assert_eq!((status.attempts(), status.elapsed()), (None, None));
    assert_eq!(Status::internal("").attempts(), None);
}

#[tokio::test]
async fn a_call_whose_deadline_passes_reports_all_its_attempts() {
    let (emulator, client) = start(brisk()).await;
    emulator.fail_next(None, 1, Status::unavailable("down"));
    let calls = AtomicUsize::new(0);
    emulator.delay_with(move |_| match calls.fetch_add(1, Ordering::Relaxed) {
        0 => Duration::from_millis(400),
        _ => Duration::MAX,
    });
    let client = client.timeout(Duration::from_secs(1));
    let status = client.get_operation(NAME).await.expect_err("late");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.attempts(), Some(2));
    let left = emulator.calls()[1].timeout().expect("it is sent");
    assert!(left <= Duration::from_millis(600), "{left:?}");
    let elapsed = status.elapsed().expect("it was a call");
    assert!(elapsed >= Duration::from_secs(1), "{elapsed:?}");
    assert!(!status.message().contains("attempt"), "{status}");
}

#[tokio::test]
async fn the_retry_delay_of_a_server_can_be_read() {
    let (emulator, client) = start(RetryPolicy::none()).await;
    let delay = Duration::from_millis(2_500);
    emulator.fail_next(
        None,
        1,
        with_retry_info(rpc::Code::ResourceExhausted, delay),
    );
    let mut pushback = Status::unavailable("later");
    pushback
        .metadata_mut()
        .insert("grpc-retry-pushback-ms", 700.into());
    let mut never = Status::unavailable("never");
    never
        .metadata_mut()
        .insert("grpc-retry-pushback-ms", "-1".parse().expect("ASCII"));
    emulator.fail_next(None, 1, pushback);
    emulator.fail_next(None, 1, never);
    let expected = [Some(delay), Some(Duration::from_millis(700)), None, None];
    for expected in expected {
        let status = client.get_operation(NAME).await.expect_err("it fails");
        assert_eq!(status.retry_delay(), expected, "{status:?}");
    }
}

#[tokio::test]
async fn a_report_is_one_line() {
    let (emulator, client) = start(RetryPolicy::none()).await;
    let failure = with_retry_info(rpc::Code::PermissionDenied, Duration::ZERO);
    emulator.fail_next(None, 1, failure);
    let status = client.get_operation(NAME).await.expect_err("denied");
    let report = status.report().to_string();
    let (start, rest) = report.split_once(" in ").expect("a time");
    assert_eq!(start, "PERMISSION_DENIED (server, answered, 1 attempt");
    let (time, rest) = rest.split_once("): ").expect("a message");
    assert!(
        time.ends_with("ms") || time.ends_with("µs") || time.ends_with('s'),
        "{time}"
    );
    assert_eq!(
        rest,
        "two\\nlines [google.rpc.RetryInfo, google.rpc.ErrorInfo]"
    );
    assert_eq!(format!("{:?}", status.report()), report);

    let status = client.get_operation("").await.expect_err("no name");
    let report = status.report().to_string();
    assert!(
        report.starts_with("INVALID_ARGUMENT (client, not sent): the operation's name"),
        "{report}"
    );

    assert_eq!(Status::internal("x").report().to_string(), "INTERNAL: x");
    let forged = Status::internal("ok\u{2028}x\u{202e}y\\n\u{1b}[31m é \"z\"");
    assert_eq!(
        forged.report().to_string(),
        r#"INTERNAL: ok\u{2028}x\u{202e}y\\n\u{1b}[31m é "z""#
    );
    assert_eq!(Status::aborted("").report().to_string(), "ABORTED");
    let unknown = Status::with_details(Code::Aborted, "x", Bytes::from_static(b"\xff\xff"));
    assert_eq!(
        unknown.report().to_string(),
        "ABORTED: x [2 bytes of unknown details]"
    );
}

/// Returns how often a text occurs in the printed error chain of a status, and that chain.
fn occurrences(status: &Status, text: &str) -> (usize, String) {
    let mut chain = status.to_string();
    let mut source = status.source();
    while let Some(error) = source {
        chain += &format!(": {error}");
        source = error.source();
    }
    (chain.matches(text).count(), chain)
}

#[tokio::test]
async fn the_error_chain_of_a_status_does_not_repeat_its_message() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let client = OperationsClient::builder(format!("http://{address}")).retry(RetryPolicy::none());
    let client = client.connect_lazy().expect("a client");
    let mut statuses = Vec::new();
    statuses.push(
        client
            .get_operation(NAME)
            .await
            .expect_err("nobody listens"),
    );
    statuses.push(client.get_operation(NAME).await.expect_err("backoff"));
    for status in &statuses {
        let (count, chain) = occurrences(status, "Connection refused");
        // Once in the message, which has to be complete by itself, and once in the error that caused it.
        assert_eq!(count, 2, "{chain}");
        let (count, chain) = occurrences(status, &format!("cannot connect to {address}"));
        assert_eq!(count, 1, "{chain}");
        let mut source = status.source();
        let mut refused = None;
        while let Some(error) = source {
            refused = refused.or(error.downcast_ref::<io::Error>());
            source = error.source();
        }
        let kind = refused.map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::ConnectionRefused), "{status:?}");
    }
}

/// A server that makes a call and returns the status of that call.
struct Gateway(OperationsClient);

#[tonic::async_trait]
impl Operations for Gateway {
    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let status = self.0.get_operation(request).await.expect_err("it fails");
        assert_eq!(status.attempts(), Some(2));
        Err(status)
    }
}

/// Sends one call to a server on a socket, and returns the headers of its Trailers-Only response.
async fn headers_of(server: OperationsServer<Gateway>) -> http::HeaderMap {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn(async move {
        let (io, _) = listener.accept().await.expect("a connection");
        let service =
            hyper::service::service_fn(move |request: HttpRequest<hyper::body::Incoming>| {
                server.clone().oneshot(request)
            });
        let builder = http2::Builder::new(TokioExecutor::new());
        builder.serve_connection(TokioIo::new(io), service).await
    });
    let io = TcpStream::connect(address).await.expect("a connection");
    let (sender, connection) = h2::client::handshake(io).await.expect("HTTP/2");
    tokio::spawn(connection);
    let mut sender = sender.ready().await.expect("ready");
    let request = HttpRequest::post(format!(
        "http://{address}/google.longrunning.Operations/GetOperation"
    ));
    let request = request.header("content-type", "application/grpc").body(());
    let (response, mut body) = sender
        .send_request(request.expect("a request"), false)
        .expect("sent");
    // GetOperationRequest { name: "a" }
    body.send_data(Bytes::from_static(b"\0\0\0\0\x03\x0a\x01a"), true)
        .expect("sent");
    let response: HttpResponse<_> = response.await.expect("a response");
    let headers = response.headers().clone();
    serving.abort();
    headers
}

#[tokio::test]
async fn a_server_that_returns_the_status_does_not_send_its_source() {
    let (emulator, client) = start(brisk().max_attempts(2)).await;
    emulator.fail_next(None, 2, Status::unavailable("down"));
    let headers = headers_of(OperationsServer::new(Gateway(client))).await;
    let mut names: Vec<&str> = headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["content-type", "date", "grpc-message", "grpc-status"],
        "{headers:?}"
    );
    assert_eq!(headers["grpc-status"], "14");
    assert_eq!(headers["grpc-message"], "down");
    assert_eq!(emulator.calls_of(Method::Get).len(), 2);
}

#[test]
fn a_status_of_a_layer_keeps_its_source() {
    let mut status = Status::unavailable("closed");
    status.set_source(Arc::new(io::Error::other("the gate")));
    let status = status.into_retryable();
    assert_eq!(status.origin(), Some(Origin::Client));
    assert_eq!(status.delivery(), Some(Delivery::MaybeSent));
    let cause = status.source().and_then(std::error::Error::source);
    assert!(
        cause.is_some_and(|cause| cause.is::<io::Error>()),
        "{status:?}"
    );
    assert_eq!(occurrences(&status, "closed").0, 1);
}

/// The runtime is blocked before the next attempt can start, until the deadline has passed.
#[tokio::test]
async fn a_deadline_that_passes_before_a_retry_ends_the_call_with_the_last_status() {
    let emulator = Emulator::in_process().expect("a runtime");
    let client = OperationsClient::new(emulator.service())
        .timeout(Duration::from_millis(400))
        .retry(brisk().initial_backoff(Duration::from_millis(100)));
    emulator.fail_next(None, 1, Status::unavailable("down"));
    let block = async {
        emulator
            .wait_until(|emulator| emulator.calls().len() == 1 && emulator.in_flight() == 0)
            .await;
        std::thread::sleep(Duration::from_millis(600));
    };
    let (result, ()) = tokio::join!(client.get_operation(NAME), block);
    let status = result.expect_err("it has no time left");
    let report = status.report().to_string();
    assert!(
        report.starts_with("UNAVAILABLE (server, answered, 1 attempt in "),
        "{report}"
    );
    assert_eq!(status.message(), "down");
}

/// The details of the last failure can be read from the chain of sources.
#[tokio::test]
async fn a_poll_that_times_out_keeps_the_status_of_the_last_failure() {
    let (emulator, client) = start(RetryPolicy::none()).await;
    let failure = with_retry_info(rpc::Code::Unavailable, Duration::ZERO);
    emulator.fail_next(None, 100, failure);
    let policy = PollPolicy::default()
        // So that no call is in flight when the time has passed.
        .initial_delay(Duration::from_secs(60))
        .total_timeout(Duration::from_secs(1));
    let mut poller = client.poller(NAME).policy(policy);
    let status = poller.until_done().await.expect_err("it is not done");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let mut source = status.source();
    let mut info = None;
    while let Some(error) = source {
        let failure = error.downcast_ref::<Status>();
        info = info.or_else(|| failure.and_then(CallStatusExt::detail::<rpc::ErrorInfo>));
        source = error.source();
    }
    assert!(info.is_some(), "{status:?}");
}

/// The message can be understood without the sources of the status.
#[tokio::test]
async fn the_status_of_a_passed_deadline_has_the_message_of_the_layer_that_ended_the_call() {
    let layer = service_fn(|_: HttpRequest<tonic::body::Body>| async {
        // Blocks, so that the deadline has passed when this ends.
        std::thread::sleep(Duration::from_millis(100));
        let given_up = Status::cancelled("the layer gave up");
        Err::<HttpResponse<tonic::body::Body>, _>(given_up)
    });
    let client = OperationsClient::new(layer).timeout(Duration::from_millis(50));
    let status = client.get_operation(NAME).await.expect_err("cancelled");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(
        status.message().ends_with("; CANCELLED: the layer gave up"),
        "{status}"
    );
}

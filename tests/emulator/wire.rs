//! What the emulator answers to requests that no gRPC client library sends.

mod head;
mod message;

use std::time::Duration;

use bytes::Bytes;
use h2::{
    Reason, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request, StatusCode, request};
use longrunning::{
    emulator::{CallOutcome, Emulator},
    proto::GetOperationRequest,
};
use prost::Message as _;
use tokio::{net::TcpStream, runtime::Handle, time::timeout};
use tonic::{Code, Status};

use crate::NAME;

const GET: &str = "/google.longrunning.Operations/GetOperation";
const LIMIT: usize = 4 * 1024 * 1024;

#[tokio::test]
async fn only_requests_that_pass_the_checks_are_on_record() {
    let (emulator, mut connection) = connected().await;
    let refused = [
        (post(&emulator, GET).method("PUT"), message()),
        (request(&emulator, GET), message()),
        (
            post(&emulator, GET).header("grpc-timeout", "soon"),
            message(),
        ),
        (post(&emulator, "/a.b/C"), message()),
        (post(&emulator, GET), Vec::new()),
        (post(&emulator, GET), [message(), message()].concat()),
        (post(&emulator, GET), prefix(0, LIMIT + 1).to_vec()),
        (post(&emulator, GET), framed(1, b"")),
    ];
    for (request, body) in refused {
        connection.answer(request, &body).await;
    }
    assert!(emulator.calls().is_empty(), "{:?}", emulator.calls());
    connection
        .answer(post(&emulator, GET), &message())
        .await
        .assert_ok();
    let calls = emulator.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].outcome(), CallOutcome::Answered(Code::Ok));
}

#[tokio::test]
async fn a_client_that_resets_an_unfinished_request_ends_its_task() {
    let (emulator, mut connection) = connected().await;
    let before = tasks();
    let mut bodies = Vec::new();
    for _ in 0..3 {
        let (_, body) = connection.open(post(&emulator, GET), &message()[..7]).await;
        bodies.push(body);
    }
    tasks_are(before + 3).await;
    for mut body in bodies {
        body.send_reset(Reason::CANCEL);
    }
    tasks_are(before).await;
    assert!(emulator.calls().is_empty(), "{:?}", emulator.calls());
    let answer = connection.answer(post(&emulator, GET), &message()).await;
    answer.assert_ok();
}

#[tokio::test]
async fn a_client_that_disconnects_within_a_request_ends_its_tasks() {
    let (emulator, mut connection) = connected().await;
    let before = tasks();
    let (_answer, _body) = connection.open(post(&emulator, GET), &message()[..7]).await;
    tasks_are(before + 1).await;
    connection.driver.abort();
    // The emulator still listens.
    tasks_are(1).await;
    assert_eq!(emulator.open_connections(), 0);
}

#[tokio::test]
async fn a_request_that_never_ends_does_not_outlive_shutdown() {
    let (emulator, mut connection) = connected().await;
    let before = tasks();
    let (_answer, _body) = connection.open(post(&emulator, GET), &message()[..7]).await;
    tasks_are(before + 1).await;
    let shutdown = timeout(Duration::from_secs(10), emulator.shutdown());
    shutdown.await.expect("it ends");
    tasks_are(0).await;
}

/// A client's connection, on which requests are sent as they are given.
struct Connection {
    send: SendRequest<Bytes>,
    driver: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// Starts an emulator that runs one operation, and a connection to it.
async fn connected() -> (Emulator, Connection) {
    let emulator = Emulator::start().await.expect("a free port");
    emulator.start_operation(NAME).expect("it is the first");
    let socket = TcpStream::connect(("127.0.0.1", emulator.port())).await;
    let handshake = h2::client::handshake(socket.expect("it listens")).await;
    let (send, connection) = handshake.expect("it speaks HTTP/2");
    let driver = tokio::spawn(connection);
    let send = send.ready().await.expect("it takes calls");
    emulator
        .wait_until(|emulator| emulator.open_connections() == 1)
        .await;
    (emulator, Connection { send, driver })
}

impl Connection {
    /// Sends a request without ending it.
    async fn open(
        &mut self,
        request: request::Builder,
        bytes: &[u8],
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let request = request.body(()).expect("it is a request");
        let mut send = self.send.clone().ready().await.expect("it takes calls");
        let (answer, mut body) = send.send_request(request, false).expect("it can be sent");
        let bytes = Bytes::copy_from_slice(bytes);
        body.send_data(bytes, false).expect("it can be sent");
        (answer, body)
    }

    /// Sends a whole request, and returns its answer.
    async fn answer(&mut self, request: request::Builder, bytes: &[u8]) -> Answer {
        let (answer, mut body) = self.open(request, bytes).await;
        // It may have been answered and reset already.
        let _ = body.send_data(Bytes::new(), true);
        Answer::read(answer).await
    }
}

struct Answer {
    http: StatusCode,
    headers: HeaderMap,
    trailers: Option<HeaderMap>,
    text: String,
}

impl Answer {
    async fn read(answer: ResponseFuture) -> Self {
        let answer = timeout(Duration::from_secs(10), answer).await;
        let answer = answer.expect("it is answered in time");
        let (head, mut body) = answer.expect("it is answered").into_parts();
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await {
            bytes.extend_from_slice(&data.expect("it is whole"));
        }
        Self {
            http: head.status,
            headers: head.headers,
            trailers: body.trailers().await.expect("it is whole"),
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    #[track_caller]
    fn assert_ok(&self) {
        assert_eq!(self.http, StatusCode::OK);
        let trailers = self.trailers.as_ref().unwrap_or(&self.headers);
        assert_eq!(trailers["grpc-status"], "0", "{trailers:?}");
    }

    /// Asserts that it is an answer of HTTP, which no client takes for one of gRPC.
    #[track_caller]
    fn assert_http(&self, status: StatusCode, text: &str) {
        assert_eq!(self.http, status, "{text}");
        assert_eq!(self.headers.get("grpc-status"), None);
        assert_eq!(self.headers["content-type"], "text/plain; charset=utf-8");
        assert_eq!(self.text, text);
    }

    /// Asserts that it is a status in the form Trailers-Only.
    #[track_caller]
    fn assert_status(&self, code: Code, message: &str) {
        assert_eq!(self.http, StatusCode::OK);
        assert_eq!(self.headers["content-type"], "application/grpc");
        let status = Status::from_header_map(&self.headers).expect("it has a grpc-status");
        assert_eq!(status.code(), code, "{status:?}");
        assert_eq!(status.message(), message);
        assert_eq!(self.trailers, None);
        assert_eq!(self.text, "");
    }
}

/// A request of gRPC.
fn post(emulator: &Emulator, path: &str) -> request::Builder {
    request(emulator, path).header("content-type", "application/grpc")
}

/// A request that has no content-type.
fn request(emulator: &Emulator, path: &str) -> request::Builder {
    Request::post(format!("{}{path}", emulator.endpoint())).header("te", "trailers")
}

/// A request message that names the operation, with its prefix.
fn message() -> Vec<u8> {
    let name = NAME.to_owned();
    framed(0, &GetOperationRequest { name }.encode_to_vec())
}

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    [&prefix(flag, message.len()), message].concat()
}

fn prefix(flag: u8, length: usize) -> [u8; 5] {
    let length = u32::try_from(length).expect("gRPC can frame it");
    let [a, b, c, d] = length.to_be_bytes();
    [flag, a, b, c, d]
}

/// Returns the number of tasks of this test's runtime.
fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Waits until there are so many tasks.
async fn tasks_are(number: usize) {
    let wait = async {
        while tasks() != number {
            tokio::task::yield_now().await;
        }
    };
    let reached = timeout(Duration::from_secs(10), wait).await;
    assert!(reached.is_ok(), "{} tasks, expected {number}", tasks());
}

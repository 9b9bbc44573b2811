//! Which calls are retried, as the server sees it.

mod support;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use longrunning::{
    CallCredentials, CallStatusExt as _, Credentials, Delivery, OperationsClient, PollPolicy,
    RetryPolicy, Token,
    proto::{CancelOperationRequest, WaitOperationRequest, rpc},
};
use prost::Message as _;
use prost_types::Any;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{Code, IntoRequest as _, Status, service::interceptor::InterceptedService};

use self::support::{
    proxy::Proxy,
    server::{Habits, Server},
    wire::{CONTENT_TYPE, DATA, END_STREAM, Listener, Peer},
};

const NAME: &str = "operations/1";

/// A server that answers with these codes first, then with success.
struct Failing {
    listener: Listener,
    calls: Arc<AtomicUsize>,
}

impl Failing {
    /// Sends these metadata with each failure.
    fn start(
        codes: impl IntoIterator<Item = u8>,
        metadata: &[(&'static str, &'static str)],
    ) -> Self {
        let codes = Arc::new(Mutex::new(VecDeque::from_iter(codes)));
        let metadata = metadata.to_vec();
        let calls = Arc::<AtomicUsize>::default();
        let counter = calls.clone();
        let listener = Listener::start(move |_, io: TcpStream| {
            let (codes, counter, metadata) = (codes.clone(), counter.clone(), metadata.clone());
            async move {
                let mut peer = Peer::accept(io).await?;
                loop {
                    let stream = peer.call().await?;
                    counter.fetch_add(1, Ordering::SeqCst);
                    let code = codes.lock().expect("no panic").pop_front();
                    let Some(code) = code.map(|code| code.to_string()) else {
                        peer.answer(stream).await?;
                        continue;
                    };
                    let status = [
                        (":status", "200"),
                        CONTENT_TYPE,
                        ("grpc-status", code.as_str()),
                    ];
                    let trailers = [&status, &metadata[..]].concat();
                    peer.headers(stream, END_STREAM, &trailers).await?;
                }
            }
        });
        Self { listener, calls }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

fn client(server: &Failing, policy: RetryPolicy) -> OperationsClient {
    let builder = OperationsClient::builder(server.listener.url());
    builder.retry(policy).connect_lazy().expect("a client")
}

/// The default policy, with waits that a test can afford.
fn brisk() -> RetryPolicy {
    RetryPolicy::default().initial_backoff(Duration::from_millis(10))
}

/// A `RetryInfo` with this delay, as metadata.
fn retry_after(delay: Duration) -> [(&'static str, &'static str); 1] {
    use base64::Engine as _;
    let info = rpc::RetryInfo {
        retry_delay: Some(delay.try_into().expect("short")),
    };
    let status = rpc::Status {
        code: 14,
        details: vec![Any::from_msg(&info).expect("it encodes")],
        ..rpc::Status::default()
    };
    let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(status.encode_to_vec());
    [("grpc-status-details-bin", text.leak())]
}

#[tokio::test]
async fn unavailable_is_made_again_up_to_5_times_in_all() {
    let server = Failing::start([14; 4], &[]);
    client(&server, brisk())
        .cancel_operation(NAME)
        .await
        .expect("the fifth");
    assert_eq!(server.calls(), 5);

    let server = Failing::start([14; 5], &[]);
    let status = client(&server, brisk()).cancel_operation(NAME).await;
    assert_eq!(status.expect_err("all five").code(), Code::Unavailable);
    assert_eq!(server.calls(), 5);
}

#[tokio::test]
async fn every_other_code_is_final() {
    for code in (1..=16).filter(|&code| code != 14) {
        let server = Failing::start([code], &[]);
        let status = client(&server, brisk()).cancel_operation(NAME).await;
        let status = status.expect_err("it fails");
        assert_eq!(i32::from(status.code()), i32::from(code));
        assert_eq!(server.calls(), 1);
    }
}

#[tokio::test]
async fn without_a_policy_and_for_a_wait_one_request_is_processed_at_most() {
    let server = Failing::start([14], &[]);
    let status = client(&server, RetryPolicy::none())
        .cancel_operation(NAME)
        .await;
    assert_eq!(status.expect_err("it fails").code(), Code::Unavailable);
    assert_eq!(server.calls(), 1);

    let server = Failing::start([14], &[]);
    let request = WaitOperationRequest {
        name: NAME.to_owned(),
        timeout: None,
    };
    let status = client(&server, brisk()).wait_operation(request).await;
    assert_eq!(status.expect_err("it fails").code(), Code::Unavailable);
    assert_eq!(server.calls(), 1);
}

#[tokio::test]
async fn a_delay_that_the_server_asks_for_is_kept() {
    let server = Failing::start([14], &retry_after(Duration::from_millis(300)));
    let begin = Instant::now();
    client(&server, brisk())
        .cancel_operation(NAME)
        .await
        .expect("the second");
    let took = begin.elapsed();
    assert!((300..2_000).contains(&took.as_millis()), "{took:?}");

    let server = Failing::start([14], &retry_after(Duration::from_secs(60)));
    let begin = Instant::now();
    let status = client(&server, brisk()).cancel_operation(NAME).await;
    assert_eq!(
        status.expect_err("later than its deadline").code(),
        Code::Unavailable
    );
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert_eq!(server.calls(), 1);
}

#[tokio::test]
async fn a_pushback_that_is_negative_or_unreadable_means_no_retry() {
    for pushback in ["-1", "soon", "", "1.5", "99999999999"] {
        let server = Failing::start([14], &[("grpc-retry-pushback-ms", pushback)]);
        let status = client(&server, brisk()).cancel_operation(NAME).await;
        assert_eq!(status.expect_err("no retry").code(), Code::Unavailable);
        assert_eq!(server.calls(), 1, "{pushback:?}");
    }
    let twice = [("grpc-retry-pushback-ms", "1"); 2];
    let server = Failing::start([14], &twice);
    let status = client(&server, brisk()).cancel_operation(NAME).await;
    assert_eq!(status.expect_err("no retry").code(), Code::Unavailable);
    assert_eq!(server.calls(), 1, "two values");
}

#[tokio::test]
async fn a_pushback_is_the_delay_before_the_retry() {
    // The policy alone would wait for a minute, and RetryInfo asks for another.
    let slow = RetryPolicy::default()
        .initial_backoff(Duration::from_secs(60))
        .max_backoff(Duration::from_secs(60));
    let pushback = ("grpc-retry-pushback-ms", "300");
    let [info] = retry_after(Duration::from_secs(60));
    let server = Failing::start([14, 14], &[pushback, info]);
    let begin = Instant::now();
    client(&server, slow.clone())
        .cancel_operation(NAME)
        .await
        .expect("the third");
    let took = begin.elapsed();
    assert!((600..3_000).contains(&took.as_millis()), "{took:?}");

    let server = Failing::start([14], &[("grpc-retry-pushback-ms", "0")]);
    let begin = Instant::now();
    client(&server, slow)
        .cancel_operation(NAME)
        .await
        .expect("the second, at once");
    assert!(begin.elapsed() < Duration::from_secs(2));

    let server = Failing::start([14], &[("grpc-retry-pushback-ms", "60000")]);
    let begin = Instant::now();
    let status = client(&server, brisk()).cancel_operation(NAME).await;
    let status = status.expect_err("the deadline is before the retry");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert_eq!(server.calls(), 1);
}

#[tokio::test]
async fn a_pushback_does_not_make_a_final_code_retryable() {
    let server = Failing::start([7], &[("grpc-retry-pushback-ms", "1")]);
    let status = client(&server, brisk()).cancel_operation(NAME).await;
    assert_eq!(status.expect_err("denied").code(), Code::PermissionDenied);
    assert_eq!(server.calls(), 1);
}

/// Calls in flight when every connection is cut, on a server that accepts new ones at once.
async fn all_calls_survive_a_cut(calls: usize, connections: usize) {
    let silent = Server::start(Habits {
        latency: Duration::from_secs(3600),
        ..Habits::default()
    });
    let server = Server::start(Habits::default());
    let proxy = Proxy::start(silent.addr);
    let client = OperationsClient::builder(proxy.url())
        .timeout(Duration::from_secs(60))
        .connect()
        .await
        .expect("a server");
    let mut tasks = JoinSet::new();
    for _ in 0..calls {
        let client = client.clone();
        tasks.spawn(async move { client.cancel_operation(NAME).await });
    }
    support::until("all calls are there", || silent.seen.in_flight() == calls).await;
    assert_eq!(silent.seen.connections(), connections);
    proxy.backend(server.addr);
    proxy.cut();
    for result in tasks.join_all().await {
        result.expect("the second attempt");
    }
    assert_eq!(server.seen.calls(), calls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_calls_survive_the_cut_of_their_connection() {
    all_calls_survive_a_cut(100, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_calls_survive_the_cut_of_five_connections() {
    all_calls_survive_a_cut(500, 5).await;
}

#[tokio::test]
async fn all_attempts_share_one_deadline() {
    let server = Failing::start([14; 100], &[]);
    let policy = brisk()
        .max_attempts(usize::MAX)
        .max_backoff(Duration::from_millis(50));
    let client = client(&server, policy).timeout(Duration::from_millis(400));
    let begin = Instant::now();
    let status = client.cancel_operation(NAME).await.expect_err("it fails");
    // The time may be up between attempts, or within one.
    let truthful = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
    assert!(truthful, "{status:?}");
    assert!(
        begin.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        begin.elapsed()
    );
    assert!(server.calls() > 5, "{}", server.calls());
}

#[tokio::test]
async fn each_attempt_is_sent_with_the_remaining_time_and_the_number_of_earlier_ones() {
    let client = retrying_client;
    check_headers_of_attempts(client).await;
    check_headers_of_attempts(|server| client(server).boxed()).await;
}

fn retrying_client(server: &Server) -> OperationsClient {
    let policy = RetryPolicy::default().initial_backoff(Duration::from_millis(100));
    let client = OperationsClient::builder(server.url()).retry(policy);
    let client = client.timeout(Duration::from_secs(9)).connect_lazy();
    client.expect("a client")
}

async fn check_headers_of_attempts<S: longrunning::GrpcStack>(
    client: impl Fn(&Server) -> OperationsClient<S>,
) {
    let server = Server::start(Habits {
        failures: 2,
        ..Habits::default()
    });
    client(&server)
        .cancel_operation(NAME)
        .await
        .expect("the third");
    let before = server.seen.header("grpc-previous-rpc-attempts");
    assert_eq!(before, [None, Some("1".to_owned()), Some("2".to_owned())]);
    let left: Vec<u64> = server
        .seen
        .header("grpc-timeout")
        .into_iter()
        .map(|left| {
            let left = left.expect("a deadline");
            let micros = left.strip_suffix('u').expect("microseconds");
            micros.parse().expect("a number")
        })
        .collect();
    assert!(left[0] <= 9_000_000 && left[0] > 8_500_000, "{left:?}");
    // The backoff less 20 % of jitter, and less what is rounded up to three digits.
    assert!(left[0] - left[1] >= 70_000, "{left:?}");
    assert!(left[1] - left[2] >= 150_000, "{left:?}");
}

#[tokio::test]
async fn a_server_that_restarts_is_found_again_by_the_same_call() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("bound");
    drop(listener);
    let client = OperationsClient::builder(format!("http://{addr}")).connect_lazy();
    let client = client.expect("a client");
    let call = tokio::spawn(async move { client.cancel_operation(NAME).await });
    sleep(Duration::from_millis(200)).await;
    let _server = Server::start_at(addr, Habits::default());
    call.await
        .expect("no panic")
        .expect("an answer within the policy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_an_outage_a_throttle_limits_the_load_and_callers_fail_fast() {
    let server = Failing::start([14; 20_000], &[]);
    let client = client(&server, RetryPolicy::default().throttle(100, 0.1));
    // The first failures take the tokens.
    let call = |_| {
        let client = client.clone();
        async move { client.cancel_operation(NAME).await }
    };
    let calls: JoinSet<_> = (0..200).map(call).collect();
    calls.join_all().await;
    let before = server.calls();
    // A second at 1,000 calls/s.
    let mut calls = JoinSet::new();
    let slowest = Arc::<Mutex<Vec<Duration>>>::default();
    for _ in 0..100 {
        for _ in 0..10 {
            let (client, slowest) = (client.clone(), slowest.clone());
            calls.spawn(async move {
                let begin = Instant::now();
                let status = client.cancel_operation(NAME).await.expect_err("an outage");
                assert_eq!(status.code(), Code::Unavailable);
                slowest.lock().expect("no panic").push(begin.elapsed());
            });
        }
        sleep(Duration::from_millis(10)).await;
    }
    calls.join_all().await;
    let sent = server.calls() - before;
    println!(
        "1,000 calls made {sent} requests: {}",
        support::summary(&slowest)
    );
    assert!(sent <= 1_100, "{sent}");
    let slowest = slowest.lock().expect("no panic").iter().max().copied();
    assert!(slowest < Some(Duration::from_millis(400)), "{slowest:?}");
}

/// A server that runs a script for each call: the peer, the stream, and how many calls came before.
fn scripted<F>(
    script: impl Fn(Peer, u32, usize) -> F + Clone + Send + Sync + 'static,
) -> (Listener, Arc<AtomicUsize>)
where
    F: Future<Output = std::io::Result<Peer>> + Send + 'static,
{
    let calls = Arc::<AtomicUsize>::default();
    let counter = calls.clone();
    let listener = Listener::start(move |_, io: TcpStream| {
        let (script, counter) = (script.clone(), counter.clone());
        async move {
            let mut peer = Peer::accept(io).await?;
            loop {
                let stream = peer.call().await?;
                let before = counter.fetch_add(1, Ordering::SeqCst);
                peer = script(peer, stream, before).await?;
            }
        }
    });
    (listener, calls)
}

fn client_of(listener: &Listener, policy: RetryPolicy) -> OperationsClient {
    let builder = OperationsClient::builder(listener.url());
    builder.retry(policy).connect_lazy().expect("a client")
}

#[tokio::test]
async fn nothing_is_retried_once_response_headers_have_arrived() {
    // UNAVAILABLE in the trailers.
    let (listener, calls) = scripted(|mut peer, stream, _| async move {
        peer.head(stream).await?;
        peer.status(stream, "14").await?;
        Ok(peer)
    });
    let status = client_of(&listener, brisk()).cancel_operation(NAME).await;
    let status = status.expect_err("no retry");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.delivery(), Some(Delivery::Answered));
    assert_eq!(calls.load(Ordering::SeqCst), 1);

    // The connection breaks, or the stream is refused, which otherwise are retried.
    for code in [None, Some(7)] {
        let (listener, calls) = scripted(move |mut peer, stream, before| async move {
            if before > 0 {
                peer.answer(stream).await?;
                return Ok(peer);
            }
            peer.head(stream).await?;
            match code {
                Some(code) => peer.reset(stream, code).await?,
                None => return Err(std::io::ErrorKind::ConnectionAborted.into()),
            }
            Ok(peer)
        });
        let status = client_of(&listener, brisk()).cancel_operation(NAME).await;
        let status = status.expect_err("no retry");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(status.delivery(), Some(Delivery::Answered));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_refused_call_has_one_transparent_retry_per_call() {
    let (listener, calls) = scripted(|mut peer, stream, _| async move {
        peer.reset(stream, 7).await?;
        Ok(peer)
    });
    let client = client_of(&listener, brisk().max_attempts(3));
    let status = client.cancel_operation(NAME).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(status.delivery(), Some(Delivery::NotSent));
    assert_eq!(calls.load(Ordering::SeqCst), 4, "three attempts and one");
}

#[tokio::test]
async fn a_retry_after_a_rejection_is_sent_the_remaining_timeout() {
    let server = Server::start(Habits::default());
    let seen = server.seen.clone();
    let refusing = Listener::start(|_, io: TcpStream| async move {
        let mut peer = Peer::accept(io).await?;
        let stream = peer.call().await?;
        sleep(Duration::from_millis(500)).await;
        // It goes away, and has not processed the call.
        peer.goaway(0, 0, "").await?;
        let _ = stream;
        peer.ignore(Duration::from_secs(60)).await
    });
    let proxy = Proxy::start(refusing.addr);
    let client = OperationsClient::builder(proxy.url())
        .timeout(Duration::from_secs(2))
        .retry(RetryPolicy::none())
        .connect()
        .await
        .expect("a server");
    proxy.backend(server.addr);
    client.cancel_operation(NAME).await.expect("sent again");
    let left = seen.header("grpc-timeout")[0].clone().expect("a deadline");
    let micros: u64 = left
        .strip_suffix('u')
        .and_then(|left| left.parse().ok())
        .expect("microseconds");
    assert!((500_000..1_520_000).contains(&micros), "{left}");
}

#[tokio::test]
async fn an_attempt_that_times_out_is_retried() {
    let (listener, calls) = scripted(|mut peer, stream, before| async move {
        if before > 1 {
            peer.answer(stream).await?;
        }
        Ok(peer)
    });
    let policy = brisk().attempt_timeout(Duration::from_millis(200));
    let begin = Instant::now();
    client_of(&listener, policy)
        .cancel_operation(NAME)
        .await
        .expect("the third attempt");
    let took = begin.elapsed();
    assert!((400..3_000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn the_last_attempt_that_times_out_ends_the_call() {
    let (listener, calls) = scripted(|peer, _, _| async move { Ok(peer) });
    let policy = brisk().attempt_timeout(Duration::from_millis(150));
    let client = client_of(&listener, policy.max_attempts(2));
    let status = client.cancel_operation(NAME).await.expect_err("no answer");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.delivery(), Some(Delivery::MaybeSent));
    let text = "no answer to CancelOperation within 150ms (attempt timeout): waited ";
    assert!(status.message().starts_with(text), "{status}");
    assert!(status.message().ends_with("for the answer"), "{status}");
    assert_eq!(status.attempts(), Some(2));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_deadline_of_the_call_is_not_an_attempt_timeout() {
    let (listener, calls) = scripted(|peer, _, _| async move { Ok(peer) });
    let policy = brisk().attempt_timeout(Duration::from_secs(60));
    let client = client_of(&listener, policy).timeout(Duration::from_millis(200));
    let status = client.cancel_operation(NAME).await.expect_err("no answer");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("within 200ms"), "{status}");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_attempt_timeout_is_sent_to_the_server() {
    let server = Server::start(Habits::default());
    let policy = RetryPolicy::default().attempt_timeout(Duration::from_secs(3));
    let client = OperationsClient::builder(server.url()).retry(policy);
    let client = client.connect_lazy().expect("a client");
    client.cancel_operation(NAME).await.expect("an answer");
    let sent = server.seen.header("grpc-timeout");
    assert_eq!(sent, [Some("3000000u".to_owned())]);
}

/// A stack whose first calls a layer fails with this status.
fn failing_layer(
    failures: usize,
    status: Status,
) -> (impl longrunning::GrpcStack + Sync, Arc<AtomicUsize>) {
    let calls = Arc::<AtomicUsize>::default();
    let counter = calls.clone();
    let stack = tower::service_fn(move |_: http::Request<tonic::body::Body>| {
        let before = counter.fetch_add(1, Ordering::SeqCst);
        std::future::ready(if before < failures {
            Err(tower::BoxError::from(status.clone()))
        } else {
            Ok(Status::not_found("answered").into_http::<tonic::body::Body>())
        })
    });
    (stack, calls)
}

#[tokio::test]
async fn a_layer_can_mark_a_status_as_retryable() {
    let denied = Status::permission_denied("the gate is closed");
    let (stack, calls) = failing_layer(2, denied.clone().into_retryable());
    let client = OperationsClient::new(stack).retry(brisk());
    let status = client.cancel_operation(NAME).await.expect_err("NOT_FOUND");
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(calls.load(Ordering::SeqCst), 3);

    let (stack, calls) = failing_layer(2, denied);
    let client = OperationsClient::new(stack).retry(brisk());
    let status = client.cancel_operation(NAME).await.expect_err("closed");
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_interceptor_can_mark_a_status_as_retryable() {
    let server = Server::start(Habits::default());
    let refusals = Arc::<AtomicUsize>::default();
    let counter = refusals.clone();
    let gate = move |request: tonic::Request<()>| {
        if counter.fetch_add(1, Ordering::SeqCst) < 2 {
            return Err(Status::unavailable("the gate is closed").into_retryable());
        }
        Ok(request)
    };
    let client = OperationsClient::builder(server.url()).retry(brisk());
    let client = client.connect_lazy().expect("a client");
    let client = client.map_stack(|stack| InterceptedService::new(stack, gate));
    client.cancel_operation(NAME).await.expect("the third");
    assert_eq!(refusals.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn resource_exhausted_is_retried_after_the_servers_delay() {
    let info = retry_after(Duration::from_millis(30));
    let pushback = [("grpc-retry-pushback-ms", "30")];
    for metadata in [&info, &pushback] {
        let server = Failing::start([8, 8], metadata);
        let client = client(&server, brisk());
        client.cancel_operation(NAME).await.expect("the third");
        assert_eq!(server.calls(), 3, "{metadata:?}");
    }
    // Not without a delay, and not if it is longer than the call may take.
    let long = retry_after(Duration::from_secs(60));
    let none: [(&str, &str); 0] = [];
    let forbidden = [("grpc-retry-pushback-ms", "-1")];
    for metadata in [&none[..], &long, &forbidden] {
        let server = Failing::start([8], metadata);
        let client = client(&server, brisk());
        let status = client.cancel_operation(NAME).await.expect_err("no retry");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(server.calls(), 1, "{metadata:?}");
    }
}

#[tokio::test]
async fn every_method_except_wait_retries_resource_exhausted() {
    let metadata = [("grpc-retry-pushback-ms", "1")];
    let server = Failing::start([8], &metadata);
    client(&server, brisk()).get_operation(NAME).await.ok();
    assert_eq!(server.calls(), 2, "GetOperation");
    let server = Failing::start([8], &metadata);
    client(&server, brisk()).list_operations("p").await.ok();
    assert_eq!(server.calls(), 2, "ListOperations");
    let server = Failing::start([8], &metadata);
    client(&server, brisk()).delete_operation(NAME).await.ok();
    assert_eq!(server.calls(), 2, "DeleteOperation");
    let server = Failing::start([8], &metadata);
    client(&server, brisk()).wait_operation(NAME).await.ok();
    assert_eq!(server.calls(), 1, "WaitOperation");
}

#[tokio::test]
async fn only_a_servers_resource_exhausted_is_retried() {
    let mut exhausted = Status::resource_exhausted("a layer's");
    let pushback = "1".parse().expect("ASCII");
    let metadata = exhausted.metadata_mut();
    metadata.insert("grpc-retry-pushback-ms", pushback);
    let (stack, calls) = failing_layer(1, exhausted);
    let client = OperationsClient::new(stack).retry(brisk());
    let status = client.cancel_operation(NAME).await.expect_err("no retry");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_poller_handles_resource_exhausted_itself() {
    // Each poll is one call: a retry within it would be a second.
    let metadata = [("grpc-retry-pushback-ms", "1")];
    let server = Failing::start([8, 7], &metadata);
    let policy = PollPolicy::default()
        .initial_delay(Duration::from_millis(300))
        .wait_timeout(Duration::ZERO);
    let client = client(&server, brisk());
    let begin = Instant::now();
    let mut poller = client.poller(NAME).policy(policy);
    let status = poller.until_done().await.expect_err("PERMISSION_DENIED");
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(server.calls(), 2);
    assert!(
        begin.elapsed() >= Duration::from_millis(240),
        "by its policy"
    );
}

#[tokio::test]
async fn an_attempt_that_times_out_after_response_headers_is_not_retried() {
    let (listener, calls) = scripted(|mut peer, stream, _| async move {
        peer.head(stream).await?;
        Ok(peer)
    });
    let policy = brisk().attempt_timeout(Duration::from_millis(200));
    let status = client_of(&listener, policy).cancel_operation(NAME).await;
    let status = status.expect_err("no message");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.delivery(), Some(Delivery::Answered));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_dies_after_response_headers_is_no_reason_to_retry() {
    let calls = Arc::<AtomicUsize>::default();
    let counter = calls.clone();
    let connector = tower::service_fn(move |_: http::Uri| {
        let (client, server) = tokio::io::duplex(1 << 16);
        let counter = counter.clone();
        tokio::spawn(async move {
            let mut peer = Peer::accept(server).await?;
            let stream = peer.call().await?;
            counter.fetch_add(1, Ordering::SeqCst);
            peer.head(stream).await?;
            peer.pongs = false;
            peer.ignore(Duration::from_secs(86_400)).await
        });
        let io = hyper_util::rt::TokioIo::new(client);
        std::future::ready(Ok::<_, std::io::Error>(io))
    });
    let client = OperationsClient::builder("http://in-memory")
        .connector(connector)
        .keepalive_interval(Duration::from_secs(10))
        .keepalive_timeout(Duration::from_secs(1))
        .timeout(Duration::from_secs(1_000))
        .connect_lazy()
        .expect("a client");
    let status = client.cancel_operation(NAME).await.expect_err("silence");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(status.delivery(), Some(Delivery::Answered));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// Credentials whose first fetch fails.
struct Late(AtomicUsize);

#[tonic::async_trait]
impl CallCredentials for Late {
    async fn token(&self) -> Result<Token, Status> {
        if self.0.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(Status::unavailable("restarting"));
        }
        Token::bearer("token")
    }
}

#[tokio::test]
async fn the_wait_for_a_token_does_not_count_towards_the_attempt_timeout() {
    // The second fetch comes about 500 ms after the first.
    let server = Server::start(Habits::default());
    let policy = brisk().attempt_timeout(Duration::from_millis(100));
    let client = OperationsClient::builder(server.url())
        .retry(policy)
        .credentials(Credentials::custom(Late(AtomicUsize::new(0))))
        .connect_lazy()
        .expect("a client");
    client.cancel_operation(NAME).await.expect("an answer");
    assert_eq!(server.seen.calls(), 1);
}

#[tokio::test]
async fn a_call_whose_headers_fit_is_retried_with_one_header_more() {
    // The largest metadata that fits: found by trial, from the largest size down.
    let mut size = 8_192;
    let calls = loop {
        let server = Failing::start([14], &[]);
        let mut request: tonic::Request<CancelOperationRequest> = NAME.into_request();
        let long = "a".repeat(size).parse().expect("ASCII");
        request.metadata_mut().insert("x", long);
        match client(&server, brisk()).cancel_operation(request).await {
            Ok(()) => break server.calls(),
            Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "{status:?}"),
        }
        assert_eq!(server.calls(), 0, "nothing is sent");
        size -= 8;
    };
    assert_eq!(calls, 2);
}

#[tokio::test]
async fn an_empty_response_without_trailers_is_not_trailers_only() {
    let (listener, calls) = scripted(|mut peer, stream, _| async move {
        peer.head(stream).await?;
        peer.frame(DATA, END_STREAM, stream, &[]).await?;
        Ok(peer)
    });
    let policy = brisk().codes([Code::Unavailable, Code::Unknown]);
    let status = client_of(&listener, policy).cancel_operation(NAME).await;
    assert_eq!(status.expect_err("no status").code(), Code::Unknown);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

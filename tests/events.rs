//! The events of the feature `tracing`.

mod support;

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use longrunning::{
    CallCredentials, Credentials, OperationsClient, PollPolicy, RetryPolicy, Token,
    emulator::Emulator,
};
use tonic::Status;
use tracing::{Instrument as _, subscriber::DefaultGuard};
use tracing_subscriber::{Layer as _, filter::Targets, fmt::MakeWriter, layer::SubscriberExt as _};

use self::support::wire::{Listener, Peer};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Lines {
    /// Takes in the events of this thread, until the guard is dropped.
    fn listen(&self) -> DefaultGuard {
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(self.clone());
        let ours = Targets::new().with_target("longrunning", tracing::Level::DEBUG);
        tracing::subscriber::set_default(
            tracing_subscriber::registry().with(layer.with_filter(ours)),
        )
    }

    fn said(&self) -> Vec<String> {
        let said = String::from_utf8(self.0.lock().expect("no panic").clone()).expect("UTF-8");
        said.lines().map(ToOwned::to_owned).collect()
    }
}

#[tokio::test]
async fn connections_and_retries_emit_events() {
    let lines = Lines::default();
    let _guard = lines.listen();
    let emulator = Emulator::start().await.expect("a free port");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    emulator.fail_next(None, 1, Status::unavailable("later"));
    let policy = RetryPolicy::default()
        .initial_backoff(Duration::from_millis(1))
        .max_attempts(2);
    let builder = OperationsClient::builder(emulator.endpoint()).retry(policy);
    let client = builder.connect().await.expect("it is there");
    client
        .cancel_operation("operations/1")
        .await
        .expect("the second attempt");
    drop(client);
    emulator
        .wait_until(|emulator| emulator.open_connections() == 0)
        .await;

    let said = lines.said();
    let [connected, retrying, disconnected] = &said[..] else {
        panic!("three events were expected: {said:?}");
    };
    let port = emulator.port();
    let server = format!("127.0.0.1:{port}");
    let start = format!(
        "DEBUG longrunning: connected server={server} connection=0 peer={server} max_streams="
    );
    assert!(connected.contains(&start), "{connected}");
    let start = "retrying attempts=1 code=\"UNAVAILABLE\" failure=\"later\" delay=";
    assert!(retrying.contains(start), "{retrying}");
    let start = format!("DEBUG longrunning: connection closed server={server} connection=0 age=");
    assert!(disconnected.contains(&start), "{disconnected}");
    let end = " reason=\"the client was dropped\"";
    assert!(disconnected.ends_with(end), "{disconnected}");
}

#[tokio::test]
async fn a_retry_throttle_reports_when_it_starts_and_when_it_stops() {
    let lines = Lines::default();
    let _guard = lines.listen();
    let emulator = Emulator::start().await.expect("a free port");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    emulator.fail_next(None, 3, Status::unavailable("later"));
    // The first failure leaves one of two tokens, with which nothing is retried.
    let policy = RetryPolicy::default().throttle(2, 0.5);
    let builder = OperationsClient::builder(emulator.endpoint()).retry(policy);
    let client = builder.connect().await.expect("it is there");
    for _ in 0..3 {
        client
            .get_operation("operations/1")
            .await
            .expect_err("later");
    }
    for _ in 0..5 {
        client.get_operation("operations/1").await.expect("known");
    }
    let said = lines.said();
    let throttle: Vec<_> = said
        .iter()
        .filter(|line| line.contains("throttle"))
        .collect();
    let [started, stopped] = &throttle[..] else {
        panic!("two events were expected: {said:?}");
    };
    assert!(started.contains(" WARN "), "{started}");
    assert!(started.contains(" retry throttle started"), "{started}");
    assert!(stopped.contains("DEBUG "), "{stopped}");
    assert!(stopped.contains(" retry throttle stopped"), "{stopped}");
}

#[tokio::test]
async fn too_many_pings_is_a_warning() {
    let lines = Lines::default();
    let _guard = lines.listen();
    let listener = Listener::start(|_, io| async move {
        let mut peer = Peer::accept(io).await?;
        let stream = peer.call().await?;
        peer.goaway(stream, 11, "too_many_pings").await
    });
    let builder = OperationsClient::builder(listener.url()).retry(RetryPolicy::none());
    let client = builder.connect().await.expect("it is there");
    let call = client.get_operation("operations/1").await;
    call.expect_err("the connection is closed");
    let said = lines.said();
    let warning = said.iter().find(|line| line.contains("too_many_pings"));
    let warning = warning.expect("an event");
    assert!(warning.contains(" WARN longrunning: "), "{warning}");
}

#[tokio::test]
async fn an_attempt_to_connect_that_fails_is_a_warning() {
    let lines = Lines::default();
    let _guard = lines.listen();
    let emulator = Emulator::start().await.expect("a free port");
    emulator.stop().await;
    let builder = || OperationsClient::builder(emulator.endpoint()).retry(RetryPolicy::none());
    builder().connect().await.expect_err("nothing listens");
    let lazy = builder().connect_lazy().expect("a client");
    let call = lazy.get_operation("operations/1").await;
    call.expect_err("nothing listens");

    let said = lines.said();
    let start = format!(
        "connect failed server=127.0.0.1:{} failure=",
        emulator.port()
    );
    let mut failures = said.iter().filter(|line| line.contains(&start));
    for _ in 0..2 {
        let failure = failures.next().expect("one for each client");
        assert!(failure.contains(" WARN "), "{failure}");
        assert!(failure.contains("Connection refused"), "{failure}");
    }
}

#[tokio::test]
async fn each_connection_that_was_opened_reports_why_it_was_closed() {
    let lines = Lines::default();
    let _guard = lines.listen();
    let emulator = Emulator::start().await.expect("a free port");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    let client = OperationsClient::builder(emulator.endpoint())
        .connect()
        .await;
    let client = client.expect("it listens");
    let get = async || client.get_operation("operations/1").await.expect("known");
    get().await;
    emulator.drain_connections();
    emulator
        .wait_until(|emulator| emulator.open_connections() == 0)
        .await;
    get().await;
    emulator.abort_connections();
    get().await;
    drop(client);
    emulator
        .wait_until(|emulator| emulator.open_connections() == 0)
        .await;

    let said = lines.said();
    let count = |text: &str| said.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count(" connected server="), 3, "{said:?}");
    assert_eq!(count(" connection closed server="), 3, "{said:?}");
    let drained = "reason=\"the server closed the connection: GOAWAY NO_ERROR";
    assert_eq!(count(drained), 1, "{said:?}");
    assert_eq!(count("reason=\"the client was dropped\""), 1, "{said:?}");
    for connection in 0..3 {
        assert_eq!(count(&format!(" connection={connection} ")), 2, "{said:?}");
    }
}

#[tokio::test]
async fn a_peer_that_does_not_answer_a_ping_is_a_warning() {
    let lines = Lines::default();
    let _guard = lines.listen();
    let listener = Listener::start(|_, io| async move {
        let mut peer = Peer::accept(io).await?;
        peer.call().await?;
        peer.pongs = false;
        peer.ignore(Duration::from_secs(60)).await
    });
    let builder = OperationsClient::builder(listener.url()).retry(RetryPolicy::none());
    let client = builder.connect().await.expect("it listens");
    let hurried = client.clone().timeout(Duration::from_millis(100));
    let call = hurried.get_operation("operations/1").await;
    call.expect_err("silence");
    let call = client.get_operation("operations/1").await;
    call.expect_err("the connection is closed after 5 seconds");

    let said = lines.said();
    let closed = "connection closed: keepalive timed out server=127.0.0.1:";
    let warning = said.iter().find(|line| line.contains(closed));
    let warning = warning.expect("an event");
    assert!(warning.contains(" WARN "), "{warning}");
    assert!(warning.ends_with(" timeout=5s"), "{warning}");
}

#[test]
fn the_guide_lists_every_event() {
    let guide = include_str!("../src/guide/observability.md");
    let code = include_str!("../src/trace.rs");
    let calls = code.split("event!(").skip(1);
    let events = calls.filter_map(|call| {
        let (arguments, _) = call.split_once(");")?;
        let level = arguments.trim_start().split(',').next()?;
        let message = arguments.rsplit('"').nth(1)?;
        Some((level, message))
    });
    let events = events.filter(|(level, _)| ["DEBUG", "WARN"].contains(level));
    let events: Vec<_> = events.collect();
    assert_eq!(events.len(), 15, "{events:?}");
    for (level, message) in events {
        let row = format!("| `{message}` | {level} |");
        assert!(guide.contains(&row), "{row}");
    }
}

#[tokio::test]
async fn calls_that_are_spawned_as_tasks_stay_in_the_callers_span() {
    let lines = Lines::default();
    let _guard = lines.listen();
    let emulator = Emulator::start().await.expect("a free port");
    let policy = RetryPolicy::default().initial_backoff(Duration::from_millis(1));
    let builder = OperationsClient::builder(emulator.endpoint()).retry(policy);
    let client = builder.connect().await.expect("it is there");
    let work = async {
        let later = || emulator.fail_next(None, 1, Status::unavailable("later"));
        later();
        let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
        let mut poller = client.poller("operations/1").policy(policy);
        poller.until_done().await.expect_err("unknown");
        later();
        assert!(client.operations("operations").next().await.is_none());
        later();
        let names = tokio_stream::once("operations/1");
        let mut results = client.cancel_operations(names);
        results
            .next()
            .await
            .expect("a report")
            .result
            .expect_err("unknown");
    };
    // Of our target, which alone is listened to.
    work.instrument(tracing::info_span!(target: "longrunning", "request"))
        .await;

    let said = lines.said();
    let retries = said.iter().filter(|line| line.contains(" retrying "));
    let retries: Vec<_> = retries.collect();
    assert_eq!(retries.len(), 3, "{said:?}");
    for retry in retries {
        assert!(retry.contains(" request:"), "{retry}");
    }
}

/// A source that fails at first.
#[derive(Default)]
struct Late(AtomicBool);

#[tonic::async_trait]
impl CallCredentials for Late {
    async fn token(&self) -> Result<Token, Status> {
        match self.0.swap(true, Ordering::SeqCst) {
            true => Token::bearer("PLANTED-SECRET"),
            false => Err(Status::unavailable("not yet")),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_events_of_a_token_contain_no_secret() {
    let lines = Lines::default();
    let _guard = lines.listen();
    let auth = Credentials::custom(Late::default()).interceptor().await;
    auth.expect("the second attempt");

    let said = lines.said();
    let [failed, came] = &said[..] else {
        panic!("two events were expected: {said:?}");
    };
    assert!(
        failed.contains(" token refresh failed code=\"UNAVAILABLE\" failure=\"not yet\" retry_in="),
        "{failed}"
    );
    assert!(came.contains(" token refreshed refresh_in="), "{came}");
    assert!(!came.contains("PLANTED-SECRET"), "{came}");
}

#[tokio::test(start_paused = true)]
async fn a_rejected_token_is_a_warning() {
    let lines = Lines::default();
    let _guard = lines.listen();
    let auth = Credentials::custom(Late::default()).interceptor().await;
    let auth = auth.expect("the second attempt");
    (0..3).for_each(|_| auth.mark_rejected());
    tokio::time::sleep(Duration::from_secs(15)).await;

    let said = lines.said();
    let rejections = said
        .iter()
        .filter(|line| line.contains(" WARN longrunning: token rejected by a server refresh_in="));
    assert_eq!(rejections.count(), 1, "{said:?}");
}

#[test]
fn a_client_that_is_dropped_reports_that_its_connection_was_closed() {
    let lines = Lines::default();
    let _guard = lines.listen();
    let servers = tokio::runtime::Runtime::new().expect("a runtime");
    let emulator = servers.block_on(Emulator::start()).expect("a free port");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let client = OperationsClient::builder(emulator.endpoint()).connect_lazy();
    let client = client.expect("a client");
    let answer = runtime.block_on(client.get_operation("operations/1"));
    answer.expect_err("there is none");
    // The connection's task is dropped without being polled again.
    drop((client, runtime));
    let said = lines.said();
    let [connected, disconnected] = &said[..] else {
        panic!("two events were expected: {said:?}");
    };
    let port = emulator.port();
    let start = format!(" connected server=127.0.0.1:{port} ");
    assert!(connected.contains(&start), "{connected}");
    let start = format!(" connection closed server=127.0.0.1:{port} ");
    assert!(disconnected.contains(&start), "{disconnected}");
}

#[tokio::test]
async fn a_failed_cancel_on_drop_emits_a_warning() {
    let lines = Lines::default();
    let _guard = lines.listen();
    let emulator = Emulator::start().await.expect("a free port");
    let builder = OperationsClient::builder(emulator.endpoint());
    let client = builder.connect().await.expect("it is there");
    let guard = client.poller("operations/1").cancel_on_drop();
    drop(guard.expect("a runtime"));
    let expected = " cancel on drop failed operation=\"operations/1\" code=\"NOT_FOUND\"";
    let is_expected = |line: &String| line.contains(expected) && line.contains("WARN");
    let event = async {
        while !lines.said().iter().any(is_expected) {
            tokio::task::yield_now().await;
        }
    };
    let event = tokio::time::timeout(Duration::from_secs(10), event).await;
    event.unwrap_or_else(|_| panic!("there is no such event: {:?}", lines.said()));
}

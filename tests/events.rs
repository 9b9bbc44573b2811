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
async fn connections_and_retries_are_told() {
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
    assert!(
        connected.ends_with(&format!(" connected to=127.0.0.1:{port}")),
        "{connected}"
    );
    assert!(
        retrying.contains(" an attempt failed attempts=1 code=Unavailable wait="),
        "{retrying}"
    );
    let end = format!(" disconnected from=127.0.0.1:{port}");
    assert!(disconnected.ends_with(&end), "{disconnected}");
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
    assert!(started.contains(" retry throttle started"), "{started}");
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
async fn calls_that_are_tasks_of_their_own_stay_in_the_callers_span() {
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
        let mut results = client.cancel_operations(names, 1);
        results
            .next()
            .await
            .expect("a result")
            .1
            .expect_err("unknown");
    };
    // Of our target, which alone is listened to.
    work.instrument(tracing::info_span!(target: "longrunning", "request"))
        .await;

    let said = lines.said();
    let retries = said
        .iter()
        .filter(|line| line.contains("an attempt failed"));
    let retries: Vec<_> = retries.collect();
    assert_eq!(retries.len(), 3, "{said:?}");
    for retry in retries {
        assert!(retry.contains(" request: longrunning: "), "{retry}");
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
        failed.contains(" token refresh failed code=Unavailable failure=\"not yet\" retry_in="),
        "{failed}"
    );
    assert!(came.contains(" token refreshed renewed_in="), "{came}");
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
        .filter(|line| line.contains(" WARN longrunning: token rejected by a server renewed_in="));
    assert_eq!(rejections.count(), 1, "{said:?}");
}

#[test]
fn a_client_that_is_dropped_reports_that_it_disconnected() {
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
    assert!(
        connected.ends_with(&format!(" connected to=127.0.0.1:{port}")),
        "{connected}"
    );
    let end = format!(" disconnected from=127.0.0.1:{port}");
    assert!(disconnected.ends_with(&end), "{disconnected}");
}

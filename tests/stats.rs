//! The statistics of a client, and the measurements that a recorder receives.

mod support;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use longrunning::{
    AttemptEnded, AttemptStarted, CallCredentials, CallEnded, CallStatusExt as _, Credentials,
    OperationDone, OperationsClient, OutcomeKind, PollEnded, PollMethod, PollPolicy, Recorder,
    RetryPolicy, StatsSource, Token, Transport, TransportStats,
    emulator::{Emulator, Method},
};
use tokio::task::JoinSet;
use tonic::Status;

use self::support::{
    until,
    wire::{Listener, Peer},
};

const GET: &str = "google.longrunning.Operations/GetOperation";
const WAIT: &str = "google.longrunning.Operations/WaitOperation";

async fn server(streams: usize) -> Emulator {
    let builder = Emulator::builder().max_concurrent_streams(streams);
    let emulator = builder.start().await.expect("a free port");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    emulator
}

fn transport(client: &OperationsClient<Transport>) -> TransportStats {
    client.stats().transport.expect("the default stack")
}

#[tokio::test]
async fn the_snapshot_has_streams_in_use_and_calls_queued() {
    let emulator = server(2).await;
    emulator.delay(Method::Get, Duration::from_secs(60));
    let builder = OperationsClient::builder(emulator.endpoint()).max_connections(1);
    let client = builder
        .max_queued_calls(50)
        .connect()
        .await
        .expect("it listens");
    let idle = transport(&client);
    assert_eq!((idle.open_connections, idle.connections.len()), (1, 1));
    assert_eq!((idle.queued_calls, idle.max_queued_calls), (0, 50));
    assert_eq!(
        (
            idle.connections[0].streams_in_use,
            idle.connections[0].max_streams
        ),
        (0, 2)
    );
    assert_eq!(idle.queue_age, Duration::ZERO);

    let mut calls = JoinSet::new();
    for _ in 0..5 {
        let client = client.clone();
        calls.spawn(async move { client.get_operation("operations/1").await });
    }
    until("3 calls are queued", || {
        transport(&client).queued_calls == 3
    })
    .await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    let busy = transport(&client);
    assert_eq!(
        (busy.connections[0].streams_in_use, busy.queued_calls),
        (2, 3)
    );
    assert!(busy.queue_age >= Duration::from_millis(30), "{busy:?}");
    assert!(busy.connections[0].age >= busy.queue_age);
    let peer = busy.connections[0].peer.expect("TCP");
    assert_eq!(peer.port(), emulator.port());
    assert_eq!(transport(&client).totals, client.stack().stats().totals);

    calls.shutdown().await;
    until("no stream is in use", || {
        transport(&client).connections[0].streams_in_use == 0
    })
    .await;
    let after = transport(&client);
    assert_eq!(after.queued_calls, 0);
    assert_eq!(after.totals.stream_resets, 2, "{after:?}");
}

#[tokio::test]
async fn the_totals_count_connections_and_transparent_retries() {
    let emulator = server(100).await;
    let builder = OperationsClient::builder(emulator.endpoint()).retry(RetryPolicy::none());
    let client = builder.connect().await.expect("it listens");
    emulator.reset_next(None, 1, h2::Reason::REFUSED_STREAM.into());
    client
        .get_operation("operations/1")
        .await
        .expect("a transparent retry");
    let totals = transport(&client).totals;
    assert_eq!(totals.transparent_retries, 1);
    assert_eq!(
        (totals.connection_attempts_succeeded, totals.disconnections),
        (1, 0)
    );

    emulator.stop().await;
    until("no connection is open", || {
        transport(&client).open_connections == 0
    })
    .await;
    client
        .get_operation("operations/1")
        .await
        .expect_err("nothing listens");
    let totals = transport(&client).totals;
    assert_eq!(
        (totals.disconnections, totals.connection_attempts_succeeded),
        (1, 1)
    );
    assert!(totals.connection_attempts_failed >= 1, "{totals:?}");

    let address = emulator.endpoint();
    let failed = OperationsClient::builder(address)
        .retry(RetryPolicy::none())
        .connect_lazy()
        .expect("a client");
    failed
        .get_operation("operations/1")
        .await
        .expect_err("nothing listens");
    assert!(transport(&failed).totals.connection_attempts_failed >= 1);
}

#[tokio::test]
async fn the_snapshot_counts_retries_and_the_tokens_of_the_throttle() {
    let emulator = server(100).await;
    emulator.fail_next(None, 2, Status::unavailable("later"));
    let policy = RetryPolicy::default().initial_backoff(Duration::from_millis(1));
    let builder = OperationsClient::builder(emulator.endpoint());
    let client = builder
        .retry(policy.throttle(10, 0.5))
        .connect()
        .await
        .expect("it listens");
    client
        .get_operation("operations/1")
        .await
        .expect("the third attempt");
    let stats = client.clone().stats();
    assert_eq!(stats.retries, 2);
    let throttle = stats.throttle.expect("the policy has one");
    assert_eq!((throttle.tokens, throttle.max_tokens), (8.5, 10.0));
    assert!(!throttle.is_throttling);
    assert_eq!(throttle.suppressed_retries, 0);

    emulator.fail_next(None, 10, Status::unavailable("later"));
    client
        .get_operation("operations/1")
        .await
        .expect_err("5.5 tokens are left, then 4.5");
    let throttle = client.stats().throttle.expect("the policy has one");
    assert!(throttle.is_throttling, "{throttle:?}");
    assert_eq!(throttle.suppressed_retries, 1);
}

/// A source whose first fetch fails.
#[derive(Default)]
struct Late(Mutex<u64>);

#[tonic::async_trait]
impl CallCredentials for Late {
    async fn token(&self) -> Result<Token, Status> {
        let mut fetches = self.0.lock().expect("no panic");
        *fetches += 1;
        match *fetches {
            1 => Err(Status::unavailable("not yet")),
            _ => Ok(Token::bearer("t")?.expires_at(Instant::now() + Duration::from_secs(600))),
        }
    }
}

#[tokio::test]
async fn the_snapshot_has_the_state_of_the_token() {
    let emulator = server(100).await;
    let builder = OperationsClient::builder(emulator.endpoint());
    let builder = builder.credentials(Credentials::custom(Late::default()));
    let client = builder.connect().await.expect("the second fetch");
    let token = client.stats().token.expect("credentials");
    assert_eq!((token.fetches_succeeded, token.fetches_failed), (1, 1));
    assert!(token.is_valid && token.last_failure.is_none());
    let (fetched, expires) = (
        token.fetched_at.expect("one"),
        token.expires_at.expect("known"),
    );
    let lifetime = expires.duration_since(fetched).expect("later").as_secs();
    assert!((595..=600).contains(&lifetime), "{lifetime}");

    client
        .auth_interceptor()
        .expect("credentials")
        .mark_rejected();
    until("the token is rejected", || {
        client.stats().token.expect("credentials").tokens_rejected == 1
    })
    .await;
}

#[tokio::test]
async fn a_client_over_a_custom_stack_has_no_transport_stats() {
    let emulator = Emulator::in_process().expect("an emulator");
    let client = OperationsClient::new(emulator.service());
    let stats = client.stats();
    assert!(stats.transport.is_none() && stats.token.is_none() && stats.throttle.is_none());
}

/// Keeps each event as text.
#[derive(Default)]
struct Events {
    events: Mutex<Vec<String>>,
    sources: Mutex<Vec<StatsSource>>,
}

impl Events {
    fn push(&self, event: String) {
        self.events.lock().expect("no panic").push(event);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.events.lock().expect("no panic"))
    }
}

impl Recorder for Events {
    fn client_created(&self, client: &StatsSource) {
        self.sources.lock().expect("no panic").push(client.clone());
        self.push(format!("created {}", client.target().unwrap_or("-")));
    }

    fn attempt_started(&self, attempt: &AttemptStarted<'_>) {
        let (previous, transparent) = (attempt.previous_attempts, attempt.is_transparent_retry);
        self.push(format!("started {previous} {transparent}"));
    }

    fn attempt_ended(&self, attempt: &AttemptEnded<'_>) {
        let AttemptEnded {
            code,
            sent_bytes,
            received_bytes,
            queued,
            ..
        } = attempt;
        assert!([GET, WAIT].contains(&attempt.method));
        let queued = queued.is_some();
        self.push(format!(
            "ended {code:?} {sent_bytes} {received_bytes} {queued}"
        ));
    }

    fn call_ended(&self, call: &CallEnded<'_>) {
        let CallEnded {
            code,
            retries,
            transparent_retries,
            is_dropped,
            ..
        } = call;
        assert!(call.duration >= call.retry_delay);
        let delayed = !call.retry_delay.is_zero();
        self.push(format!(
            "call {code:?} {retries} {transparent_retries} {is_dropped} {delayed}"
        ));
    }

    fn poll_ended(&self, poll: &PollEnded<'_>) {
        self.push(format!("poll {} {:?}", poll.method.name(), poll.code));
    }

    fn operation_done(&self, operation: &OperationDone<'_>) {
        self.push(format!(
            "done {} {}",
            operation.outcome.name(),
            operation.polls
        ));
    }
}

async fn recorded(emulator: &Emulator, events: &Arc<Events>) -> OperationsClient<Transport> {
    let policy = RetryPolicy::default().initial_backoff(Duration::from_millis(1));
    let builder = OperationsClient::builder(emulator.endpoint()).retry(policy);
    let client = builder
        .recorder(events.clone())
        .connect()
        .await
        .expect("it listens");
    let created = format!("created dns:///127.0.0.1:{}", emulator.port());
    assert_eq!(events.take(), [created]);
    client
}

#[tokio::test]
async fn a_recorder_receives_each_attempt_and_the_call() {
    let events = Arc::new(Events::default());
    let emulator = server(100).await;
    let client = recorded(&emulator, &events).await;
    client
        .get_operation("operations/1")
        .await
        .expect("it is known");
    // A name of 12 bytes with its tag and length.
    assert_eq!(
        events.take(),
        [
            "started 0 false",
            "ended Ok 14 14 true",
            "call Ok 0 0 false false"
        ]
    );

    emulator.fail_next(None, 1, Status::unavailable("later"));
    client
        .get_operation("operations/1")
        .await
        .expect("the retry");
    let expected = [
        "started 0 false",
        "ended Unavailable 14 0 true",
        "started 1 false",
        "ended Ok 14 14 true",
        "call Ok 1 0 false true",
    ];
    assert_eq!(events.take(), expected);

    emulator.reset_next(None, 1, h2::Reason::REFUSED_STREAM.into());
    client
        .get_operation("operations/1")
        .await
        .expect("the retry");
    let expected = [
        "started 0 false",
        "ended Unavailable 14 0 true",
        "started 1 true",
        "ended Ok 14 14 true",
        "call Ok 0 1 false",
    ];
    let mut found = events.take();
    // Between the two attempts of a transparent retry there is hardly a delay.
    let last = found.pop().expect("the call");
    assert_eq!(found, expected[..4]);
    assert!(last.starts_with(expected[4]), "{last}");

    client.get_operation("").await.expect_err("no name");
    assert_eq!(events.take(), ["call InvalidArgument 0 0 false false"]);
}

#[tokio::test]
async fn a_recorder_receives_a_dropped_call_as_cancelled() {
    let events = Arc::new(Events::default());
    let emulator = server(100).await;
    emulator.delay(Method::Get, Duration::from_secs(60));
    let client = recorded(&emulator, &events).await;
    tokio::select! {
        _ = client.get_operation("operations/1") => panic!("the answer takes a minute"),
        () = emulator.wait_until(|emulator| emulator.in_flight() == 1) => {}
    }
    let expected = [
        "started 0 false",
        "ended Cancelled 14 0 true",
        "call Cancelled 0 0 true false",
    ];
    assert_eq!(events.take(), expected);
}

#[tokio::test]
async fn a_call_that_is_not_sent_counts_no_bytes() {
    let events = Arc::new(Events::default());
    let emulator = server(100).await;
    let client = recorded(&emulator, &events).await;
    emulator.stop().await;
    until("no connection is open", || {
        transport(&client).open_connections == 0
    })
    .await;
    let client = client.retry(RetryPolicy::none());
    client
        .get_operation("operations/1")
        .await
        .expect_err("nothing listens");
    let expected = [
        "started 0 false",
        "ended Unavailable 0 0 true",
        "call Unavailable 0 0 false false",
    ];
    assert_eq!(events.take(), expected);
}

#[tokio::test]
async fn a_recorder_receives_polls_and_outcomes() {
    let events = Arc::new(Events::default());
    let emulator = server(100).await;
    let client = recorded(&emulator, &events).await;
    emulator.unimplement(Method::Wait);
    let failure = Status::aborted("a conflict");
    emulator
        .fail("operations/1", failure)
        .expect("it is running");
    client
        .poller("operations/1")
        .until_done()
        .await
        .expect("it is done");
    let mut found = events.take();
    found.retain(|event| event.starts_with("poll") || event.starts_with("done"));
    assert_eq!(
        found,
        ["poll wait Unimplemented", "poll get Ok", "done failed 2"]
    );

    let names = [PollMethod::Get, PollMethod::Wait].map(PollMethod::name);
    assert_eq!(names, ["get", "wait"]);
    assert_eq!(OutcomeKind::DoneWithoutResult.name(), "done_without_result");
}

#[tokio::test]
async fn a_recorder_that_is_set_on_a_client_receives_its_events() {
    let events = Arc::new(Events::default());
    let emulator = Emulator::in_process().expect("an emulator");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    let client = OperationsClient::new(emulator.service()).recorder(events.clone());
    client
        .get_operation("operations/1")
        .await
        .expect("it is known");
    let expected = [
        "created -",
        "started 0 false",
        "ended Ok 14 14 false",
        "call Ok 0 0 false false",
    ];
    assert_eq!(events.take(), expected);
    let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
    emulator
        .complete_without_result("operations/1")
        .expect("it is running");
    client
        .poller("operations/1")
        .policy(policy)
        .until_done()
        .await
        .expect("it is done");
    assert_eq!(
        events.take().last().map(String::as_str),
        Some("done done_without_result 1")
    );
}

#[tokio::test]
async fn a_recorder_does_not_change_the_status_of_a_call() {
    let listener = Listener::start(|_, io| async move {
        let mut peer = Peer::accept(io).await?;
        loop {
            let stream = peer.call().await?;
            peer.head(stream).await?; // and no message
        }
    });
    let builder = OperationsClient::builder(listener.url());
    let builder = builder.timeout(Duration::from_millis(100));
    let client = builder.connect().await.expect("it listens");
    let recorded = client.clone().recorder(Arc::new(Events::default()));
    let mut reports = Vec::new();
    for client in [client, recorded] {
        let status = client.get_operation("operations/1").await;
        let status = status.expect_err("the response is not complete");
        reports.push((status.code(), status.origin(), status.delivery()));
    }
    assert_eq!(reports[0], reports[1]);
}

/// A recorder with a defect.
struct Panics;

impl Recorder for Panics {
    fn attempt_ended(&self, _: &AttemptEnded<'_>) {
        panic!("the first");
    }

    fn call_ended(&self, _: &CallEnded<'_>) {
        panic!("the second would abort the process");
    }
}

#[tokio::test]
async fn a_recorder_that_panics_ends_the_future_of_the_call() {
    let emulator = server(100).await;
    let builder = OperationsClient::builder(emulator.endpoint()).recorder(Arc::new(Panics));
    let client = builder.connect().await.expect("it listens");
    let call = tokio::spawn(async move { client.get_operation("operations/1").await });
    let panic = call.await.expect_err("it panics").into_panic();
    assert_eq!(panic.downcast_ref(), Some(&"the first"));
}

/// Calls into the client from each method.
#[derive(Default)]
struct Reenters(Mutex<Option<OperationsClient<Transport>>>, Mutex<usize>);

impl Recorder for Reenters {
    fn attempt_started(&self, _: &AttemptStarted<'_>) {
        self.read();
    }

    fn attempt_ended(&self, _: &AttemptEnded<'_>) {
        self.read();
    }

    fn call_ended(&self, _: &CallEnded<'_>) {
        self.read();
        // The last reference to the client may be this one.
        self.0.lock().expect("no panic").take();
    }
}

impl Reenters {
    fn read(&self) {
        let client = self.0.lock().expect("no panic").clone();
        if let Some(client) = client {
            let stats = client.stats().transport.expect("the default stack");
            assert_eq!(stats.open_connections, 1);
            *self.1.lock().expect("no panic") += 1;
        }
    }
}

#[tokio::test]
async fn a_recorder_may_use_and_drop_the_client() {
    let recorder = Arc::new(Reenters::default());
    let emulator = server(100).await;
    let builder = OperationsClient::builder(emulator.endpoint()).recorder(recorder.clone());
    let client = builder.connect().await.expect("it listens");
    *recorder.0.lock().expect("no panic") = Some(client.clone());
    client
        .get_operation("operations/1")
        .await
        .expect("it is known");
    assert_eq!(*recorder.1.lock().expect("no panic"), 3);
}

#[tokio::test]
async fn several_recorders_can_be_combined() {
    let (one, other) = (Arc::new(Events::default()), Arc::new(Events::default()));
    let both: Vec<Arc<dyn Recorder>> = vec![one.clone(), other.clone()];
    let emulator = Emulator::in_process().expect("an emulator");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    emulator
        .complete_without_result("operations/1")
        .expect("it is running");
    let client = OperationsClient::new(emulator.service()).recorder(Arc::new(both));
    client
        .poller("operations/1")
        .until_done()
        .await
        .expect("it is done");
    let events = one.take();
    assert_eq!(events.len(), 6, "{events:?}");
    assert_eq!(other.take(), events);
}

#[tokio::test]
async fn callers_that_wait_until_the_queue_is_not_full_are_counted() {
    let emulator = server(1).await;
    emulator.delay(Method::Get, Duration::from_secs(60));
    let builder = OperationsClient::builder(emulator.endpoint()).max_connections(1);
    let client = builder
        .max_queued_calls(2)
        .connect()
        .await
        .expect("it listens");
    let mut calls = JoinSet::new();
    for _ in 0..6 {
        let client = client.clone();
        calls.spawn(async move { client.get_operation("operations/1").await });
    }
    until("3 callers wait", || transport(&client).blocked_callers == 3).await;
    let stats = transport(&client);
    assert_eq!(
        (
            stats.queued_calls,
            stats.streams_in_use(),
            stats.max_streams()
        ),
        (2, 1, 1)
    );
    assert_eq!((stats.max_connections, stats.connections.len()), (1, 1));
    calls.shutdown().await;
    until("no caller waits", || {
        transport(&client).blocked_callers == 0
    })
    .await;
}

#[tokio::test]
async fn a_stats_source_does_not_keep_a_client_alive() {
    let events = Arc::new(Events::default());
    let emulator = server(100).await;
    let client = recorded(&emulator, &events).await;
    emulator.fail_next(None, 1, Status::unavailable("later"));
    client
        .get_operation("operations/1")
        .await
        .expect("it is known");
    let source = events.sources.lock().expect("no panic")[0].clone();
    let stats = source.stats().transport.expect("the default stack");
    assert_eq!((stats.open_connections, source.has_ended()), (1, false));
    drop(client);
    until("the client has ended", || source.has_ended()).await;
    let stats = source.stats().transport.expect("the default stack");
    assert_eq!((stats.open_connections, stats.connections.len()), (0, 0));
    assert_eq!(stats.totals.disconnections, 1);
    assert_eq!(stats.totals.connection_attempts_succeeded, 1);
    assert_eq!(source.stats().retries, 1);
    emulator
        .wait_until(|emulator| emulator.open_connections() == 0)
        .await;
}

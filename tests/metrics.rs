//! The metrics of the recorder for OpenTelemetry, as its SDK exports them.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use longrunning::{
    CallCredentials, Credentials, OpenTelemetryRecorder, OperationsClient, RetryPolicy, Token,
    Transport,
    emulator::{Emulator, Method},
};
use opentelemetry::KeyValue;
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, PeriodicReader, SdkMeterProvider,
    data::{AggregatedMetrics, MetricData},
};
use tonic::Status;

use self::support::until;

const GET: &str = "google.longrunning.Operations/GetOperation";

/// A recorder, and what the SDK exports.
struct Metrics {
    exporter: InMemoryMetricExporter,
    provider: SdkMeterProvider,
    recorder: Arc<OpenTelemetryRecorder>,
}

/// The exported data of an instrument.
#[derive(Clone, Debug, Default, PartialEq)]
struct Exported {
    unit: String,
    /// The type, such as `counter`.
    kind: &'static str,
    /// The value for each set of attributes: that of a sum or a gauge, or the count of a histogram.
    values: BTreeMap<String, f64>,
    /// The sum of a histogram for each set of attributes.
    sums: BTreeMap<String, f64>,
    bounds: Vec<f64>,
}

impl Metrics {
    fn new(is_experimental: bool) -> Self {
        let exporter = InMemoryMetricExporter::default();
        let reader = PeriodicReader::builder(exporter.clone())
            .with_interval(Duration::from_secs(3_600))
            .build();
        let provider = SdkMeterProvider::builder().with_reader(reader).build();
        let recorder = OpenTelemetryRecorder::new(&provider);
        let recorder = if is_experimental {
            recorder.experimental()
        } else {
            recorder
        };
        Self {
            exporter,
            provider,
            recorder: Arc::new(recorder),
        }
    }

    /// Collects the instruments by their names.
    fn collect(&self) -> BTreeMap<String, Exported> {
        self.exporter.reset();
        self.provider
            .force_flush()
            .expect("the exporter is in memory");
        let exported = self.exporter.get_finished_metrics().expect("metrics");
        let scopes = exported.iter().flat_map(|metrics| metrics.scope_metrics());
        let metrics = scopes.flat_map(|scope| {
            assert_eq!(scope.scope().name(), "longrunning");
            assert_eq!(scope.scope().version(), Some(env!("CARGO_PKG_VERSION")));
            scope.metrics()
        });
        let read = metrics.map(|metric| {
            assert!(!metric.description().is_empty(), "{}", metric.name());
            let mut exported = match metric.data() {
                AggregatedMetrics::F64(data) => read(data, |value| value),
                AggregatedMetrics::U64(data) => read(data, |value| value as f64),
                AggregatedMetrics::I64(data) => read(data, |value| value as f64),
            };
            exported.unit = metric.unit().to_owned();
            (metric.name().to_owned(), exported)
        });
        read.collect()
    }

    async fn client(&self, emulator: &Emulator) -> OperationsClient<Transport> {
        let policy = RetryPolicy::default().initial_backoff(Duration::from_millis(20));
        let builder = OperationsClient::builder(emulator.endpoint()).retry(policy);
        let client = builder.recorder(self.recorder.clone()).connect().await;
        client.expect("it listens")
    }
}

fn read<T: Copy>(data: &MetricData<T>, number: impl Fn(T) -> f64) -> Exported {
    let mut exported = Exported::default();
    match data {
        MetricData::Gauge(gauge) => {
            exported.kind = "gauge";
            for point in gauge.data_points() {
                let value = number(point.value());
                exported
                    .values
                    .insert(attributes(point.attributes()), value);
            }
        }
        MetricData::Sum(sum) => {
            exported.kind = if sum.is_monotonic() {
                "counter"
            } else {
                "up-down counter"
            };
            for point in sum.data_points() {
                let value = number(point.value());
                exported
                    .values
                    .insert(attributes(point.attributes()), value);
            }
        }
        MetricData::Histogram(histogram) => {
            exported.kind = "histogram";
            for point in histogram.data_points() {
                let attributes = attributes(point.attributes());
                exported
                    .values
                    .insert(attributes.clone(), point.count() as f64);
                exported.sums.insert(attributes, number(point.sum()));
                exported.bounds = point.bounds().collect();
            }
        }
        MetricData::ExponentialHistogram(_) => panic!("not used"),
    }
    exported
}

fn attributes<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> String {
    let mut all: Vec<_> = attributes
        .map(|it| format!("{}={}", it.key, it.value))
        .collect();
    all.sort();
    all.join(" ")
}

async fn server() -> Emulator {
    let emulator = Emulator::start().await.expect("a free port");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    emulator
}

#[tokio::test]
async fn calls_and_attempts_have_the_instruments_of_grfc_a66() {
    let metrics = Metrics::new(false);
    let emulator = server().await;
    let client = metrics.client(&emulator).await;
    emulator.fail_next(None, 1, Status::unavailable("later"));
    client
        .get_operation("operations/1")
        .await
        .expect("the retry");
    client
        .get_operation("operations/9")
        .await
        .expect_err("unknown");

    let found = metrics.collect();
    let target = format!("dns:///127.0.0.1:{}", emulator.port());
    let method = format!("grpc.method={GET}");
    let with = |status: &str| format!("{method} grpc.status={status} grpc.target={target}");

    let started = &found["grpc.client.attempt.started"];
    assert_eq!((started.kind, &*started.unit), ("counter", "{attempt}"));
    let expected = BTreeMap::from([(format!("{method} grpc.target={target}"), 3.0)]);
    assert_eq!(started.values, expected);

    let attempts = &found["grpc.client.attempt.duration"];
    assert_eq!((attempts.kind, &*attempts.unit), ("histogram", "s"));
    let codes = ["OK", "UNAVAILABLE", "NOT_FOUND"].map(|code| (with(code), 1.0));
    assert_eq!(attempts.values, BTreeMap::from(codes));
    // As in gRFC A66.
    assert_eq!(attempts.bounds.len(), 41);
    assert_eq!((attempts.bounds[1], attempts.bounds[40]), (0.00001, 100.0));

    let calls = &found["grpc.client.call.duration"];
    assert_eq!((calls.kind, &*calls.unit), ("histogram", "s"));
    let codes = ["OK", "NOT_FOUND"].map(|code| (with(code), 1.0));
    assert_eq!(calls.values, BTreeMap::from(codes));
    assert!(
        calls.sums[&with("OK")] >= 0.015,
        "with the backoff: {calls:?}"
    );
    assert!(calls.sums[&with("OK")] >= attempts.sums[&with("OK")]);

    let sent = &found["grpc.client.attempt.sent_total_compressed_message_size"];
    assert_eq!((sent.kind, &*sent.unit), ("histogram", "By"));
    assert_eq!(sent.sums[&with("OK")], 14.0);
    assert_eq!((sent.bounds.len(), sent.bounds[13]), (14, 4_294_967_296.0));
    let received = &found["grpc.client.attempt.rcvd_total_compressed_message_size"];
    assert_eq!((received.kind, &*received.unit), ("histogram", "By"));
    assert_eq!(received.sums[&with("OK")], 14.0);
    assert_eq!(received.sums[&with("NOT_FOUND")], 0.0);

    let queued = &found["longrunning.attempt.queue_duration"];
    assert_eq!((queued.kind, &*queued.unit), ("histogram", "s"));
    assert_eq!(queued.values.values().sum::<f64>(), 3.0);

    // The experimental ones are off, and a name is never an attribute.
    let experimental =
        |name: &&String| name.starts_with("grpc.subchannel") || name.contains("retr");
    let throttle = "longrunning.retry_throttle";
    let experimental: Vec<_> = found.keys().filter(experimental).collect();
    assert!(
        experimental.iter().all(|name| name.starts_with(throttle)),
        "{experimental:?}"
    );
    let text = format!("{found:?}");
    assert!(!text.contains("operations/"), "{text}");
}

#[tokio::test]
async fn retries_have_the_instruments_of_grfc_a96() {
    let metrics = Metrics::new(true);
    let emulator = server().await;
    let client = metrics.client(&emulator).await;
    client
        .get_operation("operations/1")
        .await
        .expect("it is known");
    let found = metrics.collect();
    // 0 is not reported.
    assert!(!found.contains_key("grpc.client.call.retries"), "{found:?}");

    emulator.fail_next(None, 2, Status::unavailable("later"));
    client
        .get_operation("operations/1")
        .await
        .expect("the third attempt");
    emulator.reset_next(None, 1, h2::Reason::REFUSED_STREAM.into());
    client
        .get_operation("operations/1")
        .await
        .expect("the transparent retry");

    let found = metrics.collect();
    let target = format!("dns:///127.0.0.1:{}", emulator.port());
    let attributes = format!("grpc.method={GET} grpc.target={target}");
    for (name, unit, count, sum) in [
        ("grpc.client.call.retries", "{retry}", 1.0, 2.0),
        (
            "grpc.client.call.transparent_retries",
            "{transparent_retry}",
            1.0,
            1.0,
        ),
    ] {
        let exported = &found[name];
        assert_eq!((exported.kind, &*exported.unit), ("histogram", unit));
        assert_eq!(
            exported.values,
            BTreeMap::from([(attributes.clone(), count)])
        );
        assert_eq!(exported.sums, BTreeMap::from([(attributes.clone(), sum)]));
    }
    let delay = &found["grpc.client.call.retry_delay"];
    assert_eq!((delay.kind, &*delay.unit), ("histogram", "s"));
    // Two delays: 20 and 40 ms, with a jitter of 20 %.
    assert!(delay.sums[&attributes] >= 0.045, "{delay:?}");
    assert_eq!(
        found["grpc.client.attempt.started"].values[&attributes],
        6.0
    );
}

#[tokio::test]
async fn connections_have_the_instruments_of_grfc_a94() {
    let metrics = Metrics::new(true);
    let emulator = server().await;
    let client = metrics.client(&emulator).await;
    let attributes = format!("grpc.target=dns:///127.0.0.1:{}", emulator.port());
    let value = |name: &str| metrics.collect()[name].values[&attributes];
    for (name, kind, unit) in [
        (
            "grpc.subchannel.open_connections",
            "up-down counter",
            "{connection}",
        ),
        (
            "grpc.subchannel.disconnections",
            "counter",
            "{disconnection}",
        ),
        (
            "grpc.subchannel.connection_attempts_succeeded",
            "counter",
            "{attempt}",
        ),
        (
            "grpc.subchannel.connection_attempts_failed",
            "counter",
            "{attempt}",
        ),
    ] {
        let exported = &metrics.collect()[name];
        assert_eq!((exported.kind, &*exported.unit), (kind, unit), "{name}");
    }
    assert_eq!(value("grpc.subchannel.open_connections"), 1.0);
    assert_eq!(value("grpc.subchannel.connection_attempts_succeeded"), 1.0);

    emulator.stop().await;
    until("no connection is open", || {
        value("grpc.subchannel.open_connections") == 0.0
    })
    .await;
    assert_eq!(value("grpc.subchannel.disconnections"), 1.0);
    let failing = client.clone().retry(RetryPolicy::none());
    failing
        .get_operation("operations/1")
        .await
        .expect_err("nothing listens");
    assert!(value("grpc.subchannel.connection_attempts_failed") >= 1.0);
}

#[tokio::test]
async fn totals_do_not_decrease_when_a_client_is_dropped() {
    let metrics = Metrics::new(true);
    let emulator = server().await;
    let attributes = format!("grpc.target=dns:///127.0.0.1:{}", emulator.port());
    let value = |name: &str| metrics.collect()[name].values[&attributes];
    for clients in 1..=3 {
        let client = metrics.client(&emulator).await;
        assert_eq!(value("grpc.subchannel.open_connections"), 1.0);
        let opened = value("grpc.subchannel.connection_attempts_succeeded");
        assert_eq!(opened, f64::from(clients));
        // Another client over the same connections: they count once.
        let other = client.clone().recorder(metrics.recorder.clone());
        assert_eq!(value("grpc.subchannel.open_connections"), 1.0);
        drop((client, other));
        until("the connection is closed", || {
            value("grpc.subchannel.disconnections") == f64::from(clients)
        })
        .await;
        assert_eq!(value("grpc.subchannel.open_connections"), 0.0);
    }
}

#[tokio::test]
async fn the_totals_of_tokens_are_kept_when_their_clients_are_dropped() {
    let metrics = Metrics::new(false);
    let emulator = server().await;
    let attributes = format!("grpc.target=dns:///127.0.0.1:{}", emulator.port());
    for _ in 0..5 {
        // Nothing is collected while the client lives.
        let builder = OperationsClient::builder(emulator.endpoint())
            .credentials(Credentials::custom(Late::default()))
            .recorder(metrics.recorder.clone());
        drop(builder.connect().await.expect("the second fetch"));
    }
    let found = metrics.collect();
    let value = |name: &str| found[name].values[&attributes];
    assert_eq!(value("longrunning.token.fetches_succeeded"), 5.0);
    assert_eq!(value("longrunning.token.fetches_failed"), 5.0);
    assert!(!found.contains_key("longrunning.token.age"), "{found:?}");
}

#[tokio::test]
async fn the_totals_are_exported_after_client_and_recorder_are_dropped() {
    let Metrics {
        exporter,
        provider,
        recorder,
    } = Metrics::new(true);
    let emulator = server().await;
    let builder = OperationsClient::builder(emulator.endpoint());
    let client = builder
        .recorder(recorder)
        .connect()
        .await
        .expect("it listens");
    drop(client);
    emulator
        .wait_until(|emulator| emulator.open_connections() == 0)
        .await;
    provider.force_flush().expect("the exporter is in memory");
    let exported = format!("{:?}", exporter.get_finished_metrics().expect("metrics"));
    assert!(
        exported.contains("grpc.subchannel.disconnections"),
        "{exported}"
    );
}

#[tokio::test]
async fn a_transport_that_has_ended_is_counted_once() {
    let metrics = Metrics::new(true);
    let emulator = server().await;
    let client = metrics.client(&emulator).await;
    let attributes = format!("grpc.target=dns:///127.0.0.1:{}", emulator.port());
    let value = |name: &str| metrics.collect()[name].values[&attributes];
    // The transport is dropped, but not the client.
    let in_process = Emulator::in_process().expect("an emulator");
    let client = client.map_stack(|_| in_process.service());
    until("the connection is closed", || {
        value("grpc.subchannel.disconnections") == 1.0
    })
    .await;
    let again = client.clone().recorder(metrics.recorder.clone());
    assert_eq!(value("grpc.subchannel.connection_attempts_succeeded"), 1.0);
    drop((client, again));
}

#[tokio::test]
async fn a_limit_that_is_none_is_the_largest_number() {
    let metrics = Metrics::new(false);
    let emulator = server().await;
    let client = async || {
        let builder = OperationsClient::builder(emulator.endpoint()).max_queued_calls(usize::MAX);
        let builder = builder.recorder(metrics.recorder.clone());
        builder.connect().await.expect("it listens")
    };
    let clients = (client().await, client().await);
    let attributes = format!("grpc.target=dns:///127.0.0.1:{}", emulator.port());
    let limit = metrics.collect()["longrunning.queue.limit"].values[&attributes];
    assert_eq!(limit, i64::MAX as f64);
    drop(clients);
}

#[tokio::test]
async fn streams_and_the_queue_are_observed() {
    let metrics = Metrics::new(false);
    let emulator = Emulator::builder().max_concurrent_streams(2).start().await;
    let emulator = emulator.expect("a free port");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    emulator.delay(Method::Get, Duration::from_secs(60));
    let builder = OperationsClient::builder(emulator.endpoint()).max_connections(1);
    let builder = builder.recorder(metrics.recorder.clone());
    let client = builder
        .max_queued_calls(50)
        .connect()
        .await
        .expect("it listens");
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let client = client.clone();
        calls.spawn(async move { client.get_operation("operations/1").await });
    }
    let attributes = format!("grpc.target=dns:///127.0.0.1:{}", emulator.port());
    let value = |name: &str| metrics.collect()[name].values[&attributes];
    until("3 calls are queued", || {
        value("longrunning.queue.size") == 3.0
    })
    .await;
    assert_eq!(value("longrunning.queue.limit"), 50.0);
    assert!(value("longrunning.queue.age") > 0.0);
    assert_eq!(value("longrunning.stream.in_use"), 2.0);
    assert_eq!(value("longrunning.stream.limit"), 2.0);
    assert_eq!(value("longrunning.connection.limit"), 1.0);
    assert_eq!(value("longrunning.queue.blocked_callers"), 0.0);
    assert_eq!(value("longrunning.stream.resets"), 0.0);
    assert_eq!(value("longrunning.keepalive.timeouts"), 0.0);
    calls.shutdown().await;
    until("2 streams are reset", || {
        value("longrunning.stream.resets") == 2.0
    })
    .await;
    assert_eq!(value("longrunning.queue.size"), 0.0);
    let expected = [
        ("longrunning.queue.size", "up-down counter", "{call}"),
        ("longrunning.queue.limit", "up-down counter", "{call}"),
        (
            "longrunning.queue.blocked_callers",
            "up-down counter",
            "{caller}",
        ),
        (
            "longrunning.connection.limit",
            "up-down counter",
            "{connection}",
        ),
        ("longrunning.queue.age", "gauge", "s"),
        ("longrunning.stream.in_use", "up-down counter", "{stream}"),
        ("longrunning.stream.limit", "up-down counter", "{stream}"),
        ("longrunning.stream.resets", "counter", "{reset}"),
        ("longrunning.keepalive.timeouts", "counter", "{timeout}"),
    ];
    let found = metrics.collect();
    for (name, kind, unit) in expected {
        assert_eq!(
            (found[name].kind, &*found[name].unit),
            (kind, unit),
            "{name}"
        );
    }
}

/// A source whose tokens last 10 minutes, and whose first fetch fails.
#[derive(Default)]
struct Late(std::sync::atomic::AtomicBool);

#[tonic::async_trait]
impl CallCredentials for Late {
    async fn token(&self) -> Result<Token, Status> {
        if !self.0.swap(true, std::sync::atomic::Ordering::SeqCst) {
            return Err(Status::unavailable("not yet"));
        }
        let expiry = std::time::Instant::now() + Duration::from_secs(600);
        Ok(Token::bearer("PLANTED-SECRET")?.expires_at(expiry))
    }
}

#[tokio::test]
async fn the_token_and_the_throttle_are_observed() {
    let metrics = Metrics::new(false);
    let emulator = server().await;
    emulator.fail_next(None, 1, Status::unavailable("later"));
    let policy = RetryPolicy::default().initial_backoff(Duration::from_millis(1));
    let builder = OperationsClient::builder(emulator.endpoint())
        .credentials(Credentials::custom(Late::default()))
        .retry(policy.throttle(10, 0.5))
        .recorder(metrics.recorder.clone());
    let client = builder.connect().await.expect("the second fetch");
    client
        .get_operation("operations/1")
        .await
        .expect("the retry");
    let auth = client.auth_interceptor().expect("credentials").clone();
    auth.mark_rejected();
    until("the token is rejected", || {
        auth.status().tokens_rejected == 1
    })
    .await;

    let found = metrics.collect();
    let attributes = format!("grpc.target=dns:///127.0.0.1:{}", emulator.port());
    let expected = [
        (
            "longrunning.retry_throttle.tokens",
            "gauge",
            "{token}",
            9.5..=9.5,
        ),
        (
            "longrunning.retry_throttle.limit",
            "gauge",
            "{token}",
            10.0..=10.0,
        ),
        ("longrunning.token.valid", "gauge", "{token}", 1.0..=1.0),
        (
            "longrunning.retry_throttle.suppressed_retries",
            "counter",
            "{retry}",
            0.0..=0.0,
        ),
        ("longrunning.token.age", "gauge", "s", 0.0..=5.0),
        (
            "longrunning.token.remaining_lifetime",
            "gauge",
            "s",
            590.0..=600.0,
        ),
        (
            "longrunning.token.fetches_succeeded",
            "counter",
            "{fetch}",
            1.0..=1.0,
        ),
        (
            "longrunning.token.fetches_failed",
            "counter",
            "{fetch}",
            1.0..=1.0,
        ),
        (
            "longrunning.token.rejections",
            "counter",
            "{rejection}",
            1.0..=1.0,
        ),
    ];
    for (name, kind, unit, range) in expected {
        let exported = &found[name];
        assert_eq!((exported.kind, &*exported.unit), (kind, unit), "{name}");
        let value = exported.values[&attributes];
        assert!(range.contains(&value), "{name}: {value}");
    }
    let text = format!("{found:?} {:?} {:?}", client.stats(), metrics.recorder);
    assert!(!text.contains("PLANTED-SECRET"), "{text}");
}

#[tokio::test]
async fn polls_and_outcomes_are_counted() {
    let metrics = Metrics::new(false);
    let emulator = server().await;
    emulator
        .start_operation("operations/2")
        .expect("a new name");
    emulator.unimplement(Method::Wait);
    let client = metrics.client(&emulator).await;
    emulator
        .complete_without_result("operations/1")
        .expect("it is running");
    client
        .poller("operations/1")
        .until_done()
        .await
        .expect("it is done");
    client
        .cancel_operation("operations/2")
        .await
        .expect("it is running");
    client
        .poller("operations/2")
        .until_done()
        .await
        .expect("it is done");

    let found = metrics.collect();
    let target = format!("grpc.target=dns:///127.0.0.1:{}", emulator.port());
    let polls = &found["longrunning.polls"];
    assert_eq!((polls.kind, &*polls.unit), ("counter", "{poll}"));
    let expected = [
        (
            format!("grpc.status=OK {target} longrunning.poll.method=get"),
            2.0,
        ),
        (
            format!("grpc.status=UNIMPLEMENTED {target} longrunning.poll.method=wait"),
            1.0,
        ),
    ];
    assert_eq!(polls.values, BTreeMap::from(expected));
    let done = &found["longrunning.operation.done"];
    assert_eq!((done.kind, &*done.unit), ("counter", "{operation}"));
    let expected = ["cancelled", "done_without_result"]
        .map(|outcome| (format!("{target} longrunning.outcome={outcome}"), 1.0));
    assert_eq!(done.values, BTreeMap::from(expected));
    let wait = &found["longrunning.operation.wait_duration"];
    assert_eq!((wait.kind, &*wait.unit), ("histogram", "s"));
    assert_eq!(wait.values, done.values);
}

#[tokio::test]
async fn the_guide_lists_every_instrument() {
    let guide = include_str!("../src/guide/observability.md");
    let metrics = Metrics::new(true);
    let emulator = server().await;
    emulator.fail_next(None, 1, Status::unavailable("later"));
    let policy = RetryPolicy::default().initial_backoff(Duration::from_millis(1));
    let builder = OperationsClient::builder(emulator.endpoint())
        .credentials(Credentials::custom(Late::default()))
        .retry(policy.throttle(10, 0.5))
        .recorder(metrics.recorder.clone());
    let client = builder.connect().await.expect("the second fetch");
    client
        .get_operation("operations/1")
        .await
        .expect("the retry");
    emulator.reset_next(None, 1, h2::Reason::REFUSED_STREAM.into());
    emulator
        .complete_without_result("operations/1")
        .expect("it is running");
    client
        .poller("operations/1")
        .until_done()
        .await
        .expect("it is done");

    let found: BTreeSet<String> = metrics.collect().into_keys().collect();
    // The rows of the tables of instruments begin with a name and a type.
    let rows = guide.lines().filter_map(|line| line.strip_prefix("| `"));
    let listed = rows.filter_map(|row| {
        let (name, rest) = row.split_once("` | ")?;
        let kinds = ["counter |", "up-down counter |", "gauge |", "histogram |"];
        kinds
            .iter()
            .any(|kind| rest.starts_with(kind))
            .then(|| name.to_owned())
    });
    assert_eq!(listed.collect::<BTreeSet<_>>(), found);
}

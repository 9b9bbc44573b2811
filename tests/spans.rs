//! The spans of calls, attempts and waits, as OpenTelemetry exports them, and the trace context that servers
//! receive.

mod support;

use std::{sync::Arc, time::Duration};

use longrunning::{
    Credentials, OperationsClient, PollPolicy, Recorder, RetryPolicy, Transport,
    emulator::{Emulator, Method},
};
use opentelemetry::{
    Context, Value,
    propagation::{Extractor, Injector, TextMapPropagator, text_map_propagator::FieldIter},
    trace::{SpanId, SpanKind, Status as SpanStatus, TracerProvider as _},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{InMemorySpanExporter, SdkTracerProvider, SpanData},
};
use tonic::{
    Code, IntoRequest, Request, Status, metadata::KeyAndValueRef,
    service::interceptor::InterceptedService,
};
use tracing::{Instrument as _, Level, subscriber::DefaultGuard};
use tracing_subscriber::{
    Layer as _,
    filter::{Targets, filter_fn},
    layer::SubscriberExt as _,
};

const CANCEL: &str = "google.longrunning.Operations/CancelOperation";
const GET: &str = "google.longrunning.Operations/GetOperation";
const WAIT: &str = "google.longrunning.Operations/WaitOperation";

/// The spans of this thread.
struct Spans {
    exporter: InMemorySpanExporter,
    provider: SdkTracerProvider,
    _guard: DefaultGuard,
}

impl Spans {
    fn listen(level: Level) -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let ours = Targets::new().with_target("longrunning", level);
        let subscriber = tracing_subscriber::registry().with(layer.with_filter(ours));
        Self {
            exporter,
            provider,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    /// Returns the spans that have ended, in the order of their start.
    fn ended(&self) -> Vec<SpanData> {
        self.provider.force_flush().expect("a simple exporter");
        let mut spans = self.exporter.get_finished_spans().expect("spans");
        spans.sort_by_key(|span| span.start_time);
        spans
    }

    /// Returns the spans of this name and kind.
    fn named(&self, name: &str, kind: SpanKind) -> Vec<SpanData> {
        let mut spans = self.ended();
        spans.retain(|span| span.name == name && span.span_kind == kind);
        spans
    }

    fn only(&self, name: &str, kind: SpanKind) -> SpanData {
        let mut spans = self.named(name, kind);
        assert_eq!(spans.len(), 1, "{spans:?}");
        spans.remove(0)
    }
}

fn attribute(span: &SpanData, key: &str) -> Option<Value> {
    let found = span.attributes.iter().find(|it| it.key.as_str() == key);
    found.map(|attribute| attribute.value.clone())
}

/// Returns an attribute that is a string.
fn text(span: &SpanData, key: &str) -> Option<String> {
    attribute(span, key).map(|value| value.as_str().into_owned())
}

fn id(span: &SpanData) -> SpanId {
    span.span_context.span_id()
}

async fn server() -> Emulator {
    let emulator = Emulator::start().await.expect("a free port");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    emulator
}

async fn client(emulator: &Emulator) -> OperationsClient<Transport> {
    let policy = RetryPolicy::default().initial_backoff(Duration::from_millis(20));
    let builder = OperationsClient::builder(emulator.endpoint()).retry(policy);
    builder.connect().await.expect("it listens")
}

/// A client with one connection to a server that allows one stream on it.
async fn with_one_stream() -> (Emulator, OperationsClient<Transport>) {
    let emulator = Emulator::builder().max_concurrent_streams(1).start().await;
    let emulator = emulator.expect("a free port");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    let builder = OperationsClient::builder(emulator.endpoint()).max_connections(1);
    let client = builder.connect().await.expect("it listens");
    (emulator, client)
}

#[tokio::test]
async fn a_call_has_an_internal_span_and_its_attempt_a_client_span() {
    let spans = Spans::listen(Level::INFO);
    let emulator = server().await;
    let client = client(&emulator).await;
    let call = client.cancel_operation("operations/1");
    let request = tracing::info_span!(target: "longrunning", "request");
    call.instrument(request).await.expect("it is running");

    let request = spans.only("request", SpanKind::Internal);
    let call = spans.only(CANCEL, SpanKind::Internal);
    let attempt = spans.only(CANCEL, SpanKind::Client);
    assert_eq!(call.parent_span_id, id(&request));
    assert_eq!(attempt.parent_span_id, id(&call));
    let port = Value::I64(i64::from(emulator.port()));
    for span in [&call, &attempt] {
        assert_eq!(span.status, SpanStatus::Unset);
        assert_eq!(text(span, "rpc.system.name").as_deref(), Some("grpc"));
        assert_eq!(text(span, "rpc.method").as_deref(), Some(CANCEL));
        assert_eq!(
            text(span, "rpc.response.status_code").as_deref(),
            Some("OK")
        );
        assert_eq!(text(span, "server.address").as_deref(), Some("127.0.0.1"));
        assert_eq!(attribute(span, "server.port"), Some(port.clone()));
        for absent in ["error.type", "longrunning.origin", "longrunning.dropped"] {
            assert_eq!(attribute(span, absent), None, "{absent}");
        }
    }
    let operation = text(&call, "gcp.resource.destination.id");
    assert_eq!(operation.as_deref(), Some("operations/1"));
    assert_eq!(
        attribute(&call, "longrunning.attempt_count"),
        Some(Value::I64(1))
    );
    assert_eq!(attribute(&attempt, "gcp.grpc.resend_count"), None);
    let transparent = attribute(&attempt, "longrunning.transparent_retry");
    assert_eq!(transparent, Some(Value::Bool(false)));
    let connection = client.stats().transport.expect("a transport").connections[0].id;
    let connection = Value::I64(connection.try_into().expect("small"));
    assert_eq!(
        attribute(&attempt, "longrunning.connection.id"),
        Some(connection)
    );
    assert_eq!(
        text(&attempt, "network.peer.address").as_deref(),
        Some("127.0.0.1")
    );
    assert_eq!(attribute(&attempt, "network.peer.port"), Some(port));
}

#[tokio::test]
async fn each_attempt_of_a_retried_call_has_a_span() {
    let spans = Spans::listen(Level::INFO);
    let emulator = server().await;
    emulator.fail_next(None, 1, Status::unavailable("later"));
    let client = client(&emulator).await;
    client
        .get_operation("operations/1")
        .await
        .expect("the retry");

    let call = spans.only(GET, SpanKind::Internal);
    let attempts = spans.named(GET, SpanKind::Client);
    let [failed, retry] = &attempts[..] else {
        panic!("two attempts: {attempts:?}");
    };
    assert_eq!(call.status, SpanStatus::Unset);
    assert_eq!(
        attribute(&call, "longrunning.attempt_count"),
        Some(Value::I64(2))
    );
    assert_eq!(failed.status, SpanStatus::error("later"));
    for (key, value) in [
        ("rpc.response.status_code", "UNAVAILABLE"),
        ("error.type", "UNAVAILABLE"),
        ("longrunning.origin", "server"),
        ("longrunning.delivery", "answered"),
    ] {
        assert_eq!(text(failed, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(attribute(failed, "gcp.grpc.resend_count"), None);
    assert_eq!(
        attribute(retry, "gcp.grpc.resend_count"),
        Some(Value::I64(1))
    );
    assert_eq!(
        text(retry, "rpc.response.status_code").as_deref(),
        Some("OK")
    );
    let transparent = attribute(retry, "longrunning.transparent_retry");
    assert_eq!(transparent, Some(Value::Bool(false)));
    // The backoff is in neither of them.
    let gap = retry.start_time.duration_since(failed.end_time);
    assert!(
        gap.expect("in order") >= Duration::from_millis(15),
        "{attempts:?}"
    );
}

#[tokio::test]
async fn a_transparent_retry_has_a_separate_span() {
    let spans = Spans::listen(Level::INFO);
    let emulator = server().await;
    emulator.reset_next(None, 1, h2::Reason::REFUSED_STREAM.into());
    let client = client(&emulator).await;
    client
        .get_operation("operations/1")
        .await
        .expect("the retry");

    let call = spans.only(GET, SpanKind::Internal);
    let attempts = spans.named(GET, SpanKind::Client);
    let [refused, retry] = &attempts[..] else {
        panic!("two attempts: {attempts:?}");
    };
    assert_eq!(
        attribute(&call, "longrunning.attempt_count"),
        Some(Value::I64(2))
    );
    for (span, is_transparent) in [(refused, false), (retry, true)] {
        assert_eq!(span.parent_span_id, id(&call));
        let transparent = attribute(span, "longrunning.transparent_retry");
        assert_eq!(transparent, Some(Value::Bool(is_transparent)));
        assert!(attribute(span, "longrunning.connection.id").is_some());
    }
    assert_eq!(text(refused, "error.type").as_deref(), Some("UNAVAILABLE"));
    assert_eq!(
        text(refused, "longrunning.delivery").as_deref(),
        Some("not_sent")
    );
    assert_eq!(
        attribute(retry, "gcp.grpc.resend_count"),
        Some(Value::I64(1))
    );
    assert_eq!(
        text(retry, "rpc.response.status_code").as_deref(),
        Some("OK")
    );
    assert!(retry.start_time >= refused.end_time);
}

#[tokio::test]
async fn a_call_that_fails_records_its_status() {
    let spans = Spans::listen(Level::INFO);
    let emulator = server().await;
    let client = client(&emulator).await;
    client
        .cancel_operation("operations/9")
        .await
        .expect_err("unknown");
    client.cancel_operation("").await.expect_err("no name");

    let calls = spans.named(CANCEL, SpanKind::Internal);
    let [unknown, empty] = &calls[..] else {
        panic!("two calls: {calls:?}");
    };
    let expected = [
        (unknown, "NOT_FOUND", "server", "answered", 1),
        (empty, "INVALID_ARGUMENT", "client", "not_sent", 0),
    ];
    for (span, code, origin, delivery, attempts) in expected {
        assert!(matches!(span.status, SpanStatus::Error { .. }));
        assert_eq!(
            text(span, "rpc.response.status_code").as_deref(),
            Some(code)
        );
        assert_eq!(text(span, "error.type").as_deref(), Some(code));
        assert_eq!(text(span, "longrunning.origin").as_deref(), Some(origin));
        assert_eq!(
            text(span, "longrunning.delivery").as_deref(),
            Some(delivery)
        );
        assert_eq!(
            attribute(span, "longrunning.attempt_count"),
            Some(Value::I64(attempts))
        );
    }
    assert_eq!(spans.named(CANCEL, SpanKind::Client).len(), 1);
}

#[tokio::test]
async fn a_dropped_call_records_that_it_was_dropped() {
    let spans = Spans::listen(Level::INFO);
    let emulator = server().await;
    emulator.delay(Method::Get, Duration::from_secs(60));
    let client = client(&emulator).await;
    let get = client.get_operation("operations/1");
    let received = emulator.wait_until(|emulator| emulator.in_flight() == 1);
    tokio::select! {
        _ = get => panic!("the answer takes a minute"),
        () = received => {}
    }

    let call = spans.only(GET, SpanKind::Internal);
    let attempt = spans.only(GET, SpanKind::Client);
    for span in [&call, &attempt] {
        assert_eq!(
            attribute(span, "longrunning.dropped"),
            Some(Value::Bool(true))
        );
        let code = text(span, "rpc.response.status_code");
        assert_eq!(code.as_deref(), Some("CANCELLED"));
        assert_eq!(text(span, "error.type").as_deref(), Some("CANCELLED"));
    }
    assert!(attribute(&attempt, "longrunning.connection.id").is_some());
}

#[tokio::test]
async fn an_attempt_records_how_long_it_was_queued() {
    let spans = Spans::listen(Level::INFO);
    let (emulator, client) = with_one_stream().await;
    emulator.delay(Method::Get, Duration::from_millis(300));
    let (first, second) = tokio::join!(
        client.get_operation("operations/1"),
        client.get_operation("operations/1"),
    );
    first.expect("it is known");
    second.expect("it is known");

    let attempts = spans.named(GET, SpanKind::Client);
    let queued =
        attempts.iter().map(
            |attempt| match attribute(attempt, "longrunning.queue.duration") {
                Some(Value::F64(seconds)) => seconds,
                other => panic!("{other:?}"),
            },
        );
    let mut queued: Vec<_> = queued.collect();
    queued.sort_by(f64::total_cmp);
    assert_eq!(queued.len(), 2);
    assert!(queued[0] < 0.25 && queued[1] > 0.25, "{queued:?}");
}

#[tokio::test]
async fn a_wait_has_a_span_with_its_polls_as_children() {
    let spans = Spans::listen(Level::INFO);
    let emulator = server().await;
    let policy = PollPolicy::default().initial_delay(Duration::from_millis(10));
    emulator.fail_next(Method::Wait, 1, Status::unavailable("later"));
    emulator
        .complete_after(
            "operations/1",
            &prost_types::Duration::default(),
            Duration::from_millis(100),
        )
        .expect("it is running");
    let client = client(&emulator).await;
    let mut poller = client.poller("operations/1").policy(policy);
    let request = tracing::info_span!(target: "longrunning", "request");
    poller
        .until_done()
        .instrument(request)
        .await
        .expect("it completes");

    let request = spans.only("request", SpanKind::Internal);
    let wait = spans.only("longrunning.wait", SpanKind::Internal);
    assert_eq!(wait.parent_span_id, id(&request));
    assert_eq!(wait.status, SpanStatus::Unset);
    let operation = text(&wait, "gcp.resource.destination.id");
    assert_eq!(operation.as_deref(), Some("operations/1"));
    assert_eq!(
        text(&wait, "longrunning.outcome").as_deref(),
        Some("succeeded")
    );
    assert_eq!(
        attribute(&wait, "gcp.longrunning.done"),
        Some(Value::Bool(true))
    );
    let mut polls = spans.named(GET, SpanKind::Internal);
    let waits = spans.named(WAIT, SpanKind::Internal);
    assert_eq!((polls.len(), waits.len() >= 2), (1, true), "{waits:?}");
    polls.extend(waits);
    let count = Value::I64(polls.len().try_into().expect("few"));
    assert_eq!(attribute(&wait, "longrunning.poll_count"), Some(count));
    for poll in polls {
        assert_eq!(poll.parent_span_id, id(&wait));
    }
}

#[tokio::test]
async fn a_wait_records_how_it_ended() {
    let spans = Spans::listen(Level::INFO);
    let emulator = server().await;
    for name in ["cancelled", "failed", "dropped"] {
        emulator
            .start_operation(format!("operations/{name}"))
            .expect("a new name");
    }
    let cancelled = Status::cancelled("on request");
    emulator
        .fail("operations/cancelled", cancelled)
        .expect("it is running");
    let failed = Status::aborted("a conflict");
    emulator
        .fail("operations/failed", failed)
        .expect("it is running");
    let client = client(&emulator).await;
    for name in ["operations/cancelled", "operations/failed"] {
        client.poller(name).until_done().await.expect("it is done");
    }
    client
        .poller("operations/9")
        .until_done()
        .await
        .expect_err("unknown");
    let mut poller = client.poller("operations/dropped");
    let received = emulator.wait_until(|emulator| emulator.in_flight() == 1);
    tokio::select! {
        _ = poller.until_done() => panic!("it is running"),
        () = received => {}
    }
    drop(poller);
    // The task of the poll is aborted.
    emulator
        .wait_until(|emulator| emulator.in_flight() == 0)
        .await;

    let waits = spans.named("longrunning.wait", SpanKind::Internal);
    let outcomes: Vec<_> = waits
        .iter()
        .map(|it| text(it, "longrunning.outcome"))
        .collect();
    let errors: Vec<_> = waits.iter().map(|it| text(it, "error.type")).collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(outcomes, [some("cancelled"), some("failed"), None, None]);
    assert_eq!(errors, [None, some("ABORTED"), some("NOT_FOUND"), None]);
    assert_eq!(waits[1].status, SpanStatus::error("a conflict"));
    let codes = waits
        .iter()
        .map(|it| attribute(it, "gcp.longrunning.status_code"));
    let expected = [Some(Value::I64(1)), Some(Value::I64(10)), None, None];
    assert_eq!(codes.collect::<Vec<_>>(), expected);
    let dropped: Vec<_> = waits
        .iter()
        .map(|it| attribute(it, "longrunning.dropped"))
        .collect();
    assert_eq!(dropped, [None, None, None, Some(Value::Bool(true))]);
}

/// Checks that each span lies within its parent, if that is one of these.
fn assert_nested(spans: &[SpanData]) {
    assert!(!spans.is_empty());
    for span in spans {
        let parent = spans.iter().find(|it| id(it) == span.parent_span_id);
        if let Some(parent) = parent {
            assert!(parent.start_time <= span.start_time, "{parent:?} {span:?}");
            assert!(parent.end_time >= span.end_time, "{parent:?} {span:?}");
        }
    }
}

#[tokio::test]
async fn a_span_ends_after_its_children() {
    let spans = Spans::listen(Level::INFO);
    let emulator = server().await;
    emulator.delay(None, Duration::from_millis(30));
    emulator.fail_next(None, 1, Status::unavailable("later"));
    let client = client(&emulator).await;
    client
        .get_operation("operations/1")
        .await
        .expect("the retry");
    client
        .get_operation("operations/9")
        .await
        .expect_err("unknown");
    emulator.reset_next(None, 1, h2::Reason::REFUSED_STREAM.into());
    client
        .get_operation("operations/1")
        .await
        .expect("the transparent retry");
    let long = Duration::from_millis(25);
    for call in spans.named(GET, SpanKind::Internal) {
        let took = call.end_time.duration_since(call.start_time);
        assert!(took.expect("in order") >= long, "{call:?}");
    }

    // Futures that are dropped.
    emulator.delay(None, Duration::from_secs(60));
    let short = Duration::from_millis(60);
    let get = client.get_operation("operations/1");
    tokio::time::timeout(short, get)
        .await
        .expect_err("it takes a minute");
    let mut poller = client.poller("operations/1");
    let wait = poller.until_done();
    tokio::time::timeout(short, wait)
        .await
        .expect_err("it takes a minute");
    drop(poller);
    emulator
        .wait_until(|emulator| emulator.in_flight() == 0)
        .await;

    let ended = spans.ended();
    assert_nested(&ended);
    let dropped = |span: &&SpanData| attribute(span, "longrunning.dropped").is_some();
    let dropped: Vec<_> = ended.iter().filter(dropped).collect();
    // Two calls with an attempt each, and a wait.
    assert_eq!(dropped.len(), 5, "{dropped:?}");
    for span in dropped {
        let took = span.end_time.duration_since(span.start_time);
        assert!(took.expect("in order") >= long, "{span:?}");
    }
}

#[tokio::test]
async fn a_poller_that_pauses_does_not_keep_a_span_of_its_caller_open() {
    let spans = Spans::listen(Level::INFO);
    let emulator = server().await;
    let policy = PollPolicy::default().wait_timeout(Duration::ZERO);
    let client = client(&emulator).await;
    let mut poller = client.poller("operations/1").policy(policy);
    poller
        .next()
        .await
        .expect("a state")
        .expect("it is running");
    let request = tracing::info_span!(target: "longrunning", "request");
    let next = tokio::time::timeout(Duration::from_millis(20), poller.next());
    next.instrument(request)
        .await
        .expect_err("the pause is longer");
    spans.only("request", SpanKind::Internal);
}

#[tokio::test]
async fn an_attempt_has_a_span_only_if_its_call_has_one() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone());
    let provider = provider.build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let attempts = filter_fn(|metadata| metadata.is_span() && metadata.name() == "attempt");
    let subscriber = tracing_subscriber::registry().with(layer).with(attempts);
    let _guard = tracing::subscriber::set_default(subscriber);
    let emulator = server().await;
    let client = client(&emulator).await;
    let recorded = client
        .clone()
        .recorder(Arc::new(Vec::<Arc<dyn Recorder>>::new()));
    client
        .get_operation("operations/1")
        .await
        .expect("it is known");
    recorded
        .get_operation("operations/1")
        .await
        .expect("it is known");
    let found = exporter.get_finished_spans().expect("spans");
    assert!(found.is_empty(), "{found:?}");
}

#[tokio::test]
async fn an_attempt_that_was_never_sent_records_how_long_it_was_queued() {
    let spans = Spans::listen(Level::INFO);
    let (emulator, client) = with_one_stream().await;
    emulator.delay(Method::Get, Duration::from_secs(60));
    let first = client.clone();
    let first = tokio::spawn(async move { first.get_operation("operations/1").await });
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;
    let hurried = client.timeout(Duration::from_millis(100));
    let status = hurried.get_operation("operations/1").await;
    assert_eq!(
        status.expect_err("no stream").code(),
        Code::DeadlineExceeded
    );

    let attempt = spans.only(GET, SpanKind::Client);
    let queued = attribute(&attempt, "longrunning.queue.duration");
    assert!(
        matches!(queued, Some(Value::F64(queued)) if queued >= 0.09),
        "{queued:?}"
    );
    assert_eq!(attribute(&attempt, "longrunning.connection.id"), None);
    assert_eq!(
        text(&attempt, "longrunning.delivery").as_deref(),
        Some("not_sent")
    );
    first.abort();
}

#[tokio::test]
async fn a_client_over_a_custom_stack_has_no_server_address() {
    let spans = Spans::listen(Level::INFO);
    let emulator = Emulator::in_process().expect("an emulator");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    let client = OperationsClient::new(emulator.service());
    client
        .cancel_operation("operations/1")
        .await
        .expect("it is running");
    for kind in [SpanKind::Internal, SpanKind::Client] {
        let span = spans.only(CANCEL, kind);
        for absent in ["server.address", "server.port", "longrunning.connection.id"] {
            assert_eq!(attribute(&span, absent), None, "{absent}");
        }
    }
}

#[tokio::test]
async fn spans_are_disabled_if_the_level_is_warn() {
    let spans = Spans::listen(Level::WARN);
    let emulator = server().await;
    let client = client(&emulator).await;
    client
        .cancel_operation("operations/1")
        .await
        .expect("it is running");
    client
        .poller("operations/1")
        .until_done()
        .await
        .expect("cancelled");
    assert!(spans.ended().is_empty());
}

fn traceparents(emulator: &Emulator) -> Vec<Option<String>> {
    let calls = emulator.calls();
    let header = calls.iter().map(|call| {
        let value = call.metadata().get("traceparent")?;
        Some(value.to_str().expect("ASCII").to_owned())
    });
    header.collect()
}

#[tokio::test]
async fn each_attempt_sends_its_own_trace_context() {
    let spans = Spans::listen(Level::INFO);
    let emulator = server().await;
    emulator.fail_next(None, 1, Status::unavailable("later"));
    let client = client(&emulator)
        .await
        .propagator(TraceContextPropagator::new());
    client
        .get_operation("operations/1")
        .await
        .expect("the retry");

    let attempts = spans.named(GET, SpanKind::Client);
    let expected: Vec<_> = attempts
        .iter()
        .map(|attempt| {
            let (trace, span) = (attempt.span_context.trace_id(), id(attempt));
            Some(format!("00-{trace}-{span}-01"))
        })
        .collect();
    assert_eq!(expected.len(), 2);
    assert_eq!(traceparents(&emulator), expected);
}

#[tokio::test]
async fn hpack_does_not_index_the_trace_context() {
    let _spans = Spans::listen(Level::INFO);
    let emulator = Emulator::in_process().expect("an emulator");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    let check = |request: Request<()>| match request.metadata().get("traceparent") {
        Some(value) if value.is_sensitive() => Ok(request),
        other => Err(Status::internal(format!("{other:?}"))),
    };
    let client = OperationsClient::new(InterceptedService::new(emulator.service(), check));
    let client = client.propagator(TraceContextPropagator::new());
    client
        .get_operation("operations/1")
        .await
        .expect("a sensitive header");
}

#[tokio::test]
async fn a_traceparent_header_set_by_the_caller_is_kept() {
    let _spans = Spans::listen(Level::INFO);
    let emulator = server().await;
    let own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let builder = OperationsClient::builder(emulator.endpoint());
    let builder = builder.propagator(TraceContextPropagator::new());
    let client = builder.connect().await.expect("it listens");
    let mut request: Request<longrunning::proto::GetOperationRequest> =
        "operations/1".into_request();
    request
        .metadata_mut()
        .insert("traceparent", own.parse().expect("ASCII"));
    client.get_operation(request).await.expect("it is known");
    let header = emulator.calls()[0].metadata().get("traceparent").cloned();
    assert_eq!(header.expect("a header"), own);
}

/// A propagator that sets headers which the client also sets.
#[derive(Debug)]
struct ConflictingPropagator;

impl TextMapPropagator for ConflictingPropagator {
    fn inject_context(&self, _: &Context, injector: &mut dyn Injector) {
        for name in [
            "x-goog-api-client",
            "x-goog-request-params",
            "x-goog-user-project",
            "authorization",
            "te",
            "x-own",
        ] {
            injector.set(name, "conflicting".to_owned());
        }
    }

    fn extract_with_context(&self, context: &Context, _: &dyn Extractor) -> Context {
        context.clone()
    }

    fn fields(&self) -> FieldIter<'_> {
        FieldIter::new(&[])
    }
}

#[tokio::test]
async fn a_propagator_does_not_replace_the_clients_headers() {
    let emulator = server().await;
    let credentials = Credentials::bearer_token("token").quota_project("project");
    let auth = credentials.interceptor().await.expect("it is fixed");
    let client = client(&emulator).await.auth(auth);
    let client = client.propagator(ConflictingPropagator);
    client
        .get_operation("operations/1")
        .await
        .expect("it is known");
    let call = &emulator.calls()[0];
    let conflicting = call.metadata().iter().filter_map(|header| match header {
        KeyAndValueRef::Ascii(name, value) if *value == "conflicting" => Some(name.as_str()),
        _ => None,
    });
    assert_eq!(conflicting.collect::<Vec<_>>(), ["x-own"]);
}

#[tokio::test]
async fn nothing_is_propagated_without_a_propagator() {
    let _spans = Spans::listen(Level::INFO);
    let emulator = server().await;
    let client = client(&emulator).await;
    client
        .get_operation("operations/1")
        .await
        .expect("it is known");
    assert_eq!(traceparents(&emulator), [None]);
}

#[tokio::test]
async fn a_transport_failure_has_the_origin_transport() {
    let spans = Spans::listen(Level::INFO);
    let listener = support::wire::Listener::start(|_, io| async move {
        let mut peer = support::wire::Peer::accept(io).await?;
        peer.call().await?;
        Ok(()) // closes the connection
    });
    let builder = OperationsClient::builder(listener.url()).retry(RetryPolicy::none());
    let client = builder.connect().await.expect("it listens");
    let status = client.get_operation("operations/1").await;
    assert_eq!(status.expect_err("closed").code(), Code::Unavailable);
    let call = spans.only(GET, SpanKind::Internal);
    assert_eq!(
        text(&call, "longrunning.origin").as_deref(),
        Some("transport")
    );
    assert_eq!(
        text(&call, "longrunning.delivery").as_deref(),
        Some("maybe_sent")
    );
}

//! Cancelling many operations: reports, limits, retries, deadlines, and how the stream ends.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use longrunning::{
    CallStatusExt as _, CancelOperations, CancelReport, Delivery, OperationsClient, Origin,
    RetryPolicy,
    emulator::{CallOutcome, CancelBehavior, Emulator, EmulatorService, Method},
    proto::{CancelOperationRequest, operations_server::OperationsServer, rpc},
};
use tokio::{
    runtime::Runtime,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Code, Request, Status,
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

async fn emulator() -> Emulator {
    Emulator::start().await.expect("a free port")
}

fn client(emulator: &Emulator) -> OperationsClient<Channel> {
    let endpoint = Endpoint::from_shared(emulator.endpoint()).expect("a URL");
    OperationsClient::new(endpoint.connect_lazy())
}

/// An in-process emulator with one operation, for tests with paused time.
fn in_process() -> (
    Emulator,
    OperationsClient<OperationsServer<EmulatorService>>,
) {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    let client = OperationsClient::new(emulator.service());
    (emulator, client)
}

/// Starts the given number of operations. Returns a stream of their names, and a counter of the names that were taken
/// from it.
fn started(
    emulator: &Emulator,
    operations: usize,
) -> (
    impl Stream<Item = String> + Unpin + 'static,
    Arc<AtomicUsize>,
) {
    let names: Vec<String> = (0..operations).map(|n| format!("operations/{n}")).collect();
    for name in &names {
        emulator.start_operation(name).expect("a new name");
    }
    let taken = Arc::new(AtomicUsize::new(0));
    let names = tokio_stream::iter(names).map({
        let taken = Arc::clone(&taken);
        move |name| {
            taken.fetch_add(1, SeqCst);
            name
        }
    });
    (names, taken)
}

/// Cancels one operation, and returns the report.
async fn report_of<S: longrunning::GrpcStack + Sync>(
    client: &OperationsClient<S>,
    name: &str,
) -> CancelReport {
    let mut reports = client.cancel_operations(tokio_stream::once(name));
    let report = reports.next().await.expect("a report");
    assert!(reports.next().await.is_none());
    report
}

fn code(report: &CancelReport) -> Code {
    let result = report.result.as_ref();
    result.err().map_or(Code::Ok, Status::code)
}

/// A status with a `RetryInfo`.
fn with_retry_info(code: rpc::Code, delay: Duration) -> Status {
    let info = rpc::RetryInfo {
        retry_delay: Some(delay.try_into().expect("a short delay")),
    };
    Status::from(rpc::Status {
        code: code.into(),
        message: "later".to_owned(),
        details: vec![prost_types::Any::from_msg(&info).expect("it encodes")],
    })
}

#[tokio::test]
async fn each_name_has_a_report_and_a_failure_does_not_stop_the_others() {
    let emulator = emulator().await;
    let (names, _) = started(&emulator, 50);
    emulator.remove("operations/7").expect("on record");
    let refusal = Status::failed_precondition("not cancellable");
    emulator.on_cancel_of("operations/11", CancelBehavior::Refuse(refusal));
    let before = SystemTime::now();
    let reports = client(&emulator).cancel_operations(names).max_in_flight(4);
    let reports: Vec<CancelReport> = reports.collect().await;
    let after = SystemTime::now();
    assert_eq!(reports.len(), 50);
    let reports: BTreeMap<_, _> = reports.iter().map(|it| (it.name.as_str(), it)).collect();
    assert_eq!(reports.len(), 50);
    for (name, report) in reports {
        match (name, &report.result) {
            ("operations/7", Err(status)) => assert_eq!(status.code(), Code::NotFound),
            ("operations/11", Err(status)) => {
                assert_eq!(status.code(), Code::FailedPrecondition);
                assert_eq!(status.message(), "not cancellable");
                assert_eq!(status.attempts(), Some(1));
            }
            (name, result) => {
                assert!(result.is_ok(), "{name}: {result:?}");
                assert!(emulator.operation(name).expect("on record").done);
            }
        }
        assert_eq!(report.attempts, 1);
        assert_eq!(report.first_attempt_at, report.last_attempt_at);
        let at = report.first_attempt_at.expect("an attempt");
        let ended_at = report.ended_at.expect("an attempt");
        assert!(before <= at && at <= ended_at && ended_at <= after);
        assert_eq!(report.delivery(), Delivery::Answered);
        assert!(!report.earlier_attempt_may_have_succeeded);
    }
}

#[tokio::test]
async fn no_more_calls_than_allowed_are_in_flight() {
    let emulator = emulator().await;
    emulator.delay(Method::Cancel, Duration::from_millis(20));
    let (names, _) = started(&emulator, 50);
    let reports = client(&emulator).cancel_operations(names).max_in_flight(7);
    assert_eq!(reports.collect::<Vec<_>>().await.len(), 50);
    assert!(emulator.peak_in_flight() <= 7);
}

#[tokio::test]
async fn more_calls_than_the_connections_carry_wait_their_turn() {
    let emulator = Emulator::builder().max_concurrent_streams(10);
    let emulator = emulator.start().await.expect("a free port");
    let (names, _) = started(&emulator, 2_000);
    let client = OperationsClient::builder(emulator.endpoint());
    let client = client.max_connections(1).connect().await;
    let client = client.expect("it listens");
    let reports = client.cancel_operations(names).max_in_flight(500);
    let reports: Vec<_> = reports.collect().await;
    assert_eq!(reports.len(), 2_000);
    let failed = reports.iter().find(|report| report.result.is_err());
    assert!(failed.is_none(), "{failed:?}");
    assert!(emulator.peak_in_flight() <= 10);
}

#[tokio::test]
async fn calls_wait_while_the_clients_queue_is_full_and_do_not_count_as_rejected() {
    let emulator = Emulator::builder().max_concurrent_streams(2);
    let emulator = emulator.start().await.expect("a free port");
    let (names, _) = started(&emulator, 500);
    let client = OperationsClient::builder(emulator.endpoint());
    let client = client.max_connections(1).max_queued_calls(4).connect();
    let client = client.await.expect("it listens");
    let mut reports = client.cancel_operations(names).max_in_flight(100);
    let mut count = 0;
    while let Some(report) = reports.next().await {
        assert!(report.result.is_ok(), "{report:?}");
        assert_eq!(report.attempts, 1);
        count += 1;
    }
    assert_eq!(count, 500);
    assert_eq!(reports.stats().quota_rejections, 0);
}

#[tokio::test]
async fn a_consumer_that_takes_no_reports_stops_new_calls_but_not_those_in_flight() {
    let emulator = emulator().await;
    let (names, taken) = started(&emulator, 50);
    let mut reports = client(&emulator).cancel_operations(names).max_in_flight(5);
    let report = reports.next().await.expect("a report");
    report.result.expect("accepted");
    // Nobody polls the stream now, and the calls come to their ends all the same.
    emulator
        .wait_until(|emulator| emulator.calls().len() == 5 && emulator.in_flight() == 0)
        .await;
    assert_eq!(taken.load(SeqCst), 5);
    // One result that is taken makes room for one call.
    let report = reports.next().await.expect("a report");
    report.result.expect("accepted");
    emulator
        .wait_until(|emulator| emulator.calls().len() == 6 && emulator.in_flight() == 0)
        .await;
    assert_eq!(taken.load(SeqCst), 6);
    assert_eq!(reports.collect::<Vec<_>>().await.len(), 48);
}

#[tokio::test]
async fn reports_are_yielded_as_calls_complete_while_the_stream_of_names_is_open() {
    let emulator = emulator().await;
    let _ = started(&emulator, 3);
    let (sender, names) = mpsc::channel(3);
    let client = client(&emulator);
    let mut reports = client
        .cancel_operations(ReceiverStream::new(names))
        .max_in_flight(2);

    emulator.delay(Method::Cancel, Duration::from_secs(3600));
    sender.send("operations/0").await.expect("room");
    let cut = timeout(Duration::from_millis(1), reports.next()).await;
    assert!(cut.is_err(), "{cut:?}");
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;

    emulator.delay(Method::Cancel, Duration::ZERO);
    for later in ["operations/1", "operations/2"] {
        sender.send(later).await.expect("room");
        let report = reports.next().await.expect("a report");
        assert_eq!(report.name, later);
        report.result.expect("accepted");
    }
}

#[tokio::test]
async fn dropping_the_stream_ends_the_calls_in_flight_and_makes_no_more() {
    let emulator = emulator().await;
    emulator.delay(Method::Cancel, Duration::from_secs(3600));
    let (names, taken) = started(&emulator, 50);
    let mut reports = client(&emulator).cancel_operations(names).max_in_flight(5);
    tokio::select! {
        result = reports.next() => panic!("unexpected report: responses are delayed: {result:?}"),
        () = emulator.wait_until(|emulator| emulator.in_flight() == 5) => {}
    }
    drop(reports);
    emulator
        .wait_until(|emulator| emulator.in_flight() == 0)
        .await;
    let calls = emulator.calls();
    assert_eq!(calls.len(), 5);
    let abandoned = |outcome| outcome == CallOutcome::Abandoned;
    assert!(calls.iter().all(|call| abandoned(call.outcome())));
    assert_eq!(taken.load(SeqCst), 5);
}

#[tokio::test]
async fn nothing_is_sent_before_the_stream_is_polled() {
    let emulator = emulator().await;
    let (names, taken) = started(&emulator, 5);
    let reports = client(&emulator).cancel_operations(names).max_in_flight(5);
    tokio::task::yield_now().await;
    drop(reports);
    assert_eq!(taken.load(SeqCst), 0);
    assert!(emulator.calls().is_empty());
}

#[tokio::test]
async fn whole_requests_keep_their_metadata() {
    let emulator = emulator().await;
    let _ = started(&emulator, 1);
    let name = "operations/0".to_owned();
    let mut request = Request::new(CancelOperationRequest { name });
    let value = "p".parse().expect("ASCII");
    request.metadata_mut().insert("x-goog-user-project", value);
    let requests = tokio_stream::once(request);
    let reports = client(&emulator)
        .cancel_operations(requests)
        .max_in_flight(1);
    let reports: Vec<_> = reports.collect().await;
    let [report] = &reports[..] else {
        panic!("expected one report, got {reports:?}");
    };
    assert_eq!(report.name, "operations/0");
    assert!(report.result.is_ok(), "{report:?}");
    let value = &emulator.calls()[0];
    let value = value.metadata().get("x-goog-user-project");
    assert_eq!(value.expect("there"), "p");
}

#[tokio::test]
async fn it_can_be_spawned() {
    let emulator = emulator().await;
    let (names, _) = started(&emulator, 5);
    let reports: CancelOperations<_, _> =
        client(&emulator).cancel_operations(names).max_in_flight(2);
    let reports = tokio::spawn(reports.collect::<Vec<_>>());
    assert_eq!(reports.await.expect("no panic").len(), 5);
}

#[tokio::test]
async fn a_panic_in_the_stack_resumes_in_the_consumer() {
    let stack = service_fn(|_: http::Request<Body>| async {
        if true {
            panic!("a bug");
        }
        Ok::<_, Status>(http::Response::new(Body::empty()))
    });
    let client = OperationsClient::new(stack);
    let names = tokio_stream::once("operations/1");
    let mut reports = client.cancel_operations(names).max_in_flight(1);
    let consumer = tokio::spawn(async move { reports.next().await });
    let panic = consumer.await.expect_err("a panic").into_panic();
    assert_eq!(panic.downcast_ref(), Some(&"a bug"));
}

#[test]
fn after_a_panic_in_the_stack_the_other_names_are_cancelled() {
    let stack = service_fn(|request: http::Request<Body>| async move {
        let routed = request.headers().get("x-goog-request-params");
        assert!(routed.expect("a name") != "name=operations%2F1", "a bug");
        Err::<http::Response<Body>, _>(Status::not_found("no such operation"))
    });
    let names = tokio_stream::iter(["operations/1", "operations/2"]);
    let mut reports = OperationsClient::new(stack)
        .cancel_operations(names)
        .max_in_flight(1);
    let runtime = Runtime::new().expect("a runtime");
    let next = AssertUnwindSafe(|| runtime.block_on(reports.next()));
    let panic = catch_unwind(next).expect_err("a panic");
    assert_eq!(panic.downcast_ref(), Some(&"a bug"));
    let left = format!("{reports:?}");
    assert!(!left.contains("operations/1\""), "{left}");
    let report = runtime.block_on(reports.next()).expect("a report");
    assert_eq!(report.name, "operations/2");
    assert!(runtime.block_on(reports.next()).is_none());
}

#[test]
fn outside_a_runtime_each_report_has_an_error() {
    let stack = service_fn(|_: http::Request<Body>| async {
        Ok::<_, Status>(http::Response::new(Body::empty()))
    });
    let names = tokio_stream::iter(["operations/1", "operations/2"]);
    let reports = OperationsClient::new(stack)
        .cancel_operations(names)
        .max_in_flight(1);
    let reports: Vec<_> = futures_executor::block_on(reports.collect());
    let names: Vec<_> = reports.iter().map(|report| report.name.as_str()).collect();
    assert_eq!(names, ["operations/1", "operations/2"]);
    for report in reports {
        assert_eq!((report.attempts, report.first_attempt_at), (0, None));
        assert_eq!(report.delivery(), Delivery::NotSent);
        let status = report.result.expect_err("no runtime");
        assert_eq!(status.code(), Code::FailedPrecondition);
        let message = "a call needs a tokio runtime: run it within one";
        assert_eq!(status.message(), message);
    }
}

#[test]
fn a_call_whose_runtime_was_shut_down_is_reported() {
    let stack = service_fn(|_: http::Request<Body>| {
        std::future::pending::<Result<http::Response<Body>, Status>>()
    });
    let names = tokio_stream::once("operations/1");
    let mut reports = OperationsClient::new(stack)
        .cancel_operations(names)
        .max_in_flight(1);
    let first = Runtime::new().expect("a runtime");
    let cut = first.block_on(async { timeout(Duration::ZERO, reports.next()).await });
    assert!(cut.is_err(), "{cut:?}");
    drop(first);
    let second = Runtime::new().expect("a runtime");
    let report = second.block_on(reports.next()).expect("a report");
    assert_eq!(report.name, "operations/1");
    assert_eq!(report.attempts, 1);
    assert!(report.first_attempt_at.is_some());
    assert_eq!(report.delivery(), Delivery::MaybeSent);
    let status = report.result.expect_err("the runtime was shut down");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.origin(), Some(Origin::Client));
    assert_eq!(
        status.message(),
        "the tokio runtime that made the call has ended"
    );
    assert!(second.block_on(reports.next()).is_none());
}

#[tokio::test(start_paused = true)]
async fn transient_failures_are_retried_up_to_the_maximum_number_of_attempts() {
    let (emulator, client) = in_process();
    emulator.fail_next(Method::Cancel, 4, Status::unavailable("down"));
    let report = report_of(&client, "operations/1").await;
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.attempts, 5);
    assert_eq!(report.delivery(), Delivery::Answered);

    emulator.fail_next(Method::Cancel, 5, Status::unavailable("down"));
    let report = report_of(&client, "operations/1").await;
    assert_eq!((code(&report), report.attempts), (Code::Unavailable, 5));
    let status = report.result.expect_err("it failed");
    assert_eq!(status.message(), "down");
    assert_eq!(status.attempts(), Some(5));
    // 0.5, 1, 2 and 4 seconds, with a jitter of 20 %.
    let elapsed = status.elapsed().expect("a call").as_secs_f64();
    assert!((6.0..9.1).contains(&elapsed), "{elapsed}");
}

#[tokio::test(start_paused = true)]
async fn the_policy_of_the_client_or_the_request_applies() {
    let (emulator, client) = in_process();
    emulator.fail_next(Method::Cancel, 100, Status::unavailable("down"));
    let table = [
        (RetryPolicy::none(), 1),
        (RetryPolicy::default().max_attempts(3), 3),
        (RetryPolicy::default().idempotent(false), 1),
    ];
    for (policy, attempts) in table {
        let of_client = report_of(&client.clone().retry(policy.clone()), "operations/1").await;
        assert_eq!(
            (code(&of_client), of_client.attempts),
            (Code::Unavailable, attempts)
        );

        let name = "operations/1".to_owned();
        let mut request = Request::new(CancelOperationRequest { name });
        request.extensions_mut().insert(policy);
        let mut reports = client.cancel_operations(tokio_stream::once(request));
        let of_request = reports.next().await.expect("a report");
        assert_eq!(
            (code(&of_request), of_request.attempts),
            (Code::Unavailable, attempts)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn other_failures_are_not_retried() {
    let (emulator, client) = in_process();
    for status in [
        Status::permission_denied("no"),
        Status::failed_precondition("no"),
        Status::unimplemented("no"),
        Status::internal("no"),
    ] {
        emulator.fail_next(Method::Cancel, 1, status.clone());
        let report = report_of(&client, "operations/1").await;
        assert_eq!((code(&report), report.attempts), (status.code(), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn calls_rejected_by_the_quota_are_retried_without_a_maximum_number_of_attempts() {
    let (emulator, client) = in_process();
    emulator.fail_next(Method::Cancel, 50, Status::resource_exhausted("quota"));
    let mut reports = client.cancel_operations(tokio_stream::once("operations/1"));
    let report = reports.next().await.expect("a report");
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.attempts, 51);
    let stats = reports.stats();
    assert_eq!((stats.attempts, stats.quota_rejections), (51, 50));
    assert_eq!(
        stats.rate_limit,
        Some(1_900.0),
        "one name is no reason to reduce the rate"
    );
}

#[tokio::test(start_paused = true)]
async fn the_servers_retry_delay_is_honored_and_a_pushback_can_forbid_a_retry() {
    let (emulator, client) = in_process();
    let delay = Duration::from_secs(30);
    for refused in [rpc::Code::ResourceExhausted, rpc::Code::Unavailable] {
        emulator.fail_next(Method::Cancel, 1, with_retry_info(refused, delay));
        let begun = Instant::now();
        let report = report_of(&client, "operations/1").await;
        assert_eq!((code(&report), report.attempts), (Code::Ok, 2));
        let elapsed = begun.elapsed();
        assert!((delay..delay * 5 / 4).contains(&elapsed), "{elapsed:?}");
    }
    let mut status = Status::resource_exhausted("quota");
    let never = "-1".parse().expect("ASCII");
    status
        .metadata_mut()
        .insert("grpc-retry-pushback-ms", never);
    emulator.fail_next(Method::Cancel, 1, status);
    let report = report_of(&client, "operations/1").await;
    assert_eq!(
        (code(&report), report.attempts),
        (Code::ResourceExhausted, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_name_that_waits_for_a_retry_stays_in_flight() {
    let (emulator, client) = in_process();
    emulator.fail_next(Method::Cancel, 2, Status::unavailable("down"));
    let names = tokio_stream::iter((0..10).map(|n| format!("operations/{n}")));
    let mut reports = client.cancel_operations(names).max_in_flight(2);
    let cut = timeout(Duration::from_millis(100), reports.next()).await;
    assert!(cut.is_err(), "{cut:?}");
    assert_eq!(emulator.calls().len(), 2);
    assert_eq!(reports.stats().in_flight, 2);
    assert_eq!(reports.collect::<Vec<_>>().await.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn with_a_deadline_failures_are_retried_until_it_passes() {
    let (emulator, client) = in_process();
    emulator.fail_next(Method::Cancel, 20, Status::unavailable("down"));
    let names = tokio_stream::once("operations/1");
    let deadline = Instant::now() + Duration::from_secs(600);
    let mut reports = client.cancel_operations(names).deadline(deadline);
    let report = reports.next().await.expect("a report");
    assert_eq!((code(&report), report.attempts), (Code::Ok, 21));

    emulator.fail_next(Method::Cancel, 1_000, Status::unavailable("down"));
    let names = tokio_stream::iter(["operations/1", "operations/2"]);
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(60);
    let mut reports = client.cancel_operations(names).deadline(deadline);
    for _ in 0..2 {
        let report = reports.next().await.expect("a report");
        assert_eq!(code(&report), Code::Unavailable);
        assert!((8..30).contains(&report.attempts), "{report:?}");
        assert!(report.first_attempt_at < report.last_attempt_at || report.attempts == 1);
    }
    assert!(reports.next().await.is_none());
    // A retry that would start after the deadline is not waited for.
    assert!(begun.elapsed() <= Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn after_the_deadline_each_remaining_name_is_reported_without_an_attempt() {
    let (emulator, client) = in_process();
    emulator.delay(Method::Cancel, Duration::from_secs(5));
    let names = tokio_stream::iter((0..10).map(|n| format!("operations/{n}")));
    let deadline = Instant::now() + Duration::from_secs(7);
    let mut reports = client
        .cancel_operations(names)
        .max_in_flight(2)
        .deadline(deadline);
    let (mut attempted, mut not_attempted) = (0, 0);
    while let Some(report) = reports.next().await {
        let status = match report.attempts {
            0 => {
                not_attempted += 1;
                assert_eq!(report.first_attempt_at, None);
                assert_eq!(report.delivery(), Delivery::NotSent);
                report.result.expect_err("it was not attempted")
            }
            attempts => {
                attempted += 1;
                assert_eq!(attempts, 1);
                continue;
            }
        };
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(status.origin(), Some(Origin::Client));
        let message = format!(
            "operation {:?} was not cancelled: the deadline passed before the first attempt: set a later deadline",
            report.name
        );
        assert_eq!(status.message(), message);
    }
    assert_eq!((attempted, not_attempted), (4, 6));
    assert_eq!(Instant::now(), deadline);
}

#[tokio::test(start_paused = true)]
async fn a_call_in_flight_ends_when_the_deadline_passes() {
    let (emulator, client) = in_process();
    emulator.delay(Method::Cancel, Duration::from_secs(5));
    let names = tokio_stream::once("operations/1");
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut reports = client.cancel_operations(names).deadline(deadline);
    let report = reports.next().await.expect("a report");
    assert_eq!(
        (code(&report), report.attempts),
        (Code::DeadlineExceeded, 1)
    );
    assert_eq!(report.delivery(), Delivery::MaybeSent);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_wait_for_the_rate_limit() {
    let (emulator, client) = in_process();
    emulator.quota(Method::Cancel, 0.0);
    let names = tokio_stream::iter((0..50).map(|n| format!("operations/{n}")));
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(100);
    let reports = client
        .cancel_operations(names)
        .max_in_flight(50)
        .deadline(deadline);
    let reports: Vec<_> = reports.collect().await;
    assert!(begun.elapsed() <= Duration::from_secs(100));
    assert_eq!(reports.len(), 50);
    for report in reports {
        assert_eq!(code(&report), Code::ResourceExhausted, "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_earlier_attempt_that_may_have_succeeded_is_reported() {
    // The first attempt deletes the operation, and its response is lost.
    let (emulator, client) = in_process();
    emulator.on_cancel(CancelBehavior::Delete);
    emulator.lose_next(Method::Cancel, 1, Status::unavailable("lost"));
    let report = report_of(&client, "operations/1").await;
    assert_eq!((code(&report), report.attempts), (Code::NotFound, 2));
    assert!(report.earlier_attempt_may_have_succeeded);
    assert_eq!(report.delivery(), Delivery::Answered);

    // The server rejects the second cancel call.
    let (emulator, client) = in_process();
    emulator.lose_next(Method::Cancel, 1, Status::unavailable("lost"));
    emulator.fail_next(Method::Cancel, 1, Status::failed_precondition("it is done"));
    let report = report_of(&client, "operations/1").await;
    assert_eq!(
        (code(&report), report.attempts),
        (Code::FailedPrecondition, 2)
    );
    assert!(report.earlier_attempt_may_have_succeeded);

    // An attempt that was rejected because of the quota had no effect.
    let (emulator, client) = in_process();
    emulator.fail_next(Method::Cancel, 1, Status::resource_exhausted("quota"));
    let report = report_of(&client, "operations/2").await;
    assert_eq!((code(&report), report.attempts), (Code::NotFound, 2));
    assert!(!report.earlier_attempt_may_have_succeeded);

    // The first attempt cancels the operation, and the next ones are rejected until the deadline.
    let (emulator, client) = in_process();
    emulator.lose_next(Method::Cancel, 1, Status::unavailable("lost"));
    emulator.fail_next(Method::Cancel, 1_000, Status::resource_exhausted("quota"));
    let names = tokio_stream::once("operations/1");
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut reports = client.cancel_operations(names).deadline(deadline);
    let report = reports.next().await.expect("a report");
    assert_eq!(code(&report), Code::ResourceExhausted);
    assert!(report.earlier_attempt_may_have_succeeded);

    // If the retry succeeds, the result is not ambiguous.
    let (emulator, client) = in_process();
    emulator.lose_next(Method::Cancel, 1, Status::unavailable("lost"));
    let report = report_of(&client, "operations/1").await;
    assert_eq!((code(&report), report.attempts), (Code::Ok, 2));
    assert!(!report.earlier_attempt_may_have_succeeded);
}

#[tokio::test]
async fn an_attempt_that_was_not_sent_cannot_have_succeeded() {
    // The first connection attempts fail, because no server is listening yet.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    drop(listener);
    let policy = RetryPolicy::default().initial_backoff(Duration::from_millis(1));
    let client =
        OperationsClient::builder(format!("http://127.0.0.1:{port}")).retry(policy.clone());
    let client = client.connect_lazy().expect("a URL");
    let report = report_of(&client, "operations/1").await;
    assert_eq!((code(&report), report.attempts), (Code::Unavailable, 5));
    assert_eq!(report.delivery(), Delivery::NotSent);

    let deadline = Instant::now() + Duration::from_secs(20);
    let mut reports = client
        .cancel_operations(tokio_stream::once("operations/1"))
        .deadline(deadline);
    while reports.stats().attempts == 0 {
        let report = timeout(Duration::from_millis(1), reports.next()).await;
        assert!(report.is_err(), "{report:?}");
    }
    let emulator = Emulator::builder().port(port).start().await;
    let _emulator = emulator.expect("the port is free");
    let report = reports.next().await.expect("a report");
    assert_eq!(code(&report), Code::NotFound);
    assert!(report.attempts > 1, "{report:?}");
    assert!(!report.earlier_attempt_may_have_succeeded, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_rate_limit_the_maximum_number_of_names_is_in_flight() {
    let (emulator, client) = in_process();
    emulator.delay(Method::Cancel, Duration::from_millis(1));
    let names = tokio_stream::iter((0..10_000).map(|n| format!("operations/{n}")));
    let begun = Instant::now();
    let mut reports = client.cancel_operations(names).max_in_flight(1_000).fixed();
    assert_eq!(reports.stats().rate_limit, None);
    let mut count = 0;
    while reports.next().await.is_some() {
        count += 1;
    }
    assert_eq!(count, 10_000);
    assert_eq!(emulator.peak_in_flight(), 1_000);
    assert!(
        begun.elapsed() < Duration::from_millis(100),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn the_stream_can_be_dropped_while_names_wait_for_the_rate_limit() {
    let (emulator, client) = in_process();
    emulator.quota(Method::Cancel, 1.0);
    let names = tokio_stream::iter((0..100).map(|n| format!("operations/{n}")));
    let mut reports = client.cancel_operations(names).max_in_flight(100);
    for _ in 0..3 {
        reports.next().await.expect("a report");
    }
    drop(reports);
    let calls = emulator.calls().len();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(emulator.calls().len(), calls);
    assert_eq!(emulator.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_stopped_reports_the_names_in_flight_and_leaves_the_others() {
    let (emulator, client) = in_process();
    emulator.delay(Method::Cancel, Duration::from_secs(1));
    let (sender, names) = mpsc::channel(100);
    for n in 0..20 {
        sender
            .send(format!("operations/{n}"))
            .await
            .expect("there is room");
    }
    let mut reports = client
        .cancel_operations(ReceiverStream::new(names))
        .max_in_flight(5);
    reports.next().await.expect("a report");
    let mut remaining = reports.stop().expect("it has not ended");
    let mut rest = 0;
    while let Some(report) = reports.next().await {
        assert_eq!(report.attempts, 1);
        rest += 1;
    }
    assert_eq!(rest, 4);
    assert_eq!(emulator.calls().len(), 5);
    assert!(reports.stop().is_none());
    drop(sender);
    for n in 5..20 {
        assert_eq!(remaining.next().await, Some(format!("operations/{n}")));
    }
    assert_eq!(remaining.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn the_rate_does_not_exceed_its_maximum() {
    let (emulator, client) = in_process();
    let names = tokio_stream::iter((0..1_000).map(|n| format!("operations/{n}")));
    let begun = Instant::now();
    let mut reports = client.cancel_operations(names).max_rate(100.0);
    assert_eq!(reports.stats().rate_limit, Some(100.0));
    while reports.next().await.is_some() {}
    let elapsed = begun.elapsed().as_secs_f64();
    assert!((9.9..10.1).contains(&elapsed), "{elapsed}");
    assert_eq!(emulator.calls().len(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_call_does_not_include_the_time_until_its_report_is_taken() {
    let (_emulator, client) = in_process();
    let names = tokio_stream::iter(["operations/8", "operations/9"]);
    let mut reports = client.cancel_operations(names);
    reports.next().await.expect("a report");
    tokio::time::sleep(Duration::from_secs(100)).await;
    let report = reports.next().await.expect("a report");
    let status = report.result.expect_err("it does not exist");
    assert!(
        status.elapsed().expect("a call") < Duration::from_secs(1),
        "{status}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_delay_that_the_server_requests_is_at_most_an_hour() {
    let (emulator, client) = in_process();
    let year = Duration::from_secs(365 * 24 * 3600);
    emulator.fail_next(
        Method::Cancel,
        1,
        with_retry_info(rpc::Code::Unavailable, year),
    );
    let begun = Instant::now();
    let report = report_of(&client, "operations/1").await;
    assert_eq!((code(&report), report.attempts), (Code::Ok, 2));
    assert!(
        begun.elapsed() <= Duration::from_secs(3601),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn rejected_calls_do_not_use_the_throttle_of_the_client() {
    let (emulator, client) = in_process();
    let client = client.retry(RetryPolicy::default().throttle(10, 0.1));
    emulator.fail_next(Method::Cancel, 20, Status::resource_exhausted("quota"));
    let report = report_of(&client, "operations/1").await;
    assert_eq!((code(&report), report.attempts), (Code::Ok, 21));
    let throttle = client.stats().throttle.expect("there is one");
    assert_eq!(throttle.tokens, throttle.max_tokens);
}

#[tokio::test(start_paused = true)]
async fn the_policy_of_a_request_replaces_the_attempt_timeout_of_the_client() {
    let (emulator, client) = in_process();
    emulator.delay(Method::Cancel, Duration::from_secs(3));
    let client = client.retry(RetryPolicy::default().attempt_timeout(Duration::from_secs(1)));
    let name = "operations/1".to_owned();
    let mut request = Request::new(CancelOperationRequest { name });
    request.extensions_mut().insert(RetryPolicy::default());
    let mut reports = client.cancel_operations(tokio_stream::once(request));
    let report = reports.next().await.expect("a report");
    assert_eq!((code(&report), report.attempts), (Code::Ok, 1));
}

#[tokio::test]
async fn a_request_that_the_client_rejects_is_no_attempt() {
    let (emulator, client) = in_process();
    let mut reports = client.cancel_operations(tokio_stream::once(""));
    let report = reports.next().await.expect("a report");
    assert_eq!((code(&report), report.attempts), (Code::InvalidArgument, 0));
    assert_eq!((report.first_attempt_at, report.ended_at), (None, None));
    assert_eq!(report.delivery(), Delivery::NotSent);
    assert_eq!(reports.stats().attempts, 0);
    assert!(emulator.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_rate_limit_calls_rejected_by_the_quota_have_a_growing_backoff() {
    let (emulator, client) = in_process();
    let soon = with_retry_info(rpc::Code::ResourceExhausted, Duration::from_millis(1));
    emulator.fail_next(Method::Cancel, 1_000, soon);
    let names = tokio_stream::once("operations/1");
    let deadline = Instant::now() + Duration::from_secs(100);
    let mut reports = client.cancel_operations(names).fixed().deadline(deadline);
    let report = reports.next().await.expect("a report");
    assert_eq!(code(&report), Code::ResourceExhausted);
    // 0.5, 1, 2, 4, 8 and then 10 seconds, with a jitter of 20 %.
    assert!((12..=19).contains(&report.attempts), "{report:?}");
}

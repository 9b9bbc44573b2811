//! The outcomes of many cancelled operations, and cancelling all operations of a set.
//!
//! The server is in this process and time is paused.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use longrunning::{
    CancelOutcome, CancelReport, OperationsClient, Outcome,
    emulator::{CancelBehavior, Emulator, EmulatorService, Method},
    proto::operations_server::OperationsServer,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::Stream;
use tonic::{Code, Status, body::Body};
use tower::{Service as _, service_fn};

type Client = OperationsClient<OperationsServer<EmulatorService>>;

const MINUTE: Duration = Duration::from_secs(60);

fn name(n: usize) -> String {
    format!("projects/p/operations/{n}")
}

fn started(operations: usize) -> (Emulator, Client) {
    let emulator = Emulator::in_process().expect("a runtime");
    for n in 0..operations {
        emulator.start_operation(name(n)).expect("a new name");
    }
    let client = OperationsClient::new(emulator.service());
    (emulator, client)
}

fn names(operations: usize) -> impl Stream<Item = String> + Unpin {
    tokio_stream::iter((0..operations).map(name))
}

/// Returns all reports, by name.
async fn reports(
    client: &Client,
    operations: usize,
    outcome_timeout: Duration,
) -> BTreeMap<String, CancelReport> {
    let mut stream = client
        .cancel_operations(names(operations))
        .outcomes(outcome_timeout);
    let mut reports = BTreeMap::new();
    while let Some(report) = stream.next().await {
        let earlier = reports.insert(report.name.clone(), report);
        assert!(earlier.is_none(), "{earlier:?}");
    }
    assert_eq!(reports.len(), operations);
    assert_eq!(stream.stats().awaiting_outcome, 0);
    reports
}

#[tokio::test(start_paused = true)]
async fn each_report_has_the_outcome_that_the_server_returned() {
    let (emulator, client) = started(6);
    emulator.on_cancel_of(name(1), CancelBehavior::Ignore);
    emulator.on_cancel_of(name(2), CancelBehavior::complete(&()));
    let failure = CancelBehavior::fail(&Status::aborted("a conflict"));
    emulator.on_cancel_of(name(3), failure.expect("an error"));
    let refusal = Status::failed_precondition("not cancellable");
    emulator.on_cancel_of(name(4), CancelBehavior::Refuse(refusal));
    emulator.on_cancel_of(name(5), CancelBehavior::Ignore);
    let remove = async {
        sleep(Duration::from_secs(30)).await;
        emulator.remove(&name(5)).expect("known");
    };
    let (reports, ()) = tokio::join!(reports(&client, 6, 2 * MINUTE), remove);
    let outcome = |n: usize| reports[&name(n)].outcome.clone();
    assert!(matches!(outcome(0), Some(CancelOutcome::Cancelled(_))));
    match outcome(1) {
        Some(CancelOutcome::Unknown(status)) => {
            assert_eq!(status.code(), Code::DeadlineExceeded);
            assert!(
                status.message().contains("was not known to be done"),
                "{status}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(outcome(2), Some(CancelOutcome::Succeeded(_))));
    assert!(matches!(outcome(3), Some(CancelOutcome::Failed(_))));
    assert!(outcome(4).is_none() && reports[&name(4)].result.is_err());
    assert!(matches!(outcome(5), Some(CancelOutcome::NotFound)));
}

#[tokio::test(start_paused = true)]
async fn outcomes_of_many_operations_need_few_calls() {
    let (emulator, client) = started(5_000);
    emulator.on_cancel(CancelBehavior::Ignore);
    let end = async {
        sleep(MINUTE).await;
        for n in 0..5_000 {
            emulator.complete(&name(n), &()).expect("running");
        }
    };
    let begun = Instant::now();
    let (reports, ()) = tokio::join!(reports(&client, 5_000, 5 * MINUTE), end);
    let succeeded =
        |report: &CancelReport| matches!(report.outcome, Some(CancelOutcome::Succeeded(_)));
    assert!(reports.values().all(succeeded));
    assert!(begun.elapsed() < 2 * MINUTE, "{:?}", begun.elapsed());
    let polls = emulator.calls().len() - 5_000;
    assert!(polls < 500, "{polls}");
    assert_eq!(emulator.calls_of(Method::Cancel).len(), 5_000);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_the_wait_for_outcomes() {
    let (emulator, client) = started(10);
    emulator.on_cancel(CancelBehavior::Ignore);
    let deadline = Instant::now() + MINUTE;
    let stream = client.cancel_operations(names(10)).deadline(deadline);
    let mut stream = stream.outcomes(Duration::MAX);
    let mut count = 0;
    while let Some(report) = stream.next().await {
        assert!(report.result.is_ok());
        assert!(
            matches!(report.outcome, Some(CancelOutcome::Unknown(_))),
            "{report:?}"
        );
        count += 1;
    }
    assert_eq!(count, 10);
    assert_eq!(Instant::now(), deadline);
    let _ = emulator;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_cancelled_twice_has_two_outcomes() {
    let (_emulator, client) = started(1);
    let names = tokio_stream::iter([name(0), name(0)]);
    let mut stream = client.cancel_operations(names).outcomes(MINUTE);
    for _ in 0..2 {
        let report = stream.next().await.expect("a report");
        assert!(
            matches!(report.outcome, Some(CancelOutcome::Cancelled(_))),
            "{report:?}"
        );
    }
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn reports_that_wait_for_an_outcome_do_not_delay_other_names() {
    let (emulator, client) = started(100);
    emulator.on_cancel(CancelBehavior::Ignore);
    let stream = client.cancel_operations(names(100)).max_in_flight(1);
    let mut stream = stream.outcomes(5 * MINUTE);
    let waited = timeout(MINUTE, stream.next()).await;
    assert!(waited.is_err(), "{waited:?}");
    assert_eq!(stream.stats().awaiting_outcome, 100);
    assert_eq!(stream.stats().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_polled_after_the_stream_is_dropped() {
    let (emulator, client) = started(10);
    emulator.on_cancel(CancelBehavior::Ignore);
    let mut stream = client.cancel_operations(names(10)).outcomes(5 * MINUTE);
    let waited = timeout(MINUTE, stream.next()).await;
    assert!(waited.is_err(), "{waited:?}");
    drop(stream);
    let calls = emulator.calls().len();
    sleep(MINUTE).await;
    assert_eq!(emulator.calls().len(), calls);
}

#[tokio::test(start_paused = true)]
async fn all_operations_of_a_set_can_be_cancelled() {
    let (emulator, client) = started(1_000);
    let set = client.operation_set().max_rate(100.0);
    for n in 0..1_000 {
        set.insert(name(n));
    }
    let begun = Instant::now();
    let mut reports = set.cancel_all();
    assert_eq!(reports.stats().rate_limit, Some(100.0));
    let mut accepted = 0;
    while let Some(report) = reports.next().await {
        report.result.expect("accepted");
        accepted += 1;
    }
    assert_eq!(accepted, 1_000);
    // The cancel calls and the polls share one rate.
    assert!(
        begun.elapsed() >= Duration::from_secs(9),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(set.len(), 1_000);
    while let Some((name, result)) = set.next().await {
        let operation = result.expect("no failure");
        assert!(
            matches!(operation.outcome(), Outcome::Cancelled(_)),
            "{name}"
        );
    }
    assert_eq!(emulator.calls_of(Method::Cancel).len(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn reports_of_a_repeated_name_are_counted() {
    let (emulator, client) = started(1);
    emulator.on_cancel(CancelBehavior::Ignore);
    let names = tokio_stream::iter((0..500).map(|_| name(0)));
    let mut stream = client.cancel_operations(names).outcomes(2 * MINUTE);
    let waited = timeout(MINUTE, stream.next()).await;
    assert!(waited.is_err(), "{waited:?}");
    assert_eq!(stream.stats().awaiting_outcome, 500);
    let mut count = 0;
    while let Some(report) = stream.next().await {
        assert!(
            matches!(report.outcome, Some(CancelOutcome::Unknown(_))),
            "{report:?}"
        );
        count += 1;
    }
    assert_eq!(count, 500);
}

#[tokio::test(start_paused = true)]
async fn after_a_panic_in_the_stack_the_other_outcomes_are_awaited() {
    let emulator = Emulator::in_process().expect("a runtime");
    for n in 0..3 {
        emulator
            .start_operation(format!("jobs/{n}"))
            .expect("a new name");
    }
    let panics = Arc::new(AtomicBool::new(true));
    let service = emulator.service();
    let stack = service_fn(move |request: http::Request<Body>| {
        let is_get = request.uri().path().ends_with("GetOperation");
        assert!(
            !is_get || !panics.swap(false, SeqCst),
            "a defect of the stack"
        );
        service.clone().call(request)
    });
    let names = tokio_stream::iter((0..3).map(|n| format!("jobs/{n}")));
    let mut stream = OperationsClient::new(stack)
        .cancel_operations(names)
        .outcomes(MINUTE);
    let (mut reports, mut panicked) = (0, 0);
    loop {
        match AssertUnwindSafe(stream.next()).catch_unwind().await {
            Ok(None) => break,
            Ok(Some(_)) => reports += 1,
            Err(_) => panicked += 1,
        }
        assert!(panicked < 5, "{reports} reports");
    }
    assert_eq!((reports, panicked), (3, 1));
}

#[test]
fn another_runtime_awaits_the_outcomes_after_the_first_is_shut_down() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    };
    let server = runtime().expect("a runtime");
    let emulator = server.block_on(async { Emulator::in_process().expect("a runtime") });
    emulator.start_operation(name(0)).expect("a new name");
    emulator.on_cancel(CancelBehavior::Ignore);
    let client = OperationsClient::new(emulator.service());
    let mut stream = client.cancel_operations(names(1)).outcomes(MINUTE);
    let first = runtime().expect("a runtime");
    first.block_on(async {
        let waited = timeout(Duration::from_millis(100), stream.next()).await;
        assert!(waited.is_err(), "{waited:?}");
    });
    drop(first);
    emulator.complete(&name(0), &()).expect("running");
    let second = runtime().expect("a runtime");
    let report = second.block_on(stream.next()).expect("a report");
    assert!(
        matches!(report.outcome, Some(CancelOutcome::Succeeded(_))),
        "{report:?}"
    );
}

#[test]
fn without_a_runtime_the_outcome_is_unknown() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let emulator = runtime.block_on(async { Emulator::in_process().expect("a runtime") });
    emulator.start_operation(name(0)).expect("a new name");
    emulator.on_cancel(CancelBehavior::Ignore);
    let client = OperationsClient::new(emulator.service());
    let mut stream = client.cancel_operations(names(1)).outcomes(MINUTE);
    runtime.block_on(async {
        let waited = timeout(Duration::from_millis(100), stream.next()).await;
        assert!(waited.is_err(), "{waited:?}");
    });
    drop(runtime);
    let report = futures_executor::block_on(stream.next()).expect("a report");
    match report.outcome {
        Some(CancelOutcome::Unknown(status)) => assert_eq!(status.code(), Code::FailedPrecondition),
        other => panic!("{other:?}"),
    }
}

#[test]
fn outside_the_runtime_of_its_set_the_outcomes_are_unknown() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let emulator = runtime.block_on(async { Emulator::in_process().expect("a runtime") });
    let names: Vec<_> = (0..2).map(name).collect();
    for name in &names {
        emulator.start_operation(name).expect("a new name");
    }
    emulator.on_cancel(CancelBehavior::Ignore);
    let client = OperationsClient::new(emulator.service());
    let stream = client
        .cancel_operations(tokio_stream::iter(names))
        .max_in_flight(1);
    let mut stream = stream.outcomes(Duration::from_millis(500));
    runtime.block_on(async {
        let waited = timeout(Duration::from_millis(100), stream.next()).await;
        assert!(waited.is_err(), "{waited:?}");
    });
    for _ in 0..2 {
        let report = futures_executor::block_on(stream.next()).expect("a report");
        assert!(
            matches!(report.outcome, Some(CancelOutcome::Unknown(_))),
            "{report:?}"
        );
    }
    assert!(futures_executor::block_on(stream.next()).is_none());
}

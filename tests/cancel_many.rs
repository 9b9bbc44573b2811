//! Cancelling many operations: how many at once, what is told, and when it stops.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use longrunning::{
    CallStatusExt as _, CancelOperations, OperationsClient, Origin,
    emulator::{CallOutcome, CancelBehavior, Emulator, Method},
    proto::CancelOperationRequest,
};
use tokio::{runtime::Runtime, sync::mpsc, time::timeout};
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

/// Starts so many operations, and names them, counting the names that are taken.
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

#[tokio::test]
async fn each_result_comes_with_its_name_and_one_failure_does_not_stop_the_rest() {
    let emulator = emulator().await;
    let (names, _) = started(&emulator, 50);
    emulator.remove("operations/7").expect("on record");
    let refusal = Status::failed_precondition("not cancellable");
    emulator.on_cancel_of("operations/11", CancelBehavior::Refuse(refusal));
    let results = client(&emulator).cancel_operations(names, 4);
    let results: BTreeMap<_, _> = results.collect::<Vec<_>>().await.into_iter().collect();
    assert_eq!(results.len(), 50);
    for (name, result) in &results {
        match (name.as_str(), result) {
            ("operations/7", Err(status)) => assert_eq!(status.code(), Code::NotFound),
            ("operations/11", Err(status)) => {
                assert_eq!(status.code(), Code::FailedPrecondition);
                assert_eq!(status.message(), "not cancellable");
            }
            (name, result) => {
                assert!(result.is_ok(), "{name}: {result:?}");
                assert!(emulator.operation(name).expect("on record").done);
            }
        }
    }
}

#[tokio::test]
async fn no_more_calls_than_allowed_are_in_flight() {
    let emulator = emulator().await;
    emulator.delay(Method::Cancel, Duration::from_millis(20));
    let (names, _) = started(&emulator, 50);
    let results = client(&emulator).cancel_operations(names, 7);
    assert_eq!(results.collect::<Vec<_>>().await.len(), 50);
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
    let results = client.cancel_operations(names, 500);
    let results: Vec<_> = results.collect().await;
    assert_eq!(results.len(), 2_000);
    let failed = results.iter().find(|(_, result)| result.is_err());
    assert!(failed.is_none(), "{failed:?}");
    assert!(emulator.peak_in_flight() <= 10);
}

#[tokio::test]
async fn a_consumer_that_takes_no_results_stops_new_calls_but_none_that_has_begun() {
    let emulator = emulator().await;
    let (names, taken) = started(&emulator, 50);
    let mut results = client(&emulator).cancel_operations(names, 5);
    results.next().await.expect("a result").1.expect("accepted");
    // Nobody polls the stream now, and the calls come to their ends all the same.
    emulator
        .wait_until(|emulator| emulator.calls().len() == 5 && emulator.in_flight() == 0)
        .await;
    assert_eq!(taken.load(SeqCst), 5);
    // One result that is taken makes room for one call.
    results.next().await.expect("a result").1.expect("accepted");
    emulator
        .wait_until(|emulator| emulator.calls().len() == 6 && emulator.in_flight() == 0)
        .await;
    assert_eq!(taken.load(SeqCst), 6);
    assert_eq!(results.collect::<Vec<_>>().await.len(), 48);
}

#[tokio::test]
async fn results_come_as_the_calls_end_while_more_names_may_follow() {
    let emulator = emulator().await;
    let _ = started(&emulator, 3);
    let (sender, names) = mpsc::channel(3);
    let client = client(&emulator);
    let mut results = client.cancel_operations(ReceiverStream::new(names), 2);

    emulator.delay(Method::Cancel, Duration::from_secs(3600));
    sender.send("operations/0").await.expect("room");
    let cut = timeout(Duration::from_millis(1), results.next()).await;
    assert!(cut.is_err(), "{cut:?}");
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;

    emulator.delay(Method::Cancel, Duration::ZERO);
    for later in ["operations/1", "operations/2"] {
        sender.send(later).await.expect("room");
        let (name, result) = results.next().await.expect("a result");
        assert_eq!(name, later);
        result.expect("accepted");
    }
}

#[tokio::test]
async fn dropping_the_stream_ends_the_calls_in_flight_and_makes_no_more() {
    let emulator = emulator().await;
    emulator.delay(Method::Cancel, Duration::from_secs(3600));
    let (names, taken) = started(&emulator, 50);
    let mut results = client(&emulator).cancel_operations(names, 5);
    tokio::select! {
        result = results.next() => panic!("the answers are late: {result:?}"),
        () = emulator.wait_until(|emulator| emulator.in_flight() == 5) => {}
    }
    drop(results);
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
    let results = client(&emulator).cancel_operations(names, 5);
    tokio::task::yield_now().await;
    drop(results);
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
    let results = client(&emulator).cancel_operations(requests, 1);
    let results: Vec<_> = results.collect().await;
    assert!(matches!(&results[..], [(name, Ok(()))] if name == "operations/0"));
    let value = &emulator.calls()[0];
    let value = value.metadata().get("x-goog-user-project");
    assert_eq!(value.expect("there"), "p");
}

#[tokio::test]
async fn it_can_be_spawned() {
    let emulator = emulator().await;
    let (names, _) = started(&emulator, 5);
    let results: CancelOperations<_, _> = client(&emulator).cancel_operations(names, 2);
    let results = tokio::spawn(results.collect::<Vec<_>>());
    assert_eq!(results.await.expect("no panic").len(), 5);
}

#[tokio::test]
async fn a_panic_of_the_stack_goes_on_in_the_consumer() {
    let stack = service_fn(|_: http::Request<Body>| async {
        if true {
            panic!("a bug");
        }
        Ok::<_, Status>(http::Response::new(Body::empty()))
    });
    let client = OperationsClient::new(stack);
    let names = tokio_stream::once("operations/1");
    let mut results = client.cancel_operations(names, 1);
    let consumer = tokio::spawn(async move { results.next().await });
    let panic = consumer.await.expect_err("a panic").into_panic();
    assert_eq!(panic.downcast_ref(), Some(&"a bug"));
}

#[test]
fn after_a_panic_of_the_stack_the_rest_goes_on_and_nothing_is_left_behind() {
    let stack = service_fn(|request: http::Request<Body>| async move {
        let routed = request.headers().get("x-goog-request-params");
        assert!(routed.expect("a name") != "name=operations%2F1", "a bug");
        Err::<http::Response<Body>, _>(Status::not_found("no such operation"))
    });
    let names = tokio_stream::iter(["operations/1", "operations/2"]);
    let mut results = OperationsClient::new(stack).cancel_operations(names, 1);
    let runtime = Runtime::new().expect("a runtime");
    let next = AssertUnwindSafe(|| runtime.block_on(results.next()));
    let panic = catch_unwind(next).expect_err("a panic");
    assert_eq!(panic.downcast_ref(), Some(&"a bug"));
    let left = format!("{results:?}");
    assert!(!left.contains("operations/1\""), "{left}");
    let (name, _) = runtime.block_on(results.next()).expect("a result");
    assert_eq!(name, "operations/2");
    assert!(runtime.block_on(results.next()).is_none());
}

#[test]
fn outside_a_runtime_each_name_is_refused() {
    let stack = service_fn(|_: http::Request<Body>| async {
        Ok::<_, Status>(http::Response::new(Body::empty()))
    });
    let names = tokio_stream::iter(["operations/1", "operations/2"]);
    let results = OperationsClient::new(stack).cancel_operations(names, 1);
    let results: Vec<_> = futures_executor::block_on(results.collect());
    let names: Vec<_> = results.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["operations/1", "operations/2"]);
    for (_, result) in results {
        let status = result.expect_err("no runtime");
        assert_eq!(status.code(), Code::FailedPrecondition);
        let message = "a call needs a tokio runtime: run it within one";
        assert_eq!(status.message(), message);
    }
}

#[test]
fn a_call_whose_runtime_has_ended_is_told_by_its_name() {
    let stack = service_fn(|_: http::Request<Body>| {
        std::future::pending::<Result<http::Response<Body>, Status>>()
    });
    let names = tokio_stream::once("operations/1");
    let mut results = OperationsClient::new(stack).cancel_operations(names, 1);
    let first = Runtime::new().expect("a runtime");
    let cut = first.block_on(async { timeout(Duration::ZERO, results.next()).await });
    assert!(cut.is_err(), "{cut:?}");
    drop(first);
    let second = Runtime::new().expect("a runtime");
    let (name, result) = second.block_on(results.next()).expect("a result");
    assert_eq!(name, "operations/1");
    let status = result.expect_err("its runtime has ended");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.origin(), Some(Origin::Client));
    assert_eq!(
        status.message(),
        "the tokio runtime that made the call has ended"
    );
    assert!(second.block_on(results.next()).is_none());
}

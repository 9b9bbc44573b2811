//! The task of a set: when it starts, ends, and starts again.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use futures_executor::block_on;
use longrunning::{OperationsClient, proto::operations_server::OperationsServer};
use tokio::{runtime, task::JoinSet, time::sleep};
use tonic::{Code, body::Body};
use tower::{Service as _, service_fn};

use super::*;

fn runtime() -> runtime::Runtime {
    let mut builder = runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

#[tokio::test(start_paused = true)]
async fn no_call_is_made_after_the_last_clone_is_dropped() {
    let server = Server::default();
    let set = watched(&server, 100, 10_000 * SECOND);
    let other = set.clone();
    sleep(60 * SECOND).await;
    drop(set);
    let calls = server.lock().calls.len();
    sleep(60 * SECOND).await;
    assert!(server.lock().calls.len() > calls);
    drop(other);
    let tasks = runtime::Handle::current().metrics().num_alive_tasks();
    let calls = server.lock().calls.len();
    sleep(60 * SECOND).await;
    assert_eq!(server.lock().calls.len(), calls);
    assert!(tasks <= 1, "{tasks}");
    assert_eq!(runtime::Handle::current().metrics().num_alive_tasks(), 0);
}

#[test]
fn next_starts_the_task_if_operations_were_inserted_outside_a_runtime() {
    let server = Server::default();
    let set = server.client().operation_set();
    assert!(set.insert(name(0)));
    let runtime = runtime();
    runtime.block_on(async {
        server.start(name(0), Some(SECOND));
        assert_done(&drain(&set, 1).await);
    });
}

#[test]
fn next_returns_a_status_without_a_runtime() {
    let server = Server::default();
    let set = server.client().operation_set();
    set.insert(name(0));
    let (returned, result) = block_on(set.next()).expect("one result");
    assert_eq!(returned, name(0));
    let status = result.expect_err("no runtime");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        status.message().contains("needs a tokio runtime"),
        "{status}"
    );
    assert!(block_on(set.next()).is_none());
}

#[test]
fn another_runtime_continues_after_the_first_is_shut_down() {
    let server = Server::new(Faults {
        latency: SECOND,
        ..Faults::default()
    });
    let set = server.client().operation_set();
    let first = runtime();
    first.block_on(async {
        for n in 0..300 {
            server.start(name(n), Some(3 * SECOND));
            set.insert(name(n));
        }
        while set.stats().in_flight == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    });
    drop(first);
    assert_eq!(set.stats().in_flight, 0);
    let second = runtime();
    second.block_on(async {
        // The times of the first runtime mean nothing in this one.
        for n in 0..300 {
            server.start(name(n), Some(SECOND));
        }
        assert_done(&drain(&set, 300).await);
    });
}

#[test]
fn a_consumer_is_notified_when_the_runtime_of_the_task_is_shut_down() {
    let server = Server::default();
    let set = server.client().operation_set();
    let first = runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    first.block_on(async {
        server.start(name(0), Some(Duration::from_millis(300)));
        set.insert(name(0));
    });
    let other = set.clone();
    let consumer = std::thread::spawn(move || {
        let second = runtime::Builder::new_current_thread().enable_all().build();
        second.expect("a runtime").block_on(other.next())
    });
    drop(first);
    let (returned, result) = consumer.join().expect("no panic").expect("one result");
    assert_eq!(returned, name(0));
    assert!(result.expect("no failure").done);
}

#[test]
fn a_runtime_that_is_shut_down_is_reported() {
    let server = Server::default();
    let set = server.client().operation_set();
    set.insert(name(0));
    let ended = runtime();
    let handle = ended.handle().clone();
    drop(ended);
    let _entered = handle.enter();
    let (returned, result) = block_on(set.next()).expect("one result");
    assert_eq!(returned, name(0));
    assert_eq!(result.expect_err("no runtime").code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_stack_is_resumed_in_next() {
    let server = Server::default();
    let panics = Arc::new(AtomicBool::new(true));
    let service = OperationsServer::new(server.clone());
    let stack = service_fn({
        let panics = Arc::clone(&panics);
        move |request| {
            assert!(!panics.load(SeqCst), "a defect of the stack");
            service.clone().call(request)
        }
    });
    let set = OperationsClient::new(stack).operation_set();
    server.start(name(0), Some(SECOND));
    set.insert(name(0));
    let consumer = set.clone();
    let panicked = tokio::spawn(async move { consumer.next().await.is_some() }).await;
    assert!(panicked.expect_err("resumed").is_panic());
    panics.store(false, SeqCst);
    assert_done(&drain(&set, 1).await);
}

/// Returns a stack that panics in a number of calls of a method.
fn panicking(
    server: &Server,
    panics: usize,
    method: &'static str,
) -> impl GrpcStack + Sync + use<> {
    let left = Arc::new(AtomicUsize::new(panics));
    let service = server.stack();
    service_fn(move |request: http::Request<Body>| {
        let is_affected = request.uri().path().ends_with(method);
        let decrement = |left: usize| left.checked_sub(1);
        let panics = is_affected && left.fetch_update(SeqCst, SeqCst, decrement).is_ok();
        assert!(!panics, "a defect of the stack");
        service.clone().call(request)
    })
}

#[test]
fn many_consumers_survive_the_panics_of_a_stack() {
    for _ in 0..40 {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let server = Server::default();
            let set = OperationsClient::new(panicking(&server, 10, "GetOperation")).operation_set();
            let short = Duration::from_millis(1);
            let set = set.initial_delay(short).max_delivery_delay(short);
            for n in 0..50 {
                let name = format!("jobs/{n}");
                server.start(&name, Some(Duration::ZERO));
                set.insert(name);
            }
            let mut consumers = JoinSet::new();
            for _ in 0..8 {
                let set = set.clone();
                consumers.spawn(async move {
                    let mut count = 0;
                    loop {
                        let set = set.clone();
                        match tokio::spawn(async move { set.next().await }).await {
                            Ok(Some((_, result))) => count += usize::from(result.is_ok()),
                            Ok(None) => break count,
                            Err(panicked) => assert!(panicked.is_panic()),
                        }
                    }
                });
            }
            let counts = timeout(Duration::from_secs(20), consumers.join_all()).await;
            assert_eq!(counts.expect("no consumer hangs").iter().sum::<usize>(), 50);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_whose_calls_panic_does_not_starve_the_others() {
    let server = Server::new(Faults {
        latency: Duration::from_millis(50),
        ..Faults::default()
    });
    let service = server.stack();
    let stack = service_fn(move |request: http::Request<Body>| {
        let is_bad = request
            .headers()
            .values()
            .any(|value| value == "name=jobs%2Fbad");
        assert!(!is_bad, "a defect of the stack");
        service.clone().call(request)
    });
    let set = OperationsClient::new(stack).operation_set();
    for n in 0..20 {
        let name = format!("jobs/{n}");
        server.start(&name, Some(Duration::ZERO));
        set.insert(name);
    }
    set.insert("jobs/bad");
    let (mut results, mut panics) = (0, 0);
    while results < 20 {
        let set = set.clone();
        match tokio::spawn(async move { set.next().await }).await {
            Ok(result) => results += usize::from(result.is_some()),
            Err(_) => panics += 1,
        }
        assert!(panics < 100, "{results} results");
    }
    assert!(panics > 0);
}

#[test]
fn operations_are_returned_in_linear_time_without_a_runtime() {
    let server = Server::default();
    let set = server.client().operation_set();
    for n in 0..20_000 {
        set.insert(name(n));
    }
    let measured = allocation_counter::measure(|| {
        for _ in 0..20_000 {
            assert!(block_on(set.next()).is_some());
        }
    });
    assert!(block_on(set.next()).is_none());
    assert!(measured.count_total < 20_000 * 20, "{measured:?}");
}

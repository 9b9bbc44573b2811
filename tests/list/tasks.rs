//! Pages are calls that run as tasks of their own: their ends, and what becomes of the stream.

use std::{
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, sleep},
};
use tonic::body::Body;
use tower::service_fn;

use super::*;

fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

/// Notes that a call is in flight, until it is dropped.
struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    fn of(calls: &Arc<AtomicUsize>) -> Self {
        calls.fetch_add(1, SeqCst);
        Self(Arc::clone(calls))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_without_an_answer_ends_though_nobody_polls_and_nobody_has_set_a_timeout() {
    let in_flight = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&in_flight);
    let stack = service_fn(move |_: http::Request<Body>| {
        let call = InFlight::of(&counted);
        async move {
            let _call = call;
            pending::<Result<http::Response<Body>, Status>>().await
        }
    });
    let client = OperationsClient::new(stack);
    let mut unread = client.operations(PARENT);
    let cut = timeout(Duration::from_millis(1), unread.next()).await;
    assert!(cut.is_err(), "{cut:?}");
    assert_eq!(in_flight.load(SeqCst), 1);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(in_flight.load(SeqCst), 0);

    let begun = Instant::now();
    let client = client.timeout(Duration::from_secs(3));
    let (_, error) = read(client.operations(PARENT)).await;
    assert_eq!(error.expect("no answer").code(), Code::DeadlineExceeded);
    assert!(begun.elapsed() <= Duration::from_millis(3_001));
}

#[test]
fn after_a_panic_of_the_stack_the_page_is_asked_for_again() {
    let calls = Arc::<AtomicUsize>::default();
    let stack = service_fn(move |_: http::Request<Body>| {
        let first = calls.fetch_add(1, SeqCst) == 0;
        async move {
            assert!(!first, "a bug");
            Err::<http::Response<Body>, _>(Status::permission_denied("not yours"))
        }
    });
    let mut operations = OperationsClient::new(stack).operations(PARENT);
    let runtime = runtime();
    let mut next = || runtime.block_on(operations.next());
    let panic = catch_unwind(AssertUnwindSafe(&mut next)).expect_err("a panic");
    assert_eq!(panic.downcast_ref(), Some(&"a bug"));
    let status = next().expect("an item").expect_err("refused");
    assert_eq!(status.message(), "not yours");
    assert!(next().is_none());
}

#[test]
fn a_page_whose_runtime_has_ended_is_asked_for_again_in_the_next() {
    let server = Server::of_lists(|_| Ok(page(2, "")));
    let mut operations = server.client().operations(PARENT);
    for _ in 0..3 {
        // Dropped at once, it takes the task with it, begun or not.
        let first = runtime();
        let begun = first.block_on(poll_once(&mut operations));
        assert!(begun.is_none(), "a task takes a turn of its own");
    }
    let runtime = runtime();
    let (names, error) = runtime.block_on(read(operations));
    assert_eq!(names.len(), 2);
    assert!(error.is_none(), "{error:?}");
}

/// The next item, if it is there already.
async fn poll_once<S: Stream + Unpin>(stream: &mut S) -> Option<Option<S::Item>> {
    tokio::select! {
        biased;
        item = stream.next() => Some(item),
        () = std::future::ready(()) => None,
    }
}

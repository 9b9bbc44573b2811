//! Panics of a stack of one's own, and runtimes that end or lack something.

use std::{
    future::{pending, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::AtomicUsize,
};

use tokio::runtime::{Builder, Runtime};

use super::{
    in_process::Server,
    timing::{NAME, operation, running},
    *,
};

fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

#[test]
fn after_a_panic_of_the_stack_a_poller_looks_again() {
    let calls = Arc::<AtomicUsize>::default();
    let stack = service_fn(move |_: http::Request<Body>| {
        let first = calls.fetch_add(1, SeqCst) == 0;
        async move {
            assert!(!first, "a bug");
            Ok::<_, Status>(Status::not_found("no such operation").into_http::<Body>())
        }
    });
    let mut poller = OperationsClient::new(stack).poller(NAME);
    let runtime = runtime();
    let mut poll = || runtime.block_on(poller.until_done());
    let panic = catch_unwind(AssertUnwindSafe(&mut poll)).expect_err("a panic");
    assert_eq!(panic.downcast_ref(), Some(&"a bug"));
    let status = poll().expect_err("unknown");
    assert_eq!(status.code(), Code::NotFound);
}

#[test]
fn what_a_runtime_took_with_it_is_done_again_in_the_next() {
    let answers = Arc::new(AtomicUsize::new(0));
    let server = Server::of_looks({
        let answers = Arc::clone(&answers);
        move |_| match answers.load(SeqCst) {
            0 => Box::pin(pending()),
            1 => running(),
            _ => Box::pin(ready(Ok(operation(true)))),
        }
    });
    let policy = PollPolicy::default()
        .wait_timeout(Duration::ZERO)
        .initial_delay(Duration::from_millis(50));
    let mut poller = server.client().poller(NAME).policy(policy);
    let cut = runtime().block_on(async { timeout(Duration::ZERO, poller.until_done()).await });
    assert!(cut.is_err(), "{cut:?}");
    answers.store(1, SeqCst);
    let state = runtime().block_on(poller.next());
    assert!(!state.expect("a state").expect("it runs").done);
    // This time it is the pause.
    let cut = runtime().block_on(async { timeout(Duration::ZERO, poller.until_done()).await });
    assert!(cut.is_err(), "{cut:?}");
    answers.store(2, SeqCst);
    let end = runtime().block_on(poller.until_done());
    assert!(end.expect("done").done);
}

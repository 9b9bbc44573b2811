//! What became of an operation that was cancelled, for every way in which servers answer.

#[path = "../support/in_process.rs"]
mod in_process;
mod limits;
mod refusals;

use std::{future::ready, time::Duration};

use longrunning::{
    CallStatusExt as _, CancelOutcome, OperationsClient, Origin, Outcome, PollPolicy,
    emulator::{CallOutcome, CancelBehavior, Emulator, Method},
    proto::{CancelOperationRequest, OperationInfo, rpc},
};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

const NAME: &str = "projects/p/locations/us-central1/operations/ICN42";

async fn emulator() -> Emulator {
    let emulator = Emulator::start().await.expect("a free port");
    emulator.start_operation(NAME).expect("a new name");
    emulator
}

fn client(emulator: &Emulator) -> OperationsClient<Channel> {
    let endpoint = Endpoint::from_shared(emulator.endpoint()).expect("a URL");
    OperationsClient::new(endpoint.connect_lazy())
}

/// The delays in milliseconds in the place of seconds.
fn brisk() -> PollPolicy {
    PollPolicy::default()
        .initial_delay(Duration::from_millis(1))
        .max_delay(Duration::from_millis(20))
}

async fn outcome(emulator: &Emulator) -> CancelOutcome {
    let outcome = client(emulator).cancel_and_wait(NAME, brisk()).await;
    outcome.expect("an outcome")
}

async fn error(emulator: &Emulator, name: &str) -> Status {
    let outcome = client(emulator).cancel_and_wait(name, brisk()).await;
    outcome.expect_err("an error")
}

fn methods(emulator: &Emulator) -> Vec<Method> {
    emulator.calls().iter().map(|call| call.method()).collect()
}

/// A response that says in its own words that the work was cancelled.
fn cancelled_in_its_own_words() -> OperationInfo {
    OperationInfo {
        response_type: "CANCELLED".to_owned(),
        ..OperationInfo::default()
    }
}

#[tokio::test]
async fn an_operation_that_stops_is_cancelled() {
    let emulator = emulator().await;
    let CancelOutcome::Cancelled(state) = outcome(&emulator).await else {
        panic!("it was cancelled");
    };
    let Outcome::Cancelled(status) = state.outcome() else {
        panic!("code 1 was expected: {state:?}");
    };
    assert_eq!(status.message(), "the operation was cancelled");
    assert_eq!(methods(&emulator), [Method::Cancel, Method::Wait]);
}

#[tokio::test]
async fn an_operation_that_takes_its_time_to_stop_is_waited_for() {
    let emulator = emulator().await;
    emulator.on_cancel(CancelBehavior::CancelAfter(Duration::from_millis(50)));
    let outcome = outcome(&emulator).await;
    assert!(
        matches!(outcome, CancelOutcome::Cancelled(_)),
        "{outcome:?}"
    );
    assert_eq!(methods(&emulator), [Method::Cancel, Method::Wait]);
}

#[tokio::test]
async fn a_second_cancel_finds_the_operation_cancelled() {
    let emulator = emulator().await;
    for _ in 0..2 {
        let outcome = outcome(&emulator).await;
        assert!(
            matches!(outcome, CancelOutcome::Cancelled(_)),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn an_operation_that_completes_all_the_same_is_completed() {
    let emulator = emulator().await;
    let response = rpc::RequestInfo::default();
    emulator.on_cancel(CancelBehavior::complete(&response));
    let CancelOutcome::Succeeded(state) = outcome(&emulator).await else {
        panic!("it completed");
    };
    assert_eq!(
        state
            .into_response::<rpc::RequestInfo>()
            .expect("it is one"),
        response
    );
}

#[tokio::test]
async fn an_operation_that_ignores_the_request_is_watched_until_it_ends_by_itself() {
    let emulator = emulator().await;
    emulator.on_cancel(CancelBehavior::Ignore);
    let late = Duration::from_millis(50);
    emulator
        .complete_after(NAME, &rpc::RequestInfo::default(), late)
        .expect("it runs");
    let outcome = outcome(&emulator).await;
    assert!(
        matches!(outcome, CancelOutcome::Succeeded(_)),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn an_operation_that_was_done_before_is_what_it_was() {
    let emulator = emulator().await;
    emulator
        .complete(NAME, &rpc::RequestInfo::default())
        .expect("it runs");
    let outcome = outcome(&emulator).await;
    assert!(
        matches!(outcome, CancelOutcome::Succeeded(_)),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn an_unknown_name_whose_cancel_is_taken_all_the_same_is_gone() {
    let server = in_process::Server::of_looks(|_| {
        Box::pin(ready(Err(Status::not_found("no such operation"))))
    });
    let outcome = server.client().cancel_and_wait(NAME, brisk()).await;
    let outcome = outcome.expect("an outcome");
    assert!(matches!(outcome, CancelOutcome::NotFound), "{outcome:?}");
}

#[tokio::test]
async fn an_operation_that_its_cancel_deletes_is_gone() {
    let emulator = emulator().await;
    emulator.on_cancel(CancelBehavior::Delete);
    let outcome = outcome(&emulator).await;
    assert!(matches!(outcome, CancelOutcome::NotFound), "{outcome:?}");
    assert_eq!(outcome.operation(), None);
}

#[tokio::test]
async fn a_server_without_wait_is_asked_with_get() {
    let emulator = emulator().await;
    emulator.unimplement(Method::Wait);
    let outcome = outcome(&emulator).await;
    assert!(
        matches!(outcome, CancelOutcome::Cancelled(_)),
        "{outcome:?}"
    );
    assert_eq!(
        methods(&emulator),
        [Method::Cancel, Method::Wait, Method::Get]
    );
}

#[tokio::test]
async fn an_operation_that_is_done_with_no_result_is_nothing_else() {
    let emulator = emulator().await;
    emulator.on_cancel(CancelBehavior::CompleteWithoutResult);
    let CancelOutcome::DoneWithoutResult(state) = outcome(&emulator).await else {
        panic!("nothing may be invented");
    };
    assert!(state.done && state.result.is_none());
}

#[tokio::test]
async fn an_operation_that_fails_is_failed() {
    let emulator = emulator().await;
    emulator.on_cancel(CancelBehavior::Fail(rpc::Status {
        code: Code::DeadlineExceeded.into(),
        message: "out of time".to_owned(),
        details: Vec::new(),
    }));
    let CancelOutcome::Failed(state) = outcome(&emulator).await else {
        panic!("it failed");
    };
    let Outcome::Failed(status) = state.outcome() else {
        panic!("an error was expected: {state:?}");
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_cancellation_told_within_the_response_shows_as_that_response() {
    let emulator = emulator().await;
    emulator.on_cancel(CancelBehavior::complete(&cancelled_in_its_own_words()));
    let CancelOutcome::Succeeded(state) = outcome(&emulator).await else {
        panic!("the server set a response");
    };
    let response: OperationInfo = state.into_response().expect("it is one");
    assert_eq!(response, cancelled_in_its_own_words());
}

#[tokio::test]
async fn a_look_that_fails_for_good_after_an_accepted_cancel_leaves_the_outcome_unknown() {
    let emulator = emulator().await;
    let refusal = Status::permission_denied("you may cancel, but not look");
    emulator.fail_next(Method::Wait, 1, refusal.clone());
    emulator.fail_next(Method::Get, 1, refusal.clone());
    let CancelOutcome::Unknown(status) = outcome(&emulator).await else {
        panic!("nothing is known");
    };
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.message(), refusal.message());
}

#[tokio::test]
async fn an_account_that_may_look_and_not_wait_learns_the_outcome() {
    let emulator = emulator().await;
    let refusal = Status::permission_denied("you may look, but not wait");
    emulator.fail_next(Method::Wait, usize::MAX, refusal);
    let outcome = outcome(&emulator).await;
    assert!(
        matches!(outcome, CancelOutcome::Cancelled(_)),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn failures_of_looks_that_pass_are_ridden_on() {
    let emulator = emulator().await;
    emulator.fail_next(Method::Wait, 2, Status::unavailable("restarting"));
    emulator.fail_next(Method::Get, 2, Status::unavailable("restarting"));
    let outcome = outcome(&emulator).await;
    assert!(
        matches!(outcome, CancelOutcome::Cancelled(_)),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn dropped_it_stops_watching_and_the_cancel_stays() {
    let emulator = emulator().await;
    emulator.on_cancel(CancelBehavior::Ignore);
    let client = client(&emulator);
    tokio::select! {
        outcome = client.cancel_and_wait(NAME, brisk()) => panic!("it runs: {outcome:?}"),
        () = emulator.wait_until(|emulator| {
            !emulator.calls_of(Method::Wait).is_empty()
        }) => {}
    }
    emulator
        .wait_until(|emulator| emulator.in_flight() == 0)
        .await;
    let outcomes: Vec<_> = emulator.calls().iter().map(|call| call.outcome()).collect();
    let taken = CallOutcome::Answered(Code::Ok);
    assert_eq!(outcomes, [taken, CallOutcome::Abandoned]);
}

#[tokio::test]
async fn the_callers_metadata_goes_along_with_every_call() {
    let emulator = emulator().await;
    emulator.unimplement(Method::Wait);
    let mut request = Request::new(CancelOperationRequest { name: NAME.into() });
    let value = "p".parse().expect("ASCII");
    request.metadata_mut().insert("x-goog-user-project", value);
    let outcome = client(&emulator).cancel_and_wait(request, brisk()).await;
    outcome.expect("an outcome");
    assert_eq!(emulator.calls().len(), 3);
    for call in emulator.calls() {
        let value = call.metadata().get("x-goog-user-project");
        assert_eq!(value.expect("there"), "p");
    }
}

#[test]
fn it_can_be_spawned() {
    fn spawnable<T: Send + 'static>(_: T) {}
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let emulator = runtime.block_on(emulator());
    let client = runtime.block_on(async { client(&emulator) });
    spawnable(async move { client.cancel_and_wait(NAME, brisk()).await });
}

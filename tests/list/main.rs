//! Listing operations as a stream over pages.

#[path = "../support/in_process.rs"]
mod in_process;
mod tasks;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use in_process::Server;
use longrunning::{
    CallStatusExt as _, Operation, OperationStream, OperationsClient, Origin,
    emulator::{CallOutcome, CallRequest, Emulator, Method},
    proto::{ListOperationsRequest, ListOperationsResponse, OperationInfo},
};
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

const PARENT: &str = "projects/p/locations/l";

/// Starts 25 operations, of which every fifth is done.
async fn emulator() -> Emulator {
    let emulator = Emulator::start().await.expect("a free port");
    for n in 0..25 {
        let name = format!("{PARENT}/operations/{n:02}");
        emulator.start_operation(&name).expect("a new name");
        if n % 5 == 0 {
            let response = OperationInfo::default();
            emulator.complete(&name, &response).expect("it runs");
        }
    }
    emulator
}

fn client(emulator: &Emulator) -> OperationsClient<Channel> {
    let endpoint = Endpoint::from_shared(emulator.endpoint()).expect("a URL");
    OperationsClient::new(endpoint.connect_lazy())
}

fn pages_of(page_size: i32) -> ListOperationsRequest {
    ListOperationsRequest {
        name: PARENT.to_owned(),
        page_size,
        ..ListOperationsRequest::default()
    }
}

/// The last parts of the names, and the error that comes last if any does.
async fn read(
    operations: impl Stream<Item = Result<Operation, Status>>,
) -> (Vec<String>, Option<Status>) {
    let mut names = Vec::new();
    let mut operations = std::pin::pin!(operations);
    let mut error = None;
    while let Some(item) = operations.next().await {
        assert!(error.is_none(), "nothing follows an error: {item:?}");
        match item {
            Ok(operation) => {
                let number = operation.name.rsplit('/').next().expect("a part");
                names.push(number.to_owned());
            }
            Err(status) => error = Some(status),
        }
    }
    (names, error)
}

fn numbers(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| format!("{n:02}")).collect()
}

#[tokio::test]
async fn all_operations_of_all_pages_come_in_order() {
    let emulator = emulator().await;
    for (page_size, calls) in [(0, 1), (10, 3), (5, 5), (25, 1), (1, 25)] {
        emulator.clear_calls();
        let mut operations = client(&emulator).operations(pages_of(page_size));
        let (names, error) = read(&mut operations).await;
        assert_eq!(names, numbers(0, 25));
        assert!(error.is_none(), "{error:?}");
        assert_eq!(emulator.calls().len(), calls);
        assert!(operations.unreachable().is_empty());
        assert!(operations.next().await.is_none(), "it has ended");
    }
}

#[tokio::test]
async fn the_parent_alone_is_a_request() {
    let emulator = emulator().await;
    let (names, _) = read(client(&emulator).operations(PARENT)).await;
    assert_eq!(names, numbers(0, 25));
    let (names, error) = read(client(&emulator).operations("projects/none")).await;
    assert!(names.is_empty() && error.is_none());
}

#[tokio::test]
async fn filter_page_size_and_metadata_are_those_of_the_request_on_every_page() {
    let emulator = emulator().await;
    let mut request = Request::new(ListOperationsRequest {
        filter: "done=true".to_owned(),
        return_partial_success: true,
        ..pages_of(2)
    });
    let value = "p".parse().expect("ASCII");
    request.metadata_mut().insert("x-goog-user-project", value);
    let (names, _) = read(client(&emulator).operations(request)).await;
    assert_eq!(names, ["00", "05", "10", "15", "20"]);
    let calls = emulator.calls();
    assert_eq!(calls.len(), 3);
    for call in calls {
        let CallRequest::List(request) = call.request() else {
            panic!("a List was expected: {call:?}");
        };
        assert_eq!(
            (request.filter.as_str(), request.page_size),
            ("done=true", 2)
        );
        assert!(request.return_partial_success);
        let value = call.metadata().get("x-goog-user-project");
        assert_eq!(value.expect("there"), "p");
    }
}

#[tokio::test]
async fn a_stream_that_is_not_read_on_makes_no_further_call() {
    let emulator = emulator().await;
    let client = client(&emulator);
    let unread = client.operations(pages_of(10));
    assert!(emulator.calls().is_empty());
    drop(unread);
    for (read, calls) in [(1, 1), (10, 1), (11, 2)] {
        emulator.clear_calls();
        let operations = client.operations(pages_of(10)).take(read);
        assert_eq!(operations.collect::<Vec<_>>().await.len(), read);
        assert_eq!(emulator.calls().len(), calls);
    }
}

#[tokio::test]
async fn an_error_comes_after_what_came_before_it_and_the_list_can_be_resumed() {
    let emulator = emulator().await;
    let client = client(&emulator);
    let mut operations = client.operations(pages_of(10));
    let mut names = vec![
        operations
            .next()
            .await
            .expect("an item")
            .expect("no error")
            .name,
    ];
    assert_eq!(
        names.pop().as_deref(),
        Some("projects/p/locations/l/operations/00")
    );
    emulator.fail_next(Method::List, 1, Status::internal("a bug"));
    let (names, error) = read(&mut operations).await;
    assert_eq!(names, numbers(1, 10));
    let error = error.expect("the second page failed");
    assert_eq!((error.code(), error.message()), (Code::Internal, "a bug"));
    assert_eq!(error.origin(), Some(Origin::Server));
    assert!(operations.next().await.is_none());

    let rest = client.operations(ListOperationsRequest {
        page_token: operations.page_token().to_owned(),
        ..pages_of(10)
    });
    let (names, error) = read(rest).await;
    assert_eq!(names, numbers(10, 25));
    assert!(error.is_none(), "{error:?}");
}

#[tokio::test]
async fn a_read_that_is_cut_short_goes_on_with_the_call_in_flight() {
    let emulator = emulator().await;
    emulator.delay(Method::List, Duration::from_millis(100));
    let mut operations = client(&emulator).operations(pages_of(25));
    let mut cuts = 0;
    let first = loop {
        match timeout(Duration::from_millis(5), operations.next()).await {
            Ok(item) => break item,
            Err(_) => cuts += 1,
        }
    };
    assert!(first.expect("an item").is_ok());
    assert!(cuts > 0);
    assert_eq!(emulator.calls().len(), 1);
}

#[tokio::test]
async fn a_dropped_stream_ends_its_call() {
    let emulator = emulator().await;
    emulator.delay(Method::List, Duration::from_secs(3600));
    let mut operations = client(&emulator).operations(pages_of(25));
    tokio::select! {
        item = operations.next() => panic!("the answer is late: {item:?}"),
        () = emulator.wait_until(|emulator| emulator.in_flight() == 1) => {}
    }
    drop(operations);
    emulator
        .wait_until(|emulator| emulator.in_flight() == 0)
        .await;
    assert_eq!(emulator.calls()[0].outcome(), CallOutcome::Abandoned);
}

/// A page of so many operations, and the token of the next.
fn page(operations: usize, next_page_token: &str) -> ListOperationsResponse {
    ListOperationsResponse {
        operations: vec![Operation::default(); operations],
        next_page_token: next_page_token.to_owned(),
        unreachable: Vec::new(),
    }
}

#[tokio::test]
async fn an_empty_page_is_not_the_end() {
    let server = Server::of_lists(|request| {
        Ok(match request.page_token.as_str() {
            "" => page(0, "a"),
            "a" => page(0, "b"),
            "b" => page(2, "c"),
            _ => page(0, ""),
        })
    });
    let (names, error) = read(server.client().operations(PARENT)).await;
    assert_eq!(names.len(), 2);
    assert!(error.is_none(), "{error:?}");
}

#[tokio::test]
async fn what_the_server_could_not_reach_is_reported_once() {
    let server = Server::of_lists(|request| {
        let places = |places: &[&str]| places.iter().map(|&place| place.to_owned()).collect();
        Ok(match request.page_token.as_str() {
            "" => ListOperationsResponse {
                unreachable: places(&["locations/a"]),
                ..page(1, "2")
            },
            _ => ListOperationsResponse {
                unreachable: places(&["locations/b", "locations/a"]),
                ..page(1, "")
            },
        })
    });
    let mut operations = server.client().operations(PARENT);
    let (names, _) = read(&mut operations).await;
    assert_eq!(names.len(), 2);
    assert_eq!(operations.unreachable(), ["locations/a", "locations/b"]);
}

#[tokio::test]
async fn pages_that_go_round_in_a_circle_end_with_an_error_that_names_the_token() {
    let server = Server::of_lists(|_| Ok(page(1, "again")));
    let (names, error) = read(server.client().operations(PARENT)).await;
    assert_eq!(names.len(), 2);
    let error = error.expect("it would never end");
    assert_eq!(error.code(), Code::Internal);
    assert_eq!(error.origin(), Some(Origin::Client));
    let message =
        r#"the pages of "projects/p/locations/l" never end: page token "again" came again"#;
    assert_eq!(error.message(), message);

    let server = Server::of_lists(|request| {
        let n: usize = request.page_token.parse().unwrap_or_default();
        Ok(page(1, &(n % 10 + 1).to_string()))
    });
    let (names, error) = read(server.client().operations(PARENT)).await;
    assert!((10..100).contains(&names.len()), "{}", names.len());
    assert_eq!(error.expect("it would never end").code(), Code::Internal);
}

#[test]
fn a_stream_can_be_spawned() {
    fn spawnable<T: Send + Unpin + 'static>() {}
    spawnable::<OperationStream<Channel>>();
}

#[tokio::test(start_paused = true)]
async fn endless_empty_pages_are_requested_with_delays() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let server = Server::of_lists(move |_| {
        let next = counter.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(page(0, &next.to_string()))
    });
    let mut operations = server.client().operations(PARENT);
    let found = timeout(Duration::from_secs(60), operations.next()).await;
    assert!(found.is_err(), "there is none");
    // 10 without delay, 7 while the delay grows, and then about one a second.
    let calls = calls.load(Ordering::SeqCst);
    assert!((60..100).contains(&calls), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn a_few_empty_pages_are_not_delayed() {
    let server = Server::of_lists(|request| {
        let n: usize = request.page_token.parse().unwrap_or_default();
        Ok(match n {
            200 => page(1, ""),
            // Every tenth page has an operation.
            n => page(usize::from(n % 10 == 0), &(n + 1).to_string()),
        })
    });
    let begin = tokio::time::Instant::now();
    let (names, error) = read(server.client().operations(PARENT)).await;
    assert_eq!((names.len(), error.is_none()), (21, true));
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

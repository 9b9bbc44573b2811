//! Lists: pages, parents, filters.

use longrunning::{
    emulator::Emulator,
    proto::{ListOperationsRequest, Operation},
};
use tonic::Code;

use crate::{Client, assert_fails, client};

async fn with_names(names: &[&str]) -> (Emulator, Client) {
    let emulator = Emulator::start().await.expect("a free port");
    for &name in names {
        emulator.start_operation(name).expect("it is new");
    }
    let client = client(&emulator).await;
    (emulator, client)
}

/// Lists all pages, and counts them.
async fn list(client: &mut Client, mut request: ListOperationsRequest) -> (Vec<String>, usize) {
    let mut names = Vec::new();
    for pages in 1.. {
        let answer = client.list_operations(request.clone()).await;
        let page = answer.expect("it is a good request").into_inner();
        names.extend(page.operations.into_iter().map(|operation| operation.name));
        if page.next_page_token.is_empty() {
            return (names, pages);
        }
        request.page_token = page.next_page_token;
    }
    unreachable!("a list ends")
}

fn under(parent: &str) -> ListOperationsRequest {
    ListOperationsRequest {
        name: parent.to_owned(),
        ..ListOperationsRequest::default()
    }
}

#[tokio::test]
async fn a_parent_ends_at_a_slash_and_an_empty_one_lists_all() {
    let all = [
        "operations/1",
        "projects/p/locations/l/operations/1",
        "projects/p/locations/l2/operations/1",
        "projects/p2/operations/1",
    ];
    let (_emulator, mut client) = with_names(&all).await;
    assert_eq!(list(&mut client, under("")).await.0, all);
    assert_eq!(list(&mut client, under("operations")).await.0, all[..1]);
    assert_eq!(list(&mut client, under("projects/p")).await.0, all[1..3]);
    for parent in [
        "projects/p/locations/l",
        "projects/p/locations/l/",
        "projects/p/locations/l/operations",
    ] {
        assert_eq!(list(&mut client, under(parent)).await.0, all[1..2]);
    }
    assert!(list(&mut client, under("projects/q")).await.0.is_empty());
    assert!(list(&mut client, under(all[0])).await.0.is_empty());
}

#[tokio::test]
async fn pages_hold_each_operation_once_and_end_without_an_empty_one() {
    let names: Vec<_> = (0..250).map(|n| format!("operations/{n:03}")).collect();
    let (_emulator, mut client) = with_names(&names.iter().map(|n| &**n).collect::<Vec<_>>()).await;
    for (page_size, expected) in [(0, 3), (50, 5), (100, 3), (249, 2), (250, 1), (i32::MAX, 1)] {
        let request = ListOperationsRequest {
            page_size,
            ..under("operations")
        };
        let (listed, pages) = list(&mut client, request).await;
        assert_eq!(listed, names);
        assert_eq!(pages, expected, "page size {page_size}");
    }
}

#[tokio::test]
async fn a_filter_chooses_and_goes_on_over_pages() {
    let (emulator, mut client) = with_names(&["a/1", "a/2", "a/3", "b/1", "b/2"]).await;
    for name in ["a/1", "a/3", "b/2"] {
        emulator.complete(name, &()).expect("it runs");
    }
    for (filter, names) in [
        ("done=true", &["a/1", "a/3", "b/2"][..]),
        ("done=false", &["a/2", "b/1"]),
        ("done=true AND name=\"a/*\"", &["a/1", "a/3"]),
        ("name=\"b/1\"", &["b/1"]),
        ("done=true AND done=false", &[]),
    ] {
        let request = ListOperationsRequest {
            filter: filter.to_owned(),
            page_size: 1,
            ..ListOperationsRequest::default()
        };
        let (listed, pages) = list(&mut client, request).await;
        assert_eq!(listed, names, "{filter}");
        assert_eq!(pages, names.len().max(1), "{filter}");
    }
}

#[tokio::test]
async fn what_a_list_does_not_understand_is_an_invalid_argument() {
    let (_emulator, mut client) = with_names(&["a/1", "a/2"]).await;
    let good = ListOperationsRequest {
        page_size: 1,
        ..under("a")
    };
    let page = client.list_operations(good.clone()).await;
    let page_token = page.expect("it is good").into_inner().next_page_token;
    let refused = [
        (
            ListOperationsRequest {
                page_token: "nonsense".to_owned(),
                ..good.clone()
            },
            "page_token \"nonsense\" is not from a page of this list".to_owned(),
        ),
        (
            ListOperationsRequest {
                page_token: page_token.clone(),
                filter: "done=false".to_owned(),
                ..good.clone()
            },
            format!("page_token {page_token:?} is not from a page of this list"),
        ),
        (
            ListOperationsRequest {
                page_size: -1,
                ..good.clone()
            },
            "page_size is negative: -1".to_owned(),
        ),
        (
            ListOperationsRequest {
                filter: "done=true AND colour=red".to_owned(),
                ..good
            },
            "filter: no meaning in \"colour=red\"; known are done=true, done=false, \
             name=\"..\" and name=\"..*\", joined by AND"
                .to_owned(),
        ),
    ];
    for (request, message) in refused {
        let answer = client.list_operations(request).await;
        assert_fails(answer, Code::InvalidArgument, &message);
    }
}

#[tokio::test]
async fn a_list_goes_on_where_the_last_page_ended_though_that_operation_is_gone() {
    let (emulator, mut client) = with_names(&["a/1", "a/2", "a/3"]).await;
    let mut request = ListOperationsRequest {
        page_size: 1,
        ..under("a")
    };
    let page = client.list_operations(request.clone()).await;
    request.page_token = page.expect("it is good").into_inner().next_page_token;
    emulator.remove("a/1").expect("it is there");
    assert_eq!(list(&mut client, request).await.0, ["a/2", "a/3"]);
}

#[tokio::test]
async fn a_hundred_thousand_operations_are_listed() {
    let (emulator, mut client) = with_names(&[]).await;
    for number in 0..100_000 {
        emulator.insert(Operation {
            name: format!("operations/{number}"),
            done: number % 2 == 0,
            ..Operation::default()
        });
    }
    let request = ListOperationsRequest {
        page_size: 1000,
        filter: "done=true".to_owned(),
        ..under("operations")
    };
    let (listed, pages) = list(&mut client, request).await;
    assert_eq!((listed.len(), pages), (50_000, 50));
}

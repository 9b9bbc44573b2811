//! Polls and lists leave the calls beside them their room.

mod support;

use std::time::Duration;

use longrunning::{
    GrpcStack, Operation, OperationsClient, PollPolicy,
    emulator::{Emulator, Method},
    proto::ListOperationsRequest,
};
use support::proxy::{Mood, Proxy};
use tokio::{task::JoinSet, time::timeout};
use tonic::{Status, transport::Endpoint};

async fn limited(streams: usize, connections: usize) -> (Emulator, OperationsClient) {
    let emulator = Emulator::builder()
        .max_concurrent_streams(streams)
        .start()
        .await;
    let emulator = emulator.expect("a free port");
    let client = OperationsClient::builder(emulator.endpoint())
        .max_connections(connections)
        .timeout(Duration::from_secs(5))
        .connect()
        .await
        .expect("it is there");
    (emulator, client)
}

/// Has so many pollers look: all have, and as many wait as may.
async fn watch<S: GrpcStack + Sync>(
    emulator: &Emulator,
    client: &OperationsClient<S>,
    pollers: usize,
) -> JoinSet<Result<Operation, Status>> {
    let mut polls = JoinSet::new();
    for i in 0..pollers {
        let name = format!("operations/{i}");
        emulator.start_operation(&name).expect("a new name");
        let mut poller = client.poller(name);
        polls.spawn(async move { poller.until_done().await });
    }
    emulator
        .wait_until(|emulator| emulator.calls().len() >= pollers)
        .await;
    polls
}

#[tokio::test]
async fn waits_never_take_all_the_streams() {
    for (streams, connections, pollers) in [
        (1, 20, 30),
        (2, 20, 45),
        (10, 1, 15),
        (10, 4, 60),
        (1, 1, 3),
    ] {
        let (emulator, client) = limited(streams, connections).await;
        let _polls = watch(&emulator, &client, pollers).await;
        client
            .cancel_operation("operations/0")
            .await
            .expect("there is a stream for it");
        client
            .get_operation("operations/1")
            .await
            .expect("there is a stream for it");
    }
}

#[tokio::test]
async fn streams_of_connections_that_cannot_be_made_do_not_count() {
    let (emulator, _) = limited(4, 1).await;
    let proxy = Proxy::start(([127, 0, 0, 1], emulator.port()).into());
    let client = OperationsClient::builder(proxy.url())
        .timeout(Duration::from_secs(3))
        .connect()
        .await
        .expect("it is there");
    proxy.mood(Mood::Refuse);
    let _polls = watch(&emulator, &client, 4).await;
    assert_eq!(emulator.calls_of(Method::Wait).len(), 2);
    client
        .cancel_operation("operations/0")
        .await
        .expect("there is a stream for it");
}

#[tokio::test]
async fn over_a_channel_of_few_streams_waits_take_as_many_as_they_may() {
    let (emulator, _) = limited(10, 1).await;
    let endpoint = Endpoint::from_shared(emulator.endpoint()).expect("a URL");
    let client = OperationsClient::new(endpoint.connect_lazy())
        .timeout(Duration::from_secs(5))
        .max_concurrent_waits(5);
    let _polls = watch(&emulator, &client, 15).await;
    assert_eq!(emulator.calls_of(Method::Wait).len(), 5);
    client
        .cancel_operation("operations/0")
        .await
        .expect("there is a stream for it");
}

#[tokio::test]
async fn a_poller_that_nobody_polls_gives_its_stream_back() {
    let (emulator, client) = limited(5, 1).await;
    emulator.delay(None, Duration::from_millis(50));
    let mut pollers = Vec::new();
    for i in 0..20 {
        let name = format!("operations/{i}");
        emulator.start_operation(&name).expect("a new name");
        let mut poller = client
            .poller(name)
            .policy(PollPolicy::default().wait_timeout(Duration::ZERO));
        let cut = timeout(Duration::from_millis(1), poller.until_done()).await;
        cut.expect_err("it runs on");
        pollers.push(poller);
    }
    client
        .cancel_operation("operations/0")
        .await
        .expect("there is a stream for it");
}

#[tokio::test]
async fn a_list_that_nobody_reads_holds_no_neighbour_up() {
    let (emulator, client) = limited(100, 1).await;
    let metadata = prost_types::Any {
        type_url: "x/y".into(),
        value: vec![7; 3_000],
    };
    for i in 0..650 {
        emulator.insert(Operation {
            name: format!("p/operations/{i}"),
            metadata: Some(metadata.clone()),
            ..Default::default()
        });
    }
    let mut lists = Vec::new();
    for _ in 0..4 {
        let page = ListOperationsRequest {
            name: "p".into(),
            page_size: 650,
            ..Default::default()
        };
        let mut list = client.operations(page);
        timeout(Duration::ZERO, list.next())
            .await
            .expect_err("no page comes at once");
        lists.push(list);
    }
    emulator
        .wait_until(|emulator| emulator.calls().len() == 4 && emulator.in_flight() == 0)
        .await;
    client
        .get_operation("p/operations/1")
        .await
        .expect("there is room for its answer");
}

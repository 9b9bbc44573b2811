//! How an emulator starts and what is left when it ends.

use std::{net::TcpListener, time::Duration};

use longrunning::{emulator::Emulator, proto::operations_client::OperationsClient};
use tokio::runtime::Handle;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use crate::NAME;

/// Leaves an emulator with an open connection, a call in flight and an end to come.
async fn busy() -> (Emulator, tokio::task::JoinHandle<Code>) {
    let emulator = Emulator::start().await.expect("a free port");
    emulator.start_operation(NAME).expect("it is the first");
    let later = Duration::from_secs(3600);
    emulator.complete_after(NAME, &(), later).expect("it runs");
    let endpoint = Endpoint::from_shared(emulator.endpoint()).expect("it is a URL");
    let channel: Channel = endpoint.connect().await.expect("it listens");
    let call = tokio::spawn(async move {
        let mut client = OperationsClient::new(channel);
        client
            .wait_operation(NAME)
            .await
            .expect_err("cut off")
            .code()
    });
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;
    (emulator, call)
}

async fn no_task_is_left() {
    while Handle::current().metrics().num_alive_tasks() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn dropping_it_closes_port_and_connections_and_leaves_no_task() {
    let (emulator, call) = busy().await;
    let port = emulator.port();
    drop(emulator);
    call.await.expect("no panic");
    let ended = tokio::time::timeout(Duration::from_secs(10), no_task_is_left());
    ended.await.expect("all tasks end");
    TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
}

#[tokio::test]
async fn shutdown_returns_when_nothing_is_left() {
    let (emulator, call) = busy().await;
    let port = emulator.port();
    emulator.shutdown().await;
    TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    call.await.expect("no panic");
}

#[tokio::test]
async fn it_starts_again_on_the_same_port() {
    let emulator = Emulator::start().await.expect("a free port");
    let port = emulator.port();
    emulator.shutdown().await;
    let emulator = Emulator::builder().port(port).start().await;
    let emulator = emulator.expect("the port is free");
    assert_eq!(emulator.endpoint(), format!("http://127.0.0.1:{port}"));
}

#[tokio::test]
async fn a_port_that_is_taken_is_unavailable() {
    let first = Emulator::start().await.expect("a free port");
    let second = Emulator::builder().port(first.port()).start().await;
    let status = second.expect_err("it is taken");
    assert_eq!(status.code(), Code::Unavailable);
    let start = format!("cannot listen on 127.0.0.1:{}: ", first.port());
    assert!(status.message().starts_with(&start), "{}", status.message());
}

#[test]
fn outside_of_a_runtime_it_says_what_it_needs() {
    let mut start = std::pin::pin!(Emulator::start());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(answer) = start.as_mut().poll(&mut context) else {
        panic!("there is nothing to wait for");
    };
    let status = answer.expect_err("there is no runtime");
    assert_eq!(status.code(), Code::FailedPrecondition);
    let message = "an emulator needs a tokio runtime: run it within one";
    assert_eq!(status.message(), message);
}

#[tokio::test]
async fn a_drained_connection_answers_what_it_has_and_gives_way_to_another() {
    let emulator = Emulator::start().await.expect("a free port");
    emulator.start_operation(NAME).expect("it is the first");
    let mut client = crate::client(&emulator).await;
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.wait_operation(NAME).await });
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;
    emulator.drain_connections();
    emulator.complete(NAME, &()).expect("it runs");
    let waited = waiting.await.expect("no panic").expect("it is answered");
    assert!(waited.into_inner().done);
    emulator
        .wait_until(|emulator| emulator.open_connections() == 0)
        .await;
    client.get_operation(NAME).await.expect("it connects again");
    assert_eq!(emulator.accepted_connections(), 2);
}

#[tokio::test]
async fn a_cut_is_not_lost_when_a_drain_follows_at_once() {
    let (emulator, call) = busy().await;
    emulator.cut_connections();
    emulator.drain_connections();
    let cut = tokio::time::timeout(Duration::from_secs(10), call).await;
    cut.expect("it is cut off").expect("no panic");
    emulator
        .wait_until(|emulator| emulator.open_connections() == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn emulators_know_nothing_of_each_other() {
    let one = Emulator::start().await.expect("a free port");
    let two = Emulator::start().await.expect("a free port");
    one.start_operation(NAME).expect("it is the first");
    assert_ne!(one.port(), two.port());
    assert_eq!(two.operation(NAME), None);
}

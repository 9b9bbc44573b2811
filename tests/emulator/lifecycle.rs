//! How an emulator starts and what is left when it ends.

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use longrunning::{
    emulator::{Call, Emulator, Method},
    proto::{GetOperationRequest, operations_client::OperationsClient},
};
use tokio::{net::TcpStream, runtime::Handle};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use crate::{NAME, client};

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
    emulator.abort_connections();
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

#[tokio::test]
async fn a_restart_keeps_the_operations_the_calls_and_the_settings() {
    let emulator = Emulator::start().await.expect("a free port");
    emulator.start_operation(NAME).expect("it is the first");
    emulator
        .complete_after(NAME, &(), Duration::from_millis(200))
        .expect("it runs");
    emulator.unimplement(Method::Wait);
    client(&emulator)
        .await
        .get_operation(request())
        .await
        .expect("it runs");
    emulator.restart().await.expect("the port is free");
    assert_eq!(emulator.open_connections(), 0);
    let mut client = client(&emulator).await;
    let status = client
        .wait_operation(NAME)
        .await
        .expect_err("unimplemented");
    assert_eq!(status.code(), Code::Unimplemented);
    emulator
        .wait_until(|emulator| {
            emulator
                .operation(NAME)
                .is_some_and(|operation| operation.done)
        })
        .await;
    assert_eq!(emulator.calls().len(), 2);
    let connections: Vec<_> = emulator.calls().iter().map(Call::connection).collect();
    assert_eq!(connections, [Some(0), Some(1)]);
}

#[tokio::test]
async fn a_stopped_emulator_refuses_connections_until_it_is_restarted() {
    let (emulator, call) = busy().await;
    emulator.stop().await;
    call.await.expect("no panic"); // it has ended
    let refused = TcpStream::connect(("127.0.0.1", emulator.port())).await;
    assert_eq!(
        refused.expect_err("closed").kind(),
        io::ErrorKind::ConnectionRefused
    );
    emulator.stop().await; // has no further effect
    let taken = TcpListener::bind(("127.0.0.1", emulator.port())).expect("the port is free");
    let status = emulator.restart().await.expect_err("the port is taken");
    assert_eq!(status.code(), Code::Unavailable);
    drop(taken);
    emulator.restart().await.expect("the port is free");
    client(&emulator)
        .await
        .get_operation(request())
        .await
        .expect("it still runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_restarts_and_stops_do_not_interfere_with_each_other() {
    let emulator = Arc::new(Emulator::start().await.expect("a free port"));
    for _ in 0..200 {
        let restart = || {
            let emulator = Arc::clone(&emulator);
            tokio::spawn(async move { emulator.restart().await })
        };
        let (one, two) = (restart(), restart());
        one.await.expect("no panic").expect("the port is free");
        two.await.expect("no panic").expect("the port is free");
        let connected = TcpStream::connect(("127.0.0.1", emulator.port())).await;
        connected.expect("it serves");
        let stop = {
            let emulator = Arc::clone(&emulator);
            tokio::spawn(async move { emulator.stop().await })
        };
        restart()
            .await
            .expect("no panic")
            .expect("the port is free");
        stop.await.expect("no panic");
    }
    emulator.stop().await;
    TcpListener::bind(("127.0.0.1", emulator.port())).expect("the port is free");
}

/// The server runs on the runtime of its emulator, regardless of which thread restarts it.
#[test]
fn an_emulator_can_be_restarted_from_another_runtime_or_from_none() {
    let home = tokio::runtime::Runtime::new().expect("a runtime");
    let emulator = home.block_on(Emulator::start()).expect("a free port");
    emulator.start_operation(NAME).expect("it is the first");
    let serves = || {
        let call = async {
            let mut client = client(&emulator).await;
            client.get_operation(request()).await
        };
        home.block_on(call).expect("it serves");
    };
    let other = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    other
        .block_on(emulator.restart())
        .expect("the port is free");
    serves();
    drop(other);
    serves();
    futures_executor::block_on(emulator.restart()).expect("the port is free");
    serves();
    drop(home);
    let status = futures_executor::block_on(emulator.restart()).expect_err("no runtime");
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn an_emulator_in_process_has_no_socket() {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator.start_operation(NAME).expect("it is the first");
    let client = longrunning::OperationsClient::new(emulator.service());
    client.cancel_operation(NAME).await.expect("it runs");
    assert_eq!(emulator.calls()[0].connection(), None);
    assert_eq!((emulator.port(), emulator.accepted_connections()), (0, 0));
    let status = longrunning::OperationsClient::builder(emulator.endpoint()).connect_lazy();
    assert_eq!(status.expect_err("port 0").code(), Code::InvalidArgument);
    let status = emulator.restart().await.expect_err("no port");
    assert_eq!(status.code(), Code::FailedPrecondition);
    emulator.drain_connections();
    emulator.abort_connections();
    emulator.shutdown().await;
}

fn request() -> GetOperationRequest {
    GetOperationRequest {
        name: NAME.to_owned(),
    }
}

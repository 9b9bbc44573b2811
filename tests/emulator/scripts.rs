//! Awkward servers.

use std::{
    sync::{Arc, Weak, mpsc},
    thread,
    time::Duration,
};

use longrunning::{
    emulator::{CancelBehavior, Emulator, Method, WaitBehavior},
    proto::{
        CancelOperationRequest, GetOperationRequest, operation,
        operations_client::OperationsClient, rpc,
    },
};
use prost::Message as _;
use tokio::{net::TcpStream, time::Instant};
use tonic::{Code, IntoRequest as _, Request, Status, metadata::MetadataMap};

use crate::{NAME, assert_fails, emulator};

#[tokio::test]
async fn a_cancel_can_be_ignored() {
    let (emulator, mut client) = emulator().await;
    emulator.on_cancel(CancelBehavior::Ignore);
    client.cancel_operation(NAME).await.expect("it says OK");
    assert!(!emulator.operation(NAME).expect("it stays").done);
}

#[tokio::test]
async fn an_operation_can_end_otherwise_than_cancelled() {
    let (emulator, mut client) = emulator().await;
    let failed = rpc::Status {
        code: 8,
        message: "too late".to_owned(),
        details: Vec::new(),
    };
    let help = rpc::Help::default();
    let packed = prost_types::Any::from_msg(&help).expect("it can be packed");
    for (number, (behavior, result)) in [
        (
            CancelBehavior::complete(&help),
            Some(operation::Result::Response(packed)),
        ),
        (
            CancelBehavior::Fail(failed.clone()),
            Some(operation::Result::Error(failed)),
        ),
        (CancelBehavior::CompleteWithoutResult, None),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("operations/{number}");
        emulator.start_operation(&name).expect("it is new");
        emulator.on_cancel(behavior);
        client.cancel_operation(&name).await.expect("it says OK");
        let ended = emulator.operation(&name).expect("it stays");
        assert!(ended.done);
        assert_eq!(ended.result, result);
    }
}

#[tokio::test]
async fn a_refusal_arrives_with_code_message_details_and_metadata() {
    let (emulator, mut client) = emulator().await;
    let mut metadata = MetadataMap::new();
    metadata.insert("x-trace", "abc".parse().expect("it is ASCII"));
    for code in 1..=16 {
        let refusal = Status::with_details_and_metadata(
            Code::from_i32(code),
            "no: ü % \n",
            vec![0, 255, 128, 10].into(),
            metadata.clone(),
        );
        emulator.on_cancel(CancelBehavior::Refuse(refusal.clone()));
        let status = client.cancel_operation(NAME).await.expect_err("refused");
        assert_eq!(status.code(), refusal.code());
        assert_eq!(status.message(), refusal.message());
        assert_eq!(status.details(), refusal.details());
        assert_eq!(status.metadata().get("x-trace"), metadata.get("x-trace"));
    }
    assert!(!emulator.operation(NAME).expect("it stays").done);
}

#[tokio::test]
async fn a_cancel_can_delete_the_record() {
    let (emulator, mut client) = emulator().await;
    emulator.on_cancel(CancelBehavior::Delete);
    client.cancel_operation(NAME).await.expect("it says OK");
    assert_eq!(emulator.operation(NAME), None);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_can_take_its_time() {
    let (emulator, _) = emulator().await;
    let mut client = OperationsClient::new(emulator.service());
    let delay = Duration::from_secs(7);
    emulator.on_cancel(CancelBehavior::CancelAfter(delay));
    client.cancel_operation(NAME).await.expect("it says OK");
    assert!(!emulator.operation(NAME).expect("it stays").done);
    let start = Instant::now();
    emulator
        .wait_until(|emulator| emulator.operation(NAME).is_some_and(|it| it.done))
        .await;
    assert!(start.elapsed() >= delay);
}

#[tokio::test]
async fn a_behavior_can_be_for_one_operation() {
    let (emulator, mut client) = emulator().await;
    emulator.start_operation("operations/2").expect("it is new");
    emulator.on_cancel_of(NAME, CancelBehavior::Ignore);
    client.cancel_operation(NAME).await.expect("it says OK");
    let other = client.cancel_operation("operations/2").await;
    other.expect("it says OK");
    assert!(!emulator.operation(NAME).expect("it stays").done);
    assert!(emulator.operation("operations/2").expect("it stays").done);
}

#[tokio::test]
async fn the_next_calls_fail_and_do_nothing() {
    let (emulator, mut client) = emulator().await;
    emulator.fail_next(Method::Cancel, 2, Status::unavailable("busy"));
    emulator.fail_next(None, 1, Status::internal("oops"));
    let get = client.get_operation(NAME).await;
    assert_fails(get, Code::Internal, "oops");
    client.get_operation(NAME).await.expect("it was one");
    for _ in 0..2 {
        let cancel = client.cancel_operation(NAME).await;
        assert_fails(cancel, Code::Unavailable, "busy");
    }
    assert!(!emulator.operation(NAME).expect("it stays").done);
    client.cancel_operation(NAME).await.expect("those were two");
}

#[tokio::test]
async fn an_answer_can_get_lost_though_the_work_was_done() {
    let (emulator, mut client) = emulator().await;
    emulator.lose_next(Method::Delete, 1, Status::unavailable("cut off"));
    let delete = client.delete_operation(NAME).await;
    assert_fails(delete, Code::Unavailable, "cut off");
    assert_eq!(emulator.operation(NAME), None);
    let again = client.delete_operation(NAME).await.expect_err("it is gone");
    assert_eq!(again.code(), Code::NotFound);
}

#[tokio::test]
async fn a_stream_can_be_reset_with_any_error_code() {
    let (emulator, mut client) = emulator().await;
    for error_code in [7, 2, 11] {
        emulator.reset_next(Method::Get, 1, error_code);
        let status = client.get_operation(NAME).await.expect_err("it is reset");
        let mut source = std::error::Error::source(&status);
        let reset = loop {
            let error = source.expect("h2 tells of the reset");
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                break error;
            }
            source = error.source();
        };
        assert_eq!(reset.reason(), Some(error_code.into()));
        assert!(reset.is_remote());
    }
    client.get_operation(NAME).await.expect("they are used up");
}

#[tokio::test]
async fn a_method_can_be_missing() {
    let (emulator, mut client) = emulator().await;
    emulator.unimplement(Method::Wait);
    assert_fails(
        client.wait_operation(NAME).await,
        Code::Unimplemented,
        "unknown method WaitOperation",
    );
    client.get_operation(NAME).await.expect("that is there");
}

#[tokio::test]
async fn a_wait_can_answer_at_once() {
    let (emulator, mut client) = emulator().await;
    emulator.on_wait(WaitBehavior::AnswerAtOnce);
    let waited = client.wait_operation(NAME).await.expect("it is there");
    assert!(!waited.into_inner().done);
}

#[tokio::test]
async fn a_requirement_stands_before_every_call() {
    let (emulator, mut client) = emulator().await;
    emulator.require(|call| match call.metadata().get("authorization") {
        Some(value) if value == "Bearer secret" => Ok(()),
        _ => Err(Status::unauthenticated("who are you?")),
    });
    let cancel = client.cancel_operation(NAME).await;
    assert_fails(cancel, Code::Unauthenticated, "who are you?");
    assert!(!emulator.operation(NAME).expect("it stays").done);
    let mut request: Request<CancelOperationRequest> = NAME.into_request();
    let token = "Bearer secret".parse().expect("it is ASCII");
    request.metadata_mut().insert("authorization", token);
    client.cancel_operation(request).await.expect("it is known");
}

#[tokio::test]
async fn a_requirement_that_panics_is_told() {
    let (emulator, mut client) = emulator().await;
    emulator.require(|_| panic!("rude"));
    let get = client.get_operation(NAME).await;
    assert_fails(get, Code::Internal, "the emulator's requirement panicked");
    emulator.require(|_| Ok(()));
    client.get_operation(NAME).await.expect("it is replaced");
}

#[tokio::test]
async fn a_requirement_that_is_replaced_may_turn_to_the_emulator_as_it_goes() {
    struct Nosy(Weak<Emulator>);

    impl Drop for Nosy {
        fn drop(&mut self) {
            let emulator = self.0.upgrade().expect("it still runs");
            emulator.delay(None, Duration::ZERO);
        }
    }

    let emulator = Arc::new(Emulator::start().await.expect("a free port"));
    let nosy = Nosy(Arc::downgrade(&emulator));
    emulator.require(move |_| nosy.0.upgrade().map(drop).ok_or(Status::aborted("")));
    let replaced = Arc::clone(&emulator);
    let (done, is_done) = mpsc::channel();
    // On a thread: a deadlock would hold up the test for ever.
    thread::spawn(move || {
        replaced.require(|_| Ok(()));
        done.send(())
    });
    let is_done = is_done.recv_timeout(Duration::from_secs(10));
    is_done.expect("it is replaced in no time");
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_stays_late_beyond_the_deadline_and_is_never_cancelled() {
    let (emulator, _) = emulator().await;
    let mut client = OperationsClient::new(emulator.service());
    let delay = Duration::from_secs(3);
    emulator.delay(Method::Cancel, delay);
    let start = Instant::now();
    let mut request: Request<CancelOperationRequest> = NAME.into_request();
    request.set_timeout(Duration::from_secs(1));
    client.cancel_operation(request).await.expect("it says OK");
    assert!(start.elapsed() >= delay);
    let start = Instant::now();
    client.get_operation(NAME).await.expect("that is prompt");
    assert_eq!(start.elapsed(), Duration::ZERO);
}

// tonic's client obeys the timeout that it sends; this one leaves it to the server.
#[tokio::test]
async fn a_stuck_server_answers_late_over_a_socket_too() {
    let (emulator, _) = emulator().await;
    let delay = Duration::from_millis(300);
    emulator.delay(None, delay);
    let start = Instant::now();
    assert_eq!(answer_to_timeout(&emulator, "50m").await, Code::Ok);
    assert!(start.elapsed() >= delay);
}

#[tokio::test]
async fn a_call_that_arrives_with_no_time_left_is_deadline_exceeded() {
    let (emulator, _) = emulator().await;
    let answer = answer_to_timeout(&emulator, "0n").await;
    assert_eq!(answer, Code::DeadlineExceeded);
}

/// Gets the operation with this `grpc-timeout`, and returns the `grpc-status` that arrives.
async fn answer_to_timeout(emulator: &Emulator, timeout: &str) -> Code {
    let socket = TcpStream::connect(("127.0.0.1", emulator.port())).await;
    let handshake = h2::client::handshake(socket.expect("it listens")).await;
    let (send, connection) = handshake.expect("it speaks HTTP/2");
    let driver = tokio::spawn(connection);
    let mut send = send.ready().await.expect("it takes calls");
    let endpoint = emulator.endpoint();
    let method = format!("{endpoint}/google.longrunning.Operations/GetOperation");
    let request = http::Request::post(method)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(())
        .expect("it is a request");
    let message = GetOperationRequest {
        name: NAME.to_owned(),
    };
    let message = message.encode_to_vec();
    let length = u8::try_from(message.len()).expect("it is short");
    let frame = [&[0, 0, 0, 0, length], &*message].concat();
    let (answer, mut body) = send.send_request(request, false).expect("it can be sent");
    body.send_data(frame.into(), true).expect("it can be sent");
    let mut answer = answer.await.expect("it answers");
    let trailers = match answer.headers().contains_key("grpc-status") {
        true => answer.headers().clone(),
        false => {
            while let Some(data) = answer.body_mut().data().await {
                data.expect("it is whole");
            }
            let trailers = answer.body_mut().trailers().await;
            trailers.expect("it is whole").expect("they are there")
        }
    };
    driver.abort();
    Code::from_bytes(trailers["grpc-status"].as_bytes())
}

#[tokio::test]
async fn a_delay_function_sets_the_delay_of_each_call() {
    let (emulator, mut client) = emulator().await;
    emulator.delay_with(|call| match call.method() {
        Method::Get => Duration::MAX,
        _ => Duration::ZERO,
    });
    let mut request: Request<GetOperationRequest> = NAME.into_request();
    request.set_timeout(Duration::from_millis(50));
    client
        .get_operation(request)
        .await
        .expect_err("no response");
    client
        .cancel_operation(NAME)
        .await
        .expect("it is not delayed");
    emulator.delay_with(|_| Duration::ZERO);
    client.get_operation(NAME).await.expect("it is not delayed");
}

#[tokio::test]
async fn a_delay_function_that_panics_is_an_internal_error() {
    let (emulator, mut client) = emulator().await;
    emulator.delay_with(|_| panic!("a bug in the test"));
    let answer = client.get_operation(NAME).await;
    assert_fails(
        answer,
        Code::Internal,
        "the emulator's delay function panicked",
    );
    assert_eq!(emulator.in_flight(), 0);
}

#[tokio::test]
async fn the_delay_of_a_function_is_added_to_the_delay_of_the_method() {
    let (emulator, mut client) = emulator().await;
    emulator.delay(Method::Get, Duration::from_millis(60));
    emulator.delay_with(|_| Duration::from_millis(60));
    let begin = Instant::now();
    client.get_operation(NAME).await.expect("it is there");
    assert!(begin.elapsed() >= Duration::from_millis(120));
}

#[tokio::test(start_paused = true)]
async fn a_delay_of_duration_max_never_ends_even_if_time_is_paused() {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator.start_operation(NAME).expect("it is the first");
    emulator.delay(Method::Get, Duration::MAX);
    let client = longrunning::OperationsClient::new(emulator.service());
    let call = client.get_operation(NAME);
    let century = Duration::from_secs(100 * 365 * 24 * 3600);
    tokio::time::timeout(century, call)
        .await
        .expect_err("it has no response");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_listed_in_the_order_of_their_arrival() {
    let (emulator, client) = emulator().await;
    let (started, first) = std::sync::mpsc::channel();
    emulator.delay_with(move |call| {
        if call.method() == Method::Get {
            started.send(()).expect("the test waits");
            std::thread::sleep(Duration::from_millis(100));
        }
        Duration::ZERO
    });
    let mut other = client.clone();
    let get = tokio::spawn(async move { other.get_operation(NAME).await });
    first.recv().expect("the first call arrives");
    let mut client = client;
    client.cancel_operation(NAME).await.expect("it is there");
    get.await.expect("no panic").expect("it is there");
    let methods: Vec<_> = emulator.calls().iter().map(|call| call.method()).collect();
    assert_eq!(methods, [Method::Get, Method::Cancel]);
}

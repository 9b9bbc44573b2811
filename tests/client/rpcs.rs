//! The five methods, their names and their errors.

use std::{borrow::Cow, sync::Arc};

use super::*;

over_each_stack! {
    a_cancelled_operation_stays_and_is_done_with_code_1
    every_rpc_does_its_work
    each_error_code_arrives_unchanged_with_its_message_and_its_details
    a_server_without_the_method_is_unimplemented
    a_name_comes_in_every_form
    a_name_that_cannot_be_meant_is_refused_and_nothing_is_sent
    answers_beyond_the_limit_are_resource_exhausted_and_the_limit_can_be_set
}

async fn a_cancelled_operation_stays_and_is_done_with_code_1<S: GrpcStack + Sync>(
    client: Connect<S>,
) {
    let emulator = emulator().await;
    let client = client(&emulator);
    client.cancel_operation(NAME).await.expect("accepted");
    let operation = client.get_operation(NAME).await.expect("it is not deleted");
    assert!(operation.done);
    let Some(End::Error(error)) = operation.result else {
        panic!("an error was expected: {operation:?}");
    };
    assert_eq!(error.code, 1);
    client
        .cancel_operation(NAME)
        .await
        .expect("a second time is no error");
}

async fn every_rpc_does_its_work<S: GrpcStack + Sync>(client: Connect<S>) {
    let emulator = emulator().await;
    let client = client(&emulator);

    let operation = client.get_operation(NAME).await.expect("it runs");
    assert_eq!((operation.name.as_str(), operation.done), (NAME, false));

    let wait = WaitOperationRequest {
        name: NAME.into(),
        timeout: Some(ProtoDuration {
            seconds: 0,
            nanos: 1_000_000,
        }),
    };
    assert!(!client.wait_operation(wait).await.expect("it runs on").done);

    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.wait_operation(NAME).await }
    });
    emulator
        .wait_until(|emulator| emulator.in_flight() == 1)
        .await;
    let response = ProtoDuration {
        seconds: 7,
        nanos: 0,
    };
    emulator.complete(NAME, &response).expect("it runs");
    let done = waiting.await.expect("no panic").expect("it is done");
    assert_eq!(
        done.into_response::<ProtoDuration>().expect("a response"),
        response
    );

    let page = client.list_operations(PARENT).await.expect("a page");
    let names: Vec<_> = page
        .operations
        .iter()
        .map(|operation| &*operation.name)
        .collect();
    assert_eq!(names, [NAME]);

    client.delete_operation(NAME).await.expect("it is known");
    let status = client
        .get_operation(NAME)
        .await
        .expect_err("it is forgotten");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::NotFound, Some(Origin::Server))
    );
    assert!(status.message().contains(NAME), "{status}");
}

async fn each_error_code_arrives_unchanged_with_its_message_and_its_details<S: GrpcStack + Sync>(
    client: Connect<S>,
) {
    let emulator = emulator().await;
    let client = client(&emulator);
    for code in (1..=16).map(Code::from_i32) {
        let message = format!("{code:?}: über 100 %\n\"quoted\"\u{1f980}");
        let details = rpc::Status {
            code: code.into(),
            message: message.clone(),
            details: vec![Any {
                type_url: "a/b".into(),
                value: (0..=255).collect(),
            }],
        };
        let details = details.encode_to_vec();
        let mut refusal = Status::with_details(code, &message, details.clone().into());
        refusal
            .metadata_mut()
            .insert("x-reason", "because".parse().expect("legal"));
        let bytes = tonic::metadata::MetadataValue::from_bytes(&[0, 255, 7]);
        refusal.metadata_mut().insert_bin("x-reason-bin", bytes);
        emulator.on_cancel(CancelBehavior::Refuse(refusal));

        let status = client.cancel_operation(NAME).await.expect_err("refused");
        assert_eq!(status.code(), code);
        assert_eq!(status.message(), message);
        assert_eq!(status.details(), details);
        assert_eq!(
            status.metadata().get("x-reason").expect("is there"),
            "because"
        );
        let bytes = status.metadata().get_bin("x-reason-bin").expect("is there");
        assert_eq!(bytes.to_bytes().expect("base64")[..], [0, 255, 7]);
        assert_eq!(status.origin(), Some(Origin::Server));
    }
    assert!(!emulator.operation(NAME).expect("known").done);
}

async fn a_server_without_the_method_is_unimplemented<S: GrpcStack + Sync>(client: Connect<S>) {
    let emulator = emulator().await;
    emulator.unimplement(Method::Cancel);
    let status = client(&emulator)
        .cancel_operation(NAME)
        .await
        .expect_err("no such method");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::Unimplemented, Some(Origin::Server))
    );
}

async fn a_name_comes_in_every_form<S: GrpcStack + Sync>(client: Connect<S>) {
    let emulator = emulator().await;
    let client = client(&emulator);
    let name = NAME.to_owned();
    let operation = Operation {
        name: name.clone(),
        ..Default::default()
    };
    let message = CancelOperationRequest { name: name.clone() };
    client.cancel_operation(NAME).await.expect("a &str");
    client.cancel_operation(&name).await.expect("a &String");
    client.cancel_operation(&NAME).await.expect("a &&str");
    let cow = Cow::Borrowed(NAME);
    client.cancel_operation(&cow).await.expect("a &Cow");
    client.cancel_operation(cow).await.expect("a Cow");
    let shared = Arc::<str>::from(NAME);
    client.cancel_operation(&shared).await.expect("a &Arc");
    client.cancel_operation(shared).await.expect("an Arc");
    let boxed = Box::<str>::from(NAME);
    client.cancel_operation(&boxed).await.expect("a &Box");
    client.cancel_operation(boxed).await.expect("a Box");
    client.cancel_operation(name).await.expect("a String");
    client
        .cancel_operation(&operation)
        .await
        .expect("an &Operation");
    client
        .cancel_operation(operation)
        .await
        .expect("an Operation");
    client
        .cancel_operation(message.clone())
        .await
        .expect("a message");
    client
        .cancel_operation(Request::new(message))
        .await
        .expect("a request");
    assert!(emulator.calls().iter().all(|call| call.name() == NAME));
    assert_eq!(emulator.calls().len(), 14);
}

async fn a_name_that_cannot_be_meant_is_refused_and_nothing_is_sent<S: GrpcStack + Sync>(
    client: Connect<S>,
) {
    let emulator = emulator().await;
    let client = client(&emulator);
    let long = "é".repeat(2000);
    let empty = "the operation's name is empty: give one such as \"operations/1\"";
    for (name, text) in [("", empty), (&long, "the operation's name \"é")] {
        let statuses = [
            client.cancel_operation(name).await.expect_err("refused"),
            client.get_operation(name).await.expect_err("refused"),
            client.delete_operation(name).await.expect_err("refused"),
            client.wait_operation(name).await.expect_err("refused"),
        ];
        for status in statuses {
            assert_eq!(
                (status.code(), status.origin()),
                (Code::InvalidArgument, Some(Origin::Client))
            );
            assert!(status.message().starts_with(text), "{status}");
        }
    }
    assert_eq!(emulator.calls().len(), 0);
    assert_eq!(emulator.accepted_connections(), 0);
}

async fn answers_beyond_the_limit_are_resource_exhausted_and_the_limit_can_be_set<
    S: GrpcStack + Sync,
>(
    client: Connect<S>,
) {
    let emulator = emulator().await;
    let text = rpc::LocalizedMessage {
        message: "x".repeat(5 << 20),
        ..Default::default()
    };
    emulator.complete(NAME, &text).expect("it runs");
    let client = client(&emulator);
    let status = client
        .get_operation(NAME)
        .await
        .expect_err("more than 4 MiB");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::ResourceExhausted, Some(Origin::Client))
    );
    let roomy = client.clone().max_decoding_message_size(6 << 20);
    let operation = roomy.get_operation(NAME).await.expect("room enough");
    assert_eq!(
        operation
            .into_response::<rpc::LocalizedMessage>()
            .expect("it is"),
        text
    );
    let tight = client.max_decoding_message_size(10);
    let status = tight.list_operations(PARENT).await.expect_err("no room");
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn the_builder_sets_limits_as_the_client_does() {
    let emulator = emulator().await;
    let builder = || OperationsClient::builder(emulator.endpoint());
    let client = builder().max_decoding_message_size(10).connect_lazy();
    let client = client.expect("a client");
    let status = client.get_operation(NAME).await.expect_err("no room");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(emulator.calls().len(), 1);
    let client = builder().max_encoding_message_size(10).connect_lazy();
    let client = client.expect("a client");
    let status = client.get_operation(NAME).await.expect_err("no room");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(emulator.calls().len(), 1);
    let client = builder().max_concurrent_waits(0).connect_lazy();
    let mut poller = client.expect("a client").poller(NAME);
    emulator.complete(NAME, &()).expect("it runs");
    poller.until_done().await.expect("it is done");
    assert_eq!(emulator.calls_of(Method::Wait).len(), 0);
}

//! The headers of a call.

use longrunning::Credentials;

use super::*;

over_each_stack! {
    an_empty_parent_is_sent_as_it_is
    every_call_carries_the_headers_and_those_of_its_caller
    a_wait_has_no_http_rule_and_so_no_routing_header
    a_callers_own_header_wins
    headers_that_servers_would_refuse_are_rejected_by_the_client
    the_error_for_rejected_headers_does_not_contain_their_values
    a_name_that_is_too_long_for_a_header_is_rejected_with_an_error_that_names_it
    many_small_headers_are_as_much_as_a_few_large_ones
    the_header_size_limit_can_be_set
}

async fn an_empty_parent_is_sent_as_it_is<S: GrpcStack + Sync>(client: Connect<S>) {
    let emulator = emulator().await;
    let page = client(&emulator)
        .list_operations("")
        .await
        .expect("all there are");
    assert_eq!(page.operations.len(), 1);
    assert!(
        !emulator.calls()[0]
            .metadata()
            .contains_key("x-goog-request-params")
    );
}

async fn every_call_carries_the_headers_and_those_of_its_caller<S: GrpcStack + Sync>(
    client: Connect<S>,
) {
    let emulator = emulator().await;
    let client = client(&emulator);
    let mut request: Request<CancelOperationRequest> = NAME.into_request();
    request
        .metadata_mut()
        .insert("x-trace", "42".parse().expect("legal"));
    request.set_timeout(Duration::from_secs(20));
    client.cancel_operation(request).await.expect("accepted");
    client.get_operation(NAME).await.expect("known");
    client.delete_operation(NAME).await.expect("known");
    client.list_operations(PARENT).await.expect("a page");

    let escaped = "name=projects%2Fp%2Flocations%2Fus-central1";
    let of_operation = format!("{escaped}%2Foperations%2FICN42");
    let calls = emulator.calls();
    for (call, routing) in calls
        .iter()
        .zip([&*of_operation, &of_operation, &of_operation, escaped])
    {
        let values: Vec<_> = call
            .metadata()
            .get_all("x-goog-request-params")
            .iter()
            .collect();
        assert_eq!(values, [routing], "{}", call.method());
        let client = call
            .metadata()
            .get("x-goog-api-client")
            .expect("is there")
            .to_str();
        let client = client.expect("ASCII");
        let version = concat!(" gccl/", env!("CARGO_PKG_VERSION"), " grpc/0.14");
        assert!(
            client.starts_with("gl-rust/1.") && client.ends_with(version),
            "{client}"
        );
    }
    assert_eq!(calls[0].metadata().get("x-trace").expect("is there"), "42");
    let timeout = calls[0].timeout().expect("grpc-timeout is told");
    assert!(
        timeout <= Duration::from_secs(20) && timeout > Duration::from_secs(10),
        "{timeout:?}"
    );
}

async fn a_wait_has_no_http_rule_and_so_no_routing_header<S: GrpcStack + Sync>(client: Connect<S>) {
    let emulator = emulator().await;
    emulator.complete(NAME, &()).expect("it runs");
    client(&emulator).wait_operation(NAME).await.expect("done");
    assert!(
        !emulator.calls()[0]
            .metadata()
            .contains_key("x-goog-request-params")
    );
}

async fn a_callers_own_header_wins<S: GrpcStack + Sync>(client: Connect<S>) {
    let emulator = emulator().await;
    let mut request: Request<CancelOperationRequest> = NAME.into_request();
    for key in ["x-goog-request-params", "x-goog-api-client"] {
        request
            .metadata_mut()
            .insert(key, "mine".parse().expect("legal"));
    }
    client(&emulator)
        .cancel_operation(request)
        .await
        .expect("accepted");
    for key in ["x-goog-request-params", "x-goog-api-client"] {
        let values: Vec<_> = emulator.calls()[0]
            .metadata()
            .get_all(key)
            .iter()
            .cloned()
            .collect();
        assert_eq!(values, ["mine"]);
    }
}

async fn headers_that_servers_would_refuse_are_rejected_by_the_client<S: GrpcStack + Sync>(
    client: Connect<S>,
) {
    let emulator = emulator().await;
    let mut request: Request<CancelOperationRequest> = NAME.into_request();
    request
        .metadata_mut()
        .insert("x-long", "a".repeat(8_154).parse().expect("legal"));
    let status = client(&emulator)
        .cancel_operation(request)
        .await
        .expect_err("refused");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::InvalidArgument, Some(Origin::Client))
    );
    let text = status.message();
    assert!(text.starts_with("the request's headers are "), "{text}");
    assert!(
        text.ends_with(
            " bytes, and the limit (max_header_list_size) is 8192: the largest is x-long with 8192 bytes"
        ),
        "{text}"
    );
    assert_eq!(emulator.calls().len(), 0);
}

async fn the_error_for_rejected_headers_does_not_contain_their_values<S: GrpcStack + Sync>(
    client: Connect<S>,
) {
    let emulator = emulator().await;
    let token = format!("PLANTED-SECRET{}", "a".repeat(8_192));
    let auth = Credentials::bearer_token(token).interceptor().await;
    let client = client(&emulator).auth(auth.expect("it is fixed"));
    let status = client.cancel_operation(NAME).await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    let text = format!("{status:?}");
    assert!(
        text.contains("the largest is authorization with 82"),
        "{text}"
    );
    assert!(!text.contains("PLANTED-SECRET"), "{text}");
}

async fn many_small_headers_are_as_much_as_a_few_large_ones<S: GrpcStack + Sync>(
    client: Connect<S>,
) {
    let emulator = emulator().await;
    let client = client(&emulator);
    let neighbour = client.wait_operation(NAME);
    let mut neighbour = std::pin::pin!(tokio::time::timeout(Duration::from_secs(1), neighbour));
    assert!(poll_once(neighbour.as_mut()).await.is_none());
    for entries in [241, 500, 8_000] {
        let mut request: Request<CancelOperationRequest> = NAME.into_request();
        for _ in 0..entries {
            request
                .metadata_mut()
                .append("a", "b".parse().expect("legal"));
        }
        let status = client.cancel_operation(request).await.expect_err("refused");
        let found = (status.code(), status.origin());
        assert_eq!(
            found,
            (Code::InvalidArgument, Some(Origin::Client)),
            "{status}"
        );
        let largest = format!("the largest is a with {} bytes", entries * 34);
        assert!(status.message().ends_with(&largest), "{status}");
    }
    // Each of the two is short enough by itself.
    let mut request: Request<CancelOperationRequest> = "a".repeat(4_000).into_request();
    request
        .metadata_mut()
        .insert("x", "a".repeat(4_000).parse().expect("legal"));
    let status = client.cancel_operation(request).await.expect_err("refused");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::InvalidArgument, Some(Origin::Client))
    );
    assert!(neighbour.await.is_err(), "the call beside them waits on");
}

async fn a_name_that_is_too_long_for_a_header_is_rejected_with_an_error_that_names_it<
    S: GrpcStack + Sync,
>(
    client: Connect<S>,
) {
    let emulator = emulator().await;
    let status = client(&emulator).cancel_operation("a".repeat(9_000)).await;
    let status = status.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status
            .message()
            .contains("of 9000 bytes needs a routing header (x-goog-request-params)"),
        "{status}"
    );
}

/// Polls a future once, after what is due to run has run.
async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future.as_mut() => Some(output),
        () = tokio::task::yield_now() => None,
    }
}

async fn the_header_size_limit_can_be_set<S: GrpcStack + Sync>(client: Connect<S>) {
    let emulator = emulator().await;
    let name = "a".repeat(6_000);
    emulator.start_operation(&name).expect("a new name");
    let request = || {
        let mut request: Request<CancelOperationRequest> = name.as_str().into_request();
        let long = "a".repeat(6_000).parse().expect("legal");
        request.metadata_mut().insert("x", long);
        request
    };
    let client = client(&emulator);
    let status = client.cancel_operation(request()).await;
    assert_eq!(status.expect_err("8 KiB").code(), Code::InvalidArgument);
    let client = client.max_header_list_size(15 << 10);
    client
        .cancel_operation(request())
        .await
        .expect("the emulator accepts 16 KiB");
}

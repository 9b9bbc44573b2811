//! What goes along with every call.

use super::*;

over_each_stack! {
    an_empty_parent_is_sent_as_it_is
    every_call_carries_the_headers_and_those_of_its_caller
    a_wait_has_no_http_rule_and_so_no_routing_header
    a_callers_own_header_wins
    metadata_that_servers_would_refuse_are_refused_here
    many_small_headers_are_as_much_as_a_few_large_ones
    the_most_that_may_be_sent_arrives
}

async fn an_empty_parent_is_sent_as_it_is<S: Stack + Sync>(client: Connect<S>) {
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

async fn every_call_carries_the_headers_and_those_of_its_caller<S: Stack + Sync>(
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

async fn a_wait_has_no_http_rule_and_so_no_routing_header<S: Stack + Sync>(client: Connect<S>) {
    let emulator = emulator().await;
    emulator.complete(NAME, &()).expect("it runs");
    client(&emulator).wait_operation(NAME).await.expect("done");
    assert!(
        !emulator.calls()[0]
            .metadata()
            .contains_key("x-goog-request-params")
    );
}

async fn a_callers_own_header_wins<S: Stack + Sync>(client: Connect<S>) {
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

async fn metadata_that_servers_would_refuse_are_refused_here<S: Stack + Sync>(client: Connect<S>) {
    let emulator = emulator().await;
    let mut request: Request<CancelOperationRequest> = NAME.into_request();
    request
        .metadata_mut()
        .insert("x-long", "a".repeat(8155).parse().expect("legal"));
    let status = client(&emulator)
        .cancel_operation(request)
        .await
        .expect_err("refused");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::InvalidArgument, Some(Origin::Client))
    );
    assert_eq!(
        status.message(),
        "the request's metadata is 8193 bytes: send at most 8192"
    );
    assert_eq!(emulator.calls().len(), 0);
}

async fn many_small_headers_are_as_much_as_a_few_large_ones<S: Stack + Sync>(client: Connect<S>) {
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
        let bytes = entries * 34;
        assert_eq!(
            status.message(),
            format!("the request's metadata is {bytes} bytes: send at most 8192")
        );
    }
    // Each of the two is short enough by itself.
    let mut request: Request<CancelOperationRequest> = "a".repeat(8_000).into_request();
    request
        .metadata_mut()
        .insert("x", "a".repeat(8_000).parse().expect("legal"));
    let status = client.cancel_operation(request).await.expect_err("refused");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::InvalidArgument, Some(Origin::Client))
    );
    let what = "the request's metadata, with routing header and credentials, is ";
    assert!(status.message().starts_with(what), "{status}");
    assert!(neighbour.await.is_err(), "the call beside them waits on");
}

/// Polls a future once, after what is due to run has run.
async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future.as_mut() => Some(output),
        () = tokio::task::yield_now() => None,
    }
}

async fn the_most_that_may_be_sent_arrives<S: Stack + Sync>(client: Connect<S>) {
    let emulator = emulator().await;
    let name = "a".repeat(7_000);
    emulator.start_operation(&name).expect("a new name");
    let mut request: Request<CancelOperationRequest> = name.into_request();
    request
        .metadata_mut()
        .insert("x", "a".repeat(7_900).parse().expect("legal"));
    client(&emulator)
        .cancel_operation(request)
        .await
        .expect("servers take it");
}

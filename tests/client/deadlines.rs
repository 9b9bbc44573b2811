//! When a call ends for want of time.

use super::*;

over_each_stack! {
    a_time_before_all_times_is_no_panic
    a_malformed_timeout_is_refused_by_name
    a_timeout_of_zero_sends_nothing
}

async fn a_time_before_all_times_is_no_panic<S: GrpcStack + Sync>(client: Connect<S>) {
    let emulator = emulator().await;
    let timeout = Some(ProtoDuration {
        seconds: i64::MIN,
        nanos: i32::MIN,
    });
    let wait = WaitOperationRequest {
        name: NAME.into(),
        timeout,
    };
    let status = client(&emulator)
        .wait_operation(wait)
        .await
        .expect_err("refused");
    assert_eq!(
        (status.code(), status.origin()),
        (Code::InvalidArgument, Some(Origin::Server))
    );

    let retry = rpc::RetryInfo {
        retry_delay: timeout,
    };
    let details = vec![Any::from_msg(&retry).expect("encodes")];
    let status = rpc::Status {
        code: 14,
        message: "later".into(),
        details,
    };
    emulator.fail_next(Method::Get, 1, status.into());
    let client = client(&emulator).retry(RetryPolicy::default());
    client.get_operation(NAME).await.expect("a second attempt");
}

async fn a_malformed_timeout_is_refused_by_name<S: GrpcStack + Sync>(client: Connect<S>) {
    let emulator = emulator().await;
    let mut request: Request<CancelOperationRequest> = NAME.into_request();
    request
        .metadata_mut()
        .insert("grpc-timeout", "10s".parse().expect("legal"));
    let status = client(&emulator)
        .cancel_operation(request)
        .await
        .expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        status.message(),
        r#"grpc-timeout "10s" is not up to 8 digits and one of H, M, S, m, u, n"#
    );
}

#[tokio::test]
async fn a_late_answer_is_deadline_exceeded_on_the_callers_own_channel() {
    let emulator = emulator().await;
    emulator.delay(Method::Cancel, Duration::from_secs(3600));
    let by_request = over_a_channel(&emulator);
    let mut request: Request<CancelOperationRequest> = NAME.into_request();
    request.set_timeout(Duration::from_millis(50));
    let by_client = over_a_channel(&emulator).timeout(Duration::from_millis(50));
    let endpoint = Endpoint::from_shared(emulator.endpoint()).expect("a URL");
    let by_channel =
        OperationsClient::new(endpoint.timeout(Duration::from_millis(50)).connect_lazy());
    for status in [
        by_request
            .cancel_operation(request)
            .await
            .expect_err("late"),
        by_client.cancel_operation(NAME).await.expect_err("late"),
        by_channel.cancel_operation(NAME).await.expect_err("late"),
    ] {
        assert_eq!(
            (status.code(), status.origin()),
            (Code::DeadlineExceeded, Some(Origin::Client)),
            "{status}"
        );
    }
}

async fn a_timeout_of_zero_sends_nothing<S: GrpcStack + Sync>(client: Connect<S>) {
    let emulator = emulator().await;
    let client = client(&emulator).timeout(Duration::ZERO);
    let status = client.cancel_operation(NAME).await.expect_err("no time");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(
        status.message(),
        "no answer to CancelOperation within 0ns: not sent"
    );
    assert_eq!(emulator.accepted_connections(), 0);
}

#[tokio::test]
async fn a_call_that_waited_for_a_stream_tells_what_is_left() {
    let emulator = Emulator::builder().max_concurrent_streams(1).start().await;
    let emulator = emulator.expect("a free port");
    emulator.start_operation(NAME).expect("a new name");
    emulator.delay(Method::Get, Duration::from_secs(1));
    let client = OperationsClient::builder(emulator.endpoint())
        .max_connections(1)
        .connect()
        .await
        .expect("it is there");
    let (first, second) = tokio::join!(client.get_operation(NAME), client.get_operation(NAME));
    first.and(second).expect("known");
    let told: Vec<_> = emulator
        .calls()
        .iter()
        .map(|call| call.timeout().expect("told"))
        .collect();
    assert!(told[0] > Duration::from_secs(9), "{told:?}");
    assert!(told[1] <= Duration::from_secs(9), "{told:?}");
}

//! Quotas of methods.

use std::time::Duration;

use longrunning::{
    CallStatusExt as _, OperationsClient, Origin,
    emulator::{Emulator, EmulatorService, Method},
    proto::operations_server::OperationsServer,
};
use tokio::time::advance;
use tonic::Code;

type Client = OperationsClient<OperationsServer<EmulatorService>>;

/// An emulator with one operation.
fn emulator() -> (Emulator, Client) {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator
        .start_operation("operations/1")
        .expect("a new name");
    let client = OperationsClient::new(emulator.service());
    (emulator, client)
}

/// Makes calls until one is rejected, and returns the number of accepted calls.
async fn accepted(client: &Client) -> usize {
    for calls in 0..10_000 {
        match client.get_operation("operations/1").await {
            Ok(_) => {}
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                return calls;
            }
        }
    }
    panic!("no call was rejected");
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_quota_are_rejected_with_a_retry_delay() {
    let (emulator, client) = emulator();
    emulator.quota(Method::Get, 500.0);
    assert_eq!(accepted(&client).await, 50);
    let status = client.get_operation("operations/1").await;
    let status = status.expect_err("the quota is exceeded");
    assert_eq!(status.origin(), Some(Origin::Server));
    let message = "quota exceeded: GetOperation is limited to 500 calls per second";
    assert_eq!(status.message(), message);
    assert_eq!(status.retry_delay(), Some(Duration::from_millis(2)));
    advance(Duration::from_millis(2)).await;
    assert_eq!(accepted(&client).await, 1);
    advance(Duration::from_millis(20)).await;
    assert_eq!(accepted(&client).await, 10);
    advance(Duration::from_secs(3600)).await;
    assert_eq!(accepted(&client).await, 50);
}

#[tokio::test(start_paused = true)]
async fn a_quota_of_less_than_one_call_per_second_allows_one_call_at_a_time() {
    let (emulator, client) = emulator();
    emulator.quota(Method::Get, 0.1);
    assert_eq!(accepted(&client).await, 1);
    let status = client.get_operation("operations/1").await;
    let delay = status.expect_err("the quota is exceeded").retry_delay();
    assert_eq!(delay, Some(Duration::from_secs(10)));
    advance(Duration::from_secs(10)).await;
    assert_eq!(accepted(&client).await, 1);
}

#[tokio::test(start_paused = true)]
async fn each_method_has_its_own_quota() {
    let (emulator, client) = emulator();
    emulator.quota(None, 10.0);
    assert_eq!(accepted(&client).await, 1);
    client
        .cancel_operation("operations/1")
        .await
        .expect("accepted");
    let status = client.cancel_operation("operations/1").await;
    assert_eq!(
        status.expect_err("the quota is exceeded").code(),
        Code::ResourceExhausted
    );
    emulator.quota(Method::Cancel, f64::INFINITY);
    for _ in 0..100 {
        client
            .cancel_operation("operations/1")
            .await
            .expect("accepted");
    }
    assert_eq!(accepted(&client).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_quota_of_zero_rejects_all_calls() {
    let (emulator, client) = emulator();
    for quota in [0.0, -1.0, f64::NAN] {
        emulator.quota(Method::Get, quota);
        advance(Duration::from_secs(3600)).await;
        let status = client.get_operation("operations/1").await;
        let status = status.expect_err("the quota is exceeded");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.retry_delay(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_after_the_retry_delay_is_accepted() {
    for quota in [0.3, 3.0, 7.0, 11.0, 300.0, 499.0] {
        let (emulator, client) = emulator();
        emulator.quota(Method::Get, quota);
        accepted(&client).await;
        for _ in 0..20 {
            let status = client.get_operation("operations/1").await;
            let status = status.expect_err("the quota is exceeded");
            advance(status.retry_delay().expect("a delay")).await;
            client
                .get_operation("operations/1")
                .await
                .expect("accepted");
        }
    }
}

//! The rate at which many operations are cancelled adapts to the quota of the server.
//!
//! The server is in this process and time is paused, so that a run of 20 simulated seconds is fast and its result
//! does not depend on the machine.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use longrunning::{
    OperationsClient,
    emulator::{Call, CallOutcome, CancelBehavior, Emulator, Method},
};
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Status};

/// Starts the given number of operations and returns their names.
fn started(emulator: &Emulator, operations: usize) -> Vec<String> {
    let names: Vec<String> = (0..operations).map(|n| format!("operations/{n}")).collect();
    for name in &names {
        emulator.start_operation(name).expect("a new name");
    }
    names
}

fn accepted(calls: &[Call], from: Instant, to: Instant) -> usize {
    let is_accepted = |call: &&Call| call.outcome() == CallOutcome::Answered(Code::Ok);
    let within = |call: &&Call| (from..to).contains(&call.received_at());
    calls.iter().filter(is_accepted).filter(within).count()
}

/// Cancels as many operations as the quota allows in 20 seconds, and checks the duration and the rejected attempts.
async fn assert_quota_is_used(quota: f64, latency: Duration) {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator.quota(Method::Cancel, quota);
    emulator.delay(Method::Cancel, latency);
    let names = started(&emulator, 20 * quota as usize);
    let count = names.len();
    let client = OperationsClient::new(emulator.service());
    let begun = Instant::now();
    let names = tokio_stream::iter(names);
    let mut reports = client.cancel_operations(names).max_in_flight(5_000);
    let mut succeeded = 0;
    while let Some(report) = reports.next().await {
        assert!(report.result.is_ok(), "{report:?}");
        succeeded += 1;
    }
    let elapsed = begun.elapsed();
    assert_eq!(succeeded, count);
    assert!(elapsed <= Duration::from_secs(23), "{elapsed:?}");
    let stats = reports.stats();
    let calls = emulator.calls();
    assert_eq!(stats.attempts, calls.len() as u64);
    assert_eq!(stats.attempts, stats.quota_rejections + count as u64);

    let settled = begun + Duration::from_secs(2);
    let later = calls.iter().filter(|call| call.received_at() >= settled);
    let later: Vec<_> = later.collect();
    let rejected = CallOutcome::Answered(Code::ResourceExhausted);
    let rejected = later.iter().filter(|call| call.outcome() == rejected);
    let share = rejected.count() as f64 / later.len() as f64;
    println!(
        "quota {quota}, latency {latency:?}: {elapsed:?}, {:.2} % rejected",
        100.0 * share
    );
    assert!(share <= 0.02, "{share}");
}

/// Changes the quota after 10 seconds, and checks the rate between 5 and 8 seconds after the change.
async fn assert_rate_adapts(quota: f64, latency: Duration, factor: f64) {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator.quota(Method::Cancel, quota);
    emulator.delay(Method::Cancel, latency);
    let names = started(&emulator, (quota * (11.0 + 9.0 * factor)) as usize);
    let client = OperationsClient::new(emulator.service());
    let change = Instant::now() + Duration::from_secs(10);
    let names = tokio_stream::iter(names);
    let mut reports = client.cancel_operations(names).max_in_flight(10_000);
    let cancel = async {
        while let Some(report) = reports.next().await {
            assert!(report.result.is_ok(), "{report:?}");
        }
    };
    let change_quota = async {
        sleep_until(change).await;
        emulator.quota(Method::Cancel, factor * quota);
    };
    tokio::join!(cancel, change_quota);
    let (from, to) = (
        change + Duration::from_secs(5),
        change + Duration::from_secs(8),
    );
    let calls = emulator.calls();
    let rate = accepted(&calls, from, to) as f64 / 3.0;
    let ratio = rate / (factor * quota);
    println!("quota {quota} x {factor}, latency {latency:?}: {ratio:.3}");
    assert!((0.9..=1.1).contains(&ratio), "{ratio}");
}

const LATENCIES: [Duration; 3] = [
    Duration::from_millis(1),
    Duration::from_millis(50),
    Duration::from_millis(500),
];

#[tokio::test(start_paused = true)]
async fn a_quota_of_500_per_second_is_used_with_few_rejected_attempts() {
    for latency in LATENCIES {
        assert_quota_is_used(500.0, latency).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_quota_of_5000_per_second_is_used_with_few_rejected_attempts() {
    for latency in LATENCIES {
        assert_quota_is_used(5_000.0, latency).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_rate_adapts_after_the_quota_is_halved() {
    for latency in LATENCIES {
        assert_rate_adapts(500.0, latency, 0.5).await;
    }
    assert_rate_adapts(5_000.0, LATENCIES[1], 0.5).await;
}

#[tokio::test(start_paused = true)]
async fn the_rate_adapts_after_the_quota_is_doubled() {
    for latency in LATENCIES {
        assert_rate_adapts(500.0, latency, 2.0).await;
    }
    assert_rate_adapts(2_500.0, LATENCIES[1], 2.0).await;
}

/// Cancels operations without end. Returns the number of successes in the last 10 of 40 seconds, per second.
async fn successes_per_second(emulator: &Emulator, max_in_flight: usize) -> f64 {
    let client = OperationsClient::new(emulator.service());
    let names = tokio_stream::iter((0..).map(|n| format!("operations/{n}")));
    let mut reports = client.cancel_operations(names).max_in_flight(max_in_flight);
    let begun = Instant::now();
    let mut successes = 0;
    while begun.elapsed() < Duration::from_secs(40) {
        let report = reports.next().await.expect("there are always more names");
        // The operations do not exist.
        let is_counted = begun.elapsed() >= Duration::from_secs(30);
        if report
            .result
            .is_err_and(|status| status.code() == Code::NotFound)
            && is_counted
        {
            successes += 1;
        }
    }
    f64::from(successes) / 10.0
}

#[tokio::test(start_paused = true)]
async fn names_that_are_always_rejected_do_not_reduce_the_rate_of_the_others() {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator.delay(Method::Cancel, Duration::from_millis(100));
    for n in 0..10 {
        let rejection = Status::resource_exhausted("never");
        emulator.on_cancel_of(format!("operations/{n}"), CancelBehavior::Refuse(rejection));
    }
    // 90 of 100 names in flight, each for 100 ms.
    let rate = successes_per_second(&emulator, 100).await;
    assert!((850.0..=910.0).contains(&rate), "{rate}");
}

#[tokio::test(start_paused = true)]
async fn a_small_share_of_rejected_calls_does_not_reduce_the_rate() {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator.delay(Method::Cancel, Duration::from_millis(100));
    let calls = AtomicU64::new(0);
    emulator.require(move |_| match calls.fetch_add(1, Ordering::Relaxed) % 100 {
        0 => Err(Status::resource_exhausted(
            "one of many servers is overloaded",
        )),
        _ => Ok(()),
    });
    let rate = successes_per_second(&emulator, 200).await;
    assert!(rate > 1_800.0, "{rate}");
}

#[tokio::test(start_paused = true)]
async fn after_a_time_without_any_quota_the_rate_recovers() {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator.quota(Method::Cancel, 1_000.0);
    emulator.delay(Method::Cancel, Duration::from_millis(20));
    let changes = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        emulator.quota(Method::Cancel, 0.0);
        tokio::time::sleep(Duration::from_secs(10)).await;
        emulator.quota(Method::Cancel, 1_000.0);
    };
    let (rate, ()) = tokio::join!(successes_per_second(&emulator, 100), changes);
    assert!(rate > 900.0, "{rate}");
}

#[tokio::test(start_paused = true)]
async fn the_rate_limit_does_not_grow_while_the_names_in_flight_limit_the_calls() {
    let emulator = Emulator::in_process().expect("a runtime");
    emulator.delay(Method::Cancel, Duration::from_millis(50));
    let client = OperationsClient::new(emulator.service());
    let names = tokio_stream::iter((0..100_000).map(|n| format!("operations/{n}")));
    let mut reports = client.cancel_operations(names);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        reports.next().await.expect("a report");
    }
    // 100 names in flight for 50 ms are 2,000 calls per second.
    let limit = reports.stats().rate_limit.expect("it is adaptive");
    assert!(limit < 10_000.0, "{limit}");
}

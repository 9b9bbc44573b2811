//! Renewals on a machine that sleeps, and how often the task wakes.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::{runtime::Handle, time::sleep};

use super::*;
use crate::{auth::AuthInterceptor, expiry::sleep_machine};

const HOUR: Duration = Duration::from_secs(3600);
const LIMIT: Duration = Duration::from_secs(8);
/// The number of the fetch that fails.
const FAILS: usize = 3;

/// A source whose tokens are valid for two hours.
#[derive(Default)]
struct Source(AtomicUsize);

/// The delay that a failed fetch asks for.
const DELAY: Duration = HOUR;

#[tonic::async_trait]
impl CallCredentials for Source {
    async fn token(&self) -> Result<Token, Status> {
        let n = self.0.fetch_add(1, SeqCst) + 1;
        if n == FAILS {
            let mut failure = Status::unavailable("busy");
            let millis = DELAY.as_millis().to_string();
            failure
                .metadata_mut()
                .insert("grpc-retry-pushback-ms", millis.parse().unwrap());
            return Err(failure);
        }
        let mut token = Token::bearer(&format!("token-{n}"))?;
        token.expiry = Some(Expiry::now().later_by(2 * HOUR));
        Ok(token)
    }
}

async fn interceptor() -> (Arc<Source>, AuthInterceptor) {
    let source = Arc::new(Source::default());
    let auth = AuthInterceptor::renewed(source.clone(), LIMIT, None).unwrap();
    auth.ready().await.unwrap();
    (source, auth)
}

/// Timers do not advance while the machine sleeps.
#[tokio::test(start_paused = true)]
async fn after_a_machine_has_slept_the_first_call_waits_for_a_new_token() {
    let (source, auth) = interceptor().await;
    sleep(HOUR / 2).await;
    sleep_machine(HOUR / 2);
    assert!(auth.status().is_valid);
    auth.ready().await.unwrap();
    assert_eq!(source.0.load(SeqCst), 1);

    sleep_machine(2 * HOUR);
    assert!(!auth.status().is_valid);
    let start = Instant::now();
    auth.ready().await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(source.0.load(SeqCst), 2);
    assert!(auth.status().is_valid);
}

#[tokio::test(start_paused = true)]
async fn after_a_machine_has_slept_an_overdue_fetch_starts_immediately() {
    let (source, auth) = interceptor().await;
    for fetches in [2, FAILS] {
        sleep_machine(2 * HOUR);
        let _ = tokio::time::timeout(MIN_INTERVAL * 2, auth.ready()).await;
        assert_eq!(source.0.load(SeqCst), fetches);
    }
    assert!(!auth.status().is_valid);
    sleep_machine(DELAY / 2);
    assert!(
        tokio::time::timeout(MIN_INTERVAL, auth.ready())
            .await
            .is_err()
    );
    sleep_machine(DELAY);
    let start = Instant::now();
    auth.ready().await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(source.0.load(SeqCst), FAILS + 1);
}

#[tokio::test(start_paused = true)]
async fn the_task_does_not_wake_between_renewals() {
    let (source, auth) = interceptor().await;
    sleep(MIN_INTERVAL).await;
    let parked = || Handle::current().metrics().worker_park_count(0);
    let before = parked();
    sleep(HOUR).await;
    let wakes = parked() - before;
    // Timers of an hour take a few steps.
    assert!(wakes < 20, "{wakes}");
    assert_eq!(source.0.load(SeqCst), 1);
    drop(auth);
}

//! How a token is kept current: in paused time, with a source that follows a script.

#![allow(clippy::unwrap_used)] // in the helpers, too

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::{Duration, SystemTime},
};

use longrunning::{
    AuthInterceptor, CallCredentials, CallStatusExt, Credentials, Origin, Token, proto::rpc,
};
use tokio::time::{Instant, advance, sleep, timeout};
use tonic::{Code, Request, Status, service::Interceptor};

const HOUR: Duration = Duration::from_secs(3600);

/// What a source does at one fetch.
#[derive(Clone)]
enum Step {
    /// Returns a token with this lifetime.
    For(Duration),
    /// Returns a token of unknown expiry.
    Unknown,
    /// Returns a token for an hour, after this time.
    Late(Duration),
    Fail(Code),
    Hang,
    Panic,
    /// Hangs, and panics when it is dropped.
    PanicOnDrop,
    /// Blocks its thread until the test ends.
    Block,
}

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("requested by the script");
    }
}

/// A source whose n-th fetch does the n-th step, and the last step from then on. The token of the
/// n-th fetch is `token-n`.
#[derive(Clone)]
struct Script(Arc<Inner>);

struct Inner {
    steps: Vec<Step>,
    fetches: Mutex<Vec<Instant>>,
    rejections: AtomicUsize,
    /// Whether it panics in `rejected`.
    panics_on_rejection: AtomicBool,
    dropped: Arc<AtomicBool>,
    /// Closed when the test ends.
    end: (Mutex<Option<mpsc::Sender<()>>>, Mutex<mpsc::Receiver<()>>),
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.dropped.store(true, SeqCst);
    }
}

impl Script {
    fn new(steps: impl Into<Vec<Step>>) -> Self {
        Self(Arc::new(Inner {
            steps: steps.into(),
            fetches: Mutex::default(),
            rejections: AtomicUsize::new(0),
            panics_on_rejection: AtomicBool::new(false),
            dropped: Arc::default(),
            end: {
                let (sender, receiver) = mpsc::channel();
                (Mutex::new(Some(sender)), Mutex::new(receiver))
            },
        }))
    }

    fn credentials(&self) -> Credentials {
        Credentials::custom(self.clone())
    }

    fn lazy(&self) -> AuthInterceptor {
        self.credentials().interceptor_lazy().unwrap()
    }

    fn fetches(&self) -> Vec<Instant> {
        self.0.fetches.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.fetches().len()
    }
}

#[tonic::async_trait]
impl CallCredentials for Script {
    async fn token(&self) -> Result<Token, Status> {
        let n = {
            let mut fetches = self.0.fetches.lock().unwrap();
            fetches.push(Instant::now());
            fetches.len()
        };
        let token = Token::bearer(&format!("token-{n}"));
        let ends = |time| (Instant::now() + time).into_std();
        match self.0.steps[n.min(self.0.steps.len()) - 1].clone() {
            Step::For(time) => Ok(token?.expires_at(ends(time))),
            Step::Unknown => token,
            Step::Late(time) => {
                sleep(time).await;
                Ok(token?.expires_at(ends(HOUR)))
            }
            Step::Fail(code) => Err(Status::new(code, format!("failure {n}"))),
            Step::Hang => std::future::pending().await,
            Step::Panic => panic!("requested by the script"),
            Step::PanicOnDrop => {
                let _guard = PanicsOnDrop;
                std::future::pending().await
            }
            Step::Block => {
                let _ = self.0.end.1.lock().unwrap().recv();
                Err(Status::internal("the test has ended"))
            }
        }
    }

    fn rejected(&self) {
        self.0.rejections.fetch_add(1, SeqCst);
        assert!(
            !self.0.panics_on_rejection.load(SeqCst),
            "requested by the script"
        );
    }
}

/// What a call would carry now.
fn header(auth: &AuthInterceptor) -> Result<String, Status> {
    let request = auth.clone().call(Request::new(()))?;
    let value = request.metadata().get("authorization").unwrap();
    assert!(value.is_sensitive());
    Ok(value.to_str().unwrap().to_owned())
}

/// Lets the task run.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// Goes on in small steps, so that nothing is jumped over, and looks after each.
async fn go_on(time: Duration, mut look: impl FnMut()) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        advance(Duration::from_millis(100)).await;
        settle().await;
        look();
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_callers_at_a_cold_start_share_one_fetch() {
    let script = Script::new([Step::Late(Duration::from_secs(3))]);
    let auth = script.lazy();
    let callers: Vec<_> = (0..10_000)
        .map(|_| {
            let auth = auth.clone();
            tokio::spawn(async move {
                auth.ready().await.unwrap();
                header(&auth).unwrap()
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), "Bearer token-1");
    }
    assert_eq!(script.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_before_it_expires_and_no_call_waits() {
    let script = Script::new([Step::For(HOUR), Step::Late(Duration::from_secs(5))]);
    let auth = script.credentials().interceptor().await.unwrap();
    let start = Instant::now();
    let mut seen = Vec::new();
    go_on(HOUR.mul_f64(1.2), || {
        seen.push(header(&auth).unwrap()); // there is always a token
        assert!(
            futures_executor::block_on(timeout(Duration::ZERO, auth.ready())).is_ok(),
            "ready waits although there is a token"
        );
    })
    .await;
    seen.dedup();
    assert_eq!(seen, ["Bearer token-1", "Bearer token-2"]);
    let renewed = script.fetches()[1] - start;
    assert!(renewed >= HOUR.mul_f64(0.7), "{renewed:?}");
    assert!(renewed <= HOUR.mul_f64(0.81), "{renewed:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_the_tokens_lifetime_fails_no_call() {
    let mut steps = vec![Step::For(HOUR)];
    steps.extend(vec![Step::Fail(Code::Unavailable); 10]); // for some of the 12 minutes at least
    steps.push(Step::For(HOUR));
    let script = Script::new(steps);
    let auth = script.credentials().interceptor().await.unwrap();
    go_on(HOUR, || assert!(header(&auth).is_ok())).await;
    assert_eq!(header(&auth).unwrap(), "Bearer token-12");
}

#[tokio::test(start_paused = true)]
async fn after_a_longer_outage_calls_are_refused_until_it_is_over() {
    let mut steps = vec![Step::For(Duration::from_secs(60))];
    steps.extend(vec![Step::Fail(Code::Unavailable); 8]);
    steps.push(Step::For(HOUR));
    let script = Script::new(steps);
    let auth = script.credentials().interceptor().await.unwrap();
    let start = Instant::now();
    go_on(Duration::from_secs(59), || {
        assert_eq!(header(&auth).unwrap(), "Bearer token-1");
    })
    .await;
    go_on(Duration::from_secs(2), || ()).await;
    let refusal = header(&auth).unwrap_err();
    assert_eq!(refusal.code(), Code::Unavailable);
    assert!(refusal.message().starts_with("failure "), "{refusal:?}");
    assert_eq!(refusal.origin(), Some(Origin::Client));
    assert_eq!(
        auth.status().last_failure.unwrap().code(),
        Code::Unavailable
    );
    auth.ready().await.unwrap();
    assert!(start.elapsed() > Duration::from_secs(61));
    assert_eq!(header(&auth).unwrap(), "Bearer token-10");
    assert!(auth.status().last_failure.is_none());
}

#[tokio::test(start_paused = true)]
async fn failures_are_followed_by_an_exponential_backoff_with_full_jitter() {
    const CLIENTS: usize = 500;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let script = Script::new([Step::Fail(Code::Unavailable)]);
            (script.lazy(), script)
        })
        .collect();
    sleep(Duration::from_secs(600)).await;
    let maximum = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0];
    for (n, maximum) in maximum.into_iter().enumerate() {
        let delays: Vec<f64> = clients
            .iter()
            .map(|(_, script)| (script.fetches()[n + 1] - script.fetches()[n]).as_secs_f64())
            .collect();
        let longest = delays.iter().copied().fold(0.0, f64::max);
        assert!(longest <= maximum + 0.01, "delay {n}: {longest}");
        // Uniformly distributed: each tenth of the range has a tenth of the clients.
        for tenth in 0..10 {
            let range = maximum * f64::from(tenth) / 10.0..maximum * f64::from(tenth + 1) / 10.0;
            let share = delays.iter().filter(|delay| range.contains(delay)).count();
            assert!((20..100).contains(&share), "delay {n}, {range:?}: {share}");
        }
    }
}

/// A source that fails with a `RetryInfo`, and then succeeds.
struct Busy(AtomicUsize);

#[tonic::async_trait]
impl CallCredentials for Busy {
    async fn token(&self) -> Result<Token, Status> {
        if self.0.fetch_add(1, SeqCst) > 0 {
            return Token::bearer("token");
        }
        let info = rpc::RetryInfo {
            retry_delay: Some(prost_types::Duration {
                seconds: 60,
                nanos: 0,
            }),
        };
        let status = rpc::Status {
            code: Code::Unavailable.into(),
            message: "busy".to_owned(),
            details: vec![prost_types::Any::from_msg(&info).unwrap()],
        };
        Err(status.into())
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_info_delays_the_next_fetch_even_while_calls_wait() {
    let start = Instant::now();
    let auth = Credentials::custom(Busy(AtomicUsize::new(0)))
        .interceptor_lazy()
        .unwrap();
    let ready = async {
        while timeout(Duration::from_millis(100), auth.ready())
            .await
            .is_err()
        {
            let next_fetch = auth.status().next_fetch.unwrap();
            let remaining = next_fetch.duration_since(SystemTime::now()).unwrap();
            let expected = Duration::from_secs(59).saturating_sub(start.elapsed());
            assert!(remaining >= expected, "{remaining:?}");
        }
    };
    ready.await;
    let delay = start.elapsed().as_secs_f64();
    assert!((60.0..120.2).contains(&delay), "{delay}");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_hangs_times_out_and_is_retried() {
    let script = Script::new([Step::Hang, Step::For(HOUR)]);
    let start = Instant::now();
    let auth = script.credentials().interceptor().await.unwrap();
    assert_eq!(header(&auth).unwrap(), "Bearer token-2");
    assert!(start.elapsed() < Duration::from_secs(10));
}

/// A source that reads its token on a blocking thread of the runtime.
struct ReadsFile;

#[tonic::async_trait]
impl CallCredentials for ReadsFile {
    async fn token(&self) -> Result<Token, Status> {
        let text = tokio::task::spawn_blocking(|| "token".to_owned()).await;
        Token::bearer(&text.unwrap())
    }
}

#[test]
fn a_source_can_use_the_only_blocking_thread_of_its_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let auth = runtime
        .block_on(Credentials::custom(ReadsFile).interceptor())
        .unwrap();
    assert_eq!(header(&auth).unwrap(), "Bearer token");
}

/// A source whose first failure panics when it is dropped.
struct FailsWithPanickingSource(AtomicUsize);

impl std::fmt::Debug for PanicsOnDrop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PanicsOnDrop")
    }
}

impl std::fmt::Display for PanicsOnDrop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("it panics on drop")
    }
}

impl std::error::Error for PanicsOnDrop {}

#[tonic::async_trait]
impl CallCredentials for FailsWithPanickingSource {
    async fn token(&self) -> Result<Token, Status> {
        if self.0.fetch_add(1, SeqCst) > 0 {
            return Token::bearer("token");
        }
        let mut failure = Status::unavailable("down");
        failure.set_source(Arc::new(PanicsOnDrop));
        Err(failure)
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_whose_destructor_panics_does_not_end_the_renewal() {
    let auth = Credentials::custom(FailsWithPanickingSource(AtomicUsize::new(0)))
        .interceptor()
        .await
        .unwrap();
    settle().await;
    assert_eq!(header(&auth).unwrap(), "Bearer token");
    assert!(auth.status().is_valid);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_whose_destructor_panics_ends_only_itself() {
    let script = Script::new([Step::PanicOnDrop, Step::For(HOUR)]);
    let auth = script.credentials().interceptor().await.unwrap();
    assert_eq!(header(&auth).unwrap(), "Bearer token-2");
}

/// Uses real time, because paused time needs a runtime with one thread, which the source would block.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_source_that_blocks_its_thread_ends_only_its_own_fetch() {
    let script = Script::new([Step::Block, Step::For(HOUR)]);
    let auth = script.lazy();
    timeout(Duration::from_secs(60), auth.ready())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(header(&auth).unwrap(), "Bearer token-2");
    drop(script.0.end.0.lock().unwrap().take());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_source_that_always_blocks_takes_two_threads_at_most() {
    let script = Script::new([Step::Block]);
    let auth = script.lazy();
    // The third attempt ends because the first two still block their threads.
    let is_third = async {
        while auth.status().last_failure.is_none() || script.count() < 2 {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(Duration::from_secs(10)).await;
    };
    timeout(Duration::from_secs(60), is_third).await.unwrap();
    assert_eq!(script.count(), 2);
    drop(script.0.end.0.lock().unwrap().take());
    let is_over = async {
        while script.count() < 3 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), is_over).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_status_reports_the_expiry_the_last_failure_and_the_next_fetch() {
    let near = |time: Option<SystemTime>, expected: Duration| {
        let left = time.unwrap().duration_since(SystemTime::now()).unwrap();
        left.abs_diff(expected) < Duration::from_secs(5)
    };
    let script = Script::new([
        Step::Late(Duration::from_secs(5)),
        Step::Fail(Code::Unavailable),
    ]);
    let auth = script.lazy();
    settle().await;
    let status = auth.status();
    assert!(!status.is_valid);
    assert_eq!((status.expires_at, status.next_fetch), (None, None));
    assert!(status.last_failure.is_none());

    auth.ready().await.unwrap();
    settle().await;
    let status = auth.status();
    assert!(status.is_valid && status.last_failure.is_none());
    assert!(near(status.expires_at, HOUR));
    let next_fetch = status.next_fetch.unwrap();
    let next_fetch = next_fetch.duration_since(SystemTime::now()).unwrap();
    assert!((HOUR.mul_f64(0.69)..HOUR.mul_f64(0.81)).contains(&next_fetch));

    sleep(HOUR.mul_f64(0.85)).await;
    let status = auth.status();
    assert!(status.is_valid);
    assert!(near(status.expires_at, HOUR));
    let failure = status.last_failure.unwrap();
    assert!(failure.message().starts_with("failure "), "{failure}");
    assert!(status.next_fetch.is_some());

    let fixed = Credentials::api_key("key").interceptor().await.unwrap();
    let status = fixed.status();
    assert!(status.is_valid && status.last_failure.is_none());
    assert_eq!((status.expires_at, status.next_fetch), (None, None));
}

/// A first fetch that takes almost the whole time limit succeeds.
#[tokio::test(start_paused = true)]
async fn set_up_waits_for_a_slow_first_fetch() {
    let script = Script::new([Step::Late(Duration::from_millis(7900))]);
    let start = Instant::now();
    script.credentials().interceptor().await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_millis(7900));
}

#[tokio::test(start_paused = true)]
async fn set_up_returns_the_last_failure_after_ten_seconds() {
    let script = Script::new([Step::Hang]);
    let start = Instant::now();
    let status = script.credentials().interceptor().await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::from_secs(10));
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        status.message(),
        "credentials: no token within 8s: the source does not answer"
    );
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_is_returned_immediately_and_can_recover() {
    let script = Script::new([
        Step::Fail(Code::Unauthenticated),
        Step::Fail(Code::Unauthenticated),
        Step::For(HOUR),
    ]);
    let start = Instant::now();
    let auth = script.lazy();
    let status = auth.ready().await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(status.message(), "failure 1");
    assert_eq!(header(&auth).unwrap_err().message(), "failure 1");
    sleep(Duration::from_secs(3)).await;
    assert_eq!(header(&auth).unwrap(), "Bearer token-3");
}

#[tokio::test(start_paused = true)]
async fn ready_waits_while_failures_are_temporary() {
    let script = Script::new([Step::Fail(Code::Unavailable), Step::Panic, Step::For(HOUR)]);
    let auth = script.lazy();
    auth.ready().await.unwrap();
    assert_eq!(header(&auth).unwrap(), "Bearer token-3");
}

#[tokio::test(start_paused = true)]
async fn the_status_has_the_last_failure_after_a_timeout() {
    let script = Script::new([Step::Panic]);
    let auth = script.lazy();
    assert!(auth.status().last_failure.is_none());
    assert_eq!(
        header(&auth).unwrap_err().message(),
        "credentials: the first token has not been fetched yet"
    );
    assert!(timeout(Duration::from_secs(1), auth.ready()).await.is_err());
    let status = auth.status().last_failure.unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        status.message(),
        "credentials: the source of the credentials panicked: this is a bug in it"
    );
}

#[tokio::test(start_paused = true)]
async fn other_codes_of_a_source_become_those_that_callers_act_on() {
    for (code, expected) in [
        (Code::Unavailable, Code::Unavailable),
        (Code::DeadlineExceeded, Code::Unavailable),
        (Code::Cancelled, Code::Unavailable),
        (Code::Internal, Code::Unavailable),
        (Code::Ok, Code::Unavailable),
        (Code::Unauthenticated, Code::Unauthenticated),
        (Code::PermissionDenied, Code::Unauthenticated),
        (Code::NotFound, Code::Unauthenticated),
        (Code::InvalidArgument, Code::Unauthenticated),
        (Code::FailedPrecondition, Code::FailedPrecondition),
    ] {
        let auth = Script::new([Step::Fail(code)]).lazy();
        settle().await;
        let status = auth.status().last_failure.unwrap();
        assert_eq!(status.code(), expected, "{code:?}");
        assert_eq!(status.message(), "failure 1");
        assert_eq!(status.origin(), Some(Origin::Client));
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejection_brings_a_new_token_within_ten_seconds() {
    let script = Script::new([Step::For(HOUR)]);
    let auth = script.credentials().interceptor().await.unwrap();
    (0..1000).for_each(|_| auth.mark_rejected());
    go_on(Duration::from_secs(12), || ()).await;
    assert_eq!(header(&auth).unwrap(), "Bearer token-2");
    assert_eq!(script.0.rejections.load(SeqCst), 1);
    let fetches = script.fetches();
    assert_eq!(fetches.len(), 2);
    assert!(fetches[1] - fetches[0] >= Duration::from_secs(1));

    // The new token was good for a while, so that the next rejection is the first again.
    sleep(Duration::from_secs(15 * 60)).await;
    auth.mark_rejected();
    sleep(Duration::from_secs(11)).await;
    assert_eq!(script.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_rejected_while_fetches_fail_counts_once() {
    let mut steps = vec![Step::For(2 * HOUR)];
    steps.resize(21, Step::Fail(Code::Unavailable)); // for about 8 minutes
    steps.push(Step::For(2 * HOUR));
    let script = Script::new(steps);
    let auth = script.credentials().interceptor().await.unwrap();
    while script.count() < 22 {
        auth.mark_rejected();
        sleep(Duration::from_millis(100)).await;
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(header(&auth).unwrap(), "Bearer token-22");
    // The new token was good for a while, and this is the second rejection in a row.
    sleep(Duration::from_secs(60)).await;
    auth.mark_rejected();
    sleep(Duration::from_secs(21)).await;
    assert_eq!(header(&auth).unwrap(), "Bearer token-23");
}

#[tokio::test(start_paused = true)]
async fn fetches_back_off_while_new_tokens_are_rejected() {
    let script = Script::new([Step::For(2 * HOUR)]);
    let auth = script.credentials().interceptor().await.unwrap();
    go_on(HOUR, || auth.mark_rejected()).await;
    // 5 minutes apart at most, and half of that on the average.
    let count = script.count();
    assert!((13..60).contains(&count), "{count}");
    let fetches = script.fetches();
    let apart = |pair: &[Instant]| pair[1] - pair[0];
    let paces: Vec<Duration> = fetches.windows(2).map(apart).collect();
    assert!(
        paces.iter().all(|pace| (1..=302).contains(&pace.as_secs())),
        "{paces:?}"
    );
}

/// Many clients whose tokens are all refused for a while.
#[tokio::test(start_paused = true)]
async fn clients_that_are_rejected_together_do_not_fetch_together() {
    const CLIENTS: usize = 500;
    let script = Script::new([Step::For(2 * HOUR)]);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(script.credentials().interceptor().await.unwrap());
    }
    sleep(Duration::from_secs(60)).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(600) {
        clients.iter().for_each(AuthInterceptor::mark_rejected);
        sleep(Duration::from_millis(500)).await;
    }
    let mut a_second = [0; 601];
    for fetch in script.fetches().split_off(CLIENTS) {
        a_second[usize::try_from((fetch - start).as_secs()).unwrap()] += 1;
    }
    let most = a_second.iter().max().copied();
    assert!(most < Some(CLIENTS / 3), "{a_second:?}");
    let last_minute: usize = a_second[540..].iter().sum();
    assert!(last_minute < CLIENTS, "{last_minute}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_panics_at_a_rejection_is_asked_for_its_next_token() {
    let script = Script::new([Step::For(HOUR)]);
    script.0.panics_on_rejection.store(true, SeqCst);
    let auth = script.credentials().interceptor().await.unwrap();
    auth.mark_rejected();
    sleep(Duration::from_secs(12)).await;
    assert_eq!(script.0.rejections.load(SeqCst), 1);
    assert_eq!(header(&auth).unwrap(), "Bearer token-2");
    sleep(2 * HOUR).await;
    assert!(script.count() > 2);
    auth.ready().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_token_that_expires_earlier_does_not_replace_the_current_one() {
    let script = Script::new([
        Step::For(HOUR),
        Step::For(Duration::from_secs(60)),
        Step::Fail(Code::Unavailable),
        Step::For(Duration::from_secs(60)),
        Step::For(HOUR),
    ]);
    let auth = script.credentials().interceptor().await.unwrap();
    let mut seen = Vec::new();
    go_on(HOUR, || {
        seen.push(header(&auth).unwrap()); // there is always a token
        assert!(auth.status().is_valid);
    })
    .await;
    seen.dedup();
    assert_eq!(seen, ["Bearer token-1", "Bearer token-5"]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_expires_earlier_replaces_a_rejected_one() {
    let minute = Duration::from_secs(60);
    let script = Script::new([Step::For(HOUR), Step::For(minute)]);
    let auth = script.credentials().interceptor().await.unwrap();
    auth.mark_rejected();
    go_on(Duration::from_secs(12), || ()).await;
    assert_eq!(header(&auth).unwrap(), "Bearer token-2");

    let late = Step::Late(Duration::from_secs(2)); // for an hour
    let script = Script::new([Step::For(10 * HOUR), late]);
    let auth = script.credentials().interceptor().await.unwrap();
    while script.count() < 2 {
        sleep(Duration::from_secs(1)).await;
    }
    auth.mark_rejected(); // while its successor is on the way
    sleep(Duration::from_secs(2)).await;
    assert_eq!(header(&auth).unwrap(), "Bearer token-2");
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_clone() {
    for steps in [
        vec![Step::For(HOUR)],
        vec![Step::Hang],
        vec![Step::Fail(Code::Unavailable)],
    ] {
        let script = Script::new(steps);
        let auth = script.lazy();
        let clone = auth.clone();
        let dropped = Arc::clone(&script.0.dropped);
        drop(script);
        settle().await;
        drop(auth);
        settle().await;
        assert!(!dropped.load(SeqCst), "one clone is left");
        drop(clone);
        settle().await;
        assert!(dropped.load(SeqCst), "the task still holds the source");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_of_unknown_expiry_is_renewed_every_five_minutes() {
    let script = Script::new([Step::Unknown, Step::Fail(Code::Unavailable)]);
    let auth = script.credentials().interceptor().await.unwrap();
    sleep(Duration::from_secs(239)).await;
    assert_eq!(script.count(), 1);
    sleep(Duration::from_secs(62)).await;
    assert!(script.count() > 1);
    sleep(24 * HOUR).await; // its expiry is unknown
    assert_eq!(header(&auth).unwrap(), "Bearer token-1");
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_from_a_source_is_a_failure() {
    let script = Script::new([Step::For(Duration::ZERO)]);
    let status = script.credentials().interceptor().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        status.message(),
        "credentials: the source returned a token that has already expired: check the source and this \
         machine's clock"
    );
    assert!(script.count() < 20, "{} fetches", script.count());
}

#[tokio::test(start_paused = true)]
async fn short_lived_tokens_do_not_cause_a_busy_loop() {
    let script = Script::new([Step::For(Duration::from_millis(10))]);
    let auth = script.lazy();
    sleep(Duration::from_secs(10)).await;
    assert!(script.count() <= 11, "{} fetches", script.count());
    drop(auth);
}

#[test]
fn without_a_runtime_set_up_fails_with_failed_precondition() {
    let script = Script::new([Step::For(HOUR)]);
    let status = futures_executor::block_on(script.credentials().interceptor()).unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(
        status.message(),
        "an interceptor that renews its token needs a tokio runtime: run it within one"
    );
}

#[test]
fn when_the_runtime_has_ended_no_stale_token_is_sent() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let script = Script::new([Step::For(HOUR)]);
    let auth = runtime
        .block_on(script.credentials().interceptor())
        .unwrap();
    assert_eq!(header(&auth).unwrap(), "Bearer token-1");
    drop(runtime);
    let refusal = header(&auth).unwrap_err();
    assert_eq!(refusal.code(), Code::Unavailable);
    assert_eq!(
        refusal.message(),
        "credentials: the tokio runtime that renewed the token has shut down: create the interceptor on a \
         runtime that outlives its clients"
    );
    let unready = futures_executor::block_on(auth.ready()).unwrap_err();
    assert_eq!(unready.message(), refusal.message());
    let status = auth.status();
    assert!(!status.is_valid);
    assert_eq!(status.last_failure.unwrap().message(), refusal.message());
}

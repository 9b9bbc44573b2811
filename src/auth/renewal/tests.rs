//! Tokens whose end only their source knows: in paused time, with a source that tells when asked.

use std::{
    future::pending,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Waker},
};

use tokio::time::advance;
use tonic::{Request, service::Interceptor as _};

use super::*;
use crate::auth::AuthInterceptor;

/// What a source does at one fetch.
enum Step {
    Token,
    Fail,
    Hang,
}

/// A source whose n-th fetch does the n-th step, and the last step from then on. The token of the
/// n-th fetch is `token-n`.
struct Script {
    steps: Vec<Step>,
    /// What a look says, whatever the token.
    says: Arc<Mutex<fn() -> Look>>,
    fetches: AtomicUsize,
    looks: Arc<AtomicUsize>,
}

impl Script {
    fn new(steps: impl Into<Vec<Step>>, says: fn() -> Look) -> Arc<Self> {
        Arc::new(Self {
            steps: steps.into(),
            says: Arc::new(Mutex::new(says)),
            fetches: AtomicUsize::new(0),
            looks: Arc::default(),
        })
    }

    async fn interceptor(self: &Arc<Self>) -> AuthInterceptor {
        let source: Arc<dyn CallCredentials> = self.clone();
        let auth = AuthInterceptor::renewed(source, None).unwrap();
        auth.ready().await.unwrap();
        auth
    }

    fn says(&self, says: fn() -> Look) {
        *self.says.lock().unwrap() = says;
    }

    fn fetches(&self) -> usize {
        self.fetches.load(SeqCst)
    }

    fn looks(&self) -> usize {
        self.looks.load(SeqCst)
    }
}

#[tonic::async_trait]
impl CallCredentials for Script {
    async fn token(&self) -> Result<Token, Status> {
        let n = self.fetches.fetch_add(1, SeqCst);
        match self.steps[n.min(self.steps.len() - 1)] {
            Step::Token => {}
            Step::Fail => return Err(Status::unavailable("down")),
            Step::Hang => pending().await,
        }
        let (says, looks) = (Arc::clone(&self.says), Arc::clone(&self.looks));
        let look = move || {
            looks.fetch_add(1, SeqCst);
            let says = *says.lock().unwrap();
            says()
        };
        let mut token = Token::bearer(&format!("token-{}", n + 1))?;
        token.renew_after = Some(Duration::from_secs(60));
        token.lease = Some(Lease {
            every: Duration::from_secs(2),
            look: Box::new(look),
        });
        Ok(token)
    }
}

fn good() -> Look {
    Look::GoodFor(Duration::from_secs(10))
}

/// What a call would carry now.
fn header(auth: &AuthInterceptor) -> Result<String, Status> {
    let request = auth.clone().call(Request::new(()))?;
    let value = request.metadata().get("authorization").unwrap();
    Ok(value.to_str().unwrap().to_owned())
}

/// Lets the owner do what it can do now.
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
async fn a_good_token_is_kept_while_its_renewal_hangs_or_fails() {
    for step in [Step::Hang, Step::Fail] {
        let script = Script::new([Step::Token, step], good);
        let auth = script.interceptor().await;
        go_on(Duration::from_secs(300), || {
            assert_eq!(header(&auth).unwrap(), "Bearer token-1");
        })
        .await;
        assert!(script.fetches() > 5, "{}", script.fetches());
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_since_the_process_stood_still_is_woken_by_the_look() {
    let script = Script::new([Step::Token], good);
    let auth = script.interceptor().await;
    settle().await;
    {
        // Only the clock goes on: the owner has had no turn yet.
        let mut still = pin!(advance(Duration::from_secs(12)));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(still.as_mut().poll(&mut cx).is_pending());
    }
    assert!(header(&auth).is_err());
    let start = Instant::now();
    auth.ready().await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(header(&auth).unwrap(), "Bearer token-1");
    assert_eq!(script.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_should_be_renewed_at_the_first_look_is_never_looked_at_again() {
    let script = Script::new([Step::Token], || Look::Renew);
    let auth = script.interceptor().await;
    go_on(Duration::from_secs(10), || {}).await;
    assert_eq!(script.looks(), script.fetches());
    assert!((9..=11).contains(&script.fetches()), "{}", script.fetches());
    assert!(header(&auth).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_token_to_be_renewed_is_good_for_as_long_as_the_look_before_said() {
    let script = Script::new([Step::Token, Step::Hang], good);
    let auth = script.interceptor().await;
    go_on(Duration::from_secs(5), || {}).await;
    script.says(|| Look::Renew);
    go_on(Duration::from_secs(8), || {
        assert_eq!(header(&auth).unwrap(), "Bearer token-1");
    })
    .await;
    assert_eq!(script.fetches(), 2);
    go_on(Duration::from_secs(2), || {}).await;
    assert!(header(&auth).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_has_ended_is_withdrawn_at_the_next_look() {
    let script = Script::new([Step::Token, Step::Hang], good);
    let auth = script.interceptor().await;
    go_on(Duration::from_secs(5), || {}).await;
    script.says(|| Look::Ended);
    go_on(Duration::from_secs(2), || {}).await;
    let refusal = header(&auth).unwrap_err();
    let message = "credentials: the token has expired and is being renewed";
    assert_eq!(refusal.message(), message);
    assert_eq!(script.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_panics_brings_the_renewal_forward() {
    let script = Script::new([Step::Token], good);
    let auth = script.interceptor().await;
    go_on(Duration::from_secs(5), || {}).await;
    script.says(|| panic!("the script says so"));
    go_on(Duration::from_secs(2), || {}).await;
    script.says(good);
    go_on(Duration::from_secs(2), || {}).await;
    assert_eq!(
        header(&auth).unwrap(),
        format!("Bearer token-{}", script.fetches())
    );
    assert!(script.fetches() > 1);
}

//! What google-authz does when it is left to itself: the reasons for how it is used here. A test
//! that fails says that an upgrade has mended something, so that something here can go.
#![cfg(feature = "google-authz")]
#![allow(clippy::unwrap_used)] // in the helpers, too

#[path = "support/google.rs"]
mod google;
#[path = "support/http.rs"]
mod http;

use std::{
    convert::Infallible,
    future::{Ready, poll_fn, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    task::{Context, Poll, Waker},
    time::Duration,
};

use google_authz::{AuthError, Credentials, GoogleAuthz};
use http02::Request;
use tokio::{process::Command, time::timeout};
use tower_service::Service;

use self::{
    google::{KEY, TokenEndpoint, service_account},
    http::Reply,
};

/// Where a test has started itself once more, with the certificate of its endpoint in
/// `SSL_CERT_FILE`: the URI of that endpoint.
fn token_uri() -> Option<String> {
    std::env::var(TOKEN_URI).ok()
}

const TOKEN_URI: &str = "TEST_TOKEN_URI";

#[tokio::test]
async fn a_poll_after_a_failure_panics() {
    if let Some(uri) = token_uri() {
        return a_poll_after_a_failure(&uri).await;
    }
    let endpoint = TokenEndpoint::start().await;
    endpoint.desk.answer(Reply::status(500, "down"));
    run("a_poll_after_a_failure_panics", &endpoint).await;
}

#[tokio::test]
async fn of_five_that_wait_for_one_fetch_only_one_is_woken() {
    if let Some(uri) = token_uri() {
        return five_at_once(&uri).await;
    }
    let endpoint = TokenEndpoint::start().await;
    let late = Reply::Late(Duration::from_millis(500), String::new());
    endpoint.desk.answer(late);
    run(
        "of_five_that_wait_for_one_fetch_only_one_is_woken",
        &endpoint,
    )
    .await;
    assert_eq!(endpoint.desk.count(), 1);
}

#[tokio::test]
async fn an_error_prints_the_token() {
    if let Some(uri) = token_uri() {
        return an_error_in_print(&uri).await;
    }
    let endpoint = TokenEndpoint::start().await;
    let answer = Reply::ok(google::token("secret-token", 0));
    endpoint.desk.answer(answer);
    run("an_error_prints_the_token", &endpoint).await;
}

/// Runs a test of this file in a process of its own.
async fn run(test: &str, endpoint: &TokenEndpoint) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(TOKEN_URI, endpoint.uri())
        .env("SSL_CERT_FILE", endpoint.ca())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "mended? {output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("1 passed"), "{said}");
    assert!(endpoint.desk.count() > 0, "it has asked for no token");
}

async fn a_poll_after_a_failure(uri: &str) {
    let mut authz = authz(uri).await;
    assert!(poll_fn(|cx| poll(&mut authz, cx)).await.is_err());
    let mut cx = Context::from_waker(Waker::noop());
    let again = catch_unwind(AssertUnwindSafe(|| poll(&mut authz, &mut cx).is_pending()));
    let payload = again.expect_err("a poll after a failure does not panic any more");
    let message = payload.downcast_ref::<&str>().unwrap();
    assert_eq!(*message, "`async fn` resumed after completion");
}

async fn five_at_once(uri: &str) {
    let authz = authz(uri).await;
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let mut clone = authz.clone();
            tokio::spawn(async move { poll_fn(|cx| poll(&mut clone, cx)).await.unwrap() })
        })
        .collect();
    let mut woken = 0;
    for task in waiting {
        woken += usize::from(timeout(Duration::from_secs(2), task).await.is_ok());
    }
    assert_eq!(woken, 1, "clones are woken now");
}

async fn an_error_in_print(uri: &str) {
    let mut authz = authz(uri).await;
    match poll_fn(|cx| poll(&mut authz, cx)).await {
        Err(google_authz::Error::GoogleAuthz(error @ AuthError::TokenFormat(_))) => {
            assert!(error.to_string().contains("secret-token"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

type Authz = GoogleAuthz<Inner>;

async fn authz(uri: &str) -> Authz {
    let json = service_account(KEY, uri).to_string();
    let credentials = Credentials::builder().json(json.as_bytes()).build();
    GoogleAuthz::builder(Inner)
        .credentials(credentials.await.unwrap())
        .max_retry(0)
        .build::<()>()
        .await
}

fn poll(
    authz: &mut Authz,
    cx: &mut Context<'_>,
) -> Poll<Result<(), google_authz::Error<Infallible>>> {
    Service::<Request<()>>::poll_ready(authz, cx)
}

#[derive(Clone)]
struct Inner;

impl Service<Request<()>> for Inner {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(()))
    }
}

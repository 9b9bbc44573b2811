//! Tokens from the crate google-authz: service accounts, users, the metadata server.
//!
//! That crate is built around a service of http 0.2. Here it wraps one that only hands back the
//! head of the request, decorated. An instance is asked for one token; it must never be polled
//! again after a failure, for it panics then.

use std::{
    convert::Infallible,
    future::{self, Future, Ready},
    pin::pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use google_authz::{AuthError, Credentials, GoogleAuthz};
use http02::{HeaderMap, Request, StatusCode, header::AUTHORIZATION};
use hyper014::body::{Body, HttpBody as _};
use serde_json::Value;
use tokio::time::timeout;
use tonic::Status;

use super::{
    apart::apart,
    failure::{refused, unavailable},
    key_file::KeyFile,
    oauth, signing_key,
    token::{Look, Token},
};

/// Google's tokens live an hour: two thirds of it can be ridden out.
const RENEW_KEY: Duration = Duration::from_secs(20 * 60);
/// The metadata server hands out the same token until 5 minutes before its end, on some platforms
/// 4, and a new one after that.
const RENEW_METADATA: Duration = Duration::from_secs(3 * 60);
/// An instance that says ready has a token that is good for so long at least (its `EXPIRY_DELTA`).
const GOOD_FOR: Duration = Duration::from_secs(10);
/// How often an instance is asked. It costs a lock that nobody else holds.
const LOOK: Duration = Duration::from_secs(2);
/// How much is read of a refusal, and for how long.
const MAX_REFUSAL: usize = 8 * 1024;
const REFUSAL_PATIENCE: Duration = Duration::from_secs(1);

type Authz = GoogleAuthz<Head>;

pub(super) async fn of_key_file(key: KeyFile, scopes: &[String]) -> Result<Token, Status> {
    let scopes = leaked(scopes);
    let name = key.name().to_owned();
    let (authz, name) = apart(move || {
        let json = signing_key::checked(&key)?.to_string();
        let json = json.as_bytes();
        let credentials = now(Credentials::builder().scopes(scopes).json(json).build())
            .and_then(Result::ok)
            .ok_or_else(|| key.refused("google-authz does not take it: download the file again"))?;
        // Building reads the certificate store.
        let authz = now(build(credentials))
            .ok_or_else(|| key.refused("google-authz does not take it at once"))?;
        Ok::<_, Status>((authz, name))
    })
    .await??;
    fetch(authz, &format!("{name}: the token endpoint"), RENEW_KEY).await
}

/// The caller has found that there is one: google-authz would panic.
pub(super) async fn of_metadata_server(
    account: Option<&str>,
    scopes: &[String],
) -> Result<Token, Status> {
    let credentials = Credentials::builder()
        .scopes(leaked(scopes))
        .metadata(account.map(ToOwned::to_owned))
        .build()
        .await
        .map_err(|_| unavailable("the metadata server cannot be asked"))?;
    fetch(
        build(credentials).await,
        "the metadata server",
        RENEW_METADATA,
    )
    .await
}

async fn build(credentials: Credentials) -> Authz {
    // Its own retries come without a pause, and it logs their errors, which may show a token.
    GoogleAuthz::builder(Head)
        .credentials(credentials)
        .max_retry(0)
        .build::<()>()
        .await
}

async fn fetch(mut authz: Authz, endpoint: &str, renew: Duration) -> Result<Token, Status> {
    match future::poll_fn(|cx| poll_ready(&mut authz, cx)).await {
        Ok(()) => {}
        Err(google_authz::Error::GoogleAuthz(error)) => return Err(told(error, endpoint).await),
        Err(google_authz::Error::Service(never)) => match never {},
    }
    let mut probe = Request::new(());
    // Whatever the scheme of the call: it only lets https pass.
    *probe.uri_mut() = http02::Uri::from_static("https://probe.invalid/");
    let head = tower_service::Service::call(&mut authz, probe).await;
    let header = head.as_ref().ok().and_then(|head| head.get(AUTHORIZATION));
    let value = header
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| unavailable(format_args!("{endpoint} answered what is no token")))?;
    let token = Token::header("authorization", value)?;
    Ok(token
        .renew_after(renew)
        .lease(LOOK, move || look(&mut authz)))
}

fn poll_ready(
    authz: &mut Authz,
    cx: &mut Context<'_>,
) -> Poll<Result<(), google_authz::Error<Infallible>>> {
    tower_service::Service::<Request<()>>::poll_ready(authz, cx)
}

/// Looks without waiting. After a no, the instance has begun a fetch that nobody drives, and must
/// not be asked again.
fn look(authz: &mut Authz) -> Look {
    match poll_ready(authz, &mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(())) => Look::GoodFor(GOOD_FOR),
        _ => Look::Renew,
    }
}

/// Tells an error in words of our own: what these print may hold a token, or all headers.
async fn told(error: AuthError, endpoint: &str) -> Status {
    match error {
        AuthError::Http(error) | AuthError::Gcemeta(gcemeta::Error::Http(error)) => {
            unavailable(format_args!("{endpoint} cannot be asked: {}", root(&error)))
        }
        AuthError::StatusCode((head, body))
        | AuthError::Gcemeta(gcemeta::Error::StatusCode((head, body))) => {
            told_refusal(head.status, body, endpoint).await
        }
        _ => unavailable(format_args!(
            "{endpoint} answered what is no token: check that it is the right endpoint"
        )),
    }
}

/// The last of the causes says what happened, such as "connection refused".
fn root(error: &hyper014::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

async fn told_refusal(status: StatusCode, body: Body, endpoint: &str) -> Status {
    let body: Value = serde_json::from_slice(&read(body).await).unwrap_or_default();
    let refusal = body["error"].as_str().and_then(oauth::refusal);
    let said = format!("{endpoint} answered {}", status.as_u16());
    let is_transient = status.is_server_error()
        || matches!(status.as_u16(), 408 | 429)
        || refusal.is_some_and(|refusal| refusal.is_transient);
    match refusal {
        _ if is_transient => unavailable(format_args!("{said}: it is tried again")),
        Some(refusal) => refused(format_args!("{said} {}: {}", refusal.code, refusal.remedy)),
        None if status == StatusCode::NOT_FOUND => refused(format_args!(
            "{said}: check that the account exists, and that this machine may use it"
        )),
        None => refused(format_args!("{said}: check what the account may do")),
    }
}

async fn read(mut body: Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = async {
        while let Some(Ok(chunk)) = body.data().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_REFUSAL {
                break;
            }
        }
    };
    // What has come until then must do.
    let _ = timeout(REFUSAL_PATIENCE, reading).await;
    bytes
}

/// google-authz wants its scopes for ever. A distinct set is given up once, however often a source
/// is made anew.
fn leaked(scopes: &[String]) -> &'static [&'static str] {
    static LEAKED: Mutex<Vec<&'static [&'static str]>> = Mutex::new(Vec::new());
    // A panic could only have come before the push.
    let mut leaked = LEAKED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = leaked.iter().find(|known| **known == scopes) {
        return known;
    }
    let own = |scope: &String| &*String::leak(scope.clone());
    let scopes: &'static [&'static str] = scopes.iter().map(own).collect::<Vec<_>>().leak();
    leaked.push(scopes);
    scopes
}

/// Polls once what is async only in name.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// The service that google-authz wraps here: it hands back the headers.
struct Head;

impl tower_service::Service<Request<()>> for Head {
    type Response = HeaderMap;
    type Error = Infallible;
    type Future = Ready<Result<HeaderMap, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        future::ready(Ok(request.into_parts().0.headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_scopes_is_leaked_once() {
        let scopes = ["a".to_owned(), "b".to_owned()];
        assert!(std::ptr::eq(leaked(&scopes), leaked(&scopes)));
        assert_ne!(leaked(&scopes), leaked(&scopes[..1]));
    }
}

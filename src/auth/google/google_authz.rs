//! Tokens from the crate google-authz, for service account keys and user credentials.
//!
//! That crate wraps a service of http 0.2. Here it wraps one that only returns the headers of a
//! request, with the token added. Each instance is used for one token, because it panics when it is
//! polled after a failure.

use std::{
    convert::Infallible,
    future::{self, Future, Ready},
    io,
    pin::pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use google_authz::{AuthError, Credentials, GoogleAuthz};
use http02::{HeaderMap, Request, Uri, header::AUTHORIZATION, response};
use hyper014::body::{Body, HttpBody as _};
use rustls020::{Certificate, RootCertStore};
use serde_json::Value;
use tokio::time::timeout;
use tonic::Status;

use super::{
    key_file::{GOOGLE_ENDPOINT, KeyFile, is_temporary},
    oauth::{ErrorResponse, no_token, root_cause},
    private_key,
};
use crate::{
    auth::{
        failure::{no_certificates, no_certificates_now, unavailable},
        token::Token,
    },
    expiry::Expiry,
};

/// The lifetime of Google's access tokens. google-authz does not return the lifetime in the response.
const LIFETIME: Duration = Duration::from_secs(3600);
/// The maximum delay before a token is renewed. The rest of the lifetime covers an outage of the token
/// endpoint.
const RENEW_AFTER: Duration = Duration::from_secs(20 * 60);
/// The limits for reading an error response.
const MAX_ERROR: usize = 8 * 1024;
const ERROR_TIMEOUT: Duration = Duration::from_secs(1);
const WRONG_ENDPOINT: &str = "check the field \"token_uri\", and any proxy on the way";

type Authz = GoogleAuthz<Headers>;

/// Fetches a token. This blocks, and needs a tokio runtime.
pub(super) async fn token(key: &KeyFile, scopes: &[String]) -> Result<Token, Status> {
    let expiry = Expiry::now().later_by(LIFETIME);
    let json = fields(key)?.to_string();
    let mut authz = build(key, &json, leaked(scopes))?;
    let endpoint = key.endpoint();
    match future::poll_fn(|cx| tower_service::Service::<Request<()>>::poll_ready(&mut authz, cx))
        .await
    {
        Ok(()) => {}
        Err(google_authz::Error::GoogleAuthz(error)) => return Err(failure(error, &endpoint).await),
        Err(google_authz::Error::Service(never)) => match never {},
    }
    let mut request = Request::new(());
    // google-authz refuses requests that are not https.
    *request.uri_mut() = Uri::from_static("https://unused.invalid/");
    let headers = tower_service::Service::call(&mut authz, request).await;
    let header = headers.as_ref().ok().and_then(|it| it.get(AUTHORIZATION));
    let value = header
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| no_token(&endpoint))?;
    let mut token = Token::header("authorization", value)?;
    token.expiry = Some(expiry);
    token.renew_after = Some(RENEW_AFTER);
    Ok(token)
}

fn is_service_account(key: &KeyFile) -> bool {
    key.kind() == "service_account"
}

/// Returns the fields that the kind of file needs, and no others.
///
/// google-authz infers the type from the fields, and would otherwise treat user credentials that
/// also have the fields of a service account as a service account.
fn fields(key: &KeyFile) -> Result<Value, Status> {
    let fields: &[&str] = if is_service_account(key) {
        private_key::check(key)?;
        // google-authz panics if the clock is before 1970.
        private_key::since_epoch()?;
        check_token_uri(key)?;
        &["client_email", "private_key_id", "private_key", "token_uri"]
    } else {
        &["client_id", "client_secret", "refresh_token"]
    };
    let fields = fields
        .iter()
        .map(|field| Ok(((*field).to_owned(), key.required(field)?.into())))
        .collect::<Result<_, Status>>()?;
    Ok(Value::Object(fields))
}

fn check_token_uri(key: &KeyFile) -> Result<(), Status> {
    match key.required("token_uri")?.parse::<Uri>() {
        Ok(uri) if uri.scheme_str() == Some("https") && uri.host().is_some() => Ok(()),
        _ => Err(key.refused(format_args!(
            "field \"token_uri\" is not an https URL: Google's is {GOOGLE_ENDPOINT}"
        ))),
    }
}

/// Builds an instance, which reads the certificate store.
///
/// google-authz panics if the store cannot be read, or is empty. So it is read once before, while
/// two file descriptors are reserved for it.
fn build(key: &KeyFile, json: &str, scopes: &'static [&'static str]) -> Result<Authz, Status> {
    let refused =
        || key.refused("the file is not accepted by google-authz: download the file again");
    let credentials = now(Credentials::builder()
        .scopes(scopes)
        .json(json.as_bytes())
        .build());
    let credentials = credentials.and_then(Result::ok).ok_or_else(refused)?;
    let reserved = io::pipe().map_err(|error| no_certificates_now(&error))?;
    check_certificate_store()?;
    drop(reserved);
    let build = GoogleAuthz::builder(Headers)
        .credentials(credentials)
        // Its own retries have no backoff, and it logs their errors, which may contain a token.
        .max_retry(0)
        .build::<()>();
    now(build).ok_or_else(refused)
}

fn check_certificate_store() -> Result<(), Status> {
    let certificates = match rustls_native_certs06::load_native_certs() {
        Err(error) if is_temporary(&error) => return Err(no_certificates_now(&error)),
        certificates => certificates.unwrap_or_default(),
    };
    let is_valid = |certificate: rustls_native_certs06::Certificate| {
        RootCertStore::empty()
            .add(&Certificate(certificate.0))
            .is_ok()
    };
    if certificates.into_iter().any(is_valid) {
        return Ok(());
    }
    Err(no_certificates())
}

/// Returns the status of an error. Its own text may contain a token, or all headers.
async fn failure(error: AuthError, endpoint: &str) -> Status {
    match error {
        AuthError::Http(error) => unavailable(format_args!(
            "{endpoint} cannot be reached: {}",
            root_cause(&error)
        )),
        AuthError::StatusCode((head, body)) => error_response(&head, body, endpoint).await,
        _ => no_token(endpoint),
    }
}

async fn error_response(head: &response::Parts, mut body: Body, endpoint: &str) -> Status {
    let mut bytes = Vec::new();
    let read = async {
        while let Some(Ok(chunk)) = body.data().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ERROR {
                break;
            }
        }
    };
    // On a timeout, use the part that was read.
    let _ = timeout(ERROR_TIMEOUT, read).await;
    let response = ErrorResponse {
        status: head.status.as_u16(),
        retry_after: head.headers.get("retry-after").map(|it| it.as_bytes()),
        body: &bytes,
    };
    response.failure(endpoint, WRONG_ENDPOINT, WRONG_ENDPOINT)
}

/// google-authz takes static scopes. Each distinct set is leaked once, however often a token is
/// fetched.
fn leaked(scopes: &[String]) -> &'static [&'static str] {
    static LEAKED: Mutex<Vec<&'static [&'static str]>> = Mutex::new(Vec::new());
    // A panic could only have happened before the push.
    let mut leaked = LEAKED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = leaked.iter().find(|known| **known == scopes) {
        return known;
    }
    let leak = |scope: &String| &*String::leak(scope.clone());
    let scopes: &'static [&'static str] = scopes.iter().map(leak).collect::<Vec<_>>().leak();
    leaked.push(scopes);
    scopes
}

/// Polls a future that never returns `Pending`.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// The service that google-authz wraps here: it returns the headers of the request.
struct Headers;

impl tower_service::Service<Request<()>> for Headers {
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
    use serde_json::json;

    use super::*;

    #[test]
    fn a_set_of_scopes_is_leaked_once() {
        let scopes = ["a".to_owned(), "b".to_owned()];
        assert!(std::ptr::eq(leaked(&scopes), leaked(&scopes)));
        assert_ne!(leaked(&scopes), leaked(&scopes[..1]));
    }

    #[test]
    fn the_fields_of_another_kind_are_omitted() {
        let user = json!({"client_id": "id", "client_secret": "secret", "refresh_token": "token"});
        let mut file = user.clone();
        file["type"] = "authorized_user".into();
        for field in ["client_email", "private_key_id", "private_key", "token_uri"] {
            file[field] = "of a service account".into();
        }
        let key = KeyFile::parse("credentials JSON", &file.to_string()).unwrap();
        assert_eq!(fields(&key).unwrap(), user);
    }
}

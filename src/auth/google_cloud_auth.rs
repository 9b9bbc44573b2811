//! Tokens from the crate google-cloud-auth: workload identity federation, impersonation, and the
//! kinds that google-authz knows if that is not compiled in.
//!
//! Its objects renew themselves, and never recover from a permanent error. So one is kept while it
//! works, made anew after a failure, and made anew within half an hour in any case: it tries again
//! a renewal that it gave up only when its token has ended.

mod check;

use std::{
    error::Error as _,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use google_cloud_auth::{
    build_errors::Error as BuildError,
    credentials::{CacheableResource, Credentials, EntityTag, external_account, impersonated},
    errors::CredentialsError,
};
use http::{Extensions, HeaderMap};
use serde_json::Value;
use tokio::time::Instant;
use tonic::Status;

use self::check::{check, check_tls};
use super::{
    failure::{refused, unavailable},
    key_file::KeyFile,
    oauth,
    token::{Look, Token},
};

/// By when an object is made anew even though it works. The owner asks for that after four fifths
/// of it at the earliest.
const RENEW: Duration = Duration::from_secs(30 * 60);
const MADE_ANEW_FROM: Duration = Duration::from_secs(24 * 60);
/// How often an object is asked whether it still hands out the token. Nothing else tells of its end.
const LOOK: Duration = Duration::from_millis(200);
/// For how long a token is sent if nobody looks: a busy process may be late.
const GOOD_FOR: Duration = Duration::from_secs(3);

/// The object that works, if one does.
#[derive(Default)]
pub(super) struct Cache(Mutex<Option<Live>>);

struct Live {
    /// What it was made of.
    text: Arc<str>,
    made: Instant,
    credentials: Credentials,
}

impl Cache {
    pub(super) async fn of_key_file(
        &self,
        key: KeyFile,
        scopes: &[String],
    ) -> Result<Token, Status> {
        if let Some(token) = self.kept(key.text(), key.name()).await {
            return Ok(token);
        }
        check(&key)?;
        check_tls().await?;
        let credentials =
            build(&key, scopes.to_vec()).map_err(|error| key.refused(told_build(&error)))?;
        let token = token(&credentials, key.name(), RENEW).await?;
        self.keep(key.text(), credentials);
        Ok(token)
    }

    #[cfg(not(feature = "google-authz"))]
    pub(super) async fn of_metadata_server(
        &self,
        account: Option<&str>,
        scopes: &[String],
    ) -> Result<Token, Status> {
        if account.is_some_and(|account| account != "default") {
            return Err(super::failure::needs_feature(
                "an account of the metadata server other than the default needs",
                "google-authz",
            ));
        }
        let name = "the metadata server";
        let text: Arc<str> = "".into();
        if let Some(token) = self.kept(&text, name).await {
            return Ok(token);
        }
        check_tls().await?;
        let credentials = google_cloud_auth::credentials::mds::Builder::default()
            .with_scopes(scopes.to_vec())
            .build()
            .map_err(|error| refused(format_args!("{name}: {}", told_build(&error))))?;
        let token = token(&credentials, name, RENEW).await?;
        self.keep(&text, credentials);
        Ok(token)
    }

    pub(super) fn clear(&self) {
        *self.lock() = None;
    }

    /// Asks the object that is kept, if it is still the right one.
    async fn kept(&self, text: &Arc<str>, name: &str) -> Option<Token> {
        // Taken out, and put back only if it works: one that hangs must not be asked again.
        let live = self.lock().take()?;
        let age = live.made.elapsed();
        if live.text != *text || age >= MADE_ANEW_FROM {
            return None;
        }
        let token = token(&live.credentials, name, RENEW - age).await.ok()?;
        *self.lock() = Some(live);
        Some(token)
    }

    fn keep(&self, text: &Arc<str>, credentials: Credentials) {
        *self.lock() = Some(Live {
            text: Arc::clone(text),
            made: Instant::now(),
            credentials,
        });
    }

    fn lock(&self) -> MutexGuard<'_, Option<Live>> {
        // Nothing that can panic runs under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn build(key: &KeyFile, scopes: Vec<String>) -> Result<Credentials, BuildError> {
    let json = Value::Object(key.fields().clone());
    match key.kind() {
        "external_account" => external_account::Builder::new(json)
            .with_scopes(scopes)
            .build(),
        "impersonated_service_account" => {
            impersonated::Builder::new(json).with_scopes(scopes).build()
        }
        #[cfg(not(feature = "google-authz"))]
        "authorized_user" => google_cloud_auth::credentials::user_account::Builder::new(json)
            .with_scopes(scopes)
            .build(),
        _ => {
            use google_cloud_auth::credentials::service_account::{AccessSpecifier, Builder};
            Builder::new(json)
                .with_access_specifier(AccessSpecifier::from_scopes(scopes))
                .build()
        }
    }
}

async fn token(credentials: &Credentials, name: &str, renew: Duration) -> Result<Token, Status> {
    let (headers, tag) = match credentials.headers(Extensions::new()).await {
        Ok(CacheableResource::New { entity_tag, data }) => (data, entity_tag),
        Ok(CacheableResource::NotModified) => {
            return Err(unavailable(format_args!(
                "{name}: google-cloud-auth has no token"
            )));
        }
        Err(error) => return Err(told(&error, name)),
    };
    let credentials = credentials.clone();
    Ok(of_headers(&headers)?
        .renew_after(renew)
        .lease(LOOK, move || look(&credentials, &tag)))
}

fn of_headers(headers: &HeaderMap) -> Result<Token, Status> {
    let mut token: Option<Token> = None;
    for (name, value) in headers {
        let value = value.to_str().unwrap_or_default();
        token = Some(match token {
            Some(token) => token.and_header(name.as_str(), value)?,
            None => Token::header(name.as_str(), value)?,
        });
    }
    token.ok_or_else(|| unavailable("google-cloud-auth gave no headers"))
}

/// Looks without waiting whether the object still hands out this very token. While it has none that
/// is good it fails, or would wait.
fn look(credentials: &Credentials, tag: &EntityTag) -> Look {
    let mut extensions = Extensions::new();
    extensions.insert(tag.clone());
    let mut headers = std::pin::pin!(credentials.headers(extensions));
    let headers = headers
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    match headers {
        Poll::Ready(Ok(CacheableResource::NotModified)) => Look::GoodFor(GOOD_FOR),
        Poll::Ready(Ok(CacheableResource::New { .. })) => Look::Renew,
        Poll::Ready(Err(_)) | Poll::Pending => Look::Ended,
    }
}

/// Tells an error in words of our own: these quote the answer of the endpoint.
fn told(error: &CredentialsError, name: &str) -> Status {
    let mut causes = std::iter::successors(error.source(), |cause| (*cause).source());
    if let Some(error) = causes.find_map(|cause| cause.downcast_ref::<io::Error>()) {
        let message = format!("{name}: google-cloud-auth got no token: {}", error.kind());
        return match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => refused(format_args!(
                "{message}: check the file in the field \"credential_source\""
            )),
            _ => unavailable(message),
        };
    }
    let refusal = oauth::refusal_in(&format!("{error:?}"));
    match refusal {
        Some(refusal) if !refusal.is_transient => refused(format_args!(
            "{name}: the token endpoint answered {}: {}",
            refusal.code, refusal.remedy
        )),
        _ if error.is_transient() => unavailable(format_args!(
            "{name}: google-cloud-auth got no token, for now"
        )),
        _ => refused(format_args!(
            "{name}: google-cloud-auth got no token: check what each field of the file names, and \
             what the account may do"
        )),
    }
}

fn told_build(error: &BuildError) -> &'static str {
    match error {
        error if error.is_missing_field() => "a field is missing: download the file again",
        error if error.is_parsing() => {
            "google-cloud-auth cannot read a field of it: download the file again"
        }
        error if error.is_not_supported() => "google-cloud-auth does not support this kind of it",
        _ => "google-cloud-auth does not take it: download the file again",
    }
}

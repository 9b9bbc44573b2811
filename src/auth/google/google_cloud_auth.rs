//! Tokens from the crate google-cloud-auth: workload identity federation and impersonation, and the
//! kinds of file that google-authz reads if that is not compiled in.
//!
//! google-cloud-auth renews tokens in a background task, which does not recover from a permanent
//! error. So each credentials object is used for one token, on a runtime that ends with the fetch
//! and ends the task.

mod check;

use std::{error::Error as _, io, path::Path, time::Duration};

use google_cloud_auth::{
    build_errors::Error as BuildError,
    credentials::{CacheableResource, Credentials, external_account, impersonated},
    errors::CredentialsError,
};
use http::{Extensions, HeaderMap};
use serde_json::Value;
use tonic::Status;

use self::check::{check, check_tls};
use super::{key_file::KeyFile, oauth};
use crate::{
    auth::{
        failure::{refused, unavailable},
        token::Token,
    },
    expiry::Expiry,
};

/// The usual lifetime of Google's tokens. google-cloud-auth does not return the lifetime in the
/// response.
const LIFETIME: Duration = Duration::from_secs(3600);
/// The maximum delay before a token is renewed. The rest of the lifetime covers an outage of the token
/// endpoint.
const RENEW_AFTER: Duration = Duration::from_secs(20 * 60);
/// The time limit of an executable that does not specify one, see
/// [AIP-4117](https://google.aip.dev/auth/4117).
const EXECUTABLE: Duration = Duration::from_secs(30);

/// Returns the timeout of the executable in the file, if it has one.
pub(super) fn executable_timeout(key: &KeyFile) -> Option<Duration> {
    let executable = key.fields().get("credential_source")?.get("executable")?;
    let millis = executable.get("timeout_millis").and_then(Value::as_u64);
    Some(millis.map_or(EXECUTABLE, Duration::from_millis))
}

/// Fetches a token. This blocks, and needs a tokio runtime. Relative paths are relative to `directory`.
pub(super) async fn token(
    key: &KeyFile,
    scopes: &[String],
    directory: &Path,
) -> Result<Token, Status> {
    check(key)?;
    check_tls()?;
    let expiry = Expiry::now().later_by(LIFETIME);
    let credentials = build(key, scopes.to_vec(), directory)
        .map_err(|error| key.refused(build_remedy(&error)))?;
    let name = key.name();
    let mut token = match credentials.headers(Extensions::new()).await {
        Ok(CacheableResource::New { data, .. }) => of_headers(&data)?,
        Ok(CacheableResource::NotModified) => {
            return Err(unavailable(format_args!(
                "{name}: google-cloud-auth has no token"
            )));
        }
        Err(error) => return Err(failure(&error, key)),
    };
    token.expiry = Some(expiry);
    token.renew_after = Some(RENEW_AFTER);
    Ok(token)
}

/// Makes the paths of subject tokens absolute, so that a later change of the working directory has
/// no effect.
fn absolute_paths(json: &mut Value, directory: &Path) {
    const SOURCE: &str = "credential_source";
    for pointer in ["", "/source_credentials"].map(|of| format!("{of}/{SOURCE}/file")) {
        if let Some(Value::String(path)) = json.pointer_mut(&pointer) {
            *path = directory.join(&*path).to_string_lossy().into_owned();
        }
    }
}

fn build(key: &KeyFile, scopes: Vec<String>, directory: &Path) -> Result<Credentials, BuildError> {
    let mut json = Value::Object(key.fields().clone());
    absolute_paths(&mut json, directory);
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

fn of_headers(headers: &HeaderMap) -> Result<Token, Status> {
    let mut token: Option<Token> = None;
    for (name, value) in headers {
        let value = value.to_str().unwrap_or_default();
        token = Some(match token {
            Some(token) => token.and_header(name.as_str(), value)?,
            None => Token::header(name.as_str(), value)?,
        });
    }
    token.ok_or_else(|| unavailable("google-cloud-auth returned no headers"))
}

/// Returns the status of an error. Its own text may quote the response of the endpoint.
fn failure(error: &CredentialsError, key: &KeyFile) -> Status {
    let name = key.name();
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
            "{} answered {}: {}",
            key.endpoint(),
            refusal.code,
            refusal.remedy
        )),
        _ if error.is_transient() => unavailable(format_args!(
            "{name}: google-cloud-auth got no token: the fetch will be retried"
        )),
        _ => refused(format_args!(
            "{name}: google-cloud-auth got no token: check what each field of the file names, and \
             what the account may do"
        )),
    }
}

fn build_remedy(error: &BuildError) -> &'static str {
    match error {
        error if error.is_missing_field() => "a field is missing: download the file again",
        error if error.is_parsing() => {
            "google-cloud-auth cannot read a field of it: download the file again"
        }
        error if error.is_not_supported() => "google-cloud-auth does not support this kind of it",
        _ => "google-cloud-auth does not accept it: download the file again",
    }
}

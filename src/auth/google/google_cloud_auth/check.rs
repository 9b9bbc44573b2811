//! Checks of what google-cloud-auth requires: the fields of each kind of file, and TLS.

use http::Uri;
use rustls::crypto::CryptoProvider;
use rustls_native_certs::ErrorKind;
use serde_json::{Map, Value};
use tonic::Status;

use crate::auth::{
    failure::{no_certificates, no_certificates_now},
    google::key_file::{KeyFile, is_temporary},
};

/// The field with the credentials that are used to impersonate an account.
const SOURCE: &str = "source_credentials";

/// Checks the fields that the kind of file needs. The messages name the file.
pub(super) fn check(key: &KeyFile) -> Result<(), Status> {
    match key.kind() {
        "external_account" => {
            for field in ["audience", "subject_token_type"] {
                key.required(field)?;
            }
            key.required("token_url")?;
            check_object(key, "credential_source")?;
        }
        "impersonated_service_account" => {
            key.required("service_account_impersonation_url")?;
            check_object(key, SOURCE)?;
        }
        "authorized_user" => {
            for field in ["client_id", "client_secret", "refresh_token"] {
                key.required(field)?;
            }
        }
        _ => {
            for field in [
                "client_email",
                "private_key_id",
                "private_key",
                "project_id",
            ] {
                key.required(field)?;
            }
        }
    }
    check_urls(key, "", key.fields())
}

/// Checks the URLs of the file, and of the credentials within it.
fn check_urls(key: &KeyFile, within: &str, fields: &Map<String, Value>) -> Result<(), Status> {
    for field in [
        "service_account_impersonation_url",
        "token_uri",
        "token_url",
    ] {
        if let Some(Value::String(url)) = fields.get(field) {
            check_url(key, &format!("{within}{field}"), url)?;
        }
    }
    match fields.get(SOURCE) {
        Some(Value::Object(fields)) => check_urls(key, &format!("{within}{SOURCE}."), fields),
        _ => Ok(()),
    }
}

fn check_object(key: &KeyFile, field: &str) -> Result<(), Status> {
    match key.fields().get(field) {
        Some(Value::Object(_)) => Ok(()),
        _ => Err(key.refused(format_args!(
            "field {field:?} is missing or not an object: download the file again"
        ))),
    }
}

/// Checks a URL that secrets are sent to: over TLS, or on this machine.
fn check_url(key: &KeyFile, field: &str, url: &str) -> Result<(), Status> {
    let is_safe = url.parse::<Uri>().is_ok_and(|uri| match uri.scheme_str() {
        Some("https") => uri.host().is_some(),
        Some("http") => matches!(uri.host(), Some("127.0.0.1" | "[::1]" | "localhost")),
        _ => false,
    });
    if is_safe {
        return Ok(());
    }
    Err(key.refused(format_args!(
        "field {field:?} is not an https URL: correct the URL"
    )))
}

/// Checks what the crate's HTTP client would panic without: a provider of cryptography, and
/// certificates.
pub(super) fn check_tls() -> Result<(), Status> {
    if CryptoProvider::get_default().is_none() {
        install_provider()?;
    }
    let found = rustls_native_certs::load_native_certs();
    if !found.certs.is_empty() {
        return Ok(());
    }
    for error in found.errors {
        if let ErrorKind::Io { inner, .. } = error.kind
            && is_temporary(&inner)
        {
            return Err(no_certificates_now(&inner));
        }
    }
    Err(no_certificates())
}

/// Installs the default provider, as rustls does at its first use if only one is compiled in.
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
#[allow(clippy::unnecessary_wraps)]
fn install_provider() -> Result<(), Status> {
    #[cfg(feature = "tls-ring")]
    let provider = rustls::crypto::ring::default_provider();
    #[cfg(not(feature = "tls-ring"))]
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // An error means that another thread has installed one.
    let _ = provider.install_default();
    Ok(())
}

#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
fn install_provider() -> Result<(), Status> {
    Err(crate::status::local(
        tonic::Code::FailedPrecondition,
        "credentials: rustls has no default provider of cryptography: turn on the feature tls-ring \
         or tls-aws-lc of the crate longrunning, or call CryptoProvider::install_default",
    ))
}

//! Whether a service account's key can sign, and what else google-authz takes for granted.

use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls020::{Certificate, RootCertStore};
use tonic::Status;

use super::{failure::refused, key_file::KeyFile};

/// Refuses what would make google-authz panic. Slow: it signs once, and reads the certificate
/// store.
pub(super) fn check(key: &KeyFile) -> Result<(), Status> {
    match key.kind() {
        "service_account" => {
            key.required("client_email")?;
            key.required("private_key_id")?;
            check_private_key(key)?;
            check_token_uri(key)?;
            check_clock()?;
        }
        _ => {
            key.required("client_id")?;
            key.required("client_secret")?;
            key.required("refresh_token")?;
        }
    }
    check_certificate_store()
}

/// Signs, with the very code that will: nothing less tells a key that is no good.
fn check_private_key(key: &KeyFile) -> Result<(), Status> {
    let private_key = key.required("private_key")?;
    EncodingKey::from_rsa_pem(private_key.as_bytes())
        .and_then(|signer| {
            let claims = serde_json::Map::new();
            jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &signer)
        })
        .map(drop)
        .map_err(|_| {
            key.refused(
                "field \"private_key\" is not an RSA key in PEM form of 2048 bits or more: \
                 download the file again",
            )
        })
}

fn check_token_uri(key: &KeyFile) -> Result<(), Status> {
    match key.required("token_uri")?.parse::<http02::Uri>() {
        Ok(uri) if uri.scheme_str() == Some("https") && uri.host().is_some() => Ok(()),
        _ => Err(key.refused(
            "field \"token_uri\" is not an https URL: Google's is \
             https://oauth2.googleapis.com/token",
        )),
    }
}

/// The assertion is dated 10 s back, in seconds since 1970.
fn check_clock() -> Result<(), Status> {
    match SystemTime::UNIX_EPOCH.elapsed() {
        Ok(time) if time > Duration::from_secs(10) => Ok(()),
        _ => Err(refused("this machine's clock is before 1970: set it")),
    }
}

fn check_certificate_store() -> Result<(), Status> {
    let certificates = rustls_native_certs06::load_native_certs().unwrap_or_default();
    let is_valid = |certificate: rustls_native_certs06::Certificate| {
        RootCertStore::empty()
            .add(&Certificate(certificate.0))
            .is_ok()
    };
    match certificates.into_iter().any(is_valid) {
        true => Ok(()),
        false => Err(refused(
            "no CA certificates on this machine, without which the token endpoint cannot be \
             trusted: install the package ca-certificates, or set SSL_CERT_FILE to a file of them",
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = include_str!("../../tests/support/keys/service_account.pem");

    fn check_key(private_key: &str) -> Result<(), Status> {
        let text = json!({"type": "service_account", "private_key": private_key}).to_string();
        check_private_key(&KeyFile::parse("credentials JSON", &text)?)
    }

    #[test]
    fn a_good_key_is_taken() {
        assert!(check_key(KEY).is_ok());
    }

    /// Some still sign, with a signature that nobody takes: the token endpoint tells that.
    #[test]
    fn no_broken_key_is_a_panic() {
        let mut refused = 0;
        for place in (0..KEY.len()).step_by(3) {
            let mut key = KEY.as_bytes().to_vec();
            key[place] = if key[place] == b'A' { b'z' } else { b'A' };
            let key = String::from_utf8_lossy(&key);
            refused += usize::from(check_key(&key).is_err());
            refused += usize::from(check_key(&KEY[..place]).is_err());
        }
        assert!(refused > KEY.len() / 3, "{refused}");
    }
}

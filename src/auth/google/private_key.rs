//! Signing with the private key of a service account.

use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tonic::Status;

use super::key_file::KeyFile;
use crate::auth::{failure::refused, token::Token};

/// How long a token that is signed here is valid: the maximum that Google accepts.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Checks that the private key can sign. This is slow, because only signing detects an invalid key.
pub(super) fn check(key: &KeyFile) -> Result<(), Status> {
    signed(key, &json!({})).map(drop)
}

/// Returns a token that the service account signs itself, see
/// [AIP-4111](https://google.aip.dev/auth/4111).
pub(super) fn self_signed_token(key: &KeyFile, scopes: &[String]) -> Result<Token, Status> {
    let email = key.required("client_email")?;
    let issued = since_epoch()?;
    let expires = issued + LIFETIME;
    let claims = json!({
        "iss": email,
        "sub": email,
        "scope": scopes.join(" "),
        "iat": issued.as_secs(),
        "exp": expires.as_secs(),
    });
    let token = Token::bearer(&signed(key, &claims)?)?;
    Ok(token
        .expires_at_system_time(SystemTime::UNIX_EPOCH + Duration::from_secs(expires.as_secs())))
}

/// Returns the issue time of a JWT: 10 s ago, in case this machine's clock is ahead.
pub(super) fn since_epoch() -> Result<Duration, Status> {
    const CLOCK_SKEW: Duration = Duration::from_secs(10);
    let time = SystemTime::UNIX_EPOCH.elapsed().ok();
    time.and_then(|time| time.checked_sub(CLOCK_SKEW))
        .ok_or_else(|| refused("this machine's clock is before 1970: set it"))
}

fn signed(key: &KeyFile, claims: &Value) -> Result<String, Status> {
    let private_key = key.required("private_key")?;
    let mut header = Header::new(Algorithm::RS256);
    header.kid = key.optional("private_key_id").map(ToOwned::to_owned);
    EncodingKey::from_rsa_pem(private_key.as_bytes())
        .and_then(|signer| jsonwebtoken::encode(&header, claims, &signer))
        .map_err(|_| {
            key.refused(
                "field \"private_key\" is not an RSA key in PEM form of 2048 bits or more: \
                 download the file again",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = include_str!("../../../tests/support/keys/service_account.pem");

    fn check_key(private_key: &str) -> Result<(), Status> {
        let text = json!({"type": "service_account", "private_key": private_key}).to_string();
        check(&KeyFile::parse("credentials JSON", &text)?)
    }

    #[test]
    fn a_good_key_can_sign() {
        assert!(check_key(KEY).is_ok());
    }

    /// Some broken keys still sign, with an invalid signature: only the token endpoint finds that out.
    #[test]
    fn no_broken_key_causes_a_panic() {
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

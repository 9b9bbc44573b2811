//! Whether a service account's key can sign, and what else google-authz takes for granted.

use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls020::{Certificate, RootCertStore};
use serde_json::Value;
use tonic::Status;

use super::{
    failure::{no_certificates, no_certificates_now, refused},
    key_file::{KeyFile, may_pass},
};

/// Returns what google-authz is given of a file. Refuses what would make it panic.
///
/// Slow: it signs once, and reads the certificate store.
pub(super) fn checked(key: &KeyFile) -> Result<Value, Status> {
    let fields = fields(key)?;
    check_certificate_store()?;
    Ok(fields)
}

/// Returns the fields that its kind needs, and no others: google-authz tells the kind by them, and
/// would take a user for a service account whose fields nobody has checked.
fn fields(key: &KeyFile) -> Result<Value, Status> {
    let fields: &[&str] = match key.kind() {
        "service_account" => {
            check_private_key(key)?;
            check_token_uri(key)?;
            check_clock()?;
            &["client_email", "private_key_id", "private_key", "token_uri"]
        }
        _ => &["client_id", "client_secret", "refresh_token"],
    };
    let fields = fields
        .iter()
        .map(|field| Ok(((*field).to_owned(), key.required(field)?.into())))
        .collect::<Result<_, Status>>()?;
    Ok(Value::Object(fields))
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
    let certificates = match rustls_native_certs06::load_native_certs() {
        Err(error) if may_pass(&error) => {
            return Err(no_certificates_now(&error));
        }
        certificates => certificates.unwrap_or_default(),
    };
    let is_valid = |certificate: rustls_native_certs06::Certificate| {
        RootCertStore::empty()
            .add(&Certificate(certificate.0))
            .is_ok()
    };
    match certificates.into_iter().any(is_valid) {
        true => Ok(()),
        false => Err(no_certificates()),
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

    #[test]
    fn the_fields_of_another_kind_are_left_out() {
        let user = json!({"client_id": "id", "client_secret": "secret", "refresh_token": "token"});
        let mut file = user.clone();
        file["type"] = "authorized_user".into();
        for field in ["client_email", "private_key_id", "private_key", "token_uri"] {
            file[field] = "of a service account".into();
        }
        let key = KeyFile::parse("credentials JSON", &file.to_string()).unwrap();
        assert_eq!(fields(&key).unwrap(), user);
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

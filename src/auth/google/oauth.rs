//! Error responses of token endpoints: those of
//! [RFC 6749, section 5.2](https://www.rfc-editor.org/rfc/rfc6749#section-5.2), and Google's.

use std::{
    error::Error,
    time::{Duration, SystemTime},
};

use serde_json::Value;
use tonic::Status;

use crate::auth::failure::{refused, unavailable, unavailable_for};

/// An error response of a token endpoint or of the metadata server.
pub(super) struct ErrorResponse<'a> {
    pub(super) status: u16,
    pub(super) retry_after: Option<&'a [u8]>,
    pub(super) body: &'a [u8],
}

impl ErrorResponse<'_> {
    /// Returns the status for this response.
    ///
    /// `wrong_endpoint` is the remedy for a response that the right endpoint does not send, and
    /// `not_found` the remedy for a 404.
    pub(super) fn failure(&self, endpoint: &str, wrong_endpoint: &str, not_found: &str) -> Status {
        let body: Value = serde_json::from_slice(self.body).unwrap_or_default();
        let refusal = body["error"].as_str().and_then(refusal);
        let answered = format!("{endpoint} answered {}", self.status);
        if matches!(self.status, 408 | 429 | 500..) || refusal.is_some_and(|it| it.is_transient) {
            let delay = self.retry_after.and_then(delay);
            return unavailable_for(delay, format_args!("{answered}: the fetch will be retried"));
        }
        match (refusal, self.status) {
            (Some(refusal), _) => refused(format_args!(
                "{answered} {}: {}",
                refusal.code, refusal.remedy
            )),
            (None, 300..400) => refused(format_args!(
                "{answered}, a redirect, which is not followed: {wrong_endpoint}"
            )),
            (None, 404) => refused(format_args!("{answered}: {not_found}")),
            (None, 405) => refused(format_args!("{answered}: {wrong_endpoint}")),
            (None, 407) => refused(format_args!(
                "{answered}: a proxy in front of it requires authentication: let it pass"
            )),
            (None, _) => refused(format_args!("{answered}: check what the account may do")),
        }
    }
}

/// Returns the status of a fetch whose response contains no token.
pub(super) fn no_token(endpoint: &str) -> Status {
    unavailable(format_args!(
        "{endpoint} returned no token: check that it is the right endpoint"
    ))
}

/// Returns the root cause of an error, such as "connection refused".
pub(super) fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Reads a `Retry-After` header: a number of seconds, or a date.
fn delay(retry_after: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(retry_after).ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    date.duration_since(SystemTime::now()).ok()
}

/// An error code of a token endpoint, and what to do about it.
///
/// Messages never contain the endpoint's own description, which may quote what was sent to it.
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) is_transient: bool,
    pub(super) remedy: &'static str,
}

/// Looks up an error code.
fn refusal(code: &str) -> Option<&'static Refusal> {
    REFUSALS.iter().find(|refusal| refusal.code == code)
}

/// Finds a known error code in a text that may contain secrets.
#[cfg(feature = "google-cloud-auth")]
pub(super) fn refusal_in(text: &str) -> Option<&'static Refusal> {
    text.split(|char: char| !(char.is_ascii_lowercase() || char == '_'))
        .find_map(refusal)
}

const fn permanent(code: &'static str, remedy: &'static str) -> Refusal {
    Refusal {
        code,
        is_transient: false,
        remedy,
    }
}

const fn transient(code: &'static str) -> Refusal {
    Refusal {
        code,
        is_transient: true,
        remedy: "the fetch will be retried",
    }
}

static REFUSALS: [Refusal; 16] = [
    permanent(
        "invalid_grant",
        "check that the key or login is not revoked, that the account exists, and that this \
         machine's clock is right",
    ),
    permanent(
        "invalid_client",
        "check that the OAuth client in the file still exists",
    ),
    permanent(
        "invalid_scope",
        "check the scopes set with `Credentials::scopes`, and that the account is allowed to use them",
    ),
    permanent(
        "unauthorized_client",
        "check that the account may have the scopes",
    ),
    permanent("access_denied", "check what the account may do"),
    permanent("account_not_found", "check that the account exists"),
    permanent(
        "admin_policy_enforced",
        "ask the administrator of the organization",
    ),
    permanent("deleted_client", "make a new OAuth client and log in again"),
    permanent("disabled_client", "enable the OAuth client"),
    permanent("invalid_request", "download the file again"),
    permanent("invalid_target", "check the field \"audience\""),
    permanent("unsupported_grant_type", "check the field \"token_uri\""),
    transient("internal_failure"),
    transient("rate_limit_exceeded"),
    transient("server_error"),
    transient("temporarily_unavailable"),
];

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::auth::failure::retry_after;

    fn failure(status: u16, body: &str, retry_after: Option<&str>) -> Status {
        let response = ErrorResponse {
            status,
            retry_after: retry_after.map(str::as_bytes),
            body: body.as_bytes(),
        };
        response.failure("the endpoint", "check the endpoint", "check the endpoint")
    }

    #[test]
    fn redirects_and_routing_errors_do_not_mention_the_account() {
        for status in [301, 302, 307, 308, 404, 405, 407] {
            let failure = failure(status, "<html>", None);
            assert_eq!(failure.code(), Code::Unauthenticated);
            let message = failure.message();
            assert!(!message.contains("account"), "{message}");
            let start = format!("credentials: the endpoint answered {status}");
            assert!(message.starts_with(&start), "{message}");
        }
    }

    #[test]
    fn a_description_is_not_quoted() {
        let body = r#"{"error": "invalid_grant", "error_description": "secret"}"#;
        let failure = failure(400, body, None);
        assert_eq!(
            failure.message(),
            "credentials: the endpoint answered 400 invalid_grant: check that the key or login is not \
             revoked, that the account exists, and that this machine's clock is right"
        );
    }

    #[test]
    fn temporary_failures_have_the_delay_of_retry_after() {
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let table = [
            (503, None, None),
            (429, Some("7"), Some(7)),
            (408, Some("0"), Some(0)),
            (599, Some("-1"), None),
            (500, Some("soon"), None),
            (503, Some("Sun, 06 Nov 1994 08:49:37 GMT"), None),
            (503, Some(&*date), Some(99)),
        ];
        for (status, header, expected) in table {
            let failure = failure(status, "", header);
            assert_eq!(failure.code(), Code::Unavailable, "{status}");
            let delay = retry_after(&failure).map(|delay| delay.as_secs());
            let is_near = delay.zip(expected).is_some_and(|(a, b)| a.abs_diff(b) <= 1);
            assert!(is_near || delay == expected, "{header:?}: {delay:?}");
        }
    }
}

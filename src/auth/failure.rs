//! Failures of credentials: codes, messages, and the delay that an endpoint asks for.

use std::{error::Error, fmt, path::Path, time::Duration};

use tonic::{Code, Status};

use crate::status::{
    CallStatusExt as _, Delivery, Origin, ServerDelay, cause, caused, local, mark,
};

/// Returns a failure that a person has to fix.
pub(super) fn refused(message: impl fmt::Display) -> Status {
    local(Code::Unauthenticated, format!("credentials: {message}"))
}

/// Returns a temporary failure.
pub(super) fn unavailable(message: impl fmt::Display) -> Status {
    local(Code::Unavailable, format!("credentials: {message}"))
}

/// Returns a temporary failure with the delay that the endpoint asked for, if any.
#[cfg(feature = "_google")]
pub(super) fn unavailable_for(delay: Option<Duration>, message: impl fmt::Display) -> Status {
    let Some(delay) = delay else {
        return unavailable(message);
    };
    caused(
        Code::Unavailable,
        format!("credentials: {message}"),
        Origin::Client,
        Delivery::NotSent,
        RetryAfter(delay),
    )
}

/// Returns the error for a system without CA certificates.
#[cfg(any(feature = "google-authz", feature = "google-cloud-auth"))]
pub(super) fn no_certificates() -> Status {
    refused(
        "no CA certificates found, cannot verify the token endpoint: install the package \
         ca-certificates, or set SSL_CERT_FILE to a PEM bundle",
    )
}

/// Returns the error for CA certificates that temporarily cannot be read.
#[cfg(any(feature = "google-authz", feature = "google-cloud-auth"))]
pub(super) fn no_certificates_now(error: &std::io::Error) -> Status {
    unavailable(format_args!(
        "cannot read the system's CA certificates: {error}: the fetch will be retried"
    ))
}

/// Returns the error for a feature that is not compiled in.
#[cfg(not(feature = "google-cloud-auth"))]
pub(super) fn needs_feature(what: impl fmt::Display, feature: &str) -> Status {
    local(
        Code::FailedPrecondition,
        format!("credentials: {what} the feature {feature} of the crate longrunning"),
    )
}

/// Returns the error for a source that panicked. The message of the panic is not included, because
/// it may contain a secret.
pub(super) fn panicked() -> Status {
    unavailable("the source of the credentials panicked: this is a bug in it")
}

/// Maps the status of a source to one of the codes that callers can act on.
pub(super) fn classified(status: Status) -> Status {
    let code = match status.code() {
        code @ (Code::FailedPrecondition | Code::Unauthenticated | Code::Unavailable) => code,
        Code::InvalidArgument
        | Code::NotFound
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unimplemented => Code::Unauthenticated,
        _ => Code::Unavailable,
    };
    // A source may have called a server, which is not the server of the call.
    let is_foreign = matches!(status.origin(), Some(Origin::Server | Origin::Transport));
    if code == status.code() && !is_foreign {
        return mark(status, Origin::Client, Delivery::NotSent);
    }
    let message = status.message().to_owned();
    caused(code, message, Origin::Client, Delivery::NotSent, status)
}

/// Returns the status of a call that has no token because of this failure.
///
/// A call does not end with `FAILED_PRECONDITION` because of credentials, see
/// [gRFC A54](https://github.com/grpc/proposal/blob/master/A54-restrict-control-plane-status-codes.md):
/// its caller would take that for the server's status.
pub(crate) fn of_call(failure: Status) -> Status {
    if failure.code() != Code::FailedPrecondition {
        return failure;
    }
    let message = failure.message().to_owned();
    let (origin, delivery) = (Origin::Client, Delivery::NotSent);
    caused(Code::Unauthenticated, message, origin, delivery, failure)
}

/// The delay that an endpoint asks for with `Retry-After`.
#[derive(Debug)]
struct RetryAfter(Duration);

impl fmt::Display for RetryAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the endpoint asks for a delay of {:?}", self.0)
    }
}

impl Error for RetryAfter {}

/// Returns the delay that a failure asks for before the next fetch. A custom source can ask for one
/// with a `RetryInfo`.
pub(super) fn retry_after(failure: &Status) -> Option<Duration> {
    if let Some(RetryAfter(delay)) = cause(failure) {
        return Some(*delay);
    }
    match ServerDelay::of(failure)? {
        ServerDelay::AtLeast(delay) | ServerDelay::Exactly(delay) => Some(delay),
        ServerDelay::NoRetry => None,
    }
}

/// Returns whether what was given as a path may be a secret instead: the text of a credentials
/// file, or a token. A message must not quote it.
pub(super) fn may_be_secret(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.len() > LONGEST_PATH
        || text.contains(['{', '\n'])
        || text.contains("-----BEGIN")
        || text.split(' ').any(may_be_token)
        || text.split(['/', '\\']).any(may_be_token)
}

/// Returns whether a word or a path segment may be a token: it has a known prefix, or is too long for a
/// file name.
fn may_be_token(segment: &str) -> bool {
    let is_name = segment.ends_with(".json") || segment.contains(['/', '\\']);
    is_known_token(segment) || (segment.len() > LONGEST_SEGMENT && !is_name)
}

/// Returns whether a text begins like an access token, a refresh token, a JWT, an API key or a
/// client secret of Google.
pub(super) fn is_known_token(text: &str) -> bool {
    const PREFIXES: [&str; 5] = ["ya29.", "1//", "eyJ", "AIza", "GOCSPX-"];
    PREFIXES.iter().any(|prefix| text.starts_with(prefix))
}

/// Paths of files are commonly shorter than this, and keys are longer.
const LONGEST_PATH: usize = 512;
/// File names other than `.json` are commonly shorter than this.
const LONGEST_SEGMENT: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_or_a_key_is_not_taken_for_a_path() {
        let random = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA";
        for text in [
            "ya29.a0AfH6SM",
            "1//0gdfq",
            "Bearer ya29.c",
            "/run/secrets/eyJhbGciOi.eyJp",
            "AIzaSy",
            "GOCSPX-1",
            random,
            &format!("/a/{random}/b"),
            "{\"type\": \"service_account\"}",
            "-----BEGIN PRIVATE KEY-----",
            "a\nb",
            &"a/".repeat(300),
        ] {
            assert!(may_be_secret(Path::new(text)), "{text}");
        }
        for path in [
            "",
            "key.json",
            "/var/run/secrets/google/key.json",
            "C:\\Users\\me\\AppData\\Roaming\\gcloud\\application_default_credentials.json",
            "/home/me/.config/gcloud/application_default_credentials.json",
            "/keys/a-project-with-a-rather-long-name-0123456789ab.json",
        ] {
            assert!(!may_be_secret(Path::new(path)), "{path}");
        }
    }
}

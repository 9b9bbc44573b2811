//! How a failure of credentials is told: whether it may pass by itself, and in which words.

use std::{fmt, path::Path};

use tonic::{Code, Status};

use crate::status::{Delivery, Origin, StatusExt as _, caused, local, mark};

/// Longer than the paths of files commonly are, and shorter than any key.
const LONG: usize = 512;

/// What a person has to mend.
pub(super) fn refused(message: impl fmt::Display) -> Status {
    local(Code::Unauthenticated, format!("credentials: {message}"))
}

/// What may pass by itself.
pub(super) fn unavailable(message: impl fmt::Display) -> Status {
    local(Code::Unavailable, format!("credentials: {message}"))
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

/// What a programmer has to turn on.
#[cfg(not(all(feature = "google-authz", feature = "google-cloud-auth")))]
pub(super) fn needs_feature(what: impl fmt::Display, feature: &str) -> Status {
    local(
        Code::FailedPrecondition,
        format!("credentials: {what} the feature {feature} of the crate longrunning"),
    )
}

/// Gives every failure of a source one of the codes that callers can act on.
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
    // A source that asked a server has that one's word: it is not of the server that is called.
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
    caused(
        Code::Unauthenticated,
        message,
        Origin::Client,
        Delivery::NotSent,
        failure,
    )
}

/// What the panic says is dropped, for it may hold anything.
pub(super) fn panicked() -> Status {
    unavailable("the source of the credentials panicked: this is a bug in it")
}

/// Tells whether what was given for the path of a file is rather its text: that may hold a key, and
/// must not be shown.
pub(super) fn is_text(path: &Path) -> bool {
    let path = path.to_string_lossy();
    path.len() > LONG || path.contains(['{', '\n']) || path.contains("-----BEGIN")
}

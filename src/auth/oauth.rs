//! What a token endpoint says when it refuses: RFC 6749, section 5.2, and Google's additions.

/// A refusal in words of our own.
///
/// Never the endpoint's: what it describes may quote what it was sent.
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) is_transient: bool,
    pub(super) remedy: &'static str,
}

/// Finds the refusal that a code names.
pub(super) fn refusal(code: &str) -> Option<&'static Refusal> {
    REFUSALS.iter().find(|refusal| refusal.code == code)
}

/// Finds the first refusal whose code stands in a text that must not be shown.
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
        remedy: "it is tried again",
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
        "check the scopes that with_scopes names, and that the account may have them",
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

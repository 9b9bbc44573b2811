//! Tokens, and custom sources of tokens.

use std::{
    fmt,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderName, HeaderValue};
use tonic::Status;

use super::failure::refused;
use crate::expiry::Expiry;

/// A custom source of tokens.
///
/// Each client, or [`AuthInterceptor`](crate::AuthInterceptor), that is created from the
/// credentials fetches one token at a time, and shares it with its clones, so most sources need no
/// cache. Calls can overlap if a fetch blocks its thread for longer than the time limit, or if
/// several clients are created from the same [`Credentials`](crate::Credentials).
///
/// ```
/// use longrunning::{CallCredentials, Credentials, Token};
/// use tonic::Status;
///
/// struct Vault;
///
/// #[tonic::async_trait]
/// impl CallCredentials for Vault {
///     async fn token(&self) -> Result<Token, Status> {
///         Token::bearer("ask the vault")
///     }
/// }
///
/// let credentials = Credentials::custom(Vault);
/// ```
#[tonic::async_trait]
pub trait CallCredentials: Send + Sync + 'static {
    /// Fetches a token.
    ///
    /// Each fetch runs in its own task, which is cancelled after 8 s, or when the last client is
    /// dropped. If it panics, only this fetch fails. A fetch that blocks its thread cannot be
    /// cancelled. It blocks no worker of a multi-threaded runtime, and while two fetches block, no
    /// further one is started.
    ///
    /// # Errors
    ///
    /// They affect calls only while there is no valid token.
    ///
    /// - `UNAVAILABLE`: a temporary failure. `OperationsClient` waits for the next fetch, within the
    ///   deadline of the call; other clients with the interceptor fail with this status.
    /// - `UNAUTHENTICATED`: a failure that a person has to fix. Calls fail immediately.
    /// - `FAILED_PRECONDITION`: the same, for a mistake in the set-up. `connect`, `interceptor` and
    ///   `ready` return it; calls fail with `UNAUTHENTICATED`.
    /// - `INVALID_ARGUMENT`, `NOT_FOUND`, `OUT_OF_RANGE`, `PERMISSION_DENIED` and `UNIMPLEMENTED`
    ///   become `UNAUTHENTICATED`, and all other codes `UNAVAILABLE`.
    ///
    /// Callers get the message; that of a call that waited for a token also contains how long it
    /// waited. A [`RetryInfo`](crate::proto::rpc::RetryInfo) in the details delays the next fetch. The delay
    /// is limited to one hour; a random jitter of up to the same delay, but at most 60 s, is added:
    ///
    /// ```
    /// use longrunning::proto::rpc;
    /// /// Returns the status of a vault that is overloaded for the next 30 seconds.
    /// /// The vault is overloaded for the next half minute.
    /// fn overloaded() -> Result<tonic::Status, prost::EncodeError> {
    ///     let delay = prost_types::Duration { seconds: 30, nanos: 0 };
    ///     let status = rpc::Status {
    ///         code: rpc::Code::Unavailable.into(),
    ///         message: "the vault is overloaded".to_owned(),
    ///         details: vec![prost_types::Any::from_msg(&rpc::RetryInfo { retry_delay: Some(delay) })?],
    ///     };
    ///     Ok(status.into())
    /// }
    /// # use longrunning::CallStatusExt as _;
    /// # assert_eq!(overloaded()?.retry_delay(), Some(std::time::Duration::from_secs(30)));
    /// # Ok::<(), prost::EncodeError>(())
    /// ```
    async fn token(&self) -> Result<Token, Status>;

    /// Called before the next fetch if a server rejected the current token. Implement it to clear a
    /// cache. The default implementation does nothing.
    fn rejected(&self) {}
}

/// The headers that a source of credentials adds to each call, and their expiry.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use longrunning::Token;
///
/// let in_an_hour = SystemTime::now() + Duration::from_secs(3600);
/// let token = Token::bearer("ya29.c")?.expires_at_system_time(in_an_hour);
/// assert!(!format!("{token:?}").contains("ya29"));
/// # Ok::<(), tonic::Status>(())
/// ```
pub struct Token {
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) expiry: Option<Expiry>,
    pub(super) renew_after: Option<Duration>,
}

impl Token {
    /// Creates an access token: the header `authorization: Bearer <token>`.
    ///
    /// # Errors
    ///
    /// `UNAUTHENTICATED` if the token is empty, begins with `Bearer`, or cannot be sent in a
    /// header, because of a line break at its end for example.
    pub fn bearer(token: &str) -> Result<Self, Status> {
        if token.is_empty() {
            return Err(refused("the access token is empty"));
        }
        if token
            .get(..7)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer "))
        {
            return Err(refused(
                "the access token begins with \"Bearer\", which is added to it: give the token alone",
            ));
        }
        Self::header("authorization", &format!("Bearer {token}"))
    }

    /// Creates a token with a custom header, for a service that takes its credentials in another form.
    ///
    /// # Errors
    ///
    /// `UNAUTHENTICATED` if the name is not a valid name of a text header or ends in `-bin`, if it
    /// is reserved by HTTP/2 or gRPC (`te`, `host`, `connection`, `content-*`, `grpc-*` and the
    /// like), or if the value ends with a space or contains anything but printable ASCII
    /// characters.
    pub fn header(name: &str, value: &str) -> Result<Self, Status> {
        let none = Self {
            headers: Vec::new(),
            expiry: None,
            renew_after: None,
        };
        none.and_header(name, value)
    }

    /// Adds a header. It replaces a header of the same name.
    ///
    /// # Errors
    ///
    /// As [`header`](Self::header).
    pub fn and_header(mut self, name: &str, value: &str) -> Result<Self, Status> {
        let (name, value) = header(name, value)?;
        self.insert(name, value);
        Ok(self)
    }

    /// Sets when the token expires.
    ///
    /// A token is renewed after 70 to 80 % of its remaining lifetime, and not sent after it has
    /// expired on the monotonic or the system clock. There is at least 1 second between fetches. A
    /// token that expires before the current one does not replace it, unless a server rejected the
    /// current one. A token whose expiry is not known is renewed after 4 to 5 minutes, and is sent
    /// until there is a newer one.
    ///
    /// Defaults to an unknown expiry.
    #[must_use]
    pub fn expires_at(mut self, instant: Instant) -> Self {
        self.expiry = Some(Expiry::at(instant.into()));
        self
    }

    /// Sets the expiry of the token as a time of the system clock. See
    /// [`expires_at`](Self::expires_at).
    #[must_use]
    pub fn expires_at_system_time(mut self, time: SystemTime) -> Self {
        self.expiry = Some(Expiry::at_system_time(time));
        self
    }

    pub(super) fn insert(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value));
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Token")
            .field("headers", &names)
            .field("expires_at", &self.expiry.and_then(Expiry::system_time))
            .finish_non_exhaustive()
    }
}

/// Creates a header that is marked as sensitive: HTTP/2 does not index it, and `Debug` does not
/// print it.
///
/// The errors name the header, and do not contain the value.
pub(super) fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Status> {
    let key = HeaderName::from_bytes(name.as_bytes())
        .ok()
        .filter(|name| !name.as_str().ends_with("-bin"))
        .ok_or_else(|| refused(no_name(name)))?;
    if is_reserved(key.as_str()) {
        return Err(refused(format!(
            "the header {name:?} is reserved by HTTP/2 or gRPC: use \"authorization\" or a header \
             that the service defines"
        )));
    }
    // `HeaderValue` also accepts bytes that are not ASCII, which servers may decode as another token.
    let mut value = Some(value)
        .filter(|value| value.bytes().all(|byte| (b' '..=b'~').contains(&byte)))
        .filter(|value| !value.ends_with(' '))
        .and_then(|value| HeaderValue::from_str(value).ok())
        .ok_or_else(|| {
            refused(format!(
                "the value for the header {name:?} has characters that no header can hold: \
                 look for a line break or a space at its end"
            ))
        })?;
    value.set_sensitive(true);
    Ok((key, value))
}

/// Returns whether a header is reserved by HTTP/2 or gRPC. Sending one as a credential would break
/// the call.
fn is_reserved(name: &str) -> bool {
    const CONNECTION: [&str; 7] = [
        "connection",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    CONNECTION.contains(&name) || name.starts_with("content-") || name.starts_with("grpc-")
}

/// Returns the message for an invalid name. Name and value are easily swapped, so what is not a
/// name may be the secret.
fn no_name(name: &str) -> String {
    const LONGEST: usize = 32;
    if name.len() <= LONGEST && !name.contains(' ') {
        return format!("{name:?} is not the name of a text header");
    }
    "the first argument is not the name of a text header: give the name, and then the value"
        .to_owned()
}

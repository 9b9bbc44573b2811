//! A source of tokens, and what it hands out: the headers of a call, and how long they are good for.

use std::{
    fmt,
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue};
use tonic::Status;

use super::failure::refused;

/// A source of tokens of one's own.
///
/// Only one task calls it, one call at a time, so it needs no cache and no lock.
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
    /// The future is dropped if it takes longer than 8 s, or if nobody needs the token any more.
    ///
    /// # Errors
    ///
    /// - `UNAVAILABLE`: a temporary failure. Calls wait for the next attempt, within their deadlines.
    /// - `UNAUTHENTICATED`: a failure that a person has to fix. Calls fail immediately.
    /// - `FAILED_PRECONDITION`: the same, for a wrong set-up. Only `connect`, `interceptor` and `ready`
    ///   return it; calls end with `UNAUTHENTICATED`.
    /// - `INVALID_ARGUMENT`, `NOT_FOUND`, `OUT_OF_RANGE`, `PERMISSION_DENIED` and `UNIMPLEMENTED` count as
    ///   `UNAUTHENTICATED`, and all other codes as `UNAVAILABLE`.
    ///
    /// The message reaches the callers.
    async fn token(&self) -> Result<Token, Status>;

    /// Hears that a server refused the last token, before the next is fetched. Default is to do
    /// nothing; a source that caches drops its cache here.
    fn rejected(&self) {}
}

/// What a source of credentials hands out: the headers that each call carries, and how long they
/// are good for.
///
/// ```
/// use std::time::{Duration, Instant};
/// use longrunning::Token;
///
/// let token = Token::bearer("ya29.c")?.expires_at(Instant::now() + Duration::from_secs(3600));
/// assert!(!format!("{token:?}").contains("ya29"));
/// # Ok::<(), tonic::Status>(())
/// ```
pub struct Token {
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) expires_at: Option<Instant>,
    pub(super) renew_after: Option<Duration>,
    pub(super) lease: Option<Lease>,
}

/// A way to look at a token whose expiry is not known.
pub(super) struct Lease {
    pub(super) every: Duration,
    pub(super) look: Box<dyn FnMut() -> Look + Send + Sync>,
}

/// What a look at a token says of it. All but the first end the looking.
#[cfg_attr(
    not(any(feature = "google-authz", feature = "google-cloud-auth")),
    allow(dead_code)
)]
pub(super) enum Look {
    /// It is good for so long from now at least.
    GoodFor(Duration),
    /// It should be renewed; it is good for as long as the look before said.
    Renew,
    /// It is good no more.
    #[cfg_attr(not(feature = "google-cloud-auth"), allow(dead_code))]
    Ended,
}

impl Token {
    /// Makes an access token: the header `authorization: Bearer <token>`.
    ///
    /// # Errors
    ///
    /// `UNAUTHENTICATED` if the token is empty or cannot stand in a header. A line break at the
    /// end, as files have it, is such a case.
    pub fn bearer(token: &str) -> Result<Self, Status> {
        if token.is_empty() {
            return Err(refused("the access token is empty"));
        }
        Self::header("authorization", &format!("Bearer {token}"))
    }

    /// Makes a token of any header, for a service that takes its credentials in another form.
    ///
    /// # Errors
    ///
    /// `UNAUTHENTICATED` if the name is not a valid name of a text header, if it is reserved by HTTP/2
    /// or gRPC (`te`, `host`, `connection`, `content-*`, `grpc-*` and the like), or if the value
    /// contains anything but printable ASCII characters.
    pub fn header(name: &str, value: &str) -> Result<Self, Status> {
        let none = Self {
            headers: Vec::new(),
            expires_at: None,
            renew_after: None,
            lease: None,
        };
        none.and_header(name, value)
    }

    /// Adds a header. One of the same name is replaced.
    ///
    /// # Errors
    ///
    /// As [`header`](Self::header).
    pub fn and_header(mut self, name: &str, value: &str) -> Result<Self, Status> {
        let (name, value) = header(name, value)?;
        self.insert(name, value);
        Ok(self)
    }

    /// Sets when the token ends. Default is not known.
    ///
    /// It is renewed when about three quarters of the time until then are over, and never sent
    /// afterwards. One that ends before the token that is there does not take its place, unless a
    /// server refused that one. One whose end is not known is renewed after about 5 minutes, and
    /// sent for as long as there is no newer one.
    #[must_use]
    pub fn expires_at(mut self, instant: Instant) -> Self {
        self.expires_at = Some(instant);
        self
    }

    /// Sets when the token is renewed, if its end is not known.
    #[cfg(any(feature = "google-authz", feature = "google-cloud-auth"))]
    pub(super) fn renew_after(mut self, time: Duration) -> Self {
        self.renew_after = Some(time);
        self
    }

    /// Sets how, and how often, to find out whether the token is still good, if its end is not known.
    #[cfg(any(feature = "google-authz", feature = "google-cloud-auth"))]
    pub(super) fn lease(
        mut self,
        every: Duration,
        look: impl FnMut() -> Look + Send + Sync + 'static,
    ) -> Self {
        let look = Box::new(look);
        self.lease = Some(Lease { every, look });
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
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Makes a header that is marked as secret: HTTP/2 does not index it, and `Debug` does not show it.
///
/// The errors name the header and never the value.
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
    // Visible ASCII only: what `HeaderValue` also takes would be another token at the server.
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

/// Name and value are easily swapped: what is no name may be the secret.
fn no_name(name: &str) -> String {
    const LONGEST: usize = 32;
    match name.len() <= LONGEST && !name.contains(' ') {
        true => format!("{name:?} is not the name of a text header"),
        false => "what was given first is not the name of a text header: give the name, and then \
                  the value"
            .to_owned(),
    }
}

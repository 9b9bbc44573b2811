//! The interceptor that adds a current token to each call.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use http::{HeaderName, HeaderValue};
use tokio::{sync::watch, time::timeout};
use tonic::{Code, Request, Status, service::Interceptor};

use super::{
    CallCredentials, Token,
    failure::{of_call, unavailable},
    renewal::{self, Generation, Published, Signals},
};
use crate::{expiry::Expiry, request::CredentialHeaders, task::runtime};

/// How long `interceptor` and `connect` wait for the first token, at least.
const FIRST_TOKEN: Duration = Duration::from_secs(10);

/// A [`tonic` interceptor](Interceptor) that adds the headers of a current token to each call, for
/// [`OperationsClient`](crate::OperationsClient) and for any other generated client.
///
/// It is created by [`Credentials::interceptor`](super::Credentials::interceptor). Clones share one
/// token, and one task that renews it. The task ends when the last clone is dropped.
///
/// As an [`Interceptor`] it never waits. While there is no valid token it fails the call:
/// `UNAVAILABLE` for a temporary failure, `UNAUTHENTICATED` for a failure that a person has to fix.
/// In both cases the task continues to fetch. To wait for a token, call [`ready`](Self::ready)
/// first.
///
/// The interceptor does not know the endpoint of a call, so it also sends the token over plaintext:
/// use it only with an `https` endpoint, or one on this machine. It does not see responses either:
/// a client other than [`OperationsClient`](crate::OperationsClient) has to call
/// [`mark_rejected`](Self::mark_rejected) itself.
///
/// ```
/// # async fn example<S>(stack: S) -> Result<(), tonic::Status> {
/// use longrunning::Credentials;
/// use tonic::service::interceptor::InterceptedService;
///
/// let auth = Credentials::bearer_token("ya29.c").interceptor().await?;
/// // For any generated client: `AutoMlClient::new(stack)`, or `with_interceptor(stack, auth)`.
/// let stack = InterceptedService::new(stack, auth.clone());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AuthInterceptor {
    headers: Headers,
    quota_project: Option<HeaderValue>,
}

#[derive(Clone)]
enum Headers {
    /// Headers that are never renewed: there is no task, and no runtime is needed.
    Fixed(Arc<[(HeaderName, HeaderValue)]>),
    Renewed(Arc<Renewed>),
}

struct Renewed {
    published: watch::Receiver<Published>,
    signals: Arc<Signals>,
}

/// The token that a call is sent with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SentToken {
    /// When it expires, if that is known.
    pub(crate) expires: Option<Expiry>,
    /// `None` for a token that is never renewed.
    generation: Option<Generation>,
}

/// The state of an [`AuthInterceptor`]'s token, for logs and metrics.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TokenStatus {
    /// Whether there is a token that has not expired. A server may still reject it.
    pub is_valid: bool,
    /// When the last token was fetched; `None` if none has been fetched yet, or if the token is never renewed.
    pub fetched_at: Option<SystemTime>,
    /// When the last token expires, which may be in the past; `None` if there was none, or if its
    /// expiry is not known.
    pub expires_at: Option<SystemTime>,
    /// Why the last fetch failed; `None` if it succeeded, or if no fetch has ended yet.
    pub last_failure: Option<Status>,
    /// When the next fetch is due; `None` while one is in progress, for a token that is
    /// never renewed, and after the runtime has shut down.
    pub next_fetch: Option<SystemTime>,
    /// The number of fetches that have succeeded since the interceptor was created.
    pub fetches_succeeded: u64,
    /// The number of fetches that have failed since the interceptor was created.
    pub fetches_failed: u64,
    /// The number of tokens that a server has rejected before they expired, since the interceptor was created.
    pub tokens_rejected: u64,
}

impl TokenStatus {
    /// Returns the state of a token that was not fetched yet.
    fn new(signals: &Signals) -> Self {
        let totals = &signals.totals;
        Self {
            is_valid: false,
            fetched_at: None,
            expires_at: None,
            last_failure: None,
            next_fetch: None,
            fetches_succeeded: totals.fetches_succeeded.get(),
            fetches_failed: totals.fetches_failed.get(),
            tokens_rejected: totals.tokens_rejected.get(),
        }
    }
}

impl AuthInterceptor {
    pub(super) fn fixed(token: Option<Token>, quota_project: Option<HeaderValue>) -> Self {
        let headers = token.map(|token| token.headers).unwrap_or_default();
        Self {
            headers: Headers::Fixed(headers.into()),
            quota_project,
        }
    }

    /// Starts the task that renews the tokens of a source. A fetch takes at most `limit`.
    pub(super) fn renewed(
        source: Arc<dyn CallCredentials>,
        limit: Duration,
        quota_project: Option<HeaderValue>,
    ) -> Result<Self, Status> {
        let (published, signals) = renewal::start(source, limit)?;
        Ok(Self {
            headers: Headers::Renewed(Arc::new(Renewed { published, signals })),
            quota_project,
        })
    }

    /// Returns whether this interceptor adds no credentials.
    pub(crate) fn sends_nothing(&self) -> bool {
        matches!(&self.headers, Headers::Fixed(headers) if headers.is_empty())
    }

    /// Waits until there is a valid token.
    ///
    /// Returns immediately in most cases, because tokens are renewed well before they expire.
    /// Temporary failures are tolerated; use [`tokio::time::timeout`] to limit the wait. This
    /// method is cancel safe.
    ///
    /// # Errors
    ///
    /// - `UNAUTHENTICATED`, `FAILED_PRECONDITION`: a person has to fix what the message names. Returned
    ///   immediately.
    /// - `UNAVAILABLE`: the runtime that renewed the token has shut down.
    pub async fn ready(&self) -> Result<(), Status> {
        match (self.try_ready(), &self.headers) {
            (Some(outcome), _) => outcome,
            (None, Headers::Renewed(renewed)) => renewed.wait().await,
            (None, Headers::Fixed(_)) => Ok(()),
        }
    }

    /// Returns the result of [`ready`](Self::ready); `None` if it would wait.
    pub(crate) fn try_ready(&self) -> Option<Result<(), Status>> {
        match &self.headers {
            Headers::Fixed(_) => Some(Ok(())),
            Headers::Renewed(renewed) => renewed.try_ready(),
        }
    }

    /// Reports that a server answered `UNAUTHENTICATED` to a call with the current token, so that a
    /// new token is fetched.
    ///
    /// The token is renewed after a random delay of up to 10 seconds, no matter how often this is
    /// called. The maximum delay doubles, up to 5 minutes, while new tokens are reported as well.
    /// Until then the current token is still sent, because other servers may accept it. Does
    /// nothing if the token is never renewed, or while there is no valid one.
    ///
    /// [`OperationsClient`](crate::OperationsClient) does this itself, and only for the token that the
    /// call was sent with: a rejection that arrives after that token was replaced does not affect the
    /// new one.
    pub fn mark_rejected(&self) {
        let Headers::Renewed(renewed) = &self.headers else {
            return;
        };
        let current = renewed
            .published
            .borrow()
            .current
            .as_ref()
            .map(|it| (it.generation, it.expiry));
        if let Some((token, expiry)) = current {
            renewed.signals.reject(token, expiry);
        }
    }

    /// Reports that a server answered `UNAUTHENTICATED` to a call that was sent with this token.
    pub(crate) fn rejected_token(&self, sent: SentToken) {
        if let (Headers::Renewed(renewed), Some(token)) = (&self.headers, sent.generation) {
            renewed.signals.reject(token, sent.expires);
        }
    }

    /// Returns the state of the token.
    pub fn status(&self) -> TokenStatus {
        match &self.headers {
            Headers::Fixed(_) => TokenStatus {
                is_valid: true,
                ..TokenStatus::new(&Signals::default())
            },
            Headers::Renewed(renewed) => renewed.status(),
        }
    }

    /// Returns a reference that does not keep the renewal task running; `None` if the token is never renewed.
    pub(crate) fn downgrade(&self) -> Option<WeakToken> {
        match &self.headers {
            Headers::Fixed(_) => None,
            Headers::Renewed(renewed) => Some(WeakToken {
                renewed: Arc::downgrade(renewed),
                signals: renewed.signals.clone(),
            }),
        }
    }

    /// Returns the headers of the current token, and the [`SentToken`] that identifies it.
    ///
    /// # Errors
    ///
    /// The reason why there is no valid token.
    pub(crate) fn current(&self) -> Result<(CredentialHeaders, SentToken), Status> {
        let mut sent = SentToken::default();
        let headers = match &self.headers {
            Headers::Fixed(headers) => headers.clone(),
            Headers::Renewed(renewed) => {
                renewed.ended()?;
                let published = renewed.published.borrow();
                let current = published.valid().map_err(|failure| {
                    renewed.request_if_due(&published);
                    of_call(failure)
                })?;
                sent.expires = current.expiry;
                sent.generation = Some(current.generation);
                current.headers.clone()
            }
        };
        let headers = CredentialHeaders {
            headers,
            quota_project: self.quota_project.clone(),
        };
        Ok((headers, sent))
    }

    /// Waits for the first token: for 10 s, or longer if the first fetch has not ended by then.
    pub(crate) async fn first_token(self) -> Result<Self, Status> {
        // Fixed headers need no runtime, and so no timer.
        if let Some(outcome) = self.try_ready() {
            return outcome.map(|()| self);
        }
        runtime("waiting for a token")?;
        if let Ok(outcome) = timeout(FIRST_TOKEN, self.ready()).await {
            return outcome.map(|()| self);
        }
        if let Headers::Renewed(renewed) = &self.headers {
            renewed.first_fetch().await;
        }
        let status = self.status();
        match status.last_failure {
            Some(failure) if !status.is_valid => Err(failure),
            _ => Ok(self),
        }
    }
}

impl Interceptor for AuthInterceptor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let (headers, _) = self.current()?;
        headers.add_to(request.metadata_mut().as_mut());
        Ok(request)
    }
}

/// A reference to a token that does not keep its renewal task running.
#[derive(Clone)]
pub(crate) struct WeakToken {
    renewed: Weak<Renewed>,
    signals: Arc<Signals>,
}

impl WeakToken {
    /// Returns the state of the token. Once its last interceptor is dropped, only the totals are left.
    pub(crate) fn status(&self) -> TokenStatus {
        match self.renewed.upgrade() {
            Some(renewed) => renewed.status(),
            None => TokenStatus::new(&self.signals),
        }
    }

    #[cfg(feature = "opentelemetry")]
    pub(crate) fn has_ended(&self) -> bool {
        self.renewed.strong_count() == 0
    }

    #[cfg(feature = "opentelemetry")]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.renewed.ptr_eq(&other.renewed)
    }
}

impl Renewed {
    fn status(&self) -> TokenStatus {
        let ended = self.ended().err();
        let published = self.published.borrow();
        let current = published.current.as_ref();
        TokenStatus {
            is_valid: ended.is_none() && published.is_valid(),
            fetched_at: current.map(|it| it.fetched_at),
            expires_at: current.and_then(|it| it.expiry?.system_time()),
            next_fetch: published
                .next_fetch
                .filter(|_| ended.is_none())
                .and_then(Expiry::system_time),
            last_failure: ended.or_else(|| published.failure.clone()),
            ..TokenStatus::new(&self.signals)
        }
    }

    /// Returns the result for a waiting caller; `None` if it should continue to wait.
    fn try_ready(&self) -> Option<Result<(), Status>> {
        if let Err(ended) = self.ended() {
            return Some(Err(ended));
        }
        let published = self.published.borrow();
        if published.is_valid() {
            return Some(Ok(()));
        }
        self.request_if_due(&published);
        published
            .failure
            .as_ref()
            .filter(|failure| failure.code() != Code::Unavailable)
            .map(|failure| Err(failure.clone()))
    }

    async fn wait(&self) -> Result<(), Status> {
        let mut published = self.published.clone();
        loop {
            published.mark_unchanged();
            if let Some(outcome) = self.try_ready() {
                return outcome;
            }
            // An error means that the task has ended, which `try_ready` reports.
            let _ = published.changed().await;
        }
    }

    /// Waits until a fetch has ended.
    async fn first_fetch(&self) {
        let mut published = self.published.clone();
        let has_ended = |it: &Published| it.current.is_some() || it.failure.is_some();
        // An error means that the task has ended, which the caller finds out.
        let _ = published.wait_for(has_ended).await;
    }

    /// Requests a fetch if one is due.
    fn request_if_due(&self, published: &Published) {
        if published.is_due() {
            self.signals.request();
        }
    }

    /// Returns an error if the renewal task has ended.
    fn ended(&self) -> Result<(), Status> {
        self.published.has_changed().map(drop).map_err(|_| {
            unavailable(
                "the tokio runtime that renewed the token has shut down: create the interceptor on a \
                 runtime that outlives its clients",
            )
        })
    }
}

// The token is secret, and a failure may name paths and accounts.
impl fmt::Debug for AuthInterceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers = match &self.headers {
            Headers::Fixed(_) => "fixed",
            Headers::Renewed(_) => "renewed",
        };
        f.debug_struct("AuthInterceptor")
            .field("headers", &headers)
            .finish_non_exhaustive()
    }
}

//! A tonic interceptor over what the owner task has published.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tonic::{Code, Request, Status, service::Interceptor};

use super::{
    CallCredentials, Token,
    failure::{of_call, unavailable},
    renewal,
    renewal::Published,
};

/// How long `Credentials::interceptor` waits for the first token.
const FIRST_TOKEN: Duration = Duration::from_secs(10);

/// Puts current credentials on each call: before our own client, or any other generated client of
/// tonic's.
///
/// [`Credentials::interceptor`](super::Credentials::interceptor) makes one. Clones share one token, and one task that keeps it current. The task ends with the last clone.
///
/// As an [`Interceptor`] it never waits. While there is no good token it refuses the call with why:
/// `UNAVAILABLE` for what may pass by itself, `UNAUTHENTICATED` for what a person has to mend.
/// Either way the task goes on trying. Who would rather wait calls [`ready`](Self::ready) first.
///
/// It cannot see where the call goes: put it only before an `https` endpoint, or one on this
/// machine.
///
/// ```
/// # async fn example<S>(stack: S) -> Result<(), tonic::Status> {
/// use longrunning::Credentials;
/// use tonic::service::interceptor::InterceptedService;
///
/// let auth = Credentials::bearer_token("ya29.c").interceptor().await?;
/// // Before any generated client: `AutoMlClient::new(stack)`, or `with_interceptor(stack, auth)`.
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
    /// Nothing to renew: no task, and no need of a runtime.
    Fixed(Arc<[(HeaderName, HeaderValue)]>),
    Renewed(Arc<Renewed>),
}

struct Renewed {
    published: watch::Receiver<Published>,
    rejected: Arc<Notify>,
}

const QUOTA_PROJECT: HeaderName = HeaderName::from_static("x-goog-user-project");

impl AuthInterceptor {
    pub(super) fn fixed(token: Option<Token>, quota_project: Option<HeaderValue>) -> Self {
        let headers = token.map(|token| token.headers).unwrap_or_default();
        Self {
            headers: Headers::Fixed(headers.into()),
            quota_project,
        }
    }

    pub(super) fn renewed(
        source: Arc<dyn CallCredentials>,
        quota_project: Option<HeaderValue>,
    ) -> Result<Self, Status> {
        let (published, rejected) = renewal::start(source)?;
        let renewed = Renewed {
            published,
            rejected,
        };
        Ok(Self {
            headers: Headers::Renewed(Arc::new(renewed)),
            quota_project,
        })
    }

    /// Waits until a call can have its credentials.
    ///
    /// Returns at once if there is a good token, which is nearly always: it is renewed long before
    /// it ends. A failure that may pass by itself is waited out; bound the wait with a timeout of
    /// your own. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// - `UNAUTHENTICATED`, `FAILED_PRECONDITION`: a person has to mend something; the message says
    ///   what. At once.
    /// - `UNAVAILABLE`: the runtime on which the token was renewed has ended.
    pub async fn ready(&self) -> Result<(), Status> {
        match (self.look(), &self.headers) {
            (Some(outcome), _) => outcome,
            (None, Headers::Renewed(renewed)) => renewed.wait().await,
            (None, Headers::Fixed(_)) => Ok(()),
        }
    }

    /// Tells what [`ready`](Self::ready) would, if it can at once.
    pub(crate) fn look(&self) -> Option<Result<(), Status>> {
        match &self.headers {
            Headers::Fixed(_) => Some(Ok(())),
            Headers::Renewed(renewed) => renewed.look(),
        }
    }

    /// Reports that a server answered `UNAUTHENTICATED`, so that a new token is fetched.
    ///
    /// The token is renewed after a random delay of up to 10 seconds, no matter how often this is
    /// called. If the new token is reported as well, this limit doubles, up to 5 minutes. Until then
    /// the current token is still sent, because other servers may accept it.
    /// [`OperationsClient`](crate::OperationsClient) calls this itself.
    pub fn rejected(&self) {
        if let Headers::Renewed(renewed) = &self.headers {
            renewed.rejected.notify_one();
        }
    }

    /// Why there is no good token, for a caller whose time was up in [`ready`](Self::ready).
    ///
    /// `None` if there is one, or if no fetch has failed so far.
    pub fn last_failure(&self) -> Option<Status> {
        let Headers::Renewed(renewed) = &self.headers else {
            return None;
        };
        renewed.ended().err().or_else(|| {
            let published = renewed.published.borrow();
            published
                .failure()
                .filter(|_| !published.is_valid())
                .cloned()
        })
    }

    /// Adds the headers of the current token. Returns when it expires, if that is known.
    ///
    /// # Errors
    ///
    /// Why there is no token.
    pub(crate) fn sign(&self, to: &mut HeaderMap) -> Result<Option<Instant>, Status> {
        let mut expires = None;
        // The quota project of this one call, if it has its own, is the caller's choice.
        let quota_project = to.get(QUOTA_PROJECT).cloned();
        match &self.headers {
            Headers::Fixed(headers) => insert(to, headers),
            Headers::Renewed(renewed) => {
                renewed.ended()?;
                let published = renewed.published.borrow();
                insert(to, published.headers().map_err(of_call)?);
                expires = published.valid_until();
            }
        }
        if let Some(project) = quota_project.or_else(|| self.quota_project.clone()) {
            to.insert(QUOTA_PROJECT, project);
        }
        Ok(expires)
    }

    /// Waits for the first token as long as set-up may take.
    pub(super) async fn first_token(self) -> Result<Self, Status> {
        if let Headers::Fixed(_) = self.headers {
            return Ok(self);
        }
        match timeout(FIRST_TOKEN, self.ready()).await {
            Ok(outcome) => outcome.map(|()| self),
            Err(_) => Err(self
                .last_failure()
                .unwrap_or_else(|| unavailable(format!("no token within {FIRST_TOKEN:?}")))),
        }
    }
}

impl Interceptor for AuthInterceptor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        self.sign(request.metadata_mut().as_mut())?;
        Ok(request)
    }
}

fn insert(to: &mut HeaderMap, headers: &[(HeaderName, HeaderValue)]) {
    for (name, value) in headers {
        to.insert(name.clone(), value.clone());
    }
}

impl Renewed {
    /// Tells what a waiting caller would be told now; `None` if it should go on waiting.
    fn look(&self) -> Option<Result<(), Status>> {
        if let Err(ended) = self.ended() {
            return Some(Err(ended));
        }
        let published = self.published.borrow();
        if published.is_valid() {
            return Some(Ok(()));
        }
        published
            .failure()
            .filter(|failure| failure.code() != Code::Unavailable)
            .map(|failure| Err(failure.clone()))
    }

    async fn wait(&self) -> Result<(), Status> {
        let mut published = self.published.clone();
        loop {
            published.mark_unchanged();
            if let Some(outcome) = self.look() {
                return outcome;
            }
            // An error says that the owner has ended, which the next look tells.
            let _ = published.changed().await;
        }
    }

    fn ended(&self) -> Result<(), Status> {
        self.published.has_changed().map(drop).map_err(|_| {
            unavailable(
                "the tokio runtime on which the token was renewed has ended: make the interceptor \
                 on one that outlives its clients",
            )
        })
    }
}

// Neither token nor failure: both are someone's secret, or someone's business.
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

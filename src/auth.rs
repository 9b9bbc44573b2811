//! Credentials, from their source to the headers of a call.
//!
//! 1. [`Credentials`] describe a source. API keys and bearer tokens never change, and skip to step 4.
//! 2. A source implements [`CallCredentials`] (`token`): it is Google's (`google`), or a custom one.
//! 3. One task for each source (`renewal`) fetches a [`Token`] before the current one expires, and
//!    publishes it (`renewal::published`).
//! 4. [`AuthInterceptor`] (`interceptor`) adds the headers of the published token to each call. A
//!    quota project of the call takes precedence over that of the [`Credentials`], and that over
//!    the source's.
//!
//! If a server answers `UNAUTHENTICATED`, the client reports the token that the call was sent with, and
//! the task fetches a new one.

mod failure;
#[cfg(feature = "_google")]
mod google;
mod interceptor;
mod renewal;
mod token;

use std::{env, fmt, mem, path::PathBuf, sync::Arc, time::Duration};

use http::HeaderValue;
use tonic::Status;

use self::failure::{may_be_secret, refused};
pub(crate) use self::{
    failure::of_call,
    interceptor::{SentToken, WeakToken},
};
pub use self::{
    interceptor::{AuthInterceptor, TokenStatus},
    token::{CallCredentials, Token},
};

/// The credentials of a client.
///
/// `Credentials` are only a description: nothing is read or fetched before a client or an
/// [`AuthInterceptor`] is created from them. Each of these has its own token, which one task renews for
/// all its clones. The task ends when the last clone is dropped.
///
/// # Which ones to use
///
/// | where the program runs | use |
/// |---|---|
/// | on Google Cloud, on a developer's machine, or both | [`application_default`](Self::application_default) |
/// | elsewhere, with a key file | [`file`](Self::file), or [`json`](Self::json) from a secret store |
/// | on Google Cloud, with a particular service account | [`metadata_server`](Self::metadata_server) |
/// | on AWS, Azure, Kubernetes or CI without keys (workload identity federation), or with impersonation | `application_default` or `file`, with the feature `google-cloud-auth` |
/// | with a token that something else renews | [`custom`](Self::custom) |
/// | in a short-lived script | [`bearer_token`](Self::bearer_token) |
/// | with a service that takes API keys | [`api_key`](Self::api_key) |
/// | with an emulator | [`none`](Self::none) |
///
/// # When tokens are renewed
///
/// Calls use the current token while its successor is fetched, so they do not wait.
///
/// | source | renewed | a fetch is |
/// |---|---|---|
/// | metadata server | after 70 to 80 % of the remaining lifetime | one request; connecting is retried for up to 3 s |
/// | service account key, user credentials | after 16 to 20 minutes; the token counts as expired after an hour | a file read, one request |
/// | service account key with [`self_signed_jwt`](Self::self_signed_jwt) | after 42 to 48 of 60 minutes | a file read |
/// | feature `google-cloud-auth` | after 16 to 20 minutes; the token counts as expired after an hour | a file read, as many requests as it needs |
/// | custom, with an expiry | after 70 to 80 % of the remaining lifetime | up to the source |
/// | custom, without an expiry | after 4 to 5 minutes | up to the source |
/// | bearer token, API key | never | none |
///
/// google-authz and google-cloud-auth do not report the expiry of a token, so their tokens are
/// renewed on a fixed schedule. A token that expires earlier is renewed when a server rejects it.
///
/// Expiry is checked on both the monotonic and the system clock, so that no expired token is sent after
/// the machine has slept.
///
/// A fetch times out after 8 s, or after 8 s plus the timeout of the executable for workload
/// identity federation (30 s unless the file sets another, at most 134 s). Failed fetches are
/// retried for as long as the client exists; no failure requires a restart. The delay is random.
/// Its maximum is 0.5 s at first and doubles up to 30 s. While the current token is valid, it is 10
/// s at first and doubles up to 5 minutes, but is at most a quarter of the token's remaining
/// lifetime. A `Retry-After` of the endpoint (at most one hour) is waited for in any case, with
/// jitter of up to as long again, but at most 60 s.
///
/// If a server answers `UNAUTHENTICATED`, the token is renewed after a random delay of up to 10
/// seconds. While new tokens are rejected as well, this maximum doubles, up to 5 minutes; after 10
/// minutes without a rejection it is 10 seconds again. The random delays prevent many clients from
/// fetching at the same time.
///
/// [`AuthInterceptor::status`] returns the expiry, the last failure and the time of the next fetch.
/// Failed fetches and rejected tokens emit an event of level WARN (feature `tracing`).
///
/// # One identity
///
/// Application default credentials are searched for until they are found. After that, only the place
/// where they were found is used. Paths are made absolute, and the environment variables that locate
/// credentials are read, when the client or interceptor is created.
///
/// A file is read again for each token, so that a replaced or corrected file takes effect. While it
/// cannot be read or parsed, its last good content is used, and an event of level WARN is emitted.
///
/// # Failures
///
/// - `UNAVAILABLE`: a temporary failure, such as no connection, no response, HTTP status 408, 429 or
///   5xx, or no free file descriptor. Fetches are retried.
/// - `UNAUTHENTICATED`: a failure that a person has to fix, such as an invalid file, a revoked key,
///   missing CA certificates or a wrong endpoint. Fetches are retried, but calls do not wait for them.
/// - `FAILED_PRECONDITION`: a mistake in the program, such as a missing tokio runtime or a feature that
///   is not compiled in. Calls return `UNAUTHENTICATED` instead, except outside a tokio runtime.
///
/// Messages name the problem and the remedy. They contain no secrets, except that a token of an
/// unknown kind that is given in place of a path cannot be recognized. The message of a custom
/// source is passed on.
///
/// A call whose deadline passes while it waits for a token ends with the failure of the last fetch,
/// or with `DEADLINE_EXCEEDED` if no fetch has failed.
///
/// # Dependencies
///
/// The feature `google-authz` (on by default) uses the crate of that name, pinned to
/// `1.0.0-alpha.5` of 2022, for service account keys and user credentials. It is an alpha without a
/// later release, and it depends on hyper 0.14 and rustls 0.20, so the program contains a second
/// HTTP stack. Used directly, it can hang, it panics after a failed fetch, and its errors contain
/// tokens. This crate uses each of its instances for one token, on a thread with a time limit,
/// checks in advance for the conditions under which it panics, and replaces its error messages. The
/// advisories for its dependencies do not apply here: h2 0.3 and rustls 0.20 (only the client side,
/// to the token endpoint, is used), ring 0.16 (the overflow is in code for QUIC and large ciphers),
/// rustls-pemfile (unmaintained). [The guide](crate::guide::patterns#fewer-dependencies) lists them with reasons.
///
/// The feature `google-cloud-auth` (Rust 1.91) adds workload identity federation and impersonation. Its
/// HTTP client ignores `Retry-After`, and follows redirects of a token endpoint with the subject token,
/// so use only endpoints that you trust. If `google-authz` is enabled as well, it still serves the file
/// types that it supports; disable the default features to avoid it.
///
/// Use [`custom`](Self::custom) if your program has a source of tokens already, or if it should
/// contain neither crate. The metadata server needs neither: the feature `metadata-server` is enough.
/// [`self_signed_jwt`](Self::self_signed_jwt) needs the feature `google-authz`, but does
/// not call that crate.
///
/// A panic of these crates ends the fetch with `UNAVAILABLE`; its message is printed to standard error.
/// With `panic = "abort"` it ends the program. These panics cannot be excluded:
///
/// - google-authz: `expires_in` in the response is so large that adding it to the current time
///   overflows.
/// - google-authz: the certificate store disappears, or other threads take all file descriptors,
///   including two that were reserved, in the instant between the check of the store and its use.
/// - google-cloud-auth: this machine's clock is ahead by more than the lifetime of an impersonated
///   token; or there are no certificates or file descriptors for one of its later requests.
/// - the look-up of a host name: the process reaches its limit of threads in the instant after one was
///   available. The usual address of the metadata server needs no look-up.
#[derive(Clone)]
pub struct Credentials {
    source: Source,
    scopes: Arc<[String]>,
    is_self_signed: bool,
    quota_project: Option<String>,
    /// The host of the endpoint that the tokens are for, if it is known.
    endpoint_host: Option<Arc<str>>,
}

#[derive(Clone)]
enum Source {
    None,
    Google(Place),
    ApiKey(Arc<str>),
    BearerToken(Arc<str>),
    Custom(Arc<dyn CallCredentials>),
}

/// Where Google's credentials are.
#[derive(Clone)]
#[cfg_attr(not(feature = "_google"), allow(dead_code))]
enum Place {
    ApplicationDefault,
    File(PathBuf),
    Json(Arc<str>),
    MetadataServer(Option<String>),
}

impl Credentials {
    /// Sends no credentials.
    pub fn none() -> Self {
        Self::new(Source::None)
    }

    /// Uses the credentials of the environment: [Application Default Credentials].
    ///
    /// They are searched for in this order:
    ///
    /// 1. the file that `GOOGLE_APPLICATION_CREDENTIALS` names; if this is set, the file must exist;
    /// 2. the file of `gcloud auth application-default login`, in `$CLOUDSDK_CONFIG` or the home
    ///    directory;
    /// 3. the metadata server of Google Cloud, at `GCE_METADATA_HOST` if that is set.
    ///
    /// Empty variables count as not set. The first place that exists is used [from then
    /// on](#one-identity).
    ///
    /// Without a metadata server the search fails with `UNAUTHENTICATED`, after up to 3 s; set
    /// `NO_GCE_CHECK=true` to skip it (ignored if `GCE_METADATA_HOST` is set). A metadata server
    /// that does not respond is `UNAVAILABLE` if `GCE_METADATA_HOST` is set, or if the DMI product
    /// name identifies a Google Cloud machine.
    ///
    /// [Application Default Credentials]: https://cloud.google.com/docs/authentication/application-default-credentials
    pub fn application_default() -> Self {
        Self::new(Source::Google(Place::ApplicationDefault))
    }

    /// Uses a credentials file, as downloaded from the console or written by gcloud.
    ///
    /// The path must name a regular file of at most 1 MiB. Use [`json`](Self::json) for its text.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::new(Source::Google(Place::File(path.into())))
    }

    /// Uses the text of a credentials file.
    pub fn json(text: impl Into<String>) -> Self {
        Self::new(Source::Google(Place::Json(text.into().into())))
    }

    /// Uses the default service account of this machine, with tokens from the metadata server.
    ///
    /// `GCE_METADATA_HOST` and `NO_GCE_CHECK` apply as for
    /// [`application_default`](Self::application_default). If the metadata server does not respond, the
    /// fetch fails with `UNAVAILABLE` and is retried, because the server may still be starting.
    pub fn metadata_server() -> Self {
        Self::new(Source::Google(Place::MetadataServer(None)))
    }

    /// Uses the service account of this machine that has this email, with tokens from the metadata server.
    ///
    /// See [`metadata_server`](Self::metadata_server).
    pub fn metadata_server_account(email: impl Into<String>) -> Self {
        Self::new(Source::Google(Place::MetadataServer(Some(email.into()))))
    }

    /// Sends an API key, in the header `x-goog-api-key`.
    pub fn api_key(key: impl Into<String>) -> Self {
        Self::new(Source::ApiKey(key.into().into()))
    }

    /// Sends an access token, which is never renewed.
    pub fn bearer_token(token: impl Into<String>) -> Self {
        Self::new(Source::BearerToken(token.into().into()))
    }

    /// Uses a custom source. See [`CallCredentials`].
    pub fn custom(source: impl CallCredentials) -> Self {
        Self::new(Source::Custom(Arc::new(source)))
    }

    /// Sets the OAuth scopes of Google's tokens.
    ///
    /// User credentials have the scopes of their login instead, and other sources have none. An
    /// empty list, a string that is not a scope, or more than 8 KiB in total is `UNAUTHENTICATED`.
    ///
    /// Defaults to `https://www.googleapis.com/auth/cloud-platform`.
    #[must_use]
    pub fn scopes(mut self, scopes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.scopes = scopes.into_iter().map(Into::into).collect();
        self
    }

    /// Makes service accounts use self-signed JWTs instead of tokens from the token endpoint
    /// ([AIP-4111](https://google.aip.dev/auth/4111)).
    ///
    /// No request is sent, and the expiry is exact. Google's services accept such tokens, but some
    /// proxies and other services do not.
    ///
    /// This has no effect on credentials other than service account keys. Without the feature
    /// `google-authz` it has no effect at all: `google-cloud-auth` always uses self-signed JWTs.
    ///
    /// Defaults to tokens from the token endpoint.
    #[must_use]
    pub fn self_signed_jwt(mut self) -> Self {
        self.is_self_signed = true;
        self
    }

    /// Sets the project that is billed and whose quota is used, in the header `x-goog-user-project`.
    ///
    /// A call whose metadata already has this header keeps it.
    ///
    /// Defaults to `GOOGLE_CLOUD_QUOTA_PROJECT`, or else to the project of the credentials file. With
    /// [`custom`](Self::custom), defaults to the header that the source returns.
    #[must_use]
    pub fn quota_project(mut self, project: impl Into<String>) -> Self {
        self.quota_project = Some(project.into());
        self
    }

    /// Returns whether these are [`none`](Self::none).
    pub fn is_none(&self) -> bool {
        matches!(self.source, Source::None)
    }

    /// Creates an interceptor, for any client that tonic generates, and waits for its first token.
    ///
    /// Waits for 10 s, or until the first fetch has ended if that takes longer, and then returns
    /// the last failure. A failure that a person has to fix is returned immediately.
    ///
    /// The token is renewed on the tokio runtime on which this is called.
    ///
    /// # Errors
    ///
    /// - `UNAUTHENTICATED`: there are no credentials, they are unusable, or Google refuses them.
    /// - `UNAVAILABLE`: there was no token in time.
    /// - `FAILED_PRECONDITION`: there is no tokio runtime, or a feature is not compiled in.
    pub async fn interceptor(self) -> Result<AuthInterceptor, Status> {
        self.interceptor_lazy()?.first_token().await
    }

    /// Creates an interceptor that fetches its first token in the background.
    ///
    /// [`AuthInterceptor::ready`] waits for it. This is for programs that must start while Google cannot be
    /// reached.
    ///
    /// # Errors
    ///
    /// Those of [`interceptor`](Self::interceptor) that are known without a fetch.
    pub fn interceptor_lazy(mut self) -> Result<AuthInterceptor, Status> {
        let quota_project = self.quota_project_header()?;
        let token = match mem::replace(&mut self.source, Source::None) {
            Source::None => return Ok(AuthInterceptor::fixed(None, None)),
            Source::Custom(source) => {
                return AuthInterceptor::renewed(source, CUSTOM_LIMIT, quota_project);
            }
            Source::Google(place) => return self.of_google(place, quota_project),
            Source::ApiKey(key) if key.is_empty() => return Err(refused("the API key is empty")),
            Source::ApiKey(key) => Token::header("x-goog-api-key", &key)?,
            Source::BearerToken(token) => Token::bearer(&token)?,
        };
        Ok(AuthInterceptor::fixed(Some(token), quota_project))
    }

    /// Sets the host of the endpoint that the tokens are for.
    pub(crate) fn for_endpoint(mut self, host: &str) -> Self {
        self.endpoint_host = Some(host.into());
        self
    }

    #[cfg(feature = "_google")]
    fn of_google(
        self,
        place: Place,
        quota_project: Option<HeaderValue>,
    ) -> Result<AuthInterceptor, Status> {
        let options = google::Options {
            scopes: self.scopes,
            is_self_signed: self.is_self_signed,
            endpoint_host: self.endpoint_host,
            #[cfg(feature = "google-cloud-auth")]
            directory: env::current_dir().unwrap_or_default(),
        };
        let source = Arc::new(google::Google::new(place, options)?);
        AuthInterceptor::renewed(source, google::MAX_LIMIT, quota_project)
    }

    #[cfg(not(feature = "_google"))]
    fn of_google(self, _: Place, _: Option<HeaderValue>) -> Result<AuthInterceptor, Status> {
        Err(failure::needs_feature(
            "Google's credentials need",
            "google-authz, google-cloud-auth or metadata-server",
        ))
    }

    fn new(source: Source) -> Self {
        Self {
            source,
            scopes: [CLOUD_PLATFORM.to_owned()].into(),
            is_self_signed: false,
            quota_project: None,
            endpoint_host: None,
        }
    }

    fn quota_project_header(&self) -> Result<Option<HeaderValue>, Status> {
        let project = match (&self.quota_project, &self.source) {
            (Some(project), _) => Some(project.clone()),
            (None, Source::None | Source::Custom(_)) => None,
            (None, _) => env::var(QUOTA_PROJECT_VARIABLE).ok(),
        };
        project
            .filter(|project| !project.is_empty())
            .map(|project| token::header("x-goog-user-project", &project).map(|(_, value)| value))
            .transpose()
    }
}

const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";
const QUOTA_PROJECT_VARIABLE: &str = "GOOGLE_CLOUD_QUOTA_PROJECT";
/// The time limit for a fetch of a custom source: less than the 10 s for which `interceptor()` waits.
const CUSTOM_LIMIT: Duration = Duration::from_secs(8);

// The place is printed, but not its content.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source: &dyn fmt::Debug = match &self.source {
            Source::None => &"none",
            Source::Google(Place::ApplicationDefault) => &"application_default",
            Source::Google(Place::File(path)) if may_be_secret(path) => &"file",
            Source::Google(Place::File(path)) => path,
            Source::Google(Place::Json(_)) => &"json",
            Source::Google(Place::MetadataServer(_)) => &"metadata_server",
            Source::ApiKey(_) => &"api_key",
            Source::BearerToken(_) => &"bearer_token",
            Source::Custom(_) => &"custom",
        };
        f.debug_struct("Credentials")
            .field("source", source)
            .field("scopes", &self.scopes)
            .field("quota_project", &self.quota_project)
            .finish()
    }
}

//! Which credentials to use, and how to bring one's own.

#[cfg(any(feature = "google-authz", feature = "google-cloud-auth"))]
mod adc;
#[cfg(any(feature = "google-authz", feature = "google-cloud-auth"))]
mod apart;
mod failure;
#[cfg(any(feature = "google-authz", feature = "google-cloud-auth"))]
mod google;
#[cfg(feature = "google-authz")]
mod google_authz;
#[cfg(feature = "google-cloud-auth")]
mod google_cloud_auth;
mod interceptor;
#[cfg(any(feature = "google-authz", feature = "google-cloud-auth"))]
mod key_file;
#[cfg(any(feature = "google-authz", feature = "google-cloud-auth"))]
mod metadata_server;
#[cfg(any(feature = "google-authz", feature = "google-cloud-auth"))]
mod oauth;
mod renewal;
#[cfg(feature = "google-authz")]
mod signing_key;
mod token;

use std::{env, fmt, path::PathBuf, sync::Arc};

use http::HeaderValue;
use tonic::Status;

pub(crate) use self::failure::of_call;
use self::failure::{is_text, refused};
pub use self::{
    interceptor::AuthInterceptor,
    token::{CallCredentials, Token},
};

/// What a client shows a service to be let in.
///
/// This is a description: nothing is read and nothing is asked before a client or an
/// [`AuthInterceptor`] is made of it. From then on one task keeps one token current for all
/// clones; it ends with the last of them.
///
/// # Which one
///
/// | where the program runs | use |
/// |---|---|
/// | on Google Cloud, on a developer's machine, or both | [`application_default`](Self::application_default) |
/// | elsewhere, with a key file | [`file`](Self::file), or [`json`](Self::json) from a secret store |
/// | on Google Cloud, as one of several accounts | [`metadata_server`](Self::metadata_server) |
/// | on AWS, Azure, Kubernetes or CI without keys (workload identity federation), or impersonating | `application_default` or `file`, with the feature `google-cloud-auth` |
/// | with a token that something else renews | [`custom`](Self::custom) |
/// | in a script, for minutes | [`bearer_token`](Self::bearer_token) |
/// | before a service that takes API keys | [`api_key`](Self::api_key) |
/// | before an emulator | [`none`](Self::none) |
///
/// # What is renewed when
///
/// A good token is always at hand: callers go on with the old one while its successor is fetched.
///
/// | source | renewed | fetch |
/// |---|---|---|
/// | service account key, user's file | about every 18 minutes; Google's tokens live an hour | file read, key checked, one request |
/// | metadata server | about every 2.7 minutes; it hands out the same token until 5 minutes before its end | a few requests, that stay on the machine |
/// | feature `google-cloud-auth` | by that crate, 4 minutes before the end; made anew after 24 to 30 minutes | as it needs |
/// | custom, end known | when about three quarters of its time are over | yours |
/// | custom, end not known | about every 4.5 minutes | yours |
/// | bearer token, API key | never | none |
///
/// Each fetch reads the file anew, so a rotated or mended one is noticed. A fetch may take 8 s.
/// After a failure the next comes after 0.5 s, doubling to 30 s, a fifth more or less, for as long
/// as there is a client: nothing needs a restart.
///
/// If a server answers `UNAUTHENTICATED`, the token is renewed after a random delay of up to 10
/// seconds. While new tokens are refused as well, this limit doubles, up to 5 minutes; after 10
/// minutes without a refusal it is 10 seconds again. The random delay keeps many clients from asking
/// the token endpoint at the same time.
///
/// # What failures look like
///
/// `UNAVAILABLE` may pass by itself: no connection, no answer, a 5xx, no file descriptors left.
/// `UNAUTHENTICATED` is for a person: a bad file, a key that is revoked, a missing certificate
/// store. `FAILED_PRECONDITION`, which calls do not return, is for a programmer: no tokio runtime,
/// a feature that is not compiled in. The message of a source made here names what is wrong and the remedy, and no
/// secret; that of a custom source is its own.
///
/// # The crates underneath
///
/// The feature `google-authz` (on by default) uses the crate of that name, pinned to
/// `1.0.0-alpha.5` of 2022, for service accounts, users and the metadata server. In honesty: it is
/// an alpha that has had no release since; it stands on hyper 0.14 and rustls 0.20, so a program
/// with it has a second HTTP stack; and left to itself it hangs, panics after a failed fetch, and
/// prints tokens in its errors. Here it is asked for one token at a time, by one task, within a
/// time limit, and never used again after a failure; most conditions that make it panic are checked
/// first; and its error messages are replaced. Advisories against its tree are not
/// reachable from here: h2 0.3 and rustls 0.20 (only its client side, to the token endpoint, runs),
/// ring 0.16 (the overflow is in code for QUIC, the other in large ciphers), rustls-pemfile
/// (unmaintained). `deny.toml` of this crate lists them with reasons.
///
/// It can still panic in these cases, which cannot be detected beforehand:
///
/// - an `expires_in` from the token endpoint or the metadata server that overflows the clock;
/// - a process that runs out of file descriptors between the check of the certificate store, or of the
///   metadata server, and its use, or that loses its certificate store then;
/// - a metadata server at the usual address that answers the check, but not the request that follows.
///
/// The panic message is printed to standard error, and the fetch fails with `UNAVAILABLE`; the next
/// fetch may succeed. With `panic = "abort"` the program aborts.
///
/// Choose the feature `google-cloud-auth` (Rust 1.91) for what the first cannot do: workload
/// identity federation and impersonation. With both features the older crate still serves the files
/// that it knows; turn the default features off to do without it. Choose [`custom`](Self::custom)
/// if your program has a source of tokens already, or wants neither tree.
#[derive(Clone)]
pub struct Credentials {
    source: Source,
    scopes: Arc<[String]>,
    quota_project: Option<String>,
}

#[derive(Clone)]
enum Source {
    None,
    Google(Place),
    ApiKey(Arc<str>),
    BearerToken(Arc<str>),
    Custom(Arc<dyn CallCredentials>),
}

/// Where Google's credentials are found.
#[derive(Clone)]
#[cfg_attr(
    not(any(feature = "google-authz", feature = "google-cloud-auth")),
    allow(dead_code)
)]
enum Place {
    ApplicationDefault,
    File(PathBuf),
    Json(Arc<str>),
    MetadataServer(Option<String>),
}

impl Credentials {
    /// Sends nothing.
    pub fn none() -> Self {
        Self::new(Source::None)
    }

    /// Uses what the environment has: [Application Default Credentials].
    ///
    /// In this order: the file that `GOOGLE_APPLICATION_CREDENTIALS` names, unless it is empty; the
    /// file of `gcloud auth application-default login`, in `$CLOUDSDK_CONFIG` or the home directory;
    /// the metadata server of Google Cloud, at `GCE_METADATA_HOST` if that is set. Whether there is
    /// a metadata server takes up to 3 s to tell; `NO_GCE_CHECK=true` says that there is none. One
    /// that has never answered counts as none: `UNAUTHENTICATED`.
    ///
    /// [Application Default Credentials]: https://cloud.google.com/docs/authentication/application-default-credentials
    pub fn application_default() -> Self {
        Self::new(Source::Google(Place::ApplicationDefault))
    }

    /// Uses a credentials file, as downloaded from the console or written by gcloud.
    ///
    /// This is its path; its text is for [`json`](Self::json).
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::new(Source::Google(Place::File(path.into())))
    }

    /// Uses the text of a credentials file.
    pub fn json(text: impl Into<String>) -> Self {
        Self::new(Source::Google(Place::Json(text.into().into())))
    }

    /// Uses an account of this machine on Google Cloud, by its email; `None` is the default account.
    ///
    /// While the metadata server does not answer, it is waited for: `UNAVAILABLE`. In the first
    /// seconds of a pod it may not be there yet.
    pub fn metadata_server(account: Option<&str>) -> Self {
        let account = account.map(ToOwned::to_owned);
        Self::new(Source::Google(Place::MetadataServer(account)))
    }

    /// Sends an API key, in the header `x-goog-api-key`.
    pub fn api_key(key: impl Into<String>) -> Self {
        Self::new(Source::ApiKey(key.into().into()))
    }

    /// Sends an access token as it is, and never renews it.
    pub fn bearer_token(token: impl Into<String>) -> Self {
        Self::new(Source::BearerToken(token.into().into()))
    }

    /// Uses a source of one's own.
    pub fn custom(source: impl CallCredentials) -> Self {
        Self::new(Source::Custom(Arc::new(source)))
    }

    /// Sets the OAuth scopes of the tokens. Default is `cloud-platform` alone.
    ///
    /// Only Google's own sources have any, and not all heed them: a user's file has the scopes of
    /// its login.
    #[must_use]
    pub fn with_scopes(mut self, scopes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.scopes = scopes.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the project that is billed and whose quota is used, in the header
    /// `x-goog-user-project`.
    ///
    /// Default is `GOOGLE_CLOUD_QUOTA_PROJECT`, else what the credentials file says; with
    /// [`custom`](Self::custom), what the source says. A call whose metadata has that header keeps
    /// its own.
    #[must_use]
    pub fn with_quota_project(mut self, project: impl Into<String>) -> Self {
        self.quota_project = Some(project.into());
        self
    }

    /// Tells whether these send nothing at all.
    pub fn is_none(&self) -> bool {
        matches!(self.source, Source::None)
    }

    /// Makes an interceptor, for any generated client of tonic's, and waits until it has a token,
    /// but at most 10 s.
    ///
    /// The token is renewed on the tokio runtime that this is called on.
    ///
    /// # Errors
    ///
    /// - `UNAUTHENTICATED`: there are no credentials, they are of no use, or Google refuses them.
    /// - `UNAVAILABLE`: no token came in time.
    /// - `FAILED_PRECONDITION`: there is no tokio runtime here, or the feature is not compiled in.
    pub async fn interceptor(self) -> Result<AuthInterceptor, Status> {
        self.interceptor_lazy()?.first_token().await
    }

    /// Makes an interceptor that fetches its first token in the background.
    ///
    /// [`AuthInterceptor::ready`] waits for it. A program that must start although Google cannot be
    /// reached yet uses this.
    ///
    /// # Errors
    ///
    /// As [`interceptor`](Self::interceptor), as far as it can be told without asking anyone.
    pub fn interceptor_lazy(self) -> Result<AuthInterceptor, Status> {
        let quota_project = self.quota_project()?;
        let token = match self.source {
            Source::None => return Ok(AuthInterceptor::fixed(None, None)),
            Source::Custom(source) => return AuthInterceptor::renewed(source, quota_project),
            Source::Google(place) => {
                let source = google_source(place, &self.scopes)?;
                return AuthInterceptor::renewed(source, quota_project);
            }
            Source::ApiKey(key) if key.is_empty() => return Err(refused("the API key is empty")),
            Source::ApiKey(key) => Token::header("x-goog-api-key", &key)?,
            Source::BearerToken(token) => Token::bearer(&token)?,
        };
        Ok(AuthInterceptor::fixed(Some(token), quota_project))
    }

    fn new(source: Source) -> Self {
        Self {
            source,
            scopes: [CLOUD_PLATFORM.to_owned()].into(),
            quota_project: None,
        }
    }

    fn quota_project(&self) -> Result<Option<HeaderValue>, Status> {
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

#[cfg(any(feature = "google-authz", feature = "google-cloud-auth"))]
fn google_source(place: Place, scopes: &[String]) -> Result<Arc<dyn CallCredentials>, Status> {
    Ok(Arc::new(google::Google::new(place, scopes)?))
}

#[cfg(not(any(feature = "google-authz", feature = "google-cloud-auth")))]
fn google_source(_: Place, _: &[String]) -> Result<Arc<dyn CallCredentials>, Status> {
    Err(failure::needs_feature(
        "Google's credentials need",
        "google-authz or google-cloud-auth",
    ))
}

// The place is shown, but never what stands in it.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source: &dyn fmt::Debug = match &self.source {
            Source::None => &"none",
            Source::Google(Place::ApplicationDefault) => &"application_default",
            Source::Google(Place::File(path)) if is_text(path) => &"file",
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

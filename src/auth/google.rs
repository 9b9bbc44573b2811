//! Google's credentials: from a credentials file or the metadata server to a token.
//!
//! 1. Where the credentials are is decided once: a file ([`key_file`]), a text, or the metadata server
//!    ([`metadata_server`]). For application default credentials, the first place that exists is chosen
//!    ([`adc`]).
//! 2. For each token the file is read again, on a thread ([`worker`]).
//! 3. The token is fetched on another thread, which has a runtime of its own: from a token endpoint
//!    ([`google_authz`], [`google_cloud_auth`]), from the metadata server, or by signing it
//!    ([`private_key`]).
//!
//! A fetch that blocks or panics therefore fails alone. A thread that blocks is left running, and
//! the next fetch waits for it.

mod adc;
#[cfg(feature = "google-authz")]
mod google_authz;
#[cfg(feature = "google-cloud-auth")]
mod google_cloud_auth;
mod key_file;
mod metadata_server;
mod oauth;
#[cfg(feature = "google-authz")]
mod private_key;
mod worker;

use std::{
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use tokio::{
    runtime::{self, Runtime},
    time::Instant,
};
use tonic::Status;

use self::{
    adc::Search,
    key_file::{KeyFile, Location, is_missing},
    metadata_server::{MetadataServer, check_account},
    worker::{Cancelled, Failure, Worker},
};
#[cfg(not(feature = "google-cloud-auth"))]
use super::failure::needs_feature;
use super::{
    CLOUD_PLATFORM, Place,
    failure::{refused, unavailable},
    token::{CallCredentials, Token, header},
};
use crate::trace;

/// The time limit of a fetch without an executable: less than the 10 s of `interceptor()`.
const LIMIT: Duration = Duration::from_secs(8);
/// The part of `LIMIT` for reading a file.
const READ_LIMIT: Duration = Duration::from_secs(3);
/// The upper bound of the time limit, including an executable.
pub(super) const MAX_LIMIT: Duration = Duration::from_secs(150);

/// The settings of a Google source.
#[derive(Clone)]
pub(super) struct Options {
    pub(super) scopes: Arc<[String]>,
    /// Whether service accounts sign their tokens themselves.
    #[cfg_attr(not(feature = "google-authz"), allow(dead_code))]
    pub(super) is_self_signed: bool,
    /// The host of the endpoint that the tokens are for, if it is known.
    pub(super) endpoint_host: Option<Arc<str>>,
    /// The working directory when the interceptor was created.
    #[cfg(feature = "google-cloud-auth")]
    pub(super) directory: std::path::PathBuf,
}

/// A source of Google's tokens.
pub(super) struct Google {
    place: ResolvedPlace,
    /// The place where application default credentials were found; the only one used afterwards.
    found: OnceLock<ResolvedPlace>,
    options: Options,
    /// The last content of the file that could be read.
    last_key: Mutex<Option<KeyFile>>,
    reads: Worker<String, io::Error>,
    fetches: Worker<Token, Status>,
}

/// A place, with paths and environment variables resolved.
enum ResolvedPlace {
    Search(Search, MetadataServer),
    File(Location),
    Json(Arc<str>),
    MetadataServer(MetadataServer, Option<String>),
}

impl Google {
    pub(super) fn new(place: Place, options: Options) -> Result<Self, Status> {
        check_scopes(&options.scopes)?;
        let place = match place {
            Place::ApplicationDefault => {
                ResolvedPlace::Search(Search::new()?, MetadataServer::of_environment())
            }
            Place::File(path) => ResolvedPlace::File(Location::new("credentials file", &path)?),
            Place::Json(text) => ResolvedPlace::Json(text),
            Place::MetadataServer(account) => {
                account.as_deref().map(check_account).transpose()?;
                ResolvedPlace::MetadataServer(MetadataServer::of_environment(), account)
            }
        };
        Ok(Self {
            place,
            found: OnceLock::new(),
            options,
            last_key: Mutex::default(),
            // A late text is as new as that of another read. A late token may be of another place.
            reads: Worker::new().accept_late(),
            fetches: Worker::new(),
        })
    }
}

#[tonic::async_trait]
impl CallCredentials for Google {
    async fn token(&self) -> Result<Token, Status> {
        let deadline = Instant::now() + LIMIT;
        match self.found.get().unwrap_or(&self.place) {
            ResolvedPlace::Search(search, server) => self.search(search, server, deadline).await,
            ResolvedPlace::File(file) => self.of_file(file, deadline).await,
            ResolvedPlace::Json(text) => {
                let key = KeyFile::parse_given(text)?;
                self.of_key(key, deadline).await
            }
            ResolvedPlace::MetadataServer(server, account) => {
                self.of_metadata_server(server, account.as_deref(), true, deadline)
                    .await
            }
        }
    }
}

impl Google {
    /// Searches for application default credentials. The first place that exists is the only one
    /// from then on.
    async fn search(
        &self,
        search: &Search,
        server: &MetadataServer,
        deadline: Instant,
    ) -> Result<Token, Status> {
        if let Some(file) = &search.file {
            match self.read(file).await? {
                Ok(text) => {
                    self.found.get_or_init(|| ResolvedPlace::File(file.clone()));
                    return self.of_key(self.parse(file, &text)?, deadline).await;
                }
                Err(error) if !search.is_named && is_missing(&error) => {}
                Err(error) => return Err(file.unreadable(&error)),
            }
        }
        let token = self.of_metadata_server(server, None, false, deadline).await;
        let token = token.map_err(|status| search.nothing_found(status))?;
        self.found
            .get_or_init(|| ResolvedPlace::MetadataServer(server.clone(), None));
        Ok(token)
    }

    /// Returns a token for a file. While the file cannot be read or parsed, its last good content
    /// is used.
    async fn of_file(&self, file: &Location, deadline: Instant) -> Result<Token, Status> {
        let key = match self.read(file).await {
            Ok(Ok(text)) => self.parse(file, &text),
            Ok(Err(error)) => Err(file.unreadable(&error)),
            Err(failure) => Err(failure),
        };
        let last_key = self
            .last_key
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let key = match (key, last_key) {
            (Ok(key), _) => key,
            (Err(failure), None) => return Err(failure),
            (Err(failure), Some(key)) => {
                trace::credentials_file_unreadable(&failure);
                key
            }
        };
        self.of_key(key, deadline).await
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// `UNAVAILABLE`: the read hangs, or there is no thread for it.
    async fn read(&self, file: &Location) -> Result<io::Result<String>, Status> {
        let location = file.clone();
        let read = self.reads.run(READ_LIMIT, move |_| (location.read(), ()));
        read.await.map_err(|failure| file.hangs(failure))
    }

    /// Parses a file, and stores the result for `of_file`.
    fn parse(&self, file: &Location, text: &str) -> Result<KeyFile, Status> {
        let key = KeyFile::parse(&file.name(), text)?;
        let mut last_key = self.last_key.lock().unwrap_or_else(PoisonError::into_inner);
        *last_key = Some(key.clone());
        Ok(key)
    }

    async fn of_key(&self, key: KeyFile, deadline: Instant) -> Result<Token, Status> {
        self.options.check_universe(&key)?;
        let quota_project = key
            .optional("quota_project_id")
            .map(|project| header("x-goog-user-project", project))
            .transpose()?;
        let options = self.options.clone();
        let (endpoint, deadline) = (key.endpoint(), deadline + extra_time(&key));
        let fetch = async move { options.token(&key).await };
        let mut token = self.fetch(&endpoint, deadline, fetch).await?;
        if let Some((name, value)) = quota_project {
            token.insert(name, value);
        }
        Ok(token)
    }

    async fn of_metadata_server(
        &self,
        server: &MetadataServer,
        account: Option<&str>,
        is_required: bool,
        deadline: Instant,
    ) -> Result<Token, Status> {
        let (of_fetch, account) = (server.clone(), account.map(ToOwned::to_owned));
        let scopes = Arc::clone(&self.options.scopes);
        let fetch = async move {
            of_fetch
                .token(account.as_deref(), &scopes, is_required)
                .await
        };
        self.fetch(&server.to_string(), deadline, fetch).await
    }

    /// Runs a fetch on a thread with a runtime of its own, until the deadline.
    async fn fetch(
        &self,
        endpoint: &str,
        deadline: Instant,
        fetch: impl Future<Output = Result<Token, Status>> + Send + 'static,
    ) -> Result<Token, Status> {
        // Leave time for the fetch even if the process was too busy to poll earlier.
        let limit = (deadline - Instant::now()).max(LIMIT - READ_LIMIT);
        let work = move |cancelled| run(fetch, cancelled);
        match self.fetches.run(limit, work).await {
            Ok(outcome) => outcome,
            Err(Failure::TimedOut) => Err(unavailable(format_args!(
                "{endpoint} did not answer within {limit:.0?}: the fetch will be retried"
            ))),
            Err(Failure::Panicked) => Err(unavailable(format_args!(
                "{endpoint}: the fetch panicked: check this machine's clock; if the clock is right, report a bug"
            ))),
            Err(failure @ Failure::NoThread(_)) => Err(unavailable(failure)),
        }
    }
}

/// Runs a fetch until it ends or is cancelled. Returns the runtime as well: dropping it ends the
/// tasks that the fetch spawned, which may block.
fn run(
    fetch: impl Future<Output = Result<Token, Status>>,
    cancelled: Cancelled,
) -> (Result<Token, Status>, Option<Runtime>) {
    let runtime = match new_runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            let message = format!("cannot fetch a token: {error}: the fetch will be retried");
            return (Err(unavailable(message)), None);
        }
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            biased;
            outcome = fetch => outcome,
            _ = cancelled => Err(unavailable("the fetch was cancelled")),
        }
    });
    (outcome, Some(runtime))
}

fn new_runtime() -> io::Result<Runtime> {
    // Name look-up panics if tokio cannot start a thread, so check first that a thread can be started.
    let thread = thread::Builder::new().spawn(|| {})?;
    drop(thread.join());
    runtime::Builder::new_current_thread().enable_all().build()
}

impl Options {
    /// Fetches a token. This blocks, and needs a tokio runtime.
    async fn token(&self, key: &KeyFile) -> Result<Token, Status> {
        match key.kind() {
            #[cfg(feature = "google-authz")]
            "service_account" if self.is_self_signed => {
                private_key::self_signed_token(key, &self.scopes)
            }
            #[cfg(feature = "google-authz")]
            "service_account" | "authorized_user" => google_authz::token(key, &self.scopes).await,
            #[cfg(all(feature = "google-cloud-auth", not(feature = "google-authz")))]
            "service_account" | "authorized_user" => {
                google_cloud_auth::token(key, &self.scopes, &self.directory).await
            }
            #[cfg(feature = "google-cloud-auth")]
            "external_account" | "impersonated_service_account" => {
                google_cloud_auth::token(key, &self.scopes, &self.directory).await
            }
            #[cfg(not(feature = "google-cloud-auth"))]
            kind @ ("external_account" | "impersonated_service_account") => Err(needs_feature(
                format_args!("{}: field \"type\": {kind:?} needs", key.name()),
                "google-cloud-auth",
            )),
            #[cfg(not(any(feature = "google-authz", feature = "google-cloud-auth")))]
            kind @ ("service_account" | "authorized_user") => Err(needs_feature(
                format_args!("{}: field \"type\": {kind:?} needs", key.name()),
                "google-authz or google-cloud-auth",
            )),
            _ => Err(key.refused(
                "field \"type\" is none of \"service_account\", \"authorized_user\", \
                 \"external_account\", \"impersonated_service_account\": use a file of one of these",
            )),
        }
    }

    /// Checks that the file and the endpoint belong to the same universe: the domain of one Google
    /// Cloud deployment, such as `googleapis.com` for the public cloud.
    fn check_universe(&self, key: &KeyFile) -> Result<(), Status> {
        const FIELD: &str = "universe_domain";
        let Some(universe) = key.optional(FIELD).filter(|it| *it != GOOGLE) else {
            return Ok(());
        };
        if key.kind() == "authorized_user" {
            return Err(key.refused(format_args!(
                "field {FIELD:?} is {universe:?}: user credentials are supported for {GOOGLE} only"
            )));
        }
        let Some(host) = self.endpoint_host.as_deref() else {
            return Ok(());
        };
        let domain = host.trim_end_matches('.').to_ascii_lowercase();
        let service = domain.strip_suffix(&universe.to_ascii_lowercase());
        if service.is_some_and(|service| service.ends_with('.')) {
            return Ok(());
        }
        Err(key.refused(format_args!(
            "field {FIELD:?} is {universe:?}, but the endpoint is {host}: use credentials of the endpoint's \
             universe"
        )))
    }
}

/// The universe of the public cloud.
const GOOGLE: &str = "googleapis.com";

/// Returns the timeout of the executable in the file, which is added to the time limit.
#[cfg(feature = "google-cloud-auth")]
fn extra_time(key: &KeyFile) -> Duration {
    let executable = google_cloud_auth::executable_timeout(key).unwrap_or_default();
    executable.min(MAX_LIMIT - 2 * LIMIT)
}

#[cfg(not(feature = "google-cloud-auth"))]
fn extra_time(_: &KeyFile) -> Duration {
    Duration::ZERO
}

/// Refuses what cannot be a scope, see [RFC 6749](https://www.rfc-editor.org/rfc/rfc6749#section-3.3).
fn check_scopes(scopes: &[String]) -> Result<(), Status> {
    let is_scope = |scope: &String| {
        !scope.is_empty()
            && scope
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'))
    };
    if scopes.is_empty() {
        return Err(refused("the list of scopes is empty: name at least one"));
    }
    if let Some(scope) = scopes.iter().find(|scope| !is_scope(scope)) {
        return Err(refused(format_args!(
            "{scope:?} is not a scope: give one such as \"{}\"",
            CLOUD_PLATFORM
        )));
    }
    // The metadata server gets them in the URL.
    if scopes.iter().map(String::len).sum::<usize>() > 8 * 1024 {
        return Err(refused("the scopes are longer than 8 KiB together"));
    }
    Ok(())
}

#[cfg(all(test, feature = "google-authz"))]
mod tests {
    use std::sync::mpsc;

    use serde_json::json;
    use tonic::Code;

    use super::*;

    const KEY: &str = include_str!("../../tests/support/keys/service_account.pem");

    /// Returns a source that needs no endpoint.
    fn self_signing(file: &std::path::Path) -> Google {
        let options = Options {
            scopes: [CLOUD_PLATFORM.to_owned()].into(),
            is_self_signed: true,
            endpoint_host: None,
            #[cfg(feature = "google-cloud-auth")]
            directory: Default::default(),
        };
        Google::new(Place::File(file.to_owned()), options).unwrap()
    }

    /// Such as on a network file system whose server does not respond.
    #[tokio::test]
    async fn a_file_that_hangs_holds_up_only_its_own_client() {
        let account =
            json!({"type": "service_account", "client_email": "robot", "private_key": KEY});
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), account.to_string()).unwrap();

        let (new, running) = (self_signing(file.path()), self_signing(file.path()));
        running.token().await.unwrap();
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        for google in [&new, &running] {
            let released = Arc::clone(&released);
            let hangs = move |_: Cancelled| {
                let _ = released.lock().unwrap().recv();
                (Err(io::Error::other("it hung")), ())
            };
            let outcome = google.reads.run(Duration::ZERO, hangs).await;
            assert!(matches!(outcome, Err(Failure::TimedOut)));
        }
        let failure = new.token().await.err().unwrap();
        assert_eq!(failure.code(), Code::Unavailable);
        assert_eq!(
            failure.message(),
            format!(
                "credentials: credentials file {}: it cannot be read: no result in time: check the file \
                 system",
                file.path().display()
            )
        );
        // It has read the file before.
        running.token().await.unwrap();
        self_signing(file.path()).token().await.unwrap();
        drop(release);
        new.token().await.unwrap();
    }
}

//! Google's credentials: found anew for each fetch, and handed to the crate that knows their kind.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tonic::Status;

use super::{
    CallCredentials, Place, adc,
    failure::{self, unavailable},
    key_file::KeyFile,
    metadata_server,
    token::{Token, header},
};

pub(super) struct Google {
    place: Place,
    scopes: Arc<[String]>,
    /// Whether a metadata server has ever answered: then its silence will pass by itself.
    on_google_cloud: AtomicBool,
    #[cfg(feature = "google-cloud-auth")]
    google_cloud_auth: super::google_cloud_auth::Cache,
}

impl Google {
    pub(super) fn new(place: Place, scopes: &[String]) -> Result<Self, Status> {
        check_scopes(scopes)?;
        if let Place::MetadataServer(Some(account)) = &place {
            metadata_server::check_account(account)?;
        }
        Ok(Self {
            place,
            scopes: scopes.into(),
            on_google_cloud: AtomicBool::new(false),
            #[cfg(feature = "google-cloud-auth")]
            google_cloud_auth: Default::default(),
        })
    }

    async fn of_key_file(&self, key: KeyFile) -> Result<Token, Status> {
        let project = key
            .quota_project()
            .map(|project| header("x-goog-user-project", project))
            .transpose()?;
        let mut token = self.of_kind(key).await?;
        if let Some((name, value)) = project {
            token.insert(name, value);
        }
        Ok(token)
    }

    async fn of_kind(&self, key: KeyFile) -> Result<Token, Status> {
        match key.kind() {
            #[cfg(feature = "google-authz")]
            "service_account" | "authorized_user" => {
                super::google_authz::of_key_file(key, &self.scopes).await
            }
            #[cfg(all(feature = "google-cloud-auth", not(feature = "google-authz")))]
            "service_account" | "authorized_user" => {
                self.google_cloud_auth.of_key_file(key, &self.scopes).await
            }
            #[cfg(feature = "google-cloud-auth")]
            "external_account" | "impersonated_service_account" => {
                self.google_cloud_auth.of_key_file(key, &self.scopes).await
            }
            #[cfg(not(feature = "google-cloud-auth"))]
            kind @ ("external_account" | "impersonated_service_account") => Err(
                failure::needs_feature(
                    format_args!("{}: field \"type\": {kind:?} needs", key.name()),
                    "google-cloud-auth",
                ),
            ),
            _ => Err(key.refused(
                "field \"type\" is none of \"service_account\", \"authorized_user\", \
                 \"external_account\", \"impersonated_service_account\": use a file of one of these",
            )),
        }
    }

    async fn of_metadata_server(&self, account: Option<&str>) -> Result<Token, Status> {
        self.find_metadata_server().await?;
        #[cfg(feature = "google-authz")]
        return super::google_authz::of_metadata_server(account, &self.scopes).await;
        #[cfg(not(feature = "google-authz"))]
        self.google_cloud_auth
            .of_metadata_server(account, &self.scopes)
            .await
    }

    /// The crates below are only asked where there is one, or where the environment names one: they
    /// would panic, or look for others.
    async fn find_metadata_server(&self) -> Result<(), Status> {
        let host = metadata_server::Host::of_environment()?;
        let is_known = self.on_google_cloud.load(Ordering::Relaxed);
        let is_asked_for = matches!(self.place, Place::MetadataServer(_));
        if matches!(host, metadata_server::Host::Named(_)) && (is_known || is_asked_for) {
            return Ok(());
        }
        if host.answers().await? {
            self.on_google_cloud.store(true, Ordering::Relaxed);
            return Ok(());
        }
        Err(match is_known || is_asked_for {
            // It may be restarting, or not have started yet.
            true => unavailable(host.silence()),
            false => failure::refused(host.silence()),
        })
    }
}

#[tonic::async_trait]
impl CallCredentials for Google {
    async fn token(&self) -> Result<Token, Status> {
        match &self.place {
            Place::ApplicationDefault => match adc::file().await? {
                Some(key) => self.of_key_file(key).await,
                None => self
                    .of_metadata_server(None)
                    .await
                    .map_err(adc::nothing_found),
            },
            Place::File(path) => self.of_key_file(KeyFile::read(path).await?).await,
            Place::Json(text) => {
                self.of_key_file(KeyFile::parse("credentials JSON", text)?)
                    .await
            }
            Place::MetadataServer(account) => self.of_metadata_server(account.as_deref()).await,
        }
    }

    #[cfg(feature = "google-cloud-auth")]
    fn rejected(&self) {
        self.google_cloud_auth.clear();
    }
}

/// Refuses what no scope can be: RFC 6749, section 3.3. Some of it would make a crate below panic.
fn check_scopes(scopes: &[String]) -> Result<(), Status> {
    let is_scope = |scope: &String| {
        !scope.is_empty()
            && scope
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'))
    };
    if scopes.is_empty() {
        return Err(failure::refused(
            "the list of scopes is empty: name one at least",
        ));
    }
    if let Some(scope) = scopes.iter().find(|scope| !is_scope(scope)) {
        return Err(failure::refused(format_args!(
            "{scope:?} is not a scope: give one such as \"{}\"",
            super::CLOUD_PLATFORM
        )));
    }
    // The metadata server gets them in a URL.
    if scopes.iter().map(String::len).sum::<usize>() > 8 * 1024 {
        return Err(failure::refused(
            "the scopes are longer than 8 KiB together",
        ));
    }
    Ok(())
}

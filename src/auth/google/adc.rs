//! The search for application default credentials.
//!
//! The places are those of Google's own libraries:
//! <https://cloud.google.com/docs/authentication/application-default-credentials>

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use tonic::{Code, Status};

use super::key_file::Location;
use crate::auth::failure::refused;

const VARIABLE: &str = "GOOGLE_APPLICATION_CREDENTIALS";

/// The file to search for, from the environment at the time the interceptor was created.
#[derive(Clone)]
pub(super) struct Search {
    /// The file of the environment variable, or else gcloud's.
    pub(super) file: Option<Location>,
    /// Whether the environment variable names the file: then it is the only place.
    pub(super) is_named: bool,
}

impl Search {
    /// Reads the environment.
    ///
    /// # Errors
    ///
    /// `UNAUTHENTICATED`: a relative path, and no working directory.
    pub(super) fn new() -> Result<Self, Status> {
        let named = variable(VARIABLE);
        let is_named = named.is_some();
        let file = match named {
            Some(path) => {
                let what = format!("{VARIABLE}: credentials file");
                Some(Location::new(&what, Path::new(&path))?)
            }
            None => gcloud_folder()
                .map(|folder| {
                    let path = folder.join("application_default_credentials.json");
                    Location::new("credentials file", &path)
                })
                .transpose()?,
        };
        Ok(Self { file, is_named })
    }

    /// Adds the places that were searched to the failure of the metadata server. A temporary
    /// failure is returned unchanged.
    pub(super) fn nothing_found(&self, status: Status) -> Status {
        if status.code() != Code::Unauthenticated {
            return status;
        }
        let gcloud = match &self.file {
            Some(file) => format!("there is no file {}", file.shown()),
            None => "there is no home directory to look for gcloud's file in".to_owned(),
        };
        let metadata_server = status.message().trim_start_matches("credentials: ");
        refused(format_args!(
            "no application default credentials: {VARIABLE} is not set, {gcloud}, and \
             {metadata_server}: run \"gcloud auth application-default login\", or set {VARIABLE} to a \
             key file"
        ))
    }
}

fn gcloud_folder() -> Option<PathBuf> {
    if let Some(folder) = variable("CLOUDSDK_CONFIG") {
        return Some(folder.into());
    }
    let (name, folder) = if cfg!(windows) {
        ("APPDATA", "gcloud")
    } else {
        ("HOME", ".config/gcloud")
    };
    // A relative home directory is ignored.
    let home = PathBuf::from(variable(name)?);
    home.is_absolute().then(|| home.join(folder))
}

/// Returns an environment variable. An empty one counts as not set: scripts have no other way to
/// unset it.
pub(super) fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

//! Where application default credentials are, as Google's own libraries look for them.
//! <https://cloud.google.com/docs/authentication/application-default-credentials>

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use tonic::{Code, Status};

use super::{failure::refused, key_file::KeyFile};

const VARIABLE: &str = "GOOGLE_APPLICATION_CREDENTIALS";

/// Finds the file of the environment, or else that of gcloud.
pub(super) async fn file() -> Result<Option<KeyFile>, Status> {
    if let Some(path) = variable(VARIABLE) {
        return KeyFile::read_for(VARIABLE, Path::new(&path))
            .await
            .map(Some);
    }
    match gcloud_file() {
        Some(path) => KeyFile::read_if_exists(&path).await,
        None => Ok(None),
    }
}

/// Says that there are none at all, rather than only that the last place has none.
pub(super) fn nothing_found(status: Status) -> Status {
    if status.code() != Code::Unauthenticated {
        return status;
    }
    let gcloud = match gcloud_file() {
        Some(path) => format!("there is no file {}", path.display()),
        None => "there is no home directory to look for gcloud's file in".to_owned(),
    };
    let metadata_server = status.message().trim_start_matches("credentials: ");
    refused(format_args!(
        "no application default credentials: {VARIABLE} is not set, {gcloud}, and \
         {metadata_server}: run \"gcloud auth application-default login\", or set {VARIABLE} to a \
         key file"
    ))
}

fn gcloud_file() -> Option<PathBuf> {
    let home = |name, rest| Some(Path::new(&variable(name)?).join(rest));
    let folder = variable("CLOUDSDK_CONFIG").map(PathBuf::from);
    let folder = folder.or_else(|| match cfg!(windows) {
        true => home("APPDATA", "gcloud"),
        false => home("HOME", ".config/gcloud"),
    });
    // A relative one would be read from wherever the program happens to be started.
    let folder = folder.filter(|folder| folder.is_absolute())?;
    Some(folder.join("application_default_credentials.json"))
}

/// An empty variable is one that is not set: scripts have no other way to say so.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

//! A credentials file: read, and checked before any other crate sees it.

use std::{
    fmt::Display,
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

use serde_json::{Map, Value};
use tonic::Status;

use super::{
    apart::apart,
    failure::{is_text, refused, unavailable},
};

/// Google's files have 2 to 4 KiB.
const MAX_BYTES: u64 = 1 << 20;

pub(super) struct KeyFile {
    name: String,
    #[cfg(feature = "google-cloud-auth")]
    text: std::sync::Arc<str>,
    fields: Map<String, Value>,
}

impl KeyFile {
    pub(super) async fn read(path: &Path) -> Result<Self, Status> {
        Self::found(read(path).await?, "credentials file", path)
    }

    /// Reads the file that an environment variable names.
    pub(super) async fn read_for(variable: &str, path: &Path) -> Result<Self, Status> {
        let what = format!("{variable}: credentials file");
        Self::found(read(path).await?, &what, path)
    }

    pub(super) async fn read_if_exists(path: &Path) -> Result<Option<Self>, Status> {
        match read(path).await? {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            outcome => Self::found(outcome, "credentials file", path).map(Some),
        }
    }

    fn found(outcome: io::Result<String>, what: &str, path: &Path) -> Result<Self, Status> {
        let error = match outcome {
            // What could be read is a path, whatever it looks like.
            Ok(text) => return Self::parse(&format!("{what} {}", path.display()), &text),
            Err(error) => error,
        };
        if is_text(path) {
            return Err(refused(format_args!(
                "{what}: what was given looks like the text of a file, and is not shown: give its \
                 path there, or the text to Credentials::json"
            )));
        }
        let name = format!("{what} {}", path.display());
        let remedy = match error.kind() {
            _ if may_pass(&error) => {
                return Err(unavailable(format_args!(
                    "{name}: {error}: it is tried again"
                )));
            }
            io::ErrorKind::NotFound => "put the file there, or name another",
            io::ErrorKind::PermissionDenied => "let the user of this process read it",
            _ => "name a file of JSON",
        };
        Err(refused(format_args!("{name}: {error}: {remedy}")))
    }

    pub(super) fn parse(name: &str, text: &str) -> Result<Self, Status> {
        if text.trim().is_empty() {
            return Err(refused(format_args!(
                "{name}: it is empty: download the file again"
            )));
        }
        // The error's own text may show what stands there: only the place is told.
        let value: Value = serde_json::from_str(text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let what = match error.is_eof() {
                true => "the JSON is cut off",
                false => "it is not JSON",
            };
            refused(format_args!(
                "{name}: {what} at line {line}, column {column}: download the file again"
            ))
        })?;
        let Value::Object(fields) = value else {
            return Err(refused(format_args!(
                "{name}: it is not a JSON object: download the file again"
            )));
        };
        let key = Self {
            name: name.to_owned(),
            #[cfg(feature = "google-cloud-auth")]
            text: text.into(),
            fields,
        };
        key.required("type")?;
        Ok(key)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    #[cfg(feature = "google-cloud-auth")]
    pub(super) fn text(&self) -> &std::sync::Arc<str> {
        &self.text
    }

    pub(super) fn kind(&self) -> &str {
        self.text_of("type").unwrap_or_default()
    }

    pub(super) fn quota_project(&self) -> Option<&str> {
        self.text_of("quota_project_id")
    }

    /// Returns a field that must be there, and text, and not empty.
    pub(super) fn required(&self, field: &str) -> Result<&str, Status> {
        match self.fields.get(field) {
            Some(Value::String(text)) if !text.is_empty() => Ok(text),
            Some(Value::String(_)) => Err(self.refused(format_args!(
                "field {field:?} is empty: download the file again"
            ))),
            Some(_) => Err(self.refused(format_args!(
                "field {field:?} is not text: download the file again"
            ))),
            None => Err(self.refused(format_args!(
                "field {field:?} is missing: download the file again"
            ))),
        }
    }

    pub(super) fn text_of(&self, field: &str) -> Option<&str> {
        self.fields
            .get(field)?
            .as_str()
            .filter(|text| !text.is_empty())
    }

    #[cfg(feature = "google-cloud-auth")]
    pub(super) fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    pub(super) fn refused(&self, message: impl Display) -> Status {
        refused(format_args!("{}: {message}", self.name))
    }
}

/// Whether the machine is to blame and not the file: it has no descriptors or memory left, say.
pub(super) fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, OutOfMemory, ResourceBusy, StaleNetworkFileHandle, TimedOut};
    // No kind yet is for these.
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    let no_descriptors = cfg!(unix) && matches!(error.raw_os_error(), Some(ENFILE | EMFILE));
    no_descriptors
        || matches!(
            error.kind(),
            Interrupted | OutOfMemory | ResourceBusy | StaleNetworkFileHandle | TimedOut
        )
}

async fn read(path: &Path) -> Result<io::Result<String>, Status> {
    let path = path.to_owned();
    apart(move || {
        // Asked before it is opened: opening a pipe hangs, and it would have nothing to say the
        // second time.
        if !fs::metadata(&path)?.is_file() {
            return Err(io::Error::other("it is a directory or a pipe"));
        }
        let file = File::open(path)?;
        let mut text = String::new();
        match file.take(MAX_BYTES + 1).read_to_string(&mut text)? as u64 {
            bytes if bytes > MAX_BYTES => Err(io::Error::other("it is larger than 1 MiB")),
            _ => Ok(text),
        }
    })
    .await
}

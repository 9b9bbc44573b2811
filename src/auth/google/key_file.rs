//! Credentials files: where they are, and their checked content.

use std::{
    fmt::Display,
    fs::{self, File},
    io::{self, Read as _},
    path::{self, Path, PathBuf},
};

use http::Uri;
use serde_json::{Map, Value};
use tonic::Status;

use crate::auth::failure::{may_be_secret, refused, unavailable};

/// The maximum size of a credentials file. Google's are 2 to 4 KiB.
const MAX_BYTES: u64 = 1 << 20;

/// The token endpoint of Google.
pub(super) const GOOGLE_ENDPOINT: &str = "https://oauth2.googleapis.com/token";

/// The location of a credentials file.
#[derive(Clone)]
pub(super) struct Location {
    what: String,
    path: PathBuf,
    /// Whether the path may be a secret that was given in place of a path.
    may_be_secret: bool,
}

impl Location {
    /// Creates a location. The path is made absolute, so that a later change of the working
    /// directory has no effect.
    ///
    /// `what` names the file in messages.
    pub(super) fn new(what: &str, path: &Path) -> Result<Self, Status> {
        let absolute = path::absolute(path)
            .map_err(|error| refused(format_args!("{what}: {error}: give an absolute path")))?;
        Ok(Self {
            what: what.to_owned(),
            path: absolute,
            may_be_secret: may_be_secret(path),
        })
    }

    /// Returns the path for messages.
    pub(super) fn shown(&self) -> String {
        if self.may_be_secret {
            return "at the given path, which looks like a secret and is not quoted".to_owned();
        }
        self.path.display().to_string()
    }

    /// Returns the name of the file for messages. Not for a path that may be a secret.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.what, self.path.display())
    }

    /// Reads the file. This may block.
    pub(super) fn read(&self) -> io::Result<String> {
        // Opening a pipe would block, and a pipe cannot be read again for the next token.
        if !fs::metadata(&self.path)?.is_file() {
            return Err(io::Error::other("it is a directory or a pipe"));
        }
        let mut text = String::new();
        let bytes = File::open(&self.path)?
            .take(MAX_BYTES + 1)
            .read_to_string(&mut text)?;
        if bytes as u64 > MAX_BYTES {
            return Err(io::Error::other("it is larger than 1 MiB"));
        }
        Ok(text)
    }

    /// Returns the status for a file that cannot be read.
    pub(super) fn unreadable(&self, error: &io::Error) -> Status {
        if self.may_be_secret {
            let what = &self.what;
            return refused(format_args!(
                "{what}: what was given looks like the text of a file or a token, and is not shown: give \
                 the path of a file there; Credentials::json takes the text, and \
                 Credentials::bearer_token a token"
            ));
        }
        let name = self.name();
        let remedy = match error.kind() {
            _ if is_temporary(error) => {
                return unavailable(format_args!("{name}: {error}: the fetch will be retried"));
            }
            io::ErrorKind::NotFound => "put the file there, or name another",
            io::ErrorKind::PermissionDenied => "let the user of this process read it",
            _ => "name a file of JSON",
        };
        refused(format_args!("{name}: {error}: {remedy}"))
    }

    /// Returns the status for a file whose read hangs.
    pub(super) fn hangs(&self, failure: impl Display) -> Status {
        if self.may_be_secret {
            return self.unreadable(&io::Error::other(""));
        }
        let name = self.name();
        unavailable(format_args!(
            "{name}: it cannot be read: {failure}: check the file system"
        ))
    }
}

/// A credentials file: a JSON object with a `type`.
#[derive(Clone)]
pub(super) struct KeyFile {
    name: String,
    fields: Map<String, Value>,
}

impl KeyFile {
    /// Parses the text that [`Credentials::json`](crate::Credentials::json) was given.
    pub(super) fn parse_given(text: &str) -> Result<Self, Status> {
        let name = "credentials JSON";
        let trimmed = text.trim();
        if !trimmed.is_empty() && !trimmed.starts_with('{') {
            return Err(refused(format_args!(
                "{name}: not the text of a credentials file (the value is not shown): pass a path to \
                 Credentials::file, or an access token to Credentials::bearer_token"
            )));
        }
        Self::parse(name, text)
    }

    /// Parses the text of a file. The messages of its errors begin with `name`.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self, Status> {
        if text.trim().is_empty() {
            return Err(refused(format_args!(
                "{name}: it is empty: download the file again"
            )));
        }
        // The error's own text may quote the file, so only the position is reported.
        let value: Value = serde_json::from_str(text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let what = if error.is_eof() {
                "the JSON is cut off"
            } else {
                "it is not JSON"
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
            fields,
        };
        key.required("type")?;
        Ok(key)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn kind(&self) -> &str {
        self.optional("type").unwrap_or_default()
    }

    /// Returns a required field: a string that is not empty.
    pub(super) fn required(&self, field: &str) -> Result<&str, Status> {
        let problem = match self.fields.get(field) {
            Some(Value::String(text)) if !text.is_empty() => return Ok(text),
            Some(Value::String(_)) => "empty",
            Some(_) => "not text",
            None => "missing",
        };
        Err(self.refused(format_args!(
            "field {field:?} is {problem}: download the file again"
        )))
    }

    pub(super) fn optional(&self, field: &str) -> Option<&str> {
        self.fields
            .get(field)?
            .as_str()
            .filter(|text| !text.is_empty())
    }

    /// Names the token endpoint, for messages: its host, because the rest of a URL may contain secrets.
    pub(super) fn endpoint(&self) -> String {
        let url = match self.kind() {
            // google-authz ignores the field `token_uri` of user credentials.
            #[cfg(feature = "google-authz")]
            "authorized_user" => None,
            "external_account" => self.optional("token_url"),
            "impersonated_service_account" => self.optional("service_account_impersonation_url"),
            _ => self.optional("token_uri"),
        };
        let url = url
            .unwrap_or(GOOGLE_ENDPOINT)
            .parse::<Uri>()
            .unwrap_or_default();
        let host = url.host().unwrap_or_default();
        let port = url
            .port()
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        format!("{}: the token endpoint {host}{port}", self.name)
    }

    #[cfg(feature = "google-cloud-auth")]
    pub(super) fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    pub(super) fn refused(&self, message: impl Display) -> Status {
        refused(format_args!("{}: {message}", self.name))
    }
}

/// Returns whether an error means that there is no such file. A home directory may be `/dev/null`.
pub(super) fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Returns whether an I/O error is temporary, such as a lack of file descriptors, or a network file
/// system that is not connected.
pub(super) fn is_temporary(error: &io::Error) -> bool {
    use io::ErrorKind::{
        HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable, NotConnected, OutOfMemory,
        ResourceBusy, StaleNetworkFileHandle, TimedOut,
    };
    // There is no kind for these yet.
    const EIO: i32 = 5;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    (cfg!(unix) && matches!(error.raw_os_error(), Some(EIO | ENFILE | EMFILE)))
        || matches!(
            error.kind(),
            HostUnreachable
                | Interrupted
                | NetworkDown
                | NetworkUnreachable
                | NotConnected
                | OutOfMemory
                | ResourceBusy
                | StaleNetworkFileHandle
                | TimedOut
        )
}

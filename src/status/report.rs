//! One-line reports of statuses.

use std::{
    error::Error as _,
    fmt::{self, Write as _},
};

use prost::Message as _;
use tonic::Status;

use super::{CallStatusExt as _, source::Source};
use crate::proto::rpc;

/// A one-line report of a status, returned by [`CallStatusExt::report`](super::CallStatusExt::report).
#[derive(Clone, Copy)]
pub struct StatusReport<'a>(&'a Status);

impl<'a> StatusReport<'a> {
    pub(super) fn new(status: &'a Status) -> Self {
        Self(status)
    }
}

impl fmt::Display for StatusReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.0;
        f.write_str(status.code_name())?;
        if let Some(source) = status.source().and_then(|it| it.downcast_ref::<Source>()) {
            write!(f, " ({source})")?;
        }
        if !status.message().is_empty() {
            f.write_str(": ")?;
            write_escaped(f, status.message())?;
        }
        write_detail_types(f, status.details())
    }
}

impl fmt::Debug for StatusReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Writes a text, and escapes backslashes, combining characters, and characters that are not printable:
/// control characters, Unicode line separators, and characters that change the direction of the text.
fn write_escaped(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for char in text.chars() {
        match char {
            '\'' | '"' => f.write_char(char)?,
            _ => write!(f, "{}", char.escape_debug())?,
        }
    }
    Ok(())
}

/// Writes the types of the details, such as ` [google.rpc.RetryInfo]`.
fn write_detail_types(f: &mut fmt::Formatter<'_>, details: &[u8]) -> fmt::Result {
    if details.is_empty() {
        return Ok(());
    }
    let Ok(status) = rpc::Status::decode(details) else {
        return write!(f, " [{} bytes of unknown details]", details.len());
    };
    for (index, detail) in status.details.iter().enumerate() {
        f.write_str(if index == 0 { " [" } else { ", " })?;
        let type_name = detail.type_url.rsplit('/').next().unwrap_or_default();
        write_escaped(f, type_name)?;
    }
    if status.details.is_empty() {
        Ok(())
    } else {
        f.write_str("]")
    }
}

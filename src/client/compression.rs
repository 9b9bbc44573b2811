//! Compressed messages, see [compression](https://github.com/grpc/grpc/blob/master/doc/compression.md).

use std::fmt::Display;

use bytes::Bytes;
use http::HeaderValue;
use tonic::Status;

use super::answer::undecodable;

/// The value of `grpc-accept-encoding`.
pub(super) const ACCEPTED: Option<&str> = if cfg!(feature = "gzip") {
    Some("gzip")
} else {
    None
};

/// Decompresses a message whose Compressed-Flag is 1. `encoding` is the `grpc-encoding` of the response.
///
/// # Errors
///
/// - `INTERNAL`: the encoding is missing, or is not accepted, or the data is invalid.
/// - `RESOURCE_EXHAUSTED`: the decompressed message is larger than the limit.
pub(super) fn decompress(
    encoding: Option<&HeaderValue>,
    compressed: &[u8],
    limit: usize,
) -> Result<Bytes, Status> {
    let Some(encoding) = encoding else {
        let why = "its message is compressed, but the header grpc-encoding is missing";
        return Err(undecodable(why));
    };
    if encoding == "gzip" {
        gunzip(compressed, limit)
    } else {
        Err(not_accepted(
            encoding,
            "longrunning does not support this encoding",
        ))
    }
}

fn not_accepted(encoding: &HeaderValue, remedy: impl Display) -> Status {
    undecodable(format!(
        "its message is compressed with {encoding:?}: {remedy}"
    ))
}

#[cfg(not(feature = "gzip"))]
fn gunzip(_: &[u8], _: usize) -> Result<Bytes, Status> {
    let remedy = "enable the feature \"gzip\" of longrunning to decode it";
    Err(not_accepted(&HeaderValue::from_static("gzip"), remedy))
}

#[cfg(feature = "gzip")]
fn gunzip(compressed: &[u8], limit: usize) -> Result<Bytes, Status> {
    use std::io::Read as _;

    let mut message = Vec::new();
    // Reads one byte beyond the limit, to detect a larger message.
    let most = u64::try_from(limit).map_or(u64::MAX, |limit| limit.saturating_add(1));
    flate2::bufread::MultiGzDecoder::new(compressed)
        .take(most)
        .read_to_end(&mut message)
        .map_err(|error| undecodable(format!("its message is not valid gzip: {error}")))?;
    if message.len() > limit {
        return Err(super::answer::too_large(
            format!("more than {limit}"),
            limit,
        ));
    }
    Ok(message.into())
}

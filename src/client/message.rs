//! The message of a unary response: its frame and its
//! [compression](https://github.com/grpc/grpc/blob/master/doc/compression.md).

use std::fmt;

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::{Code, Status};

use crate::{
    status::{Delivery, local, with_delivery},
    transport::Chunks,
};

const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// The message of a response, as it arrives.
pub(super) struct Message {
    chunks: Chunks,
    limit: usize,
}

/// A message that was received completely.
pub(crate) struct Received {
    /// The message, decompressed.
    pub(crate) bytes: Bytes,
    /// The size of the message in bytes, before decompression.
    pub(crate) received_bytes: usize,
}

impl Message {
    /// The Compressed-Flag, and the length of the message.
    const PREFIX: usize = 5;

    pub(super) fn new(limit: usize) -> Self {
        Self {
            chunks: Chunks::default(),
            limit,
        }
    }

    /// Adds data.
    ///
    /// # Errors
    ///
    /// Those after which the rest of the response is not read: the message is larger than the limit, or is
    /// followed by more data. Other errors are returned by [`end`](Self::end), because a status in the
    /// trailers takes precedence.
    pub(super) fn push(&mut self, data: Bytes) -> Result<(), Status> {
        self.chunks.push(data);
        let Some((flag, length)) = self.prefix() else {
            return Ok(());
        };
        if length > self.limit {
            return Err(match flag {
                0 | 1 => too_large(length, self.limit),
                _ => invalid_flag(flag),
            });
        }
        if self.chunks.bytes().len() - Self::PREFIX > length {
            return Err(undecodable(
                "its message is followed by more data, but a unary call has one message",
            ));
        }
        Ok(())
    }

    fn prefix(&self) -> Option<(u8, usize)> {
        let [flag, length @ ..] = self.chunks.bytes().first_chunk::<{ Self::PREFIX }>()?;
        Some((*flag, u32::from_be_bytes(*length) as usize))
    }

    /// Returns the message, once all data has been pushed.
    ///
    /// `headers` are those of the response. Their `grpc-encoding` applies only to a message whose Compressed-Flag is 1,
    /// see [Length-Prefixed-Message](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
    pub(super) fn end(self, headers: &HeaderMap) -> Result<Received, Status> {
        let Some((flag, length)) = self.prefix() else {
            return Err(undecodable(if self.chunks.bytes().is_empty() {
                "it has no message"
            } else {
                "it ended within its message"
            }));
        };
        let mut message = self.chunks.join();
        message.advance(Self::PREFIX);
        if message.len() < length {
            return Err(undecodable("it ended within its message"));
        }
        let bytes = match flag {
            0 => message,
            1 => decompress(headers.get(GRPC_ENCODING), &message, self.limit)?,
            _ => return Err(invalid_flag(flag)),
        };
        Ok(Received {
            bytes,
            received_bytes: length,
        })
    }
}

/// Returns the status of a call whose response cannot be decoded.
pub(super) fn undecodable(why: impl fmt::Display) -> Status {
    let status = local(Code::Internal, format!("cannot read the answer: {why}"));
    with_delivery(status, Delivery::Answered)
}

fn invalid_flag(flag: u8) -> Status {
    undecodable(format!("its Compressed-Flag is {flag}, but must be 0 or 1"))
}

fn too_large(bytes: impl fmt::Display, limit: usize) -> Status {
    let message = format!("the answer is {bytes} bytes: the limit is {limit} bytes");
    with_delivery(local(Code::ResourceExhausted, message), Delivery::Answered)
}

/// Decompresses a message whose Compressed-Flag is 1. `encoding` is the `grpc-encoding` of the response.
///
/// # Errors
///
/// - `INTERNAL`: the encoding is missing, or is not accepted, or the data is invalid.
/// - `RESOURCE_EXHAUSTED`: the decompressed message is larger than the limit.
fn decompress(
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

fn not_accepted(encoding: &HeaderValue, remedy: impl fmt::Display) -> Status {
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
        return Err(too_large(format!("more than {limit}"), limit));
    }
    Ok(message.into())
}

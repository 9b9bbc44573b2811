//! The deadline of a call, which its client sends along.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// Returns the time that a client allows.
pub(super) fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    grpc_timeout(metadata.get("grpc-timeout")?.to_str().ok()?)
}

/// Returns by when the server has to answer, so that the answer comes in time.
pub(super) fn to_answer(timeout: Duration) -> Duration {
    timeout - (timeout / 5).min(LONGEST_MARGIN)
}

/// Reads a timeout as [gRPC over HTTP/2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md)
/// writes it: at most eight digits, and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    if digits.len() > 8 {
        return None;
    }
    let amount = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

const LONGEST_MARGIN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_in_every_unit_and_never_panics() {
        let table = [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("0m", Some(Duration::ZERO)),
            ("5u", Some(Duration::from_micros(5))),
            ("7n", Some(Duration::from_nanos(7))),
            ("100000000S", None),
            ("5", None),
            ("S", None),
            ("", None),
            ("-5S", None),
            ("+5S", None),
            ("5é", None),
            ("5 S", None),
        ];
        for (text, timeout) in table {
            assert_eq!(grpc_timeout(text), timeout, "{text:?}");
        }
    }
}

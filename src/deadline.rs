//! Deadlines, and the header `grpc-timeout`.

mod waited;

use std::{sync::OnceLock, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;
use tonic::{Code, Status};

pub(crate) use self::waited::{Stage, Waited};
use crate::status::{Origin, caused, local};

pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The units of `grpc-timeout`, in nanoseconds, the finest first.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// At most so many digits, see
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests>.
const DIGITS: usize = 8;

/// When a call must have ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    /// Returns the deadline of a call that begins at this instant; `None` if no clock reaches it.
    pub(crate) fn after(timeout: Duration, begin: Instant) -> Option<Self> {
        let at = begin.checked_add(timeout)?;
        Some(Self { at, timeout })
    }

    pub(crate) fn at(&self) -> Instant {
        self.at
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(crate) fn remaining(&self, now: Instant) -> Duration {
        self.at.saturating_duration_since(now)
    }

    pub(crate) fn has_passed(&self, now: Instant) -> bool {
        now >= self.at
    }

    /// Returns whether the deadline has passed for whoever set it. `grpc-timeout` is rounded, so
    /// that the caller's own clock may be up to 1 % ahead of this one.
    pub(crate) fn has_passed_for_caller(&self, now: Instant) -> bool {
        now + self.timeout / 64 + Duration::from_millis(1) >= self.at
    }

    /// Returns this deadline, or another one if that is earlier.
    pub(crate) fn or_earlier(self, at: Option<Instant>) -> Self {
        Self {
            at: at.map_or(self.at, |at| at.min(self.at)),
            ..self
        }
    }

    /// Returns the status of a call that did not end in time.
    pub(crate) fn exceeded(&self, waited: Waited) -> Status {
        let message = format!("no answer within {:?}: {waited}", self.timeout);
        let delivery = waited.delivery();
        caused(
            Code::DeadlineExceeded,
            message,
            Origin::Client,
            delivery,
            waited,
        )
    }
}

/// Reads the timeout that a caller has put into the headers.
///
/// # Errors
///
/// `INVALID_ARGUMENT`: it is not a timeout as gRPC writes it.
pub(crate) fn timeout_in(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else {
        return Ok(None);
    };
    parse(value.as_bytes()).map(Some).ok_or_else(|| {
        local(
            Code::InvalidArgument,
            format!(
                "grpc-timeout {value:?} is not up to {DIGITS} digits and one of H, M, S, m, u, n"
            ),
        )
    })
}

fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let (_, nanos) = UNITS.into_iter().find(|(letter, _)| letter == unit)?;
    if digits.is_empty() || digits.len() > DIGITS {
        return None;
    }
    let mut count = 0;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        count = 10 * count + u64::from(digit);
    }
    // 8 digits of hours are 3.6e20 nanoseconds, more than a `u64` holds.
    Some(
        Duration::from_secs(nanos / 1_000_000_000 * count)
            + Duration::from_nanos(nanos % 1_000_000_000 * count),
    )
}

/// The first `grpc-timeout` of a client, which most of its calls repeat.
#[derive(Debug, Default)]
pub(crate) struct TimeoutCache(OnceLock<(Duration, HeaderValue)>);

impl TimeoutCache {
    /// Returns the `grpc-timeout` for `remaining`, the rest of a call's `timeout`.
    pub(crate) fn value(&self, remaining: Duration, timeout: Duration) -> HeaderValue {
        // Caches the timeout, not the remaining time, because the first call may have waited for a token.
        let (cached, value) = self.0.get_or_init(|| {
            let timeout = rounded_up(timeout);
            (timeout, header_value(timeout))
        });
        let timeout = rounded_up(remaining);
        if *cached == timeout {
            value.clone()
        } else {
            header_value(timeout)
        }
    }
}

/// Rounds to three digits, up by less than 1 %.
///
/// The client's own clock ends the call to the nanosecond. What the server is told is the same for
/// one call and the next, so that HPACK has it in its table, and need not push others out of it.
fn rounded_up(timeout: Duration) -> Duration {
    let Ok(nanos) = u64::try_from(timeout.as_nanos()) else {
        return timeout;
    };
    let unit = 10_u64.pow(nanos.checked_ilog10().unwrap_or(0).saturating_sub(2));
    Duration::from_nanos(nanos.div_ceil(unit).saturating_mul(unit))
}

/// Puts a timeout into the headers. tonic's own setter panics on one of 11,416 years.
pub(crate) fn set(headers: &mut HeaderMap, timeout: Duration) {
    headers.insert(GRPC_TIMEOUT, header_value(timeout));
}

fn header_value(timeout: Duration) -> HeaderValue {
    let mut text = [0; DIGITS + 1];
    let text = grpc_timeout(timeout, &mut text);
    // Cannot fail: digits and a letter.
    HeaderValue::from_bytes(text).unwrap_or(HeaderValue::from_static("0n"))
}

/// Writes a timeout in the finest unit that holds it.
///
/// Rounded up: the server must not end the call before the client does.
fn grpc_timeout(timeout: Duration, text: &mut [u8; DIGITS + 1]) -> &[u8] {
    const MOST: u64 = 10_u64.pow(DIGITS as u32) - 1;
    // More than 584 years are none to count.
    let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
    let mut counts = UNITS
        .into_iter()
        .map(|(letter, unit)| (letter, nanos.div_ceil(unit)));
    let fits = counts.find(|(_, count)| *count <= MOST);
    let (letter, mut count) = fits.unwrap_or((b'H', MOST));
    let mut start = DIGITS;
    text[start] = letter;
    loop {
        start -= 1;
        text[start] = b'0' + (count % 10) as u8;
        count /= 10;
        if count == 0 || start == 0 {
            return &text[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(timeout: Duration) -> String {
        let text = grpc_timeout(timeout, &mut [0; DIGITS + 1]).to_vec();
        String::from_utf8(text).expect("ASCII")
    }

    #[test]
    fn a_timeout_is_written_in_the_finest_unit_that_holds_it() {
        let table = [
            (Duration::ZERO, "0n"),
            (Duration::from_millis(99), "99000000n"),
            (Duration::from_millis(100), "100000u"),
            (Duration::from_secs(10), "10000000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_nanos(100_000_000_001), "100001m"),
            (Duration::MAX, "5124096H"),
        ];
        for (timeout, written) in table {
            assert_eq!(text(timeout), written);
        }
    }

    #[test]
    fn calls_with_the_same_timeout_tell_the_same() {
        for spent in [1, 1_000, 9_000_000] {
            let left = Duration::from_secs(10) - Duration::from_nanos(spent);
            assert_eq!(text(rounded_up(left)), "10000000u");
        }
        assert_eq!(rounded_up(Duration::ZERO), Duration::ZERO);
        assert_eq!(rounded_up(Duration::MAX), Duration::MAX);
    }

    #[test]
    fn the_timeout_of_the_first_call_is_cached_and_not_its_remaining_time() {
        let cache = TimeoutCache::default();
        let timeout = Duration::from_secs(10);
        assert_eq!(cache.value(Duration::from_secs(7), timeout), "7000000u");
        assert_eq!(cache.0.get().expect("it is cached").0, timeout);
        assert_eq!(cache.value(timeout, timeout), "10000000u");
    }

    #[test]
    fn what_is_not_a_timeout_is_refused_by_name() {
        for value in [
            "",
            "1",
            "u",
            "1s",
            "-1S",
            "+1S",
            "123456789S",
            "1.5S",
            "1 S",
            "é",
        ] {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("legal bytes");
            let headers = HeaderMap::from_iter([(GRPC_TIMEOUT, value)]);
            let status = timeout_in(&headers).expect_err("not a timeout");
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().starts_with("grpc-timeout \""), "{status}");
        }
    }

    proptest! {
        #[test]
        fn a_timeout_read_back_is_never_shorter_and_hardly_longer(nanos in 0..u64::MAX) {
            let timeout = Duration::from_nanos(nanos);
            let read = parse(text(timeout).as_bytes()).expect("what is written can be read");
            prop_assert!(read >= timeout);
            prop_assert!(read - timeout <= timeout / 1_000_000);
        }

        #[test]
        fn what_the_server_is_told_is_never_shorter_and_hardly_longer(nanos: u64) {
            let timeout = Duration::from_nanos(nanos);
            let told = rounded_up(timeout);
            prop_assert!(told >= timeout);
            prop_assert!(told - timeout <= timeout / 100);
        }

        #[test]
        fn no_text_panics(value: String) {
            let _ = parse(value.as_bytes());
        }
    }
}

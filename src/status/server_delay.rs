//! The retry delay that a server asks for.

use std::time::Duration;

use tonic::Status;

use super::CallStatusExt as _;
use crate::proto::{duration, rpc::RetryInfo};

/// The retry delay that the status of a failed attempt asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ServerDelay {
    /// The pushback is negative or unreadable: do not retry.
    NoRetry,
    /// The delay of `grpc-retry-pushback-ms`.
    Exactly(Duration),
    /// The delay of a `RetryInfo`, which may be zero.
    AtLeast(Duration),
}

impl ServerDelay {
    /// Reads the [pushback of gRFC A6], or else the `RetryInfo` in the details.
    ///
    /// [pushback of gRFC A6]: https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
    pub(crate) fn of(status: &Status) -> Option<Self> {
        let mut pushbacks = status.metadata().get_all("grpc-retry-pushback-ms").iter();
        if let Some(pushback) = pushbacks.next() {
            let text = pushback
                .to_str()
                .ok()
                .filter(|_| pushbacks.next().is_none());
            // The value is defined as a signed 32-bit integer.
            let millis = text.and_then(|text| text.parse::<i32>().ok());
            let millis = millis.and_then(|millis| u64::try_from(millis).ok());
            return Some(millis.map_or(Self::NoRetry, |millis| {
                Self::Exactly(Duration::from_millis(millis))
            }));
        }
        let delay = status
            .detail::<RetryInfo>()?
            .retry_delay
            .unwrap_or_default();
        // Capped, so that jitter cannot overflow.
        let delay = duration(delay)?.min(Duration::from_secs(1 << 32));
        Some(Self::AtLeast(delay))
    }

    /// Returns a delay before the next poll, or a longer one that the server requested.
    pub(crate) fn at_least(delay: Duration, status: &Status) -> Duration {
        let requested = match Self::of(status) {
            Some(Self::Exactly(requested)) => requested.min(MAX_DELAY),
            // The server may have sent the same delay to many clients.
            Some(Self::AtLeast(requested)) => {
                let requested = requested.min(MAX_DELAY);
                requested.mul_f64(1.0 + 0.2 * fastrand::f64())
            }
            Some(Self::NoRetry) | None => Duration::ZERO,
        };
        delay.max(requested)
    }
}

/// The maximum delay between two polls that a server can request. A longer one is probably a mistake, and would end the
/// polling.
const MAX_DELAY: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::Any;
    use tonic::Code;

    use super::*;
    use crate::proto::rpc;

    fn with_retry_info(seconds: i64, nanos: i32) -> Status {
        let info = RetryInfo {
            retry_delay: Some(prost_types::Duration { seconds, nanos }),
        };
        let status = rpc::Status {
            code: 14,
            details: vec![Any::from_msg(&info).expect("it encodes")],
            ..rpc::Status::default()
        };
        Status::with_details(Code::Unavailable, "", status.encode_to_vec().into())
    }

    #[test]
    fn a_retry_info_is_a_minimum() {
        let at_least = |delay| Some(ServerDelay::AtLeast(delay));
        let table = [
            ((3, 0), at_least(Duration::from_secs(3))),
            ((0, 1_000_000), at_least(Duration::from_millis(1))),
            ((i64::MAX, 0), at_least(Duration::from_secs(1 << 32))),
            ((0, 0), at_least(Duration::ZERO)),
            ((-1, 0), None),
        ];
        for ((seconds, nanos), expected) in table {
            let status = with_retry_info(seconds, nanos);
            assert_eq!(ServerDelay::of(&status), expected, "{seconds} {nanos}");
        }
        assert_eq!(ServerDelay::of(&Status::unavailable("down")), None);
    }

    #[test]
    fn a_pushback_takes_precedence_over_a_retry_info() {
        let exactly = |millis| ServerDelay::Exactly(Duration::from_millis(millis));
        let table = [
            ("0", exactly(0)),
            ("2147483647", exactly(2_147_483_647)),
            ("2147483648", ServerDelay::NoRetry),
            ("-1", ServerDelay::NoRetry),
            ("-2147483649", ServerDelay::NoRetry),
            ("", ServerDelay::NoRetry),
            ("1 ", ServerDelay::NoRetry),
            ("1s", ServerDelay::NoRetry),
        ];
        for (pushback, expected) in table {
            let mut status = with_retry_info(60, 0);
            let value = pushback.parse().expect("ASCII");
            let metadata = status.metadata_mut();
            metadata.insert("grpc-retry-pushback-ms", value);
            assert_eq!(ServerDelay::of(&status), Some(expected), "{pushback:?}");
            let second = "1".parse().expect("ASCII");
            status
                .metadata_mut()
                .append("grpc-retry-pushback-ms", second);
            let two_values = Some(ServerDelay::NoRetry);
            assert_eq!(ServerDelay::of(&status), two_values, "{pushback:?}");
        }
    }
}

//! Exponential backoff.

use std::time::Duration;

/// Delays that grow by a factor up to a maximum, each with 20 % of jitter either way, as
/// [gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md) defines them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Backoff {
    pub(crate) initial: Duration,
    pub(crate) multiplier: f64,
    pub(crate) maximum: Duration,
}

impl Backoff {
    /// The delay after so many earlier ones. `random` is from 0 to 1.
    pub(crate) fn delay(&self, earlier: u32, random: f64) -> Duration {
        let exponent = i32::try_from(earlier).unwrap_or(i32::MAX);
        let factor = self.multiplier.powi(exponent);
        // Out of range is what has grown beyond all bounds.
        let delay = Duration::try_from_secs_f64(self.initial.as_secs_f64() * factor)
            .unwrap_or(self.maximum)
            .min(self.maximum);
        part(delay, 0.8 + 0.4 * random)
    }

    /// Returns a delay with full jitter: a random part of the backoff after `earlier` previous
    /// delays, so that clients that fail at the same time do not retry at the same time. `random` is
    /// from 0 to 1.
    pub(crate) fn full_jitter(&self, earlier: u32, random: f64) -> Duration {
        part(self.delay(earlier, 0.5), random)
    }
}

fn part(delay: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(delay.as_secs_f64() * factor).unwrap_or(delay)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn delays_grow_by_the_factor_up_to_the_maximum() {
        let backoff = Backoff {
            initial: SECOND,
            multiplier: 1.5,
            maximum: 20 * SECOND,
        };
        let table = [
            (0, 1.0),
            (1, 1.5),
            (2, 2.25),
            (7, 17.0859375),
            (8, 20.0),
            (10_000, 20.0),
            (u32::MAX, 20.0),
        ];
        for (earlier, seconds) in table {
            let delay = backoff.delay(earlier, 0.5).as_secs_f64();
            assert!((delay - seconds).abs() < 1e-6, "{earlier}: {delay}");
        }
    }

    #[test]
    fn jitter_is_20_percent_either_way() {
        let backoff = Backoff {
            initial: 10 * SECOND,
            multiplier: 2.0,
            maximum: 10 * SECOND,
        };
        let near =
            |random, seconds: f64| (backoff.delay(3, random).as_secs_f64() - seconds).abs() < 1e-6;
        assert!(near(0.0, 8.0) && near(0.5, 10.0) && near(1.0, 12.0));
    }

    #[test]
    fn full_jitter_is_a_part_of_the_delay() {
        let backoff = Backoff {
            initial: 10 * SECOND,
            multiplier: 2.0,
            maximum: 30 * SECOND,
        };
        for (earlier, seconds) in [(0, 10.0), (1, 20.0), (2, 30.0), (u32::MAX, 30.0)] {
            for random in [0.0, 0.25, 1.0] {
                let delay = backoff.full_jitter(earlier, random).as_secs_f64();
                assert!(
                    (delay - seconds * random).abs() < 1e-6,
                    "{earlier}: {delay}"
                );
            }
        }
    }

    #[test]
    fn no_numbers_panic() {
        for multiplier in [0.0, 1.0, 2.0, -1.0, f64::MAX, f64::INFINITY, f64::NAN] {
            for initial in [Duration::ZERO, SECOND, Duration::MAX] {
                for maximum in [Duration::ZERO, SECOND, Duration::MAX] {
                    let backoff = Backoff {
                        initial,
                        multiplier,
                        maximum,
                    };
                    for earlier in [0, 1, u32::MAX] {
                        let _ = backoff.delay(earlier, 1.0);
                        let _ = backoff.full_jitter(earlier, 1.0);
                    }
                }
            }
        }
    }
}

//! Rate that grows and decreases like the congestion window of CUBIC.

/// A rate in calls per second that approaches an unknown limit.
///
/// Until the first rejection, the rate doubles every 0.3 seconds. A rejection multiplies it by about 0.7. It then follows
/// the cubic function of [RFC 9438](https://www.rfc-editor.org/rfc/rfc9438#section-4.2): it recovers quickly to
/// just below the rejected rate, stays near it, and then probes for a higher limit, slowly at first. With a linear increase, the rate would be 15 % below the limit on average.
///
/// Unlike in CUBIC, the time to reach the plateau is fixed, and the size of the decrease and of the growth is
/// proportional to the rate, so that a limit of 5,000 is approached as fast as a limit of 500. Time advances only when a
/// call is accepted, by the interval between two calls at the current rate. The rate therefore grows only while calls are
/// accepted, and more slowly at a high latency.
#[derive(Debug)]
pub(super) struct CubicRate {
    /// The rate at which growth flattens, just below the rate that was last rejected. `None` before the first rejection.
    plateau: Option<f64>,
    /// The growth time since the start or the last decrease, in seconds.
    growth_time: f64,
    max: f64,
}

impl CubicRate {
    /// `max` is the maximum rate.
    pub(super) fn new(max: f64) -> Self {
        Self {
            plateau: None,
            growth_time: 0.0,
            max: if max.is_nan() {
                MIN_RATE
            } else {
                max.clamp(MIN_RATE, MAX_RATE)
            },
        }
    }

    pub(super) fn current(&self) -> f64 {
        let rate = match self.plateau {
            None => INITIAL_RATE * (self.growth_time / DOUBLING_TIME).exp2(),
            Some(plateau) => {
                let x = self.growth_time / TIME_TO_PLATEAU - 1.0;
                plateau * (1.0 + DEPTH * x.powi(3))
            }
        };
        rate.clamp(MIN_RATE, self.max)
    }

    /// Increases the rate after one accepted call.
    pub(super) fn grow(&mut self) {
        self.growth_time += 1.0 / self.current();
    }

    /// Decreases the rate after the server rejected a call that was sent at the rate `rejected`.
    ///
    /// The new rate is derived from that rate, not from the current one, which may have grown further during a long
    /// round trip.
    pub(super) fn decrease(&mut self, rejected: f64) {
        self.plateau = Some(0.97 * rejected);
        self.growth_time = 0.0;
    }
}

/// The rate at the start, in calls per second. It is high enough to reach 5,000 calls per second within 2 seconds even if a round
/// trip takes half a second.
const INITIAL_RATE: f64 = 1_900.0;
const MIN_RATE: f64 = 1.0;
/// Higher than any rate that a client can reach. Keeps the rate finite.
const MAX_RATE: f64 = 1e6;

/// The time in which the rate doubles before the first rejection, in seconds.
const DOUBLING_TIME: f64 = 0.3;
/// The time from a decrease to the plateau, in seconds.
const TIME_TO_PLATEAU: f64 = 2.2;
/// The decrease below the plateau, as a fraction of the plateau.
const DEPTH: f64 = 0.3;

#[cfg(test)]
mod tests {
    use super::*;

    /// Accepts calls for the given number of seconds.
    fn accept(rate: &mut CubicRate, seconds: f64) {
        let mut time = 0.0;
        while time < seconds {
            time += 1.0 / rate.current();
            rate.grow();
        }
    }

    fn assert_near(rate: &CubicRate, expected: f64) {
        let current = rate.current();
        let difference = (current - expected).abs();
        assert!(
            difference < 0.01 * expected,
            "expected {expected}, got {current}"
        );
    }

    #[test]
    fn before_the_first_rejection_the_rate_doubles_every_300_ms() {
        let mut rate = CubicRate::new(MAX_RATE);
        assert_near(&rate, 1_900.0);
        for expected in [3_800.0, 7_600.0, 15_200.0] {
            accept(&mut rate, 0.3);
            assert_near(&rate, expected);
        }
    }

    #[test]
    fn after_a_rejection_the_rate_recovers_and_then_probes_for_a_higher_limit() {
        let mut rate = CubicRate::new(MAX_RATE);
        rate.decrease(1_000.0);
        assert_near(&rate, 679.0);
        for expected in [922.9, 969.8, 983.9, 1_133.6] {
            accept(&mut rate, 1.0);
            assert_near(&rate, expected);
        }
    }

    #[test]
    fn the_rate_stays_within_bounds() {
        let mut rate = CubicRate::new(MAX_RATE);
        accept(&mut rate, 5.0);
        for _ in 0..1_000 {
            rate.grow();
        }
        assert!(rate.current() <= MAX_RATE);
        rate.decrease(0.5);
        assert_near(&rate, MIN_RATE);

        let mut rate = CubicRate::new(100.0);
        accept(&mut rate, 5.0);
        assert_near(&rate, 100.0);
        for invalid in [0.0, -1.0, f64::NAN] {
            assert_near(&CubicRate::new(invalid), MIN_RATE);
        }
    }
}

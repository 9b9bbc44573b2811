//! Points in time on the monotonic and the system clock.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A point in time on two clocks. It has passed as soon as either clock has reached it.
///
/// The monotonic clock does not advance while the machine sleeps, and the system clock can be set back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expiry {
    /// `None` is later than the clock can express.
    instant: Option<Instant>,
    system: Option<SystemTime>,
}

impl Expiry {
    pub(crate) fn now() -> Self {
        Self {
            instant: Some(Instant::now()),
            system: Some(system_time()),
        }
    }

    /// Returns the point in time that is this much later.
    pub(crate) fn later_by(self, duration: Duration) -> Self {
        Self {
            instant: self.instant.and_then(|at| at.checked_add(duration)),
            system: self.system.and_then(|at| at.checked_add(duration)),
        }
    }

    pub(crate) fn at(instant: Instant) -> Self {
        let remaining = instant.saturating_duration_since(Instant::now());
        Self {
            instant: Some(instant),
            ..Self::now().later_by(remaining)
        }
    }

    pub(crate) fn at_system_time(time: SystemTime) -> Self {
        let remaining = time.duration_since(system_time()).unwrap_or_default();
        Self {
            system: Some(time),
            ..Self::now().later_by(remaining)
        }
    }

    /// Returns the time on the system clock.
    pub(crate) fn system_time(self) -> Option<SystemTime> {
        self.system
    }

    pub(crate) fn has_passed(self) -> bool {
        self.instant.is_some_and(|at| at <= Instant::now())
            || self.system.is_some_and(|at| at <= system_time())
    }

    pub(crate) fn remaining(self) -> Duration {
        let instant = self
            .instant
            .map(|at| at.saturating_duration_since(Instant::now()));
        let now = system_time();
        let system = self
            .system
            .map(|at| at.duration_since(now).unwrap_or_default());
        match (instant, system) {
            (Some(instant), Some(system)) => instant.min(system),
            (instant, system) => instant.or(system).unwrap_or(Duration::MAX),
        }
    }
}

#[cfg(not(test))]
fn system_time() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
pub(crate) use self::tests::{sleep_machine, system_time};

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    thread_local! {
        static SLEPT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    pub(crate) fn system_time() -> SystemTime {
        SystemTime::now() + SLEPT.get()
    }

    /// Lets the machine sleep: the system clock advances, and the monotonic one does not.
    pub(crate) fn sleep_machine(time: Duration) {
        SLEPT.set(SLEPT.get() + time);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_has_expired_once_it_has_on_either_clock() {
        let table = [
            (Expiry::now().later_by(HOUR), false),
            (Expiry::now().later_by(2 * HOUR), false),
            (Expiry::at(Instant::now() + HOUR), false),
            (Expiry::at_system_time(system_time() + HOUR), false),
            (Expiry::now(), true),
            (Expiry::at(Instant::now()), true),
            (Expiry::at_system_time(system_time() - HOUR), true),
        ];
        for (expiry, has_passed) in table {
            assert_eq!(expiry.has_passed(), has_passed, "{expiry:?}");
            assert_eq!(expiry.remaining().is_zero(), has_passed, "{expiry:?}");
        }
        sleep_machine(HOUR);
        for (n, (expiry, _)) in table.into_iter().enumerate() {
            assert_eq!(expiry.has_passed(), n != 1, "{expiry:?}");
        }
        tokio::time::advance(2 * HOUR).await;
        assert!(table[1].0.has_passed());
    }

    #[test]
    fn a_time_that_no_clock_can_express_never_passes() {
        let expiry = Expiry::now().later_by(Duration::MAX);
        assert!(!expiry.has_passed());
        assert_eq!(expiry.remaining(), Duration::MAX);
        assert_eq!((expiry.instant, expiry.system), (None, None));
    }
}

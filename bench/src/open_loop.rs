//! Open-loop load: calls start at a fixed rate, whether or not earlier calls have ended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::{
    Result,
    plan::{Length, Plan},
    record::Record,
    variants::{OPERATIONS, Variant},
};

/// Calls that become due during this time are not counted.
const WARM_UP: Duration = Duration::from_millis(500);

/// Returns the number of calls per second that became due, and of those the calls that succeeded before their deadline,
/// failed before it, or were late. A call's deadline is the timeout after it becomes due, as in a server that propagates
/// the deadline of the request that it handles.
///
/// The number of calls in flight is not limited.
pub(crate) async fn measure<V: Variant>(variant: &V, plan: &Plan) -> Result<Record> {
    let Length::Time(time) = plan.length else {
        return Err(
            "`offered` cannot be combined with `calls`, `bulk` or `memory`: use `millis`".into(),
        );
    };
    let timeout = plan.timeout;
    let rate = plan.offered as f64;
    let first = (rate * WARM_UP.as_secs_f64()) as usize;
    let end = (rate * (WARM_UP + time).as_secs_f64()) as usize;
    let start = Instant::now();
    let due_at = |number| start + Duration::from_secs_f64(number as f64 / rate);
    let counts = Arc::<Counts>::default();
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut next = 0;
    while next < end {
        ticks.tick().await;
        // Not the time of the tick, which may be earlier.
        let now = Instant::now();
        while next < end && due_at(next) <= now {
            let (variant, counts, due) = (variant.clone(), counts.clone(), due_at(next));
            let name = &OPERATIONS[next % OPERATIONS.len()];
            let is_counted = next >= first;
            tokio::spawn(async move {
                let outcome = Outcome::of_call(variant, name, due, timeout).await;
                if is_counted {
                    counts.add(outcome);
                }
            });
            next += 1;
        }
    }
    sleep_until(due_at(end) + timeout).await;
    let (good, refused) = (counts.good.load(Relaxed), counts.refused.load(Relaxed));
    let mut record = Record::default();
    // The calls that are still in flight are late.
    for (key, calls) in [
        ("offered", end - first),
        ("goodput", good),
        ("refused", refused),
        ("late", end - first - good - refused),
    ] {
        record.set(key, calls as f64 / time.as_secs_f64());
    }
    Ok(record)
}

#[derive(Default)]
struct Counts {
    good: AtomicUsize,
    refused: AtomicUsize,
}

impl Counts {
    fn add(&self, outcome: Outcome) {
        match outcome {
            Outcome::Good => self.good.fetch_add(1, Relaxed),
            Outcome::Refused => self.refused.fetch_add(1, Relaxed),
            Outcome::Late => 0,
        };
    }
}

enum Outcome {
    /// The call succeeded before its deadline.
    Good,
    /// The call failed before its deadline.
    Refused,
    /// The deadline passed, possibly before the task of the call was first polled.
    Late,
}

impl Outcome {
    async fn of_call<V: Variant>(
        mut variant: V,
        name: &'static str,
        due: Instant,
        timeout: Duration,
    ) -> Self {
        let Some(remaining) = timeout.checked_sub(due.elapsed()) else {
            return Self::Late;
        };
        let result = variant.cancel_within(name, remaining).await;
        let in_time = due.elapsed() < timeout;
        match result {
            Ok(()) if in_time => Self::Good,
            Err(_) if in_time => Self::Refused,
            _ => Self::Late,
        }
    }
}

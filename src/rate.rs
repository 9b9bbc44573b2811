//! Rate limiter that adapts to the quota of a server.

mod cubic;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tonic::Status;

use self::cubic::CubicRate;
use crate::{
    status::{CallStatusExt as _, Delivery, is_quota_rejection, is_transient},
    trace,
};

/// A token bucket whose rate adapts to a quota, shared by all calls that count against it.
///
/// The caller reports for each call whether the server rejected it because its quota was exceeded. The rate grows while
/// calls are accepted, and decreases when more than a few are rejected, at most once per round trip: only calls that
/// were sent after the previous decrease count. The latency of calls is not measured.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// Held by the first caller in the queue while it waits for a token. The lock is fair (FIFO).
    turn: tokio::sync::Mutex<()>,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    rate: CubicRate,
    /// When the next token is available. `None` before the first call.
    next: Option<Instant>,
    decreased_at: Option<Instant>,
    /// The share of rejected calls since the last decrease, as a moving average.
    rejected_share: f64,
}

/// A permit to send one call.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(crate) struct Permit {
    sent_at: Instant,
    /// The rate at which the call is sent, in calls per second.
    rate: f64,
    /// Whether the limiter limits the calls. If the caller sends fewer calls than the limiter permits, accepted calls
    /// do not justify a higher rate.
    is_rate_limited: bool,
}

impl RateLimiter {
    /// Creates a limiter with a maximum rate in calls per second.
    pub(crate) fn new(max_rate: f64) -> Self {
        Self {
            turn: tokio::sync::Mutex::default(),
            bucket: Mutex::new(Bucket {
                rate: CubicRate::new(max_rate),
                next: None,
                decreased_at: None,
                rejected_share: 0.0,
            }),
        }
    }

    /// Waits until the next call may be sent.
    ///
    /// Permits are granted in FIFO order. This method is cancel safe, but a dropped future loses its place in the
    /// queue.
    pub(crate) async fn acquire(&self) -> Permit {
        let requested_at = Instant::now();
        let _turn = self.turn.lock().await;
        loop {
            let now = Instant::now();
            let next = match self.bucket().take(now) {
                Ok(rate) => {
                    let waited = now.saturating_duration_since(requested_at);
                    return Permit {
                        sent_at: now,
                        rate,
                        is_rate_limited: waited >= MIN_WAIT,
                    };
                }
                Err(next) => next,
            };
            sleep_until(next).await;
        }
    }

    /// Records the result of a call. `earlier_rejections` is the number of consecutive rejections of the same operation
    /// before this call.
    ///
    /// Transient failures other than quota rejections, and failures without a response, are ignored.
    pub(crate) fn record<T>(
        &self,
        permit: Permit,
        result: &Result<T, Status>,
        earlier_rejections: u32,
    ) {
        match result {
            Err(status) if status.attempts().is_none() => {} // no attempt was made
            Err(status) if is_quota_rejection(status) => {
                if earlier_rejections < MAX_COUNTED_REJECTIONS {
                    self.rejected(permit);
                }
            }
            Err(status)
                if is_transient(status) || status.delivery() != Some(Delivery::Answered) => {}
            _ => self.accepted(permit),
        }
    }

    /// Records that the server did not reject a call because of its quota.
    fn accepted(&self, permit: Permit) {
        self.bucket().accepted(permit);
    }

    /// Records that the server rejected a call because of its quota.
    fn rejected(&self, permit: Permit) {
        let decreased = self.bucket().rejected(permit, Instant::now());
        if let Some(rate) = decreased {
            trace::rate_decreased(rate);
        }
    }

    /// Returns the current rate in calls per second.
    pub(crate) fn rate(&self) -> f64 {
        self.bucket().rate.current()
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    /// Takes a token and returns the current rate, or returns the time at which the next token is available.
    fn take(&mut self, now: Instant) -> Result<f64, Instant> {
        let next = self.next.unwrap_or(now);
        if next > now {
            return Err(next);
        }
        let full = now.checked_sub(CAPACITY).unwrap_or(now);
        let rate = self.rate.current();
        self.next = Some(next.max(full) + Duration::from_secs_f64(1.0 / rate));
        Ok(rate)
    }

    fn accepted(&mut self, permit: Permit) {
        self.add_to_share(permit, 0.0);
        let is_current = self.decreased_at.is_none_or(|at| permit.sent_at >= at);
        if is_current && permit.is_rate_limited {
            self.rate.grow();
        }
    }

    /// Returns the new rate if the rate was decreased.
    fn rejected(&mut self, permit: Permit, now: Instant) -> Option<f64> {
        let is_current = self.add_to_share(permit, 1.0);
        let is_due = |at: Instant| now >= at + MIN_DECREASE_INTERVAL;
        let is_due = self.decreased_at.is_none_or(is_due);
        if !is_current || !is_due || self.rejected_share < MIN_REJECTED_SHARE {
            return None;
        }
        self.decreased_at = Some(now);
        self.rejected_share = 0.0;
        self.rate.decrease(permit.rate);
        Some(self.rate.current())
    }

    /// Adds a call to the share of rejected calls, unless it was sent before the last decrease took effect. Returns
    /// whether it was added.
    fn add_to_share(&mut self, permit: Permit, rejected: f64) -> bool {
        let has_settled = |at: Instant| permit.sent_at >= at + SETTLING_TIME;
        let is_current = self.decreased_at.is_none_or(has_settled);
        if is_current {
            let calls = (AVERAGING_TIME * self.rate.current()).max(MIN_AVERAGED_CALLS);
            self.rejected_share += (rejected - self.rejected_share) / calls;
        }
        is_current
    }
}

/// The number of consecutive rejections of an operation that count. An operation that is rejected more often is
/// probably rejected for another reason than the rate.
const MAX_COUNTED_REJECTIONS: u32 = 3;

/// The capacity of the bucket, expressed as the time that it takes to fill. It compensates for late timers and
/// scheduling delays.
const CAPACITY: Duration = Duration::from_millis(50);

/// A call that waits at least this long was delayed by the limiter and not by the scheduler.
const MIN_WAIT: Duration = Duration::from_micros(500);

/// The share of rejected calls at which the rate decreases. If the quota is exceeded, the share grows until then. A
/// smaller share has another cause, such as one of many servers that is overloaded.
const MIN_REJECTED_SHARE: f64 = 0.02;

/// The time over which the share is averaged, in seconds.
const AVERAGING_TIME: f64 = 0.1;

/// The minimum number of calls over which the share is averaged.
const MIN_AVERAGED_CALLS: f64 = 100.0;

/// Rejections of calls that were sent within this time after a decrease are ignored: the server's token bucket is still
/// empty, so it may reject calls although the new rate is below its limit.
const SETTLING_TIME: Duration = Duration::from_millis(50);

/// The minimum time between two decreases. A server that counts calls in windows of one second rejects all calls at the
/// end of a window. With a short round trip, a small excess would otherwise decrease the rate many times.
const MIN_DECREASE_INTERVAL: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_idle_limiter_does_not_accumulate_tokens_beyond_its_capacity() {
        let limiter = RateLimiter::new(f64::INFINITY);
        tokio::time::advance(Duration::from_secs(3600)).await;
        let begun = Instant::now();
        for _ in 0..1_000 {
            let _ = limiter.acquire().await;
        }
        let rate = limiter.rate();
        let least = Duration::from_secs_f64(999.0 / rate).saturating_sub(CAPACITY);
        assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_does_not_grow_while_calls_are_sent_below_it() {
        let limiter = RateLimiter::new(f64::INFINITY);
        let initial = limiter.rate();
        for _ in 0..1_000 {
            tokio::time::sleep(Duration::from_millis(60)).await;
            let permit = limiter.acquire().await;
            limiter.accepted(permit);
        }
        assert_eq!(limiter.rate(), initial);
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_decreases_once_per_round_trip() {
        let limiter = RateLimiter::new(f64::INFINITY);
        let initial = limiter.rate();
        let mut sent = Vec::new();
        for _ in 0..100 {
            sent.push(limiter.acquire().await);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for permit in sent {
            limiter.rejected(permit);
        }
        let once = limiter.rate();
        assert!((0.65 * initial..0.75 * initial).contains(&once), "{once}");
        tokio::time::sleep(SETTLING_TIME).await;
        let mut sent = Vec::new();
        for _ in 0..100 {
            sent.push(limiter.acquire().await);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for permit in sent {
            limiter.rejected(permit);
        }
        let twice = limiter.rate();
        assert!((0.65 * once..0.75 * once).contains(&twice), "{twice}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_share_of_rejected_calls_does_not_decrease_the_rate() {
        let limiter = RateLimiter::new(f64::INFINITY);
        let initial = limiter.rate();
        for call in 0..10_000 {
            let permit = limiter.acquire().await;
            match call % 100 {
                0 => limiter.rejected(permit),
                _ => limiter.accepted(permit),
            }
        }
        assert!(limiter.rate() >= initial, "{}", limiter.rate());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_acquire_does_not_block_other_callers() {
        let limiter = RateLimiter::new(f64::INFINITY);
        for _ in 0..10 {
            let _ = limiter.acquire().await;
        }
        {
            let mut first = std::pin::pin!(limiter.acquire());
            let mut second = std::pin::pin!(limiter.acquire());
            tokio::select! {
                biased;
                _ = &mut first => panic!("no token is available"),
                _ = &mut second => panic!("no token is available"),
                () = std::future::ready(()) => {}
            }
        }
        let _ = limiter.acquire().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_never_less_than_the_minimum() {
        let limiter = RateLimiter::new(f64::INFINITY);
        for _ in 0..100 {
            let permit = limiter.acquire().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            limiter.rejected(permit);
            tokio::time::sleep(SETTLING_TIME).await;
        }
        assert!((limiter.rate() - 1.0).abs() < 1e-9, "{}", limiter.rate());
    }
}

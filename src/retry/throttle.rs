//! Retry throttling by tokens, as in gRFC A6.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::trace;

/// The state of a [retry throttle](crate::RetryPolicy::throttle).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ThrottleStats {
    /// The number of tokens left. Failed calls are retried only while it is more than half of `max_tokens`.
    pub tokens: f64,
    /// The maximum number of tokens.
    pub max_tokens: f64,
    /// Whether retries are suspended.
    pub is_throttling: bool,
    /// The number of retries that were not made because retries were suspended.
    pub suppressed_retries: u64,
}

/// The settings of a throttle, in thousandths of a token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    max: u32,
    /// The tokens that a successful call adds.
    success: u32,
}

impl Limits {
    pub(crate) const fn new(max_tokens: usize, token_ratio: f64) -> Self {
        let max = if max_tokens > 1_000 {
            1_000
        } else {
            max_tokens as u32
        };
        let max = if max == 0 { THOUSAND } else { max * THOUSAND };
        // As in gRFC A6, decimal places beyond the third are ignored. The cast saturates, and turns
        // NaN into 0.
        let success = (token_ratio * THOUSAND as f64) as u32;
        let success = if success == 0 { 1 } else { success };
        Self {
            max,
            success: if success > max { max } else { success },
        }
    }
}

const THOUSAND: u32 = 1_000;

/// The tokens that are left, in thousandths.
#[derive(Debug)]
pub(crate) struct Throttle {
    tokens: AtomicU32,
    limits: Limits,
    suppressed: AtomicU64,
}

impl Throttle {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            tokens: AtomicU32::new(limits.max),
            limits,
            suppressed: AtomicU64::new(0),
        }
    }

    pub(crate) fn stats(&self) -> ThrottleStats {
        let tokens = self.tokens.load(Ordering::Relaxed);
        ThrottleStats {
            tokens: f64::from(tokens) / f64::from(THOUSAND),
            max_tokens: f64::from(self.limits.max) / f64::from(THOUSAND),
            is_throttling: !self.allows_retry(tokens),
            suppressed_retries: self.suppressed.load(Ordering::Relaxed),
        }
    }

    /// Counts a retry that was not made.
    pub(crate) fn suppressed(&self) {
        self.suppressed.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a token. Returns whether enough are left for a retry.
    pub(crate) fn failed(&self) -> bool {
        self.update(|tokens| Some(tokens.saturating_sub(THOUSAND)))
    }

    /// Adds the tokens of a successful call.
    pub(crate) fn succeeded(&self) {
        let Limits { max, success } = self.limits;
        // Usually all tokens are left: then there is no write, for which all cores would compete.
        self.update(|tokens| (tokens < max).then(|| max.min(tokens + success)));
    }

    /// Changes the number of tokens. Returns whether enough are left for a retry.
    fn update(&self, change: impl Fn(u32) -> Option<u32>) -> bool {
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        let (before, after) = match self.tokens.fetch_update(success, failure, &change) {
            Ok(before) => (before, change(before).unwrap_or(before)),
            Err(unchanged) => (unchanged, unchanged),
        };
        match (self.allows_retry(before), self.allows_retry(after)) {
            (true, false) => trace::throttle_started(),
            (false, true) => trace::throttle_stopped(),
            _ => {}
        }
        self.allows_retry(after)
    }

    fn allows_retry(&self, tokens: u32) -> bool {
        tokens > self.limits.max / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_end_when_half_of_the_tokens_are_left() {
        let throttle = Throttle::new(Limits::new(100, 0.1));
        for failure in 1..50 {
            assert!(throttle.failed(), "{failure}");
        }
        assert!(!throttle.failed(), "50 are left");
        for _ in 0..10 {
            throttle.succeeded();
        }
        assert!(!throttle.failed(), "50 are left");
        for _ in 0..11 {
            throttle.succeeded();
        }
        assert!(throttle.failed(), "50.1 are left");
        for _ in 0..100 {
            throttle.failed();
        }
        for _ in 0..2_000 {
            throttle.succeeded();
        }
        assert_eq!(throttle.tokens.into_inner(), 100_000);
    }

    #[test]
    fn settings_are_clamped() {
        let table = [
            ((0, 1.0), (1_000, 1_000)),
            ((1, 0.1), (1_000, 100)),
            ((1_001, 0.1), (1_000_000, 100)),
            ((usize::MAX, 0.1), (1_000_000, 100)),
            ((10, 0.0), (10_000, 1)),
            ((10, -1.0), (10_000, 1)),
            ((10, f64::NAN), (10_000, 1)),
            ((10, 0.0019), (10_000, 1)),
            ((10, f64::INFINITY), (10_000, 10_000)),
        ];
        for ((max_tokens, token_ratio), (max, success)) in table {
            let limits = Limits::new(max_tokens, token_ratio);
            let found = (limits.max, limits.success);
            assert_eq!(found, (max, success), "{max_tokens} {token_ratio}");
        }
    }
}

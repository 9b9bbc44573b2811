//! The tokens that keep retries from adding to an outage.

use std::sync::atomic::{AtomicU32, Ordering};

/// The tokens of gRFC A6, in thousandths.
#[derive(Debug)]
pub(crate) struct Throttle(AtomicU32);

impl Default for Throttle {
    fn default() -> Self {
        Self(AtomicU32::new(Self::MOST))
    }
}

impl Throttle {
    const MOST: u32 = 100_000;
    const FAILURE: u32 = 1_000;
    const SUCCESS: u32 = 100;

    /// Takes a token; returns whether there are enough to make the call again.
    pub(crate) fn failed(&self) -> bool {
        let less = |tokens: u32| Some(tokens.saturating_sub(Self::FAILURE));
        self.update(less) > Self::MOST / 2
    }

    pub(crate) fn succeeded(&self) {
        // Commonly there is nothing to add: then nothing is written that all cores share.
        self.update(|tokens| (tokens < Self::MOST).then(|| Self::MOST.min(tokens + Self::SUCCESS)));
    }

    fn update(&self, change: impl Fn(u32) -> Option<u32>) -> u32 {
        let Self(tokens) = self;
        match tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, &change) {
            Ok(before) => change(before).unwrap_or(before),
            Err(unchanged) => unchanged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_tokens_are_kept() {
        let throttle = Throttle::default();
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
        assert_eq!(throttle.0.into_inner(), Throttle::MOST);
    }
}

//! Detection of repeated page tokens.

/// Detects page tokens that repeat in a cycle of any length, and stores only one of them, with Brent's algorithm.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    stored: String,
    since: u64,
    until: u64,
}

impl Tokens {
    /// Returns whether a token is a repetition of an earlier one.
    pub(crate) fn is_repeated(&mut self, token: &str) -> bool {
        if token == self.stored {
            return true;
        }
        self.since += 1;
        if self.since > self.until {
            self.until = 2 * self.since;
            self.since = 0;
            token.clone_into(&mut self.stored);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_of_tokens_is_detected() {
        for (before, cycle) in [(0, 1), (0, 2), (5, 1), (3, 7), (100, 1_000)] {
            let mut tokens = Tokens::default();
            let endless = (0..before).chain((before..before + cycle).cycle());
            let found = endless
                .take(10 * (before + cycle))
                .position(|token| tokens.is_repeated(&token.to_string()));
            assert!(
                found.is_some_and(|at| at >= before + cycle),
                "{before}, {cycle}"
            );
        }
    }

    #[test]
    fn tokens_that_differ_are_not_a_cycle() {
        let mut tokens = Tokens::default();
        assert!(!(0..10_000).any(|token| tokens.is_repeated(&token.to_string())));
    }
}

//! What a call waited for, and how long.

use std::{error::Error, fmt, time::Duration};

use crate::status::Delivery;

/// What a call waited for until its deadline passed, in order: the cause of a `DEADLINE_EXCEEDED`.
#[derive(Clone, Debug)]
pub(crate) struct Waited {
    earlier: Vec<(Stage, Duration)>,
    last: (Stage, Duration),
}

/// What a call waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stage {
    Token,
    /// The stack to be ready. For the default stack: room in its queue.
    Readiness,
    Connection,
    Stream,
    Answer,
}

impl Waited {
    pub(crate) fn new(stage: Stage, time: Duration) -> Self {
        Self {
            earlier: Vec::new(),
            last: (stage, time),
        }
    }

    /// Adds a stage before the others, unless it took less than a millisecond.
    pub(crate) fn after(mut self, stage: Stage, time: Duration) -> Self {
        if time >= Duration::from_millis(1) {
            self.earlier.insert(0, (stage, time));
        }
        self
    }

    pub(crate) fn delivery(&self) -> Delivery {
        match self.last.0 {
            Stage::Answer => Delivery::MaybeSent,
            _ => Delivery::NotSent,
        }
    }
}

impl fmt::Display for Waited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("waited ")?;
        for (stage, time) in &self.earlier {
            write!(f, "{:?} {stage}, ", truncated(*time))?;
        }
        let (stage, time) = self.last;
        write!(f, "{:?} {stage}", truncated(time))?;
        match self.delivery() {
            Delivery::NotSent => f.write_str("; not sent"),
            _ => Ok(()),
        }
    }
}

impl Error for Waited {}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token => "for a token",
            Self::Readiness => "for the stack to be ready",
            Self::Connection => "for a connection",
            Self::Stream => "for a stream",
            Self::Answer => "for the answer",
        })
    }
}

/// Truncates to whole milliseconds.
fn truncated(time: Duration) -> Duration {
    Duration::from_millis(time.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn the_text_has_each_stage_with_its_time() {
        let waited = Waited::new(Stage::Token, 150 * MILLI);
        assert_eq!(waited.to_string(), "waited 150ms for a token; not sent");
        let waited = Waited::new(Stage::Answer, 9_849 * MILLI + MILLI / 3)
            .after(Stage::Stream, MILLI / 2)
            .after(Stage::Token, 150 * MILLI);
        let text = "waited 150ms for a token, 9.849s for the answer";
        assert_eq!(waited.to_string(), text);
    }

    #[test]
    fn only_a_call_that_waited_for_the_answer_may_have_been_sent() {
        for stage in [
            Stage::Token,
            Stage::Readiness,
            Stage::Connection,
            Stage::Stream,
        ] {
            let waited = Waited::new(stage, MILLI);
            assert_eq!(waited.delivery(), Delivery::NotSent, "{stage}");
            assert!(waited.to_string().ends_with("; not sent"), "{stage}");
        }
        let waited = Waited::new(Stage::Answer, MILLI).after(Stage::Stream, MILLI);
        assert_eq!(waited.delivery(), Delivery::MaybeSent);
    }
}

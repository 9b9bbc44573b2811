//! The one task that keeps one token current, and what it publishes.

mod published;
#[cfg(test)]
mod tests;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tonic::Status;

use self::published::Current;
pub(super) use self::published::Published;
use super::{
    failure::{classified, panicked, unavailable},
    token::{CallCredentials, Lease, Look, Token},
};
use crate::{backoff::Backoff, task::runtime, trace};

/// How long one fetch may take: less than the 10 s for which `interceptor()` waits, so that it can
/// tell what was wrong.
const ATTEMPT: Duration = Duration::from_secs(8);
/// When a token is renewed of which nothing at all is known.
const RENEW_UNKNOWN: Duration = Duration::from_secs(5 * 60);
/// The least time between two fetches, whatever a source says of its tokens.
const PACE: Duration = Duration::from_secs(1);
/// The delays before a token that a server refused is renewed. They have full jitter, and grow while
/// new tokens are refused as well: another token would not help, and many clients that renew at once
/// would overload the token endpoint.
const REJECTED: Backoff = Backoff {
    initial: Duration::from_secs(10),
    multiplier: 2.0,
    maximum: Duration::from_secs(300),
};
/// The pauses after failures in a row.
const BACKOFF: Backoff = Backoff {
    initial: Duration::from_millis(500),
    multiplier: 2.0,
    maximum: Duration::from_secs(30),
};

/// Starts the task that owns a source. It ends when nobody can read any more what it publishes.
///
/// # Errors
///
/// `FAILED_PRECONDITION` outside a tokio runtime.
pub(super) fn start(
    source: Arc<dyn CallCredentials>,
) -> Result<(watch::Receiver<Published>, Arc<Notify>), Status> {
    let runtime = runtime("an interceptor that renews its token")?;
    let (publisher, published) = watch::channel(Published::default());
    let rejected = Arc::new(Notify::new());
    let owner = Owner {
        source,
        publisher,
        rejected: Arc::clone(&rejected),
        lease: None,
        next_look: Instant::now(),
        is_rejected: false,
        refused_at: None,
        refusals: 0,
        failures: 0,
    };
    runtime.spawn(owner.run());
    Ok((published, rejected))
}

struct Owner {
    source: Arc<dyn CallCredentials>,
    publisher: watch::Sender<Published>,
    rejected: Arc<Notify>,
    lease: Option<Lease>,
    next_look: Instant,
    /// Whether the server has refused the current token.
    is_rejected: bool,
    /// When the last refusal was reported.
    refused_at: Option<Instant>,
    /// How many tokens in a row were refused.
    refusals: u32,
    failures: u32,
}

impl Owner {
    async fn run(mut self) {
        loop {
            let started = Instant::now();
            let Some(outcome) = self.attempt().await else {
                return;
            };
            let due = match outcome {
                Ok(token) => {
                    self.hear_rejection().await;
                    let due = self.publish(token).max(started + PACE);
                    trace::token(due - Instant::now());
                    due
                }
                Err(failure) => self.fail(failure),
            };
            if !self.rest(started, due).await {
                return;
            }
        }
    }

    /// Fetches once, and goes on looking at the old token meanwhile. `None` if nobody reads any
    /// more.
    async fn attempt(&mut self) -> Option<Result<Token, Status>> {
        let source = Arc::clone(&self.source);
        let mut attempt = pin!(attempt(source));
        loop {
            tokio::select! {
                biased;
                () = self.publisher.closed() => return None,
                outcome = &mut attempt => return Some(outcome),
                () = sleep_until(self.next_look), if self.lease.is_some() => drop(self.look()),
            }
        }
    }

    /// Takes note of a rejection that came during the attempt: it is of the token before.
    async fn hear_rejection(&mut self) {
        tokio::select! {
            biased;
            () = self.rejected.notified() => self.is_rejected = true,
            () = std::future::ready(()) => {}
        }
    }

    /// Publishes a token and tells when it should be renewed.
    fn publish(&mut self, token: Token) -> Instant {
        let now = Instant::now();
        let known = token.expires_at.map(Instant::from_std);
        self.failures = 0;
        if let Some(longer) = self.outlives(known) {
            self.publisher
                .send_modify(|published| published.failure = None);
            return renewal(now, longer);
        }
        self.is_rejected = false;
        self.lease = token.lease;
        let (valid_until, due) = match known {
            Some(end) => (known, renewal(now, end)),
            None => {
                let due = now + after(token.renew_after.unwrap_or(RENEW_UNKNOWN));
                match self.ask() {
                    None => (None, due),
                    Some(Look::GoodFor(time)) => (Some(now + time), due),
                    // Nothing is known of it, but the source did hand it out.
                    Some(Look::Renew) => (Some(now + PACE), now),
                    Some(Look::Ended) => (Some(now), now),
                }
            }
        };
        self.publisher.send_replace(Published {
            current: Some(Current {
                headers: token.headers,
                valid_until,
            }),
            failure: None,
        });
        due
    }

    /// The end of the current token, if that is after another's and the server takes the current.
    fn outlives(&self, other: Option<Instant>) -> Option<Instant> {
        let published = self.publisher.borrow();
        let current = published.current.as_ref()?.valid_until?;
        (!self.is_rejected && current > other?).then_some(current)
    }

    /// Publishes a failure beside the token, which stays for as long as it is good.
    fn fail(&mut self, failure: Status) -> Instant {
        let wait = BACKOFF.delay(self.failures, fastrand::f64());
        trace::no_token(&failure, wait);
        self.failures = self.failures.saturating_add(1);
        self.publisher
            .send_modify(|published| published.failure = Some(failure));
        Instant::now() + wait
    }

    /// Waits until the next fetch is due. False if nobody reads any more.
    async fn rest(&mut self, started: Instant, mut due: Instant) -> bool {
        let mut rejected = false;
        loop {
            tokio::select! {
                biased;
                () = self.publisher.closed() => return false,
                // Once for each token: after a failed fetch the current one is still the same.
                () = self.rejected.notified(), if !rejected && !self.is_rejected => {
                    rejected = true;
                    due = due.min(self.refused(started + PACE));
                }
                () = sleep_until(due) => break,
                () = sleep_until(self.next_look), if self.lease.is_some() => {
                    if !self.look() && self.failures == 0 {
                        due = due.min(started + PACE);
                    }
                }
            }
        }
        if rejected {
            self.is_rejected = true;
            // A source that panics here is asked for its next token all the same.
            let _ = catch_unwind(AssertUnwindSafe(|| self.source.rejected()));
        }
        true
    }

    /// Records that a server refused the current token, and returns when to renew it.
    fn refused(&mut self, earliest: Instant) -> Instant {
        let now = Instant::now();
        let before = self.refused_at.replace(now);
        // Refusals further apart than this are unrelated: the count starts again.
        let in_a_row = before.is_some_and(|before| now - before <= 2 * REJECTED.maximum);
        self.refusals = if in_a_row {
            self.refusals.saturating_add(1)
        } else {
            0
        };
        now.max(earliest) + REJECTED.full_jitter(self.refusals, fastrand::f64())
    }

    /// Looks at a token of unknown expiry. False if it should be renewed.
    fn look(&mut self) -> bool {
        let until = match self.ask() {
            Some(Look::GoodFor(time)) => Instant::now() + time,
            Some(Look::Ended) => Instant::now(),
            Some(Look::Renew) | None => return false,
        };
        self.publisher.send_if_modified(|published| {
            let Some(current) = &mut published.current else {
                return false;
            };
            // Nobody waits while it is good. But a process that stood still looks too late, and
            // then those wait who came before this.
            let had_lapsed = !current.is_valid();
            current.valid_until = Some(until);
            had_lapsed && current.is_valid()
        });
        self.lease.is_some()
    }

    /// Asks the lease, unless it has said already that the token should be renewed: then it must
    /// not be asked again.
    fn ask(&mut self) -> Option<Look> {
        let lease = self.lease.as_mut()?;
        self.next_look = Instant::now() + lease.every;
        let look = catch_unwind(AssertUnwindSafe(|| (lease.look)())).unwrap_or(Look::Renew);
        if !matches!(look, Look::GoodFor(_)) {
            self.lease = None;
        }
        Some(look)
    }
}

/// Fetches once, within a time limit, whatever the source does.
async fn attempt(source: Arc<dyn CallCredentials>) -> Result<Token, Status> {
    // A task: if the source panics, only that ends. It is aborted when the set is dropped.
    let mut fetch = JoinSet::new();
    fetch.spawn(trace::in_span(async move { source.token().await }));
    let token = match timeout(ATTEMPT, fetch.join_next()).await {
        Ok(Some(Ok(outcome))) => outcome.map_err(classified)?,
        Ok(_) => return Err(panicked()),
        Err(_) => {
            return Err(unavailable(format!(
                "no token within {ATTEMPT:?}: the source does not answer"
            )));
        }
    };
    match token.expires_at {
        Some(end) if Instant::from_std(end) <= Instant::now() => Err(unavailable(
            "the source handed out a token that has expired already",
        )),
        _ => Ok(token),
    }
}

/// When a token is renewed that ends then. A fleet that started at once should not renew at once.
fn renewal(now: Instant, end: Instant) -> Instant {
    now + end.duration_since(now).mul_f64(random(0.70, 0.80))
}

fn after(time: Duration) -> Duration {
    time.mul_f64(random(0.8, 1.0))
}

fn random(low: f64, high: f64) -> f64 {
    low + (high - low) * fastrand::f64()
}

//! The one task that keeps one token current, and what it publishes.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{HeaderName, HeaderValue};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::Status;

use super::{
    failure::{classified, panicked, unavailable},
    token::{CallCredentials, Lease, Token},
};
use crate::{
    backoff::Backoff,
    task::{runtime, timers},
    trace,
};

/// How long one fetch may take: less than the 10 s for which `interceptor()` waits, so that it can
/// tell what was wrong.
const ATTEMPT: Duration = Duration::from_secs(8);
/// How often a token of unknown expiry is looked at. Looking costs a lock that nobody else holds.
const LOOK: Duration = Duration::from_secs(2);
/// When a token is renewed of which nothing at all is known.
const RENEW_UNKNOWN: Duration = Duration::from_secs(5 * 60);
/// The least time between two fetches, whatever a source says of its tokens.
const PACE: Duration = Duration::from_secs(1);
/// The least time between two fetches if only the server's refusal asks for the second.
const REJECTED_PACE: Duration = Duration::from_secs(10);
/// The pauses after failures in a row.
const BACKOFF: Backoff = Backoff {
    initial: Duration::from_millis(500),
    multiplier: 2.0,
    maximum: Duration::from_secs(30),
};

/// What the owner has published last.
#[derive(Default)]
pub(super) struct Published {
    current: Option<Current>,
    failure: Option<Status>,
}

struct Current {
    headers: Vec<(HeaderName, HeaderValue)>,
    valid_until: Option<Instant>,
}

impl Published {
    /// Returns the headers of a token that is good now, else why there are none.
    pub(super) fn headers(&self) -> Result<&[(HeaderName, HeaderValue)], Status> {
        match (&self.current, &self.failure) {
            (Some(current), _) if current.is_valid() => Ok(&current.headers),
            (_, Some(failure)) => Err(failure.clone()),
            (Some(_), None) => Err(unavailable("the token has expired and is being renewed")),
            (None, None) => Err(unavailable("the first token has not come yet")),
        }
    }

    pub(super) fn failure(&self) -> Option<&Status> {
        self.failure.as_ref()
    }

    pub(super) fn is_valid(&self) -> bool {
        self.current.as_ref().is_some_and(Current::is_valid)
    }
}

impl Current {
    fn is_valid(&self) -> bool {
        self.valid_until
            .is_none_or(|instant| Instant::now() < instant)
    }
}

/// Starts the task that owns a source. It ends when nobody can read any more what it publishes.
///
/// # Errors
///
/// `FAILED_PRECONDITION` outside a tokio runtime with timers.
pub(super) fn start(
    source: Arc<dyn CallCredentials>,
) -> Result<(watch::Receiver<Published>, Arc<Notify>), Status> {
    let runtime = runtime("an interceptor that renews its token")?;
    timers("an interceptor that renews its token", || {
        drop(sleep(Duration::ZERO));
    })?;
    let (publisher, published) = watch::channel(Published::default());
    let rejected = Arc::new(Notify::new());
    let owner = Owner {
        source,
        publisher,
        rejected: Arc::clone(&rejected),
        lease: None,
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
    failures: u32,
}

impl Owner {
    async fn run(mut self) {
        loop {
            let started = Instant::now();
            let outcome = tokio::select! {
                biased;
                () = self.publisher.closed() => return,
                outcome = attempt(&*self.source) => outcome,
            };
            let due = match outcome {
                Ok(token) => {
                    let due = self.publish(token).max(started + PACE);
                    self.forget_rejections().await;
                    due
                }
                Err(failure) => self.fail(failure),
            };
            if !self.rest(started, due).await {
                return;
            }
        }
    }

    /// Publishes a token and tells when it should be renewed.
    fn publish(&mut self, token: Token) -> Instant {
        let now = Instant::now();
        let known = token.expires_at.map(Instant::from_std);
        let due = match known {
            // A fleet that started at once should not renew at once.
            Some(end) => now + end.duration_since(now).mul_f64(random(0.70, 0.80)),
            None => now + after(token.renew_after.unwrap_or(RENEW_UNKNOWN)),
        };
        trace::token(due - now);
        self.failures = 0;
        self.lease = token.lease;
        let valid_until = match &mut self.lease {
            // Nothing is known of one that is not good for long, but the source did hand it out.
            Some(look) if known.is_none() => Some(now + look().unwrap_or(PACE)),
            _ => known,
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

    /// Those that came before this token was published are of the one before it.
    async fn forget_rejections(&self) {
        tokio::select! {
            biased;
            () = self.rejected.notified() => {}
            () = std::future::ready(()) => {}
        }
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
                () = self.rejected.notified(), if !rejected => {
                    rejected = true;
                    due = due.min(started + REJECTED_PACE);
                }
                () = sleep_until(due) => break,
                () = sleep(LOOK), if self.lease.is_some() => {
                    if !self.look() && self.failures == 0 {
                        due = due.min(started + PACE);
                    }
                }
            }
        }
        if rejected {
            self.source.rejected();
        }
        true
    }

    /// Looks at a token of unknown expiry. False if it should be renewed.
    fn look(&mut self) -> bool {
        let Some(time) = self.lease.as_mut().and_then(|look| look()) else {
            self.lease = None;
            return false;
        };
        let until = Instant::now() + time;
        // Nobody waits for this: who waits has no token that is good.
        self.publisher.send_if_modified(|published| {
            if let Some(current) = &mut published.current {
                current.valid_until = Some(until);
            }
            false
        });
        true
    }
}

/// Fetches once, within a time limit, whatever the source does.
async fn attempt(source: &dyn CallCredentials) -> Result<Token, Status> {
    // Made within the guard, too: the method may panic before it returns its future.
    let mut fetch = pin!(async { source.token().await });
    let guarded = std::future::poll_fn(|cx| {
        match catch_unwind(AssertUnwindSafe(|| fetch.as_mut().poll(cx))) {
            Ok(poll) => poll,
            Err(panic) => Poll::Ready(Err(panicked(panic))),
        }
    });
    let token = match timeout(ATTEMPT, guarded).await {
        Ok(outcome) => outcome.map_err(classified)?,
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

fn after(time: Duration) -> Duration {
    time.mul_f64(random(0.8, 1.0))
}

fn random(low: f64, high: f64) -> f64 {
    low + (high - low) * fastrand::f64()
}

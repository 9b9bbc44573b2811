//! Token renewal: the task that keeps one token current.

mod published;
#[cfg(test)]
mod tests;

use std::{
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{Notify, Semaphore, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tonic::Status;

use self::published::Current;
pub(super) use self::published::{Generation, Published};
use super::{
    failure::{classified, panicked, retry_after, unavailable},
    token::{CallCredentials, Token},
};
use crate::{backoff::Backoff, expiry::Expiry, task::runtime, trace, transport::Counter};

/// The maximum delay before a token of unknown expiry is renewed.
const RENEW_UNKNOWN: Duration = Duration::from_secs(5 * 60);
/// The minimum time between the start of a fetch that succeeds and the next fetch.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The delays before a token that a server rejected is renewed. They have full jitter, and grow while
/// new tokens are rejected as well: another token would not help, and many clients that renew at once
/// would overload the token endpoint.
const REJECTED: Backoff = Backoff {
    initial: Duration::from_secs(10),
    multiplier: 2.0,
    maximum: Duration::from_secs(300),
};
/// The delays after failed fetches in a row, with full jitter.
const FAILED: Backoff = Backoff {
    initial: Duration::from_millis(500),
    multiplier: 2.0,
    maximum: Duration::from_secs(30),
};
/// The delays after failed fetches while the current token is valid. At most a quarter of its remaining
/// lifetime.
const RENEWAL_FAILED: Backoff = Backoff {
    initial: Duration::from_secs(10),
    multiplier: 2.0,
    maximum: Duration::from_secs(300),
};
/// The maximum number of fetches at a time: one, and one that exceeded the time limit and blocks
/// its thread.
const MAX_FETCHES: usize = 2;

/// What the task has done since it was started.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) fetches_succeeded: Counter,
    pub(super) fetches_failed: Counter,
    pub(super) tokens_rejected: Counter,
}

/// What the callers report to the task, and what it counts for them.
#[derive(Debug, Default)]
pub(super) struct Signals {
    pub(super) totals: Totals,
    /// The newest token that a server rejected.
    rejected: AtomicU64,
    /// The newest rejected token that was reported to the source.
    reported: AtomicU64,
    changed: Notify,
}

impl Signals {
    /// Reports that a server rejected a token, which may have expired since it was sent.
    pub(super) fn reject(&self, generation: Generation, expiry: Option<Expiry>) {
        let has_expired = expiry.is_some_and(Expiry::has_passed);
        let before = self.rejected.fetch_max(generation.0, Ordering::Relaxed);
        if before < generation.0 && !has_expired {
            self.totals.tokens_rejected.increment();
        }
        self.changed.notify_one();
    }

    /// Requests the fetch that is due.
    pub(super) fn request(&self) {
        self.changed.notify_one();
    }
}

/// Starts the task that renews the token of a source. It ends when all receivers are dropped.
///
/// `limit` is the maximum duration of a fetch.
///
/// # Errors
///
/// `FAILED_PRECONDITION` outside a tokio runtime.
pub(super) fn start(
    source: Arc<dyn CallCredentials>,
    limit: Duration,
) -> Result<(watch::Receiver<Published>, Arc<Signals>), Status> {
    let runtime = runtime("an interceptor that renews its token")?;
    let (publisher, published) = watch::channel(Published::default());
    let signals = Arc::new(Signals::default());
    let renewal = Renewal {
        fetches: Fetches {
            source,
            limit,
            signals: Arc::clone(&signals),
            permits: Arc::new(Semaphore::new(MAX_FETCHES)),
        },
        publisher,
        signals: Arc::clone(&signals),
        generation: Generation::default(),
        rejection: None,
        rejections: 0,
        failures: 0,
    };
    runtime.spawn(renewal.run());
    Ok((published, signals))
}

struct Renewal {
    fetches: Fetches,
    publisher: watch::Sender<Published>,
    signals: Arc<Signals>,
    /// The token that was fetched last.
    generation: Generation,
    /// The newest rejected token for which a renewal was scheduled, and when it was scheduled.
    rejection: Option<(Generation, Instant)>,
    /// How many tokens in a row were rejected, after the first.
    rejections: u32,
    failures: u32,
}

impl Renewal {
    async fn run(mut self) {
        loop {
            let started = Instant::now();
            let rejected = self.is_rejected().then_some(self.generation);
            let outcome = tokio::select! {
                biased;
                () = self.publisher.closed() => return,
                outcome = self.fetches.next(rejected) => outcome,
            };
            let due = match outcome {
                Ok(token) => {
                    let due = self.publish(token).max(started + MIN_INTERVAL);
                    trace::token_refreshed(due - Instant::now());
                    due
                }
                Err(failure) => self.fail(failure),
            };
            if !self.wait(started, due).await {
                return;
            }
        }
    }

    /// Publishes a token, unless the current one is valid for longer. Returns when to renew.
    fn publish(&mut self, token: Token) -> Instant {
        self.failures = 0;
        self.signals.totals.fetches_succeeded.increment();
        let is_rejected = self.is_rejected();
        let mut renew_after = Duration::ZERO;
        self.publisher.send_modify(|published| {
            drop_in_task(published.failure.take());
            if let Some(current) = &published.current
                && !is_rejected
                && current.outlives(&token)
            {
                renew_after = renewal_delay(current.expiry, None);
                return;
            }
            renew_after = renewal_delay(token.expiry, token.renew_after);
            self.generation.0 += 1;
            published.current = Some(Current {
                headers: token.headers.into(),
                fetched_at: SystemTime::now(),
                expiry: token.expiry,
                generation: self.generation,
            });
        });
        Instant::now() + renew_after
    }

    /// Publishes a failure beside the current token, and returns when the next fetch is due.
    fn fail(&mut self, failure: Status) -> Instant {
        let mut delay = part(self.backoff(), 0.0, 1.0);
        if let Some(asked) = retry_after(&failure) {
            // All clients get the same `Retry-After`, so jitter is added.
            let asked = asked.min(MAX_RETRY_AFTER);
            delay = asked + delay.max(part(asked.min(SPREAD), 0.0, 1.0));
        }
        let failure = classified(failure);
        trace::token_refresh_failed(&failure, delay);
        self.failures = self.failures.saturating_add(1);
        self.signals.totals.fetches_failed.increment();
        self.publisher
            .send_modify(|published| drop_in_task(published.failure.replace(failure)));
        Instant::now() + delay
    }

    /// Returns the maximum delay after a failed fetch. It is longer while the current token is
    /// valid, but at most a quarter of its remaining lifetime.
    fn backoff(&self) -> Duration {
        let delay = FAILED.delay(self.failures, 0.5);
        let published = self.publisher.borrow();
        let current = published.current.as_ref().filter(|_| published.is_valid());
        match current.and_then(|current| current.expiry) {
            Some(expiry) if !self.is_rejected() => {
                let longer = RENEWAL_FAILED.delay(self.failures, 0.5);
                delay.max(longer.min(expiry.remaining() / 4))
            }
            _ => delay,
        }
    }

    /// Waits until the next fetch is due. Returns false if all receivers were dropped.
    async fn wait(&mut self, started: Instant, mut due: Instant) -> bool {
        loop {
            let due_by_clocks = Expiry::at(due);
            self.publish_due(Some(due_by_clocks));
            tokio::select! {
                biased;
                () = self.publisher.closed() => return false,
                () = sleep_until(due) => break,
                () = self.signals.changed.notified() => {
                    // Failed fetches are followed by a backoff, whatever the callers report.
                    if self.failures == 0 {
                        due = due.min(self.renewal_for_signals(started));
                    } else if due_by_clocks.has_passed() {
                        break;
                    }
                }
            }
        }
        self.publish_due(None);
        true
    }

    /// Returns when the current token has to be renewed because it has expired, or because a server
    /// rejected it.
    fn renewal_for_signals(&mut self, started: Instant) -> Instant {
        let earliest = Instant::now().max(started + MIN_INTERVAL);
        if !self.publisher.borrow().is_valid() {
            return earliest;
        }
        let is_new = self
            .rejection
            .is_none_or(|(generation, _)| generation < self.generation);
        if !self.is_rejected() || !is_new {
            return earliest + FOREVER;
        }
        let now = Instant::now();
        let before = self.rejection.replace((self.generation, now));
        // Rejections that are further apart are unrelated, so the count restarts.
        let is_in_a_row = before.is_some_and(|(_, before)| now - before <= 2 * REJECTED.maximum);
        self.rejections = if is_in_a_row {
            self.rejections.saturating_add(1)
        } else {
            0
        };
        let due = earliest + REJECTED.full_jitter(self.rejections, fastrand::f64());
        trace::token_rejected(due - now);
        due
    }

    fn is_rejected(&self) -> bool {
        let rejected = self.signals.rejected.load(Ordering::Relaxed);
        rejected > 0 && rejected >= self.generation.0
    }

    /// Publishes when the next fetch is due, without waking callers that wait for a token.
    fn publish_due(&self, due: Option<Expiry>) {
        self.publisher.send_if_modified(|published| {
            published.next_fetch = due;
            false
        });
    }
}

/// The fetches of a source.
struct Fetches {
    source: Arc<dyn CallCredentials>,
    limit: Duration,
    signals: Arc<Signals>,
    /// Held by fetches that have not ended. One that blocks its thread cannot be cancelled.
    permits: Arc<Semaphore>,
}

impl Fetches {
    /// Fetches a token within the time limit. `rejected` is the current token, if a server rejected it.
    async fn next(&self, rejected: Option<Generation>) -> Result<Token, Status> {
        let limit = self.limit;
        let token = timeout(limit, self.fetch(rejected)).await;
        let token = token.unwrap_or_else(|_| {
            Err(unavailable(format_args!(
                "no token within {limit:?}: the source does not answer"
            )))
        })?;
        if token.expiry.is_some_and(Expiry::has_passed) {
            return Err(unavailable(
                "the source returned a token that has already expired: check the source and this \
                 machine's clock",
            ));
        }
        Ok(token)
    }

    /// Fetches a token. Dropping the future cancels the fetch.
    async fn fetch(&self, rejected: Option<Generation>) -> Result<Token, Status> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let (source, signals) = (Arc::clone(&self.source), Arc::clone(&self.signals));
        let (mut sender, outcome) = oneshot::channel();
        spawn(trace::in_current_span(async move {
            let _permit = permit;
            if let Some(Generation(rejected)) = rejected
                && signals.reported.fetch_max(rejected, Ordering::Relaxed) < rejected
            {
                source.rejected();
            }
            let token = tokio::select! {
                biased;
                () = sender.closed() => return,
                token = source.token() => token,
            };
            let _ = sender.send(token);
        }))
        .map_err(|error| unavailable(format_args!("cannot start a thread: {error}")))?;
        outcome.await.map_err(|_| panicked())?
    }
}

/// Spawns a fetch that may panic, and that may block unless the runtime is a current-thread runtime.
///
/// A blocking task on a worker of an idle runtime also stops the timers of the runtime, and tokio's
/// blocking threads belong to the user. So a dedicated thread polls the fetch within the runtime.
fn spawn(fetch: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    let runtime = Handle::current();
    if runtime.runtime_flavor() == RuntimeFlavor::CurrentThread {
        runtime.spawn(fetch);
        return Ok(());
    }
    let run = move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(fetch)));
        // The destructor of a panic's payload may panic, which in a thread aborts the process.
        mem::forget(outcome);
    };
    thread::Builder::new()
        .name("longrunning-auth".to_owned())
        .spawn(run)
        .map(drop)
}

/// Drops a failure in a task, because the destructor of its source may panic.
fn drop_in_task(failure: Option<Status>) {
    if let Some(failure) = failure {
        tokio::spawn(async move { drop(failure) });
    }
}

/// The maximum jitter that is added to a `Retry-After`.
const SPREAD: Duration = Duration::from_secs(60);
/// The maximum `Retry-After` that is honored.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// A delay that is never reached. Longer ones overflow `Instant` on some systems.
const FOREVER: Duration = Duration::from_secs(3600 * 24 * 365 * 30);

/// Returns the delay before a token is renewed. It is random, because clients that were started at
/// the same time should not renew at the same time.
fn renewal_delay(expiry: Option<Expiry>, renew_after: Option<Duration>) -> Duration {
    match (renew_after, expiry) {
        (None, Some(expiry)) => part(expiry.remaining().min(FOREVER), 0.7, 0.8),
        (after, _) => part(after.unwrap_or(RENEW_UNKNOWN), 0.8, 1.0),
    }
}

/// Returns a random part of a duration, from the fraction `least` to the fraction `most`.
fn part(of: Duration, least: f64, most: f64) -> Duration {
    of.mul_f64(least + (most - least) * fastrand::f64())
}

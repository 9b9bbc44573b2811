//! The clients of a recorder, and the sums of their statistics.

use std::{
    any::Any,
    collections::BTreeMap,
    ops::AddAssign,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::SystemTime,
};

use opentelemetry::KeyValue;

use super::attributes;
use crate::{
    auth::{TokenStatus, WeakToken},
    retry::{Throttle, ThrottleStats},
    stats::StatsSource,
    transport::{TransportStats, TransportTotals, WeakTransport},
};

/// The clients whose statistics are observed.
///
/// Counters must not decrease when a client is dropped, so its totals are kept.
#[derive(Default)]
pub(super) struct Clients(Mutex<State>);

#[derive(Clone, Default)]
struct State {
    transports: Vec<(Name, WeakTransport)>,
    tokens: Vec<(Name, WeakToken)>,
    /// Each throttle, with a weak reference to its client.
    throttles: Vec<(Name, Arc<Throttle>, Weak<dyn Any + Send + Sync>)>,
    /// The totals of transports, tokens and throttles that no longer exist.
    ended: BTreeMap<Name, Totals>,
}

/// The name of a target, if it is known.
type Name = Option<Arc<str>>;

/// Statistics of all clients with the same target, as sums unless stated otherwise.
#[derive(Default)]
pub(super) struct Target {
    pub(super) attributes: Vec<KeyValue>,
    pub(super) totals: Totals,
    pub(super) max_connections: usize,
    pub(super) streams_in_use: usize,
    pub(super) max_streams: usize,
    pub(super) queued_calls: usize,
    pub(super) max_queued_calls: usize,
    pub(super) blocked_callers: usize,
    /// The age of the oldest queued call, in seconds.
    pub(super) queue_age: f64,
    /// Whether all tokens are valid; `None` if no client has a token.
    pub(super) has_valid_token: Option<bool>,
    /// The age of the oldest token, in seconds.
    pub(super) token_age: Option<f64>,
    /// The time until the token that expires first expires, in seconds.
    pub(super) token_lifetime: Option<f64>,
    /// The throttle with the fewest tokens.
    pub(super) throttle: Option<ThrottleStats>,
}

/// Numbers that never decrease.
#[derive(Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) transport: TransportTotals,
    /// `None` if no client has a token.
    pub(super) fetches: Option<Fetches>,
    /// `None` if no client has a throttle.
    pub(super) suppressed_retries: Option<u64>,
}

/// The totals of a token.
#[derive(Clone, Copy)]
pub(super) struct Fetches {
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    pub(super) rejected: u64,
}

impl Clients {
    /// Adds a client. A transport, token or throttle that it shares with another client is added only once.
    pub(super) fn add(&self, client: StatsSource) {
        let mut guard = self.lock();
        let state = &mut *guard;
        // Otherwise clients that have ended would accumulate if metrics are never collected.
        state.end();
        let name = client.target;
        if let Some(transport) = client.transport
            && !transport.has_ended()
            && !state
                .transports
                .iter()
                .any(|(_, it)| it.is_same(&transport))
        {
            state.transports.push((name.clone(), transport));
        }
        let has_token = |token: &WeakToken| {
            let mut tokens = state.tokens.iter();
            tokens.any(|(of, it)| *of == name && it.is_same(token))
        };
        let is_new = |token: &WeakToken| !token.has_ended() && !has_token(token);
        if let Some(token) = client.token.filter(is_new) {
            state.tokens.push((name.clone(), token));
        }
        if let Some(throttle) = client.throttle
            && client.client.strong_count() > 0
            && !state
                .throttles
                .iter()
                .any(|(_, it, _)| Arc::ptr_eq(it, &throttle))
        {
            state.throttles.push((name, throttle, client.client));
        }
    }

    /// Returns the current statistics of each target.
    pub(super) fn targets(&self) -> Vec<Target> {
        let mut guard = self.lock();
        guard.end();
        let state = guard.clone();
        // Unlock: the last reference to a client may be dropped below, which may run user code.
        drop(guard);
        let mut targets: BTreeMap<Name, Target> = BTreeMap::new();
        for (name, totals) in state.ended {
            targets.entry(name).or_default().totals += totals;
        }
        for (name, transport) in state.transports {
            targets
                .entry(name)
                .or_default()
                .add_transport(&transport.stats());
        }
        for (name, token) in state.tokens {
            targets.entry(name).or_default().add_token(&token.status());
        }
        for (name, throttle, _) in state.throttles {
            targets
                .entry(name)
                .or_default()
                .add_throttle(throttle.stats());
        }
        for (name, target) in &mut targets {
            target.attributes = attributes(name.as_ref(), []);
        }
        targets.into_values().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Moves the totals of transports, tokens and throttles that no longer exist to `ended`.
    fn end(&mut self) {
        let ended = &mut self.ended;
        self.transports.retain(|(name, transport)| {
            let has_ended = transport.has_ended();
            if has_ended {
                let totals = Totals::of_transport(&transport.stats());
                *ended.entry(name.clone()).or_default() += totals;
            }
            !has_ended
        });
        self.tokens.retain(|(name, token)| {
            let has_ended = token.has_ended();
            if has_ended {
                let totals = Totals::of_token(&token.status());
                *ended.entry(name.clone()).or_default() += totals;
            }
            !has_ended
        });
        self.throttles.retain(|(name, throttle, client)| {
            let has_ended = client.strong_count() == 0;
            if has_ended {
                let totals = Totals::of_throttle(&throttle.stats());
                *ended.entry(name.clone()).or_default() += totals;
            }
            !has_ended
        });
    }
}

impl Target {
    fn add_transport(&mut self, stats: &TransportStats) {
        self.totals += Totals::of_transport(stats);
        self.max_connections = self.max_connections.saturating_add(stats.max_connections);
        self.streams_in_use += stats.streams_in_use();
        self.max_streams += stats.max_streams();
        self.queued_calls += stats.queued_calls;
        self.max_queued_calls = self.max_queued_calls.saturating_add(stats.max_queued_calls);
        self.blocked_callers += stats.blocked_callers;
        self.queue_age = self.queue_age.max(stats.queue_age.as_secs_f64());
    }

    fn add_token(&mut self, status: &TokenStatus) {
        let now = SystemTime::now();
        self.totals += Totals::of_token(status);
        self.has_valid_token = Some(status.is_valid && self.has_valid_token.unwrap_or(true));
        let age = status.fetched_at.map(|at| seconds_between(at, now));
        self.token_age = age.into_iter().chain(self.token_age).reduce(f64::max);
        let lifetime = status.expires_at.map(|at| seconds_between(now, at));
        let lifetime = lifetime.into_iter().chain(self.token_lifetime);
        self.token_lifetime = lifetime.reduce(f64::min);
    }

    fn add_throttle(&mut self, stats: ThrottleStats) {
        self.totals += Totals::of_throttle(&stats);
        if self.throttle.is_none_or(|it| stats.tokens < it.tokens) {
            self.throttle = Some(stats);
        }
    }
}

impl Totals {
    fn of_transport(stats: &TransportStats) -> Self {
        Self {
            transport: stats.totals,
            ..Self::default()
        }
    }

    fn of_token(status: &TokenStatus) -> Self {
        let fetches = Fetches {
            succeeded: status.fetches_succeeded,
            failed: status.fetches_failed,
            rejected: status.tokens_rejected,
        };
        Self {
            fetches: Some(fetches),
            ..Self::default()
        }
    }

    fn of_throttle(stats: &ThrottleStats) -> Self {
        Self {
            suppressed_retries: Some(stats.suppressed_retries),
            ..Self::default()
        }
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.transport += other.transport;
        let fetches = self.fetches.into_iter().chain(other.fetches);
        self.fetches = fetches.reduce(|one, other| Fetches {
            succeeded: one.succeeded + other.succeeded,
            failed: one.failed + other.failed,
            rejected: one.rejected + other.rejected,
        });
        let suppressed = self.suppressed_retries.into_iter();
        let suppressed = suppressed.chain(other.suppressed_retries);
        self.suppressed_retries = suppressed.reduce(|one, other| one + other);
    }
}

/// Returns the seconds from one time to another; negative if `to` is earlier.
fn seconds_between(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(duration) => duration.as_secs_f64(),
        Err(error) => -error.duration().as_secs_f64(),
    }
}

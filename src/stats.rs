//! Statistics of a client.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Weak},
};

use crate::{
    auth::{TokenStatus, WeakToken},
    retry::{Throttle, ThrottleStats},
    transport::{Counter, TransportStats, WeakTransport},
};

/// A snapshot of the state of a client, returned by [`OperationsClient::stats`](crate::OperationsClient::stats).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// The connections and the queue; `None` for a client over a custom stack.
    ///
    /// If the stack was changed with [`map_stack`](crate::OperationsClient::map_stack), these are the statistics of
    /// the original stack.
    pub transport: Option<TransportStats>,
    /// The state of the token; `None` without credentials, and for credentials that are never renewed.
    pub token: Option<TokenStatus>,
    /// The state of the retry throttle; `None` if the retry policy has none.
    pub throttle: Option<ThrottleStats>,
    /// The number of retries by the retry policy since the client was created. Transparent retries are in
    /// [`TransportTotals`](crate::TransportTotals).
    pub retries: u64,
}

/// A handle that returns the [`Stats`] of a client, passed to
/// [`Recorder::client_created`](crate::Recorder::client_created).
///
/// It does not keep the client alive. The totals of a client remain after it is dropped. To export a counter that
/// never decreases, add the final totals of each source to a sum when it [has ended](Self::has_ended), and then drop
/// the source.
#[derive(Clone)]
pub struct StatsSource {
    pub(crate) target: Option<Arc<str>>,
    pub(crate) transport: Option<WeakTransport>,
    pub(crate) token: Option<WeakToken>,
    pub(crate) throttle: Option<Arc<Throttle>>,
    pub(crate) retries: Arc<Counter>,
    /// Kept alive by the client.
    pub(crate) client: Weak<dyn Any + Send + Sync>,
}

impl StatsSource {
    /// Returns the target of the client, such as `dns:///automl.googleapis.com:443`; `None` for a client over a
    /// custom stack, whose endpoint is not known.
    pub fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }

    /// Returns the current statistics of the client. After the client is dropped, only totals, the number of its
    /// open connections and the last state of its retry throttle remain.
    pub fn stats(&self) -> Stats {
        Stats {
            transport: self.transport.as_ref().map(WeakTransport::stats),
            token: self.token.as_ref().map(WeakToken::status),
            throttle: self.throttle.as_ref().map(|throttle| throttle.stats()),
            retries: self.retries.get(),
        }
    }

    /// Returns whether the client has been dropped and all its connections are closed. The totals are then final,
    /// except for those of a token or a stack that is used elsewhere.
    pub fn has_ended(&self) -> bool {
        let transport = self.transport.as_ref();
        self.client.strong_count() == 0 && transport.is_none_or(WeakTransport::has_ended)
    }
}

impl fmt::Debug for StatsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatsSource")
            .field("target", &self.target)
            .field("stats", &self.stats())
            .finish()
    }
}

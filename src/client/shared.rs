//! The shared state of a client and its clones.

use std::sync::Arc;

use http::{
    Uri,
    uri::{Authority, Scheme},
};

use super::{OperationsClient, waits::Waits};
use crate::{
    auth::AuthInterceptor,
    recorder::Recorder,
    retry::Retry,
    stats::{Stats, StatsSource},
    transport::{Counter, Transport, WeakTransport},
};

/// The state that a client shares with its clones.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(super) waits: Waits,
    /// The default stack, if the client was created with it.
    transport: Option<WeakTransport>,
    server: Option<Server>,
    /// The number of retries by the retry policy.
    pub(super) retries: Arc<Counter>,
}

/// The address of a server, as reported in spans and metrics.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    host: String,
    port: u16,
    /// The target URI, see [gRPC Name Resolution](https://github.com/grpc/grpc/blob/master/doc/naming.md).
    target: Arc<str>,
}

impl Server {
    /// Returns the address in the URI of an endpoint.
    pub(crate) fn new(uri: &Uri) -> Self {
        let authority = uri.authority();
        let host = authority.map_or("", Authority::host);
        let port = uri.port_u16().unwrap_or(match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => 80,
            _ => 443,
        });
        Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            target: format!("dns:///{host}:{port}").into(),
        }
    }
}

impl Shared {
    /// Returns the total stream limit of the default stack's connections; `None` for a custom stack, or once the
    /// transport is dropped.
    pub(super) fn capacity(&self) -> Option<usize> {
        self.transport.as_ref()?.capacity()
    }

    /// Returns the host and the port of the server, if they are known.
    pub(super) fn address(&self) -> Option<(&str, u16)> {
        let server = self.server.as_ref()?;
        Some((&server.host, server.port))
    }

    pub(super) fn target(&self) -> Option<&Arc<str>> {
        self.server.as_ref().map(|server| &server.target)
    }
}

impl OperationsClient<Transport> {
    /// Creates a client over the default stack.
    pub(crate) fn over_transport(transport: Transport, server: Server) -> Self {
        let shared = Shared {
            transport: Some(transport.downgrade()),
            server: Some(server),
            ..Shared::default()
        };
        Self {
            shared: Arc::new(shared),
            ..Self::new(transport)
        }
    }
}

impl<S> OperationsClient<S> {
    /// Counts a retry that a retry policy made. Transparent retries are counted separately.
    pub(crate) fn count_retry(&self) {
        self.shared.retries.increment();
    }

    /// Returns the recorder, if there is one.
    pub(crate) fn current_recorder(&self) -> Option<&Arc<dyn Recorder>> {
        self.settings.recorder.as_ref()
    }

    /// Returns the target URI of the server, if it is known.
    pub(crate) fn target(&self) -> Option<&Arc<str>> {
        self.shared.target()
    }

    /// Returns a snapshot of the client: its connections, queue, token and retry throttle.
    ///
    /// It holds a lock for a few microseconds and allocates the list of connections, so it is cheap enough to call
    /// every second. Measurements of calls are not included; a [`Recorder`](crate::Recorder) receives them.
    ///
    /// ```
    /// # #[cfg(not(feature = "emulator"))]
    /// # fn main() {}
    /// # #[cfg(feature = "emulator")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// # use longrunning::{OperationsClient, emulator::Emulator};
    /// # let emulator = Emulator::start().await?;
    /// # let client = OperationsClient::builder(emulator.endpoint()).connect().await?;
    /// let stats = client.stats();
    /// if let Some(transport) = &stats.transport {
    ///     println!("{} connections, {} calls queued", transport.open_connections, transport.queued_calls);
    /// }
    /// if let Some(token) = &stats.token {
    ///     println!("{} failed fetches, expires at {:?}", token.fetches_failed, token.expires_at);
    /// }
    /// # assert!(stats.transport.is_some() && stats.token.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn stats(&self) -> Stats {
        self.stats_source().stats()
    }

    pub(crate) fn stats_source(&self) -> StatsSource {
        let auth = self.settings.auth.as_ref();
        let throttle = self.settings.retry.as_ref().and_then(Retry::throttle);
        StatsSource {
            target: self.target().cloned(),
            transport: self.shared.transport.clone(),
            token: auth.and_then(AuthInterceptor::downgrade),
            throttle: throttle.cloned(),
            retries: self.shared.retries.clone(),
            client: Arc::<Shared>::downgrade(&self.shared),
        }
    }
}

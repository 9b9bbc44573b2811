//! From an endpoint to a client: what the default stack is made of.

mod auth;
mod endpoint;
#[cfg(feature = "proxy")]
mod proxy;
#[cfg(feature = "_tls")]
mod tls;

use std::{sync::Arc, time::Duration};

use http::{
    HeaderValue, Uri,
    uri::{Authority, Scheme},
};
use hyper::rt::{Read, Write};
use tonic::{Code, Status};
use tower::{BoxError, Service};

#[cfg(feature = "_tls")]
use self::tls::TlsSettings;
use self::{auth::Auth, endpoint::Endpoint};
use crate::{
    auth::{AuthInterceptor, Credentials},
    client::{OperationsClient, Server, Settings},
    recorder::Recorder,
    retry::{Retry, RetryPolicy},
    status::local,
    transport::{Connector, Dial, PoolConfig, Transport},
};

/// Makes an [`OperationsClient`] over connections of its own.
///
/// Nothing is checked before [`connect`](Self::connect) or [`connect_lazy`](Self::connect_lazy):
/// a bad value is an `INVALID_ARGUMENT` of theirs that names it.
#[derive(Debug)]
#[must_use = "a builder does nothing until it connects"]
pub struct ClientBuilder {
    endpoint: Endpoint,
    authority: Option<Result<Authority, Status>>,
    #[cfg(feature = "proxy")]
    proxy_from_env: bool,
    auth: Auth,
    credentials_in_plaintext: bool,
    connector: Option<Dial>,
    #[cfg(feature = "_tls")]
    tls: TlsSettings,
    connect_timeout: Duration,
    keepalive_interval: Duration,
    keepalive_timeout: Duration,
    min_connections: usize,
    max_connections: usize,
    max_connection_age: Option<Duration>,
    streams_per_connection: usize,
    max_queued_calls: usize,
    max_buffered_bytes: usize,
    user_agent: Option<String>,
    /// The settings that can also be changed on the client.
    settings: Settings,
}

/// The minimum keepalive interval, as in
/// [gRFC A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md).
const MIN_KEEPALIVE: Duration = Duration::from_secs(10);

/// How long a connection beside others is kept without calls.
const IDLE: Duration = Duration::from_secs(60);

impl OperationsClient<Transport> {
    /// Returns a builder for a client of this endpoint, such as `https://automl.googleapis.com`.
    ///
    /// An endpoint consists of `https://` or `http://`, a host, and a port, which defaults to 443 or 80.
    pub fn builder(endpoint: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            endpoint: Endpoint::from(endpoint.into()),
            authority: None,
            #[cfg(feature = "proxy")]
            proxy_from_env: false,
            auth: Auth::default(),
            credentials_in_plaintext: false,
            connector: None,
            #[cfg(feature = "_tls")]
            tls: TlsSettings::default(),
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(310),
            keepalive_timeout: Duration::from_secs(20),
            min_connections: 0,
            max_connections: 20,
            max_connection_age: None,
            streams_per_connection: 1_000,
            max_queued_calls: 10_000,
            max_buffered_bytes: 256 << 20,
            user_agent: None,
            settings: Settings::published(),
        }
    }
}

impl ClientBuilder {
    /// Sets the name of the server, if it differs from the host of the endpoint.
    ///
    /// This is for private endpoints and tunnels. The name is a host with an optional port, such as
    /// `automl.googleapis.com`. It is the `:authority` of every call, and the server's certificate must be
    /// valid for its host. The client still connects to the address of the endpoint. If the name is that of
    /// another host, an `http` endpoint on this machine counts as remote for [credentials](Self::credentials).
    ///
    /// Defaults to the host and port of the endpoint.
    pub fn authority(mut self, authority: impl Into<String>) -> Self {
        self.authority = Some(endpoint::authority(&authority.into()));
        self
    }

    /// Connects to an `https` endpoint through the HTTP proxy that is set in environment variables, as in
    /// [gRFC A1](https://github.com/grpc/proposal/blob/master/A1-http-connect-proxy-support.md).
    ///
    /// The URL of the proxy is read from `HTTPS_PROXY`, or else from `ALL_PROXY`, for example
    /// `http://user:password@proxy:3128`. Special characters in the user name and the password must be
    /// percent-encoded. The port of the proxy defaults to 80. The client sends a CONNECT request to the proxy,
    /// and uses TLS through the tunnel. `NO_PROXY` is a comma-separated list of the endpoint hosts, without
    /// ports, to which the client connects directly: host names (which include their subdomains), IP addresses
    /// and networks, or `*` for all hosts. A variable with a lower-case name is read if the one in upper case
    /// is not set. A value that is not the URL of an HTTP proxy is `INVALID_ARGUMENT`.
    ///
    /// [`connect`](Self::connect) and [`connect_lazy`](Self::connect_lazy) read the environment. The client
    /// always connects directly to an `http` endpoint. A custom [`connector`](Self::connector) is used to
    /// connect to the proxy; its streams must send written data without waiting for a flush. Token requests
    /// do not use this proxy.
    ///
    /// Requires the feature `proxy`. Defaults to no proxy.
    #[cfg(feature = "proxy")]
    pub fn proxy_from_env(mut self) -> Self {
        self.proxy_from_env = true;
        self
    }

    /// Sets the credentials that are sent with every call. Defaults to [`Credentials::none`].
    ///
    /// They are sent to the endpoint, whatever its host. Over plaintext, they are sent only to `localhost`
    /// and loopback addresses, and neither over a [custom connector](Self::connector) nor with the
    /// [`authority`](Self::authority) of another host, unless [allowed](Self::credentials_in_plaintext). If they
    /// belong to another universe than `googleapis.com`, the host of the endpoint, or of the authority, must be
    /// in that universe.
    ///
    /// This replaces an interceptor that was set with [`auth`](Self::auth).
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.auth = Auth::Credentials(credentials);
        self
    }

    /// Sets an interceptor as the credentials, so that several clients share its token.
    ///
    /// The rules for plaintext of [`credentials`](Self::credentials) apply. This replaces
    /// credentials that were set with that method. The universe of the credentials is not checked.
    ///
    /// ```
    /// # use longrunning::{Credentials, OperationsClient, Transport};
    /// # async fn example() -> Result<(), tonic::Status> {
    /// let auth = Credentials::application_default().interceptor().await?;
    /// let automl = OperationsClient::builder("https://automl.googleapis.com")
    ///     .auth(auth.clone())
    ///     .connect_lazy()?;
    /// let speech = OperationsClient::builder("https://speech.googleapis.com")
    ///     .auth(auth)
    ///     .connect_lazy()?;
    /// # let _: [OperationsClient<Transport>; 2] = [automl, speech];
    /// # Ok(())
    /// # }
    /// ```
    pub fn auth(mut self, auth: AuthInterceptor) -> Self {
        self.auth = Auth::Interceptor(auth);
        self
    }

    /// Allows credentials to be sent over plaintext.
    ///
    /// This is required if the endpoint is `http` and on another machine, is reached through a custom
    /// connector, or has the [`authority`](Self::authority) of another host. Anyone on the network path can
    /// read the credentials.
    ///
    /// Defaults to refusing, with `FAILED_PRECONDITION`.
    pub fn credentials_in_plaintext(mut self) -> Self {
        self.credentials_in_plaintext = true;
        self
    }

    /// Sets how long a call may take, all its attempts together, where its request does not say.
    ///
    /// Connecting and waiting for a connection count, but [`connect`](Self::connect) itself is not
    /// bounded by it. A Wait whose message has a timeout may take that and 10 seconds instead.
    /// Default is 10 seconds, and no limit for a Wait without one.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout.set = Some(timeout);
        self
    }

    /// Sets which failed calls are retried. Defaults to the published policy, which
    /// [`RetryPolicy`] describes.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.settings.retry = Some(Retry::new(policy));
        self
    }

    /// Sets the timeout for opening a connection: name look-up, TCP, the tunnel of a proxy, TLS, and the
    /// server's HTTP/2 settings together.
    ///
    /// Defaults to 5 seconds.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the keepalive ping interval.
    ///
    /// A connection that has received nothing for the interval is pinged while calls are on it or
    /// queued. If it receives nothing within the [timeout](Self::keepalive_timeout) either, its calls end
    /// with `UNAVAILABLE`. An idle connection is not pinged. If nothing was received for the interval when
    /// the next call is sent, a ping is sent with it. [`Duration::MAX`] turns these pings off.
    ///
    /// As in [gRFC A8](https://github.com/grpc/proposal/blob/master/A8-client-side-keepalive.md), an
    /// interval of less than 10 seconds counts as 10 seconds, and the interval of later connections is
    /// doubled each time a server closes one with `too_many_pings`. Many servers do so when they are
    /// pinged more often than they allow; all gRPC servers allow a ping every 300 seconds.
    ///
    /// Dead connections are usually detected before a keepalive ping is due: if the deadline of a call
    /// passes and nothing was received since the call was sent, the server is pinged, or has to
    /// acknowledge SETTINGS if the last ping is too recent.
    ///
    /// Defaults to 310 seconds.
    pub fn keepalive_interval(mut self, interval: Duration) -> Self {
        self.keepalive_interval = interval;
        self
    }

    /// Sets the keepalive timeout: how long a connection may receive nothing after a keepalive ping.
    ///
    /// On Linux, Android and Fuchsia, `TCP_USER_TIMEOUT` is set to the same value, unless pings are turned
    /// off or a custom connector is used (see
    /// [gRFC A18](https://github.com/grpc/proposal/blob/master/A18-tcp-user-timeout.md)).
    ///
    /// Defaults to 20 seconds.
    pub fn keepalive_timeout(mut self, timeout: Duration) -> Self {
        self.keepalive_timeout = timeout;
        self
    }

    /// Sets the minimum number of open connections.
    ///
    /// [`connect`](Self::connect) waits for the first connection; the others are opened in the
    /// background, as they are after the first call of a lazy client. A connection that ends is replaced,
    /// with backoff. The minimum must not be more than [`max_connections`](Self::max_connections).
    ///
    /// Defaults to 0: connections are opened when calls need them.
    pub fn min_connections(mut self, connections: usize) -> Self {
        self.min_connections = connections;
        self
    }

    /// Sets the maximum number of open connections.
    ///
    /// One connection is used until as many calls are in flight as the server allows on it, commonly
    /// 100. Then more are opened, as many as the queued calls need. A connection that is idle for a
    /// minute is closed, unless it is the last or one of the [minimum](Self::min_connections). When all
    /// streams are in use, calls are [queued](Self::max_queued_calls). Connections that take no more
    /// calls do not count: they close when their calls have ended.
    ///
    /// Defaults to 20.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }

    /// Sets the maximum age of a connection. A connection that reaches it is closed gracefully:
    /// calls in flight complete, and new calls go to another connection.
    ///
    /// The age varies by up to 10 % from connection to connection, so that they are not all replaced
    /// together. With a load balancer that distributes connections, a maximum age moves load to servers
    /// that were added.
    ///
    /// Defaults to no maximum.
    pub fn max_connection_age(mut self, age: Duration) -> Self {
        self.max_connection_age = Some(age);
        self
    }

    /// Sets the maximum number of streams in use on a connection, where the server allows more.
    ///
    /// Defaults to 1,000.
    pub fn streams_per_connection(mut self, streams: usize) -> Self {
        self.streams_per_connection = streams;
        self
    }

    /// Sets the maximum number of calls that wait for a stream.
    ///
    /// Once the queue is full, the stack is not ready until an eighth of it is free, and this
    /// client waits for that, within the deadline of its call. A call made over a full
    /// [`stack`](OperationsClient::stack) nevertheless ends with `RESOURCE_EXHAUSTED` immediately.
    ///
    /// Defaults to 10,000.
    pub fn max_queued_calls(mut self, calls: usize) -> Self {
        self.max_queued_calls = calls;
        self
    }

    /// Sets the maximum number of bytes of unary responses in memory, for all connections together.
    ///
    /// Responses of more than 4 KiB count while they are received, and until their callers have read
    /// them. While the maximum is exceeded, no calls are sent, and servers may send more of the oldest
    /// response of each connection only. What they were allowed to send before can still arrive: up to
    /// 2 MiB for each call in flight. Streamed responses do not count: their readers pace the server.
    ///
    /// Defaults to 256 MiB.
    pub fn max_buffered_bytes(mut self, bytes: usize) -> Self {
        self.max_buffered_bytes = bytes;
        self
    }

    /// Sets the maximum size of a response in bytes.
    ///
    /// A call whose response is larger ends with `RESOURCE_EXHAUSTED`.
    ///
    /// Defaults to 4 MiB.
    pub fn max_decoding_message_size(mut self, bytes: usize) -> Self {
        self.settings.max_decoding_message_size = Some(bytes);
        self
    }

    /// Sets the maximum size of a request in bytes.
    ///
    /// A call whose request is larger ends with `RESOURCE_EXHAUSTED`; nothing is sent.
    ///
    /// Defaults to no limit.
    pub fn max_encoding_message_size(mut self, bytes: usize) -> Self {
        self.settings.max_encoding_message_size = Some(bytes);
        self
    }

    /// Sets the maximum total size of the headers of a request. Defaults to 8 KiB.
    ///
    /// See [`max_header_list_size`](OperationsClient::max_header_list_size).
    pub fn max_header_list_size(mut self, bytes: usize) -> Self {
        self.settings.max_header_list_size = Some(bytes);
        self
    }

    /// Sets the maximum number of concurrent WaitOperation calls of pollers. Defaults to 50.
    ///
    /// See [`max_concurrent_waits`](OperationsClient::max_concurrent_waits).
    pub fn max_concurrent_waits(mut self, calls: usize) -> Self {
        self.settings.max_waits = Some(calls);
        self
    }

    /// Sets a prefix of the `user-agent` header, which ends with `grpc-rust-longrunning/` and the
    /// version of this crate.
    ///
    /// Defaults to none.
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = Some(user_agent.into());
        self
    }

    /// Sets a recorder, which receives measurements of calls, attempts and polls.
    ///
    /// For OpenTelemetry, use `OpenTelemetryRecorder` (requires the feature `opentelemetry`). This replaces the
    /// recorder that was set before; a `Vec` of recorders combines several.
    ///
    /// Defaults to none.
    pub fn recorder(mut self, recorder: Arc<dyn Recorder>) -> Self {
        self.settings.recorder = Some(recorder);
        self
    }

    /// Sets a propagator, which adds the trace context to the headers of each attempt.
    ///
    /// For example, `TraceContextPropagator` adds the header `traceparent`, see
    /// [W3C Trace Context](https://www.w3.org/TR/trace-context/).
    ///
    /// The propagator receives the current [`Context`](opentelemetry::Context). With the feature `tracing` and the
    /// layer of `tracing-opentelemetry`, that is the context of the attempt's span. A transparent retry sends the
    /// headers of the attempt that it repeats. If the metadata of a request already contains one of the headers,
    /// none is added. Headers that the client itself sets, such as `authorization`, are not replaced. The headers are
    /// marked as sensitive, so that HPACK does not index them; their `Debug` output is therefore redacted.
    ///
    /// Requires the feature `opentelemetry`. Defaults to none: servers receive no trace context.
    #[cfg(feature = "opentelemetry")]
    pub fn propagator(
        mut self,
        propagator: impl opentelemetry::propagation::TextMapPropagator + Send + Sync + 'static,
    ) -> Self {
        self.settings.propagator = crate::propagation::Propagator::new(propagator);
        self
    }

    /// Sets a custom connector, which opens the byte stream to the server, for example over a Unix socket,
    /// through a proxy, or over a pipe within the process.
    ///
    /// It is called with the endpoint as it was given or, if `proxy_from_env` has found a proxy, with the URL
    /// of the proxy. If the endpoint is `https`, TLS runs over the stream. With an `http` endpoint,
    /// credentials must be [allowed](Self::credentials_in_plaintext), whatever the host.
    /// `hyper_util::rt::TokioIo` adapts a tokio stream to hyper's traits.
    ///
    /// Defaults to TCP.
    pub fn connector<C>(mut self, connector: C) -> Self
    where
        C: Service<Uri> + Send + 'static,
        C::Response: Read + Write + Send + Unpin + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
    {
        self.connector = Some(Dial::custom(connector));
        self
    }

    /// Adds root certificates, as PEM text, for the verification of the server's certificate.
    ///
    /// They are trusted in addition to the roots of the system (feature `tls-native-roots`) and those of
    /// Mozilla (feature `tls-webpki-roots`). Requires the feature `tls-ring` or `tls-aws-lc`.
    ///
    /// Defaults to none.
    #[cfg(feature = "_tls")]
    #[cfg_attr(docsrs, doc(cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))))]
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls.ca(pem.into());
        self
    }

    /// Sets the client certificate for mutual TLS: its chain and its private key, each as PEM text.
    ///
    /// Requires the feature `tls-ring` or `tls-aws-lc`. Defaults to none.
    #[cfg(feature = "_tls")]
    #[cfg_attr(docsrs, doc(cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))))]
    pub fn identity(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.tls.identity(certificate.into(), key.into());
        self
    }

    /// Sets the whole of TLS, but for ALPN. Default is made of the roots,
    /// [`ca_certificate`](Self::ca_certificate) and [`identity`](Self::identity), which this
    /// replaces.
    ///
    /// Needs the feature `rustls`. The type is of rustls 0.23: a later version of this crate may need
    /// another.
    #[cfg(feature = "rustls")]
    pub fn rustls_config(
        mut self,
        config: impl Into<std::sync::Arc<tokio_rustls::rustls::ClientConfig>>,
    ) -> Self {
        self.tls.whole(config.into());
        self
    }

    /// Fetches the first token, opens the first connection, and makes the client.
    ///
    /// # Errors
    ///
    /// - `INVALID_ARGUMENT`: a value that was set cannot be used; the message names it.
    /// - `FAILED_PRECONDITION`: there is no tokio runtime, or a feature that is needed is off, or
    ///   the credentials would go over plaintext.
    /// - `UNAVAILABLE`: the server cannot be reached, or there was no token within 10 s, or by the end
    ///   of the first fetch if that takes longer.
    /// - `UNAUTHENTICATED`: there are no credentials, they are unusable, or they are refused.
    pub async fn connect(mut self) -> Result<OperationsClient<Transport>, Status> {
        let auth = self.take_auth()?;
        let client = self.client()?;
        let auth = auth.interceptor()?.first_token().await?;
        let client = auth::add(client, auth);
        client.report_created();
        client.stack().connect().await?;
        Ok(client)
    }

    /// Makes a client that connects with its first call, and fetches its first token meanwhile.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect) that need no connection and no token. A missing tokio
    /// runtime is reported by the first call.
    pub fn connect_lazy(mut self) -> Result<OperationsClient<Transport>, Status> {
        let auth = self.take_auth()?;
        let client = self.client()?;
        let client = auth::add(client, auth.interceptor()?);
        client.report_created();
        Ok(client)
    }

    fn check_counts(&self) -> Result<(), Status> {
        not_zero("max_connections", self.max_connections)?;
        not_zero("streams_per_connection", self.streams_per_connection)?;
        not_zero("max_queued_calls", self.max_queued_calls)?;
        let header_list_size = self.settings.max_header_list_size.unwrap_or(usize::MAX);
        not_zero("max_header_list_size", header_list_size)?;
        let (min, max) = (self.min_connections, self.max_connections);
        if min > max {
            return Err(local(
                Code::InvalidArgument,
                format!("min_connections {min}: it is more than max_connections, which is {max}"),
            ));
        }
        Ok(())
    }

    /// Creates the client, without credentials.
    fn client(self) -> Result<OperationsClient<Transport>, Status> {
        let mut settings = self.settings.clone();
        settings.plaintext_error = self.plaintext();
        let transport = self.transport()?;
        let server = Server::new(transport.endpoint());
        settings.headers = transport.template().clone();
        let client = OperationsClient::over_transport(transport, server);
        Ok(client.with_settings(settings))
    }

    fn transport(self) -> Result<Transport, Status> {
        if let Some(timeout) = self.settings.timeout.set {
            positive("timeout", timeout)?;
        }
        positive("connect timeout", self.connect_timeout)?;
        positive("keepalive interval", self.keepalive_interval)?;
        positive("keepalive timeout", self.keepalive_timeout)?;
        positive(
            "maximum connection age",
            self.max_connection_age.unwrap_or(IDLE),
        )?;
        self.check_counts()?;
        let user_agent = user_agent(self.user_agent)?;
        let (uri, address) = self.endpoint.into_parts()?;
        let authority = self.authority.unwrap_or_else(|| Ok(address.clone()))?;
        let scheme = uri.scheme().cloned().unwrap_or(Scheme::HTTPS);
        #[cfg(feature = "_tls")]
        let tls = if scheme == Scheme::HTTPS {
            Some(self.tls.build(&authority)?)
        } else if self.tls.is_set() {
            return Err(not_over_http(&uri));
        } else {
            None
        };
        #[cfg(not(feature = "_tls"))]
        if scheme == Scheme::HTTPS {
            return Err(local(
                Code::FailedPrecondition,
                format!(
                    "endpoint \"{uri}\": no TLS in this build: turn on the features `tls-ring` and `tls-native-roots` of `longrunning`"
                ),
            ));
        }
        // See https://github.com/grpc/proposal/blob/master/A18-tcp-user-timeout.md
        let user_timeout =
            (self.keepalive_interval < Duration::MAX).then_some(self.keepalive_timeout);
        // The kernel limits the value to 31 bits of milliseconds.
        let user_timeout = user_timeout.filter(|timeout| timeout.as_millis() < 1 << 31);
        let dial = self.connector;
        let dial = dial.unwrap_or_else(|| Dial::tcp(user_timeout));
        #[cfg(feature = "proxy")]
        let (dial, proxy) = if self.proxy_from_env && scheme == Scheme::HTTPS {
            proxy::of_environment(&address)?.map_or((dial.clone(), None), |proxy| {
                (dial.through(&proxy), proxy.uri().authority().cloned())
            })
        } else {
            (dial, None)
        };
        let connector = Connector {
            uri,
            authority: address,
            dial,
            #[cfg(feature = "proxy")]
            proxy,
            #[cfg(feature = "_tls")]
            tls,
            timeout: self.connect_timeout,
        };
        let config = PoolConfig {
            min_connections: self.min_connections,
            max_connections: self.max_connections,
            max_connection_age: self.max_connection_age,
            // So that sums of stream counts cannot overflow.
            streams_per_connection: self.streams_per_connection.min(1_000_000),
            max_queued_calls: self.max_queued_calls,
            max_buffered_bytes: self.max_buffered_bytes,
            keepalive: self.keepalive_interval.max(MIN_KEEPALIVE),
            keepalive_timeout: self.keepalive_timeout,
            idle: IDLE,
        };
        Ok(Transport::new(
            connector, config, scheme, authority, user_agent,
        ))
    }
}

/// Who wants a private CA, or shows a certificate, does not mean to go without TLS.
#[cfg(feature = "_tls")]
fn not_over_http(uri: &Uri) -> Status {
    local(
        Code::InvalidArgument,
        format!(
            "endpoint \"{uri}\": settings of TLS are for https: write https://, or leave them out"
        ),
    )
}

fn positive(what: &str, duration: Duration) -> Result<(), Status> {
    if duration.is_zero() {
        let message = format!("{what} 0s: must be longer than 0s");
        return Err(local(Code::InvalidArgument, message));
    }
    Ok(())
}

fn not_zero(what: &str, count: usize) -> Result<(), Status> {
    if count == 0 {
        let message = format!("{what} 0: must be at least 1");
        return Err(local(Code::InvalidArgument, message));
    }
    Ok(())
}

fn user_agent(prefix: Option<String>) -> Result<HeaderValue, Status> {
    // See https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#user-agents
    const OWN: &str = concat!("grpc-rust-longrunning/", env!("CARGO_PKG_VERSION"));
    let Some(prefix) = prefix else {
        return Ok(HeaderValue::from_static(OWN));
    };
    let bad = |why: &str| {
        let start: String = prefix.chars().take(40).collect();
        local(
            Code::InvalidArgument,
            format!("user agent {start:?}: {why}"),
        )
    };
    if prefix.len() > 256 {
        return Err(bad("it goes with every call: give at most 256 bytes"));
    }
    HeaderValue::try_from(format!("{prefix} {OWN}"))
        .map_err(|_| bad("give visible ASCII characters"))
}

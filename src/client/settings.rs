//! The settings of a client: credentials, timeouts, retries, and limits on sizes.

use std::{sync::Arc, time::Duration};

use tonic::{Request, Status};

use super::{OperationsClient, header::MAX_HEADER_LIST_SIZE};
use crate::{
    auth::AuthInterceptor,
    deadline,
    propagation::Propagator,
    recorder::Recorder,
    request::Template,
    retry::{Retry, RetryPolicy},
};

/// The settings of a client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) auth: Option<AuthInterceptor>,
    /// The error of calls that would send credentials over plaintext.
    pub(crate) plaintext_error: Option<Status>,
    pub(crate) timeout: Timeout,
    pub(crate) retry: Option<Retry>,
    pub(crate) max_decoding_message_size: Option<usize>,
    pub(crate) max_encoding_message_size: Option<usize>,
    pub(crate) max_header_list_size: Option<usize>,
    pub(crate) max_waits: Option<usize>,
    pub(crate) headers: Template,
    pub(crate) recorder: Option<Arc<dyn Recorder>>,
    pub(crate) propagator: Propagator,
}

impl Settings {
    /// Returns settings with the timeout and the retry policy of the
    /// [published service config](https://github.com/googleapis/googleapis/tree/master/google/longrunning).
    pub(crate) fn published() -> Self {
        Self {
            timeout: Timeout {
                set: None,
                default: Some(TIMEOUT),
            },
            retry: Some(Retry::new(RetryPolicy::default())),
            ..Self::default()
        }
    }
}

/// The timeout of a call in the published service config.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The timeout of calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timeout {
    /// The timeout that the user has set.
    pub(crate) set: Option<Duration>,
    /// The timeout if the user has set none. It does not apply to WaitOperation.
    default: Option<Duration>,
}

impl Timeout {
    pub(super) fn any(self) -> Option<Duration> {
        self.set.or(self.default)
    }
}

impl<S> OperationsClient<S> {
    /// Sets the timeout of a call, which includes all its attempts.
    ///
    /// The timeout of a [`tonic::Request`] replaces it. The timeout of a WaitOperation whose message contains
    /// one is 10 seconds longer than that.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout.set = Some(timeout);
        self
    }

    pub(crate) fn with_settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// Sends these credentials with every call.
    ///
    /// While there is no token, a call waits until its deadline, or for 10 seconds if it has no
    /// deadline. If the server answers `UNAUTHENTICATED`, the caller gets that status, and a new
    /// token is fetched. A request with its own `authorization` header keeps that header.
    ///
    /// The plaintext rules of [`ClientBuilder::credentials`](crate::ClientBuilder::credentials) apply to a
    /// client from [`builder`](OperationsClient::builder): calls that break them fail with
    /// `UNAUTHENTICATED`. A client from [`new`](Self::new) always sends credentials, because its
    /// endpoint is not known.
    ///
    /// ```
    /// # async fn example<S: longrunning::GrpcStack>(client: longrunning::OperationsClient<S>) -> Result<(), tonic::Status> {
    /// use longrunning::Credentials;
    ///
    /// let auth = Credentials::bearer_token("ya29.c").interceptor().await?;
    /// let client = client.auth(auth);
    /// # let _ = client;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn auth(mut self, auth: AuthInterceptor) -> Self {
        self.settings.auth = Some(auth);
        self
    }

    /// Returns the client's credentials.
    ///
    /// Another client can share their token. [`AuthInterceptor::status`] returns its state.
    pub const fn auth_interceptor(&self) -> Option<&AuthInterceptor> {
        self.settings.auth.as_ref()
    }

    /// Sets the retry policy.
    ///
    /// A stack that retries calls itself needs no policy here.
    ///
    /// Defaults to the published policy for a client from [`builder`](OperationsClient::builder), and to no
    /// retries for a client from [`new`](Self::new).
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.settings.retry = Some(Retry::new(policy));
        self
    }

    /// Sets the maximum size of a response in bytes.
    ///
    /// A call whose response is larger ends with `RESOURCE_EXHAUSTED`.
    ///
    /// Defaults to 4 MiB.
    #[must_use]
    pub const fn max_decoding_message_size(mut self, bytes: usize) -> Self {
        self.settings.max_decoding_message_size = Some(bytes);
        self
    }

    /// Sets the maximum size of a request in bytes.
    ///
    /// A call whose request is larger ends with `RESOURCE_EXHAUSTED`; nothing is sent.
    ///
    /// Defaults to no limit.
    #[must_use]
    pub const fn max_encoding_message_size(mut self, bytes: usize) -> Self {
        self.settings.max_encoding_message_size = Some(bytes);
        self
    }

    /// Sets the maximum total size of the headers of a request.
    ///
    /// The size includes metadata, credentials, the routing header, the headers of gRPC itself, and
    /// 368 bytes for the pseudo-headers and the header of retries. Each header counts 32 bytes more
    /// than its name and value, as in
    /// [HTTP/2](https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2).
    ///
    /// A request with larger headers ends with `INVALID_ARGUMENT`, whose message names the largest
    /// header; nothing is sent. Raise the limit only if the server, and each proxy in front of it,
    /// accepts more: others refuse the call, or close the connection, which fails the other calls
    /// on it.
    ///
    /// Defaults to 8 KiB, the limit that
    /// [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests)
    /// recommends to servers.
    #[must_use]
    pub const fn max_header_list_size(mut self, bytes: usize) -> Self {
        self.settings.max_header_list_size = Some(bytes);
        self
    }

    /// Sets a recorder, which receives measurements of calls, attempts and polls.
    ///
    /// It replaces the previous recorder; a `Vec` of recorders combines several.
    ///
    /// The recorder also receives a [`StatsSource`](crate::StatsSource) of this client with its current credentials
    /// and retry policy, so set those first. Set the recorder only once per client; otherwise a recorder may count
    /// the same connections twice.
    ///
    /// Defaults to none.
    #[must_use]
    pub fn recorder(mut self, recorder: Arc<dyn Recorder>) -> Self {
        self.settings.recorder = Some(recorder);
        self.report_created();
        self
    }

    /// Reports to the recorder that this client was created.
    pub(crate) fn report_created(&self) {
        if let Some(recorder) = &self.settings.recorder {
            recorder.client_created(&self.stats_source());
        }
    }

    /// Sets a propagator, which adds the trace context to the headers of each attempt.
    ///
    /// See [`ClientBuilder::propagator`](crate::ClientBuilder::propagator).
    ///
    /// Requires the feature `opentelemetry`. Defaults to none.
    #[cfg(feature = "opentelemetry")]
    #[must_use]
    pub fn propagator(
        mut self,
        propagator: impl opentelemetry::propagation::TextMapPropagator + Send + Sync + 'static,
    ) -> Self {
        self.settings.propagator = Propagator::new(propagator);
        self
    }

    pub(super) fn header_list_limit(&self) -> usize {
        let set = self.settings.max_header_list_size;
        set.unwrap_or(MAX_HEADER_LIST_SIZE)
    }

    /// Returns a client for a poller, which handles `RESOURCE_EXHAUSTED` itself.
    pub(crate) fn for_polls(mut self) -> Self {
        let retry = self.settings.retry.take();
        // Set even if the client has no policy, because the request may have one.
        let retry = retry.unwrap_or_else(|| Retry::new(RetryPolicy::none()));
        self.settings.retry = Some(retry.without_quota());
        self
    }

    /// Returns the client without retries, and its retry policy, for a caller that retries calls itself.
    pub(crate) fn without_retries(mut self) -> (Self, RetryPolicy) {
        let retry = self.settings.retry.take();
        let policy = retry.as_ref().map(|retry| retry.policy().clone());
        self.settings.retry = retry.map(Retry::without_retries);
        (self, policy.unwrap_or_default())
    }

    /// Sets the timeout of a request: its own, or else that of the client, or else the published 10 s, but at
    /// most the time that its caller has left.
    pub(crate) fn bound<R>(&self, request: &mut Request<R>, left: Option<Duration>) {
        let Ok(own) = deadline::timeout_in(request.metadata().as_ref()) else {
            return; // the call will fail because of it
        };
        let own = own.or(self.settings.timeout.any()).unwrap_or(TIMEOUT);
        let timeout = left.map_or(own, |left| left.min(own));
        deadline::set(request.metadata_mut().as_mut(), timeout);
    }
}

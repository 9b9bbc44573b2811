//! Credentials of a builder, and the rules for plaintext.

use std::mem;

use tonic::{Code, Status};

use super::{ClientBuilder, endpoint::remote};
use crate::{
    auth::{AuthInterceptor, Credentials},
    client::OperationsClient,
    status::local,
    transport::Transport,
};

#[derive(Clone, Debug)]
pub(super) enum Auth {
    Credentials(Credentials),
    Interceptor(AuthInterceptor),
}

impl Default for Auth {
    fn default() -> Self {
        Self::Credentials(Credentials::none())
    }
}

impl Auth {
    fn sends_nothing(&self) -> bool {
        match self {
            Self::Credentials(credentials) => credentials.is_none(),
            Self::Interceptor(auth) => auth.sends_nothing(),
        }
    }

    pub(super) fn interceptor(self) -> Result<AuthInterceptor, Status> {
        match self {
            Self::Credentials(credentials) => credentials.interceptor_lazy(),
            Self::Interceptor(auth) => Ok(auth),
        }
    }
}

impl ClientBuilder {
    /// Takes the credentials out of the builder.
    ///
    /// # Errors
    ///
    /// `FAILED_PRECONDITION`: they would be sent over plaintext.
    pub(super) fn take_auth(&mut self) -> Result<Auth, Status> {
        let auth = mem::take(&mut self.auth);
        let auth = match (auth, self.remote_host()) {
            (Auth::Credentials(credentials), Some(host)) => {
                Auth::Credentials(credentials.for_endpoint(host))
            }
            (auth, _) => auth,
        };
        match self.plaintext() {
            Some(refusal) if !auth.sends_nothing() => Err(refusal),
            _ => Ok(auth),
        }
    }

    /// Returns the error for credentials over plaintext, if the endpoint does not allow them.
    ///
    /// With a custom connector or another authority, `localhost` may be the start of a tunnel.
    pub(super) fn plaintext(&self) -> Option<Status> {
        let is_open = self.endpoint.is_plaintext()
            && (self.endpoint.remote_host().is_some()
                || self.remote_host().is_some()
                || self.connector.is_some());
        (is_open && !self.credentials_in_plaintext).then(|| {
            local(
                Code::FailedPrecondition,
                format!(
                    "endpoint {:?}: credentials over plaintext could be read on the way: use https, or allow it with credentials_in_plaintext()",
                    self.endpoint
                ),
            )
        })
    }

    /// Returns the name of the server's host, unless it is this machine.
    fn remote_host(&self) -> Option<&str> {
        match &self.authority {
            Some(Ok(authority)) => remote(authority.host()),
            _ => self.endpoint.remote_host(),
        }
    }
}

/// Adds credentials to a client, unless they send nothing.
pub(super) fn add(
    client: OperationsClient<Transport>,
    auth: AuthInterceptor,
) -> OperationsClient<Transport> {
    if auth.sends_nothing() {
        return client;
    }
    client.auth(auth)
}

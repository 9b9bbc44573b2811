//! The published state of a token: the current one, and why there is no newer one.

use std::{sync::Arc, time::SystemTime};

use http::{HeaderName, HeaderValue};
use tonic::Status;

use crate::{
    auth::{failure::unavailable, token::Token},
    expiry::Expiry,
    transport::Unsent,
};

/// The sequence number of a token. The first token of a source is 1.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Generation(pub(super) u64);

/// What the renewal task publishes to its interceptors.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(in crate::auth) current: Option<Current>,
    /// Why the last fetch failed; `None` if it succeeded.
    pub(in crate::auth) failure: Option<Status>,
    /// When the next fetch is due; `None` while one is in progress.
    pub(in crate::auth) next_fetch: Option<Expiry>,
}

pub(crate) struct Current {
    pub(in crate::auth) headers: Arc<[(HeaderName, HeaderValue)]>,
    pub(in crate::auth) fetched_at: SystemTime,
    pub(in crate::auth) expiry: Option<Expiry>,
    pub(in crate::auth) generation: Generation,
}

impl Published {
    /// Returns the current token, or the reason why no valid one exists.
    pub(crate) fn valid(&self) -> Result<&Current, Status> {
        match (&self.current, &self.failure) {
            (Some(current), _) if current.is_valid() => Ok(current),
            (_, Some(failure)) => Err(failure.clone()),
            // This cause makes `OperationsClient` wait for the renewal.
            (Some(_), None) => Err(Unsent::CredentialsExpired
                .status("credentials: the token has expired and is being renewed")),
            (None, None) => Err(unavailable("the first token has not been fetched yet")),
        }
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.current.as_ref().is_some_and(Current::is_valid)
    }

    /// Returns whether a fetch is due that the task may have missed, because its timer does not
    /// advance while the machine sleeps.
    pub(crate) fn is_due(&self) -> bool {
        let is_due = |at: Expiry| self.failure.is_none() || at.has_passed();
        !self.is_valid() && self.next_fetch.is_some_and(is_due)
    }
}

impl Current {
    fn is_valid(&self) -> bool {
        self.expiry.is_none_or(|expiry| !expiry.has_passed())
    }

    /// Returns whether this token expires after another. False if either expiry is unknown.
    pub(super) fn outlives(&self, other: &Token) -> bool {
        match (self.expiry, other.expiry) {
            (Some(own), Some(other)) => own.remaining() > other.remaining(),
            _ => false,
        }
    }
}

// The headers are secret.
impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current")
            .field("expiry", &self.expiry)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

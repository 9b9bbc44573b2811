//! What the owner has published last: a token, and why there is no newer one.

use http::{HeaderName, HeaderValue};
use tokio::time::Instant;
use tonic::Status;

use crate::auth::failure::unavailable;

#[derive(Default)]
pub(crate) struct Published {
    pub(super) current: Option<Current>,
    pub(super) failure: Option<Status>,
}

pub(super) struct Current {
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) valid_until: Option<Instant>,
}

impl Published {
    /// Returns the headers of a token that is good now, else why there are none.
    pub(crate) fn headers(&self) -> Result<&[(HeaderName, HeaderValue)], Status> {
        match (&self.current, &self.failure) {
            (Some(current), _) if current.is_valid() => Ok(&current.headers),
            (_, Some(failure)) => Err(failure.clone()),
            (Some(_), None) => Err(unavailable("the token has expired and is being renewed")),
            (None, None) => Err(unavailable("the first token has not come yet")),
        }
    }

    pub(crate) fn valid_until(&self) -> Option<Instant> {
        self.current.as_ref()?.valid_until
    }

    pub(crate) fn failure(&self) -> Option<&Status> {
        self.failure.as_ref()
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.current.as_ref().is_some_and(Current::is_valid)
    }
}

impl Current {
    pub(super) fn is_valid(&self) -> bool {
        self.valid_until
            .is_none_or(|instant| Instant::now() < instant)
    }
}

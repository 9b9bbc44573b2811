//! The head of a unary call's request.

use std::{fmt, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, CONTENT_TYPE, TE, USER_AGENT},
};

use crate::deadline::{GRPC_TIMEOUT, TimeoutCache};

pub(crate) const REQUEST_PARAMS: HeaderName = HeaderName::from_static("x-goog-request-params");
pub(crate) const API_CLIENT: HeaderName = HeaderName::from_static("x-goog-api-client");
/// A static, because [`CredentialHeaders::iter`] returns a reference to it.
static QUOTA_PROJECT: HeaderName = HeaderName::from_static("x-goog-user-project");
pub(crate) const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// The value of `grpc-accept-encoding`.
pub(crate) const ACCEPTED_ENCODINGS: Option<&str> = if cfg!(feature = "gzip") {
    Some("gzip")
} else {
    None
};

/// The head of a unary call's request: its path and its headers.
///
/// h2 takes ownership of the header map of each request. A call keeps this head instead of a map that it would have to
/// clone: the default transport builds the map when it sends the request, and again for a retry.
#[derive(Clone, Debug)]
pub(crate) struct UnaryHead {
    pub(crate) path: &'static str,
    pub(crate) template: Template,
    /// The caller's metadata, and headers that are specific to the attempt. They replace those of the template.
    pub(crate) metadata: HeaderMap,
    /// The routing header, unless the metadata has one.
    pub(crate) routing: Option<HeaderValue>,
    pub(crate) credentials: Option<CredentialHeaders>,
    /// The timeout of the attempt, for which `grpc-timeout` is cached.
    pub(crate) timeout: Option<Duration>,
}

impl UnaryHead {
    /// Builds the header map. If `remaining` is `Some`, `grpc-timeout` is the first header.
    pub(crate) fn headers(&self, remaining: Option<Duration>) -> HeaderMap {
        let templates = &*self.template.0;
        let mut headers = match remaining {
            Some(_) => templates.timed.clone(),
            None => templates.untimed.clone(),
        };
        headers.extend(self.metadata.clone());
        if let Some(remaining) = remaining {
            let timeout = self.timeout.unwrap_or(remaining);
            headers.insert(GRPC_TIMEOUT, templates.timeouts.value(remaining, timeout));
        }
        let is_set = |name: HeaderName| self.metadata.contains_key(name);
        match &self.routing {
            _ if is_set(REQUEST_PARAMS) => {}
            Some(routing) => drop(headers.insert(REQUEST_PARAMS, routing.clone())),
            None => drop(headers.remove(REQUEST_PARAMS)),
        }
        let mut credentials = self.credentials.iter().flat_map(CredentialHeaders::iter);
        if !is_set(AUTHORIZATION) && !credentials.any(|(name, _)| *name == AUTHORIZATION) {
            headers.remove(AUTHORIZATION);
        }
        if let Some(credentials) = &self.credentials {
            credentials.add_to(&mut headers);
        }
        headers
    }

    /// Returns whether the template, the metadata or the credentials have a header of this name.
    #[cfg(feature = "opentelemetry")]
    pub(crate) fn is_set(&self, name: &str) -> bool {
        let mut credentials = self.credentials.iter().flat_map(CredentialHeaders::iter);
        self.template.0.timed.contains_key(name)
            || self.metadata.contains_key(name)
            || credentials.any(|(other, _)| other == name)
    }

    /// Returns an upper bound on the total size of the headers, as HTTP/2 counts it.
    pub(crate) fn max_size(&self) -> usize {
        let credentials = self.credentials.iter().flat_map(CredentialHeaders::iter);
        self.template.0.size
            + self.metadata.iter().map(size).sum::<usize>()
            + self.routing.as_ref().map_or(0, HeaderValue::len)
            + credentials.map(size).sum::<usize>()
    }
}

/// The headers that authenticate a call.
#[derive(Clone)]
pub(crate) struct CredentialHeaders {
    pub(crate) headers: Arc<[(HeaderName, HeaderValue)]>,
    pub(crate) quota_project: Option<HeaderValue>,
}

impl CredentialHeaders {
    /// Adds the headers to those of a call. The quota project of the call takes precedence, then that of the client,
    /// then that of the token.
    pub(crate) fn add_to(&self, to: &mut HeaderMap) {
        let quota_project = self.quota_project.as_ref();
        for (name, value) in &*self.headers {
            if *name == QUOTA_PROJECT && (quota_project.is_some() || to.contains_key(name)) {
                continue;
            }
            to.insert(name.clone(), value.clone());
        }
        if let Some(project) = quota_project.filter(|_| !to.contains_key(&QUOTA_PROJECT)) {
            to.insert(QUOTA_PROJECT.clone(), project.clone());
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        let quota_project = self.quota_project.iter().map(|it| (&QUOTA_PROJECT, it));
        let headers = self.headers.iter().map(|(name, value)| (name, value));
        headers.chain(quota_project)
    }
}

/// Omits the headers, which are secret.
impl fmt::Debug for CredentialHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialHeaders")
    }
}

/// Returns the size of a header as HTTP/2 counts it, see
/// <https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2>.
pub(crate) fn size((name, value): (&HeaderName, &HeaderValue)) -> usize {
    name.as_str().len() + value.len() + 32
}

/// The headers that are the same for all calls of a client.
///
/// They include the names of headers that most calls set, with empty values: cloning the map and replacing values is
/// much cheaper than building one.
///
/// [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests) recommends that
/// `grpc-timeout` comes first, and that protocol headers precede custom metadata. In practice, a `HeaderMap` iterates
/// in the order of insertion, and removing a header moves the last one into its place. So no protocol header is ever
/// removed. `tests/connections.rs` checks the order.
#[derive(Clone)]
pub(crate) struct Template(Arc<Templates>);

struct Templates {
    timed: HeaderMap,
    untimed: HeaderMap,
    timeouts: TimeoutCache,
    has_user_agent: bool,
    /// The size of the headers, with the largest `grpc-timeout`.
    size: usize,
}

/// Omits the headers, which are the same for all calls of a client.
impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template")
    }
}

impl Default for Template {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Template {
    pub(crate) fn new(user_agent: Option<&HeaderValue>) -> Self {
        /// Eight digits and a unit.
        const LARGEST_TIMEOUT: usize = 9;
        let headers = |is_timed: bool| {
            let mut headers = HeaderMap::with_capacity(8);
            let empty = HeaderValue::from_static("");
            if is_timed {
                headers.insert(GRPC_TIMEOUT, empty.clone());
            }
            headers.insert(TE, HeaderValue::from_static("trailers"));
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            if let Some(encodings) = ACCEPTED_ENCODINGS {
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(encodings));
            }
            if let Some(user_agent) = user_agent {
                headers.insert(USER_AGENT, user_agent.clone());
            }
            headers.insert(API_CLIENT, api_client());
            headers.insert(AUTHORIZATION, empty.clone());
            headers.insert(REQUEST_PARAMS, empty);
            headers
        };
        let timed = headers(true);
        Self(Arc::new(Templates {
            size: timed.iter().map(size).sum::<usize>() + LARGEST_TIMEOUT,
            timed,
            untimed: headers(false),
            timeouts: TimeoutCache::default(),
            has_user_agent: user_agent.is_some(),
        }))
    }

    pub(crate) fn has_user_agent(&self) -> bool {
        self.0.has_user_agent
    }
}

/// Returns the value of `x-goog-api-client`: the versions of the library, for the statistics of Google's services.
pub(crate) fn api_client() -> HeaderValue {
    HeaderValue::from_static(env!("LONGRUNNING_API_CLIENT"))
}

//! Propagation of the trace context, if the feature `opentelemetry` is enabled.

#[cfg(feature = "opentelemetry")]
use std::sync::Arc;

#[cfg(feature = "opentelemetry")]
use http::{HeaderName, HeaderValue};
#[cfg(feature = "opentelemetry")]
use opentelemetry::{
    Context,
    propagation::{Injector, TextMapPropagator},
};

use crate::request::UnaryHead;

/// Adds the trace context to the headers of requests, if the user has set a propagator.
#[derive(Clone, Debug, Default)]
pub(crate) struct Propagator {
    #[cfg(feature = "opentelemetry")]
    inner: Option<Arc<dyn TextMapPropagator + Send + Sync>>,
}

#[cfg(not(feature = "opentelemetry"))]
impl Propagator {
    pub(crate) fn inject(&self, _: &mut UnaryHead) {}
}

#[cfg(feature = "opentelemetry")]
impl Propagator {
    pub(crate) fn new(propagator: impl TextMapPropagator + Send + Sync + 'static) -> Self {
        Self {
            inner: Some(Arc::new(propagator)),
        }
    }

    /// Adds the headers of the current trace context, unless the request already has one of the propagator's fields.
    pub(crate) fn inject(&self, head: &mut UnaryHead) {
        if let Some(propagator) = &self.inner
            && !propagator.fields().any(|name| head.is_set(name))
        {
            propagator.inject_context(&Context::current(), &mut Headers(head));
        }
    }
}

#[cfg(feature = "opentelemetry")]
struct Headers<'a>(&'a mut UnaryHead);

#[cfg(feature = "opentelemetry")]
impl Injector for Headers<'_> {
    /// Adds a header. Does nothing if the header is set already, or is invalid, or if the value is empty, such as
    /// a `tracestate` without entries.
    fn set(&mut self, name: &str, value: String) {
        if value.is_empty() || self.0.is_set(name) {
            return;
        }
        if let (Ok(name), Ok(mut value)) =
            (HeaderName::try_from(name), HeaderValue::try_from(value))
        {
            // The value differs for every attempt. If HPACK indexed it, it would evict other headers from the dynamic
            // table.
            value.set_sensitive(true);
            self.0.metadata.insert(name, value);
        }
    }
}

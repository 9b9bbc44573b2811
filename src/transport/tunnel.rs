//! A tunnel through an HTTP proxy.

use std::task::{Context, Poll};

use http::Uri;
use hyper_util::{
    client::{legacy::connect::proxy::Tunnel, proxy::matcher::Intercept},
    rt::TokioIo,
};
use tonic::codegen::BoxFuture;
use tower::{BoxError, Service};

use super::dial::{Dial, Io};

impl Dial {
    /// Returns a `Dial` that connects to the server through a tunnel that an HTTP proxy opens.
    pub(crate) fn through(&self, proxy: &Intercept) -> Self {
        let tunnel = Tunnel::new(proxy.uri().clone(), ToProxy(self.clone()));
        Self::custom(match proxy.basic_auth() {
            Some(auth) => tunnel.with_auth(auth.clone()),
            None => tunnel,
        })
    }
}

/// Adapts a [`Dial`] to a connector that hyper-util's `Tunnel` uses to connect to the proxy.
#[derive(Clone)]
struct ToProxy(Dial);

impl Service<Uri> for ToProxy {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = BoxError;
    type Future = BoxFuture<Self::Response, BoxError>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, proxy: Uri) -> Self::Future {
        let dial = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(dial.dial(proxy).await?.io)) })
    }
}

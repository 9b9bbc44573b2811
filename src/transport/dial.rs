//! The byte stream to the server: TCP, or what the user's connector gives.

use std::{fmt, future::poll_fn, sync::Arc, time::Duration};

use http::Uri;
use hyper::rt::{Read, Write};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Mutex,
};
use tonic::codegen::BoxFuture;
use tower::{BoxError, Service};

/// A byte stream to the server.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What gives a byte stream to the server.
#[derive(Clone)]
pub(crate) struct Dial(Arc<dyn Dialing>);

trait Dialing: Send + Sync {
    fn dial(&self, uri: Uri) -> BoxFuture<Box<dyn Io>, BoxError>;
}

impl Dial {
    /// Looks the host up, and tries its addresses.
    pub(crate) fn tcp(timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        // Shared evenly by the addresses, so that some of it is left for TLS and HTTP/2.
        connector.set_connect_timeout(Some(timeout.mul_f32(0.75)));
        // The kernel finds out by itself about a peer that is gone, without a ping of HTTP/2 that
        // a strict server would count.
        connector.set_keepalive(Some(Duration::from_secs(60)));
        connector.set_keepalive_interval(Some(Duration::from_secs(10)));
        connector.set_keepalive_retries(Some(3));
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        connector.set_tcp_user_timeout(Some(Duration::from_secs(30)));
        Self(Arc::new(Tcp(connector)))
    }

    pub(crate) fn custom<C>(connector: C) -> Self
    where
        C: Service<Uri> + Send + 'static,
        C::Response: Read + Write + Send + Unpin + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
    {
        Self(Arc::new(Custom(Arc::new(Mutex::new(connector)))))
    }

    pub(crate) async fn dial(&self, uri: Uri) -> Result<Box<dyn Io>, BoxError> {
        self.0.dial(uri).await
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dial")
    }
}

struct Tcp(HttpConnector);

impl Dialing for Tcp {
    fn dial(&self, uri: Uri) -> BoxFuture<Box<dyn Io>, BoxError> {
        let mut connector = self.0.clone();
        Box::pin(async move {
            poll_fn(|cx| connector.poll_ready(cx)).await?;
            let io = connector.call(uri).await?.into_inner();
            Ok(Box::new(io) as _)
        })
    }
}

struct Custom<C>(Arc<Mutex<C>>);

impl<C> Dialing for Custom<C>
where
    C: Service<Uri> + Send + 'static,
    C::Response: Read + Write + Send + Unpin + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
{
    fn dial(&self, uri: Uri) -> BoxFuture<Box<dyn Io>, BoxError> {
        let connector = self.0.clone();
        Box::pin(async move {
            let connecting = {
                let mut connector = connector.lock().await;
                poll_fn(|cx| connector.poll_ready(cx))
                    .await
                    .map_err(Into::into)?;
                connector.call(uri)
            };
            let io = connecting.await.map_err(Into::<BoxError>::into)?;
            Ok(Box::new(TokioIo::new(io)) as _)
        })
    }
}

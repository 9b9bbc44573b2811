//! The byte stream to the server: TCP, or what the user's connector gives.

use std::{
    fmt,
    future::{poll_fn, ready},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
    vec,
};

use http::Uri;
use hyper::rt::{Read, Write};
use hyper_util::{
    client::legacy::connect::{
        HttpConnector,
        dns::{GaiResolver, Name},
    },
    rt::TokioIo,
};
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
        let mut connector = HttpConnector::new_with_resolver(Resolver(GaiResolver::new()));
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

/// Returns whether a host name is `localhost`, which always means the loopback addresses, see
/// [RFC 6761](https://www.rfc-editor.org/rfc/rfc6761#section-6.3).
pub(crate) fn is_localhost(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    name.eq_ignore_ascii_case("localhost")
}

/// A resolver that returns the loopback addresses for `localhost`, and resolves other names with `R`.
#[derive(Clone)]
struct Resolver<R>(R);

impl<R> Service<Name> for Resolver<R>
where
    R: Service<Name, Error = io::Error>,
    R::Response: Iterator<Item = SocketAddr>,
    R::Future: Send + 'static,
{
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<Self::Response, io::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        if is_localhost(name.as_str()) {
            // The connector sets the port.
            let addresses: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            let addresses = addresses
                .map(|address| SocketAddr::new(address, 0))
                .to_vec();
            return Box::pin(ready(Ok(addresses.into_iter())));
        }
        let found = self.0.call(name);
        Box::pin(async { Ok(found.await?.collect::<Vec<_>>().into_iter()) })
    }
}

struct Tcp(HttpConnector<Resolver<GaiResolver>>);

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

#[cfg(test)]
mod tests {
    use super::*;

    /// A resolver that returns the address of another machine for every name.
    fn elsewhere(_: Name) -> std::future::Ready<io::Result<vec::IntoIter<SocketAddr>>> {
        ready(Ok(vec![ELSEWHERE].into_iter()))
    }

    const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 0);

    async fn addresses(host: &str) -> Vec<SocketAddr> {
        let name = host.parse().expect("a name");
        let found = Resolver(tower::service_fn(elsewhere)).call(name).await;
        found.expect("addresses").collect()
    }

    #[tokio::test]
    async fn localhost_is_the_loopback_addresses_and_is_not_looked_up() {
        for host in ["localhost", "localhost.", "LocalHost", "LOCALHOST."] {
            let found = addresses(host).await;
            assert_eq!(found.len(), 2, "{host}");
            assert!(
                found.iter().all(|address| address.ip().is_loopback()),
                "{host}"
            );
        }
    }

    #[tokio::test]
    async fn any_other_host_is_looked_up() {
        for host in [
            "localhost..",
            "localhost.test",
            "alocalhost",
            "automl.googleapis.com",
        ] {
            assert_eq!(addresses(host).await, [ELSEWHERE], "{host}");
        }
    }
}

//! The byte stream to the server: TCP, or a custom connector.

use std::{
    fmt,
    future::{poll_fn, ready},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
    vec,
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
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
    time::sleep,
};
use tonic::codegen::BoxFuture;
use tower::{BoxError, Service};

/// A byte stream to the server.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Connects byte streams to the server.
#[derive(Clone)]
pub(crate) struct Dial(Arc<dyn Dialing>);

trait Dialing: Send + Sync {
    fn dial(&self, uri: Uri) -> BoxFuture<Box<dyn Io>, BoxError>;
}

impl Dial {
    /// Looks the host up for every connection, and connects to its addresses over TCP.
    pub(crate) fn tcp() -> Self {
        let tcp = Tcp {
            resolver: Resolver(GaiResolver::new()),
            next: AtomicUsize::new(0),
        };
        Self(Arc::new(Arc::new(tcp)))
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

/// Connects over TCP.
///
/// Each connection starts at the next of the host's addresses, so that they are spread over all of
/// them. Attempts are staggered as in [RFC 8305](https://www.rfc-editor.org/rfc/rfc8305#section-5): an
/// address that is dead or slow costs 250 ms.
struct Tcp<R> {
    resolver: R,
    /// Where the next connection starts.
    next: AtomicUsize,
}

/// How long one address is tried before the next is tried, too.
const STAGGER: Duration = Duration::from_millis(250);

impl<R> Tcp<R>
where
    R: Service<Name, Response = vec::IntoIter<SocketAddr>, Error = io::Error> + Clone,
{
    async fn connect(&self, uri: Uri) -> Result<Box<dyn Io>, BoxError> {
        let addresses = self.resolve(&uri).await?;
        let mut addresses = self.in_turn(addresses).into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut failure = None;
        loop {
            match addresses.next() {
                Some(address) => attempts.push(connect_to(address, uri.clone())),
                None if attempts.is_empty() => break,
                None => {}
            }
            let more = !addresses.as_slice().is_empty();
            tokio::select! {
                Some(attempt) = attempts.next() => match attempt {
                    Ok(io) => return Ok(io),
                    Err(error) => failure = Some(error),
                },
                () = sleep(STAGGER), if more => {}
            }
        }
        Err(failure.unwrap_or_else(|| "the host has no addresses".into()))
    }

    async fn resolve(&self, uri: &Uri) -> Result<Vec<SocketAddr>, BoxError> {
        let host = uri.host().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = literal.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, 0)]);
        }
        let mut resolver = self.resolver.clone();
        let name = host.parse()?;
        poll_fn(|cx| resolver.poll_ready(cx)).await?;
        let found = resolver.call(name).await;
        let found = found.map_err(|error| format!("dns error: {error}"))?;
        Ok(found.collect())
    }

    /// Orders the addresses: the families take turns, that of the first address first, and each
    /// connection starts one address later.
    fn in_turn(&self, addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let Some(first) = addresses.first() else {
            return addresses;
        };
        let is_v6 = first.is_ipv6();
        // The resolver may shuffle them. That must not undo the turns.
        let (mut preferred, mut others): (Vec<_>, Vec<_>) = addresses
            .into_iter()
            .partition(|address| address.is_ipv6() == is_v6);
        preferred.sort_unstable();
        others.sort_unstable();
        let count = preferred.len() + others.len();
        let (mut preferred, mut others) = (preferred.into_iter(), others.into_iter());
        let mut in_turn: Vec<_> = std::iter::from_fn(|| Some([preferred.next(), others.next()]))
            .take(count)
            .flatten()
            .flatten()
            .collect();
        in_turn.rotate_left(self.next.fetch_add(1, Ordering::Relaxed) % count);
        in_turn
    }
}

/// Connects to one address, with the options of all connections.
async fn connect_to(address: SocketAddr, uri: Uri) -> Result<Box<dyn Io>, BoxError> {
    let only = tower::service_fn(move |_: Name| ready(io::Result::Ok(std::iter::once(address))));
    let mut connector = HttpConnector::new_with_resolver(only);
    connector.enforce_http(false);
    connector.set_nodelay(true);
    // The kernel finds out about a peer that is gone, without a ping of HTTP/2, which a strict server
    // would count.
    connector.set_keepalive(Some(Duration::from_secs(60)));
    connector.set_keepalive_interval(Some(Duration::from_secs(10)));
    connector.set_keepalive_retries(Some(3));
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    connector.set_tcp_user_timeout(Some(Duration::from_secs(30)));
    poll_fn(|cx| connector.poll_ready(cx)).await?;
    let io = connector.call(uri).await?.into_inner();
    Ok(Box::new(io))
}

impl<R> Dialing for Arc<Tcp<R>>
where
    R: Service<Name, Response = vec::IntoIter<SocketAddr>, Error = io::Error>
        + Clone
        + Send
        + Sync
        + 'static,
    R::Future: Send,
{
    fn dial(&self, uri: Uri) -> BoxFuture<Box<dyn Io>, BoxError> {
        let tcp = self.clone();
        Box::pin(async move { tcp.connect(uri).await })
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

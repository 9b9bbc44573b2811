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
    net::TcpStream,
    sync::Mutex,
    time::sleep,
};
use tonic::codegen::BoxFuture;
use tower::{BoxError, Service};

/// A byte stream to the server.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A byte stream to the server, and the address of the peer if it is known.
pub(crate) struct Dialed {
    pub(crate) io: Box<dyn Io>,
    pub(crate) peer: Option<SocketAddr>,
}

/// Connects byte streams to the server.
#[derive(Clone)]
pub(crate) struct Dial(Arc<dyn Dialing>);

trait Dialing: Send + Sync {
    fn dial(&self, uri: Uri) -> BoxFuture<Dialed, BoxError>;
}

impl Dial {
    /// Connects over TCP. The host is looked up for each connection.
    ///
    /// `user_timeout` is how long the peer may leave data unacknowledged, if that is limited.
    pub(crate) fn tcp(user_timeout: Option<Duration>) -> Self {
        Self(Arc::new(Tcp {
            resolver: Resolver(GaiResolver::new()),
            next: AtomicUsize::new(0),
            user_timeout,
        }))
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

    pub(crate) async fn dial(&self, uri: Uri) -> Result<Dialed, BoxError> {
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

/// Looks up the addresses of a host.
trait Resolve:
    Service<Name, Response = vec::IntoIter<SocketAddr>, Error = io::Error, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<R> Resolve for R where
    R: Service<Name, Response = vec::IntoIter<SocketAddr>, Error = io::Error, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Connects over TCP.
///
/// Each connection starts with another of the host's addresses, so that connections are spread over
/// all of them. Attempts are staggered as in
/// [RFC 8305](https://www.rfc-editor.org/rfc/rfc8305#section-5): an address that does not respond, or is
/// slow, delays the connection by 250 ms.
struct Tcp<R> {
    resolver: R,
    /// How many connections were started.
    next: AtomicUsize,
    user_timeout: Option<Duration>,
}

/// How long to wait for one address before connecting to the next as well.
const STAGGER: Duration = Duration::from_millis(250);

impl<R: Resolve> Tcp<R> {
    /// Connects to an address of the host. `turn` says with which to start.
    async fn connect(
        resolver: R,
        turn: usize,
        uri: Uri,
        user_timeout: Option<Duration>,
    ) -> Result<Dialed, BoxError> {
        let addresses = Self::resolve(resolver, &uri).await?;
        let mut addresses = in_turn(addresses, turn).into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut failure = None;
        loop {
            match addresses.next() {
                Some(address) => attempts.push(connect_to(address, uri.clone(), user_timeout)),
                None if attempts.is_empty() => break,
                None => {}
            }
            let more = !addresses.as_slice().is_empty();
            tokio::select! {
                Some(attempt) = attempts.next() => match attempt {
                    Ok(io) => {
                        let peer = io.peer_addr().ok();
                        return Ok(Dialed { io: Box::new(io), peer });
                    }
                    Err(error) => failure = Some(error),
                },
                () = sleep(STAGGER), if more => {}
            }
        }
        Err(failure.unwrap_or_else(|| "the host has no addresses".into()))
    }

    async fn resolve(mut resolver: R, uri: &Uri) -> Result<Vec<SocketAddr>, BoxError> {
        let host = uri.host().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = literal.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, 0)]);
        }
        let name = host.parse()?;
        poll_fn(|cx| resolver.poll_ready(cx)).await?;
        let found = resolver.call(name).await;
        let found = found.map_err(|error| format!("dns error: {error}"))?;
        Ok(found.collect())
    }
}

/// Orders addresses: the families alternate, that of the first address first, and each turn starts
/// one address later.
fn in_turn(addresses: Vec<SocketAddr>, turn: usize) -> Vec<SocketAddr> {
    let Some(first) = addresses.first() else {
        return addresses;
    };
    let is_v6 = first.is_ipv6();
    let (mut preferred, mut others): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == is_v6);
    // The order of the resolver may change from one look-up to the next.
    preferred.sort_unstable();
    others.sort_unstable();
    let count = preferred.len() + others.len();
    let (mut preferred, mut others) = (preferred.into_iter(), others.into_iter());
    let mut in_turn: Vec<_> = std::iter::from_fn(|| Some([preferred.next(), others.next()]))
        .take(count)
        .flatten()
        .flatten()
        .collect();
    in_turn.rotate_left(turn % count);
    in_turn
}

/// Connects to one address, with the options of all connections.
async fn connect_to(
    address: SocketAddr,
    uri: Uri,
    user_timeout: Option<Duration>,
) -> Result<TcpStream, BoxError> {
    let only = tower::service_fn(move |_: Name| ready(io::Result::Ok(std::iter::once(address))));
    let mut connector = HttpConnector::new_with_resolver(only);
    connector.enforce_http(false);
    connector.set_nodelay(true);
    // The kernel detects a peer that has gone, without HTTP/2 pings, which strict servers count.
    connector.set_keepalive(Some(Duration::from_secs(60)));
    connector.set_keepalive_interval(Some(Duration::from_secs(10)));
    connector.set_keepalive_retries(Some(3));
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    connector.set_tcp_user_timeout(user_timeout);
    #[cfg(not(any(target_os = "android", target_os = "fuchsia", target_os = "linux")))]
    let _ = user_timeout;
    poll_fn(|cx| connector.poll_ready(cx)).await?;
    Ok(connector.call(uri).await?.into_inner())
}

impl<R: Resolve> Dialing for Tcp<R> {
    fn dial(&self, uri: Uri) -> BoxFuture<Dialed, BoxError> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let resolver = self.resolver.clone();
        Box::pin(Self::connect(resolver, turn, uri, self.user_timeout))
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
    fn dial(&self, uri: Uri) -> BoxFuture<Dialed, BoxError> {
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
            let io = Box::new(TokioIo::new(io));
            Ok(Dialed { io, peer: None })
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        net::{TcpListener, TcpSocket},
        time::{Instant, timeout},
    };

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

    fn tcp(addresses: Vec<SocketAddr>) -> Tcp<impl Resolve> {
        Tcp {
            resolver: tower::service_fn(move |_: Name| ready(Ok(addresses.clone().into_iter()))),
            next: AtomicUsize::new(0),
            user_timeout: None,
        }
    }

    fn loopback(last: u8, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), port)
    }

    /// Listens on some loopback addresses at the same port.
    async fn listeners(count: u8) -> Vec<TcpListener> {
        let first = TcpListener::bind(loopback(1, 0))
            .await
            .expect("a free port");
        let port = first.local_addr().expect("it is bound").port();
        let mut listeners = vec![first];
        for last in 2..=count {
            let listener = TcpListener::bind(loopback(last, port)).await;
            listeners.push(listener.expect("a free port"));
        }
        listeners
    }

    #[tokio::test]
    async fn connections_are_spread_over_all_addresses() {
        let listeners = listeners(16).await;
        let port = listeners[0].local_addr().expect("it is bound").port();
        // As the resolver returns them, without ports, and in an order of its own.
        let tcp = tcp((1..=16).rev().map(|last| loopback(last, 0)).collect());
        let uri: Uri = format!("http://service.test:{port}")
            .parse()
            .expect("a URI");
        let mut connections = Vec::new();
        for _ in 0..20 {
            connections.push(tcp.dial(uri.clone()).await.expect("it listens"));
        }
        for listener in listeners {
            let accepted = timeout(Duration::from_secs(1), listener.accept()).await;
            accepted
                .expect("every address has one")
                .expect("a connection");
        }
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_costs_a_quarter_of_a_second() {
        let listeners = listeners(1).await;
        let port = listeners[0].local_addr().expect("it is bound").port();
        // A listener whose backlog is full drops what comes.
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(loopback(200, port)).expect("a free port");
        let _full = socket.listen(1).expect("it listens");
        let mut fill = Vec::new();
        for _ in 0..8 {
            let connecting = TcpStream::connect(loopback(200, port));
            fill.push(timeout(Duration::from_millis(50), connecting).await);
        }
        assert!(
            fill.last().is_some_and(Result::is_err),
            "the backlog is full"
        );
        let tcp = tcp(vec![loopback(200, 0), loopback(1, 0)]);
        tcp.next.store(1, Ordering::Relaxed); // the dead one comes first
        let uri: Uri = format!("http://service.test:{port}")
            .parse()
            .expect("a URI");
        let begin = Instant::now();
        tcp.dial(uri).await.expect("the second listens");
        let took = begin.elapsed();
        assert!((200..800).contains(&took.as_millis()), "{took:?}");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_user_timeout_is_set_on_the_socket() {
        let listeners = listeners(1).await;
        let address = listeners[0].local_addr().expect("it is bound");
        let uri: Uri = format!("http://{address}").parse().expect("a URI");
        for timeout in [None, Some(Duration::from_secs(20))] {
            let io = connect_to(address, uri.clone(), timeout).await;
            let io = io.expect("it listens");
            let set = socket2::SockRef::from(&io).tcp_user_timeout();
            assert_eq!(set.expect("a socket"), timeout);
        }
    }

    #[test]
    fn the_families_of_addresses_take_turns() {
        let v6 =
            |last: u16| SocketAddr::new(IpAddr::V6(Ipv6Addr::new(1, 0, 0, 0, 0, 0, 0, last)), 0);
        let v4 = |last| loopback(last, 0);
        let found = vec![v6(2), v4(1), v6(1), v6(3), v4(2)];
        let expected = [v6(1), v4(1), v6(2), v4(2), v6(3)];
        assert_eq!(in_turn(found.clone(), 0), expected);
        let expected = [v4(1), v6(2), v4(2), v6(3), v6(1)];
        assert_eq!(in_turn(found, 1), expected);
        assert_eq!(in_turn(Vec::new(), 2), []);
    }
}

//! Opens connections: a byte stream, TLS, the HTTP/2 handshake.

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use h2::client::{self, SendRequest};
use http::{
    Uri,
    uri::{Authority, Scheme},
};
use tokio::time::timeout;
use tonic::{Code, Status};
use tower::BoxError;

use super::{
    body::RequestBody,
    counted_io::{CountedIo, IoState},
    dial::{Dial, Dialed, Io},
};
use crate::status::{Delivery, Origin, classify, reworded};

/// Opens connections to one server.
pub(crate) struct Connector {
    pub(crate) uri: Uri,
    pub(crate) authority: Authority,
    pub(crate) dial: Dial,
    #[cfg(feature = "proxy")]
    pub(crate) proxy: Option<Authority>,
    #[cfg(feature = "_tls")]
    pub(crate) tls: Option<Tls>,
    /// For everything up to the server's SETTINGS.
    pub(crate) timeout: Duration,
}

/// TLS, and the name that the server's certificate must have.
#[cfg(feature = "_tls")]
pub(crate) struct Tls {
    pub(crate) config: Arc<tokio_rustls::rustls::ClientConfig>,
    pub(crate) name: tokio_rustls::rustls::pki_types::ServerName<'static>,
}

/// A connection that is open: the server's SETTINGS have arrived.
pub(crate) struct Opened {
    pub(crate) sender: SendRequest<RequestBody>,
    pub(crate) http2: Http2,
    pub(crate) io: Arc<IoState>,
    pub(crate) peer: Option<SocketAddr>,
}

pub(crate) type Http2 = client::Connection<Box<dyn Io>, RequestBody>;

impl Connector {
    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// `UNAVAILABLE`: the connection could not be opened, for whatever reason.
    pub(crate) async fn connect(&self) -> Result<Opened, Status> {
        let opened = match timeout(self.timeout, self.open_lasting()).await {
            Ok(opened) => opened,
            Err(_) => {
                let late = format!("not connected within {:?}", self.timeout);
                Err(io::Error::other(late).into())
            }
        };
        opened.map_err(|error| {
            let cause = classify(error);
            let message = format!("cannot connect to {}: {}", self.target(), cause.message());
            let (origin, delivery) = (Origin::Transport, Delivery::NotSent);
            reworded(&cause, Code::Unavailable, message, origin, delivery)
        })
    }

    /// Returns the address of the server, and of the proxy if there is one, for error messages.
    fn target(&self) -> String {
        #[cfg(feature = "proxy")]
        if let Some(proxy) = &self.proxy {
            return format!("{} through proxy {proxy}", self.authority);
        }
        self.authority.to_string()
    }

    async fn open_lasting(&self) -> Result<Opened, BoxError> {
        match self.open().await {
            // The server closed it immediately: it is likely being shut down, and another may accept.
            Err(Unopened::Again(_)) => self.open().await,
            opened => opened,
        }
        .map_err(|(Unopened::Again(error) | Unopened::Failed(error))| error)
    }

    async fn open(&self) -> Result<Opened, Unopened> {
        let dialed = self.dial.dial(self.uri.clone()).await;
        let Dialed { io, peer } = dialed.map_err(Unopened::Failed)?;
        // Beneath TLS, which may have written bytes although it reports an error.
        let (io, state) = CountedIo::new(io);
        let io: Box<dyn Io> = Box::new(io);
        #[cfg(feature = "_tls")]
        let io = match &self.tls {
            Some(tls) => tls.secure(io).await.map_err(failed)?,
            None => io,
        };
        let (sender, mut http2) = client::Builder::new()
            // gRPC does not use server push.
            .enable_push(false)
            // Shows that SETTINGS have not arrived. Until then no call is sent.
            .initial_max_send_streams(UNANNOUNCED)
            .initial_window_size(WINDOW)
            // The largest window that HTTP/2 allows, so that unread responses do not block other calls
            // on the connection. It has room for the windows of 1,000 streams.
            .initial_connection_window_size(CONNECTION_WINDOW)
            // h2 charges small DATA frames to this budget, and does not refund those of streams that
            // were reset. Responses that arrive after their deadline are such frames, so that a finite
            // budget would sooner or later close a busy connection. The windows bound the payload
            // that is buffered, but not what h2 needs for each frame: a hostile server can make a
            // stream that nobody reads take 500 MiB.
            .data_frame_budget(usize::MAX)
            // A status with its details travels in trailers. What is larger fails its call; with
            // four times as much h2 closes the connection, and fails the calls beside it.
            .max_header_list_size(1 << 20)
            // The responses of streams that were reset may still arrive. The default is to remember 50
            // such streams for a second, and to close the connection after 1024 responses to others.
            // A connection resets fewer than 2,000 in 10 seconds, see `AbandonedStreams`.
            .max_concurrent_reset_streams(2_000)
            .reset_stream_duration(Duration::from_secs(10))
            .max_local_error_reset_streams(None)
            .handshake::<_, RequestBody>(io)
            .await
            .map_err(failed)?;
        let settings = poll_fn(|cx| match Pin::new(&mut http2).poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Err(BoxError::from(io::Error::from(
                io::ErrorKind::UnexpectedEof,
            )))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Pending if http2.max_concurrent_send_streams() == UNANNOUNCED => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(())),
        });
        let Err(error) = settings.await else {
            return Ok(Opened {
                sender,
                http2,
                io: state,
                peer,
            });
        };
        Err(match state.foreign_protocol() {
            _ if http2.max_concurrent_send_streams() != UNANNOUNCED => Unopened::Again(error),
            Some(foreign) => Unopened::Failed(foreign.into()),
            // A TLS port of grpc-go or grpc-java closes a plaintext connection without sending anything.
            None if state.reads() == 0 && self.uri.scheme() == Some(&Scheme::HTTP) => {
                Unopened::Failed(Box::new(ClosedAtOnce(error)))
            }
            None => Unopened::Failed(error),
        })
    }
}

/// Why there is no connection.
enum Unopened {
    /// There was one, and the server closed it.
    Again(BoxError),
    Failed(BoxError),
}

fn failed(error: impl Into<BoxError>) -> Unopened {
    Unopened::Failed(error.into())
}

/// The flow-control window of a stream, in bytes.
pub(crate) const WINDOW: u32 = 2 << 20;

/// The flow-control window of a connection, in bytes.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// The stream limit before SETTINGS have arrived. No server sets it, and without a limit in SETTINGS h2
/// reports one more.
const UNANNOUNCED: usize = usize::MAX - 1;

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("uri", &self.uri)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "_tls")]
impl Tls {
    async fn secure(&self, io: Box<dyn Io>) -> io::Result<Box<dyn Io>> {
        let connector = tokio_rustls::TlsConnector::from(self.config.clone());
        let io = connector.connect(self.name.clone(), io).await;
        let io = io.map_err(|error| io::Error::other(Handshake(error)))?;
        if io.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other(
                "the server does not speak HTTP/2 (it has not agreed to h2 by ALPN)",
            ));
        }
        Ok(Box::new(io))
    }
}

/// A connection without TLS that the server closed before it sent anything.
#[derive(Debug)]
struct ClosedAtOnce(BoxError);

impl fmt::Display for ClosedAtOnce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the server closed the connection without a response: if it requires TLS, use an \
             \"https://\" endpoint",
        )
    }
}

impl std::error::Error for ClosedAtOnce {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

/// A TLS handshake that failed.
#[cfg(feature = "_tls")]
#[derive(Debug)]
struct Handshake(io::Error);

#[cfg(feature = "_tls")]
impl fmt::Display for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use tokio_rustls::rustls::Error;
        let cause = self.0.get_ref().and_then(|cause| cause.downcast_ref());
        f.write_str(match cause {
            Some(Error::InvalidMessage(_)) => {
                "TLS handshake failed (write http:// in the endpoint if the server has no TLS)"
            }
            _ => "TLS handshake failed",
        })
    }
}

#[cfg(feature = "_tls")]
impl std::error::Error for Handshake {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

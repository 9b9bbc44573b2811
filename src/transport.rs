//! The default stack's tower service: unary calls over a few connections to one server.

mod body;
mod connect;
mod connection;
mod dial;
mod driver;
mod lease;
mod members;
mod opening;
mod pool;
mod queue;
mod traffic;
mod watch;

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{
    HeaderMap, HeaderValue, Request, Response, Uri, Version,
    header::USER_AGENT,
    uri::{Authority, Scheme},
};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body, codegen::BoxFuture};
use tower::Service;

pub use self::body::ResponseBody;
pub(crate) use self::connect::Connector;
#[cfg(feature = "_tls")]
pub(crate) use self::connect::Tls;
use self::{body::collect, lease::Lease, pool::Pool, queue::Turn};
pub(crate) use self::{
    dial::{Dial, is_localhost},
    pool::Limits,
};
use crate::{
    auth::AuthInterceptor,
    deadline,
    status::{Origin, caused},
};

/// The stack that [`OperationsClient::builder`](crate::OperationsClient) makes: it carries unary
/// gRPC calls to one server. Clones are cheap and share the connections.
///
/// A call takes a stream of the oldest connection that has one left under the limit which the
/// server announced. Where none has, another connection is opened; where there are as many as may
/// be, calls wait their turn. A call that the server certainly did not process is sent again at
/// once, at most twice.
///
/// There is no deadline here: a future that is dropped, and so a timeout around it, resets the
/// stream, or gives up the place in the queue.
///
/// A connection is opened and driven by a task on the tokio runtime of the call that waited for it
/// first. Calls on other runtimes may use it for as long as that runtime runs: one that stands still
/// between calls, as a current-thread runtime does outside of `block_on`, is best with a client of
/// its own.
///
#[doc = include_str!("transport/faults.md")]
#[derive(Clone)]
pub struct Transport(Arc<Shared>);

struct Shared {
    pool: Arc<Pool>,
    scheme: Scheme,
    authority: Authority,
    user_agent: HeaderValue,
}

/// The headers of a call that change while it waits: how much time is left, and the credentials.
/// They come as an extension of its request, too, so that they are made anew for a call that had to
/// wait for its stream.
///
/// The deadline ends nothing here. It tells a call that was late from one that was not wanted any
/// more: only the former says something about the connection.
#[derive(Clone, Debug)]
pub(crate) struct LastHeaders {
    pub(crate) deadline: Option<Instant>,
    pub(crate) auth: Option<AuthInterceptor>,
}

impl LastHeaders {
    /// Makes the headers as they should be now.
    ///
    /// # Errors
    ///
    /// Why there are no credentials.
    pub(crate) fn add_to(&self, headers: &mut HeaderMap) -> Result<(), Status> {
        if let Some(deadline) = self.deadline {
            deadline::tell(headers, deadline);
        }
        self.auth.as_ref().map_or(Ok(()), |auth| auth.sign(headers))
    }
}

/// How often a call is sent again that the server certainly did not process, see
/// [gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md#transparent-retries).
const RESENDS: usize = 2;

/// How often a call may come too late to a connection, which then takes no more.
const LATE: usize = 5;

impl Transport {
    /// Makes a transport that connects when the first call needs it.
    pub(crate) fn new(
        connector: Connector,
        limits: Limits,
        scheme: Scheme,
        user_agent: HeaderValue,
    ) -> Self {
        Self(Arc::new(Shared {
            scheme,
            authority: connector.authority().clone(),
            pool: Pool::new(connector, limits),
            user_agent,
        }))
    }

    /// Opens the first connection.
    ///
    /// # Errors
    ///
    /// `UNAVAILABLE`: it cannot be opened.
    pub(crate) async fn connect(&self) -> Result<(), Status> {
        self.0.pool.open_one().await
    }

    /// Tells how many calls can be in flight at once, as far as it is known, for as long as there
    /// is the transport.
    pub(crate) fn capacity(&self) -> impl Fn() -> usize + Send + Sync + 'static + use<> {
        let pool = Arc::downgrade(&self.0.pool);
        move || pool.upgrade().map_or(usize::MAX, |pool| pool.capacity())
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("authority", &self.0.authority)
            .field("connections", &self.0.pool.connections())
            .finish()
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<ResponseBody>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    /// Always ready: a call waits for its stream within its own future.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = collect(body).await?;
            shared.send(Request::from_parts(head, ()), body).await
        })
    }
}

impl Shared {
    async fn send(
        &self,
        mut head: Request<()>,
        body: Bytes,
    ) -> Result<Response<ResponseBody>, Status> {
        self.complete(&mut head);
        // HTTP/2 has no use for them, and they are dear to clone.
        let last = mem::take(head.extensions_mut()).remove::<LastHeaders>();
        let deadline = last.as_ref().and_then(|last| last.deadline);
        let mut turn = Turn::default();
        let (mut late, mut resends) = (0, 0);
        loop {
            let (mut lease, sender) = self.pool.stream(&mut turn, deadline).await?;
            if let Some(last) = last.as_ref().filter(|_| turn.has_waited()) {
                last.add_to(head.headers_mut())?;
            }
            lease.begins(deadline);
            let written = lease.connection().traffic().writes();
            let answer = match send(lease, sender, head.clone(), body.clone()) {
                Ok(sent) => answer(sent, written).await,
                Err(failure) => Err(failure),
            };
            match answer {
                Ok(response) => return Ok(response),
                Err(Failure::Unopened(_)) if late < LATE => late += 1,
                Err(Failure::Unprocessed(_)) if resends < RESENDS => resends += 1,
                Err(
                    Failure::Unopened(status)
                    | Failure::Unprocessed(status)
                    | Failure::Final(status),
                ) => return Err(status),
            }
        }
    }

    fn complete(&self, head: &mut Request<()>) {
        *head.version_mut() = Version::HTTP_2;
        if !head.headers().contains_key(USER_AGENT) {
            let user_agent = self.user_agent.clone();
            head.headers_mut().insert(USER_AGENT, user_agent);
        }
        if head.uri().authority().is_none() {
            let mut parts = mem::take(head.uri_mut()).into_parts();
            parts.scheme = Some(self.scheme.clone());
            parts.authority = Some(self.authority.clone());
            // Cannot fail: scheme and authority are there, and so is a path, for any URI has one.
            *head.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        }
    }
}

enum Failure {
    /// The connection takes no more streams, and is out of the pool now.
    Unopened(Status),
    /// The server certainly did not process the call.
    Unprocessed(Status),
    Final(Status),
}

/// A call whose head is sent: the response to come, and how it went to send the body.
type Sent = (Lease, ResponseFuture, Result<(), h2::Error>);

/// Sends a request and its whole body.
fn send(
    lease: Lease,
    mut sender: SendRequest<Bytes>,
    head: Request<()>,
    body: Bytes,
) -> Result<Sent, Failure> {
    let error = match sender.send_request(head, false) {
        Ok((response, mut request)) => {
            let sent = request.send_data(body, true);
            return Ok((lease, response, sent));
        }
        Err(error) => error,
    };
    let mut cx = Context::from_waker(Waker::noop());
    if let Poll::Ready(Err(_)) = sender.poll_ready(&mut cx) {
        lease.retire();
        return Err(Failure::Unopened(lease.failed(error)));
    }
    Err(Failure::Final(refused(error)))
}

/// Waits for the head of the response.
async fn answer(
    (mut lease, mut response, sent): Sent,
    written: usize,
) -> Result<Response<ResponseBody>, Failure> {
    let response = match sent {
        Ok(()) => response.await,
        Err(error) => {
            let mut cx = Context::from_waker(Waker::noop());
            match Pin::new(&mut response).poll(&mut cx) {
                Poll::Ready(response) => response, // the stream has ended already: why, it tells
                Poll::Pending => return Err(Failure::Final(refused(error))),
            }
        }
    };
    match response {
        Ok(response) => {
            lease.answered();
            Ok(response.map(|stream| ResponseBody::new(stream, lease)))
        }
        Err(error) => {
            let unwritten = lease.connection().traffic().writes() == written;
            let unprocessed = unprocessed(&error) || (unwritten && !error.is_reset());
            let status = lease.failed(error);
            Err(match unprocessed {
                true => Failure::Unprocessed(status),
                false => Failure::Final(status),
            })
        }
    }
}

/// Whether the server says itself that it did not process the call: it refused the stream, or it
/// goes away and the stream is above the last one that it still takes.
fn unprocessed(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

fn refused(error: h2::Error) -> Status {
    caused(
        Code::InvalidArgument,
        format!("the request cannot be sent over HTTP/2: {error}"),
        Origin::Client,
        error,
    )
}

//! The default stack's tower service: calls over a few connections to one server.

mod body;
mod call;
mod connection;
mod connector;
mod counted_io;
mod dial;
mod exchange;
mod keepalive;
mod link;
mod pool;

use std::{
    fmt,
    future::poll_fn,
    mem,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, Uri, Version,
    header::USER_AGENT,
    request::Parts,
    uri::{Authority, Scheme},
};
use tokio::{
    sync::oneshot::{self, error::RecvError},
    time::{Instant, sleep_until},
};
use tonic::{Code, Status, body::Body, codegen::BoxFuture};
use tower::Service;

pub use self::body::ResponseBody;
#[cfg(feature = "_tls")]
pub(crate) use self::connector::Tls;
use self::{
    body::Collecting,
    call::{Call, QUEUED},
    connection::{open_first, open_if_needed},
    pool::Pool,
};
pub(crate) use self::{
    call::{CredentialsExpired, Unary},
    connector::Connector,
    dial::{Dial, is_localhost},
    pool::Limits,
};
use crate::{
    deadline::{Deadline, timeout_in},
    status::{Origin, local, mark},
    task::runtime,
};

/// The stack that [`OperationsClient::builder`](crate::OperationsClient) makes: it carries gRPC calls
/// to one server. Clones are cheap and share the connections.
///
/// Each connection is driven by a task. Calls wait in one queue until a connection takes them; the
/// task then writes the request, reads the response, and sends it to the caller. A caller that is not
/// polled, or that is dropped, holds up nobody else. A call goes to the least loaded of as many
/// connections as the load needs. If all their streams are in use, more connections are opened, up to
/// the maximum.
///
/// **Deadlines.** The header `grpc-timeout` of a request is its deadline, for every generated client
/// over this stack. The server is sent the time that is left when the request is written. A call
/// without a deadline is queued for at most 60 s, and then ends with `UNAVAILABLE`.
///
/// **Overload.** The queue has a [bound](crate::Builder::max_queued_calls). `poll_ready` is pending
/// while the queue is full, and reserves nothing; a call that comes all the same ends with
/// `RESOURCE_EXHAUSTED` at once. So tower's `LoadShed` sheds load, and its `Timeout` does not cover
/// the wait for readiness. Calls are taken in the order of their arrival. Once one has waited for a
/// quarter of its timeout, or for a second, the newest is taken first until the queue has been empty:
/// otherwise every call would be sent just before it expires. Of ten calls one is left to those
/// without a deadline, or with a timeout of 30 s and more.
///
/// **Retries.** A call that the server certainly did not process is sent again at once: any number of
/// times if nothing of it was written, and once if the server refused it.
///
/// **Runtimes.** The tasks are spawned on the tokio runtime of the first caller, and on that of
/// another caller after it has ended, or does not run for about a second. The runtime needs I/O and
/// timers (`enable_all()`).
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

/// How long a call without a deadline is queued at most.
const MAX_QUEUED: Duration = Duration::from_secs(60);

/// After how long a call first checks whether it is still queued, and then how often.
const FIRST_CHECK: Duration = Duration::from_millis(100);
const CHECKS: Duration = Duration::from_millis(500);

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
        let runtime = runtime("a connection")?;
        open_first(&self.0.pool, runtime).await
    }

    /// Returns a function that returns how many streams the connections have, for as long as the
    /// transport exists.
    pub(crate) fn capacity(&self) -> impl Fn() -> usize + Send + Sync + 'static + use<> {
        let pool = Arc::downgrade(&self.0.pool);
        move || pool.upgrade().map_or(usize::MAX, |pool| pool.capacity())
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (connections, queued) = self.0.pool.counts();
        f.debug_struct("Transport")
            .field("authority", &self.0.authority)
            .field("connections", &connections)
            .field("queued", &queued)
            .finish()
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<ResponseBody>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    /// Ready while the queue of calls is not full. Nothing is reserved.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.0.pool.poll_room(cx).map(Ok)
    }

    /// Queues the call at once, if its body is there, as that of a unary call is.
    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.0.clone();
        let (head, body) = request.into_parts();
        let mut body = Collecting::new(body);
        let collected = body.poll(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(collected) = collected {
            let queued = collected.and_then(|body| shared.queue(head, body));
            return Box::pin(async move { queued?.answer().await });
        }
        Box::pin(async move {
            let body = poll_fn(|cx| body.poll(cx)).await?;
            shared.queue(head, body)?.answer().await
        })
    }
}

impl Shared {
    /// Puts a call into the queue.
    fn queue(self: Arc<Self>, head: Parts, body: Bytes) -> Result<Queued, Status> {
        let runtime = runtime("a call")?;
        let mut head = Request::from_parts(head, ());
        let timeout = timeout_in(head.headers())?;
        // HTTP/2 has no use for the others, and they are expensive to clone.
        let unary = mem::take(head.extensions_mut()).remove::<Unary>();
        self.complete(&mut head);
        let (reply, answer) = oneshot::channel();
        let deadline = timeout.and_then(Deadline::after);
        let since = Instant::now();
        let call = Call {
            head,
            body,
            unary,
            deadline,
            queued: since,
            number: 0,
            refused: false,
            avoid: None,
            reply,
        };
        let pushed = self.pool.push(call, runtime.id())?;
        let queued = Queued {
            shared: self,
            number: pushed.number,
            answer,
            // The client watches the deadlines of its own calls.
            deadline: deadline.filter(|_| unary.is_none() || !pushed.is_assigned),
            since,
            is_assigned: pushed.is_assigned,
            has_ended: false,
        };
        if pushed.open {
            open_if_needed(&queued.shared.pool);
        }
        Ok(queued)
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

/// A call in the queue, or taken from it. Dropping it before its end removes it from the queue, or
/// resets its stream.
struct Queued {
    shared: Arc<Shared>,
    number: u64,
    answer: oneshot::Receiver<Result<Response<ResponseBody>, Status>>,
    deadline: Option<Deadline>,
    since: Instant,
    /// Whether a connection will take it without anybody watching.
    is_assigned: bool,
    has_ended: bool,
}

impl Queued {
    /// Waits for the answer, or for the deadline.
    async fn answer(mut self) -> Result<Response<ResponseBody>, Status> {
        let mut is_queued = !self.is_assigned;
        let check = is_queued.then_some(self.since + FIRST_CHECK);
        let deadline = self.deadline.map(|deadline| deadline.at());
        let Some(first) = check.into_iter().chain(deadline).min() else {
            let result = (&mut self.answer).await;
            return self.end(result);
        };
        let mut timer = pin!(sleep_until(first));
        loop {
            tokio::select! {
                biased;
                result = &mut self.answer => return self.end(result),
                () = &mut timer => {}
            }
            let now = Instant::now();
            if let Some(deadline) = self.deadline.filter(|deadline| deadline.at() <= now) {
                return Err(deadline.exceeded(match is_queued {
                    true => QUEUED,
                    false => "the server has not answered",
                }));
            }
            let pool = &self.shared.pool;
            is_queued = is_queued && pool.is_still_queued(self.number);
            if is_queued {
                open_if_needed(pool);
                if self.deadline.is_none() && now >= self.since + MAX_QUEUED {
                    return Err(not_taken());
                }
            }
            let check = is_queued.then_some(now + CHECKS);
            let deadline = self.deadline.map(|deadline| deadline.at());
            match check.into_iter().chain(deadline).min() {
                Some(next) => timer.as_mut().reset(next),
                None => {
                    let result = (&mut self.answer).await;
                    return self.end(result);
                }
            }
        }
    }

    fn end(
        &mut self,
        result: Result<Result<Response<ResponseBody>, Status>, RecvError>,
    ) -> Result<Response<ResponseBody>, Status> {
        self.has_ended = true;
        result.unwrap_or_else(|_| {
            let message = format!(
                "{}: the tokio runtime that drove the connection has ended",
                self.shared.authority
            );
            Err(mark(Status::unavailable(message), Origin::Transport))
        })
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if !self.has_ended {
            self.shared.pool.remove_call(self.number);
        }
    }
}

fn not_taken() -> Status {
    local(
        Code::Unavailable,
        format!("no connection had a free stream within {MAX_QUEUED:?}"),
    )
}

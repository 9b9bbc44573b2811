//! The default stack's tower service: calls over a few connections to one server.

mod abandoned;
mod body;
mod call;
mod connection;
mod connector;
mod counted_io;
mod dial;
mod exchange;
mod keepalive;
mod link;
mod opening;
mod pool;
mod waker;

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, Uri, Version,
    header::USER_AGENT,
    uri::{Authority, Scheme},
};
use tokio::{
    sync::oneshot,
    time::{Instant, Sleep, sleep_until},
};
use tonic::{Code, Status, body::Body};
use tower::Service;

pub use self::body::ResponseBody;
#[cfg(feature = "_tls")]
pub(crate) use self::connector::Tls;
use self::{
    body::Collecting,
    call::{Call, QUEUED},
    opening::{open, open_first},
    pool::Pool,
};
pub(crate) use self::{
    call::{Unary, Unsent},
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
/// **Streaming.** The response to a request of [`OperationsClient`](crate::OperationsClient) is read
/// whole by the connection's task. That to any other request is streamed: its reader paces the
/// server, and it keeps its stream until it is read to its end or dropped.
///
/// **Retries.** A call that the server certainly did not process is sent again at once: any number of
/// times if nothing of it was written, and once if the server refused it.
///
/// **Runtimes.** The tasks are spawned on the tokio runtime of the first caller, and on that of
/// another caller after it has ended, or does not run for about a second. The runtime needs I/O and
/// timers (`enable_all()`).
///
#[doc = include_str!("transport/faults.md")]
pub struct Transport {
    shared: Arc<Shared>,
    /// The number under which this waits for room in the queue.
    waiting: Option<u64>,
}

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
        let shared = Arc::new(Shared {
            scheme,
            authority: connector.authority().clone(),
            pool: Pool::new(connector, limits, open),
            user_agent,
        });
        Self {
            shared,
            waiting: None,
        }
    }

    /// Opens the first connection.
    ///
    /// # Errors
    ///
    /// `UNAVAILABLE`: it cannot be opened.
    pub(crate) async fn connect(&self) -> Result<(), Status> {
        let runtime = runtime("a connection")?;
        open_first(&self.shared.pool, runtime).await
    }

    pub(crate) fn user_agent(&self) -> &HeaderValue {
        &self.shared.user_agent
    }

    /// Returns a function that returns how many streams the connections have, for as long as the
    /// transport exists.
    pub(crate) fn capacity(&self) -> impl Fn() -> usize + Send + Sync + 'static + use<> {
        let pool = Arc::downgrade(&self.shared.pool);
        move || pool.upgrade().map_or(usize::MAX, |pool| pool.capacity())
    }
}

impl Clone for Transport {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            waiting: None,
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting {
            self.shared.pool.unregister(waiting);
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (connections, queued) = self.shared.pool.counts();
        f.debug_struct("Transport")
            .field("authority", &self.shared.authority)
            .field("connections", &connections)
            .field("queued", &queued)
            .finish()
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<ResponseBody>;
    type Error = Status;
    type Future = ResponseFuture;

    /// Ready while the queue of calls is not full. Nothing is reserved.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.shared.pool.poll_room(&mut self.waiting, cx).map(Ok)
    }

    /// Queues the call at once, if its body is there, as that of a unary call is.
    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.shared.clone();
        let (head, body) = request.into_parts();
        let head = Request::from_parts(head, ());
        let mut body = Collecting::new(body);
        let collected = body.poll(&mut Context::from_waker(Waker::noop()));
        ResponseFuture(match collected {
            Poll::Ready(body) => Stage::of(body.and_then(|body| shared.queue(head, body))),
            Poll::Pending => Stage::Collecting(Box::new((shared, head, body))),
        })
    }
}

/// The future of a call: it resolves with the head of the response.
///
/// Dropping it removes the call from the queue, or resets its stream.
#[must_use = "futures do nothing unless they are polled"]
pub struct ResponseFuture(Stage);

enum Stage {
    Collecting(Box<(Arc<Shared>, Request<()>, Collecting)>),
    Queued(Queued),
    Failed(Option<Status>),
}

impl Stage {
    fn of(queued: Result<Queued, Status>) -> Self {
        match queued {
            Ok(queued) => Self::Queued(queued),
            Err(status) => Self::Failed(Some(status)),
        }
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let stage = &mut self.0;
        if let Stage::Collecting(collecting) = stage {
            let (shared, head, body) = &mut **collecting;
            let body = ready!(body.poll(cx));
            let (shared, head) = (shared.clone(), mem::take(head));
            *stage = Stage::of(body.and_then(|body| shared.queue(head, body)));
        }
        match stage {
            Stage::Queued(queued) => queued.poll(cx),
            Stage::Failed(status) => Poll::Ready(Err(status.take().unwrap_or_else(|| {
                local(
                    Code::Internal,
                    "the future of a call was polled after it was ready",
                )
            }))),
            Stage::Collecting(_) => Poll::Pending,
        }
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}

impl Shared {
    /// Puts a call into the queue.
    fn queue(self: Arc<Self>, mut head: Request<()>, body: Bytes) -> Result<Queued, Status> {
        let runtime = runtime("a call")?;
        let timeout = timeout_in(head.headers())?;
        // HTTP/2 has no use for the others, and they are expensive to clone.
        let unary = mem::take(head.extensions_mut()).remove::<Unary>();
        self.complete(&mut head);
        let (reply, answer) = oneshot::channel();
        let since = Instant::now();
        let deadline = timeout.and_then(|timeout| Deadline::after(timeout, since));
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
        // The client watches the deadlines of its own calls, and nobody has to watch a call that a
        // connection is about to take.
        let is_watched = unary.is_none() || !pushed.is_assigned;
        let first_check = since + FIRST_CHECK;
        let first_check = match deadline {
            Some(deadline) if pushed.is_assigned => deadline.at(),
            Some(deadline) => first_check.min(deadline.at()),
            None => first_check,
        };
        let queued = Queued {
            shared: self,
            number: pushed.number,
            answer,
            deadline,
            since,
            is_queued: !pushed.is_assigned,
            timer: is_watched.then(|| Box::pin(sleep_until(first_check))),
            has_ended: false,
        };
        if pushed.open {
            queued.shared.pool.open_if_needed();
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

    fn dropped(&self) -> Status {
        let message = format!(
            "{}: the tokio runtime that drove the connection has ended",
            self.authority
        );
        mark(Status::unavailable(message), Origin::Transport)
    }
}

/// A call in the queue, or taken from it.
struct Queued {
    shared: Arc<Shared>,
    number: u64,
    answer: oneshot::Receiver<Result<Response<ResponseBody>, Status>>,
    deadline: Option<Deadline>,
    since: Instant,
    /// Whether no connection is known to have taken it, or to be about to.
    is_queued: bool,
    /// `None` where nothing has to be watched.
    timer: Option<Pin<Box<Sleep>>>,
    has_ended: bool,
}

impl Queued {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<ResponseBody>, Status>> {
        if let Poll::Ready(result) = Pin::new(&mut self.answer).poll(cx) {
            self.has_ended = true;
            return Poll::Ready(result.unwrap_or_else(|_| Err(self.shared.dropped())));
        }
        while let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            match self.check(now)? {
                Some(next) => self.watch(next),
                None => self.timer = None,
            }
        }
        Poll::Pending
    }

    fn watch(&mut self, next: Instant) {
        if let Some(timer) = &mut self.timer {
            timer.as_mut().reset(next);
        }
    }

    /// Does what is due; returns when to check again.
    ///
    /// # Errors
    ///
    /// The call has waited for too long.
    fn check(&mut self, now: Instant) -> Result<Option<Instant>, Status> {
        if let Some(deadline) = self.deadline.filter(|deadline| deadline.at() <= now) {
            return Err(deadline.exceeded(match self.is_queued {
                true => QUEUED,
                false => "the server has not answered",
            }));
        }
        let pool = &self.shared.pool;
        self.is_queued = self.is_queued && pool.is_still_queued(self.number);
        if self.is_queued {
            pool.open_if_needed();
            if self.deadline.is_none() && now >= self.since + MAX_QUEUED {
                return Err(not_taken());
            }
        }
        let check = self.is_queued.then_some(now + CHECKS);
        let deadline = self.deadline.map(|deadline| deadline.at());
        Ok(check.into_iter().chain(deadline).min())
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

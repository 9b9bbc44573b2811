//! The default stack's tower service: calls over a few connections to one server.

mod abandoned;
mod body;
mod budget;
mod call;
mod connection;
mod connector;
mod counted_io;
mod dial;
mod exchange;
mod keepalive;
mod lifetime;
mod link;
mod opening;
mod pool;
mod progress;
mod stats;
#[cfg(feature = "proxy")]
mod tunnel;
mod unary;
mod waker;

use std::{
    fmt, mem,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{Ordering, fence},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version,
    header::{CONTENT_TYPE, TE, USER_AGENT},
    uri::{self, Authority, PathAndQuery, Scheme},
};
use tokio::{
    sync::oneshot,
    time::{Instant, Sleep, sleep_until},
};
use tonic::{Code, Status, body::Body};
use tower::Service;

#[cfg(feature = "_tls")]
pub(crate) use self::connector::Tls;
pub(crate) use self::{
    body::Chunks,
    call::{Unary, Unsent},
    connector::Connector,
    dial::{Dial, is_localhost},
    pool::PoolConfig,
    progress::{FailedAttempt, Progress, Sent},
    stats::Counter,
};
use self::{
    body::Collecting,
    call::{PendingCall, RequestHead},
    opening::{connect_first, spawn_connection},
    pool::Pool,
    stats::Counters,
};
pub use self::{
    body::ResponseBody,
    stats::{ConnectionStats, TransportStats, TransportTotals},
};
use crate::{
    deadline::{Deadline, GRPC_TIMEOUT, Stage, Waited, timeout_in},
    request::{Template, UnaryHead},
    status::{Delivery, Origin, local, mark, with_delivery},
    task::runtime,
};

/// The default stack of [`OperationsClient`](crate::OperationsClient): carries gRPC calls to one server.
/// Clones are cheap and share the connections.
///
/// Each connection is driven by a task. Calls wait in one queue until a connection takes them; its
/// task sends the request, receives the response, and sends that to the caller:
///
/// ```text
/// caller                        pool                  task of a connection
/// call()        -- request ---> queue
///                               wakes a task -------> takes calls while it has free streams
///                                                     sends the request over HTTP/2
/// future of     <------------------------ response -- receives the response
/// the call
/// ```
///
/// A caller that is not polled, or that is dropped, delays nobody else. A call goes to the least loaded
/// of as many connections as the load needs. If all their streams are in use, more connections are
/// opened, up to the maximum.
///
/// **Deadlines.** The header `grpc-timeout` of a request is its deadline, for every generated client
/// over this stack. The server is sent the time that remains when the request is sent. A call
/// without a deadline ends with `UNAVAILABLE` once it has been queued for 60 s.
///
/// **Overload.** The queue has a [bound](crate::ClientBuilder::max_queued_calls). Once it is full, `poll_ready`
/// is pending until an eighth of it is free, and reserves nothing; a call made nevertheless is queued if
/// there is room, and otherwise ends with `RESOURCE_EXHAUSTED` immediately. So tower's `LoadShed` sheds
/// load, and its `Timeout` does not cover the wait for readiness.
///
/// Calls are taken in the order of their arrival. Once the oldest has waited for a quarter of its
/// timeout, or for a second, the newest is taken first until the queue has been empty: otherwise every
/// call would be sent just before it expires. Meanwhile one of ten calls is still the oldest, if more
/// than half of its timeout remains, so that calls with a long timeout or none make progress.
///
/// **Streaming.** The response to a request of [`OperationsClient`](crate::OperationsClient) is received
/// completely by the connection's task. The response to any other request is streamed: its reader paces
/// the server, and it keeps its stream until it is read to its end or dropped. The body of a request is
/// collected completely before the call is queued; bidirectional streaming is not supported.
///
/// **Retries.** A call that the server certainly did not process is retried immediately: any number of
/// times if nothing of it was written, and once if the server refused it. That one retry is shared by all
/// attempts of a [`RetryPolicy`](crate::RetryPolicy).
///
/// **Cancellation.** Dropping the future of a call removes the call from the queue, or cancels it at
/// the server by a reset of its stream. Servers close a connection on which too many streams are reset,
/// or are reset too early. So a stream is reset only after the server has accepted it, and each
/// connection resets at most 900 streams together, and 30 a second in the long run. A stream that waits
/// for that ends when the server has responded. If most streams of a connection wait for a second, and
/// calls are queued, the connection is replaced. (A streamed response whose deadline passes while its
/// reader holds it is reset immediately.)
///
/// **Runtimes.** The tasks are spawned on the tokio runtime of the first caller. If that ends, or is
/// stalled for about a second, they are spawned on the runtime of another caller. The runtime needs
/// I/O and timers (`enable_all()`).
///
#[doc = include_str!("transport/faults.md")]
pub struct Transport {
    shared: Arc<Shared>,
    /// The registration with which this waits until the queue is not full.
    registration: Option<u64>,
}

struct Shared {
    pool: Arc<Pool>,
    scheme: Scheme,
    authority: Authority,
    user_agent: HeaderValue,
    /// The header template for clients that do not set a user agent.
    template: Template,
}

/// How long a call without a deadline is queued at most.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(60);

/// When a call first checks whether it is still queued, and the interval after that.
const FIRST_CHECK: Duration = Duration::from_millis(100);
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

impl Transport {
    /// Creates a transport that connects when the first call needs a connection.
    pub(crate) fn new(
        connector: Connector,
        config: PoolConfig,
        scheme: Scheme,
        authority: Authority,
        user_agent: HeaderValue,
    ) -> Self {
        let shared = Arc::new(Shared {
            scheme,
            authority,
            pool: Pool::new(connector, config, spawn_connection),
            template: Template::new(Some(&user_agent)),
            user_agent,
        });
        Self {
            shared,
            registration: None,
        }
    }

    /// Opens the first connection.
    ///
    /// # Errors
    ///
    /// - `UNAVAILABLE`: it cannot be opened.
    /// - `FAILED_PRECONDITION`: there is no tokio runtime.
    pub(crate) async fn connect(&self) -> Result<(), Status> {
        let runtime = runtime("a connection")?;
        connect_first(&self.shared.pool, runtime).await
    }

    pub(crate) fn endpoint(&self) -> &Uri {
        &self.shared.pool.connector.uri
    }

    /// Returns the header template for clients of this transport.
    pub(crate) fn template(&self) -> &Template {
        &self.shared.template
    }

    /// Returns a snapshot of the connections, the queue and the totals.
    ///
    /// It locks the pool once, for a time that depends only on the number of connections, so it is cheap enough to
    /// call every second.
    ///
    /// ```
    /// # #[cfg(not(feature = "emulator"))]
    /// # fn main() {}
    /// # #[cfg(feature = "emulator")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// # use longrunning::{OperationsClient, emulator::Emulator};
    /// # let emulator = Emulator::start().await?;
    /// # let client = OperationsClient::builder(emulator.endpoint()).connect().await?;
    /// let stats = client.stack().stats();
    /// println!("{} of {} streams in use", stats.streams_in_use(), stats.max_streams());
    /// println!("{} calls queued", stats.queued_calls);
    /// # assert_eq!(stats.open_connections, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn stats(&self) -> TransportStats {
        self.shared.pool.stats()
    }

    pub(crate) fn downgrade(&self) -> WeakTransport {
        WeakTransport {
            pool: Arc::downgrade(&self.shared.pool),
            counters: self.shared.pool.counters.clone(),
        }
    }
}

/// A reference to a transport that does not keep its connections open.
#[derive(Clone, Debug)]
pub(crate) struct WeakTransport {
    pool: Weak<Pool>,
    counters: Arc<Counters>,
}

impl WeakTransport {
    /// Returns the total stream limit of the connections; `None` once the transport is dropped.
    pub(crate) fn capacity(&self) -> Option<usize> {
        Some(self.pool.upgrade()?.capacity())
    }

    /// Returns the statistics of the transport. After it is dropped, only `totals` and `open_connections` are set.
    pub(crate) fn stats(&self) -> TransportStats {
        if let Some(pool) = self.pool.upgrade() {
            return pool.stats();
        }
        let totals = self.counters.totals();
        TransportStats {
            open_connections: totals.open_connections(),
            totals,
            ..TransportStats::default()
        }
    }

    /// Returns whether the transport has been dropped and all its connections are closed.
    pub(crate) fn has_ended(&self) -> bool {
        let is_dropped = self.pool.strong_count() == 0;
        // The pool was dropped after the last connection was counted as opened.
        fence(Ordering::Acquire);
        is_dropped && self.counters.totals().open_connections() == 0
    }

    #[cfg(feature = "opentelemetry")]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.pool.ptr_eq(&other.pool)
    }
}

impl Clone for Transport {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            registration: None,
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        if let Some(registration) = self.registration {
            self.shared.pool.unregister(registration);
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.stats();
        f.debug_struct("Transport")
            .field("authority", &self.shared.authority)
            .field("connections", &stats.connections.len())
            .field("queued", &stats.queued_calls)
            .finish()
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<ResponseBody>;
    type Error = Status;
    type Future = ResponseFuture;

    /// Ready unless the queue was full and an eighth of it has not been free since. Nothing is reserved.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.shared
            .pool
            .poll_ready(&mut self.registration, cx)
            .map(Ok)
    }

    /// Queues the call immediately, if its body is available, as that of a unary call is.
    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.shared.clone();
        let (head, body) = request.into_parts();
        let head = Request::from_parts(head, ());
        let mut body = Collecting::new(body);
        let collected = body.poll(&mut Context::from_waker(Waker::noop()));
        ResponseFuture(match collected {
            Poll::Ready(body) => body.and_then(|body| shared.queue_any(head, body)).into(),
            Poll::Pending => CallState::Collecting(Box::new((shared, head, body))),
        })
    }
}

impl Transport {
    /// Queues a unary call of [`OperationsClient`](crate::OperationsClient). The future resolves once the whole response
    /// has been received.
    pub(crate) fn call_unary(&self, head: UnaryHead, body: Bytes, unary: Unary) -> ResponseFuture {
        ResponseFuture(self.shared.clone().queue_unary(head, body, unary).into())
    }
}

/// The future of a call: it resolves with the head of the response.
///
/// Dropping it removes the call from the queue, or cancels it at the server.
#[must_use = "dropping the future cancels the call"]
pub struct ResponseFuture(CallState);

enum CallState {
    /// The body of the request is being collected.
    Collecting(Box<(Arc<Shared>, Request<()>, Collecting)>),
    Waiting(WaitingCall),
    Failed(Status),
    Done,
}

impl From<Result<WaitingCall, Status>> for CallState {
    fn from(queued: Result<WaitingCall, Status>) -> Self {
        match queued {
            Ok(waiting) => Self::Waiting(waiting),
            Err(status) => Self::Failed(status),
        }
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let state = &mut self.0;
        if let CallState::Collecting(collecting) = state {
            let (shared, head, body) = &mut **collecting;
            let body = ready!(body.poll(cx));
            let (shared, head) = (shared.clone(), mem::take(head));
            *state = body.and_then(|body| shared.queue_any(head, body)).into();
        }
        if let CallState::Waiting(waiting) = state {
            let result = ready!(waiting.poll(cx));
            *state = CallState::Done;
            return Poll::Ready(result);
        }
        Poll::Ready(Err(match mem::replace(state, CallState::Done) {
            CallState::Failed(status) => status,
            _ => {
                let message = "the future of a call was polled after completion";
                with_delivery(local(Code::Internal, message), Delivery::MaybeSent)
            }
        }))
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}

impl Shared {
    /// Queues a call that [`OperationsClient`](crate::OperationsClient) passes directly to the transport.
    fn queue_unary(
        self: Arc<Self>,
        mut head: UnaryHead,
        body: Bytes,
        unary: Unary,
    ) -> Result<WaitingCall, Status> {
        let now = Instant::now();
        if !head.template.has_user_agent() {
            head.template = self.template.clone();
        }
        let uri = self.uri(PathAndQuery::from_static(head.path));
        let remaining = unary.deadline.map(|at| at.saturating_duration_since(now));
        let deadline = remaining.and_then(|remaining| Deadline::after(remaining, now));
        self.queue(
            RequestHead::Unary { head, uri },
            body,
            Some(unary),
            deadline,
            now,
        )
    }

    /// Queues a call from [`Service::call`].
    fn queue_any(
        self: Arc<Self>,
        mut head: Request<()>,
        body: Bytes,
    ) -> Result<WaitingCall, Status> {
        let now = Instant::now();
        let timeout = timeout_in(head.headers())?;
        // HTTP/2 does not use the others, and they are expensive to clone.
        let unary = mem::take(head.extensions_mut()).remove::<Unary>();
        let exact = unary.as_ref().and_then(|unary| unary.deadline);
        self.set_defaults(&mut head);
        let deadline = timeout.and_then(|timeout| Deadline::after(timeout, now));
        let deadline = deadline.map(|deadline| deadline.or_earlier(exact));
        self.queue(RequestHead::Any(head), body, unary, deadline, now)
    }

    fn queue(
        self: Arc<Self>,
        head: RequestHead,
        body: Bytes,
        unary: Option<Unary>,
        deadline: Option<Deadline>,
        queued_at: Instant,
    ) -> Result<WaitingCall, Status> {
        let runtime = runtime("a call")?;
        let is_unary = unary.is_some();
        let refused = unary.as_ref().is_some_and(|unary| unary.is_retry);
        if let Some(progress) = unary.as_ref().and_then(|unary| unary.progress.as_ref()) {
            progress.queued(queued_at);
        }
        let (reply, response) = oneshot::channel();
        let call = Box::new(PendingCall {
            head,
            body,
            unary,
            deadline,
            queued_at,
            number: 0,
            refused,
            avoid: None,
            reply,
        });
        let pushed = self.pool.push(call, runtime.id())?;
        let expiry = match deadline {
            // `OperationsClient` has a timer for the deadline of each of its calls.
            Some(_) if is_unary && pushed.is_assigned => None,
            Some(deadline) => Some(deadline.at()),
            None => Some(queued_at + QUEUE_TIMEOUT),
        };
        let first_check = (!pushed.is_assigned).then_some(queued_at + FIRST_CHECK);
        let due = first_check.into_iter().chain(expiry).min();
        let waiting = WaitingCall {
            shared: self,
            number: pushed.number,
            response,
            deadline,
            queued_at,
            last_queued_at: queued_at,
            is_polled: false,
            timer: due.map(|due| Box::pin(sleep_until(due))),
            has_ended: false,
        };
        if pushed.needs_connection {
            waiting.shared.pool.open_if_needed();
        }
        Ok(waiting)
    }

    fn set_defaults(&self, head: &mut Request<()>) {
        *head.version_mut() = Version::HTTP_2;
        if !head.headers().contains_key(USER_AGENT) {
            let headers = mem::take(head.headers_mut());
            *head.headers_mut() = with_user_agent(headers, self.user_agent.clone());
        }
        if head.uri().authority().is_none()
            && let Some(path) = mem::take(head.uri_mut()).into_parts().path_and_query
        {
            *head.uri_mut() = self.uri(path);
        }
    }

    fn uri(&self, path: PathAndQuery) -> Uri {
        let mut parts = uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path);
        // Cannot fail: it has a scheme, an authority and a path.
        Uri::from_parts(parts).unwrap_or_default()
    }

    fn runtime_ended(&self) -> Status {
        let message = format!(
            "{}: the tokio runtime that drove the connection has ended",
            self.authority
        );
        mark(
            Status::unavailable(message),
            Origin::Transport,
            Delivery::MaybeSent,
        )
    }
}

/// Adds the user agent to the headers of a generated client that does not set one, and moves protocol
/// headers before custom metadata, see
/// [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests).
fn with_user_agent(mut headers: HeaderMap, user_agent: HeaderValue) -> HeaderMap {
    const PROTOCOL: [HeaderName; 5] = [
        GRPC_TIMEOUT,
        TE,
        CONTENT_TYPE,
        HeaderName::from_static("grpc-encoding"),
        HeaderName::from_static("grpc-accept-encoding"),
    ];
    let mut ordered = HeaderMap::with_capacity(headers.keys_len());
    for name in PROTOCOL {
        if let Some(value) = headers.remove(&name) {
            ordered.insert(name, value);
        }
    }
    ordered.insert(USER_AGENT, user_agent);
    ordered.extend(headers);
    ordered
}

/// A call that waits for its response, in the queue or on a connection.
struct WaitingCall {
    shared: Arc<Shared>,
    number: u64,
    response: oneshot::Receiver<Result<Response<ResponseBody>, Status>>,
    deadline: Option<Deadline>,
    queued_at: Instant,
    /// When a check last found the call in the queue.
    last_queued_at: Instant,
    is_polled: bool,
    /// The time of the next [`check`](Self::check), if one is needed.
    timer: Option<Pin<Box<Sleep>>>,
    has_ended: bool,
}

impl WaitingCall {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<ResponseBody>, Status>> {
        if let Poll::Ready(result) = Pin::new(&mut self.response).poll(cx) {
            self.has_ended = true;
            return Poll::Ready(result.unwrap_or_else(|_| Err(self.shared.runtime_ended())));
        }
        // `OperationsClient` polls this when the deadline has passed, and there may be no timer.
        if mem::replace(&mut self.is_polled, true) && self.has_expired(Instant::now()) {
            self.check(Instant::now())?;
        }
        while let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
            let next = self.check(Instant::now())?;
            if let Some(timer) = &mut self.timer {
                timer.as_mut().reset(next);
            }
        }
        Poll::Pending
    }

    fn has_expired(&self, now: Instant) -> bool {
        self.deadline
            .is_some_and(|deadline| deadline.has_passed(now))
    }

    /// Checks the deadline and the queue. Returns when to check again.
    ///
    /// # Errors
    ///
    /// - `DEADLINE_EXCEEDED`: the deadline has passed.
    /// - `UNAVAILABLE`: the call has no deadline, and was queued for too long.
    fn check(&mut self, now: Instant) -> Result<Instant, Status> {
        let pool = &self.shared.pool;
        let since = |instant| now.saturating_duration_since(instant);
        if let Some(deadline) = self.deadline.filter(|deadline| deadline.has_passed(now)) {
            let in_queue = self
                .last_queued_at
                .saturating_duration_since(self.queued_at);
            // Once it is removed, it is certain that no connection sends it.
            return Err(deadline.exceeded(match pool.remove_call(self.number) {
                Some(stage) => Waited::new(stage, since(self.queued_at)),
                None => Waited::new(Stage::Answer, since(self.last_queued_at))
                    .after(Stage::Stream, in_queue),
            }));
        }
        let expiry = self.deadline.map(|deadline| deadline.at());
        let Some(queued_at) = pool.check_queued(self.number) else {
            // It may be put back, and then nothing else would end it.
            return Ok(expiry.unwrap_or(now + QUEUE_TIMEOUT));
        };
        self.last_queued_at = now;
        pool.open_if_needed();
        if expiry.is_none()
            && now >= queued_at + QUEUE_TIMEOUT
            && pool.remove_call(self.number).is_some()
        {
            return Err(local(
                Code::Unavailable,
                format!("no connection had a free stream within {QUEUE_TIMEOUT:?}"),
            ));
        }
        let next = now + CHECK_INTERVAL;
        Ok(expiry.map_or(next, |expiry| next.min(expiry)))
    }
}

impl Drop for WaitingCall {
    fn drop(&mut self) {
        if !self.has_ended {
            self.shared.pool.remove_call(self.number);
        }
    }
}

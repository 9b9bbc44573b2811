//! One call: its checks, its deadline, its credentials and its attempts.

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::TryFutureExt as _;
use http::{HeaderValue, Response, header::AUTHORIZATION};
use tokio::{
    task::yield_now,
    time::{Instant, sleep_until, timeout_at},
};
use tonic::{Code, Request, Status};

use super::{
    GrpcStack, OperationsClient, answer, header,
    observed::ObservedCall,
    rpc::Rpc,
    unary::{Call, PendingResponse},
};
use crate::{
    auth::{self, AuthInterceptor, SentToken},
    deadline::{self, Deadline, Stage, Waited},
    retry::{Attempt, AttemptObserver as _, Retry},
    status::{
        self, CallStatusExt as _, Delivery, Origin, caused, classify, local, with_attempts,
        with_delivery, with_retry,
    },
    task::runtime,
    transport::{Progress, Unsent},
};

/// How long a call without a deadline waits for its first token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum size of a response, unless it is set.
const MAX_DECODING_MESSAGE_SIZE: usize = 4 << 20;

impl<S: GrpcStack> OperationsClient<S> {
    pub(super) async fn call<R: Rpc>(&self, mut request: Request<R>) -> Result<R::Answer, Status> {
        let begun = Instant::now();
        let observed = ObservedCall::start(self, request.get_ref());
        let retry = Retry::of_call(request.extensions_mut(), self.settings.retry.as_ref());
        let prepared = self.prepare(request, begun);
        let mut attempts = 0;
        // Borrowed: a value that is moved into the match takes space in the future twice.
        let result = match &prepared {
            Ok((call, first)) => {
                let mut attempt = |attempt: Attempt| {
                    attempts += 1;
                    if attempt.previous > 0 {
                        self.count_retry();
                    }
                    self.attempt(call, attempt, &observed)
                };
                match retry.as_deref().filter(|_| R::MAY_BE_RETRIED) {
                    Some(retry) => retry.run(first, &mut attempt, &observed).await,
                    None => {
                        let result = attempt(*first).await;
                        observed.attempt_ended(&result);
                        result
                    }
                }
            }
            Err(status) => Err(status.clone()),
        };
        let result = match result {
            Err(status) if attempts > 0 => Err(with_attempts(status, attempts, begun.elapsed())),
            result => result,
        };
        observed.end(&result);
        result
    }

    /// Checks a request. Returns the call, and its first attempt.
    fn prepare<R: Rpc>(
        &self,
        request: Request<R>,
        begun: Instant,
    ) -> Result<(Call<R>, Attempt), Status> {
        let routing = self.check(&request)?;
        let timeout = deadline::timeout_in(request.metadata().as_ref())?;
        let timeout = timeout.or_else(|| request.get_ref().timeout(self.settings.timeout));
        let call = Call::new(request, routing, self.settings.headers.clone());
        let deadline = timeout.and_then(|timeout| Deadline::after(timeout, begun));
        Ok((call, Attempt::first(begun, deadline)))
    }

    /// Checks a request. Returns its routing header.
    fn check<R: Rpc>(&self, request: &Request<R>) -> Result<Option<HeaderValue>, Status> {
        let name = request.get_ref().name();
        let routing = match name {
            "" if !R::NAME_MAY_BE_EMPTY => {
                return Err(local(
                    Code::InvalidArgument,
                    "the operation's name is empty: give one such as \"operations/1\"",
                ));
            }
            "" => None,
            name => Some(header::routing(name, self.header_list_limit())?),
        };
        let bytes = request.get_ref().encoded_len();
        let limit = self.settings.max_encoding_message_size;
        // gRPC has four bytes for the length.
        let limit = limit.unwrap_or(u32::MAX as usize);
        if bytes > limit {
            return Err(local(
                Code::ResourceExhausted,
                format!("the request is {bytes} bytes: the limit is {limit}"),
            ));
        }
        Ok(routing.filter(|_| R::HAS_HTTP_RULE))
    }

    /// Returns the client's credentials, unless the metadata of the call has an `authorization` header.
    ///
    /// # Errors
    ///
    /// `UNAUTHENTICATED`: they would be sent over plaintext.
    fn auth_of<R: Rpc>(&self, call: &Call<R>) -> Result<Option<&AuthInterceptor>, Status> {
        let auth = self.settings.auth.as_ref();
        let auth = auth.filter(|_| !call.metadata().contains_key(AUTHORIZATION));
        match (auth, &self.settings.plaintext_error) {
            (Some(auth), Some(why)) if !auth.sends_nothing() => Err(auth::of_call(why.clone())),
            _ => Ok(auth),
        }
    }

    fn attempt<R: Rpc>(
        &self,
        call: &Call<R>,
        mut attempt: Attempt,
        observed: &ObservedCall<'_>,
    ) -> impl Future<Output = Result<R::Answer, Status>> {
        let progress = observed.start_attempt();
        async move {
            if let Some(deadline) = attempt.deadline {
                runtime("a call with a timeout")?;
                if deadline.has_passed(attempt.begun) {
                    return Err(late::<R>(&attempt, None, None));
                }
            }
            let auth = self.auth_of(call)?;
            let mut waits = WaitTimes::default();
            loop {
                if let Some(auth) = auth {
                    let waited = token::<R>(auth, &attempt, &waits).await?;
                    waits.token += waited;
                    attempt.extend(waited);
                }
                let mut stack = self.stack.clone();
                waits.readiness += ready::<R, S>(&mut stack, &attempt, &waits, observed).await?;
                // An attempt that may time out before its call has to know whether it is committed.
                let own = || attempt.has_own_deadline().then(Arc::default);
                let send = Send {
                    attempt: &attempt,
                    auth,
                    waits: &waits,
                    progress: progress.clone().or_else(own),
                    observed,
                };
                match self.send(call, stack, send).await {
                    Err(status) if status::cause::<Unsent>(&status).is_some() => {
                        if let Some(progress) = &progress {
                            progress.dequeued(Instant::now());
                        }
                        // The server may have refused it before its credentials expired in the queue.
                        let unsent = status::cause(&status);
                        attempt.is_resent |= matches!(unsent, Some(Unsent::CredentialsExpired));
                    }
                    result => return result,
                }
            }
        }
    }

    /// Creates the request of an attempt, and sends it over a stack that is ready. Returns the pending response, and
    /// the token that was sent.
    fn start<R: Rpc>(
        &self,
        call: &Call<R>,
        stack: &mut S,
        send: &Send<'_>,
        limit: usize,
    ) -> Result<(PendingResponse<S::Future>, SentToken), Status> {
        let Send {
            attempt,
            auth,
            progress,
            observed,
            ..
        } = send;
        let (mut request, sent) = call.request(attempt, *auth, limit, progress.as_ref())?;
        let is_retry = attempt.previous > 0;
        observed.in_attempt(|| {
            self.settings.propagator.inject(&mut request.head);
            header::check_size(&request.head, is_retry, self.header_list_limit())?;
            Ok((call.send(stack, request), sent))
        })
    }

    /// Creates the request, sends it over a stack that is ready, and waits for the response until the deadline.
    async fn send<R: Rpc>(
        &self,
        call: &Call<R>,
        mut stack: S,
        send: Send<'_>,
    ) -> Result<R::Answer, Status> {
        let limit = self.settings.max_decoding_message_size;
        let limit = limit.unwrap_or(MAX_DECODING_MESSAGE_SIZE);
        let (response, sent) = self.start(call, &mut stack, &send, limit)?;
        let Send {
            attempt,
            auth,
            waits,
            progress,
            observed,
        } = send;
        let exchange = async {
            let progress = progress.as_deref();
            let answer = match response {
                PendingResponse::Transport(response) => {
                    let response = response.await;
                    response.and_then(|response| answer::complete(response, limit))
                }
                PendingResponse::Stack(response) => {
                    let response = response.map_err(|error| classify(error.into()));
                    let answer = response.and_then(|response| {
                        commit(progress, &response);
                        answer::message(response, limit)
                    });
                    answer.await
                }
            };
            let result = answer.and_then(|answer| call.decode(answer, progress));
            if let (Err(status), Some(auth)) = (&result, auth)
                && status.code() == Code::Unauthenticated
                // A gateway in front of the server may have sent it, too.
                && status.origin() != Some(Origin::Client)
            {
                auth.rejected_token(sent);
            }
            result
        };
        // Pinned here, so that the macro does not move the large future.
        let mut exchange = pin!(exchange);
        let mut poll = |cx: &mut Context<'_>| observed.poll_in_attempt(exchange.as_mut(), cx);
        let Some(deadline) = attempt.deadline else {
            return poll_fn(poll).await;
        };
        let result = tokio::select! {
            biased;
            result = poll_fn(&mut poll) => Poll::Ready(result),
            // Polled once more: the default stack then returns what the call waited for.
            () = sleep_until(deadline.at()) => poll_fn(|cx| Poll::Ready(poll(cx))).await,
        };
        let late = |waited, cause| {
            let status = late::<R>(attempt, Some(waited), cause);
            // Otherwise the deadline of the call has passed, and there is no retry anyway.
            let is_own = attempt.has_own_deadline();
            if is_own
                && progress
                    .as_ref()
                    .is_some_and(|progress| progress.is_committed())
            {
                with_retry(with_delivery(status, Delivery::Answered), false)
            } else {
                status
            }
        };
        match result {
            Poll::Pending => Err(late(waits.until(attempt), None)),
            // A server that enforces the deadline may respond with CANCELLED or reset the stream, and a
            // stack that enforces it may return first.
            Poll::Ready(Err(status))
                if (status.code() == Code::Cancelled || is_own_deadline(&status))
                    && deadline.has_passed(Instant::now()) =>
            {
                let waited = status::cause::<Waited>(&status).cloned();
                let waited = waited.map_or_else(|| waits.until(attempt), |it| waits.before(it));
                Err(late(waited, Some(status)))
            }
            Poll::Ready(result) => result,
        }
    }
}

/// Records that Response-Headers have arrived, unless the response is Trailers-Only.
fn commit<B: http_body::Body>(progress: Option<&Progress>, response: &Response<B>) {
    if let Some(progress) = progress
        && !response.body().is_end_stream()
    {
        progress.commit();
    }
}

/// What is needed to send the request of an attempt.
struct Send<'a> {
    attempt: &'a Attempt,
    auth: Option<&'a AuthInterceptor>,
    waits: &'a WaitTimes,
    progress: Option<Arc<Progress>>,
    observed: &'a ObservedCall<'a>,
}

/// How long an attempt has waited before its request was given to the stack.
#[derive(Clone, Copy, Debug, Default)]
struct WaitTimes {
    token: Duration,
    readiness: Duration,
}

impl WaitTimes {
    fn before(&self, waited: Waited) -> Waited {
        waited
            .after(Stage::Readiness, self.readiness)
            .after(Stage::Token, self.token)
    }

    /// Returns what an unanswered attempt has waited for until now.
    fn until(&self, attempt: &Attempt) -> Waited {
        let time = attempt.begun.elapsed();
        let time = time.saturating_sub(self.token + self.readiness);
        self.before(Waited::new(Stage::Answer, time))
    }
}

/// Waits for a token until the deadline, or for 10 seconds if there is none. Returns how long that took.
///
/// # Errors
///
/// - The failure of the credentials, if one is known.
/// - `DEADLINE_EXCEEDED`: the deadline has passed.
/// - `UNAVAILABLE`: the call has no deadline, and there was no token within 10 seconds.
/// - `FAILED_PRECONDITION`: there is no tokio runtime.
async fn token<R: Rpc>(
    auth: &AuthInterceptor,
    attempt: &Attempt,
    waits: &WaitTimes,
) -> Result<Duration, Status> {
    match auth.try_ready() {
        Some(Ok(())) => return Ok(Duration::ZERO),
        Some(Err(failure)) => {
            // The task that renews the token may be on this very thread, and a caller that retries in a
            // loop would not let it run.
            yield_now().await;
            let outcome = auth.try_ready().unwrap_or(Err(failure));
            return outcome.map(|()| Duration::ZERO).map_err(auth::of_call);
        }
        None => {}
    }
    runtime("waiting for a token")?;
    let begun = Instant::now();
    let until = attempt.call_deadline.map(|deadline| deadline.at());
    let until = until.unwrap_or(begun + TOKEN_TIMEOUT);
    match timeout_at(until, auth.ready()).await {
        Ok(outcome) => outcome.map_err(auth::of_call)?,
        Err(_) => {
            let waited = waits.before(Waited::new(Stage::Token, begun.elapsed()));
            let call = attempt.without_own_deadline();
            return Err(match (auth.status().last_failure, call.deadline) {
                (Some(failure), _) => no_token(failure, &waited),
                (None, Some(_)) => late::<R>(&call, Some(waited), None),
                (None, None) => local(Code::Unavailable, format!("credentials: {waited}")),
            });
        }
    }
    Ok(begun.elapsed())
}

/// Returns the status of a call that waited for a token in vain, because fetching it failed.
fn no_token(failure: Status, waited: &Waited) -> Status {
    let failure = auth::of_call(failure);
    let message = format!("{} ({waited})", failure.message());
    let (code, origin) = (failure.code(), Origin::Client);
    caused(code, message, origin, Delivery::NotSent, failure)
}

/// Waits until the stack is ready, or until the deadline. Returns how long that took.
async fn ready<R: Rpc, S: GrpcStack>(
    stack: &mut S,
    attempt: &Attempt,
    waits: &WaitTimes,
    observed: &ObservedCall<'_>,
) -> Result<Duration, Status> {
    let mut ready = pin!(poll_fn(|cx| observed.in_attempt(|| stack.poll_ready(cx))));
    if let Poll::Ready(ready) = poll_fn(|cx| Poll::Ready(ready.as_mut().poll(cx))).await {
        return ready
            .map(|()| Duration::ZERO)
            .map_err(|error| classify(error.into()));
    }
    let begun = Instant::now();
    let ready = match attempt.deadline {
        Some(deadline) => timeout_at(deadline.at(), ready).await.map_err(|_| {
            let waited = waits.before(Waited::new(Stage::Readiness, begun.elapsed()));
            late::<R>(attempt, Some(waited), None)
        })?,
        None => ready.await,
    };
    ready
        .map(|()| begun.elapsed())
        .map_err(|error| classify(error.into()))
}

fn is_own_deadline(status: &Status) -> bool {
    status.code() == Code::DeadlineExceeded && status.origin() == Some(Origin::Client)
}

/// Returns the status of an attempt that was not answered in time.
fn late<R: Rpc>(attempt: &Attempt, waited: Option<Waited>, cause: Option<Status>) -> Status {
    let timeout = attempt.deadline.map(|deadline| deadline.timeout());
    let mut message = format!(
        "no answer to {} within {:?}",
        R::METHOD,
        timeout.unwrap_or_default()
    );
    if attempt.has_own_deadline() {
        message.push_str(" (attempt timeout)");
    }
    match &waited {
        Some(waited) => message.push_str(&format!(": {waited}")),
        None => message.push_str(": not sent"),
    }
    if let Some(cause) = &cause
        && status::cause::<Waited>(cause).is_none()
    {
        let (code, text) = (cause.code_name(), cause.message());
        message.push_str(&format!("; {code}: {text}"));
    }
    let delivery = waited.as_ref().map_or(Delivery::NotSent, Waited::delivery);
    let delivery = cause
        .as_ref()
        .and_then(|cause| cause.delivery())
        .map_or(delivery, |of_cause| of_cause.max(delivery));
    let code = Code::DeadlineExceeded;
    match (cause, waited) {
        (Some(cause), _) => caused(code, message, Origin::Client, delivery, cause),
        (None, Some(waited)) => caused(code, message, Origin::Client, delivery, waited),
        (None, None) => local(code, message),
    }
}

//! The road of one call: what is refused, its headers, its token, its time and its attempts.

use std::{pin::pin, time::Duration};

use http::{HeaderValue, header::AUTHORIZATION};
use tokio::{
    task::yield_now,
    time::{Instant, sleep_until, timeout_at},
};
use tonic::{Code, Request, Status};

use super::{OperationsClient, Stack, header, rpc::Rpc, unary::Call};
use crate::{
    auth::AuthInterceptor,
    deadline,
    status::{Origin, StatusExt as _, caused, local},
    task::runtime,
    transport::Unsent,
};

/// How long a call without a deadline waits for its first token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);

impl<S: Stack> OperationsClient<S> {
    pub(super) async fn call<R: Rpc>(&self, request: Request<R>) -> Result<R::Answer, Status> {
        let routing = self.check(&request)?;
        let timeout = deadline::timeout_in(request.metadata().as_ref())?;
        let timeout = timeout.or_else(|| request.get_ref().timeout(self.settings.timeout));
        // A deadline so far off that no clock reaches it is none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let call = Call::new(request, routing, self.settings.headers.clone());
        let (Some(timeout), Some(deadline)) = (timeout, deadline) else {
            return self.attempts(&call, None).await;
        };
        runtime("a call with a timeout")?;
        if deadline <= Instant::now() {
            return Err(local(Code::DeadlineExceeded, late::<R>(timeout)));
        }
        // Pinned here, so that the macro does not move the large future.
        let mut attempts = pin!(self.attempts(&call, Some(deadline)));
        let result = tokio::select! {
            biased;
            result = &mut attempts => result,
            () = sleep_until(deadline) => return Err(local(Code::DeadlineExceeded, late::<R>(timeout))),
        };
        match result {
            // A server that watches the deadline itself may answer CANCELLED, and so may a reset
            // that crosses the deadline. A stack that watches it may be first, too.
            Err(status)
                if (status.code() == Code::Cancelled || is_own_deadline(&status))
                    && Instant::now() >= deadline =>
            {
                let (code, message) = (Code::DeadlineExceeded, late::<R>(timeout));
                Err(caused(code, message, Origin::Client, status))
            }
            result => result,
        }
    }

    /// Refuses what can never be meant; returns the routing header.
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
            name => Some(header::routing(name)?),
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
        header::bounded(request.metadata().as_ref())?;
        Ok(routing.filter(|_| R::HAS_HTTP_RULE))
    }

    /// The credentials for a call that brings none of its own.
    fn auth_of<R: Rpc>(&self, call: &Call<R>) -> Option<&AuthInterceptor> {
        let auth = self.settings.auth.as_ref();
        auth.filter(|_| !call.headers().contains_key(AUTHORIZATION))
    }

    async fn attempts<R: Rpc>(
        &self,
        call: &Call<R>,
        deadline: Option<Instant>,
    ) -> Result<R::Answer, Status> {
        match self.settings.retry.as_ref().filter(|_| R::MAY_BE_RETRIED) {
            Some(retry) => {
                let attempt = |before| self.attempt(call, before, deadline);
                retry.run(deadline, attempt).await
            }
            None => self.attempt(call, 0, deadline).await,
        }
    }

    async fn attempt<R: Rpc>(
        &self,
        call: &Call<R>,
        before: u32,
        deadline: Option<Instant>,
    ) -> Result<R::Answer, Status> {
        let auth = self.auth_of(call);
        let limit = self.settings.max_decoding_message_size.unwrap_or(4 << 20);
        let result = loop {
            if let Some(auth) = auth {
                token(auth, deadline).await?;
            }
            let stack = self.stack.clone();
            match call.attempt(before, stack, deadline, auth, limit).await {
                Err(status) if Unsent::is_cause_of(&status) => {}
                result => break result,
            }
        };
        if let Some(auth) = auth
            && let Err(status) = &result
            && status.code() == Code::Unauthenticated
            // A gateway before the server may have said it, too.
            && status.origin() != Some(Origin::Client)
        {
            auth.rejected();
        }
        result
    }
}

/// Waits for a token, as long as the call may.
///
/// # Errors
///
/// Why there is none: it is more to the point than that the time was up.
async fn token(auth: &AuthInterceptor, deadline: Option<Instant>) -> Result<(), Status> {
    match auth.look() {
        Some(Ok(())) => return Ok(()),
        Some(Err(refusal)) => {
            // The task that mends it may be on this very thread, which does nothing between calls.
            yield_now().await;
            return auth.look().unwrap_or(Err(refusal));
        }
        None => {}
    }
    let until = deadline.unwrap_or_else(|| Instant::now() + TOKEN_TIMEOUT);
    timeout_at(until, auth.ready()).await.unwrap_or_else(|_| {
        let message = "credentials: no token came before the call's deadline";
        Err(auth
            .last_failure()
            .unwrap_or_else(|| local(Code::Unavailable, message)))
    })
}

fn is_own_deadline(status: &Status) -> bool {
    status.code() == Code::DeadlineExceeded && status.origin() == Some(Origin::Client)
}

fn late<R: Rpc>(timeout: Duration) -> String {
    format!("no answer to {} within {timeout:?}", R::METHOD)
}

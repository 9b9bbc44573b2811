//! A call on its way from the transport to a connection.

use std::fmt;

use bytes::Bytes;
use http::{Request, Response};
use tokio::{sync::oneshot, time::Instant};
use tonic::{Code, Status};

use super::body::ResponseBody;
use crate::{
    deadline::{self, Deadline},
    status::{Origin, caused},
};

/// An extension of requests whose response is one message: the connection's task reads it whole.
///
/// The response to any other request is streamed, and its reader paces the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unary {
    /// The largest message that the caller accepts, in bytes.
    pub(crate) limit: usize,
    /// When the credentials in the request's headers expire.
    pub(crate) credentials_expire: Option<Instant>,
}

/// A call that waits for a stream, or that is on one.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) head: Request<()>,
    pub(crate) body: Bytes,
    pub(crate) unary: Option<Unary>,
    pub(crate) deadline: Option<Deadline>,
    pub(crate) queued: Instant,
    /// The call's place in the order of arrival, which the queue sets.
    pub(crate) number: u64,
    /// Whether the server has refused it once.
    pub(crate) refused: bool,
    /// The connection that should not take it again, if another can.
    pub(crate) avoid: Option<u64>,
    pub(crate) reply: oneshot::Sender<Result<Response<ResponseBody>, Status>>,
}

impl Call {
    /// Sends the result to the caller, who may have gone.
    pub(crate) fn reply(self, result: Result<Response<ResponseBody>, Status>) {
        let _ = self.reply.send(result);
    }

    /// Ends a call whose deadline has passed.
    pub(crate) fn reply_too_late(self, now: Instant) {
        if let Some(status) = self.too_late(now) {
            self.reply(Err(status));
        }
    }

    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline.at() <= now)
    }

    /// Returns why the call cannot be sent any more, if so.
    pub(crate) fn too_late(&self, now: Instant) -> Option<Status> {
        if let Some(deadline) = self.deadline.filter(|_| self.has_expired(now)) {
            return Some(deadline.exceeded(QUEUED));
        }
        let expire = self.unary?.credentials_expire?;
        let message = "the call's credentials expired while it was queued for a stream";
        (now >= expire).then(|| Unsent::CredentialsExpired.status(message))
    }

    /// Sets `grpc-timeout` to the time that is left, if that has changed noticeably.
    ///
    /// The client rounds the timeout up by as much as this ignores.
    pub(crate) fn update_timeout(&mut self, now: Instant) {
        if let Some(deadline) = self.deadline
            && now.saturating_duration_since(self.queued) > deadline.timeout() / 256
        {
            deadline::tell(self.head.headers_mut(), deadline.at());
        }
    }
}

/// What a call was doing that did not leave the queue in time.
pub(crate) const QUEUED: &str = "the call was still queued for a stream";

/// Why a call was not sent, where [`OperationsClient`](crate::OperationsClient) makes it again by
/// itself.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// Its credentials expired while it was queued. It gets new ones.
    CredentialsExpired,
    /// The queue was full again when it came. It waits for room.
    QueueFull,
}

impl Unsent {
    pub(crate) fn status(self, message: impl Into<String>) -> Status {
        let code = match self {
            Self::CredentialsExpired => Code::Unavailable,
            Self::QueueFull => Code::ResourceExhausted,
        };
        caused(code, message, Origin::Client, self)
    }

    /// Whether this is what a call ended with.
    pub(crate) fn caused(status: &Status) -> bool {
        let mut cause = std::error::Error::source(status);
        while let Some(error) = cause {
            if error.is::<Self>() {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CredentialsExpired => "the credentials expired before the call was sent",
            Self::QueueFull => "the queue was full",
        })
    }
}

impl std::error::Error for Unsent {}

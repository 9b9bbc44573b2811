//! A call on its way from the transport to a connection.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, Uri, Version};
use tokio::{sync::oneshot, time::Instant};
use tonic::{Code, Status};

use super::{body::ResponseBody, progress::Progress};
use crate::{
    deadline::{self, Deadline, Stage, Waited},
    expiry::Expiry,
    request::UnaryHead,
    status::{Delivery, Origin, caused},
};

/// The settings of a request with a unary response, which the connection's task reads completely. For a stack with
/// layers, it is an extension of the request.
///
/// The response to any other request is streamed, and its reader paces the server.
#[derive(Clone, Debug)]
pub(crate) struct Unary {
    /// The largest message that the caller accepts, in bytes.
    pub(crate) limit: usize,
    /// When the credentials in the request's headers expire.
    pub(crate) credentials_expire: Option<Expiry>,
    /// The caller's exact deadline; `grpc-timeout` is rounded up.
    pub(crate) deadline: Option<Instant>,
    /// Whether this is a retry of a failed call. The transport then does not retry it by itself if the
    /// server refuses it.
    pub(crate) is_retry: bool,
    pub(crate) progress: Option<Arc<Progress>>,
}

/// A call whose caller waits for the response: it is queued, or on a stream.
///
/// Always boxed, because it moves between queues.
#[derive(Debug)]
pub(crate) struct PendingCall {
    pub(crate) head: RequestHead,
    pub(crate) body: Bytes,
    pub(crate) unary: Option<Unary>,
    pub(crate) deadline: Option<Deadline>,
    /// When the call was queued, or put back after it was sent.
    pub(crate) queued_at: Instant,
    /// The call's place in the order of arrival, which the queue sets.
    pub(crate) number: u64,
    /// Whether the single retry after a refusal by the server has been used, or is not allowed.
    pub(crate) refused: bool,
    /// The connection that should not take it again, if another can.
    pub(crate) avoid: Option<u64>,
    pub(crate) reply: oneshot::Sender<Result<Response<ResponseBody>, Status>>,
}

/// The head of a call, from which a request is created for each stream.
#[derive(Debug)]
pub(crate) enum RequestHead {
    /// A request that [`OperationsClient`](crate::OperationsClient) passes directly to the transport.
    Unary { head: UnaryHead, uri: Uri },
    /// A request that arrived through [`Service::call`](tower::Service::call).
    Any(Request<()>),
}

impl PendingCall {
    /// Returns the [`Progress`] to report to, if there is one.
    pub(crate) fn progress(&self) -> Option<&Progress> {
        self.unary.as_ref()?.progress.as_deref()
    }

    /// Sends the result to the caller, which may have been dropped.
    pub(crate) fn reply(self: Box<Self>, result: Result<Response<ResponseBody>, Status>) {
        let _ = self.reply.send(result);
    }

    /// Ends a call whose deadline has passed in this stage.
    pub(crate) fn reply_too_late(self: Box<Self>, now: Instant, stage: Stage) {
        if let Some(status) = self.too_late(now, stage) {
            self.reply(Err(status));
        }
    }

    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        self.deadline
            .is_some_and(|deadline| deadline.has_passed(now))
    }

    /// Returns the status of a call that must not be sent any more.
    pub(crate) fn too_late(&self, now: Instant, stage: Stage) -> Option<Status> {
        if let Some(deadline) = self.deadline.filter(|_| self.has_expired(now)) {
            let queued = now.saturating_duration_since(self.queued_at);
            return Some(deadline.exceeded(Waited::new(stage, queued)));
        }
        let expire = self.unary.as_ref()?.credentials_expire?;
        let message = "the call's credentials expired while it was queued for a stream";
        expire
            .has_passed()
            .then(|| Unsent::CredentialsExpired.status(message))
    }

    /// Returns the request for a stream. Its `grpc-timeout` is the remaining time, or the unchanged timeout if less
    /// than 1/64 of it has passed, so that the value repeats and HPACK can index it.
    pub(crate) fn request(&self, now: Instant) -> Request<()> {
        let mut request = match &self.head {
            RequestHead::Unary { head, uri } => {
                let mut request = Request::new(());
                *request.method_mut() = Method::POST;
                *request.uri_mut() = uri.clone();
                *request.version_mut() = Version::HTTP_2;
                *request.headers_mut() = head.headers(self.deadline.map(|it| it.timeout()));
                request
            }
            RequestHead::Any(head) => head.clone(),
        };
        if let Some(deadline) = self.deadline {
            let remaining = deadline.remaining(now);
            if deadline.timeout().saturating_sub(remaining) > deadline.timeout() / 64 {
                deadline::set(request.headers_mut(), remaining);
            }
        }
        request
    }
}

/// Why a call was not sent. [`OperationsClient`](crate::OperationsClient) retries such a call.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// Its credentials expired while it was queued. It is signed again.
    CredentialsExpired,
    /// The queue was full again when the call arrived. The client waits until it is not.
    QueueFull,
}

impl Unsent {
    pub(crate) fn status(self, message: impl Into<String>) -> Status {
        let code = match self {
            Self::CredentialsExpired => Code::Unavailable,
            Self::QueueFull => Code::ResourceExhausted,
        };
        caused(code, message, Origin::Client, Delivery::NotSent, self)
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

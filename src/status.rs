//! Extensions of [`tonic::Status`]: its origin, what is known about its call, and its details.

mod classify;
mod report;
mod server_delay;
mod source;

use std::{fmt, time::Duration};

use prost::{Message, Name};
use tonic::{Code, Status};

pub use self::report::StatusReport;
use self::source::source;
pub(crate) use self::{
    classify::{classify, is_unprocessed},
    server_delay::ServerDelay,
    source::{
        cause, caused, local, mark, retry, reworded, with_attempts, with_delivery, with_retry,
    },
};
use crate::proto::rpc;

/// Extension methods of [`tonic::Status`].
///
/// ```
/// use longrunning::CallStatusExt as _;
///
/// let status = tonic::Status::deadline_exceeded("no response within 10s");
/// assert_eq!(status.http_code(), 504);
/// assert_eq!(status.code_name(), "DEADLINE_EXCEEDED");
/// assert_eq!(status.origin(), None); // this crate has not returned it
/// ```
pub trait CallStatusExt: sealed::Sealed {
    /// Returns where this status came from; `None` if this crate neither created nor marked it.
    fn origin(&self) -> Option<Origin>;

    /// Returns whether a server may have processed the call; `None` if this crate neither created nor
    /// marked the status.
    ///
    /// It covers all attempts of a [`RetryPolicy`](crate::RetryPolicy): if the last one was not sent, but a
    /// server may have processed an earlier one, this is [`MaybeSent`](Delivery::MaybeSent). It does not
    /// cover the attempts of a layer over the [default stack](crate::Transport) that retries calls by
    /// itself.
    ///
    /// ```
    /// # use longrunning::{OperationsClient, RetryPolicy};
    /// use longrunning::{Delivery, CallStatusExt as _};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    /// # let endpoint = format!("http://{}", listener.local_addr().unwrap());
    /// # drop(listener);
    /// # let client = OperationsClient::builder(endpoint).retry(RetryPolicy::none()).connect_lazy()?;
    /// let failure = client.delete_operation("operations/1").await.unwrap_err();
    /// match failure.delivery() {
    ///     Some(Delivery::NotSent) => println!("the operation was certainly not deleted"),
    ///     _ => println!("the operation may have been deleted"),
    /// }
    /// # assert_eq!(failure.delivery(), Some(Delivery::NotSent));
    /// # Ok(())
    /// # }
    /// ```
    fn delivery(&self) -> Option<Delivery>;

    /// Returns the number of attempts that the call made, including the first.
    ///
    /// `None` if the status was not returned by a call of an
    /// [`OperationsClient`](crate::OperationsClient), or if the call was rejected before its first attempt,
    /// for example because its name is empty. An attempt counts even if it ends before anything is sent, for
    /// example because there is no token. Transparent retries of the [default stack](crate::Transport)
    /// do not count.
    fn attempts(&self) -> Option<usize>;

    /// Returns how long the call took, including all its attempts and the delays between them.
    ///
    /// `None` if [`attempts`](Self::attempts) returns `None`.
    fn elapsed(&self) -> Option<Duration>;

    /// Returns the delay that the server requested before a retry.
    ///
    /// This is the delay in `grpc-retry-pushback-ms`, or else in [`RetryInfo`](rpc::RetryInfo). `None` if the
    /// status contains neither, or if the pushback forbids a retry. A `RetryInfo` without a delay counts as a
    /// delay of zero.
    fn retry_delay(&self) -> Option<Duration>;

    /// Returns a one-line report for logs: code, origin, delivery, attempts, time, message, and the types of
    /// the details.
    ///
    /// The report contains neither the values of the details nor the metadata. Backslashes, combining
    /// characters, and characters that are not printable, such as line breaks, are escaped.
    ///
    /// ```
    /// # use longrunning::{OperationsClient, RetryPolicy};
    /// use longrunning::CallStatusExt as _;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    /// # let endpoint = format!("http://{}", listener.local_addr().unwrap());
    /// # drop(listener);
    /// # let client = OperationsClient::builder(endpoint).retry(RetryPolicy::none()).connect_lazy()?;
    /// let failure = client.get_operation("operations/1").await.unwrap_err();
    /// // UNAVAILABLE (transport, not sent, 1 attempt in 1ms): cannot connect to ..
    /// println!("{}", failure.report());
    /// # let line = failure.report().to_string();
    /// # assert!(line.starts_with("UNAVAILABLE (transport, not sent, 1 attempt in "), "{line}");
    /// # Ok(())
    /// # }
    /// ```
    fn report(&self) -> StatusReport<'_>;

    /// Marks the status as retryable, whatever its code.
    ///
    /// A [`RetryPolicy`](crate::RetryPolicy) then retries the call. This is for layers of a custom stack,
    /// whose statuses are otherwise not retried. The other rules of the policy still apply: the number of
    /// attempts, [`idempotent`](crate::RetryPolicy::idempotent), the deadline, the throttle, and a delay in the
    /// status. A layer cannot declare that nothing was sent, so calls that are not idempotent are not retried.
    /// The mark has no effect on `WaitOperation`, or without a policy: a client of
    /// [`new`](crate::OperationsClient::new) has none unless one is set for it or for the call.
    /// [Pollers](crate::Poller) continue after such a status.
    ///
    /// ```
    /// use longrunning::CallStatusExt as _;
    /// use tonic::{Request, Status};
    ///
    /// /// An interceptor that refuses calls while a feature flag is off.
    /// fn gate(request: Request<()>) -> Result<Request<()>, Status> {
    ///     # let open = false;
    ///     if open {
    ///         Ok(request)
    ///     } else {
    ///         Err(Status::unavailable("the gate is closed").into_retryable())
    ///     }
    /// }
    /// # assert!(gate(Request::new(())).is_err());
    /// ```
    #[must_use]
    fn into_retryable(self) -> Self
    where
        Self: Sized;

    /// Returns the HTTP status code with which the REST method would have answered.
    ///
    /// The mapping is that of [`google.rpc.Code`](rpc::Code). `CANCELLED` is 499.
    fn http_code(&self) -> u16;

    /// Returns the name of the code as gRPC spells it, such as `DEADLINE_EXCEEDED`.
    fn code_name(&self) -> &'static str;

    /// Returns the first of the status's typed details that is an `M`, such as
    /// [`rpc::RetryInfo`] or [`rpc::ErrorInfo`].
    ///
    /// `None` also where the details are not a `google.rpc.Status`, or the bytes are no `M`.
    fn detail<M: Message + Name + Default>(&self) -> Option<M>;
}

/// Where a status came from.
///
/// Exhaustive: a call ends with the server's status, without it, or before the server was needed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[allow(clippy::exhaustive_enums)]
pub enum Origin {
    /// The client itself: an invalid argument, the deadline, credentials, a response that cannot be
    /// decoded.
    ///
    /// Statuses of a layer of the stack, such as an interceptor, and of a generated server in the same
    /// process count as the client's: they do not arrive as a `grpc-status`. Only the emulator marks its
    /// own as [`Server`](Self::Server). A [`RetryPolicy`](crate::RetryPolicy) does not retry them, unless
    /// they are [marked as retryable](CallStatusExt::into_retryable).
    Client,
    /// The server: a `grpc-status` arrived.
    Server,
    /// Neither: the call ended without a `grpc-status`, because the connection or a proxy failed.
    Transport,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Transport => "transport",
        })
    }
}

/// Whether a server may have processed a call.
///
/// Exhaustive: none has processed it, or one may have, or a response arrived.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[allow(clippy::exhaustive_enums)]
pub enum Delivery {
    /// No server has processed any of the call: it was not sent, or the server reported that it did not
    /// process it (`REFUSED_STREAM`, or a `GOAWAY` that excludes the call).
    NotSent,
    /// The call was sent, at least in part, and ended without a complete response: the server may have
    /// processed it.
    ///
    /// The status or error of a custom stack counts as this, because a layer may fail a call before or
    /// after it was sent, and may have retried it.
    MaybeSent,
    /// A response arrived, at least in part. A call whose deadline passes before the response is complete
    /// may count as [`MaybeSent`](Self::MaybeSent).
    ///
    /// It is the response to the last attempt. An earlier attempt may have been processed although no
    /// response to it arrived: then an error does not mean that nothing was done.
    Answered,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSent => "not sent",
            Self::MaybeSent => "maybe sent",
            Self::Answered => "answered",
        })
    }
}

impl CallStatusExt for Status {
    fn origin(&self) -> Option<Origin> {
        Some(source(self)?.origin)
    }

    fn delivery(&self) -> Option<Delivery> {
        Some(source(self)?.delivery)
    }

    fn attempts(&self) -> Option<usize> {
        Some(source(self)?.spent?.attempts)
    }

    fn elapsed(&self) -> Option<Duration> {
        Some(source(self)?.spent?.time)
    }

    fn retry_delay(&self) -> Option<Duration> {
        match ServerDelay::of(self)? {
            ServerDelay::Exactly(delay) | ServerDelay::AtLeast(delay) => Some(delay),
            ServerDelay::NoRetry => None,
        }
    }

    fn report(&self) -> StatusReport<'_> {
        StatusReport::new(self)
    }

    fn into_retryable(self) -> Self {
        with_retry(mark(self, Origin::Client, Delivery::MaybeSent), true)
    }

    fn http_code(&self) -> u16 {
        match self.code() {
            Code::Ok => 200,
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
            Code::Unauthenticated => 401,
            Code::PermissionDenied => 403,
            Code::NotFound => 404,
            Code::AlreadyExists | Code::Aborted => 409,
            Code::ResourceExhausted => 429,
            Code::Cancelled => 499,
            Code::Unknown | Code::Internal | Code::DataLoss => 500,
            Code::Unimplemented => 501,
            Code::Unavailable => 503,
            Code::DeadlineExceeded => 504,
        }
    }

    fn code_name(&self) -> &'static str {
        code_name(self.code())
    }

    fn detail<M: Message + Name + Default>(&self) -> Option<M> {
        let status = rpc::Status::decode(self.details()).ok()?;
        status.details.iter().find_map(|any| any.to_msg().ok())
    }
}

/// Returns the name of a code, as the proto spells it.
pub(crate) fn code_name(code: Code) -> &'static str {
    // The two enums have the same numbers, which a test verifies.
    rpc::Code::try_from(i32::from(code)).map_or("UNKNOWN", |code| code.as_str_name())
}

/// Returns whether a failure is transient, so that a new call may succeed.
///
/// [AIP-194](https://google.aip.dev/194) recommends to retry a call only on `UNAVAILABLE`, and not after its deadline. A
/// new call, such as the next poll, has its own deadline.
pub(crate) fn is_transient(status: &Status) -> bool {
    // A layer of the stack has marked the status as retryable.
    if retry(status) == Some(true) {
        return true;
    }
    match status.code() {
        Code::DeadlineExceeded | Code::Unavailable => true,
        Code::ResourceExhausted => status.origin() != Some(Origin::Client),
        // The stream was reset; the status did not come from the server.
        Code::Cancelled => status.origin() == Some(Origin::Transport),
        _ => false,
    }
}

/// Returns whether the server rejected a call because of its quota. Limits of the client or of a proxy end calls with
/// the same code.
pub(crate) fn is_quota_rejection(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && status.origin() == Some(Origin::Server)
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for tonic::Status {}
}

/// Carries code, message and details. The details of the result are the whole message in its
/// binary form, as gRPC's `grpc-status-details-bin` does it, so that nothing is lost on the way
/// back: not even a code that gRPC does not know, which becomes [`Code::Unknown`].
impl From<rpc::Status> for Status {
    fn from(status: rpc::Status) -> Self {
        let details = status.encode_to_vec().into();
        Status::with_details(Code::from_i32(status.code), status.message, details)
    }
}

/// Carries code, message and typed details; metadata has no place in the message.
///
/// # Errors
///
/// `INVALID_ARGUMENT` where the details are bytes of some other kind than `google.rpc.Status`:
/// there is no place for them.
impl TryFrom<&Status> for rpc::Status {
    type Error = Status;

    fn try_from(status: &Status) -> Result<Self, Status> {
        let within = rpc::Status::decode(status.details()).map_err(|error| {
            local(
                Code::InvalidArgument,
                format!("the status's details are not a google.rpc.Status: {error}"),
            )
        })?;
        // Code and message of the call itself win, unless they are only how gRPC shows those within.
        let is_shown = Code::from_i32(within.code) == status.code();
        let code = if is_shown && !status.details().is_empty() {
            within.code
        } else {
            status.code().into()
        };
        Ok(Self {
            code,
            message: status.message().to_owned(),
            details: within.details,
        })
    }
}

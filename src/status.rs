//! What a [`tonic::Status`] tells beyond its code: where it came from, and what stands in its details.

mod classify;

use std::{error::Error, fmt, sync::Arc};

use prost::{Message, Name};
use tonic::{Code, Status};

pub(crate) use self::classify::classify;
use crate::proto::rpc;

/// Reads more out of a [`tonic::Status`].
///
/// ```
/// use longrunning::StatusExt as _;
///
/// let status = tonic::Status::deadline_exceeded("no answer within 10s");
/// assert_eq!(status.http_code(), 504);
/// assert_eq!(status.code_name(), "DEADLINE_EXCEEDED");
/// assert_eq!(status.origin(), None); // this crate never touched it
/// ```
pub trait StatusExt: sealed::Sealed {
    /// Returns who decided on this status; `None` for one that this crate never touched.
    fn origin(&self) -> Option<Origin>;

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

/// Who decided on a status.
///
/// Exhaustive: a call ends with the server's word, without it, or before it was needed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[allow(clippy::exhaustive_enums)]
pub enum Origin {
    /// The client itself: a bad argument, the deadline, credentials, an answer that cannot be decoded.
    ///
    /// So count, too, the statuses of a layer of the stack, such as an interceptor, and of a
    /// generated server in this very process: both come as they are, not as a `grpc-status`, and
    /// nothing tells one from the other. Only the emulator marks its own as
    /// [`Server`](Self::Server). No [`RetryPolicy`](crate::RetryPolicy) makes a call again that
    /// ended so.
    Client,
    /// The server: a `grpc-status` arrived.
    Server,
    /// Neither: the call ended without a `grpc-status`, for the connection or a proxy failed it.
    Transport,
}

impl StatusExt for Status {
    fn origin(&self) -> Option<Origin> {
        Some(marker(self)?.origin)
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
        // The two enums have the same numbers, which a test holds.
        rpc::Code::try_from(i32::from(self.code())).map_or("UNKNOWN", |code| code.as_str_name())
    }

    fn detail<M: Message + Name + Default>(&self) -> Option<M> {
        let status = rpc::Status::decode(self.details()).ok()?;
        status.details.iter().find_map(|any| any.to_msg().ok())
    }
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
        let code = match Code::from_i32(within.code) == status.code() {
            true if !status.details().is_empty() => within.code,
            _ => status.code().into(),
        };
        Ok(Self {
            code,
            message: status.message().to_owned(),
            details: within.details,
        })
    }
}

/// Makes a status that is decided here.
pub(crate) fn local(code: Code, message: impl Into<String>) -> Status {
    mark(Status::new(code, message), Origin::Client)
}

/// Notes who decided on a status, unless that is noted already. Its source stays reachable.
pub(crate) fn mark(mut status: Status, origin: Origin) -> Status {
    if marker(&status).is_none() {
        // A status lends its source and does not give it: a clone keeps it reachable.
        let cause = status
            .source()
            .is_some()
            .then(|| Arc::new(status.clone()) as _);
        status.set_source(Arc::new(Marker { origin, cause }));
    }
    status
}

/// Makes a status that an error caused.
pub(crate) fn caused(
    code: Code,
    message: impl Into<String>,
    origin: Origin,
    cause: impl Into<Box<dyn Error + Send + Sync>>,
) -> Status {
    let mut status = Status::new(code, message);
    status.set_source(Arc::new(Marker {
        origin,
        cause: Some(cause.into().into()),
    }));
    status
}

fn marker(status: &Status) -> Option<&Marker> {
    status.source()?.downcast_ref()
}

/// The source of every status that this crate has touched.
struct Marker {
    origin: Origin,
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

// A status shows its source with `Debug`.
impl fmt::Debug for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.origin;
        let Some(cause) = &self.cause else {
            return write!(f, "{origin:?}");
        };
        match cause.downcast_ref::<Status>() {
            // It would show its own source, and so on.
            Some(status) => write!(f, "{origin:?}({:?}: {})", status.code(), status.message()),
            None => write!(f, "{origin:?}({cause})"),
        }
    }
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.origin {
            Origin::Client => "decided by the client",
            Origin::Server => "decided by the server",
            Origin::Transport => "the call ended without a grpc-status",
        })
    }
}

impl Error for Marker {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&**self.cause.as_ref()?)
    }
}

//! The messages of `google.longrunning` and `google.rpc`, and the raw stubs.
//!
//! All of it is generated from the vendored `proto` folder. Every method of
//! [`OperationsClient`](crate::OperationsClient) takes its request message, or a whole
//! [`tonic::Request`] of it, or simply the name that it would hold:
//!
//! ```
//! use longrunning::proto::CancelOperationRequest;
//! use tonic::IntoRequest;
//!
//! let request: tonic::Request<CancelOperationRequest> = "operations/1".into_request();
//! assert_eq!(request.get_ref().name, "operations/1");
//! ```

use std::{borrow::Cow, sync::Arc, time::Duration};

use tonic::{Extensions, IntoRequest, Request};

#[cfg(feature = "emulator")]
pub use self::generated::google::longrunning::operations_server;
pub use self::generated::google::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    ListOperationsResponse, Operation, OperationInfo, WaitOperationRequest, operation,
    operations_client,
};

/// The messages of `google.rpc`: statuses that travel inside messages, and their typed details.
pub mod rpc {
    pub use super::generated::google::rpc::{
        BadRequest, Code, DebugInfo, ErrorInfo, Help, LocalizedMessage, PreconditionFailure,
        QuotaFailure, RequestInfo, ResourceInfo, RetryInfo, Status, bad_request, help,
        precondition_failure, quota_failure,
    };
}

/// A duration of a message, if it is one of time to come.
///
/// The conversion of prost's own negates the seconds, which for the least of them overflows.
pub(crate) fn duration(duration: prost_types::Duration) -> Option<Duration> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u64::try_from(duration.nanos).ok()?;
    Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanos))
}

#[allow(
    missing_docs,
    rustdoc::all,
    clippy::all,
    clippy::unwrap_used,
    unreachable_pub
)]
mod generated {
    pub mod google {
        pub mod longrunning {
            include!(concat!(env!("OUT_DIR"), "/google.longrunning.rs"));
        }
        pub mod rpc {
            include!(concat!(env!("OUT_DIR"), "/google.rpc.rs"));
        }
    }
}

/// Makes a request of a name, in each form that a name is held in.
macro_rules! a_name_is_a_request {
    ($($request:ident),*) => {$(
        impl IntoRequest<$request> for String {
            #[allow(clippy::needless_update)] // some of them hold nothing but the name
            fn into_request(self) -> Request<$request> {
                Request::new($request { name: self, ..Default::default() })
            }
        }

        impl IntoRequest<$request> for &str {
            fn into_request(self) -> Request<$request> {
                self.to_owned().into_request()
            }
        }

        a_name_is_a_request!($request: &String, &&str, Cow<'_, str>, &Cow<'_, str>, Arc<str>, &Arc<str>, Box<str>, &Box<str>);
    )*};
    ($request:ident: $($name:ty),*) => {$(
        impl IntoRequest<$request> for $name {
            fn into_request(self) -> Request<$request> {
                self.to_string().into_request()
            }
        }
    )*};
}

a_name_is_a_request!(
    CancelOperationRequest,
    DeleteOperationRequest,
    GetOperationRequest,
    ListOperationsRequest,
    WaitOperationRequest
);

/// Makes a request of the operation that it is about.
macro_rules! an_operation_is_a_request {
    ($($request:ident),*) => {$(
        impl IntoRequest<$request> for Operation {
            fn into_request(self) -> Request<$request> {
                self.name.into_request()
            }
        }

        impl IntoRequest<$request> for &Operation {
            fn into_request(self) -> Request<$request> {
                self.name.clone().into_request()
            }
        }
    )*};
}

/// Converts an operation to a request for it. The extensions of the request contain the operation's state, which
/// [`OperationsClient::poller`](crate::OperationsClient::poller) uses.
impl IntoRequest<GetOperationRequest> for Operation {
    fn into_request(self) -> Request<GetOperationRequest> {
        let mut request: Request<GetOperationRequest> = self.name.clone().into_request();
        request.extensions_mut().insert(KnownState(Arc::new(self)));
        request
    }
}

impl IntoRequest<GetOperationRequest> for &Operation {
    fn into_request(self) -> Request<GetOperationRequest> {
        self.clone().into_request()
    }
}

/// The state of the operation that a request was created from.
#[derive(Clone)]
pub(crate) struct KnownState(Arc<Operation>);

impl KnownState {
    /// Removes the state from the extensions of a request.
    pub(crate) fn take(extensions: &mut Extensions) -> Option<Operation> {
        let Self(state) = extensions.remove()?;
        Some(Arc::unwrap_or_clone(state))
    }
}

an_operation_is_a_request!(
    CancelOperationRequest,
    DeleteOperationRequest,
    WaitOperationRequest
);

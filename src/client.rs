//! The client: the five RPCs, and what every call shares.

mod answer;
mod boxed;
mod call;
mod header;
mod message;
mod observed;
mod rpc;
mod settings;
mod shared;
mod unary;
mod waits;

use std::sync::Arc;

use bytes::Bytes;
use tonic::{IntoRequest, Status, body::Body, client::GrpcService};
use tower::BoxError;

pub use self::boxed::BoxGrpcStack;
use self::shared::Shared;
pub(crate) use self::{settings::Settings, shared::Server};
use crate::{
    operation::Operation,
    proto::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, KnownState,
        ListOperationsRequest, ListOperationsResponse, WaitOperationRequest,
    },
    transport::Transport,
};

/// A client of `google.longrunning.Operations`. Clones are cheap, and share the connections and the
/// credentials.
///
/// Each method takes the operation's name, an [`Operation`], a request message, or a whole
/// [`tonic::Request`] with metadata, a timeout, and a retry policy:
///
/// ```
/// # #[cfg(not(feature = "emulator"))]
/// # fn main() {}
/// # #[cfg(feature = "emulator")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tonic::Status> {
/// # use longrunning::emulator::Emulator;
/// # let emulator = Emulator::in_process()?;
/// # emulator.start_operation("operations/1")?;
/// # let client = longrunning::OperationsClient::new(emulator.service());
/// use std::time::Duration;
/// use longrunning::{RetryPolicy, proto::CancelOperationRequest};
/// use tonic::{IntoRequest, Request};
///
/// let mut request: Request<CancelOperationRequest> = "operations/1".into_request();
/// request.set_timeout(Duration::from_secs(2));
/// request.extensions_mut().insert(RetryPolicy::default().idempotent(false));
/// client.cancel_operation(request).await?;
/// # Ok(())
/// # }
/// ```
///
/// Any number of tasks can call methods at the same time. Dropping a future ends its call: the server is
/// notified, but it may have processed the call already.
///
/// Errors are [`tonic::Status`]: the server's status, unchanged, or a status that this client created.
/// [`CallStatusExt::origin`](crate::CallStatusExt::origin) returns which. Every method can return these:
///
/// - `INVALID_ARGUMENT`: the name is empty, or all headers together, credentials included, are larger
///   than [`max_header_list_size`](crate::ClientBuilder::max_header_list_size). Nothing was sent.
/// - `DEADLINE_EXCEEDED`: the deadline has passed. The message says what the call waited for.
/// - `UNAUTHENTICATED`: there is no token, and a person has to fix that; or the server refused it.
/// - `UNAVAILABLE`: the server could not be reached, or the connection broke.
/// - `RESOURCE_EXHAUSTED`: the message is larger than the limit for its direction, or the
///   [queue](crate::ClientBuilder::max_queued_calls) of calls is full.
/// - `INTERNAL`: the answer is not what the protocol allows.
/// - `UNKNOWN`: the answer ended without a status.
/// - `FAILED_PRECONDITION`: the call has a deadline, or uses the default stack, and there is no tokio
///   runtime.
///
/// The table of [faults](Transport#faults) has the code of each failure of the default stack.
/// [`CallStatusExt::delivery`](crate::CallStatusExt::delivery) returns whether a server may have processed
/// the call.
#[derive(Clone, Debug)]
pub struct OperationsClient<S = Transport> {
    stack: S,
    settings: Settings,
    shared: Arc<Shared>,
}

/// A tower service that carries gRPC calls: a [`Channel`], an [`InterceptedService`], a generated
/// server in the same process, or any of them under custom layers.
///
/// This trait is an alias for its bounds, and is implemented for every type that satisfies them. Pollers,
/// streams and `cancel_and_wait` also require [`Sync`]. [`BoxGrpcStack`] erases the type of a stack.
///
/// [`Channel`]: https://docs.rs/tonic/0.14/tonic/transport/struct.Channel.html
/// [`InterceptedService`]: tonic::service::interceptor::InterceptedService
pub trait GrpcStack:
    Clone
    + GrpcService<
        Body,
        Error: Into<BoxError>,
        Future: Send,
        ResponseBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    > + Send
    + 'static
{
}

impl<S> GrpcStack for S where
    S: Clone
        + GrpcService<
            Body,
            Error: Into<BoxError>,
            Future: Send,
            ResponseBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
        > + Send
        + 'static
{
}

impl<S> OperationsClient<S> {
    /// Returns the stack, for another generated client to use the same connections.
    ///
    /// Retries, default timeouts and credentials belong to the client, not to the stack. Another client does
    /// not record the number of attempts, or the origin of a status that the server sent. Both clients respect
    /// the timeout of a request (`tonic::Request::set_timeout`). An [`AuthInterceptor`](crate::AuthInterceptor)
    /// gives the other client the same token:
    ///
    /// ```
    /// # #[cfg(not(feature = "emulator"))]
    /// # fn main() {}
    /// # #[cfg(feature = "emulator")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// # use longrunning::{emulator::Emulator, proto::GetOperationRequest};
    /// # let emulator = Emulator::start().await?;
    /// # emulator.start_operation("operations/1")?;
    /// # let endpoint = emulator.endpoint();
    /// use longrunning::{Credentials, OperationsClient};
    /// // Any other client that tonic generates works the same way.
    /// use longrunning::proto::operations_client::OperationsClient as AnyClient;
    ///
    /// let auth = Credentials::bearer_token("ya29.c").interceptor().await?;
    /// let client = OperationsClient::builder(endpoint).connect().await?;
    /// let mut other = AnyClient::with_interceptor(client.stack().clone(), auth.clone());
    /// let client = client.auth(auth);
    /// # let request = GetOperationRequest { name: "operations/1".to_owned() };
    /// # assert!(!other.get_operation(request).await?.into_inner().done);
    /// # client.cancel_operation("operations/1").await?;
    /// # assert_eq!(emulator.open_connections(), 1);
    /// # let signed = |call: &longrunning::emulator::Call| call.metadata().get("authorization").is_some();
    /// # assert!(emulator.calls().iter().all(signed));
    /// # Ok(())
    /// # }
    /// ```
    pub const fn stack(&self) -> &S {
        &self.stack
    }

    /// Adds custom layers, such as an interceptor, on top of the stack.
    ///
    /// The layers process each attempt of a call. When the default transport below them sends a request, it
    /// sets `grpc-timeout` to the remaining time.
    ///
    /// ```
    /// # async fn example() -> Result<(), tonic::Status> {
    /// use longrunning::OperationsClient;
    /// use tonic::{Request, Status, service::interceptor::InterceptedService};
    ///
    /// fn tenant(mut request: Request<()>) -> Result<Request<()>, Status> {
    ///     let tenant = tonic::metadata::MetadataValue::from_static("7");
    ///     request.metadata_mut().insert("x-tenant", tenant);
    ///     Ok(request)
    /// }
    ///
    /// let client = OperationsClient::builder("https://automl.googleapis.com").connect().await?;
    /// let client = client.map_stack(|stack| InterceptedService::new(stack, tenant as fn(_) -> _));
    /// # let _ = client;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The type of the new stack contains the types of all its layers. [`boxed`](Self::boxed) erases it. Spans,
    /// metrics and [`stats`](Self::stats) keep the server address and the connections of the original stack.
    ///
    /// A tower `Timeout` layer also ends the `WaitOperation` calls of pollers, which take up to a minute. Use
    /// [`timeout`](Self::timeout) instead, or set a [`wait_timeout`](crate::PollPolicy::wait_timeout) that is
    /// shorter than the timeout of the layer.
    #[must_use]
    pub fn map_stack<T>(self, layer: impl FnOnce(S) -> T) -> OperationsClient<T> {
        OperationsClient {
            stack: layer(self.stack),
            settings: self.settings,
            shared: self.shared,
        }
    }
}

impl<S: GrpcStack> OperationsClient<S> {
    /// Creates a client over an existing stack.
    ///
    /// The client rejects empty names, adds the request headers, and maps errors to status codes. It
    /// applies deadlines and retries only if you set them with [`timeout`](Self::timeout) and
    /// [`retry`](Self::retry), but always respects the timeout of a request. Pollers and lists set a deadline
    /// for each of their calls. If the stack allows few concurrent calls, use
    /// [`max_concurrent_waits`](Self::max_concurrent_waits) to prevent pollers from occupying all of them.
    pub fn new(stack: S) -> Self {
        Self {
            stack,
            settings: Settings::default(),
            shared: Arc::default(),
        }
    }

    /// Asks the server to stop an operation.
    ///
    /// Best effort: success means that the server took the request, not that the operation is
    /// stopped. It is not deleted either; one that was stopped becomes done with the error code 1
    /// (`CANCELLED`). [`get_operation`](Self::get_operation) tells whether it was, or whether it
    /// completed despite the request.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")]
    /// # async fn example<S: longrunning::GrpcStack>(client: longrunning::OperationsClient<S>) -> Result<(), tonic::Status> {
    /// client.cancel_operation("projects/p/locations/us-central1/operations/ICN42").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [every method](Self), and those of the server, among them:
    ///
    /// - `NOT_FOUND`: it knows no such operation.
    /// - `UNIMPLEMENTED`: it cannot cancel operations.
    /// - `FAILED_PRECONDITION`, `INVALID_ARGUMENT`: some servers, where the operation is done
    ///   already or cannot be cancelled.
    pub async fn cancel_operation(
        &self,
        request: impl IntoRequest<CancelOperationRequest>,
    ) -> Result<(), Status> {
        self.call(request.into_request()).await
    }

    /// Returns the latest state of an operation.
    ///
    /// # Errors
    ///
    /// Those of [every method](Self), and those of the server, among them `NOT_FOUND`: it knows no
    /// such operation, or has forgotten it.
    pub async fn get_operation(
        &self,
        request: impl IntoRequest<GetOperationRequest>,
    ) -> Result<Operation, Status> {
        let mut request = request.into_request();
        KnownState::take(request.extensions_mut());
        self.call(request).await
    }

    /// Tells the server to forget an operation. This does not stop it.
    ///
    /// # Errors
    ///
    /// Those of [every method](Self), and those of the server, among them:
    ///
    /// - `NOT_FOUND`: it knows no such operation.
    /// - `UNIMPLEMENTED`: it cannot delete operations.
    pub async fn delete_operation(
        &self,
        request: impl IntoRequest<DeleteOperationRequest>,
    ) -> Result<(), Status> {
        self.call(request.into_request()).await
    }

    /// Returns one page of the operations under a parent, such as `projects/p/locations/l`.
    ///
    /// The parent alone asks for the first page of all of them; filter, page size and page token
    /// are fields of [`ListOperationsRequest`]. An empty parent is sent as it is: to some servers
    /// it means the only parent that they have.
    ///
    /// # Errors
    ///
    /// Those of [every method](Self), and those of the server, among them:
    ///
    /// - `INVALID_ARGUMENT`: it does not understand the filter, or the page token.
    /// - `UNIMPLEMENTED`: it cannot list operations.
    pub async fn list_operations(
        &self,
        request: impl IntoRequest<ListOperationsRequest>,
    ) -> Result<ListOperationsResponse, Status> {
        self.call(request.into_request()).await
    }

    /// Returns the state of an operation once it is done, or once the request's timeout is over.
    ///
    /// The server may answer earlier; without a timeout in the request, when it likes. Look at
    /// [`Operation::outcome`] to see whether the operation is done.
    ///
    /// # Errors
    ///
    /// Those of [every method](Self), and those of the server, among them:
    ///
    /// - `NOT_FOUND`: it knows no such operation.
    /// - `UNIMPLEMENTED`: it cannot wait; ask with [`get_operation`](Self::get_operation).
    pub async fn wait_operation(
        &self,
        request: impl IntoRequest<WaitOperationRequest>,
    ) -> Result<Operation, Status> {
        self.call(request.into_request()).await
    }
}

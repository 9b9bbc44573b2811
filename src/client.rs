//! The client: the five RPCs, and what every call shares.

mod answer;
mod call;
mod header;
mod message;
mod rpc;
mod settings;
mod unary;
mod waits;

use std::sync::Arc;

use bytes::Bytes;
use tonic::{IntoRequest, Status, body::Body, client::GrpcService};
use tower::BoxError;

use self::{settings::Settings, waits::Waits};
use crate::{
    operation::Operation,
    proto::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        ListOperationsResponse, WaitOperationRequest,
    },
    transport::Transport,
};

/// A client of `google.longrunning.Operations`. Clones are cheap and share everything.
///
/// Each method takes the operation's name, an [`Operation`], a request message, or a whole
/// [`tonic::Request`] with metadata and a timeout of its own. Every method may be called by any
/// number of tasks at once. A future that is dropped ends its call: the server is told so, but may
/// have done the work already.
///
/// Errors are [`tonic::Status`]: the server's own, unchanged, or one that this client made of the
/// call's end; [`StatusExt::origin`](crate::StatusExt::origin) tells which. These can come from
/// every method:
///
/// - `INVALID_ARGUMENT`: the name is empty, or all headers together, credentials included, are larger
///   than [`max_header_list_size`](crate::Builder::max_header_list_size). Nothing was sent.
/// - `DEADLINE_EXCEEDED`: the deadline has passed. The message says what the call waited for.
/// - `UNAUTHENTICATED`: there is no token, and a person has to fix that; or the server refused it.
/// - `UNAVAILABLE`: the server could not be reached, or the connection broke.
/// - `RESOURCE_EXHAUSTED`: the message is larger than the limit for its direction, or more calls wait
///   than the [queue](crate::Builder::max_queued_calls) takes.
/// - `INTERNAL`: the answer is not what the protocol allows.
/// - `UNKNOWN`: the answer ended without a status.
/// - `FAILED_PRECONDITION`: the call has a deadline, or uses the default stack, and there is no tokio
///   runtime.
///
/// The table of [faults](Transport#faults) has the code of each failure of the default stack.
/// [`StatusExt::delivery`](crate::StatusExt::delivery) returns whether the server may have done the work
/// all the same.
#[derive(Clone, Debug)]
pub struct OperationsClient<S = Transport> {
    stack: S,
    settings: Settings,
    waits: Arc<Waits>,
}

/// A tower stack that carries gRPC calls: a [`Channel`], an [`InterceptedService`], a generated
/// server in this very process, or any of them under layers of one's own.
///
/// There is nothing to implement: it is an alias for the bounds. Pollers, streams and
/// `cancel_and_wait` need it to be [`Sync`], too. A type to name one by is
/// [`tower::util::BoxCloneSyncService`](https://docs.rs/tower/0.5/tower/util/struct.BoxCloneSyncService.html).
///
/// [`Channel`]: https://docs.rs/tonic/0.14/tonic/transport/struct.Channel.html
/// [`InterceptedService`]: tonic::service::interceptor::InterceptedService
pub trait Stack:
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

impl<S> Stack for S where
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
    /// Makes a client over a stack that is there already.
    ///
    /// The client adds the checks of names, the headers and truthful statuses. Deadlines and
    /// retries are the stack's own, unless asked for here; the timeout that a request carries is
    /// always kept, and pollers and lists bound their calls by themselves. Over a stack of few
    /// streams, [`with_max_waits`](Self::with_max_waits) keeps pollers from taking them all.
    pub fn new(stack: S) -> Self {
        Self {
            stack,
            settings: Settings::default(),
            waits: Arc::default(),
        }
    }

    /// Returns the stack, for another generated client to use the same connections.
    ///
    /// Retries, default timeouts and credentials belong to the client, not to the stack. The timeout
    /// of a request (`tonic::Request::set_timeout`) is kept by both. An [`AuthInterceptor`](crate::AuthInterceptor) gives the other client the same token:
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
    /// let client = client.with_credentials(auth);
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

    /// Puts the stack under layers of one's own, such as an interceptor.
    ///
    /// The stack below them overwrites `grpc-timeout` with the time that is left when it sends a
    /// request.
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
    #[must_use]
    pub fn map_stack<T>(self, layer: impl FnOnce(S) -> T) -> OperationsClient<T> {
        OperationsClient {
            stack: layer(self.stack),
            settings: self.settings,
            waits: self.waits,
        }
    }
}

impl<S: Stack> OperationsClient<S> {
    /// Asks the server to stop an operation.
    ///
    /// Best effort: success means that the server took the request, not that the operation is
    /// stopped. It is not deleted either; one that was stopped becomes done with the error code 1
    /// (`CANCELLED`). [`get_operation`](Self::get_operation) tells whether it was, or whether it
    /// completed despite the request.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")]
    /// # async fn example<S: longrunning::Stack>(client: longrunning::OperationsClient<S>) -> Result<(), tonic::Status> {
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
        self.call(request.into_request()).await
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

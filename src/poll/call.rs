//! The calls of a poller: GetOperation, WaitOperation and CancelOperation.

use std::time::Duration;

use tonic::{Code, Extensions, Request, Status, metadata::MetadataMap};

use crate::{
    client::{GrpcStack, OperationsClient},
    operation::Operation,
    proto::{CancelOperationRequest, GetOperationRequest, WaitOperationRequest},
    status::{Delivery, local, with_delivery},
};

/// The name of an operation, and what the caller adds to each call.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    metadata: MetadataMap,
    extensions: Extensions,
}

impl Target {
    pub(crate) fn new<R>(request: Request<R>, name: impl FnOnce(R) -> String) -> Self {
        let (metadata, extensions, message) = request.into_parts();
        Self {
            name: name(message),
            metadata,
            extensions,
        }
    }

    /// Calls CancelOperation, within the remaining time.
    pub(crate) async fn cancel<S: GrpcStack + Sync>(
        &self,
        client: &OperationsClient<S>,
        left: Option<Duration>,
    ) -> Result<(), Status> {
        let name = self.name.clone();
        let mut request = self.request(CancelOperationRequest { name });
        client.bound(&mut request, left);
        client.cancel_operation(request).await
    }

    /// Calls GetOperation, within the remaining time.
    pub(crate) async fn get<S: GrpcStack + Sync>(
        &self,
        client: &OperationsClient<S>,
        left: Option<Duration>,
    ) -> Result<Operation, Status> {
        let name = self.name.clone();
        let mut request = self.request(GetOperationRequest { name });
        client.bound(&mut request, left);
        self.checked(client.get_operation(request).await?)
    }

    /// Calls WaitOperation, which makes the server wait for up to `timeout`.
    pub(crate) async fn wait<S: GrpcStack + Sync>(
        &self,
        client: &OperationsClient<S>,
        timeout: Duration,
        left: Option<Duration>,
    ) -> Result<Operation, Status> {
        /// The time for the response to arrive after the server has waited.
        const MARGIN: Duration = Duration::from_secs(10);
        // If there is no response, there must be time for a GetOperation.
        let rest = left.map(|left| left.saturating_sub(timeout) / 2);
        let deadline = timeout + rest.map_or(MARGIN, |rest| rest.min(MARGIN));
        let name = self.name.clone();
        // It is at most 60 seconds, so the conversion succeeds.
        let timeout = prost_types::Duration::try_from(timeout).ok();
        let mut request = self.request(WaitOperationRequest { name, timeout });
        request.set_timeout(deadline);
        self.checked(client.wait_operation(request).await?)
    }

    /// Checks that the server returned the requested operation.
    ///
    /// Only the last segment of the name is compared: a server may return the number of a project in
    /// place of its ID, see [AIP-2510](https://google.aip.dev/cloud/2510). An empty name is accepted.
    ///
    /// # Errors
    ///
    /// `INTERNAL`: the server returned a different operation.
    fn checked(&self, operation: Operation) -> Result<Operation, Status> {
        fn id(name: &str) -> Option<&str> {
            name.rsplit('/').next()
        }
        if operation.name.is_empty() || id(&operation.name) == id(&self.name) {
            return Ok(operation);
        }
        let message = format!(
            "the server returned operation {:?}, but {:?} was requested",
            operation.name, self.name
        );
        let status = local(Code::Internal, message);
        Err(with_delivery(status, Delivery::Answered))
    }

    fn request<R>(&self, message: R) -> Request<R> {
        Request::from_parts(self.metadata.clone(), self.extensions.clone(), message)
    }
}

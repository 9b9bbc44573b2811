//! A boxed stack, whose type does not depend on its layers.

use std::{
    fmt,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::{Status, body::Body};
use tower::{Service, ServiceExt as _, util::BoxCloneSyncService};

use super::{GrpcStack, OperationsClient};
use crate::status::classify;

/// A boxed [`GrpcStack`], whose type does not depend on its layers. Created by [`OperationsClient::boxed`].
///
/// Its error type is [`Status`]. The client reports the same codes and origins as without the box.
#[derive(Clone)]
pub struct BoxGrpcStack(BoxCloneSyncService<Request<Body>, Response<Body>, Status>);

impl<S: GrpcStack + Sync> OperationsClient<S> {
    /// Boxes the stack, so that the type of the client does not depend on its layers.
    ///
    /// The client can then be a struct field, with the default transport in production and an emulator in
    /// tests. Each attempt allocates for the clone of the stack, for the request's body and extensions, for the future,
    /// and for the response body.
    ///
    /// tower's boxed services usually have the error type `BoxError`, with which the compiler cannot prove
    /// that the futures of the client are `Send`. `BoxGrpcStack` does not have this limitation:
    ///
    /// ```
    /// # #[cfg(not(feature = "emulator"))]
    /// # fn main() {}
    /// # #[cfg(feature = "emulator")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// # use longrunning::emulator::Emulator;
    /// use longrunning::{BoxGrpcStack, OperationsClient};
    /// use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer};
    ///
    /// #[derive(Clone)]
    /// struct Jobs {
    ///     operations: OperationsClient<BoxGrpcStack>,
    /// }
    ///
    /// # let server = Emulator::start().await?;
    /// # server.start_operation("operations/1")?;
    /// # let endpoint = server.endpoint();
    /// let client = OperationsClient::builder(endpoint).connect().await?;
    /// let layer = ConcurrencyLimitLayer::new(100);
    /// let client = client.map_stack(|stack| ServiceBuilder::new().layer(layer).service(stack));
    /// let jobs = Jobs { operations: client.boxed() };
    /// let call = tokio::spawn(async move { jobs.operations.cancel_operation("operations/1").await });
    /// # call.await.expect("no panic")?;
    ///
    /// // In a test:
    /// # let emulator = Emulator::in_process()?;
    /// let jobs = Jobs { operations: OperationsClient::new(emulator.service()).boxed() };
    /// # jobs.operations.list_operations("operations").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn boxed(self) -> OperationsClient<BoxGrpcStack>
    where
        S::Future: 'static,
    {
        self.map_stack(|stack| {
            let stack = AsService(stack)
                .map_response(|response| response.map(Body::new))
                .map_err(|error| classify(error.into()));
            BoxGrpcStack(BoxCloneSyncService::new(stack))
        })
    }
}

impl Service<Request<Body>> for BoxGrpcStack {
    type Response = Response<Body>;
    type Error = Status;
    type Future = <BoxCloneSyncService<Request<Body>, Response<Body>, Status> as Service<
        Request<Body>,
    >>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.call(request)
    }
}

impl fmt::Debug for BoxGrpcStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxGrpcStack").finish_non_exhaustive()
    }
}

/// Adapts a [`GrpcStack`], which is a [`Service`] in all but name.
#[derive(Clone)]
struct AsService<S>(S);

impl<S: GrpcStack> Service<Request<Body>> for AsService<S> {
    type Response = Response<S::ResponseBody>;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        self.0.call(request)
    }
}

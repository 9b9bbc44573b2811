//! Cancelling many operations, a bounded number at a time.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tokio::task::{Id, JoinError, JoinSet};
use tonic::{IntoRequest, Request, Status};

use crate::{
    client::{GrpcStack, OperationsClient},
    proto::CancelOperationRequest,
    task::{not_run, runtime},
    trace,
};

impl<S: GrpcStack + Sync> OperationsClient<S> {
    /// Cancels the operations whose names a stream yields, with at most `concurrency` calls at a time.
    ///
    /// A `concurrency` of 0 counts as 1.
    ///
    /// Results come as the calls end, in no order, each with its name; one that fails does not
    /// stop the rest. As with [`cancel_operation`](Self::cancel_operation), success means that the
    /// server took the request. Nothing is sent before the stream is polled.
    ///
    /// The items are all that a single call takes: names, operations, or whole
    /// [`tonic::Request`]s. An iterator is made a stream by `tokio_stream::iter` or
    /// `futures::stream::iter`; [`operations`](Self::operations) is one. Where the stream is not
    /// `Unpin`, neither are the results: `Box::pin` it.
    ///
    /// ```
    /// # #[cfg(not(feature = "emulator"))]
    /// # fn main() {}
    /// # #[cfg(feature = "emulator")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// # use longrunning::{OperationsClient, emulator::Emulator};
    /// # let emulator = Emulator::start().await?;
    /// # let client = OperationsClient::builder(emulator.endpoint()).connect().await?;
    /// let names = tokio_stream::iter((0..1_000).map(|n| format!("operations/{n}")));
    /// let mut results = client.cancel_operations(names, 100);
    /// while let Some((name, result)) = results.next().await {
    ///     if let Err(status) = result {
    ///         eprintln!("{name}: {status}");
    ///     }
    /// }
    /// # assert_eq!(emulator.calls().len(), 1_000);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Back-pressure and dropping
    ///
    /// Each call runs in its own task, on the runtime that polled the stream when the call started, so a slow
    /// consumer does not delay calls in flight. With the feature `tracing`, the task runs in the caller's
    /// span. The caller's task-locals are not available in it. A result counts against `concurrency` until it
    /// is taken, so a consumer that takes no results stops new calls. Dropping the stream ends the calls in
    /// flight; the server may have accepted some of them.
    ///
    /// A panic of one's own stack goes on in the consumer, and the name of its call is lost. Polled
    /// again, the stream goes on with the rest.
    pub fn cancel_operations<N>(&self, names: N, concurrency: usize) -> CancelOperations<S, N>
    where
        N: Stream<Item: IntoRequest<CancelOperationRequest>>,
    {
        CancelOperations {
            client: self.clone(),
            names: Some(names),
            concurrency: concurrency.max(1),
            calls: JoinSet::new(),
            called: HashMap::new(),
        }
    }
}

pin_project! {
    /// The results of [`OperationsClient::cancel_operations`], each with its name.
    #[derive(Debug)]
    #[must_use = "nothing is cancelled before the stream is polled"]
    pub struct CancelOperations<S, N> {
        client: OperationsClient<S>,
        // None once it has ended.
        #[pin]
        names: Option<N>,
        concurrency: usize,
        // The tasks whose results are not taken yet, and what each of them cancels.
        calls: JoinSet<Result<(), Status>>,
        called: HashMap<Id, String>,
    }
}

impl<S: GrpcStack + Sync, N> CancelOperations<S, N>
where
    N: Stream<Item: IntoRequest<CancelOperationRequest>> + Unpin,
{
    /// Returns the next name and the result of its call, or `None` after the last one.
    ///
    /// This is the same as `StreamExt::next`, without the need for another crate. This method is cancel safe.
    pub async fn next(&mut self) -> Option<(String, Result<(), Status>)> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl<S: GrpcStack + Sync, N> Stream for CancelOperations<S, N>
where
    N: Stream<Item: IntoRequest<CancelOperationRequest>>,
{
    type Item = (String, Result<(), Status>);

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        while this.calls.len() < *this.concurrency
            && let Some(names) = this.names.as_mut().as_pin_mut()
            && let Poll::Ready(name) = names.poll_next(cx)
        {
            let Some(request) = name.map(IntoRequest::into_request) else {
                this.names.set(None);
                break;
            };
            let name = request.get_ref().name.clone();
            let runtime = match runtime("a call") {
                Ok(runtime) => runtime,
                Err(status) => return Poll::Ready(Some((name, Err(status)))),
            };
            let call = cancel(this.client.clone(), request);
            let call = this.calls.spawn_on(trace::in_current_span(call), &runtime);
            this.called.insert(call.id(), name);
        }
        let Some(ended) = ready!(this.calls.poll_join_next_with_id(cx)) else {
            return if this.names.is_none() {
                Poll::Ready(None)
            } else {
                Poll::Pending // the stream of names has registered the waker
            };
        };
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        // Before a panic goes on, which the name must not outlive.
        let name = this.called.remove(&id).unwrap_or_default();
        let result = ended.map_or_else(|error| Err(not_run(error)), |(_, result)| result);
        Poll::Ready(Some((name, result)))
    }
}

async fn cancel<S: GrpcStack + Sync>(
    client: OperationsClient<S>,
    request: Request<CancelOperationRequest>,
) -> Result<(), Status> {
    client.cancel_operation(request).await
}

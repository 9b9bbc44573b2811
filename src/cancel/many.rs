//! Cancelling many operations, a bounded number at a time.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tokio::task::{Id, JoinError, JoinSet};
use tonic::{IntoRequest, Request, Status};

use crate::{
    client::{OperationsClient, Stack},
    proto::CancelOperationRequest,
    task::{not_run, runtime},
    trace,
};

impl<S: Stack + Sync> OperationsClient<S> {
    /// Cancels the operations that a stream names, at most `concurrency` at a time.
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
    /// use std::num::NonZeroUsize;
    /// use tokio_stream::StreamExt as _;
    ///
    /// let names = tokio_stream::iter((0..1_000).map(|n| format!("operations/{n}")));
    /// let at_once = NonZeroUsize::new(100).expect("100 is not 0");
    /// let mut results = client.cancel_operations(names, at_once);
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
    /// Each call runs as a task of its own, so that a slow consumer delays none that has begun, and
    /// belongs to the runtime that polled the stream then. It is in the caller's `tracing` span;
    /// task-locals do not reach it. A result counts against `concurrency` until it is taken: at most
    /// so many sit, calls in flight included, and a consumer that stops taking them stops new calls.
    /// Dropping the stream ends the calls in flight; the server may have taken some of them.
    ///
    /// A panic of one's own stack goes on in the consumer, and the name of its call is lost. Polled
    /// again, the stream goes on with the rest.
    pub fn cancel_operations<N>(
        &self,
        names: N,
        concurrency: NonZeroUsize,
    ) -> CancelOperations<S, N>
    where
        N: Stream<Item: IntoRequest<CancelOperationRequest>>,
    {
        CancelOperations {
            client: self.clone(),
            names: Some(names),
            concurrency,
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
        concurrency: NonZeroUsize,
        // The tasks whose results are not taken yet, and what each of them cancels.
        calls: JoinSet<Result<(), Status>>,
        called: HashMap<Id, String>,
    }
}

impl<S: Stack + Sync, N> Stream for CancelOperations<S, N>
where
    N: Stream<Item: IntoRequest<CancelOperationRequest>>,
{
    type Item = (String, Result<(), Status>);

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        while this.calls.len() < this.concurrency.get()
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
            let call = this.calls.spawn_on(trace::in_span(call), &runtime);
            this.called.insert(call.id(), name);
        }
        let Some(ended) = ready!(this.calls.poll_join_next_with_id(cx)) else {
            return match this.names.is_none() {
                true => Poll::Ready(None),
                false => Poll::Pending, // the names will wake it
            };
        };
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        // Before a panic goes on, which the name must not outlive.
        let name = this.called.remove(&id).unwrap_or_default();
        let result = ended.map_or_else(|error| Err(not_run(error)), |(_, result)| result);
        Poll::Ready(Some((name, result)))
    }
}

async fn cancel<S: Stack + Sync>(
    client: OperationsClient<S>,
    request: Request<CancelOperationRequest>,
) -> Result<(), Status> {
    client.cancel_operation(request).await
}

//! Listing operations, page after page.

mod tokens;

use std::{
    fmt,
    future::poll_fn,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
    vec,
};

use futures_core::Stream;
use tokio::time::sleep;
use tonic::{Code, Extensions, IntoRequest, Request, Status, metadata::MetadataMap};

pub(crate) use self::tokens::Tokens;
use crate::{
    backoff::Backoff,
    client::{GrpcStack, OperationsClient},
    operation::Operation,
    proto::{ListOperationsRequest, ListOperationsResponse},
    status::{Delivery, local, with_delivery},
    task::Task,
    trace,
    transport::Transport,
};

impl<S: GrpcStack + Sync> OperationsClient<S> {
    /// Returns the operations under a parent, such as `projects/p/locations/l`, of all pages.
    ///
    /// A page is asked for when the one before is used up: a stream that is not read to its end
    /// makes no further calls. Filter and page size are fields of [`ListOperationsRequest`]; its
    /// page token says where to begin. The metadata of a whole [`tonic::Request`] go along with
    /// every call, and its timeout counts for each page; without one the client's does, and where
    /// neither is set, over a stack of one's own too, 10 s.
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
    /// let mut operations = client.operations("projects/p/locations/l");
    /// while let Some(operation) = operations.next().await {
    ///     println!("{}", operation?.name);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn operations(
        &self,
        request: impl IntoRequest<ListOperationsRequest>,
    ) -> OperationStream<S> {
        let (metadata, extensions, request) = request.into_request().into_parts();
        OperationStream {
            client: self.clone(),
            metadata,
            extensions,
            request,
            call: None,
            page: Vec::new().into_iter(),
            unreachable: Vec::new(),
            tokens: Tokens::default(),
            next: Next::Call,
            empty_pages: 0,
        }
    }
}

/// The operations under a parent, as a [`Stream`] over all pages.
///
/// An error comes after all that came before it, and ends the stream:
///
/// - The server's own, as of [`list_operations`](OperationsClient::list_operations).
/// - `INTERNAL`: the server gave a page token for the second time, so that its pages would never
///   end.
///
/// What is missing can be had by a new request with the [`page_token`](Self::page_token) at which
/// this one ended.
///
/// A server may return empty pages, for example while it searches for operations that match the filter.
/// After 10 empty pages in a row, each further page is requested after a delay, which doubles from 10
/// milliseconds to 1 second and ends with the first page that is not empty.
///
/// Waiting for an item may be given up at any time: the call in flight belongs to the stream, which
/// goes on with it. It is a task of the runtime that the stream was polled in when it began. While
/// that runs, the call ends within its timeout though nobody polls the stream; once it has ended,
/// the page is asked for again. With the feature `tracing`, the task runs in the caller's span. The caller's
/// task-locals are not available in it. Dropping the stream ends the task and the call.
///
/// A panic of one's own stack goes on in who polls. Polled again, the stream asks for the page
/// again.
pub struct OperationStream<S = Transport> {
    client: OperationsClient<S>,
    metadata: MetadataMap,
    extensions: Extensions,
    /// The request for the next page.
    request: ListOperationsRequest,
    call: Option<Call>,
    /// What is left of the page.
    page: vec::IntoIter<Operation>,
    unreachable: Vec<String>,
    tokens: Tokens,
    next: Next,
    /// How many pages in a row were empty.
    empty_pages: u32,
}

/// The delays before the pages that follow many empty ones.
const EMPTY_PAGES: Backoff = Backoff {
    initial: Duration::from_millis(10),
    multiplier: 2.0,
    maximum: Duration::from_secs(1),
};

/// The number of empty pages in a row after which the next page is requested with a delay.
const UNPACED_PAGES: u32 = 10;

type Call = Task<Result<ListOperationsResponse, Status>>;

/// What comes once the page is used up.
enum Next {
    Call,
    Error(Status),
    End,
}

impl<S> OperationStream<S> {
    /// Returns the places that the server could not reach so far, each once, as it names them.
    ///
    /// Where there are any, the list is not complete. Servers report them to requests that ask
    /// for [`return_partial_success`](ListOperationsRequest::return_partial_success). They are all
    /// there once the stream has ended; combinators of streams would take it out of reach, unless
    /// they get it by `&mut`.
    pub fn unreachable(&self) -> &[String] {
        &self.unreachable
    }

    /// Returns the token of the next page to be asked for, or after an error, of the page that
    /// could not be had. It is empty for the first page.
    pub fn page_token(&self) -> &str {
        &self.request.page_token
    }

    fn turn_to(&mut self, page: ListOperationsResponse) {
        self.empty_pages = if page.operations.is_empty() {
            self.empty_pages.saturating_add(1)
        } else {
            0
        };
        self.page = page.operations.into_iter();
        for place in page.unreachable {
            if !self.unreachable.contains(&place) {
                self.unreachable.push(place);
            }
        }
        let token = page.next_page_token;
        self.next = if token.is_empty() {
            Next::End
        } else if self.tokens.is_repeated(&token) {
            let parent = &self.request.name;
            let message =
                format!("the pages of {parent:?} never end: page token {token:?} came again");
            let status = local(Code::Internal, message);
            Next::Error(with_delivery(status, Delivery::Answered))
        } else {
            Next::Call
        };
        self.request.page_token = token;
    }
}

impl<S: GrpcStack + Sync> OperationStream<S> {
    /// Returns the next operation, or `None` after the last one or after an error.
    ///
    /// This is the same as `StreamExt::next`, without the need for another crate. This method is cancel safe.
    pub async fn next(&mut self) -> Option<Result<Operation, Status>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    fn next_page(
        &self,
    ) -> impl Future<Output = Result<ListOperationsResponse, Status>> + Send + 'static {
        let (metadata, extensions) = (self.metadata.clone(), self.extensions.clone());
        let mut request = Request::from_parts(metadata, extensions, self.request.clone());
        self.client.bound(&mut request, None);
        let client = self.client.clone();
        let paced = self.empty_pages.checked_sub(UNPACED_PAGES);
        let delay = paced.map(|earlier| EMPTY_PAGES.delay(earlier, fastrand::f64()));
        async move {
            if let Some(delay) = delay {
                sleep(delay).await;
            }
            client.list_operations(request).await
        }
    }
}

impl<S: GrpcStack + Sync> Stream for OperationStream<S> {
    type Item = Result<Operation, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(operation) = this.page.next() {
                return Poll::Ready(Some(Ok(operation)));
            }
            match mem::replace(&mut this.next, Next::End) {
                Next::End => return Poll::Ready(None),
                Next::Error(status) => return Poll::Ready(Some(Err(status))),
                Next::Call => this.next = Next::Call,
            }
            let mut call = this.call.take();
            let page = Task::poll_in(&mut call, cx, || {
                Task::spawn(trace::in_current_span(this.next_page()))
            });
            this.call = call;
            match ready!(page).and_then(|page| page) {
                Ok(page) => this.turn_to(page),
                Err(status) => this.next = Next::Error(status),
            }
        }
    }
}

// Nothing in it is pinned in place: the call is in a box.
impl<S> Unpin for OperationStream<S> {}

impl<S> fmt::Debug for OperationStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperationStream")
            .field("request", &self.request)
            .field("unreachable", &self.unreachable)
            .finish_non_exhaustive()
    }
}

//! One look at an operation, by Wait or by Get.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Extensions, Request, Status, metadata::MetadataMap};

use crate::{
    client::{OperationsClient, Stack},
    operation::Operation,
    proto::{
        CancelOperationRequest, GetOperationRequest, WaitOperationRequest, duration, rpc::RetryInfo,
    },
    status::StatusExt as _,
};

/// The operation that is looked at, and what goes along with every call.
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

    /// Asks for the operation's end.
    pub(crate) async fn cancel<S: Stack + Sync>(
        &self,
        client: &OperationsClient<S>,
        within: Option<Duration>,
    ) -> Result<(), Status> {
        let name = self.name.clone();
        let mut request = self.request(CancelOperationRequest { name });
        client.bound(&mut request, within);
        client.cancel_operation(request).await
    }

    /// Looks once, by Get.
    pub(crate) async fn get<S: Stack + Sync>(
        &self,
        client: &OperationsClient<S>,
        within: Option<Duration>,
    ) -> Result<Operation, Status> {
        let name = self.name.clone();
        let mut request = self.request(GetOperationRequest { name });
        client.bound(&mut request, within);
        client.get_operation(request).await
    }

    async fn wait<S: Stack + Sync>(
        &self,
        client: &OperationsClient<S>,
        slice: Duration,
    ) -> Result<Operation, Status> {
        /// For the answer to arrive, once the server has waited.
        const MARGIN: Duration = Duration::from_secs(10);
        let name = self.name.clone();
        // A slice is 60 s at most, and a `Duration` of the protos holds it.
        let timeout = prost_types::Duration::try_from(slice).ok();
        let mut request = self.request(WaitOperationRequest { name, timeout });
        request.set_timeout(slice + MARGIN);
        client.wait_operation(request).await
    }

    fn request<R>(&self, message: R) -> Request<R> {
        Request::from_parts(self.metadata.clone(), self.extensions.clone(), message)
    }
}

/// A look to be made.
pub(super) struct Look<S> {
    pub(super) client: OperationsClient<S>,
    pub(super) target: Target,
    /// The look comes so long after an instant.
    pub(super) due: Option<(Instant, Duration)>,
    /// How long after this look the next one comes.
    pub(super) delay: Duration,
    /// How long a Wait may ask for, if there may be one.
    pub(super) slice: Option<Duration>,
    /// Whether someone wants to see every state, and not only the last.
    pub(super) watched: bool,
    /// When the whole poll is over.
    pub(super) limit: Option<Instant>,
    /// With less time than that left, a Wait is not worth it.
    pub(super) least: Duration,
}

/// What a look brought.
pub(super) struct Seen {
    pub(super) result: Result<Operation, Status>,
    pub(super) by_wait: bool,
    /// The next look comes so long after an instant.
    pub(super) next: (Instant, Duration),
}

impl<S: Stack + Sync> Look<S> {
    /// Looks when it is due; `None` if the whole poll is over before the answer is there.
    pub(super) async fn run(self) -> Option<Seen> {
        match self.limit {
            Some(limit) if limit <= Instant::now() => None,
            Some(limit) => timeout_at(limit, self.look()).await.ok(),
            None => Some(self.look().await),
        }
    }

    async fn look(self) -> Seen {
        if let Some((since, delay)) = self.due {
            sleep(delay.saturating_sub(since.elapsed())).await;
        }
        let begun = Instant::now();
        // Held until the answer is there.
        let wait = self.slice_from(begun).zip(self.client.may_wait());
        let result = match wait {
            Some((slice, _)) => self.target.wait(&self.client, slice).await,
            None => self.target.get(&self.client, None).await,
        };
        let by_wait = wait.is_some();
        // The time in which the server waited counts, so that only early answers make a pause.
        let since = if by_wait { begun } else { Instant::now() };
        let next = match result.as_ref().err().and_then(asked_for) {
            Some(asked) if asked > self.delay => (Instant::now(), asked),
            _ => (since, self.delay),
        };
        Seen {
            result,
            by_wait,
            next,
        }
    }

    /// How long to have the server wait, if at all.
    fn slice_from(&self, now: Instant) -> Option<Duration> {
        let slice = match self.slice? {
            slice if self.watched => slice.min(self.delay),
            // Shortened at random, so that those who wait do not come back in step.
            slice => slice.mul_f64(0.8 + 0.2 * fastrand::f64()),
        };
        let Some(limit) = self.limit else {
            return Some(slice);
        };
        let left = limit.saturating_duration_since(now);
        // The last state is to arrive before the end.
        (left > self.least).then(|| slice.min(left.mul_f64(0.9)))
    }
}

/// How long the server asks to be left alone.
fn asked_for(status: &Status) -> Option<Duration> {
    /// More is no wish but a mistake, and would have nobody look at the operation any more.
    const MOST: Duration = Duration::from_secs(3600);
    Some(duration(status.detail::<RetryInfo>()?.retry_delay?)?.min(MOST))
}

//! One look at an operation, by Wait or by Get.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Extensions, Request, Status, metadata::MetadataMap};

use super::failure::is_transient;
use crate::{
    client::{GrpcStack, OperationsClient},
    operation::Operation,
    proto::{
        CancelOperationRequest, GetOperationRequest, WaitOperationRequest, duration, rpc::RetryInfo,
    },
    status::{CallStatusExt as _, Delivery, local, with_delivery},
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
    pub(crate) async fn cancel<S: GrpcStack + Sync>(
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
    pub(crate) async fn get<S: GrpcStack + Sync>(
        &self,
        client: &OperationsClient<S>,
        within: Option<Duration>,
    ) -> Result<Operation, Status> {
        let name = self.name.clone();
        let mut request = self.request(GetOperationRequest { name });
        client.bound(&mut request, within);
        self.checked(client.get_operation(request).await?)
    }

    async fn wait<S: GrpcStack + Sync>(
        &self,
        client: &OperationsClient<S>,
        slice: Duration,
        within: Option<Duration>,
    ) -> Result<Operation, Status> {
        /// For the answer to arrive, once the server has waited.
        const MARGIN: Duration = Duration::from_secs(10);
        // Without an answer it is given up while there is time for a Get.
        let rest = within.map(|within| within.saturating_sub(slice) / 2);
        let margin = rest.map_or(MARGIN, |rest| rest.min(MARGIN));
        let name = self.name.clone();
        // A slice is 60 s at most, and a `Duration` of the protos holds it.
        let timeout = prost_types::Duration::try_from(slice).ok();
        let mut request = self.request(WaitOperationRequest { name, timeout });
        request.set_timeout(slice + margin);
        self.checked(client.wait_operation(request).await?)
    }

    /// Checks that the server returned the requested operation.
    ///
    /// Only the last segment of the name is compared: a server may return the number of a project in
    /// place of its ID, see [AIP-2510](https://google.aip.dev/cloud/2510). An empty name is accepted.
    ///
    /// # Errors
    ///
    /// `INTERNAL`: it is a different one.
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

/// A look to be made.
pub(super) struct Look<S> {
    pub(super) client: OperationsClient<S>,
    pub(super) target: Target,
    /// The first of the delays.
    pub(super) initial: Duration,
    /// How long after this look the next one comes.
    pub(super) delay: Duration,
    /// How long a Wait may ask for, if there may be one.
    pub(super) slice: Option<Duration>,
    /// Whether someone wants to see every state, and not only the last.
    pub(super) watched: bool,
    /// When the whole poll is over.
    pub(super) limit: Option<Instant>,
}

/// What a look brought.
pub(super) struct Seen {
    pub(super) result: Result<Operation, Status>,
    pub(super) by_wait: bool,
    /// The next look comes so long after an instant.
    pub(super) next: (Instant, Duration),
}

impl<S: GrpcStack + Sync> Look<S> {
    /// Looks, for as long as is left at most.
    pub(super) async fn run(self) -> Seen {
        let begun = Instant::now();
        let left = self.left(begun);
        let slice = self.slice_of(left);
        // The leave is held until the answer is there.
        let wait = slice.and_then(|slice| Some((slice, self.client.may_wait()?)));
        let result = match wait {
            Some((slice, _)) => self.target.wait(&self.client, slice, left).await,
            None => self.target.get(&self.client, left).await,
        };
        let waited = wait.is_some().then(|| begun.elapsed());
        let pause = self.pause_after(waited, result.as_ref().err());
        Seen {
            result,
            by_wait: waited.is_some(),
            next: (Instant::now(), pause),
        }
    }

    fn left(&self, now: Instant) -> Option<Duration> {
        Some(self.limit?.saturating_duration_since(now))
    }

    /// How long to have the server wait, if at all.
    fn slice_of(&self, left: Option<Duration>) -> Option<Duration> {
        // With less time than that left, a Wait is not worth it.
        let least = self.initial.min(Duration::from_secs(1));
        if left.is_some_and(|left| left <= least) {
            return None;
        }
        // Shortened at random, so that those who wait do not come back in step.
        let part = 0.8 + 0.2 * fastrand::f64();
        let slice = match self.slice? {
            slice if self.watched => slice.min(self.delay),
            slice => slice.mul_f64(part),
        };
        // The last state is to arrive before the end, and if it does not, a Get's.
        Some(left.map_or(slice, |left| slice.min(left.mul_f64(0.8 * part))))
    }

    fn pause_after(&self, waited: Option<Duration>, failure: Option<&Status>) -> Duration {
        // The time in which the server waited counts, so that only early answers make a pause.
        let rest = self.delay.saturating_sub(waited.unwrap_or_default());
        let Some(failure) = failure else {
            return rest;
        };
        let pause = match waited {
            Some(_) => self.pause_before_get(rest, failure),
            None => rest,
        };
        match asked_for(failure) {
            // Later, if anything: many may have been told the same.
            Some(asked) if asked > pause => asked.mul_f64(1.0 + 0.2 * fastrand::f64()),
            _ => pause,
        }
    }

    /// How long after a Wait that failed the Get comes.
    fn pause_before_get(&self, rest: Duration, failure: &Status) -> Duration {
        // At random, for what ends one Wait may end many in the same instant.
        let pause = self.initial.mul_f64(fastrand::f64());
        let pause = match is_transient(failure) {
            true => pause.max(rest),
            false => pause,
        };
        let left = self.left(Instant::now());
        left.map_or(pause, |left| pause.min(left / 4))
    }
}

/// How long the server asks to be left alone.
fn asked_for(status: &Status) -> Option<Duration> {
    /// More is no wish but a mistake, and would have nobody look at the operation any more.
    const MOST: Duration = Duration::from_secs(3600);
    Some(duration(status.detail::<RetryInfo>()?.retry_delay?)?.min(MOST))
}

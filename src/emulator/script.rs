//! Awkward servers: how calls are answered otherwise than they ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt,
    sync::Arc,
    time::Duration,
};

use h2::Reason;
use http::Response;
use tonic::Status;

use super::{Call, CancelBehavior, Emulator, Method, WaitBehavior, lock, quota::Quota};

impl Emulator {
    /// Holds every answer of a method back for so long; `None` stands for every method.
    ///
    /// The call is processed on arrival, and only its answer is late: when a client gives up on a slow
    /// cancel, the operation is cancelled all the same. A delay of zero ends it for later calls: it does
    /// not release an answer that is already held back.
    pub fn delay(&self, method: impl Into<Option<Method>>, delay: Duration) {
        let mut script = lock(&self.shared.script);
        for method in Method::selected(method.into()) {
            script.delays.insert(method, delay);
        }
    }

    /// Delays the response to each call by the duration that a function returns.
    ///
    /// The function is called when a call arrives. It replaces any earlier function, and its delay is added
    /// to that of [`delay`](Self::delay). [`Duration::MAX`] delays the response forever.
    ///
    /// ```
    /// use std::time::Duration;
    /// # async fn example(emulator: longrunning::emulator::Emulator) {
    /// emulator.delay_with(|call| match call.name() {
    ///     "operations/slow" => Duration::from_secs(2),
    ///     _ => Duration::ZERO,
    /// });
    /// # }
    /// ```
    pub fn delay_with(&self, delay: impl Fn(&Call) -> Duration + Send + Sync + 'static) {
        let delay: DelayFn = Arc::new(delay);
        let earlier = lock(&self.shared.script).delay_fn.replace(delay);
        // Dropped after the lock is released: values that the function has captured may use the emulator.
        drop(earlier);
    }

    /// Answers the next calls of a method with a status, and does nothing of what they ask;
    /// `None` stands for every method.
    ///
    /// What is set first is used up first.
    ///
    /// ```
    /// # async fn example(emulator: longrunning::emulator::Emulator) {
    /// use longrunning::emulator::Method;
    /// use tonic::Status;
    ///
    /// emulator.fail_next(Method::Get, 2, Status::unavailable("down"));
    /// emulator.fail_next(None, 1, Status::internal("whatever is called"));
    /// # }
    /// ```
    ///
    /// To return a status with typed details, convert a `google.rpc.Status`:
    ///
    /// ```
    /// # async fn example(emulator: longrunning::emulator::Emulator) -> Result<(), prost::EncodeError> {
    /// use longrunning::{emulator::Method, proto::rpc};
    ///
    /// let delay = prost_types::Duration { seconds: 1, nanos: 0 };
    /// let info = rpc::RetryInfo { retry_delay: Some(delay) };
    /// let status = rpc::Status {
    ///     code: rpc::Code::ResourceExhausted.into(),
    ///     message: "quota".to_owned(),
    ///     details: vec![prost_types::Any::from_msg(&info)?],
    /// };
    /// emulator.fail_next(Method::Cancel, 1, status.into());
    /// # Ok(())
    /// # }
    /// ```
    pub fn fail_next(&self, method: impl Into<Option<Method>>, calls: usize, status: Status) {
        self.plan(method.into(), calls, Fault::Fail(status));
    }

    /// Does what the next calls of a method ask, and answers them with a status nevertheless, as
    /// if the answer had got lost on its way; `None` stands for every method.
    ///
    /// This is what a retried cancel or delete can meet: its own earlier success.
    pub fn lose_next(&self, method: impl Into<Option<Method>>, calls: usize, status: Status) {
        self.plan(method.into(), calls, Fault::Lose(status));
    }

    /// Resets the streams of the next calls of a method with an HTTP/2
    /// [error code](https://www.rfc-editor.org/rfc/rfc9113#section-7), such as 7 for
    /// `REFUSED_STREAM`, and does nothing of what they ask; `None` stands for every method.
    ///
    /// In process there are no streams: there the answer is `UNAVAILABLE`.
    pub fn reset_next(&self, method: impl Into<Option<Method>>, calls: usize, error_code: u32) {
        let mut status = Status::unavailable("stream reset by the emulator");
        status.set_source(Arc::new(Reset(error_code.into())));
        self.plan(method.into(), calls, Fault::Fail(status));
    }

    /// Has the server lack a method: from now on it answers `UNIMPLEMENTED`, as servers do that
    /// never heard of it.
    pub fn unimplement(&self, method: Method) {
        lock(&self.shared.script).unimplemented.insert(method);
    }

    /// Asks this of every call before it is looked at, in the place of any earlier requirement.
    ///
    /// If it panics, the call is answered with an `INTERNAL` that says so.
    ///
    /// ```
    /// use longrunning::{OperationsClient, emulator::Emulator};
    /// use tonic::{Code, Status};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tonic::Status> {
    /// let emulator = Emulator::start().await?;
    /// emulator.require(|call| match call.metadata().get("authorization") {
    ///     Some(value) if value == "Bearer secret" => Ok(()),
    ///     _ => Err(Status::unauthenticated("who are you?")),
    /// });
    /// let client = OperationsClient::new(emulator.service());
    /// let refused = client.cancel_operation("operations/1").await.unwrap_err();
    /// assert_eq!(refused.code(), Code::Unauthenticated);
    /// # Ok(())
    /// # }
    /// ```
    pub fn require(
        &self,
        requirement: impl Fn(&Call) -> Result<(), Status> + Send + Sync + 'static,
    ) {
        let requirement: Requirement = Arc::new(requirement);
        let earlier = lock(&self.shared.script).requirement.replace(requirement);
        // Only now that the lock is free: what it has caught may turn to the emulator once more.
        drop(earlier);
    }

    fn plan(&self, method: Option<Method>, calls: usize, fault: Fault) {
        let planned = Planned {
            method,
            calls,
            fault,
        };
        lock(&self.shared.script).planned.push(planned);
    }
}

/// Finds the reset that [`Emulator::reset_next`] asks for, in an answer of the generated server.
pub(super) fn reset<B>(response: &Response<B>) -> Option<Reason> {
    let status: &Status = response.extensions().get()?;
    let reset: &Reset = status.source()?.downcast_ref()?;
    Some(reset.0)
}

/// What the server was told to do.
#[derive(Default)]
pub(super) struct Script {
    pub(super) on_cancel: CancelBehavior,
    pub(super) on_cancel_of: BTreeMap<String, CancelBehavior>,
    pub(super) on_wait: WaitBehavior,
    delays: BTreeMap<Method, Duration>,
    delay_fn: Option<DelayFn>,
    planned: Vec<Planned>,
    requirement: Option<Requirement>,
    unimplemented: BTreeSet<Method>,
    pub(super) quotas: BTreeMap<Method, Quota>,
    pub(super) max_page_size: Option<usize>,
}

impl Script {
    pub(super) fn lacks(&self, method: Method) -> bool {
        self.unimplemented.contains(&method)
    }

    /// Takes a token from the quota of this method, if it has one.
    pub(super) fn take_quota(&mut self, method: Method) -> Result<(), Status> {
        self.quotas.get_mut(&method).map_or(Ok(()), Quota::take)
    }

    pub(super) fn delay(&self, method: Method) -> Duration {
        self.delays.get(&method).copied().unwrap_or_default()
    }

    pub(super) fn delay_fn(&self) -> Option<DelayFn> {
        self.delay_fn.clone()
    }

    pub(super) fn requirement(&self) -> Option<Requirement> {
        self.requirement.clone()
    }

    /// Takes the fault that is meant for a call of this method that has just come in.
    pub(super) fn take_fault(&mut self, method: Method) -> Option<Fault> {
        self.planned.retain(|planned| planned.calls > 0);
        let mut planned = self.planned.iter_mut();
        let next = planned.find(|planned| planned.method.is_none_or(|of| of == method))?;
        next.calls -= 1;
        Some(next.fault.clone())
    }
}

pub(super) type DelayFn = Arc<dyn Fn(&Call) -> Duration + Send + Sync>;

pub(super) type Requirement = Arc<dyn Fn(&Call) -> Result<(), Status> + Send + Sync>;

#[derive(Clone)]
pub(super) enum Fault {
    /// In the place of doing anything.
    Fail(Status),
    /// After all is done.
    Lose(Status),
}

struct Planned {
    method: Option<Method>,
    calls: usize,
    fault: Fault,
}

/// Rides on a status to where streams can be reset.
#[derive(Debug)]
struct Reset(Reason);

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Error for Reset {}

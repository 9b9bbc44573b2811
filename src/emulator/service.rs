//! The five methods as a tonic server calls them, and what all of them have in common.

use std::{
    error::Error as _,
    fmt, future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tonic::{Request, Response, Status};

use super::{
    Call, CallRequest, Shared, deadline, lock,
    script::{Fault, Requirement},
};
use crate::{
    proto::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        ListOperationsResponse, Operation, WaitOperationRequest, operations_server::Operations,
    },
    status::{Delivery, Origin, mark},
};

/// The methods of an [`Emulator`](super::Emulator), for tonic's generated server.
///
/// See [`Emulator::service`](super::Emulator::service).
#[derive(Clone)]
pub struct EmulatorService {
    shared: Arc<Shared>,
}

#[tonic::async_trait]
impl Operations for EmulatorService {
    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let message = request.get_ref().clone();
        let work = async { self.shared.list(&message) };
        self.answer(request.map(CallRequest::List), work).await
    }

    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let name = request.get_ref().name.clone();
        let work = async { lock(&self.shared.store).find(&name).cloned() };
        self.answer(request.map(CallRequest::Get), work).await
    }

    async fn delete_operation(
        &self,
        request: Request<DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let name = request.get_ref().name.clone();
        let work = async { self.shared.remove(&name).map(drop) };
        self.answer(request.map(CallRequest::Delete), work).await
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let name = request.get_ref().name.clone();
        let work = async { self.shared.cancel(&name) };
        self.answer(request.map(CallRequest::Cancel), work).await
    }

    async fn wait_operation(
        &self,
        request: Request<WaitOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let message = request.get_ref().clone();
        let left = deadline::timeout(request.metadata());
        let work = async { self.shared.wait(&message, left).await };
        self.answer(request.map(CallRequest::Wait), work).await
    }
}

impl EmulatorService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Answers a call with what the work gives, unless the script wants it otherwise.
    async fn answer<T>(
        &self,
        request: Request<CallRequest>,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let call = Call::new(request);
        // Before the call is on record: a test may end the delay as soon as it sees the call.
        let delay = self.delay(&call);
        let recording = self.shared.record(call.clone());
        // In process the status itself arrives, and is the server's word there, too.
        let answer = match delay {
            Ok(delay) => {
                let answer = self.act(&call, work).await;
                match delay {
                    Duration::ZERO => {}
                    // If time is paused, tokio would advance it to the end of any sleep.
                    Duration::MAX => future::pending().await,
                    delay => tokio::time::sleep(delay).await,
                }
                answer
            }
            Err(panicked) => Err(panicked),
        };
        let answer = answer.map_err(spoken);
        recording.end(&answer);
        answer.map(Response::new)
    }

    fn delay(&self, call: &Call) -> Result<Duration, Status> {
        let script = lock(&self.shared.script);
        let (delay, delay_fn) = (script.delay(call.method()), script.delay_fn());
        drop(script);
        let Some(delay_fn) = delay_fn else {
            return Ok(delay);
        };
        let more = catch_unwind(AssertUnwindSafe(|| delay_fn(call)));
        let more = more.map_err(|_| Status::internal("the emulator's delay function panicked"))?;
        Ok(delay.saturating_add(more))
    }

    async fn act<T>(
        &self,
        call: &Call,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        if lock(&self.shared.script).lacks(call.method()) {
            let message = format!("unknown method {}", call.method());
            return Err(Status::unimplemented(message));
        }
        if call.timeout() == Some(Duration::ZERO) {
            return Err(Status::deadline_exceeded(
                "the call arrived with no time left",
            ));
        }
        let requirement = lock(&self.shared.script).requirement();
        requirement.map_or(Ok(()), |requirement| meets(call, &requirement))?;
        lock(&self.shared.script).take_quota(call.method())?;
        let fault = lock(&self.shared.script).take_fault(call.method());
        match fault {
            None => work.await,
            Some(Fault::Fail(status)) => Err(status),
            Some(Fault::Lose(status)) => work.await.and(Err(status)),
        }
    }
}

fn meets(call: &Call, requirement: &Requirement) -> Result<(), Status> {
    catch_unwind(AssertUnwindSafe(|| requirement(call)))
        .unwrap_or_else(|_| Err(Status::internal("the emulator's requirement panicked")))
}

fn spoken(status: Status) -> Status {
    match status.source() {
        None => mark(status, Origin::Server, Delivery::Answered),
        Some(_) => status,
    }
}

impl fmt::Debug for EmulatorService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmulatorService").finish_non_exhaustive()
    }
}

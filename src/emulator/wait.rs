//! Waiting for the end of an operation.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::{Emulator, Shared, deadline, lock};
use crate::proto::{Operation, WaitOperationRequest, duration};

impl Emulator {
    /// Settles what is done about waits.
    pub fn on_wait(&self, behavior: WaitBehavior) {
        lock(&self.shared.script).on_wait = behavior;
    }
}

/// What a server does about a wait.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum WaitBehavior {
    /// Answers with the latest state when the operation is done, when the request's timeout is
    /// over, or shortly before the call's deadline: a fifth of the time allowed, at most half a
    /// second.
    #[default]
    Wait,
    /// Answers with the state at once, done or not, as the service's definition allows.
    AnswerAtOnce,
}

impl Shared {
    /// Waits for the end of an operation, in a call that has this much time left.
    pub(super) async fn wait(
        &self,
        request: &WaitOperationRequest,
        left: Option<Duration>,
    ) -> Result<Operation, Status> {
        let now = Instant::now();
        let asked = match request.timeout {
            None => None,
            Some(timeout) => Some(duration(timeout).ok_or_else(|| {
                let message = format!("timeout is no span of time to wait: {timeout:?}");
                Status::invalid_argument(message)
            })?),
        };
        let left = left.map(deadline::to_answer);
        // A span beyond what an instant can hold is as good as none.
        let until = [asked, left].into_iter().flatten().min();
        let until = until.and_then(|span| now.checked_add(span));
        let at_once = lock(&self.script).on_wait == WaitBehavior::AnswerAtOnce;
        let mut end = {
            let mut store = lock(&self.store);
            let record = store.find_mut(&request.name)?;
            if record.operation.done || at_once {
                return Ok(record.operation.clone());
            }
            record.subscribe()
        };
        let ended = end.changed();
        match until {
            Some(until) => timeout_at(until, ended).await.is_ok(),
            None => ended.await.is_ok(),
        };
        lock(&self.store).find(&request.name).cloned()
    }
}

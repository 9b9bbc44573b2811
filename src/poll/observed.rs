//! Observation of a wait for an operation: its span, and the measurements for the recorder.

use std::sync::Arc;

use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    client::OperationsClient,
    operation::{Operation, Outcome},
    recorder::{OperationDone, OutcomeKind, PollEnded, PollMethod, Recorder},
    trace::Span,
};

/// A wait for an operation, from the first poll until the operation is done or polling has failed.
pub(super) struct ObservedWait {
    recorder: Option<Arc<dyn Recorder>>,
    target: Option<Arc<str>>,
    span: Span,
    begun: Instant,
    polls: u32,
    has_ended: bool,
}

impl ObservedWait {
    pub(super) fn start<S>(client: &OperationsClient<S>, operation: &str) -> Self {
        Self {
            recorder: client.current_recorder().cloned(),
            target: client.target().cloned(),
            span: Span::wait(operation),
            begun: Instant::now(),
            polls: 0,
            has_ended: false,
        }
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// Records a poll that has ended.
    pub(super) fn polled(&mut self, method: PollMethod, result: &Result<Operation, Status>) {
        self.polls = self.polls.saturating_add(1);
        if let Some(recorder) = &self.recorder {
            recorder.poll_ended(&PollEnded {
                target: self.target.as_ref(),
                method,
                code: result.as_ref().err().map_or(Code::Ok, Status::code),
            });
        }
    }

    /// Records the end of the wait: the operation is done, or polling has failed.
    pub(super) fn end(mut self, result: Result<&Operation, &Status>) {
        self.has_ended = true;
        self.span.polls(self.polls);
        match result {
            Ok(operation) => self.done(operation),
            Err(failure) => self.span.failed(failure),
        }
        self.span.end();
    }

    fn done(&self, operation: &Operation) {
        let (outcome, code) = match operation.outcome() {
            Outcome::Succeeded => (OutcomeKind::Succeeded, Code::Ok),
            Outcome::Cancelled(error) => (OutcomeKind::Cancelled, error.code()),
            Outcome::Failed(error) => {
                self.span.failed(&error);
                (OutcomeKind::Failed, error.code())
            }
            Outcome::DoneWithoutResult => (OutcomeKind::DoneWithoutResult, Code::Ok),
            Outcome::Running => return, // unreachable: the operation is done
        };
        self.span.done(outcome.name(), code);
        if let Some(recorder) = &self.recorder {
            recorder.operation_done(&OperationDone {
                target: self.target.as_ref(),
                outcome,
                polls: self.polls,
                duration: self.begun.elapsed(),
            });
        }
    }
}

impl Drop for ObservedWait {
    fn drop(&mut self) {
        if !self.has_ended {
            self.span.polls(self.polls);
            self.span.dropped();
            self.span.end();
        }
    }
}

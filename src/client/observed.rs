//! Observation of calls: their spans, and the measurements for the recorder.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    thread,
    time::Duration,
};

use tokio::time::Instant;
use tonic::{Code, Status};

use super::{OperationsClient, rpc::Rpc, shared::Shared};
use crate::{
    recorder::{AttemptEnded, AttemptStarted, CallEnded, Recorder},
    retry::AttemptObserver,
    status::{CallStatusExt as _, Delivery},
    trace::Span,
    transport::{FailedAttempt, Progress, Sent},
};

/// A call that a subscriber or a recorder observes; empty if neither does.
///
/// It belongs to the future of the call. If that future is dropped, the call is recorded as `CANCELLED`.
pub(super) struct ObservedCall<'a>(Option<Box<Observed<'a>>>);

struct Observed<'a> {
    recorder: Option<&'a dyn Recorder>,
    shared: &'a Shared,
    method: &'static str,
    /// The size of the request message, in bytes.
    request_size: usize,
    span: Span,
    begun: Instant,
    attempts: Mutex<Attempts>,
    has_ended: bool,
}

/// The attempts of a call, including transparent retries.
#[derive(Default)]
struct Attempts {
    count: usize,
    transparent: usize,
    /// The total duration of the attempts that have ended.
    duration: Duration,
    current: Option<Arc<Attempt>>,
}

/// An attempt in progress.
struct Attempt {
    progress: Arc<Progress>,
    span: Span,
    begun: Instant,
    is_transparent_retry: bool,
}

/// How a call or an attempt has ended.
#[derive(Clone, Copy)]
enum End<'a> {
    Ok,
    Failed(&'a Status),
    Dropped,
}

impl<'a> ObservedCall<'a> {
    pub(super) fn start<S, R: Rpc>(client: &'a OperationsClient<S>, request: &R) -> Self {
        let shared = &*client.shared;
        // Without the leading slash.
        let method = &R::PATH[1..];
        let span = Span::call(method, shared.address(), request.name());
        let recorder = client.settings.recorder.as_deref();
        let is_observed = recorder.is_some() || span.is_enabled();
        Self(is_observed.then(|| {
            Box::new(Observed {
                recorder,
                shared,
                method,
                request_size: request.encoded_len(),
                span,
                begun: Instant::now(),
                attempts: Mutex::default(),
                has_ended: false,
            })
        }))
    }

    /// Records that an attempt starts. Returns the [`Progress`] to report to, if the call is observed.
    pub(super) fn start_attempt(&self) -> Option<Arc<Progress>> {
        let observed = self.0.as_ref()?;
        let progress = Arc::<Progress>::default();
        observed.start_attempt(progress.clone(), Instant::now(), false);
        Some(progress)
    }

    /// Calls a function within the span of the current attempt, if there is one.
    pub(super) fn in_attempt<T>(&self, f: impl FnOnce() -> T) -> T {
        let Some(observed) = &self.0 else {
            return f();
        };
        let current = observed.attempts().current.clone();
        let span = current.as_ref().map(|attempt| &attempt.span);
        // A filter may disable only the spans of attempts; then the span of the call is used.
        let span = span.filter(|span| span.is_enabled());
        span.unwrap_or(&observed.span).in_scope(f)
    }

    /// Polls a future within the span of the current attempt. After a transparent retry, that is the span of the
    /// retry.
    pub(super) fn poll_in_attempt<F: Future>(
        &self,
        future: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        let Some(observed) = &self.0 else {
            return future.poll(cx);
        };
        observed.note_failed_attempts(Some(cx));
        self.in_attempt(|| future.poll(cx))
    }

    /// Records that the call has ended.
    pub(super) fn end<T>(mut self, result: &Result<T, Status>) {
        if let Some(observed) = &mut self.0 {
            observed.has_ended = true;
            observed.end(End::of(result));
        }
    }
}

impl AttemptObserver for ObservedCall<'_> {
    fn attempt_ended<T>(&self, result: &Result<T, Status>) {
        if let Some(observed) = &self.0 {
            observed.end_attempt(End::of(result));
        }
    }

    fn in_call<T>(&self, f: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(observed) => observed.span.in_scope(f),
            None => f(),
        }
    }
}

impl Observed<'_> {
    fn start_attempt(&self, progress: Arc<Progress>, begun: Instant, is_transparent_retry: bool) {
        let previous_attempts = self.attempts().count;
        if let Some(recorder) = self.recorder {
            recorder.attempt_started(&AttemptStarted {
                method: self.method,
                target: self.target(),
                previous_attempts,
                is_transparent_retry,
            });
        }
        let (server, is_transparent) = (self.shared.address(), is_transparent_retry);
        let span = if self.span.is_enabled() {
            let span = || Span::attempt(self.method, server, previous_attempts, is_transparent);
            self.span.in_scope(span)
        } else {
            Span::disabled()
        };
        let mut attempts = self.attempts();
        attempts.count += 1;
        attempts.transparent += usize::from(is_transparent_retry);
        attempts.current = Some(Arc::new(Attempt {
            progress,
            span,
            begun,
            is_transparent_retry,
        }));
    }

    /// Records the attempts that failed and were retried transparently. Each ends the current attempt and starts
    /// the next one.
    fn note_failed_attempts(&self, caller: Option<&Context<'_>>) {
        let attempts = self.attempts();
        let Some(progress) = attempts.current.as_ref().map(|it| it.progress.clone()) else {
            return;
        };
        drop(attempts);
        for FailedAttempt { at, failure, sent } in progress.take_failed(caller) {
            self.note_attempt_end(End::Failed(&failure), at, sent, 0);
            self.start_attempt(progress.clone(), at, true);
        }
    }

    fn end_attempt(&self, end: End<'_>) {
        self.note_failed_attempts(None);
        let now = Instant::now();
        let attempts = self.attempts();
        let Some((sent, received)) = attempts.current.as_ref().map(|it| it.progress.result(now))
        else {
            return;
        };
        drop(attempts);
        self.note_attempt_end(end, now, sent, received);
    }

    fn note_attempt_end(&self, end: End<'_>, at: Instant, sent: Sent, received_bytes: usize) {
        let mut attempts = self.attempts();
        let Some(attempt) = attempts.current.take() else {
            return;
        };
        let duration = at.saturating_duration_since(attempt.begun);
        attempts.duration += duration;
        drop(attempts);
        if let Some(queued) = sent.queued {
            attempt.span.queued(queued);
        }
        if let Some(connection) = sent.connection {
            attempt.span.connection(connection.id, connection.peer);
        }
        end.record(&attempt.span);
        let Some(recorder) = self.recorder else {
            return;
        };
        // A layer of the stack may have rejected the request.
        let is_rejected = sent.connection.is_none() && end.is_not_sent();
        let is_sent = sent.is_sent && !is_rejected;
        recorder.attempt_ended(&AttemptEnded {
            method: self.method,
            target: self.target(),
            code: end.code(),
            duration,
            queued: sent.queued,
            sent_bytes: if is_sent { self.request_size } else { 0 },
            received_bytes,
            is_transparent_retry: attempt.is_transparent_retry,
        });
    }

    fn end(&self, end: End<'_>) {
        let attempts = self.attempts();
        let (count, transparent) = (attempts.count, attempts.transparent);
        let in_attempts = attempts.duration;
        drop(attempts);
        self.span.attempts(count);
        end.record(&self.span);
        let Some(recorder) = self.recorder else {
            return;
        };
        let duration = self.begun.elapsed();
        recorder.call_ended(&CallEnded {
            method: self.method,
            target: self.target(),
            code: end.code(),
            is_dropped: matches!(end, End::Dropped),
            duration,
            retries: count.saturating_sub(1 + transparent),
            transparent_retries: transparent,
            retry_delay: match count {
                0 | 1 => Duration::ZERO,
                _ => duration.saturating_sub(in_attempts),
            },
        });
    }

    fn target(&self) -> Option<&Arc<str>> {
        self.shared.target()
    }

    /// Recorders and subscribers must not be called while this is locked.
    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Observed<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let dropped = || {
            self.end_attempt(End::Dropped);
            self.end(End::Dropped);
        };
        if thread::panicking() {
            // A panic of the recorder during unwinding would abort the process.
            let result = catch_unwind(AssertUnwindSafe(dropped));
            // The destructor of a panic's payload may panic.
            mem::forget(result);
        } else {
            dropped();
        }
    }
}

impl<'a> End<'a> {
    fn of<T>(result: &'a Result<T, Status>) -> Self {
        match result {
            Ok(_) => Self::Ok,
            Err(status) => Self::Failed(status),
        }
    }

    fn code(self) -> Code {
        match self {
            Self::Ok => Code::Ok,
            Self::Failed(status) => status.code(),
            Self::Dropped => Code::Cancelled,
        }
    }

    fn is_not_sent(self) -> bool {
        match self {
            Self::Failed(status) => status.delivery() == Some(Delivery::NotSent),
            Self::Ok | Self::Dropped => false,
        }
    }

    fn record(self, span: &Span) {
        match self {
            Self::Ok => span.status(None),
            Self::Failed(status) => span.status(Some(status)),
            Self::Dropped => span.dropped_call(),
        }
        span.end();
    }
}

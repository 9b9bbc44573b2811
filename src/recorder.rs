//! The [`Recorder`] trait, and the measurements that it receives.

use std::{fmt, sync::Arc, time::Duration};

use tonic::Code;

use crate::{stats::StatsSource, status::code_name};

/// Receives measurements of calls, attempts and polls, for recording metrics.
///
/// Set it with [`ClientBuilder::recorder`](crate::ClientBuilder::recorder) or
/// [`OperationsClient::recorder`](crate::OperationsClient::recorder). For OpenTelemetry, use `OpenTelemetryRecorder`
/// (requires the feature `opentelemetry`). All methods have default implementations that do nothing.
///
/// Methods are called while the future of a call is polled or dropped, possibly in a task that the client has spawned,
/// for example for a poll of a [`Poller`](crate::Poller). They must not block, but may use the client. A panic
/// propagates to the future of the call.
///
/// Durations include the time during which the caller did not poll the future. A `Vec<Arc<dyn Recorder>>` is a
/// recorder, too, which combines several. To test a recorder, use the emulator.
///
/// ```
/// # #[cfg(not(feature = "emulator"))]
/// # fn main() {}
/// # #[cfg(feature = "emulator")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tonic::Status> {
/// # use longrunning::{OperationsClient, emulator::Emulator};
/// # let emulator = Emulator::start().await?;
/// # emulator.start_operation("operations/1")?;
/// # let endpoint = emulator.endpoint();
/// use std::sync::{
///     Arc,
///     atomic::{AtomicU64, Ordering},
/// };
/// use longrunning::{CallEnded, Recorder};
/// use tonic::Code;
///
/// #[derive(Default)]
/// struct Failures(AtomicU64);
///
/// impl Recorder for Failures {
///     fn call_ended(&self, call: &CallEnded<'_>) {
///         if call.code != Code::Ok {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
///
/// let failures = Arc::new(Failures::default());
/// let builder = OperationsClient::builder(endpoint).recorder(failures.clone());
/// let client = builder.connect().await?;
/// client.get_operation("operations/1").await?;
/// assert_eq!(failures.0.load(Ordering::Relaxed), 0);
/// # Ok(())
/// # }
/// ```
#[allow(unused_variables)]
pub trait Recorder: Send + Sync + 'static {
    /// Called when a client is created with this recorder, and when the recorder is set on an existing client.
    /// Cloning a client does not call it.
    ///
    /// This is also called if [`connect`](crate::ClientBuilder::connect) then fails to open a connection. To export
    /// the [`Stats`](crate::Stats) of the client periodically, keep a clone of the source.
    fn client_created(&self, client: &StatsSource) {}

    /// Called when an attempt starts: the first of a call, a retry, or a transparent retry.
    fn attempt_started(&self, attempt: &AttemptStarted<'_>) {}

    /// Called when an attempt ends.
    fn attempt_ended(&self, attempt: &AttemptEnded<'_>) {}

    /// Called when a call ends, after its last attempt.
    fn call_ended(&self, call: &CallEnded<'_>) {}

    /// Called when a poll of a [`Poller`](crate::Poller) ends. The call of the poll is also reported to
    /// [`call_ended`](Self::call_ended).
    fn poll_ended(&self, poll: &PollEnded<'_>) {}

    /// Called when a [`Poller`](crate::Poller) finds that its operation is done.
    fn operation_done(&self, operation: &OperationDone<'_>) {}
}

/// Calls each of the recorders, in their order.
impl Recorder for Vec<Arc<dyn Recorder>> {
    fn client_created(&self, client: &StatsSource) {
        self.iter().for_each(|it| it.client_created(client));
    }

    fn attempt_started(&self, attempt: &AttemptStarted<'_>) {
        self.iter().for_each(|it| it.attempt_started(attempt));
    }

    fn attempt_ended(&self, attempt: &AttemptEnded<'_>) {
        self.iter().for_each(|it| it.attempt_ended(attempt));
    }

    fn call_ended(&self, call: &CallEnded<'_>) {
        self.iter().for_each(|it| it.call_ended(call));
    }

    fn poll_ended(&self, poll: &PollEnded<'_>) {
        self.iter().for_each(|it| it.poll_ended(poll));
    }

    fn operation_done(&self, operation: &OperationDone<'_>) {
        self.iter().for_each(|it| it.operation_done(operation));
    }
}

impl fmt::Debug for dyn Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

/// An attempt that has started, see [`Recorder::attempt_started`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AttemptStarted<'a> {
    /// The full name of the method, such as `google.longrunning.Operations/CancelOperation`.
    pub method: &'static str,
    /// The target of the client, such as `dns:///automl.googleapis.com:443`; `None` for a client over a custom
    /// stack, whose endpoint is not known.
    pub target: Option<&'a Arc<str>>,
    /// The number of earlier attempts of the call, including transparent retries.
    pub previous_attempts: usize,
    /// Whether this is a transparent retry, see [`Transport`](crate::Transport).
    pub is_transparent_retry: bool,
}

/// An attempt that has ended, see [`Recorder::attempt_ended`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AttemptEnded<'a> {
    /// The full name of the method, such as `google.longrunning.Operations/CancelOperation`.
    pub method: &'static str,
    /// The target of the client, see [`AttemptStarted::target`].
    pub target: Option<&'a Arc<str>>,
    /// The status code. `CANCELLED` if the future of the call was dropped, see
    /// [statuscodes.md](https://github.com/grpc/grpc/blob/master/doc/statuscodes.md).
    pub code: Code,
    /// The duration of the attempt, including the wait for a token, a connection and a stream.
    pub duration: Duration,
    /// How long the request was queued by the default stack, whether or not it was sent afterwards; `None` if it did
    /// not reach that stack.
    pub queued: Option<Duration>,
    /// The size of the request message in bytes; 0 if it was not sent.
    pub sent_bytes: usize,
    /// The size of the response message in bytes, before decompression; 0 if none was received.
    pub received_bytes: usize,
    /// Whether this is a transparent retry, see [`Transport`](crate::Transport).
    pub is_transparent_retry: bool,
}

/// A call that has ended, see [`Recorder::call_ended`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CallEnded<'a> {
    /// The full name of the method, such as `google.longrunning.Operations/CancelOperation`.
    pub method: &'static str,
    /// The target of the client, see [`AttemptStarted::target`].
    pub target: Option<&'a Arc<str>>,
    /// The status code. `CANCELLED` if the future of the call was dropped, see
    /// [statuscodes.md](https://github.com/grpc/grpc/blob/master/doc/statuscodes.md).
    pub code: Code,
    /// Whether the future of the call was dropped before it completed.
    pub is_dropped: bool,
    /// The duration of the call, including all attempts and the delays between them.
    pub duration: Duration,
    /// The number of retries by the [`RetryPolicy`](crate::RetryPolicy).
    pub retries: usize,
    /// The number of transparent retries, see [`Transport`](crate::Transport).
    pub transparent_retries: usize,
    /// The total time between attempts, during which none was in progress; zero without retries.
    pub retry_delay: Duration,
}

/// A poll that has ended, see [`Recorder::poll_ended`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PollEnded<'a> {
    /// The target of the client, see [`AttemptStarted::target`].
    pub target: Option<&'a Arc<str>>,
    /// The method that was called.
    pub method: PollMethod,
    /// The status code.
    pub code: Code,
}

/// The method of a poll.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum PollMethod {
    /// `GetOperation`.
    Get,
    /// `WaitOperation`.
    Wait,
}

/// An operation that is done, see [`Recorder::operation_done`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OperationDone<'a> {
    /// The target of the client, see [`AttemptStarted::target`].
    pub target: Option<&'a Arc<str>>,
    /// The outcome of the operation.
    pub outcome: OutcomeKind,
    /// The number of polls until the operation was found to be done.
    pub polls: u32,
    /// The time from the first poll until the operation was found to be done.
    pub duration: Duration,
}

/// The outcome of an operation that is done, without its error. See [`Outcome`](crate::Outcome).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum OutcomeKind {
    /// The operation has a response.
    Succeeded,
    /// The operation has the error `CANCELLED`.
    Cancelled,
    /// The operation has another error.
    Failed,
    /// The operation has neither a response nor an error.
    DoneWithoutResult,
}

impl AttemptEnded<'_> {
    /// Returns the name of the status code, such as `DEADLINE_EXCEEDED`.
    pub fn code_name(&self) -> &'static str {
        code_name(self.code)
    }
}

impl CallEnded<'_> {
    /// Returns the name of the status code, such as `DEADLINE_EXCEEDED`.
    pub fn code_name(&self) -> &'static str {
        code_name(self.code)
    }
}

impl PollEnded<'_> {
    /// Returns the name of the status code, such as `DEADLINE_EXCEEDED`.
    pub fn code_name(&self) -> &'static str {
        code_name(self.code)
    }
}

impl PollMethod {
    /// Returns the name of the method in lower case: `get` or `wait`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Wait => "wait",
        }
    }
}

impl OutcomeKind {
    /// Returns the name of the outcome in lower case, such as `done_without_result`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::DoneWithoutResult => "done_without_result",
        }
    }
}

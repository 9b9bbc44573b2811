//! The error source of each status that this crate returns: what is known about the call, and the cause.
//!
//! This is stored as the [`source`](Error::source) of the status rather than in its metadata, so that a
//! server that returns the status to its own callers does not send it to them.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use tonic::{Code, Status};

use super::{Delivery, Origin};

/// What is known about the call that ended with a status.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) origin: Origin,
    pub(crate) delivery: Delivery,
    /// Whether the call is retried regardless of its code: `Some(true)` if a layer requested it, and
    /// `Some(false)` if Response-Headers have arrived, after which
    /// [gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md#when-retries-are-valid)
    /// allows no retry.
    retry: Option<bool>,
    pub(crate) spent: Option<Spent>,
    cause: Option<Cause>,
}

/// The number of attempts of a call, and the time that it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) attempts: usize,
    pub(crate) time: Duration,
}

#[derive(Clone)]
enum Cause {
    Error(Arc<dyn Error + Send + Sync>),
    /// The source of this status. It can only be borrowed, so the status is stored.
    SourceOf(Box<Status>),
}

/// Creates a status of the client itself, with [`Delivery::NotSent`].
pub(crate) fn local(code: Code, message: impl Into<String>) -> Status {
    mark(
        Status::new(code, message),
        Origin::Client,
        Delivery::NotSent,
    )
}

/// Records the origin of a status and the delivery of its call, unless they are recorded already. The
/// source of the status stays reachable.
///
/// If the status has already ended a call, origin and delivery are recorded anew: that call was an inner
/// one, made by a layer or by a server in this process.
pub(crate) fn mark(mut status: Status, origin: Origin, delivery: Delivery) -> Status {
    if source(&status).is_none_or(|source| source.spent.is_some()) {
        let has_source = status.source().is_some();
        let cause = has_source.then(|| Cause::SourceOf(Box::new(status.clone())));
        set(&mut status, Source::new(origin, delivery, cause));
    }
    status
}

/// Creates a status with a cause. The message must include the message of the cause.
pub(crate) fn caused(
    code: Code,
    message: impl Into<String>,
    origin: Origin,
    delivery: Delivery,
    cause: impl Into<Box<dyn Error + Send + Sync>>,
) -> Status {
    let mut status = Status::new(code, message);
    let cause = Cause::Error(cause.into().into());
    set(&mut status, Source::new(origin, delivery, Some(cause)));
    status
}

/// Creates a status that replaces another one, with a new code and message. The new message must include the
/// old one. The cause of the old status stays reachable.
pub(crate) fn reworded(
    old: &Status,
    code: Code,
    message: impl Into<String>,
    origin: Origin,
    delivery: Delivery,
) -> Status {
    let cause = match source(old) {
        Some(source) => source.cause.clone(),
        None if old.source().is_some() => Some(Cause::SourceOf(Box::new(old.clone()))),
        None => None,
    };
    let mut status = Status::new(code, message);
    set(&mut status, Source::new(origin, delivery, cause));
    status
}

/// Replaces the delivery of the call.
pub(crate) fn with_delivery(status: Status, delivery: Delivery) -> Status {
    change(status, |source| source.delivery = delivery)
}

/// Records whether the call is retried, regardless of its code.
pub(crate) fn with_retry(status: Status, retry: bool) -> Status {
    change(status, |source| source.retry = Some(retry))
}

/// Records the number of attempts of the call, and the time that it took.
pub(crate) fn with_attempts(status: Status, attempts: usize, time: Duration) -> Status {
    change(status, |source| {
        source.spent = Some(Spent { attempts, time });
    })
}

/// Returns whether the call is retried regardless of its code; `None` if the code decides.
pub(crate) fn retry(status: &Status) -> Option<bool> {
    source(status)?.retry
}

/// Finds an error of this type among the sources of a status.
pub(crate) fn cause<E: Error + 'static>(status: &Status) -> Option<&E> {
    std::iter::successors(status.source(), |&error| error.source())
        .find_map(|error| error.downcast_ref())
}

pub(super) fn source(status: &Status) -> Option<&Source> {
    status.source()?.downcast_ref()
}

fn change(mut status: Status, change: impl FnOnce(&mut Source)) -> Status {
    if let Some(source) = source(&status) {
        let mut source = source.clone();
        change(&mut source);
        set(&mut status, source);
    }
    status
}

fn set(status: &mut Status, source: Source) {
    status.set_source(Arc::new(source));
}

impl Source {
    fn new(origin: Origin, delivery: Delivery, cause: Option<Cause>) -> Self {
        Self {
            origin,
            delivery,
            retry: None,
            spent: None,
            cause,
        }
    }
}

/// Writes the part of a [`StatusReport`](super::StatusReport) in parentheses, such as
/// `transport, not sent, 5 attempts in 7.61s`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.origin, self.delivery)?;
        match self.spent {
            Some(Spent { attempts: 1, time }) => write!(f, ", 1 attempt in {time:.2?}"),
            Some(Spent { attempts, time }) => write!(f, ", {attempts} attempts in {time:.2?}"),
            None => Ok(()),
        }
    }
}

// The `Display` and `Debug` output of a status includes this. Its message already includes the cause.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for Source {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self.cause.as_ref()? {
            Cause::Error(cause) => Some(&**cause),
            Cause::SourceOf(status) => status.source(),
        }
    }
}

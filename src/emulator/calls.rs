//! Every call that came in, and how it ended.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;
use tonic::{Code, Request, Status, metadata::MetadataMap};

use super::{Emulator, Shared, deadline, lock, request::Encoding, server::ConnectionNumber};
use crate::proto::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    WaitOperationRequest,
};

impl Emulator {
    /// Returns every call so far, in the order of arrival.
    ///
    /// A call counts as arrived when its message has been read. A request over a socket that does
    /// not pass the [checks](super#checks-of-requests) is no call, and is not recorded.
    pub fn calls(&self) -> Vec<Call> {
        let mut calls = lock(&self.shared.log).calls.clone();
        // A delay function runs between the arrival of a call and its recording.
        calls.sort_by_key(Call::received_at);
        calls
    }

    /// Returns every call so far of one method, in the order of arrival.
    pub fn calls_of(&self, method: Method) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.method() == method);
        calls
    }

    /// Forgets the calls so far. Those still in flight are counted all the same.
    pub fn clear_calls(&self) {
        let mut log = lock(&self.shared.log);
        log.forgotten += log.calls.len();
        log.calls.clear();
    }

    /// Returns how many calls await their answer now.
    pub fn in_flight(&self) -> usize {
        lock(&self.shared.log).in_flight
    }

    /// Returns how many calls have awaited their answer at the same time, at most.
    pub fn peak_in_flight(&self) -> usize {
        lock(&self.shared.log).peak_in_flight
    }

    /// Returns how many connections are open now.
    pub fn open_connections(&self) -> usize {
        lock(&self.shared.log).open_connections
    }

    /// Returns how many connections were ever accepted.
    pub fn accepted_connections(&self) -> usize {
        lock(&self.shared.log).accepted_connections
    }
}

/// A call that came in. Clones are cheap; each keeps the outcome it was taken with.
///
/// The `Debug` output redacts the values of headers that contain credentials.
#[derive(Clone)]
pub struct Call {
    received: Arc<Received>,
    outcome: CallOutcome,
}

impl Call {
    pub(super) fn new(request: Request<CallRequest>) -> Self {
        let (mut metadata, mut extensions, request) = request.into_parts();
        if let Some(encoding) = extensions.remove::<Encoding>() {
            encoding.restore(&mut metadata);
        }
        let connection = extensions.remove::<ConnectionNumber>();
        Self {
            received: Arc::new(Received {
                request,
                metadata,
                at: Instant::now(),
                connection: connection.map(|ConnectionNumber(number)| number),
            }),
            outcome: CallOutcome::InFlight,
        }
    }

    /// Returns which method was called.
    pub fn method(&self) -> Method {
        match self.request() {
            CallRequest::List(_) => Method::List,
            CallRequest::Get(_) => Method::Get,
            CallRequest::Delete(_) => Method::Delete,
            CallRequest::Cancel(_) => Method::Cancel,
            CallRequest::Wait(_) => Method::Wait,
        }
    }

    /// Returns the name in the request: that of an operation, or of the parent of a list.
    pub fn name(&self) -> &str {
        match self.request() {
            CallRequest::List(request) => &request.name,
            CallRequest::Get(request) => &request.name,
            CallRequest::Delete(request) => &request.name,
            CallRequest::Cancel(request) => &request.name,
            CallRequest::Wait(request) => &request.name,
        }
    }

    /// Returns the time at which the call arrived: a [`tokio::time::Instant`], which follows paused time.
    pub fn received_at(&self) -> Instant {
        self.received.at
    }

    /// Returns the number of the connection on which the call arrived, or `None` for an in-process call.
    ///
    /// Connections are numbered from 0, in the order in which they are accepted.
    pub fn connection(&self) -> Option<usize> {
        self.received.connection
    }

    /// Returns the request message.
    pub fn request(&self) -> &CallRequest {
        &self.received.request
    }

    /// Returns the metadata: every header of the request, gRPC's own included.
    pub fn metadata(&self) -> &MetadataMap {
        &self.received.metadata
    }

    /// Returns the time that the client allowed as `grpc-timeout`; `None` also for one that
    /// cannot be read, which only a call in process can have.
    pub fn timeout(&self) -> Option<Duration> {
        deadline::timeout(self.metadata())
    }

    /// Returns how the call ended, if it had when this was taken.
    pub fn outcome(&self) -> CallOutcome {
        self.outcome
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut metadata = self.metadata().clone();
        for header in metadata.as_mut().iter_mut() {
            if SECRETS.iter().any(|part| header.0.as_str().contains(part)) {
                header.1.set_sensitive(true);
            }
        }
        f.debug_struct("Call")
            .field("request", self.request())
            .field("metadata", &metadata)
            .field("connection", &self.connection())
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

/// The values of headers whose names contain one of these are redacted in `Debug` output.
const SECRETS: [&str; 6] = ["auth", "cookie", "jwt", "key", "secret", "token"];

/// A method of the service.
///
/// Exhaustive: the service has these five.
#[allow(clippy::exhaustive_enums)]
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Method {
    /// `ListOperations`
    List,
    /// `GetOperation`
    Get,
    /// `DeleteOperation`
    Delete,
    /// `CancelOperation`
    Cancel,
    /// `WaitOperation`
    Wait,
}

impl Method {
    pub(super) const ALL: [Self; 5] = [
        Self::List,
        Self::Get,
        Self::Delete,
        Self::Cancel,
        Self::Wait,
    ];

    /// Returns a method, or all methods for `None`.
    pub(super) fn selected(method: Option<Self>) -> Vec<Self> {
        method.map_or_else(|| Self::ALL.to_vec(), |method| vec![method])
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::List => "ListOperations",
            Self::Get => "GetOperation",
            Self::Delete => "DeleteOperation",
            Self::Cancel => "CancelOperation",
            Self::Wait => "WaitOperation",
        }
    }
}

/// Shows the name that the service gives the method, such as `CancelOperation`.
impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The request message of a call.
///
/// Exhaustive: the service has these five.
#[allow(clippy::exhaustive_enums)]
#[derive(Clone, Debug, PartialEq)]
pub enum CallRequest {
    /// Of `ListOperations`.
    List(ListOperationsRequest),
    /// Of `GetOperation`.
    Get(GetOperationRequest),
    /// Of `DeleteOperation`.
    Delete(DeleteOperationRequest),
    /// Of `CancelOperation`.
    Cancel(CancelOperationRequest),
    /// Of `WaitOperation`.
    Wait(WaitOperationRequest),
}

/// How a call ended.
///
/// Exhaustive: a call waits, is answered, or is not.
#[allow(clippy::exhaustive_enums)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum CallOutcome {
    /// It awaits its answer.
    InFlight,
    /// It was given an answer with this code. Whether the client still read it, nobody knows here.
    Answered(Code),
    /// The client reset the stream, or the connection broke, before there was an answer.
    Abandoned,
}

/// What came in, and what is counted.
#[derive(Default)]
pub(super) struct Log {
    calls: Vec<Call>,
    /// How many calls came before those.
    forgotten: usize,
    in_flight: usize,
    peak_in_flight: usize,
    open_connections: usize,
    accepted_connections: usize,
}

impl Shared {
    /// Takes a call on record; it counts as abandoned unless [`Recording::end`] says otherwise.
    pub(super) fn record(self: &Arc<Self>, call: Call) -> Recording {
        let mut log = lock(&self.log);
        log.calls.push(call);
        log.in_flight += 1;
        log.peak_in_flight = log.peak_in_flight.max(log.in_flight);
        let number = log.forgotten + log.calls.len() - 1;
        drop(log);
        self.changed();
        Recording {
            shared: Arc::clone(self),
            number,
            outcome: CallOutcome::Abandoned,
        }
    }

    /// Counts a connection as open as long as what is returned lives.
    pub(super) fn count_connection(self: &Arc<Self>) -> OpenConnection {
        let mut log = lock(&self.log);
        let number = log.accepted_connections;
        log.open_connections += 1;
        log.accepted_connections += 1;
        drop(log);
        self.changed();
        OpenConnection {
            shared: Arc::clone(self),
            number,
        }
    }
}

/// A call in flight, until this is dropped.
pub(super) struct Recording {
    shared: Arc<Shared>,
    number: usize,
    outcome: CallOutcome,
}

impl Recording {
    pub(super) fn end<T>(mut self, answer: &Result<T, Status>) {
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.outcome = CallOutcome::Answered(code);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut log = lock(&self.shared.log);
        log.in_flight -= 1;
        let index = self.number.checked_sub(log.forgotten);
        if let Some(call) = index.and_then(|index| log.calls.get_mut(index)) {
            call.outcome = self.outcome;
        }
        drop(log);
        self.shared.changed();
    }
}

/// Guard that counts an open connection until it is dropped.
pub(super) struct OpenConnection {
    shared: Arc<Shared>,
    pub(super) number: usize,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        lock(&self.shared.log).open_connections -= 1;
        self.shared.changed();
    }
}

struct Received {
    request: CallRequest,
    metadata: MetadataMap,
    at: Instant,
    connection: Option<usize>,
}

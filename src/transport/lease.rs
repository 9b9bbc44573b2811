//! The hold that a call has on a connection.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::time::Instant;
use tonic::Status;

use super::{connection::Connection, pool::Pool};

/// A stream, and the means to open it.
pub(crate) type Granted = (Lease, SendRequest<Bytes>);

/// A stream of a connection, for one call.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Arc<Connection>,
    pool: Arc<Pool>,
    deadline: Option<Instant>,
    /// The traffic's reads when something of this call moved last. `None` until it is sent.
    reads: Option<usize>,
    completed: bool,
}

impl Lease {
    pub(crate) fn new(connection: Arc<Connection>, pool: Arc<Pool>) -> Self {
        Self {
            connection,
            pool,
            deadline: None,
            reads: None,
            completed: false,
        }
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Notes that the call is sent now, and when its time is up.
    pub(crate) fn begins(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
        self.progressed();
    }

    pub(crate) fn answered(&mut self) {
        self.progressed();
        if self.connection.answered() {
            self.pool.answered();
        }
    }

    pub(crate) fn progressed(&mut self) {
        self.reads = Some(self.connection.traffic().reads());
    }

    pub(crate) fn completed(mut self) {
        self.completed = true;
    }

    pub(crate) fn failed(mut self, error: h2::Error) -> Status {
        self.completed = true;
        self.connection.disappointed();
        self.connection.failed(error)
    }

    /// Tells that the connection takes no more calls.
    pub(crate) fn retire(&self) {
        self.pool.retire(&self.connection);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let late = || self.deadline.is_some_and(|at| Instant::now() >= at);
        if let Some(reads) = self.reads.filter(|_| !self.completed && late()) {
            self.connection.suspect(reads);
        }
        self.pool.returned(&self.connection);
    }
}

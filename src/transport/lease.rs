//! The hold that a call has on a connection.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::time::Instant;
use tonic::Status;

use super::{connection::Connection, driver::Member, pool::Pool};

/// A stream of a connection, for one call.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Arc<Connection>,
    sender: Option<SendRequest<Bytes>>,
    pool: Arc<Pool>,
    deadline: Option<Instant>,
    /// The traffic's reads when something of this call moved last.
    reads: usize,
    completed: bool,
}

impl Lease {
    pub(crate) fn new(member: &Member, pool: Arc<Pool>) -> Self {
        Self {
            reads: member.connection.traffic().reads(),
            connection: member.connection.clone(),
            sender: Some(member.sender.clone()),
            pool,
            deadline: None,
            completed: false,
        }
    }

    pub(crate) fn until(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline;
        self
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The means to send the request, once.
    pub(crate) fn sender(&mut self) -> Option<SendRequest<Bytes>> {
        self.progressed();
        self.sender.take()
    }

    pub(crate) fn answered(&mut self) {
        self.progressed();
        if self.connection.answered() {
            self.pool.answered();
        }
    }

    pub(crate) fn progressed(&mut self) {
        self.reads = self.connection.traffic().reads();
    }

    pub(crate) fn completed(mut self) {
        self.completed = true;
    }

    pub(crate) fn failed(mut self, error: h2::Error) -> Status {
        self.completed = true;
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
        let sent = self.sender.is_none();
        if sent && !self.completed && late() {
            self.connection.suspect(self.reads);
        }
        self.pool.returned(&self.connection);
    }
}

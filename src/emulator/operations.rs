//! The operations on record, and what a test does with them.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use prost::{Message, Name};
use prost_types::Any;
use tokio::sync::watch;
use tonic::Status;

use super::{Emulator, Shared, lock};
use crate::proto::{Operation, operation, rpc};

impl Emulator {
    /// Starts an operation of this name.
    ///
    /// # Errors
    ///
    /// - `ALREADY_EXISTS`: there is one of this name.
    /// - `INVALID_ARGUMENT`: the name is empty.
    pub fn start_operation(&self, name: impl Into<String>) -> Result<Operation, Status> {
        let operation = Operation {
            name: name.into(),
            ..Operation::default()
        };
        lock(&self.shared.store).add(operation.clone())?;
        self.shared.changed();
        Ok(operation)
    }

    /// Starts an operation under a parent such as `projects/p/locations/l`, with a name of the
    /// emulator's choice, such as `projects/p/locations/l/operations/1`.
    pub fn start_operation_in(&self, parent: &str) -> Operation {
        let operation = lock(&self.shared.store).add_in(parent);
        self.shared.changed();
        operation
    }

    /// Puts an operation on record as it is, in the place of any other of its name: running or
    /// done, with any metadata and any result.
    ///
    /// A running one in the place of a running one is the same with other contents: it is waited
    /// for as before, and ends as was settled before.
    pub fn insert(&self, operation: Operation) {
        lock(&self.shared.store).put(operation);
        self.shared.changed();
    }

    /// Sets what the operation tells of its progress.
    ///
    /// # Errors
    ///
    /// `NOT_FOUND`: there is no such operation.
    pub fn set_metadata<M: Message + Name>(&self, name: &str, metadata: &M) -> Result<(), Status> {
        lock(&self.shared.store).find_mut(name)?.operation.metadata = Some(pack(metadata));
        self.shared.changed();
        Ok(())
    }

    /// Ends an operation with a response.
    ///
    /// # Errors
    ///
    /// - `FAILED_PRECONDITION`: it is done already.
    /// - `NOT_FOUND`: there is no such operation.
    pub fn complete<M: Message + Name>(&self, name: &str, response: &M) -> Result<(), Status> {
        self.shared.end(name, Some(response_of(response)))
    }

    /// Ends an operation with a response after a delay, unless it has ended or gone by then.
    ///
    /// # Errors
    ///
    /// As [`complete`](Self::complete).
    pub fn complete_after<M: Message + Name>(
        &self,
        name: &str,
        response: &M,
        delay: Duration,
    ) -> Result<(), Status> {
        self.shared
            .end_after(name, Some(response_of(response)), delay)
    }

    /// Ends an operation with no result: neither error nor response, as some servers do.
    ///
    /// # Errors
    ///
    /// As [`complete`](Self::complete).
    pub fn complete_without_result(&self, name: &str) -> Result<(), Status> {
        self.shared.end(name, None)
    }

    /// Ends an operation with an error: a `google.rpc.Status`, or a [`Status`] (its metadata has
    /// no place in an operation).
    ///
    /// # Errors
    ///
    /// - `FAILED_PRECONDITION`: it is done already.
    /// - `INVALID_ARGUMENT`: the details of the error are not a `google.rpc.Status`.
    /// - `NOT_FOUND`: there is no such operation.
    pub fn fail(&self, name: &str, error: impl Into<Status>) -> Result<(), Status> {
        let error = rpc::Status::try_from(&error.into())?;
        self.shared.end(name, Some(operation::Result::Error(error)))
    }

    /// Removes an operation from the record, and returns it.
    ///
    /// # Errors
    ///
    /// `NOT_FOUND`: there is no such operation.
    pub fn remove(&self, name: &str) -> Result<Operation, Status> {
        self.shared.remove(name)
    }

    /// Returns an operation as it is now.
    pub fn operation(&self, name: &str) -> Option<Operation> {
        lock(&self.shared.store).find(name).ok().cloned()
    }

    /// Returns how many operations are on record.
    pub fn operation_count(&self) -> usize {
        lock(&self.shared.store).records.len()
    }
}

impl Shared {
    pub(super) fn remove(&self, name: &str) -> Result<Operation, Status> {
        let removed = lock(&self.store).records.remove(name);
        self.changed();
        removed
            .map(|record| record.operation)
            .ok_or_else(|| not_found(name))
    }

    pub(super) fn end(&self, name: &str, result: End) -> Result<(), Status> {
        lock(&self.store).find_mut(name)?.end(result)?;
        self.changed();
        Ok(())
    }

    pub(super) fn end_after(
        self: &Arc<Self>,
        name: &str,
        result: End,
        delay: Duration,
    ) -> Result<(), Status> {
        let started = {
            let mut store = lock(&self.store);
            let record = store.find_mut(name)?;
            record.running()?;
            record.started
        };
        let shared = Arc::clone(self);
        let name = name.to_owned();
        self.tasks.spawn(async move {
            tokio::time::sleep(delay).await;
            if let Ok(record) = lock(&shared.store).find_mut(&name)
                && record.started == started
            {
                record.end(result).ok(); // it may have ended otherwise
            }
            shared.changed();
        });
        Ok(())
    }
}

/// How an operation ends: with an error, a response, or no result.
pub(super) type End = Option<operation::Result>;

/// The operations by name, so that those under a parent stand together.
#[derive(Default)]
pub(super) struct Store {
    records: BTreeMap<String, Record>,
    started: u64,
}

impl Store {
    pub(super) fn find(&self, name: &str) -> Result<&Operation, Status> {
        let record = self.records.get(name).ok_or_else(|| not_found(name))?;
        Ok(&record.operation)
    }

    pub(super) fn find_mut(&mut self, name: &str) -> Result<&mut Record, Status> {
        self.records.get_mut(name).ok_or_else(|| not_found(name))
    }

    /// Returns the operations whose names start so and come later than another.
    pub(super) fn range(&self, prefix: &str, after: &str) -> impl Iterator<Item = &Operation> {
        let from = Bound::Excluded(after.max(prefix));
        self.records
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(move |(name, _)| name.starts_with(prefix))
            .map(|(_, record)| &record.operation)
    }

    fn add(&mut self, operation: Operation) -> Result<(), Status> {
        if operation.name.is_empty() {
            return Err(Status::invalid_argument("an operation needs a name"));
        }
        self.started += 1;
        match self.records.entry(operation.name.clone()) {
            Entry::Occupied(other) => Err(Status::already_exists(format!(
                "operation {:?} exists already",
                other.key()
            ))),
            Entry::Vacant(vacant) => {
                vacant.insert(Record::new(operation, self.started));
                Ok(())
            }
        }
    }

    fn add_in(&mut self, parent: &str) -> Operation {
        let collection = match parent {
            "" => "operations".to_owned(),
            parent => format!("{parent}/operations"),
        };
        loop {
            let operation = Operation {
                name: format!("{collection}/{}", self.started + 1),
                ..Operation::default()
            };
            if self.add(operation.clone()).is_ok() {
                return operation;
            }
        }
    }

    fn put(&mut self, operation: Operation) {
        if let Some(record) = self.records.get_mut(&operation.name)
            && !record.operation.done
            && !operation.done
        {
            record.operation = operation;
            return;
        }
        self.started += 1;
        let record = Record::new(operation, self.started);
        self.records.insert(record.operation.name.clone(), record);
    }
}

/// An operation, and who waits for its end.
pub(super) struct Record {
    pub(super) operation: Operation,
    /// Tells it from others that had, or will have, the same name.
    started: u64,
    /// Dropped at the end, and with the record: so whoever waits wakes.
    running: Option<watch::Sender<()>>,
}

impl Record {
    fn new(operation: Operation, started: u64) -> Self {
        Self {
            operation,
            started,
            running: None,
        }
    }

    pub(super) fn end(&mut self, result: End) -> Result<(), Status> {
        self.running()?;
        self.operation.done = true;
        self.operation.result = result;
        self.running = None;
        Ok(())
    }

    /// Returns what ends with an error at the operation's end: only senders that are gone matter.
    pub(super) fn subscribe(&mut self) -> watch::Receiver<()> {
        self.running.get_or_insert_default().subscribe()
    }

    fn running(&self) -> Result<(), Status> {
        if self.operation.done {
            let message = format!("operation {:?} is done already", self.operation.name);
            return Err(Status::failed_precondition(message));
        }
        Ok(())
    }
}

pub(super) fn pack<M: Message + Name>(message: &M) -> Any {
    let type_url = match M::type_url() {
        // Generated without a domain: Google's services always give theirs.
        url if url.starts_with('/') => format!("type.googleapis.com{url}"),
        url => url,
    };
    Any {
        type_url,
        value: message.encode_to_vec(),
    }
}

fn response_of<M: Message + Name>(message: &M) -> operation::Result {
    operation::Result::Response(pack(message))
}

fn not_found(name: &str) -> Status {
    Status::not_found(format!("no operation {name:?} here"))
}

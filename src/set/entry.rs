//! Description of an operation in a set.

use std::time::SystemTime;

use crate::operation::Operation;

/// An operation to watch, taken by [`OperationSet::insert`](super::OperationSet::insert) and yielded by
/// [`OperationSet::iter`](super::OperationSet::iter).
///
/// It can be created from a name or an [`Operation`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SetEntry {
    /// The name of the operation.
    pub name: String,
    /// The time at which the operation was first inserted into a set.
    pub inserted_at: SystemTime,
    /// The number of polls so far that returned a state. Failed polls do not count. The delay before the next poll
    /// grows with this number. [`OperationSet::cancel`](super::OperationSet::cancel) resets it.
    pub attempts: u32,
    /// Whether the operation is watched with `WaitOperation`, which responds as soon as it is done. The first call is
    /// made immediately.
    ///
    /// Use it for a few operations only: each occupies a stream of a connection, and an operation for which no
    /// `WaitOperation` call is left needs a `GetOperation` call for each poll. See
    /// [`OperationSet`](super::OperationSet#calls).
    pub urgent: bool,
    /// The final state, if it is known. The set then returns it without a call.
    pub done: Option<Operation>,
}

impl SetEntry {
    /// Creates an entry for an operation that has not been polled, inserted now.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            inserted_at: SystemTime::now(),
            attempts: 0,
            urgent: false,
            done: None,
        }
    }
}

impl From<String> for SetEntry {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

impl From<&str> for SetEntry {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

/// If the operation is done, the set yields it without a call.
impl From<Operation> for SetEntry {
    fn from(operation: Operation) -> Self {
        Self {
            done: operation.done.then(|| operation.clone()),
            ..Self::new(operation.name)
        }
    }
}

impl From<&Operation> for SetEntry {
    fn from(operation: &Operation) -> Self {
        Self {
            done: operation.done.then(|| operation.clone()),
            ..Self::new(operation.name.as_str())
        }
    }
}

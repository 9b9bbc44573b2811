//! The calls that wait for a stream, in order.

use std::{collections::BTreeMap, mem};

use tokio::{runtime::Handle, sync::oneshot};
use tonic::Status;

use super::lease::Granted;

/// A call that waits, as the pool sees it.
#[derive(Debug)]
pub(crate) struct Waiting {
    sender: oneshot::Sender<Result<Granted, Status>>,
    runtime: Handle,
}

impl Waiting {
    /// Ends the waiting. A call that is gone gives back what it is granted.
    pub(crate) fn end(self, result: Result<Granted, Status>) {
        drop(self.sender.send(result));
    }
}

/// The calls that wait, by their turns.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: BTreeMap<u64, Waiting>,
    turns: u64,
}

/// The place of a call in the order of those that wait. It keeps it when it has to wait again.
#[derive(Debug, Default)]
pub(crate) struct Turn(Option<u64>);

impl Turn {
    pub(crate) fn has_waited(&self) -> bool {
        self.0.is_some()
    }
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether nobody waits whose turn is before this one.
    pub(crate) fn comes_first(&self, turn: &Turn) -> bool {
        let first = self.waiting.first_key_value();
        first.is_none_or(|(first, _)| turn.0.is_some_and(|turn| turn < *first))
    }

    /// Lets a call wait: at the end, or where it has waited before.
    pub(crate) fn join(
        &mut self,
        turn: &mut Turn,
        runtime: Handle,
    ) -> oneshot::Receiver<Result<Granted, Status>> {
        let turn = *turn.0.get_or_insert_with(|| {
            self.turns += 1;
            self.turns
        });
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(turn, Waiting { sender, runtime });
        receiver
    }

    /// The call whose turn it is, and its runtime.
    pub(crate) fn first(&self) -> Option<(Turn, Handle)> {
        let (turn, waiting) = self.waiting.first_key_value()?;
        Some((Turn(Some(*turn)), waiting.runtime.clone()))
    }

    /// Takes out a call that does not wait any more.
    pub(crate) fn leave(&mut self, turn: &Turn) -> Option<Waiting> {
        self.waiting.remove(&turn.0?)
    }

    /// Takes out all. Their turns are not given again: a call may still hold its own.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Waiting> + use<> {
        mem::take(&mut self.waiting).into_values()
    }

    /// Takes out the call whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<Waiting> {
        self.waiting.pop_first().map(|(_, waiting)| waiting)
    }
}

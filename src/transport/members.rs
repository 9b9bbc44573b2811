//! The connections of a pool, and which of them takes a call.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::oneshot;

use super::connection::Connection;

/// The connections that take calls, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Members(Vec<Member>);

impl Members {
    /// Whether there is another connection, and it allows streams.
    pub(crate) fn has_other_than(&self, connection: &Connection) -> bool {
        let mut others = self.0.iter().map(|member| &*member.connection);
        others.any(|one| !std::ptr::eq(one, connection) && one.limit() > 0)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn add(&mut self, member: Member) {
        self.0.push(member);
    }

    /// Takes a stream of the oldest connection that has one; of a suspect only if no other has.
    pub(crate) fn take_stream(&self) -> Option<&Member> {
        let free = |member: &&Member| member.connection.calls() < member.connection.limit();
        let mut members = self.0.iter().filter(free);
        let sound = members
            .clone()
            .find(|member| !member.connection.is_suspect());
        let member = sound.or_else(|| members.next())?;
        member.connection.take_stream();
        Some(member)
    }

    /// The oldest connection, if the server says on all of them that it allows no streams just now.
    /// On another one it would say the same.
    pub(crate) fn banned(&self) -> Option<&Arc<Connection>> {
        let mut connections = self.0.iter().map(|member| &member.connection);
        let oldest = connections.clone().next()?;
        connections.all(|one| one.limit() == 0).then_some(oldest)
    }

    /// How many streams there are.
    pub(crate) fn streams(&self) -> usize {
        let limits = self.0.iter().map(|member| member.connection.limit());
        limits.fold(0, usize::saturating_add)
    }

    pub(crate) fn remove(&mut self, connection: &Connection) -> Option<Member> {
        let same = |member: &Member| std::ptr::eq(&*member.connection, connection);
        let index = self.0.iter().position(same)?;
        Some(self.0.remove(index))
    }
}

/// A connection as the pool holds it. Once dropped, it ends with the last call on it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) connection: Arc<Connection>,
    pub(crate) sender: SendRequest<Bytes>,
    /// Wakes the driver when it is dropped.
    _retired: oneshot::Sender<Infallible>,
}

impl Member {
    /// Makes one, and what ends with it.
    pub(crate) fn new(
        connection: Arc<Connection>,
        sender: SendRequest<Bytes>,
    ) -> (Self, oneshot::Receiver<Infallible>) {
        let (ending, retired) = oneshot::channel();
        let member = Self {
            connection,
            sender,
            _retired: ending,
        };
        (member, retired)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.connection.retire();
    }
}

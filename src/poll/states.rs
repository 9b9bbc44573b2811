//! A poller as a stream of states.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tonic::Status;

use super::Poller;
use crate::{client::GrpcStack, operation::Operation};

/// The states of the operation as they are seen, changed or not. The last item is the one that is
/// done, or the error that ends the poll, as of [`until_done`](Poller::until_done).
///
/// Progress is in the metadata of each state: [`Operation::metadata_as`]. To see it as it comes,
/// the first look is a Get, and a Wait here asks for no longer than the delay to the next look.
impl<S: GrpcStack + Sync> Stream for Poller<S> {
    type Item = Result<Operation, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let state = ready!(self.poll_state(cx, true));
        self.ended = state.as_ref().map_or(true, |state| state.done);
        Poll::Ready(Some(state))
    }
}

//! Cancelling all operations of a set.

use std::{
    pin::Pin,
    task::{Context, Poll},
    vec,
};

use futures_core::Stream;

use super::many::CancelOperations;
use crate::{client::GrpcStack, set::OperationSet};

impl<S: GrpcStack + Sync> OperationSet<S> {
    /// Cancels all operations that are in the set now and are not known to be done, and restarts their delays.
    ///
    /// Returns a stream of reports, as [`cancel_operations`](crate::OperationsClient::cancel_operations) does. It
    /// shares the rate limit of the set, unless you set another. The operations remain in the set: [`next`](Self::next)
    /// returns their outcomes.
    pub fn cancel_all(
        &self,
    ) -> CancelOperations<S, impl Stream<Item = String> + Send + Unpin + use<S>> {
        let names = self.cancel_started();
        let cancel = self.client().cancel_operations(Names(names.into_iter()));
        cancel.limiter(Some(self.limiter()))
    }
}

struct Names(vec::IntoIter<String>);

impl Stream for Names {
    type Item = String;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<String>> {
        Poll::Ready(self.0.next())
    }
}

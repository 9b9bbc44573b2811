//! Driver: the task that makes the calls of a set.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::Notify,
    task::consume_budget,
    time::{Instant, sleep_until},
};
use tonic::{IntoRequest as _, Request};

use super::{
    schedule::{Call, Ended, PollCall, Polled},
    state::State,
    sweep::ListCall,
};
use crate::{
    client::{GrpcStack, OperationsClient},
    poll::{Target, cannot_wait},
    proto::GetOperationRequest,
    rate::RateLimiter,
};

/// The state shared by the handles and the driver of a set.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Notifies consumers of results, and of the end of the last operation.
    pub(super) changed: Notify,
    /// Notifies the driver that there may be a call to make.
    wake: Notify,
}

impl Shared {
    pub(super) fn new(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            changed: Notify::new(),
            wake: Notify::new(),
        }
    }

    /// Reads or changes the state, and then notifies the tasks that wait for the change.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let value = f(&mut state);
        let results = std::mem::take(&mut state.unnotified);
        let is_empty = state.entries.is_empty();
        let must_notify_driver = state.must_notify_driver();
        drop(state);
        if is_empty {
            self.changed.notify_waiters();
        }
        for _ in 0..results {
            self.changed.notify_one();
        }
        if must_notify_driver {
            self.wake.notify_one();
        }
        value
    }
}

/// Makes calls when they are due. Never ends.
pub(super) async fn drive<S: GrpcStack + Sync>(client: OperationsClient<S>, on_drop: RecordDrop) {
    let shared = &on_drop.0;
    let mut calls = FuturesUnordered::new();
    loop {
        let (call, limiter) = shared.with(|state| {
            let call = state.next_call(Instant::now());
            (call, Arc::clone(&state.settings.limiter))
        });
        // The calls of an in-process stack may all complete immediately. Without this, the loop would never yield.
        consume_budget().await;
        let due = match call {
            Ok(call) => {
                calls.push(make(call, client.clone(), limiter));
                continue;
            }
            Err(due) => due,
        };
        tokio::select! {
            Some(ended) = calls.next() => {
                shared.with(|state| state.record(ended, Instant::now()));
            }
            () = shared.wake.notified() => {}
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }
}

/// Records that the driver was dropped, possibly before it was polled: with its runtime, or after a panic of the stack.
///
/// The consumers are notified, because one of them starts the next driver.
pub(super) struct RecordDrop(pub(super) Arc<Shared>);

impl Drop for RecordDrop {
    fn drop(&mut self) {
        self.0.with(|state| state.driver_dropped(Instant::now()));
        self.0.changed.notify_waiters();
    }
}

fn make<S: GrpcStack + Sync>(
    call: Call,
    client: OperationsClient<S>,
    limiter: Arc<RateLimiter>,
) -> Pin<Box<dyn Future<Output = Ended> + Send>> {
    match call {
        Call::Poll(call) => Box::pin(poll(call, client, limiter)),
        Call::List(call) => Box::pin(list(call, client, limiter)),
    }
}

async fn poll<S: GrpcStack + Sync>(
    mut call: PollCall,
    client: OperationsClient<S>,
    limiter: Arc<RateLimiter>,
) -> Ended {
    let request: Request<GetOperationRequest> = (&call.name).into_request();
    let target = Target::new(request, |request| request.name);
    let polled = async {
        let permit = limiter.acquire().await;
        let started = Instant::now();
        let wait = call.may_wait.then(|| client.wait_permit()).flatten();
        let result = match wait {
            Some(_) => target.wait(&client, WAIT_TIMEOUT, None).await,
            None => target.get(&client, None).await,
        };
        limiter.record(permit, &result, call.rejections);
        let waited = wait.is_some();
        if waited && result.as_ref().is_err_and(cannot_wait) {
            client.wait_is_unimplemented();
        }
        Polled {
            waited,
            started,
            result,
        }
    };
    let polled = tokio::select! {
        biased;
        _ = &mut call.aborted => None,
        polled = polled => Some(polled),
    };
    Ended::Poll { call, polled }
}

async fn list<S: GrpcStack + Sync>(
    call: ListCall,
    client: OperationsClient<S>,
    limiter: Arc<RateLimiter>,
) -> Ended {
    let mut request = call.request.clone().into_request();
    client.bound(&mut request, None);
    let permit = limiter.acquire().await;
    let result = client.list_operations(request).await;
    limiter.record(permit, &result, call.rejections);
    Ended::List { call, result }
}

/// For how long WaitOperation makes the server wait.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

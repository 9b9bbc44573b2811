//! Watching many operations until they are done.

mod driver;
mod entry;
mod list_failure;
mod listing;
mod parent;
mod schedule;
mod state;
mod stats;
mod sweep;
mod timers;

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tonic::Status;

use self::{
    driver::{RecordDrop, Shared, drive},
    state::{Driver, Settings, State, Taken},
};
pub use self::{entry::SetEntry, stats::SetStats};
use crate::{
    backoff::Backoff,
    client::{GrpcStack, OperationsClient},
    operation::Operation,
    rate::RateLimiter,
    task::{Task, runtime},
    transport::Transport,
};

impl<S: GrpcStack + Sync> OperationsClient<S> {
    /// Returns a set that watches many operations until they are done.
    ///
    /// See [`OperationSet`].
    pub fn operation_set(&self) -> OperationSet<S> {
        let state = State::new(Settings {
            backoff: Backoff {
                initial: Duration::from_secs(1),
                multiplier: 1.5,
                maximum: Duration::from_secs(20),
            },
            max_untaken: 1_000,
            max_in_flight: 100,
            limiter: Arc::new(RateLimiter::new(f64::INFINITY)),
        });
        OperationSet {
            inner: Arc::new(Inner {
                client: self.clone(),
                shared: Arc::new(Shared::new(state)),
                driver: Mutex::default(),
            }),
        }
    }
}

/// Watches many operations until they are done.
///
/// Operations are inserted at any time, from any clone of the set. All clones share the operations and the settings.
/// [`next`](Self::next) returns each with its result when it is done, or when it cannot be polled any more.
///
/// ```
/// # #[cfg(not(feature = "emulator"))]
/// # fn main() {}
/// # #[cfg(feature = "emulator")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tonic::Status> {
/// # use longrunning::{OperationsClient, emulator::Emulator};
/// # let emulator = Emulator::start().await?;
/// # for n in 0..100 {
/// #     emulator.start_operation(format!("projects/p/operations/{n}"))?;
/// # }
/// # let client = OperationsClient::builder(emulator.endpoint()).connect().await?;
/// let set = client.operation_set();
/// for n in 0..100 {
///     set.insert(format!("projects/p/operations/{n}"));
/// }
/// # for n in 0..100 {
/// #     emulator.complete(&format!("projects/p/operations/{n}"), &())?;
/// # }
/// while let Some((name, result)) = set.next().await {
///     match result {
///         Ok(operation) => println!("{name}: {:?}", operation.outcome()),
///         Err(status) => eprintln!("{name}: {status}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Calls
///
/// The set polls with the method that needs the fewest calls:
///
/// - **`ListOperations`** for operations under a common parent, such as `projects/p/locations/l` for
///   `projects/p/locations/l/operations/1`. One call returns up to 1,000 operations. The set tries it when a parent has
///   2 operations, and counts the pages of each sweep. A sweep reads the whole list of a parent once, page by page. The
///   filter `done=false` is used if it saves pages and the server accepts it.
/// - **`GetOperation`** for the operations that are not listed: if a parent has only one operation in the set, or so
///   many outside it that a sweep does not need fewer calls, if `ListOperations` is rejected, or fails repeatedly while
///   `GetOperation` succeeds, if the server returns repeated page tokens, or if the segment before the last segment of
///   the name is not `operations`. `ListOperations` is retried after 10 minutes, or earlier if it needed too many calls
///   and the number of operations under the parent has doubled. An operation that is missing from a sweep is also
///   polled with `GetOperation`: the set never concludes from a missing entry that an operation is done or deleted.
/// - **`WaitOperation`** for operations that are marked as [urgent](SetEntry::urgent). It responds as soon as the
///   operation is done. The number of these calls in flight is limited to half of
///   [`max_in_flight`](Self::max_in_flight) or of [`max_untaken`](Self::max_untaken), whichever is less, and to the
///   [limit of the client](OperationsClient::max_concurrent_waits). The other urgent operations are polled with
///   `GetOperation`.
///
/// [`stats`](Self::stats) returns the number of calls of each method, and how many operations are listed.
///
/// # Delays
///
/// An operation is first polled within [`initial_delay`](Self::initial_delay). The delay between polls grows by a
/// factor of 1.5 up to [`max_delivery_delay`](Self::max_delivery_delay), so that old operations need few calls. The
/// time between two sweeps is the harmonic mean of the delays of the operations. If this is too late for an operation,
/// for example because it is new, it is polled with `GetOperation` before the next sweep, as long as these polls need
/// no more calls than a sweep, or at most 5.
///
/// Delays are reduced by a random part of up to 20 %, so that the polls of several sets are spread over time. The first
/// delay of an operation that reaches the maximum is fully random, to spread operations that were inserted at the same
/// time. The first poll of an operation that was polled by another set comes after a random part of the delay between
/// its polls; that of an urgent operation, immediately.
///
/// All polls, and the calls of [`cancel_all`](Self::cancel_all), share a rate limit that adapts to the quota of the
/// server, as in [`cancel_operations`](OperationsClient::cancel_operations). A result can be delayed further by
/// this limit, by [`max_in_flight`](Self::max_in_flight), by failures, or by slow consumers: no poll is started while
/// [`max_untaken`](Self::max_untaken) is reached.
///
/// # Failures
///
/// Transient failures, such as `UNAVAILABLE`, `DEADLINE_EXCEEDED` or an exceeded quota, are never returned. The
/// operation is polled again after a delay that grows in the same way, or after a longer delay that the server
/// requests, of up to 1 hour. The retry policy of the client is not used. If `ListOperations` fails 3 times in a row,
/// and `GetOperation` for one of the operations under the parent also fails, the server is probably unavailable, and
/// the other operations under the parent are not polled until one of the methods succeeds.
///
/// The set trusts the server: if a list contains an outdated state, the result is delayed until the list is up to date.
///
/// Any other failure of `GetOperation` is returned by [`next`](Self::next), and the operation is removed from the set.
///
/// # Task
///
/// Calls are made by one task. It is started by the first [`insert`](Self::insert) in a tokio runtime, or else by
/// [`next`](Self::next), and is aborted when the last clone of the set is dropped. If its runtime is shut down, `next`
/// starts another. If that runtime is not driven any more, no calls are made. If your stack panics, the panic is
/// resumed in `next`, and the next call of `next` starts another task. The task does not inherit the span or the
/// task-local values of the caller.
///
/// # Saving
///
/// The set keeps about 200 bytes for each operation in addition to its name. The states of running operations are not
/// kept. To hand operations over to another process, stop the consumers, store the entries that [`iter`](Self::iter)
/// returns, drop all clones of the set, and insert the entries in the other process.
pub struct OperationSet<S = Transport> {
    inner: Arc<Inner<S>>,
}

/// The driver is aborted when this is dropped.
struct Inner<S> {
    client: OperationsClient<S>,
    shared: Arc<Shared>,
    driver: Mutex<Option<Task<()>>>,
}

impl<S: GrpcStack + Sync> OperationSet<S> {
    /// Sets the maximum delay between two polls of an operation.
    ///
    /// A result is usually delivered within this time after the operation is done. The number of calls is inversely
    /// proportional to it. Less than the initial delay is treated as the initial delay.
    ///
    /// Defaults to 20 seconds.
    #[must_use]
    pub fn max_delivery_delay(self, delay: Duration) -> Self {
        self.with(|state| state.settings.backoff.maximum = delay.min(MAX_DELAY));
        self
    }

    /// Sets the delay before the second poll of an operation, and the maximum delay before the first.
    ///
    /// Operations under a parent that is listed are polled by the next sweep, see [Delays](Self#delays).
    ///
    /// Less than 1 millisecond is treated as 1 millisecond.
    ///
    /// Defaults to 1 second.
    #[must_use]
    pub fn initial_delay(self, delay: Duration) -> Self {
        let delay = delay.clamp(Duration::from_millis(1), MAX_DELAY);
        self.with(|state| state.settings.backoff.initial = delay);
        self
    }

    /// Sets the maximum number of results that have not been taken by [`next`](Self::next).
    ///
    /// No poll is started while the number of these results, plus the number of polls in flight, has reached the
    /// maximum. Operations that are already done when they are inserted are always accepted, even beyond the maximum. 0
    /// is treated as 1.
    ///
    /// Defaults to 1,000.
    #[must_use]
    pub fn max_untaken(self, results: usize) -> Self {
        self.with(|state| state.settings.max_untaken = results.max(1));
        self
    }

    /// Sets the maximum number of calls in flight.
    ///
    /// 0 is treated as 1.
    ///
    /// Defaults to 100, the number of streams that Google's front ends allow on a connection.
    #[must_use]
    pub fn max_in_flight(self, calls: usize) -> Self {
        self.with(|state| state.settings.max_in_flight = calls.max(1));
        self
    }

    /// Sets the maximum rate, in calls per second.
    ///
    /// Use it if you know the quota: otherwise, the rate starts at 1,900 calls per second, and is reduced by rejected
    /// calls. Less than 1 is treated as 1.
    ///
    /// Defaults to no maximum, but a rate that adapts to the quota of the server.
    #[must_use]
    pub fn max_rate(self, calls_per_second: f64) -> Self {
        self.with_limiter(Arc::new(RateLimiter::new(calls_per_second)))
    }

    /// Inserts an operation: a name, an [`Operation`], or a [`SetEntry`] of another set.
    ///
    /// Returns `false`, and changes nothing, if the name is already in the set. A name remains in the set until its
    /// result is returned by [`next`](Self::next).
    pub fn insert(&self, operation: impl Into<SetEntry>) -> bool {
        let entry = operation.into();
        let (is_inserted, is_new) = self.with(|state| {
            let is_inserted = state.insert(entry, Instant::now());
            (is_inserted, state.driver == Driver::None)
        });
        if is_new {
            let mut driver = self.driver();
            if driver.is_none() {
                // Without a runtime, `next` starts the driver.
                *driver = self.spawn().ok();
            }
        }
        is_inserted
    }

    /// Returns the next result, or `None` if the set is empty.
    ///
    /// If the set is not empty, waits until an operation is done or can no longer be polled, and removes it from the
    /// set. Each result is returned once, to one caller. `None` is not final: the set can be used again after another
    /// [`insert`](Self::insert). This method is cancel safe.
    ///
    /// # Errors
    ///
    /// The result of an operation is an error if its state cannot be polled:
    ///
    /// - `NOT_FOUND`: the server knows no such operation.
    /// - Any other failure of [`get_operation`](OperationsClient::get_operation) that is not transient, such as
    ///   `PERMISSION_DENIED`.
    /// - `FAILED_PRECONDITION`: there is no tokio runtime.
    /// - `UNAVAILABLE`: the tokio runtime has been shut down.
    pub async fn next(&self) -> Option<(String, Result<Operation, Status>)> {
        let mut starts = 0;
        loop {
            let mut changed = pin!(self.inner.shared.changed.notified());
            // It must not miss a result that is recorded after `take`.
            changed.as_mut().enable();
            match self.with(State::take) {
                Taken::Result(name, result) => return Some((name, result)),
                Taken::Empty => return None,
                Taken::Pending => {}
            }
            match self.start(&mut starts).await {
                Ok(()) => changed.await,
                Err(status) => {
                    let unwatched = self.with(|state| state.take_unwatched(status));
                    if unwatched.is_some() {
                        return unwatched;
                    }
                }
            }
        }
    }

    /// Cancels an operation, and restarts its delays.
    ///
    /// The operation remains in the set: [`next`](Self::next) returns its outcome. To cancel many operations, use
    /// [`cancel_all`](Self::cancel_all) or [`cancel_operations`](OperationsClient::cancel_operations). This is one call
    /// of [`cancel_operation`](OperationsClient::cancel_operation), with the retry policy of the client. The name need
    /// not be in the set.
    ///
    /// # Errors
    ///
    /// Those of [`cancel_operation`](OperationsClient::cancel_operation).
    pub async fn cancel(&self, name: &str) -> Result<(), Status> {
        self.inner.client.cancel_operation(name).await?;
        self.with(|state| state.restart_delays(name, Instant::now()));
        Ok(())
    }

    /// Starts the driver, unless it runs. `starts` counts how often a call of `next` started it.
    async fn start(&self, starts: &mut u32) -> Result<(), Status> {
        let is_running = || self.with(|state| state.driver != Driver::None);
        let ended = {
            // Both under one lock, so that a driver that another consumer starts is not taken.
            let mut driver = self.driver();
            if is_running() {
                return Ok(());
            }
            driver.take()
        };
        // Resumes the panic of a stack.
        if let Some(ended) = ended
            && let Err(status) = ended.await
            && *starts > 0
        {
            return Err(status);
        }
        let mut driver = self.driver();
        if !is_running() {
            *driver = Some(self.spawn()?);
            *starts += 1;
        }
        Ok(())
    }

    fn spawn(&self) -> Result<Task<()>, Status> {
        runtime("an operation set")?;
        let (client, _) = self.inner.client.clone().without_retries();
        let on_drop = RecordDrop(Arc::clone(&self.inner.shared));
        self.with(|state| state.driver = Driver::Running);
        Task::spawn(drive(client, on_drop))
    }
}

impl<S> OperationSet<S> {
    /// Removes an operation. Returns `false` if it is not in the set.
    ///
    /// This does not cancel the operation. If its result has not been taken, the result is discarded.
    pub fn remove(&self, name: &str) -> bool {
        self.with(|state| state.remove(name).is_some())
    }

    /// Returns whether an operation is in the set.
    pub fn contains(&self, name: &str) -> bool {
        self.with(|state| state.index.contains_key(name))
    }

    /// Returns the number of operations in the set, including those whose result has not been taken.
    pub fn len(&self) -> usize {
        self.with(|state| state.entries.len())
    }

    /// Returns whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a snapshot of the operations in the set, in no particular order.
    ///
    /// It includes operations whose result has not been taken, with the [final state](SetEntry::done) if there is one,
    /// so that no result is lost if they are inserted into another set.
    pub fn iter(&self) -> impl Iterator<Item = SetEntry> + use<S> {
        self.with(State::snapshot).into_iter()
    }

    /// Returns the current statistics of the set.
    pub fn stats(&self) -> SetStats {
        self.with(|state| state.stats())
    }

    /// Returns the names of the operations that are not known to be done, and restarts their delays, because they are
    /// cancelled.
    pub(crate) fn cancel_started(&self) -> Vec<String> {
        self.with(|state| {
            let (names, now) = (state.unfinished(), Instant::now());
            for name in &names {
                state.restart_delays(name, now);
            }
            names
        })
    }

    pub(crate) fn client(&self) -> &OperationsClient<S> {
        &self.inner.client
    }

    pub(crate) fn limiter(&self) -> Arc<RateLimiter> {
        self.with(|state| Arc::clone(&state.settings.limiter))
    }

    /// Sets the rate limiter, which can be shared.
    pub(crate) fn with_limiter(self, limiter: Arc<RateLimiter>) -> Self {
        self.with(|state| state.settings.limiter = limiter);
        self
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        self.inner.shared.with(f)
    }

    fn driver(&self) -> MutexGuard<'_, Option<Task<()>>> {
        let driver = self.inner.driver.lock();
        driver.unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Clone for OperationSet<S> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<S> fmt::Debug for OperationSet<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperationSet")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// A delay that never ends, but can be added to an `Instant`.
const MAX_DELAY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

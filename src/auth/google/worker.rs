//! Threads for work that may block or panic.

use std::{fmt, io, thread, time::Duration};

use tokio::{
    sync::{
        Mutex,
        oneshot::{self, error::TryRecvError},
    },
    time::timeout,
};

/// Runs work that may block or panic on a dedicated thread, one job at a time.
///
/// Tokio's blocking threads are not used, because work that hangs there, such as reading a file of
/// a network file system, would also prevent the runtime from shutting down.
///
/// There is at most one thread. Work that exceeds its time limit is left running, and the next
/// [`run`](Self::run) waits until it has ended.
pub(super) struct Worker<T, E> {
    running: Mutex<Option<Running<T, E>>>,
    /// Whether a run that waits for earlier work accepts its result.
    accepts_late: bool,
}

struct Running<T, E> {
    result: oneshot::Receiver<Result<T, E>>,
    /// Closed when the thread ends.
    ended: oneshot::Receiver<()>,
    /// Dropped to cancel the work.
    cancel: Option<oneshot::Sender<()>>,
}

/// Resolves when the result of the work is no longer wanted.
pub(super) type Cancelled = oneshot::Receiver<()>;

/// Why work returned no result.
pub(super) enum Failure {
    TimedOut,
    Panicked,
    NoThread(io::Error),
}

impl<T: Send + 'static, E: Send + 'static> Worker<T, E> {
    pub(super) fn new() -> Self {
        Self {
            running: Mutex::new(None),
            accepts_late: false,
        }
    }

    /// Makes a run that waits for earlier work return the result of that work, if it succeeds.
    pub(super) fn accept_late(mut self) -> Self {
        self.accepts_late = true;
        self
    }

    /// Runs work, and waits for its result until the time limit.
    ///
    /// The second value that `work` returns is dropped on the thread after the result was sent,
    /// because dropping it may block. Dropping the future leaves the work running; dropping the
    /// worker cancels it.
    pub(super) async fn run<D>(
        &self,
        limit: Duration,
        work: impl FnOnce(Cancelled) -> (Result<T, E>, D) + Send + 'static,
    ) -> Result<Result<T, E>, Failure> {
        let mut running = self.running.lock().await;
        let finish = async {
            if let Some(earlier) = &mut *running {
                // A result that arrived before this run may be out of date.
                let is_pending = matches!(earlier.result.try_recv(), Err(TryRecvError::Empty));
                if self.accepts_late
                    && is_pending
                    && let Ok(Ok(value)) = (&mut earlier.result).await
                {
                    return Ok(Ok(value));
                }
                // Nothing is sent: the channel closes when the thread ends.
                let _ = (&mut earlier.ended).await;
                // Removed before the next thread is started, which may fail: it must not be awaited twice.
                *running = None;
            }
            let started = running.insert(start(work).map_err(Failure::NoThread)?);
            (&mut started.result).await.map_err(|_| Failure::Panicked)
        };
        if let Ok(result) = timeout(limit, finish).await {
            return result;
        }
        if let Some(running) = &mut *running {
            running.cancel = None;
        }
        Err(Failure::TimedOut)
    }
}

fn start<T: Send + 'static, E: Send + 'static, D>(
    work: impl FnOnce(Cancelled) -> (Result<T, E>, D) + Send + 'static,
) -> io::Result<Running<T, E>> {
    let (sender, result) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let (cancel, cancelled) = oneshot::channel();
    thread::Builder::new()
        .name("longrunning-auth".to_owned())
        .spawn(move || {
            // Declared first, so that it is dropped after `_rest`.
            let _end: oneshot::Sender<()> = end;
            let (result, _rest) = work(cancelled);
            // An error means that the worker was dropped.
            let _ = sender.send(result);
        })?;
    Ok(Running {
        result,
        ended,
        cancel: Some(cancel),
    })
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("no result in time"),
            Self::Panicked => f.write_str("the work panicked: this is a bug"),
            Self::NoThread(error) => write!(f, "cannot start a thread: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(50);

    /// Returns work that ends when its sender is dropped.
    #[allow(clippy::type_complexity)]
    fn blocked(
        result: u8,
    ) -> (
        mpsc::Sender<()>,
        impl FnOnce(Cancelled) -> (Result<u8, ()>, ()),
    ) {
        let (release, released) = mpsc::channel();
        let work = move |_: Cancelled| {
            let _ = released.recv();
            (Ok(result), ())
        };
        (release, work)
    }

    fn unused(_: Cancelled) -> (Result<u8, ()>, ()) {
        unreachable!("a second thread")
    }

    #[tokio::test]
    async fn no_second_thread_is_started_while_one_is_blocked() {
        let worker = Worker::new().accept_late();
        let (release, work) = blocked(2);
        let outcome = worker.run(SHORT, work).await;
        assert!(matches!(outcome, Err(Failure::TimedOut)));
        let outcome = worker.run(SHORT, unused).await;
        assert!(matches!(outcome, Err(Failure::TimedOut)));
        let late = worker.run(LIMIT, unused);
        let release = async {
            tokio::time::sleep(SHORT).await;
            drop(release);
        };
        let (late, ()) = tokio::join!(late, release);
        assert!(matches!(late, Ok(Ok(2))));
        let outcome = worker.run(LIMIT, |_| (Ok(3), ())).await;
        assert!(matches!(outcome, Ok(Ok(3))));
    }

    #[tokio::test]
    async fn a_result_that_arrives_between_two_runs_is_discarded() {
        let worker = Worker::new().accept_late();
        let (release, work) = blocked(1);
        let outcome = worker.run(SHORT, work).await;
        assert!(matches!(outcome, Err(Failure::TimedOut)));
        drop(release);
        let has_ended = async {
            while worker
                .running
                .lock()
                .await
                .as_ref()
                .is_some_and(|it| it.result.is_empty())
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LIMIT, has_ended).await.unwrap();
        let outcome = worker.run(LIMIT, |_| (Ok(2), ())).await;
        assert!(matches!(outcome, Ok(Ok(2))));
    }

    #[tokio::test]
    async fn the_late_result_of_cancelled_work_is_discarded() {
        let worker = Worker::new();
        let cancelled = |cancelled: Cancelled| {
            let _ = cancelled.blocking_recv();
            (Ok::<_, ()>(1), ())
        };
        let outcome = worker.run(SHORT, cancelled).await;
        assert!(matches!(outcome, Err(Failure::TimedOut)));
        let outcome = worker.run(LIMIT, |_| (Ok(2), ())).await;
        assert!(matches!(outcome, Ok(Ok(2))));
    }

    #[tokio::test]
    async fn the_result_does_not_wait_for_what_is_dropped_afterwards() {
        struct BlocksOnDrop(mpsc::Receiver<()>);
        impl Drop for BlocksOnDrop {
            fn drop(&mut self) {
                let _ = self.0.recv();
            }
        }
        let worker = Worker::<_, ()>::new();
        let (release, released) = mpsc::channel();
        let work = move |_: Cancelled| (Ok(1), BlocksOnDrop(released));
        assert!(matches!(worker.run(LIMIT, work).await, Ok(Ok(1))));
        // But the next run does.
        let outcome = worker.run(SHORT, unused).await;
        assert!(matches!(outcome, Err(Failure::TimedOut)));
        drop(release);
        let outcome = worker.run(LIMIT, |_| (Ok(2), ())).await;
        assert!(matches!(outcome, Ok(Ok(2))));
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_own_work() {
        struct PanicsOnDrop;
        impl Drop for PanicsOnDrop {
            fn drop(&mut self) {
                panic!("the test panics");
            }
        }
        let worker = Worker::<u8, ()>::new();
        let panics = |_: Cancelled| -> (Result<u8, ()>, ()) { panic!("the test panics") };
        let outcome = worker.run(LIMIT, panics).await;
        assert!(matches!(outcome, Err(Failure::Panicked)));
        let outcome = worker.run(LIMIT, |_| (Ok(1), PanicsOnDrop)).await;
        assert!(matches!(outcome, Ok(Ok(1))));
        let outcome = worker.run(LIMIT, |_| (Ok(2), ())).await;
        assert!(matches!(outcome, Ok(Ok(2))));
    }

    #[tokio::test]
    async fn a_dropped_worker_cancels_its_work() {
        let (ended, has_ended) = mpsc::channel();
        let worker = Worker::<(), ()>::new();
        let work = move |cancelled: Cancelled| {
            ended.send(cancelled.blocking_recv()).unwrap();
            (Ok(()), ())
        };
        let mut run = Box::pin(worker.run(LIMIT, work));
        assert!(futures_util::poll!(&mut run).is_pending());
        drop(run);
        drop(worker);
        assert!(has_ended.recv_timeout(LIMIT).unwrap().is_err());
    }
}

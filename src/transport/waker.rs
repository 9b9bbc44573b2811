//! Wakers of the task of a connection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Wake},
};

use futures_util::task::AtomicWaker;
use tokio::runtime;

/// A handle to the task of a connection, for the pool. It is also the waker of HTTP/2 and of the timer.
///
/// A wake-up that comes while the task is polled does not schedule the task: the task checks
/// `woken` before it returns. No wake-up is lost, because each side writes its own flag before it
/// reads the other's, all with sequential consistency: the waker sets `woken` and then reads
/// `polled`, the task clears `polled` and then reads `woken`.
#[derive(Debug)]
pub(crate) struct ConnectionHandle {
    pub(crate) id: u64,
    /// The runtime that drives the task.
    runtime: runtime::Id,
    task: AtomicWaker,
    /// Whether the task is being polled.
    polled: AtomicBool,
    woken: AtomicBool,
    /// Whether the pool wants the task to take calls.
    take_requested: AtomicBool,
}

impl ConnectionHandle {
    pub(crate) fn new(id: u64, runtime: runtime::Id) -> Arc<Self> {
        Arc::new(Self {
            id,
            runtime,
            task: AtomicWaker::new(),
            polled: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            take_requested: AtomicBool::new(true),
        })
    }

    pub(crate) fn runtime(&self) -> runtime::Id {
        self.runtime
    }

    /// Registers the task's waker without polling anything.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.task.register(cx.waker());
    }

    /// Notes that the task is being polled.
    pub(crate) fn start_poll(&self, cx: &Context<'_>) {
        self.register(cx);
        self.polled.store(true, Ordering::SeqCst);
    }

    /// Notes that the task is about to return. Returns whether it was woken meanwhile, and has to
    /// go on.
    pub(crate) fn finish_poll(&self) -> bool {
        self.polled.store(false, Ordering::SeqCst);
        self.take_woken()
    }

    /// Returns whether there was a wake-up since the last call of this.
    pub(crate) fn take_woken(&self) -> bool {
        self.woken.swap(false, Ordering::SeqCst)
    }

    /// Requests that the task takes calls from the pool when it is polled next.
    pub(crate) fn request_take(&self) {
        self.take_requested.store(true, Ordering::Release);
    }

    /// Returns whether the task has to take calls, and clears the request.
    pub(crate) fn take_requested(&self) -> bool {
        self.take_requested.swap(false, Ordering::AcqRel)
    }

    fn schedule_unless_polled(&self) {
        if !self.polled.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

impl Wake for ConnectionHandle {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.schedule_unless_polled();
    }
}

/// Wakes the task of a connection for its exchanges.
///
/// It has a separate flag: exchanges that are woken while HTTP/2 is polled are polled in the same round,
/// and so cause no further round. The order of its accesses is that of [`ConnectionHandle`].
#[derive(Debug)]
pub(crate) struct ExchangeWaker {
    handle: Arc<ConnectionHandle>,
    woken: AtomicBool,
}

impl ExchangeWaker {
    pub(crate) fn new(handle: Arc<ConnectionHandle>) -> Arc<Self> {
        Arc::new(Self {
            handle,
            woken: AtomicBool::new(false),
        })
    }

    /// Returns whether an exchange was woken since the last call of this.
    pub(crate) fn take_woken(&self) -> bool {
        self.woken.swap(false, Ordering::SeqCst)
    }
}

impl Wake for ExchangeWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.handle.schedule_unless_polled();
    }
}

//! Wake-ups of the task of a connection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Wake},
};

use futures_util::task::AtomicWaker;
use tokio::runtime;

/// Wakes the task of a connection.
///
/// It is the waker of HTTP/2 and of the timer. What is woken while the task runs does not have it
/// scheduled: the task sees that before it returns.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) id: u64,
    /// The runtime that drives it.
    runtime: runtime::Id,
    waker: AtomicWaker,
    runs: AtomicBool,
    /// Whether something was woken.
    woken: AtomicBool,
    /// Whether the task has to take calls from the pool.
    called: AtomicBool,
}

impl Handle {
    pub(crate) fn new(id: u64, runtime: runtime::Id) -> Arc<Self> {
        Arc::new(Self {
            id,
            runtime,
            waker: AtomicWaker::new(),
            runs: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            called: AtomicBool::new(true),
        })
    }

    pub(crate) fn runtime(&self) -> runtime::Id {
        self.runtime
    }

    /// The task runs from now on.
    pub(crate) fn begin(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
        self.runs.store(true, Ordering::SeqCst);
    }

    /// The task does not run any more. Returns whether it has to, because something was woken.
    pub(crate) fn end(&self) -> bool {
        self.runs.store(false, Ordering::SeqCst);
        self.take_woken()
    }

    /// Returns whether something was woken since this was asked last.
    pub(crate) fn take_woken(&self) -> bool {
        self.woken.swap(false, Ordering::SeqCst)
    }

    /// Makes the task take calls from the pool the next time it runs.
    pub(crate) fn call(&self) {
        self.called.store(true, Ordering::Release);
    }

    pub(crate) fn take_called(&self) -> bool {
        self.called.swap(false, Ordering::AcqRel)
    }
}

impl Wake for Handle {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In this order, so that the task sees it if it is about to return.
        self.woken.store(true, Ordering::SeqCst);
        if !self.runs.load(Ordering::SeqCst) {
            self.waker.wake();
        }
    }
}

/// Wakes the task of a connection for its exchanges.
///
/// It is apart from the [`Handle`], so that a task which has polled its exchanges need not poll
/// HTTP/2 once more.
#[derive(Debug)]
pub(crate) struct ExchangeWaker {
    handle: Arc<Handle>,
    woken: AtomicBool,
}

impl ExchangeWaker {
    pub(crate) fn new(handle: Arc<Handle>) -> Arc<Self> {
        let woken = AtomicBool::new(false);
        Arc::new(Self { handle, woken })
    }

    /// Returns whether an exchange was woken since this was asked last.
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
        if !self.handle.runs.load(Ordering::SeqCst) {
            self.handle.waker.wake();
        }
    }
}

//! Servers that the tests script: over real sockets, each on a thread and a runtime of its own.

#![allow(dead_code)] // each test file uses its part

pub(crate) mod proxy;
pub(crate) mod server;
pub(crate) mod wire;

use std::{
    cell::RefCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

/// A runtime on its own thread, that runs one future until it is stopped or the future ends.
///
/// Dropped, it ends everything on it at once, sockets included, and passes on a panic of its own.
pub(crate) struct Stage {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    panicked: Arc<AtomicBool>,
}

impl Stage {
    pub(crate) fn run<F>(future: F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        let panicked = Arc::<AtomicBool>::default();
        let noted = panicked.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            NOTE.set(Some(Note(noted)));
            runtime.block_on(async {
                tokio::select! {
                    () = future => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
            panicked,
        }
    }
}

thread_local! {
    static NOTE: RefCell<Option<Note>> = const { RefCell::new(None) };
}

/// Where it is noted that something panicked on this thread.
#[derive(Clone)]
struct Note(Arc<AtomicBool>);

impl Drop for Note {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

/// Spawns a task on a stage: its panic is the stage's.
pub(crate) fn spawn<F>(task: F)
where
    F: Future<Output: Send> + Send + 'static,
{
    let note = NOTE.with_borrow(Clone::clone);
    tokio::spawn(async move {
        let _note = note;
        task.await
    });
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            let panicked = ended.is_err() || self.panicked.load(Ordering::SeqCst);
            assert!(!panicked || thread::panicking(), "the server panicked");
        }
    }
}

/// Waits until something holds, and fails with its name if it does not within 10 seconds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The least, the middle and the largest of some times.
pub(crate) fn summary(times: &Mutex<Vec<Duration>>) -> String {
    let mut times = times.lock().expect("no panic").clone();
    times.sort_unstable();
    match times.len() {
        0 => "none".to_owned(),
        n => format!(
            "min {:?}, median {:?}, p99 {:?}, max {:?}",
            times[0],
            times[n / 2],
            times[n * 99 / 100],
            times[n - 1]
        ),
    }
}

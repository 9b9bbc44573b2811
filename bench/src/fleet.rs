//! The server and the runtime of the measurements with many operations.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use longrunning::emulator::Emulator;
use tokio::runtime;

use crate::Result;

/// An emulator on a dedicated thread.
pub(crate) struct Server {
    pub(crate) emulator: Arc<Emulator>,
    stop: mpsc::Sender<()>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Starts an emulator with the given operations.
    pub(crate) fn start(max_streams: usize, names: impl Iterator<Item = String>) -> Result<Self> {
        let (started, emulator) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let thread = thread::spawn(move || {
            let builder = Emulator::builder().max_concurrent_streams(max_streams);
            let _ = started.send(runtime.block_on(builder.start()));
            let _: Result<(), _> = stopped.recv();
        });
        let emulator = emulator.recv()??;
        for name in names {
            emulator.start_operation(name)?;
        }
        Ok(Self {
            emulator: Arc::new(emulator),
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Returns a runtime of one thread, the current one.
pub(crate) fn runtime() -> Result<runtime::Runtime> {
    Ok(runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

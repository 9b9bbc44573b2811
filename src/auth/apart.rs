//! Threads for what may hang: reading files, and the system's look-up of names.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use tokio::sync::oneshot;
use tonic::Status;

use super::failure::{panicked, unavailable};

/// Runs on a thread of its own what would hold up the runtime's.
///
/// Not on tokio's blocking threads: a file system that hangs would then hold up the end of the
/// runtime, too.
///
/// # Errors
///
/// `UNAVAILABLE`: there is no thread for it, or so many hang that another would, too.
pub(super) async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let place = Place::take()?;
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new()
        .name("longrunning-auth".to_owned())
        .spawn(move || {
            let _place = place;
            drop(sender.send(work()));
        })
        .map_err(|error| unavailable(format_args!("cannot start a thread: {error}")))?;
    receiver.await.map_err(|_| panicked())
}

/// A thread's place among those that may be under way at once.
struct Place;

impl Place {
    /// Many clients start at once; one that hangs is tried again and again.
    const MOST: usize = 64;

    fn take() -> Result<Self, Status> {
        let place = Self; // given back with an error, too
        match UNDER_WAY.fetch_add(1, Ordering::Relaxed) < Self::MOST {
            true => Ok(place),
            false => Err(unavailable(
                "earlier reads of files hang: is a file system away?",
            )),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Of the whole process, as threads are.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

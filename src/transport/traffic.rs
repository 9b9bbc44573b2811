//! Whether anything moves on a connection.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Counts the reads that brought something, and the writes that took something.
///
/// The numbers mean nothing by themselves: one that has not changed since it was noted says that
/// nothing has moved since.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    reads: AtomicUsize,
    writes: AtomicUsize,
    /// The first bytes that came, for they tell who is there when it is no HTTP/2 server.
    greeting: OnceLock<Vec<u8>>,
}

impl Traffic {
    /// What the server speaks, as its first bytes show, where that is not HTTP/2.
    pub(crate) fn foreign(&self) -> Option<&'static str> {
        const TLS_ALERT: &[u8] = &[21, 3];
        let greeting = self.greeting.get()?;
        if greeting.starts_with(b"HTTP/1") {
            return Some("the server speaks HTTP/1, and gRPC needs HTTP/2");
        }
        let tls = greeting.starts_with(TLS_ALERT);
        tls.then_some("the server speaks TLS: write https:// in the endpoint")
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::Acquire)
    }

    pub(crate) fn writes(&self) -> usize {
        self.writes.load(Ordering::Acquire)
    }
}

/// A byte stream whose traffic is counted.
#[derive(Debug)]
pub(crate) struct Counted<T> {
    io: T,
    traffic: Arc<Traffic>,
}

impl<T> Counted<T> {
    pub(crate) fn new(io: T) -> (Self, Arc<Traffic>) {
        let traffic = Arc::<Traffic>::default();
        let counted = Self {
            io,
            traffic: traffic.clone(),
        };
        (counted, traffic)
    }

    fn written(&self, written: io::Result<usize>) -> io::Result<usize> {
        if !matches!(written, Ok(0) | Err(_)) {
            self.traffic.writes.fetch_add(1, Ordering::AcqRel);
        }
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let new = &buf.filled()[before..];
        if !new.is_empty() && self.traffic.reads.fetch_add(1, Ordering::AcqRel) == 0 {
            let greeting = new[..new.len().min(8)].to_vec();
            let _ = self.traffic.greeting.set(greeting);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        Poll::Ready(self.written(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs));
        Poll::Ready(self.written(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

//! A byte stream that counts its reads and writes.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The shared state of a connection's byte stream.
///
/// Only differences of the counts have a meaning: a count that has not changed since it was read shows
/// that no byte was transferred since.
#[derive(Debug, Default)]
pub(crate) struct IoState {
    reads: AtomicUsize,
    writes: AtomicUsize,
    /// Whether the socket did not accept the last write.
    blocked: AtomicBool,
    /// The first bytes of the peer. They identify a server that does not speak HTTP/2.
    greeting: OnceLock<Vec<u8>>,
}

impl IoState {
    /// Returns an error message if the server's first bytes show that it does not speak HTTP/2.
    pub(crate) fn foreign_protocol(&self) -> Option<&'static str> {
        const TLS_ALERT: &[u8] = &[21, 3];
        let greeting = self.greeting.get()?;
        if greeting.starts_with(b"HTTP/1") {
            return Some("the server speaks HTTP/1, and gRPC needs HTTP/2");
        }
        let tls = greeting.starts_with(TLS_ALERT);
        tls.then_some("the server speaks TLS: write https:// in the endpoint")
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    pub(crate) fn writes(&self) -> usize {
        self.writes.load(Ordering::Relaxed)
    }

    pub(crate) fn is_write_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }
}

/// A byte stream that updates an [`IoState`].
#[derive(Debug)]
pub(crate) struct CountedIo<T> {
    io: T,
    state: Arc<IoState>,
}

impl<T> CountedIo<T> {
    pub(crate) fn new(io: T) -> (Self, Arc<IoState>) {
        let state = Arc::<IoState>::default();
        let counted = Self {
            io,
            state: state.clone(),
        };
        (counted, state)
    }

    fn written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.state
            .blocked
            .store(written.is_pending(), Ordering::Relaxed);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.state.writes.fetch_add(1, Ordering::Relaxed);
        }
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for CountedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let new = &buf.filled()[before..];
        if !new.is_empty() && self.state.reads.fetch_add(1, Ordering::Relaxed) == 0 {
            let greeting = new[..new.len().min(8)].to_vec();
            let _ = self.state.greeting.set(greeting);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for CountedIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.written(written)
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

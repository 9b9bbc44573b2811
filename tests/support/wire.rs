//! HTTP/2 frame by frame, for servers that no sound library would be.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout_at},
};

use super::Stage;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// The setting for how many streams a client may open.
pub(crate) const MAX_STREAMS: u16 = 3;

/// gRPC's framing of a message of no bytes, as CancelOperation answers.
pub(crate) const EMPTY: &[u8] = &[0, 0, 0, 0, 0];

/// A byte stream: TCP, or TLS over it.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A server on a free port of the loopback, that does with each connection what it is told to.
pub(crate) struct Listener {
    pub(crate) addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    _stage: Stage,
}

impl Listener {
    /// Runs the script on each connection. It is told how many were before.
    pub(crate) fn start<F>(script: impl Fn(usize, TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let addr = listener.local_addr().expect("a bound socket");
        let accepted = Arc::<AtomicUsize>::default();
        let counter = accepted.clone();
        let stage = Stage::run(async move {
            let listener = TcpListener::from_std(listener).expect("a socket");
            loop {
                let (io, _) = listener.accept().await.expect("a connection");
                io.set_nodelay(true).expect("a socket");
                // A client that goes away is no failure of the script.
                super::spawn(script(counter.fetch_add(1, Ordering::SeqCst), io));
            }
        });
        Self {
            addr,
            accepted,
            _stage: stage,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// A frame as it came.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// The server's end of an HTTP/2 connection.
pub(crate) struct Peer<T = TcpStream> {
    pub(crate) io: T,
    /// What was read and is no whole frame yet.
    buffer: BytesMut,
    /// Whether pings and settings are acknowledged.
    pub(crate) pongs: bool,
    /// Pings that came.
    pub(crate) pings: usize,
}

impl<T: Io> Peer<T> {
    /// Reads the client's preface, and says nothing.
    pub(crate) async fn silent(mut io: T) -> io::Result<Self> {
        let mut preface = [0; 24];
        io.read_exact(&mut preface).await?;
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        Ok(Self {
            io,
            buffer: BytesMut::new(),
            pongs: true,
            pings: 0,
        })
    }

    /// Reads the client's preface, and allows 100 streams.
    pub(crate) async fn accept(io: T) -> io::Result<Self> {
        Self::accept_with(io, 100).await
    }

    pub(crate) async fn accept_with(io: T, streams: u32) -> io::Result<Self> {
        let mut peer = Self::silent(io).await?;
        peer.settings(&[(MAX_STREAMS, streams)]).await?;
        Ok(peer)
    }

    pub(crate) async fn settings(&mut self, settings: &[(u16, u32)]) -> io::Result<()> {
        let mut payload = Vec::new();
        for (key, value) in settings {
            payload.extend_from_slice(&key.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        self.frame(SETTINGS, 0, 0, &payload).await
    }

    pub(crate) async fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.io.write_all(&frame).await?;
        self.io.flush().await
    }

    fn buffered(&mut self) -> Option<Frame> {
        let &[a, b, c, kind, flags, ref stream @ ..] = self.buffer.first_chunk::<9>()?;
        let (stream, length) = (
            u32::from_be_bytes(*stream),
            u32::from_be_bytes([0, a, b, c]),
        );
        let end = 9 + length as usize;
        let whole = self.buffer.len() >= end;
        whole.then(|| Frame {
            kind,
            flags,
            stream,
            payload: self.buffer.split_to(end)[9..].to_vec(),
        })
    }

    /// Reads the next frame. Settings and pings are not returned, but acknowledged. It may be
    /// dropped and called again.
    pub(crate) async fn next(&mut self) -> io::Result<Frame> {
        loop {
            match self.buffered() {
                Some(frame) => match self.acknowledge(frame).await? {
                    Some(frame) => return Ok(frame),
                    None => continue,
                },
                None => self.read().await?,
            }
        }
    }

    /// Reads the next frame; `None` if there is none until this instant.
    pub(crate) async fn next_until(&mut self, end: Instant) -> io::Result<Option<Frame>> {
        loop {
            match self.buffered() {
                Some(frame) => match self.acknowledge(frame).await? {
                    Some(frame) => return Ok(Some(frame)),
                    None => continue,
                },
                // Nothing is lost if the read is cancelled.
                None => match timeout_at(end, self.read()).await {
                    Ok(read) => read?,
                    Err(_) => return Ok(None),
                },
            }
        }
    }

    async fn read(&mut self) -> io::Result<()> {
        match self.io.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Acknowledges pings and settings; returns any other frame.
    async fn acknowledge(&mut self, frame: Frame) -> io::Result<Option<Frame>> {
        match (frame.kind, frame.flags & ACK) {
            (SETTINGS, 0) if self.pongs => self.frame(SETTINGS, ACK, 0, &[]).await?,
            (SETTINGS, _) => {}
            (PING, 0) => {
                self.pings += 1;
                if self.pongs {
                    self.frame(PING, ACK, 0, &frame.payload).await?;
                }
            }
            _ => return Ok(Some(frame)),
        }
        Ok(None)
    }

    /// Reads up to the end of a request; returns its stream.
    pub(crate) async fn call(&mut self) -> io::Result<u32> {
        loop {
            let frame = self.next().await?;
            if matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0 {
                return Ok(frame.stream);
            }
        }
    }

    /// Reads up to the head of a request; returns its stream.
    pub(crate) async fn call_head(&mut self) -> io::Result<u32> {
        loop {
            let frame = self.next().await?;
            if frame.kind == HEADERS {
                return Ok(frame.stream);
            }
        }
    }

    /// Sends the head of a gRPC response.
    pub(crate) async fn head(&mut self, stream: u32) -> io::Result<()> {
        self.headers(stream, 0, &[(":status", "200"), CONTENT_TYPE])
            .await
    }

    pub(crate) async fn headers(
        &mut self,
        stream: u32,
        flags: u8,
        headers: &[(&str, &str)],
    ) -> io::Result<()> {
        let block = hpack(headers);
        // A header list longer than a frame goes on in CONTINUATION frames.
        let mut parts = block.chunks(16_384).peekable();
        let mut kind = HEADERS;
        let mut flags = flags;
        while let Some(part) = parts.next() {
            let end = if parts.peek().is_none() {
                END_HEADERS
            } else {
                0
            };
            self.frame(kind, flags | end, stream, part).await?;
            (kind, flags) = (9, 0);
        }
        Ok(())
    }

    pub(crate) async fn data(&mut self, stream: u32, bytes: &[u8]) -> io::Result<()> {
        self.frame(DATA, 0, stream, bytes).await
    }

    /// Sends trailers with a status.
    pub(crate) async fn status(&mut self, stream: u32, code: &str) -> io::Result<()> {
        self.headers(stream, END_STREAM, &[("grpc-status", code)])
            .await
    }

    /// Answers a call with success.
    pub(crate) async fn answer(&mut self, stream: u32) -> io::Result<()> {
        self.head(stream).await?;
        self.data(stream, EMPTY).await?;
        self.status(stream, "0").await
    }

    pub(crate) async fn reset(&mut self, stream: u32, code: u32) -> io::Result<()> {
        self.frame(RST_STREAM, 0, stream, &code.to_be_bytes()).await
    }

    pub(crate) async fn goaway(&mut self, last: u32, code: u32, debug: &str) -> io::Result<()> {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(debug.as_bytes());
        self.frame(GOAWAY, 0, 0, &payload).await
    }

    /// Answers every call from now on.
    pub(crate) async fn serve(&mut self) -> io::Result<()> {
        loop {
            let stream = self.call().await?;
            self.answer(stream).await?;
        }
    }

    /// Reads for so long whatever comes, and answers nothing but settings and pings.
    pub(crate) async fn ignore(&mut self, time: Duration) -> io::Result<()> {
        tokio::select! {
            () = sleep(time) => Ok(()),
            end = async {
                loop {
                    self.next().await?;
                }
            } => end,
        }
    }
}

pub(crate) const CONTENT_TYPE: (&str, &str) = ("content-type", "application/grpc");

/// Headers as HPACK literals that are not indexed, see RFC 7541, section 6.2.2.
fn hpack(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let string = |block: &mut Vec<u8>, text: &str| {
        let mut length = text.len();
        if length < 127 {
            block.push(u8::try_from(length).expect("below 127"));
        } else {
            block.push(127);
            length -= 127;
            while length >= 128 {
                block.push(u8::try_from(length % 128 + 128).expect("below 256"));
                length /= 128;
            }
            block.push(u8::try_from(length).expect("below 128"));
        }
        block.extend_from_slice(text.as_bytes());
    };
    for (name, value) in headers {
        block.push(0);
        string(&mut block, name);
        string(&mut block, value);
    }
    block
}

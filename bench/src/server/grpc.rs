//! Just enough of HTTP/2 to answer any unary call with an empty message and OK.
//!
//! Headers are not decoded: a request counts once its message is whole and looks like one. The
//! answers are so small that no window of a client matters, and what is unusual ends the
//! connection. It is no server for anything else.

use std::{collections::VecDeque, future::pending, io, sync::atomic::Ordering::Relaxed};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep_until},
};

use super::{Counts, Io};
use crate::plan::Plan;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const MAX_CONCURRENT_STREAMS: u16 = 3;
const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;

/// What the client may send before it is given more.
const WINDOW: u32 = 1 << 30;

/// `:status: 200`, `content-type: application/grpc`; and `grpc-status: 0`. The first time they
/// enter the client's table, as a real server's do, where later answers find them.
const FIRST_HEAD: &[u8] = b"\x88\x5f\x10application/grpc";
const FIRST_TRAILERS: &[u8] = b"\x40\x0bgrpc-status\x010";
const HEAD: &[u8] = b"\x88\xbf";
const TRAILERS: &[u8] = b"\xbe";
const EMPTY_MESSAGE: &[u8] = &[0; 5];

pub(super) async fn serve(mut io: impl Io, plan: &Plan, counts: &Counts) -> io::Result<()> {
    let mut input = BytesMut::with_capacity(256 << 10);
    while input.len() < PREFACE.len() {
        if io.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    }
    if !input.starts_with(PREFACE) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    input.advance(PREFACE.len());
    let mut connection = Connection::new(plan);
    loop {
        connection.take_in(&mut input, counts)?;
        connection.answer();
        io.write_all(&connection.output).await?;
        io.flush().await?;
        connection.output.clear();
        input.reserve(128 << 10);
        let due = connection.due();
        tokio::select! {
            read = io.read_buf(&mut input) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                counts.bytes.fetch_add(read as u64, Relaxed);
            }
            () = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => pending().await,
                }
            } => {}
        }
    }
}

struct Connection<'a> {
    plan: &'a Plan,
    output: Vec<u8>,
    /// Calls to answer, and when.
    waiting: VecDeque<(Instant, u32)>,
    open: u32,
    answered: bool,
    /// What the client has sent of its window.
    used: u32,
}

impl<'a> Connection<'a> {
    fn new(plan: &'a Plan) -> Self {
        let mut this = Self {
            plan,
            output: Vec::with_capacity(256 << 10),
            waiting: VecDeque::new(),
            open: 0,
            answered: false,
            used: 0,
        };
        let mut settings = Vec::new();
        if plan.streams > 0 {
            settings.extend(MAX_CONCURRENT_STREAMS.to_be_bytes());
            settings.extend(plan.streams.to_be_bytes());
        }
        this.frame(SETTINGS, 0, 0, &settings);
        this.frame(WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
        this
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
        self.output.extend(length);
        self.output.extend([kind, flags]);
        self.output.extend(stream.to_be_bytes());
        self.output.extend(payload);
    }

    fn take_in(&mut self, input: &mut BytesMut, counts: &Counts) -> io::Result<()> {
        while let Some(&[a, b, c, kind, flags, s1, s2, s3, s4]) = input.first_chunk() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if input.len() < 9 + length {
                break;
            }
            let stream = u32::from_be_bytes([s1, s2, s3, s4]);
            input.advance(9);
            let payload = input.split_to(length);
            match kind {
                HEADERS => self.open(stream, flags)?,
                DATA => self.data(stream, flags, &payload, counts),
                RST_STREAM => {
                    self.open = self.open.saturating_sub(1);
                    self.waiting.retain(|&(_, waiting)| waiting != stream);
                }
                SETTINGS if flags & ACK == 0 => self.frame(SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => self.frame(PING, ACK, 0, &payload),
                _ => {}
            }
        }
        Ok(())
    }

    fn open(&mut self, stream: u32, flags: u8) -> io::Result<()> {
        if flags & END_STREAM != 0 {
            return Err(io::Error::other(format!("stream {stream} has no message")));
        }
        self.open += 1;
        if self.plan.streams > 0 && self.open > self.plan.streams {
            self.reset(stream, REFUSED_STREAM);
        }
        Ok(())
    }

    fn data(&mut self, stream: u32, flags: u8, payload: &[u8], counts: &Counts) {
        self.used += payload.len() as u32;
        if self.used > WINDOW / 2 {
            self.frame(WINDOW_UPDATE, 0, 0, &self.used.to_be_bytes());
            self.used = 0;
        }
        // The end of the stream may come in an empty frame of its own.
        if !payload.is_empty() && !is_cancel(payload) {
            return self.reset(stream, PROTOCOL_ERROR);
        }
        if flags & END_STREAM != 0 {
            counts.calls.fetch_add(1, Relaxed);
            let due = Instant::now() + self.plan.delay;
            self.waiting.push_back((due, stream));
        }
    }

    fn reset(&mut self, stream: u32, reason: u32) {
        self.open = self.open.saturating_sub(1);
        self.frame(RST_STREAM, 0, stream, &reason.to_be_bytes());
    }

    fn due(&self) -> Option<Instant> {
        self.waiting.front().map(|&(due, _)| due)
    }

    fn answer(&mut self) {
        let now = Instant::now();
        while let Some((_, stream)) = self.waiting.pop_front_if(|&mut (due, _)| due <= now) {
            self.open = self.open.saturating_sub(1);
            let (head, trailers) = match self.answered {
                true => (HEAD, TRAILERS),
                false => (FIRST_HEAD, FIRST_TRAILERS),
            };
            self.answered = true;
            self.frame(HEADERS, END_HEADERS, stream, head);
            self.frame(DATA, 0, stream, EMPTY_MESSAGE);
            self.frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers);
        }
    }
}

/// Whether it is one message, not compressed, whose first field is a string.
fn is_cancel(payload: &[u8]) -> bool {
    match payload.split_at_checked(5) {
        Some(([0, length @ ..], message)) => {
            let length: [u8; 4] = [length[0], length[1], length[2], length[3]];
            u32::from_be_bytes(length) as usize == message.len() && message.first() == Some(&0x0a)
        }
        _ => false,
    }
}

//! Just enough of HTTP/1.1 to answer any request with an empty JSON object.

use std::{io, sync::atomic::Ordering::Relaxed};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::sleep,
};

use super::{Counts, Io};
use crate::plan::Plan;

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";

pub(super) async fn serve(mut io: impl Io, plan: &Plan, counts: &Counts) -> io::Result<()> {
    let mut input = BytesMut::with_capacity(16 << 10);
    loop {
        while let Some(length) = request(&input) {
            input.advance(length);
            counts.calls.fetch_add(1, Relaxed);
            if !plan.delay.is_zero() {
                sleep(plan.delay).await;
            }
            io.write_all(ANSWER).await?;
        }
        input.reserve(16 << 10);
        let read = io.read_buf(&mut input).await?;
        if read == 0 {
            return Ok(());
        }
        counts.bytes.fetch_add(read as u64, Relaxed);
    }
}

/// The length of the first request, once all of it is there.
fn request(input: &[u8]) -> Option<usize> {
    const LENGTH: &str = "content-length:";
    let head = input.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&input[..head]).ok()?;
    let body = text.split("\r\n").find_map(|line| {
        let (key, value) = line.split_at_checked(LENGTH.len())?;
        key.eq_ignore_ascii_case(LENGTH)
            .then(|| value.trim().parse().ok())?
    });
    let length = head + body.unwrap_or(0);
    (input.len() >= length).then_some(length)
}

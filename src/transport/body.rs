//! Request and response bodies.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use tokio::{sync::oneshot, time::Instant};
use tonic::{Code, Status, body::Body};

use super::{budget::Buffered, link::Link};
use crate::status::{Delivery, local, with_delivery};

/// The body of a response.
///
/// Dropping the body before its end cancels the call. `ResponseBody::default()` is an empty body, as
/// used by layers such as [`InterceptedService`](tonic::service::interceptor::InterceptedService)
/// that create responses themselves.
#[derive(Debug, Default)]
pub struct ResponseBody(Kind);

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Empty,
    /// A response that the connection's task has received completely.
    Whole {
        data: Bytes,
        trailers: Option<HeaderMap>,
        /// Dropped once the data is taken.
        buffered: Option<Buffered>,
    },
    Streamed(Streamed),
}

/// A response whose reader takes the data from HTTP/2 itself, and so paces the server.
///
/// It returns the stream to the connection's task when it has read the stream to its end, and when it
/// is dropped.
#[derive(Debug)]
struct Streamed {
    /// `None` once the stream was returned.
    stream: Option<RecvStream>,
    data_ended: bool,
    link: Arc<Link>,
    deadline: Option<Instant>,
    returned: Option<oneshot::Sender<RecvStream>>,
}

impl ResponseBody {
    pub(crate) fn whole(
        data: Bytes,
        trailers: Option<HeaderMap>,
        buffered: Option<Buffered>,
    ) -> Self {
        Self(Kind::Whole {
            data,
            trailers,
            buffered,
        })
    }

    /// Returns the data and the trailers of a body that was received completely.
    pub(crate) fn into_complete(self) -> (Bytes, Option<HeaderMap>) {
        debug_assert!(!matches!(self.0, Kind::Streamed(_)), "the body is streamed");
        match self.0 {
            Kind::Whole { data, trailers, .. } => (data, trailers),
            Kind::Empty | Kind::Streamed(_) => (Bytes::new(), None),
        }
    }

    /// Creates a body that is read from the stream. The receiver gets the stream back.
    pub(crate) fn streamed(
        stream: RecvStream,
        link: Arc<Link>,
        deadline: Option<Instant>,
    ) -> (Self, oneshot::Receiver<RecvStream>) {
        let (returned, receiver) = oneshot::channel();
        let streamed = Streamed {
            stream: Some(stream),
            data_ended: false,
            link,
            deadline,
            returned: Some(returned),
        };
        (Self(Kind::Streamed(streamed)), receiver)
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Whole { data, buffered, .. } if !data.is_empty() => {
                *buffered = None;
                Poll::Ready(Some(Ok(Frame::data(mem::take(data)))))
            }
            Kind::Whole { trailers, .. } => {
                Poll::Ready(trailers.take().map(Frame::trailers).map(Ok))
            }
            Kind::Streamed(streamed) => streamed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Whole { data, trailers, .. } => data.is_empty() && trailers.is_none(),
            Kind::Streamed(streamed) => match &streamed.stream {
                Some(stream) => stream.is_end_stream(),
                None => true,
            },
        }
    }
}

impl Streamed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(None);
        };
        if !self.data_ended {
            if let Some(data) = ready!(stream.poll_data(cx)) {
                let data = data.and_then(|data| {
                    stream.flow_control().release_capacity(data.len())?;
                    Ok(data)
                });
                return Poll::Ready(Some(data.map(Frame::data).map_err(|e| self.failed(e))));
            }
            self.data_ended = true;
        }
        let trailers = ready!(stream.poll_trailers(cx)).map_err(|error| self.failed(error));
        self.return_stream();
        Poll::Ready(trailers.map(|end| end.map(Frame::trailers)).transpose())
    }

    fn failed(&mut self, error: h2::Error) -> Status {
        self.return_stream();
        if self.deadline.is_some_and(|at| Instant::now() >= at) {
            let message = "the deadline passed while the response was read";
            let status = local(Code::DeadlineExceeded, message);
            return with_delivery(status, Delivery::Answered);
        }
        self.link.failed(error, Delivery::Answered)
    }

    fn return_stream(&mut self) {
        if let (Some(stream), Some(returned)) = (self.stream.take(), self.returned.take()) {
            let _ = returned.send(stream);
        }
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.return_stream();
    }
}

/// The body of a request, as HTTP/2 holds it until it is written.
#[derive(Debug)]
pub(crate) struct RequestBody {
    data: Bytes,
    link: Arc<Link>,
}

impl RequestBody {
    pub(crate) fn new(data: Bytes, link: Arc<Link>) -> Self {
        link.unsent.fetch_add(1, Ordering::Relaxed);
        Self { data, link }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.link.unsent.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Buf for RequestBody {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }
}

/// A request body that is being collected. That of a unary call is a single frame.
#[derive(Debug)]
pub(crate) struct Collecting {
    body: Body,
    chunks: Chunks,
}

impl Collecting {
    pub(crate) fn new(body: Body) -> Self {
        Self {
            body,
            chunks: Chunks::default(),
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        while let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            // A gRPC request has no trailers.
            if let Ok(data) = frame?.into_data() {
                self.chunks.push(data);
            }
        }
        Poll::Ready(Ok(mem::take(&mut self.chunks).join()))
    }
}

/// Chunks of data that are joined. A single chunk, the common case, is not copied.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    /// Empty once there is a second.
    first: Bytes,
    joined: BytesMut,
}

impl Chunks {
    pub(crate) fn push(&mut self, chunk: Bytes) {
        if self.bytes().is_empty() {
            self.first = chunk;
        } else {
            self.joined.extend_from_slice(&mem::take(&mut self.first));
            self.joined.extend_from_slice(&chunk);
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        if self.joined.is_empty() {
            &self.first
        } else {
            &self.joined
        }
    }

    pub(crate) fn join(self) -> Bytes {
        if self.joined.is_empty() {
            self.first
        } else {
            self.joined.freeze()
        }
    }
}

//! Request and response bodies.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use tokio::{sync::oneshot, time::Instant};
use tonic::{Code, Status, body::Body};

use super::link::{Buffered, Link};
use crate::status::local;

/// The body of a response.
///
/// Dropping the body before it ends resets the stream. `ResponseBody::default()` is an empty body, as
/// used by layers such as [`InterceptedService`](tonic::service::interceptor::InterceptedService)
/// that create responses themselves.
#[derive(Debug, Default)]
pub struct ResponseBody(Kind);

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Empty,
    /// A response that the connection's task has read to its end.
    Whole {
        data: Bytes,
        trailers: Option<HeaderMap>,
        /// Releases the data's share of the budget once it is taken.
        buffered: Option<Buffered>,
    },
    Streaming(Streaming),
}

/// A response whose reader takes the data from HTTP/2 itself, and so paces the server.
#[derive(Debug)]
struct Streaming {
    stream: RecvStream,
    data_ended: bool,
    link: Arc<Link>,
    deadline: Option<Instant>,
    /// Reports to the connection's task that the stream has ended. Dropping it resets the stream.
    ended: Option<oneshot::Sender<()>>,
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

    /// Makes a body that is read from the stream. The receiver learns of its end: `Ok` if it was
    /// read to its end or has failed, and an error if it was dropped before.
    pub(crate) fn streaming(
        stream: RecvStream,
        link: Arc<Link>,
        deadline: Option<Instant>,
    ) -> (Self, oneshot::Receiver<()>) {
        let (ended, receiver) = oneshot::channel();
        let streaming = Streaming {
            stream,
            data_ended: false,
            link,
            deadline,
            ended: Some(ended),
        };
        (Self(Kind::Streaming(streaming)), receiver)
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
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(data)))))
            }
            Kind::Whole { trailers, .. } => {
                Poll::Ready(trailers.take().map(Frame::trailers).map(Ok))
            }
            Kind::Streaming(streaming) => streaming.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Whole { data, trailers, .. } => data.is_empty() && trailers.is_none(),
            Kind::Streaming(streaming) => streaming.stream.is_end_stream(),
        }
    }
}

impl Streaming {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.data_ended {
            if let Some(data) = ready!(self.stream.poll_data(cx)) {
                let data = data.and_then(|data| {
                    let window = self.stream.flow_control();
                    window.release_capacity(data.len())?;
                    Ok(data)
                });
                return Poll::Ready(Some(data.map(Frame::data).map_err(|e| self.failed(e))));
            }
            self.data_ended = true;
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(|error| self.failed(error));
        self.end();
        Poll::Ready(trailers.map(|end| end.map(Frame::trailers)).transpose())
    }

    fn failed(&mut self, error: h2::Error) -> Status {
        self.end();
        match self.deadline.filter(|at| Instant::now() >= *at) {
            Some(_) => local(
                Code::DeadlineExceeded,
                "the deadline passed while the response was read",
            ),
            None => self.link.failed(error),
        }
    }

    fn end(&mut self) {
        if let Some(ended) = self.ended.take() {
            let _ = ended.send(());
        }
    }
}

/// The body of a request as it is collected. It is a single frame for a unary call.
#[derive(Debug)]
pub(crate) struct Collecting {
    body: Body,
    data: Bytes,
    joined: BytesMut,
}

impl Collecting {
    pub(crate) fn new(body: Body) -> Self {
        Self {
            body,
            data: Bytes::new(),
            joined: BytesMut::new(),
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        while let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            let Ok(frame) = frame?.into_data() else {
                continue; // trailers, which a gRPC request does not have
            };
            if self.data.is_empty() && self.joined.is_empty() {
                self.data = frame;
            } else {
                let data = std::mem::take(&mut self.data);
                self.joined.extend_from_slice(&data);
                self.joined.extend_from_slice(&frame);
            }
        }
        Poll::Ready(Ok(match self.joined.is_empty() {
            true => std::mem::take(&mut self.data),
            false => std::mem::take(&mut self.joined).freeze(),
        }))
    }
}

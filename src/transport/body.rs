//! The bodies of a call: the request's in one piece, the response's as it comes.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http_body::{Body as _, Frame};
use tonic::{Status, body::Body};

use super::lease::Lease;

/// The body of a response.
///
/// Dropping the body before it ends resets the stream. `ResponseBody::default()` is an empty body, as
/// used by layers such as [`InterceptedService`](tonic::service::interceptor::InterceptedService)
/// that create responses themselves.
#[derive(Debug, Default)]
pub struct ResponseBody {
    /// `None` in an empty body.
    stream: Option<RecvStream>,
    data_ended: bool,
    /// `None` once the body has ended: the stream is free for another call.
    lease: Option<Lease>,
}

impl ResponseBody {
    pub(crate) fn new(stream: RecvStream, lease: Lease) -> Self {
        Self {
            stream: Some(stream),
            data_ended: false,
            lease: Some(lease),
        }
    }

    fn failed(&mut self, error: h2::Error) -> Status {
        match self.lease.take() {
            Some(lease) => lease.failed(error),
            None => crate::status::classify(error.into()),
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(stream) = &mut this.stream else {
            return Poll::Ready(None);
        };
        if !this.data_ended {
            if let Some(data) = ready!(stream.poll_data(cx)) {
                let data = data.and_then(|data| {
                    stream.flow_control().release_capacity(data.len())?;
                    Ok(data)
                });
                if let Some(lease) = &mut this.lease {
                    lease.progressed();
                }
                return Poll::Ready(Some(data.map(Frame::data).map_err(|e| this.failed(e))));
            }
            this.data_ended = true;
        }
        let trailers = ready!(stream.poll_trailers(cx)).map_err(|error| this.failed(error));
        if let Some(lease) = this.lease.take() {
            lease.completed();
        }
        Poll::Ready(trailers.map(|end| end.map(Frame::trailers)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }
}

/// Takes in the body of a request, which is one frame for a unary call.
pub(crate) async fn collect(body: Body) -> Result<Bytes, Status> {
    let mut body = pin!(body);
    let mut data = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let Ok(frame) = frame?.into_data() else {
            continue; // trailers, which a request does not have in gRPC
        };
        if data.is_empty() && more.is_empty() {
            data = frame;
        } else {
            if more.is_empty() {
                more.extend_from_slice(&std::mem::take(&mut data));
            }
            more.extend_from_slice(&frame);
        }
    }
    Ok(match more.is_empty() {
        true => data,
        false => more.freeze(),
    })
}

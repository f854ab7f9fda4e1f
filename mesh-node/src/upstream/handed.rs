//! The client's end of an HTTP/1 connection over which messages are handed over in memory.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, ReadBuf};

use super::pool::Lease;
use super::pooled::{Pooled, Share};
use crate::http::body::{Body, BodyError};
use crate::http::h1::Failure;
use crate::http::h1::handed::{Answer, AnswerBody, Callee, Sent};

/// A pooled connection. The pipe below tells each end when the other is gone.
pub(super) struct HandedH1 {
    io: Pooled,
    callee: Rc<dyn Callee>,
    /// `enable_trailers` of the cluster.
    trailers: bool,
    exchanges: u32,
}

impl HandedH1 {
    pub(super) fn new(io: Pooled, callee: Rc<dyn Callee>, trailers: bool) -> Box<Self> {
        Box::new(Self { io, callee, trailers, exchanges: 0 })
    }

    pub(super) fn share(&self) -> &Share {
        self.io.meter()
    }

    pub(super) fn exchanges(&self) -> u32 {
        self.exchanges
    }

    /// Is the other end still there?
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> bool {
        Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut [0])).is_pending()
    }

    /// Hands a request over and returns the response once its head is here.
    ///
    /// # Errors
    /// As on a wire. The connection is closed then, as it is when the future is dropped.
    pub(super) async fn exchange(
        mut self: Box<Self>,
        request: Request<Body>,
        lease: Lease,
    ) -> Result<Response<Body>, Failure> {
        self.exchanges += 1;
        let answer = self.callee.clone().call(request, self.trailers).await?;
        let Answer { response, body, keep_alive, sent, head_bytes } = answer;
        self.share().received(head_bytes);
        let body = match body {
            AnswerBody::Whole(data) => {
                self.share().received(data.as_ref().map_or(0, Bytes::len));
                self.end(lease, &sent, keep_alive);
                data.map_or(Body::Empty, Body::from_bytes)
            }
            AnswerBody::Streaming(inner) => Body::boxed(Arriving {
                inner: Some(inner),
                connection: Some((self, lease)),
                sent,
                keep_alive,
            }),
        };
        Ok(response.map(|()| body))
    }

    /// After a complete response.
    fn end(self: Box<Self>, lease: Lease, sent: &Sent, keep_alive: bool) {
        self.share().sent(sent.bytes());
        if keep_alive && sent.is_complete() {
            lease.release_handed(self);
        }
    }
}

/// The body of a response, which holds its connection until the end.
struct Arriving {
    /// Dropped before the connection: the server's end sees a stream that is cut off.
    inner: Option<Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError>>>>,
    connection: Option<(Box<HandedH1>, Lease)>,
    sent: Sent,
    keep_alive: bool,
}

impl Arriving {
    fn finish(&mut self) {
        self.inner = None;
        if let Some((connection, lease)) = self.connection.take() {
            connection.end(lease, &self.sent, self.keep_alive);
        }
    }

    fn drops_trailers(&self) -> bool {
        self.connection.as_ref().is_some_and(|(connection, _)| !connection.trailers)
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let frame = ready!(inner.as_mut().poll_frame(cx));
        let last = inner.is_end_stream();
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some((connection, _))) = (frame.data_ref(), &this.connection) {
                    connection.share().received(data.len());
                }
                if frame.is_trailers() && this.drops_trailers() {
                    this.finish();
                    return Poll::Ready(None);
                }
                if last {
                    this.finish();
                }
            }
            Some(Err(_)) => {
                this.inner = None;
                this.connection = None;
            }
            None => this.finish(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), |inner| inner.size_hint())
    }
}

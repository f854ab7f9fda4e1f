//! A body that passes a script piece by piece (`bodyChunks`): each piece goes on when the script asks for the next one.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame};

use super::exchange::{Buffer, Exchange, Fields, Headers};
use super::{Phase, Run};
use crate::http::body::{Body, BodyError};

/// What is left of the body under `run`, which waits for its first piece.
pub(super) fn body(run: Run, exchange: Rc<Exchange>) -> Body {
    let inner = exchange.inner.take();
    Body::boxed(Scripted {
        run: Some(run),
        exchange,
        inner,
        current: None,
        trailers: None,
        passed: false,
        ended: false,
    })
}

struct Scripted {
    /// `None`: the script has ended, and the rest passes as it is.
    run: Option<Run>,
    exchange: Rc<Exchange>,
    inner: Body,
    /// The piece that the script has, until it asks for another.
    current: Option<Buffer>,
    trailers: Option<Headers>,
    /// A piece has gone on.
    passed: bool,
    ended: bool,
}

impl Scripted {
    /// The piece that the script is done with, if anything is left of it.
    fn release(&mut self) -> Option<Frame<Bytes>> {
        let data = self.current.take()?.take();
        self.passed = true;
        (!data.is_empty()).then(|| Frame::data(data))
    }

    /// Gives the script a piece, or word of the end.
    fn give(&mut self, piece: Option<Bytes>) {
        self.current = piece.map(|bytes| Buffer::new(bytes.into()));
        let chunks = &self.exchange.chunks;
        chunks.wanted.set(false);
        *chunks.given.borrow_mut() = Some(self.current.clone());
    }

    /// Lets the script have its next piece; `Some` must go on before.
    fn feed(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            // The last piece is the script's until it ends.
            let chunks = &self.exchange.chunks;
            chunks.wanted.set(false);
            *chunks.given.borrow_mut() = Some(None);
            return Poll::Ready(None);
        }
        if let Some(frame) = self.release() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.ended = self.inner.is_end_stream();
                    self.give(Some(data));
                }
                Err(frame) => {
                    self.ended = true;
                    let trailers = frame.into_trailers().ok().map(Fields::of);
                    self.exchange.trailers.borrow_mut().clone_from(&trailers);
                    self.trailers = trailers;
                    self.give(None);
                }
            },
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => {
                self.ended = true;
                // The end that comes by itself is an empty last piece.
                let last = self.passed.then(Bytes::new);
                self.give(last);
            }
        }
        Poll::Ready(None)
    }
}

impl http_body::Body for Scripted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        while let Some(run) = &mut this.run {
            if this.exchange.chunks.wanted.get() {
                match ready!(this.feed(cx)) {
                    Some(frame) => return Poll::Ready(Some(frame)),
                    None => continue,
                }
            }
            if ready!(run.poll(cx)) == Phase::Done {
                this.run = None;
            }
        }
        if let Some(frame) = this.release() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(trailers) = this.trailers.take() {
            this.ended = true;
            return Poll::Ready(Some(Ok(Frame::trailers(std::mem::take(&mut trailers.borrow_mut().map)))));
        }
        if this.ended {
            return Poll::Ready(None);
        }
        Pin::new(&mut this.inner).poll_frame(cx)
    }
}

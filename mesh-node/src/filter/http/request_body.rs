//! The request body on its way upstream: observed for timeouts and counters, and kept for retries where the
//! route has some. What is kept is bounded, by the cluster and by what the workload may hold; a body over the
//! bound streams on and can no longer be retried.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::stream::Stream;
use crate::budget::{Held, Purse};
use crate::http::body::{Body, BodyError};

/// A request body whose progress its stream sees.
#[derive(Debug)]
pub struct Observed {
    inner: Body,
    stream: Rc<Stream>,
    /// Its bytes are what the client sent.
    counts: bool,
}

impl Observed {
    /// What a filter has made of the body is not counted: what it was made of is.
    pub fn new(inner: Body, stream: Rc<Stream>) -> Self {
        let counts = !stream.counted.get();
        Self { inner, stream, counts }
    }
}

/// The body of a request as its client sends it, counted, for a filter that makes another one of it.
pub fn counted(inner: Body, stream: &Rc<Stream>) -> Body {
    if stream.counted.replace(true) {
        return inner;
    }
    Body::boxed(Counted { inner, stream: stream.clone() })
}

struct Counted {
    inner: Body,
    stream: Rc<Stream>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.stream.info.borrow_mut().bytes_received += data.len() as u64;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if !self.inner.is_end_stream() {
            self.stream.leave_unread(std::mem::take(&mut self.inner));
        }
    }
}

impl http_body::Body for Observed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                self.stream.touch();
                if let Some(data) = frame.data_ref().filter(|_| self.counts) {
                    self.stream.info.borrow_mut().bytes_received += data.len() as u64;
                }
                if frame.is_trailers() || self.inner.is_end_stream() {
                    self.stream.complete_request();
                    self.stream.note_request_sent();
                }
            }
            Some(Err(error)) => self.stream.fail_request(error),
            None => {
                self.stream.complete_request();
                self.stream.note_request_sent();
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A request body that can be sent again.
#[derive(Debug, Clone)]
pub struct Replayable(Rc<RefCell<Kept>>);

#[derive(Debug)]
struct Kept {
    source: Observed,
    size: SizeHint,
    frames: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    kept_bytes: usize,
    limit_bytes: usize,
    held: Held,
    ended: bool,
    overflowed: bool,
    /// Only the body of this attempt may read the source. Once all is kept, others may go on beside it.
    attempt: u32,
    waker: Option<Waker>,
}

impl Replayable {
    /// Keeps up to `limit_bytes` of `source`.
    pub fn new(source: Observed, limit_bytes: usize) -> Self {
        let workload = source.stream.manager.connection.workload.as_ref();
        let held = Held::new(workload.map(|workload| Purse::of(&workload.limits.buffers)));
        Self(Rc::new(RefCell::new(Kept {
            size: source.size_hint(),
            source,
            frames: Vec::new(),
            trailers: None,
            kept_bytes: 0,
            limit_bytes,
            held,
            ended: false,
            overflowed: false,
            attempt: 0,
            waker: None,
        })))
    }

    /// False once more than the limit has gone by.
    pub fn can_replay(&self) -> bool {
        !self.0.borrow().overflowed
    }

    /// The body for the next attempt, from the beginning. Ends the bodies of earlier attempts, unless all is here.
    pub fn attempt(&self) -> Attempt {
        let mut kept = self.0.borrow_mut();
        kept.attempt += 1;
        if let Some(waker) = kept.waker.take() {
            waker.wake();
        }
        Attempt { kept: self.0.clone(), attempt: kept.attempt, next: 0, trailers_sent: false }
    }
}

/// The request body as one attempt sends it.
#[derive(Debug)]
pub struct Attempt {
    kept: Rc<RefCell<Kept>>,
    attempt: u32,
    next: usize,
    trailers_sent: bool,
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let mut guard = this.kept.borrow_mut();
        let kept = &mut *guard;
        if kept.attempt != this.attempt && !kept.ended {
            return Poll::Ready(Some(Err(BodyError::Aborted("a newer attempt took over"))));
        }
        if let Some(data) = kept.frames.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if kept.ended {
            return match &kept.trailers {
                Some(trailers) if !this.trailers_sent => {
                    this.trailers_sent = true;
                    Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))))
                }
                _ => Poll::Ready(None),
            };
        }
        let frame = match Pin::new(&mut kept.source).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                kept.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    kept.keep(data);
                    this.next = kept.frames.len();
                } else if let Some(trailers) = frame.trailers_ref() {
                    kept.trailers = Some(trailers.clone());
                    kept.ended = true;
                    this.trailers_sent = true;
                }
                kept.ended |= kept.source.is_end_stream();
            }
            Some(Err(_)) => {}
            None => kept.ended = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.kept.borrow();
        kept.ended && self.next >= kept.frames.len() && (self.trailers_sent || kept.trailers.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.kept.borrow();
        if self.next == 0 { kept.size } else { SizeHint::default() }
    }
}

impl Kept {
    fn keep(&mut self, data: &Bytes) {
        if self.overflowed {
            return;
        }
        self.kept_bytes += data.len();
        let pressed = self.held.is_pressed();
        if pressed || self.kept_bytes > self.limit_bytes {
            self.give_up(pressed);
            return;
        }
        self.held.set(self.kept_bytes);
        self.frames.push(data.clone());
    }

    /// Keeps nothing any more: the request is tried this once.
    fn give_up(&mut self, pressed: bool) {
        self.overflowed = true;
        self.frames = Vec::new();
        self.held.set(0);
        if let Some(upstream) = &*self.source.stream.upstream() {
            upstream.cluster.stats.retry_or_shadow_abandoned.inc();
        }
        if let Some(purse) = self.held.purse().filter(|_| pressed) {
            purse.budget().refusals().retries.fetch_add(1, Ordering::Relaxed);
        }
    }
}

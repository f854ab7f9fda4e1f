//! A connection as the task that serves it and the body of its request share it.
//!
//! The request's body may be read by another task (an HTTP/2 upstream's), so the state is behind a cell, and no
//! borrow of it is held while foreign code runs.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{HeaderMap, Response, Version};
use http_body::{Body as _, Frame};
use tokio::io::{AsyncRead, AsyncWrite};

use super::chunk::{Decoded, Decoder};
use super::encode::{self, BodyFacts, ResponseContext};
use super::parse::{Framing, Limits};
use super::server::{End, Options};
use super::wire::{Expect, Wire};
use crate::http::body::BodyError;
use crate::http::informational::Informational;
use crate::http::service::{HttpService, Reset};

/// Bytes of following requests that are read while a request is served. Reading goes on so that the peer's end
/// is noticed.
const PIPELINE_BYTES: usize = 16 << 10;

/// What came out of a call of the service.
pub(super) enum Outcome<B> {
    Response(Response<B>),
    Reset,
    Gone,
    MalformedBody,
}

pub(super) struct Shared<IO> {
    pub(super) state: RefCell<State<IO>>,
}

pub(super) struct State<IO> {
    pub(super) wire: Wire<IO>,
    pub(super) decoder: Decoder,
    /// Number of the request whose body `decoder` reads; a body of an earlier one gets nothing.
    pub(super) exchange: u64,
    /// The body broke the protocol.
    failed: bool,
    /// The connection's task, while another may read the body.
    waker: Option<Waker>,
    limits: Limits,
    trailers: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Shared<IO> {
    pub(super) fn new(wire: Wire<IO>, options: &Options) -> Rc<Self> {
        let state = State {
            wire,
            decoder: Decoder::Done,
            exchange: 0,
            failed: false,
            waker: None,
            limits: options.limits,
            trailers: options.trailers,
        };
        Rc::new(Self { state: RefCell::new(state) })
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> State<IO> {
    /// Tells the service what went over the wire.
    pub(super) fn report<S: HttpService>(&mut self, service: &S) {
        let (read, written) = self.wire.take_counts();
        if read > 0 {
            service.on_read(read);
        }
        if written > 0 {
            service.on_written(written);
        }
    }

    /// Between requests.
    pub(super) fn finish(&mut self) {
        self.waker = None;
        self.wire.release_large();
        self.exchange += 1;
    }

    /// Is the peer still there? Reads ahead a little, so that its end is seen. Only once the body is read:
    /// before that, bytes belong to it.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.decoder.is_done() && self.wire.input.len() < PIPELINE_BYTES {
            match self.wire.poll_fill(cx, Expect::Head) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Shared<IO> {
    /// Runs the service, watching the connection.
    pub(super) async fn call<S: HttpService>(
        &self,
        mut call: Pin<&mut impl Future<Output = Result<Response<S::Body>, Reset>>>,
        service: &S,
        informational: Option<&Informational>,
    ) -> Outcome<S::Body> {
        poll_fn(|cx| {
            if !self.state.borrow().decoder.is_done() {
                self.state.borrow_mut().waker = Some(cx.waker().clone());
            }
            let answer = call.as_mut().poll(cx);
            let state = &mut *self.state.borrow_mut();
            state.report(service);
            if state.failed {
                return Poll::Ready(Outcome::MalformedBody);
            }
            if state.wire.eof && !matches!(state.decoder, Decoder::Done | Decoder::UntilClose) {
                return Poll::Ready(Outcome::Gone);
            }
            for (status, headers) in informational.into_iter().flat_map(|queue| queue.take(cx.waker())) {
                let body = BodyFacts { ended: true, exact: None };
                let out = state.wire.output.gather();
                encode::response(out, Version::HTTP_11, status, &headers, body, ResponseContext::default());
            }
            if let Poll::Ready(answer) = answer {
                return Poll::Ready(match answer {
                    Ok(response) => Outcome::Response(response),
                    Err(Reset) => Outcome::Reset,
                });
            }
            if !state.wire.output.is_empty()
                && let Poll::Ready(Err(_)) = state.wire.poll_flush(cx)
            {
                return Poll::Ready(Outcome::Gone);
            }
            let gone = state.poll_gone(cx);
            state.report(service);
            gone.map(|()| Outcome::Gone)
        })
        .await
    }

    /// Writes the queued head and the body after it: whatever is ready goes out in one write.
    pub(super) async fn stream<S: HttpService>(
        &self,
        mut body: Pin<&mut S::Body>,
        framing: Framing,
        service: &S,
        options: &Options,
    ) -> Result<(), End> {
        let mut left = match framing {
            Framing::None => 0,
            Framing::Length(length) => length,
            _ => u64::MAX,
        };
        let mut ended = framing == Framing::None;
        let mut failed = false;
        poll_fn(|cx| {
            loop {
                let mut waiting = false;
                while !ended && !waiting && self.state.borrow().wire.output.has_room() {
                    match body.as_mut().poll_frame(cx) {
                        Poll::Pending => waiting = true,
                        Poll::Ready(None) => {
                            ended = true;
                            if framing == Framing::Chunked {
                                self.end_chunks(None);
                            } else if left > 0 && matches!(framing, Framing::Length(_)) {
                                return Poll::Ready(Err(End::Reset));
                            }
                        }
                        Poll::Ready(Some(Err(error))) => {
                            // What came of it is passed on, then the connection is cut.
                            tracing::debug!(%error, "response body failed");
                            ended = true;
                            failed = true;
                        }
                        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                            Ok(data) => {
                                let Some(rest) = left.checked_sub(data.len() as u64) else {
                                    return Poll::Ready(Err(End::Reset));
                                };
                                let out = &mut self.state.borrow_mut().wire.output;
                                match framing {
                                    Framing::Chunked => out.push_chunk(data),
                                    _ => out.push(data),
                                }
                                if matches!(framing, Framing::Length(_)) {
                                    left = rest;
                                    // The body may have its end to tell, which a poll finds; but the
                                    // message is complete, and most bodies know it.
                                    ended = rest == 0 && body.is_end_stream();
                                }
                            }
                            Err(frame) => {
                                ended = framing == Framing::Chunked;
                                if ended {
                                    self.end_chunks(frame.trailers_ref().filter(|_| options.trailers));
                                }
                            }
                        },
                    }
                }
                let state = &mut *self.state.borrow_mut();
                let flushed = state.wire.poll_flush(cx);
                state.report(service);
                match flushed {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(End::Io(error))),
                    Poll::Ready(Ok(())) if failed => return Poll::Ready(Err(End::Reset)),
                    Poll::Ready(Ok(())) if ended => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(())) if waiting => {
                        let gone = state.poll_gone(cx);
                        state.report(service);
                        return gone.map(|()| Err(End::Abandoned));
                    }
                    Poll::Ready(Ok(())) => {}
                }
            }
        })
        .await
    }

    fn end_chunks(&self, trailers: Option<&HeaderMap>) {
        let out = &mut self.state.borrow_mut().wire.output;
        encode::last_chunk(out.gather(), trailers);
    }
}

/// A request's body, read off the connection when it is polled.
pub struct RequestBody {
    source: Rc<dyn Source>,
    exchange: u64,
    ended: bool,
}

impl RequestBody {
    /// The body of the request that `shared` reads now.
    pub(super) fn new<IO>(shared: Rc<Shared<IO>>, exchange: u64) -> Self
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        Self { source: shared, exchange, ended: false }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(self.source.poll_frame(self.exchange, cx));
        self.ended = !matches!(frame, Some(Ok(_)));
        Poll::Ready(frame)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.ended || self.source.remaining(self.exchange) == Some(0)
    }

    pub(crate) fn size_hint(&self) -> http_body::SizeHint {
        self.source.remaining(self.exchange).map_or_else(Default::default, http_body::SizeHint::with_exact)
    }
}

/// A connection that a request's body is read from, whatever carries it.
trait Source {
    fn poll_frame(
        &self,
        exchange: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>;

    /// Bytes still to come, where known; 0 once all is read.
    fn remaining(&self, exchange: u64) -> Option<u64>;
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Source for Shared<IO> {
    fn poll_frame(
        &self,
        exchange: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let state = &mut *self.state.borrow_mut();
        if state.exchange != exchange {
            return Poll::Ready(Some(Err(BodyError::Aborted("the exchange is over"))));
        }
        loop {
            let State { wire, decoder, limits, .. } = state;
            let frame = match decoder.decode(&mut wire.input, wire.eof, limits) {
                Ok(Decoded::Data(data)) => {
                    decoder.settle(&mut wire.input);
                    Some(Ok(Frame::data(data)))
                }
                Ok(Decoded::Trailers(trailers)) if state.trailers => Some(Ok(Frame::trailers(trailers))),
                Ok(Decoded::Trailers(_) | Decoded::End) => None,
                Ok(Decoded::More) => {
                    let left = state.decoder.remaining().unwrap_or(u64::MAX);
                    ready!(state.wire.poll_fill(cx, Expect::Body(left)))?;
                    continue;
                }
                Err(error) => {
                    state.failed = matches!(error, BodyError::Malformed(_));
                    Some(Err(error))
                }
            };
            let over = state.decoder.is_done() || state.failed;
            if over && let Some(waker) = state.waker.take().filter(|waker| !waker.will_wake(cx.waker())) {
                waker.wake();
            }
            return Poll::Ready(frame);
        }
    }

    fn remaining(&self, exchange: u64) -> Option<u64> {
        let state = self.state.borrow();
        if state.exchange == exchange { state.decoder.remaining() } else { Some(0) }
    }
}

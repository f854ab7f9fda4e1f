//! The client side: one exchange at a time over a connection that its owner keeps.
//!
//! The request is sent and the response is read by whoever polls: first the exchange, then the response's body,
//! which goes on sending what is left of the request. When the response is complete the connection goes back
//! to its owner through its [`Lease`]; in every other case it is dropped, which closes it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use tokio::io::{AsyncRead, AsyncWrite};

use super::chunk::{Decoded, Decoder};
use super::encode::{self, BodyFacts};
use super::header_case::HeaderCase;
use super::parse::{self, Asked, ConnectionTokens, Framing, HeadError, Limits, Progress};
use super::wire::{Expect, Wire};
use crate::budget::Held;
use crate::http::body::{Body, BodyError};
use crate::http::informational::Informational;

/// What a connection's owner attaches to an exchange: counters that end with it, and the way home.
pub trait Lease<IO>: Sized + 'static {
    /// The exchange is over and the connection is as good as new.
    fn release(self, connection: Box<Connection<IO, Self>>);
}

/// Options of the client side, from `Http1ProtocolOptions` of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub limits: Limits,
    /// `enable_trailers`: off drops them.
    pub trailers: bool,
    pub proper_case: bool,
}

impl Default for Options {
    fn default() -> Self {
        let limits = Limits { accept_http_10: true, ..Limits::default() };
        Self { limits, trailers: false, proper_case: false }
    }
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The connection ended or failed. `untouched`: before any byte of a response, so that on a connection
    /// that was used before, the peer may have closed it without having seen the request.
    #[error("connection ended before the response: {error}")]
    Connection { error: io::Error, untouched: bool },
    /// The response is not HTTP/1.
    #[error("malformed response: {0}")]
    Protocol(#[from] HeadError),
    /// The request's own body failed.
    #[error("request body: {0}")]
    RequestBody(BodyError),
}

/// A connection to a server.
pub struct Connection<IO, L> {
    wire: Wire<IO>,
    options: Options,
    decoder: Decoder,
    sending: Sending,
    reusable: bool,
    lease: Option<L>,
    /// The header map of the message before, emptied.
    spare: HeaderMap,
    exchanges: u32,
}

/// The part of a request that is not written yet.
struct Sending {
    body: Body,
    framing: Framing,
    left: u64,
    ended: bool,
    /// An upgrade's body waits for the answer.
    held: bool,
    /// Nothing more can be written; the response may still come.
    broken: bool,
    shut: bool,
}

impl Default for Sending {
    fn default() -> Self {
        Self {
            body: Body::Empty,
            framing: Framing::None,
            left: 0,
            ended: true,
            held: false,
            broken: false,
            shut: false,
        }
    }
}

impl Sending {
    /// All of the request is with the kernel.
    fn is_complete(&self) -> bool {
        self.ended && !self.broken
    }
}

impl<IO, L> Connection<IO, L>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    L: Lease<IO>,
{
    /// `held`: where the connection's buffers count.
    pub fn new(io: IO, options: Options, held: Held) -> Box<Self> {
        Box::new(Self {
            wire: Wire::new(io, held).adaptive(),
            options,
            decoder: Decoder::Done,
            sending: Sending::default(),
            reusable: true,
            lease: None,
            spare: HeaderMap::new(),
            exchanges: 0,
        })
    }

    pub fn io(&self) -> &IO {
        self.wire.io()
    }

    /// Exchanges begun on this connection.
    pub fn exchanges(&self) -> u32 {
        self.exchanges
    }

    /// Between exchanges: is the peer still there and silent? A server that closed or spoke unasked has ended
    /// the connection's use. `cx` is woken when that changes.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> bool {
        self.wire.poll_silent(cx)
    }

    /// Gives back the memory of buffers while the connection is idle.
    pub fn release_memory(&mut self) {
        self.wire.release_memory();
    }

    /// Sends a request and returns the response once its head is here. The rest of the request is sent by
    /// whoever polls the response's body.
    ///
    /// # Errors
    /// See [`Failure`]. The connection is closed then, as it is when the future is dropped.
    pub async fn exchange(
        mut self: Box<Self>,
        request: Request<Body>,
        lease: L,
    ) -> Result<Response<Body>, Failure> {
        let (asked, informational) = self.begin(request, lease);
        let mut progress = Progress::default();
        let head = loop {
            let head = poll_fn(|cx| self.poll_head(cx, &mut progress, asked)).await?;
            let interim = head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS;
            if !interim {
                break head;
            }
            if let Some(informational) = &informational {
                informational.send(head.status, head.headers);
            }
        };
        let parse::ResponseHead { status, version, headers, framing, keep_alive, names } = head;
        self.reusable &= keep_alive;
        self.decoder = Decoder::new(framing);
        let raw = framing == Framing::UntilClose && matches!(asked, Asked::Upgrade | Asked::Connect);
        if self.sending.held {
            self.sending.held = false;
            if !(raw && (status == StatusCode::SWITCHING_PROTOCOLS || status.is_success())) {
                self.sending = Sending { broken: true, ..Sending::default() };
            }
        }
        let mut response = Response::new(self.body());
        *response.status_mut() = status;
        *response.version_mut() = version;
        *response.headers_mut() = headers;
        if let Some(names) = names {
            response.extensions_mut().insert(names);
        }
        Ok(response)
    }

    /// Queues the head of a request.
    fn begin(&mut self, request: Request<Body>, lease: L) -> (Asked, Option<Informational>) {
        let (mut parts, body) = request.into_parts();
        let upgrade = parts.headers.contains_key(header::UPGRADE)
            && ConnectionTokens::of(&parts.headers, parts.headers.contains_key(header::CONNECTION)).upgrade;
        let asked = match parts.method {
            Method::HEAD => Asked::Head,
            Method::CONNECT => Asked::Connect,
            _ if upgrade => Asked::Upgrade,
            _ => Asked::Plain,
        };
        let raw = matches!(asked, Asked::Connect | Asked::Upgrade);
        let facts = BodyFacts { ended: body.is_end_stream(), exact: body.size_hint().exact() };
        let out = self.wire.output.gather();
        let case = HeaderCase::of(&parts.extensions, self.options.proper_case);
        let framing = encode::request(out, &parts.method, &parts.uri, &parts.headers, facts, raw, case);
        let left = if let Framing::Length(length) = framing { length } else { u64::MAX };
        let ended = framing == Framing::None || framing == Framing::Length(0);
        self.sending = Sending { body, framing, left, ended, held: raw, ..Sending::default() };
        self.lease = Some(lease);
        self.exchanges += 1;
        let informational = parts.extensions.remove();
        parts.headers.clear();
        self.spare = parts.headers;
        (asked, informational)
    }

    /// Sends what can be sent. A write that fails is not an error yet: a server may answer early and close.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        let Self { wire, sending, options, .. } = self;
        while !sending.broken {
            let mut waiting = sending.held;
            while !sending.ended && !waiting && wire.output.has_room() {
                match Pin::new(&mut sending.body).poll_frame(cx) {
                    Poll::Pending => waiting = true,
                    Poll::Ready(Some(frame)) => sending.queue(&mut wire.output, frame?, options)?,
                    Poll::Ready(None) => sending.end(&mut wire.output, None, options)?,
                }
            }
            match wire.poll_flush(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Err(_)) => sending.broken = true,
                Poll::Ready(Ok(())) if sending.ended && sending.framing == Framing::UntilClose => {
                    if !sending.shut {
                        let shut = wire.poll_shutdown(cx);
                        sending.broken = matches!(shut, Poll::Ready(Err(_)));
                        sending.shut = shut.is_ready();
                    }
                    return Ok(());
                }
                Poll::Ready(Ok(())) if sending.ended || waiting => return Ok(()),
                Poll::Ready(Ok(())) => {}
            }
        }
        Ok(())
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut Progress,
        asked: Asked,
    ) -> Poll<Result<parse::ResponseHead, Failure>> {
        let sent = self.poll_send(cx);
        let head = self.poll_read_head(cx, progress, asked);
        match (head, sent) {
            (Poll::Pending, Err(error)) => Poll::Ready(Err(Failure::RequestBody(error))),
            (head, _) => head,
        }
    }

    fn poll_read_head(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut Progress,
        asked: Asked,
    ) -> Poll<Result<parse::ResponseHead, Failure>> {
        loop {
            let Self { wire, options, spare, .. } = self;
            if !wire.input.is_empty()
                && let Some(head) = parse::response(&mut wire.input, progress, &options.limits, asked, spare)?
            {
                return Poll::Ready(Ok(head));
            }
            let untouched = wire.input.is_empty();
            let error = match ready!(wire.poll_fill(cx, Expect::Head)) {
                Ok(1..) => continue,
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Err(error) => error,
            };
            return Poll::Ready(Err(Failure::Connection { error, untouched }));
        }
    }

    /// The body of the response whose head was just read. What is already complete needs no connection.
    fn body(mut self: Box<Self>) -> Body {
        if let Decoder::Length(length) = self.decoder
            && length <= self.wire.input.len() as u64
            && self.sending.is_complete()
        {
            let data = self.wire.input.split_to(length as usize).freeze();
            self.recycle();
            return Body::Full(Some(data));
        }
        if self.decoder.is_done() {
            self.recycle();
            return Body::Empty;
        }
        Body::H1Response(ResponseBody { source: Some(self) })
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.poll_send(cx).is_err() {
            // The client went away or broke its body: the exchange cannot end well.
            return Poll::Ready(Some(Err(BodyError::Aborted("request body failed"))));
        }
        self.poll_read_body(cx)
    }

    fn poll_read_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let Self { wire, decoder, options, .. } = self;
            return Poll::Ready(match decoder.decode(&mut wire.input, wire.eof, &options.limits)? {
                Decoded::Data(data) => {
                    decoder.settle(&mut wire.input);
                    Some(Ok(Frame::data(data)))
                }
                Decoded::Trailers(trailers) if options.trailers => Some(Ok(Frame::trailers(trailers))),
                Decoded::Trailers(_) | Decoded::End => None,
                Decoded::More => {
                    let left = decoder.remaining().unwrap_or(u64::MAX);
                    ready!(wire.poll_fill(cx, Expect::Body(left)))?;
                    continue;
                }
            });
        }
    }
}

impl Sending {
    fn queue(
        &mut self,
        out: &mut super::wire::Output,
        frame: Frame<Bytes>,
        options: &Options,
    ) -> Result<(), BodyError> {
        match frame.into_data() {
            Ok(data) => {
                if matches!(self.framing, Framing::Length(_)) {
                    self.left = self
                        .left
                        .checked_sub(data.len() as u64)
                        .ok_or(BodyError::Malformed("longer than its content-length"))?;
                }
                match self.framing {
                    Framing::Chunked => out.push_chunk(data),
                    _ => out.push(data),
                }
                self.ended = self.left == 0;
                if !self.ended && self.framing == Framing::Chunked && self.body.is_end_stream() {
                    self.end(out, None, options)?;
                }
                Ok(())
            }
            Err(frame) => self.end(out, frame.trailers_ref(), options),
        }
    }

    fn end(
        &mut self,
        out: &mut super::wire::Output,
        trailers: Option<&HeaderMap>,
        options: &Options,
    ) -> Result<(), BodyError> {
        match self.framing {
            Framing::Length(_) if self.left > 0 => return Err(BodyError::Incomplete),
            Framing::Chunked => {
                let trailers = trailers.filter(|_| options.trailers);
                encode::last_chunk(out.gather(), trailers);
            }
            _ => {}
        }
        self.ended = true;
        Ok(())
    }
}

/// The body of a response, which holds its connection until the end.
pub struct ResponseBody {
    source: Option<Box<dyn Source>>,
}

impl ResponseBody {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(source) = &mut self.source else { return Poll::Ready(None) };
        let frame = ready!(source.poll_frame(cx));
        match &frame {
            Some(Err(_)) => self.source = None,
            _ if source.remaining() == Some(0) => {
                if let Some(source) = self.source.take() {
                    source.recycle();
                }
            }
            Some(Ok(_)) => {}
            None => self.source = None,
        }
        Poll::Ready(frame)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }

    pub(crate) fn size_hint(&self) -> http_body::SizeHint {
        match &self.source {
            None => http_body::SizeHint::with_exact(0),
            Some(source) => source.remaining().map_or_else(Default::default, http_body::SizeHint::with_exact),
        }
    }
}

/// A connection in the middle of an exchange, whatever carries it.
trait Source {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>;

    /// Bytes of the body still to come, where known; 0 once all is read.
    fn remaining(&self) -> Option<u64>;

    /// Gives the connection home after a complete response, or closes it.
    fn recycle(self: Box<Self>);
}

impl<IO, L> Source for Connection<IO, L>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    L: Lease<IO>,
{
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.poll_body(cx)
    }

    fn remaining(&self) -> Option<u64> {
        self.decoder.remaining()
    }

    fn recycle(mut self: Box<Self>) {
        let clean = self.reusable && self.sending.is_complete() && self.wire.output.is_empty();
        // Bytes after the response belong to nothing that was asked.
        let silent = self.wire.input.is_empty() && !self.wire.eof;
        self.sending = Sending::default();
        if let Some(lease) = self.lease.take().filter(|_| clean && silent) {
            lease.release(self);
        }
    }
}

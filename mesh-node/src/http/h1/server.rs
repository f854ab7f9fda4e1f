//! The server side: one task per connection serves one request after the other.
//!
//! The request body and the response are driven by this task, through what the service awaits; nothing is
//! spawned and no channel lies between. The connection is shared with the request's body (`shared.rs`) through one
//! `Rc` that lives as long as the connection.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::chunk::Decoder;
use super::encode::{self, BodyFacts, ResponseContext};
use super::header_case::HeaderCase;
use super::parse::{self, ConnectionTokens, Framing, HeadError, Limits, Progress, RequestHead};
use super::shared::{Outcome, RequestBody, Shared};
use super::timer::Timer;
use super::wire::{Expect, Wire};
use crate::budget::{Held, Purse};
use crate::drain::Signal;
use crate::http::body::Body;
use crate::http::informational::Informational;
use crate::http::service::{HttpService, Refusal};

/// What a connection may do, how long it may take, and who pays for its memory.
#[derive(Debug, Clone)]
pub struct Options {
    pub limits: Limits,
    /// `enable_trailers`: off drops them, as Envoy does.
    pub trailers: bool,
    pub proper_case: bool,
    /// `proxy_100_continue`: off answers `Expect: 100-continue` here.
    pub proxy_100_continue: bool,
    /// From the first byte of a head to its last.
    pub headers_timeout: Option<Duration>,
    /// Between requests.
    pub idle_timeout: Option<Duration>,
    /// How long an idle connection is kept once the drain began.
    pub drain_timeout: Duration,
    /// How long the peer may take to read an answer and close, after which unread input is dropped.
    pub delayed_close: Option<Duration>,
    /// Where the bytes held for the connection count.
    pub purse: Option<Rc<Purse>>,
}

impl Default for Options {
    /// Envoy's.
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            trailers: false,
            proper_case: false,
            proxy_100_continue: false,
            headers_timeout: None,
            idle_timeout: Some(Duration::from_secs(3600)),
            drain_timeout: Duration::from_secs(5),
            delayed_close: Some(Duration::from_secs(1)),
            purse: None,
        }
    }
}

/// Why a connection ended.
#[derive(Debug)]
pub enum End {
    /// The client closed between requests.
    Closed,
    /// The client went away while a request was served.
    Abandoned,
    /// We closed after an answer: asked to, draining, or HTTP/1.0.
    Finished,
    /// We closed after a request that was refused.
    Refused(&'static str),
    /// The service reset the stream, or a response body failed.
    Reset,
    IdleTimeout,
    Io(io::Error),
}

/// Serves a connection to its end. `preface`: bytes that were already read off it.
pub async fn serve<IO, S>(
    io: IO,
    preface: Bytes,
    options: Rc<Options>,
    service: Rc<S>,
    drain: Arc<Signal>,
) -> End
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: HttpService,
{
    let mut wire = Wire::new(io, Held::new(options.purse.clone()));
    if !preface.is_empty() {
        wire.input = BytesMut::from(preface);
    }
    let shared = Shared::new(wire, &options);
    Server { shared, options, service, drain, timer: Timer::default(), spare: HeaderMap::new() }.run().await
}

struct Server<IO, S> {
    shared: Rc<Shared<IO>>,
    options: Rc<Options>,
    service: Rc<S>,
    drain: Arc<Signal>,
    timer: Timer,
    /// The header map of the message before, emptied.
    spare: HeaderMap,
}

/// What came instead of a request head.
enum NoHead {
    Closed,
    Idle,
    Drained,
    Refused(Refusal),
    Io(io::Error),
}

impl<IO, S> Server<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: HttpService,
{
    async fn run(mut self) -> End {
        let drain = self.drain.clone();
        let mut draining = pin!(drain.wait());
        loop {
            let head = match self.head(draining.as_mut()).await {
                Ok(head) => head,
                Err(NoHead::Refused(refusal)) => return self.refuse(refusal).await,
                Err(NoHead::Closed) => return End::Closed,
                Err(NoHead::Io(error)) => return End::Io(error),
                Err(NoHead::Idle) => return self.close(false, End::IdleTimeout).await,
                Err(NoHead::Drained) => return self.close(false, End::Finished).await,
            };
            if let Some(end) = self.exchange(head).await {
                return end;
            }
        }
    }

    /// The next request head. In the common case one read.
    async fn head(
        &mut self,
        mut draining: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<RequestHead, NoHead> {
        let Self { shared, options, service, drain, timer, spare } = self;
        let mut progress = Progress::default();
        let mut started = false;
        let mut watched = false;
        timer.after(options.idle_timeout);
        poll_fn(|cx| {
            let state = &mut *shared.state.borrow_mut();
            loop {
                if !state.wire.input.is_empty() {
                    match parse::request(&mut state.wire.input, &mut progress, &options.limits, spare) {
                        Ok(Some(head)) => return Poll::Ready(Ok(head)),
                        Err(error) => return Poll::Ready(Err(NoHead::Refused(error.refusal()))),
                        Ok(None) if started || state.wire.input.is_empty() => {}
                        Ok(None) => {
                            started = true;
                            timer.after(options.headers_timeout);
                        }
                    }
                }
                match state.wire.poll_fill(cx, Expect::Head) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(NoHead::Closed)),
                    Poll::Ready(Ok(_)) => state.report(&**service),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(NoHead::Io(error))),
                    Poll::Pending => break,
                }
            }
            if !started && !watched && draining.as_mut().poll(cx).is_ready() {
                watched = true;
                timer.at_most(options.drain_timeout);
            }
            ready!(timer.poll(cx));
            Poll::Ready(Err(match started {
                true => NoHead::Refused(header_timeout()),
                false if drain.started() => NoHead::Drained,
                false => NoHead::Idle,
            }))
        })
        .await
    }

    /// Serves one request. `Some`: the connection has ended.
    async fn exchange(&mut self, head: RequestHead) -> Option<End> {
        let RequestHead {
            method,
            uri,
            version,
            headers,
            framing,
            keep_alive,
            expect_continue,
            upgrade,
            names,
        } = head;
        let mut request = Request::new(Body::Empty);
        *request.uri_mut() = uri;
        *request.version_mut() = version;
        *request.headers_mut() = headers;
        let (head_request, connect) = (method == Method::HEAD, method == Method::CONNECT);
        *request.method_mut() = method;
        if let Some(names) = names {
            request.extensions_mut().insert(names);
        }
        let informational = self.begin(&mut request, framing, expect_continue);

        let outcome = {
            let call = pin!(self.service.call(request));
            self.shared.call(call, &*self.service, informational.as_ref()).await
        };
        let response = match outcome {
            Outcome::Response(response) => response,
            Outcome::Reset => return Some(End::Reset),
            Outcome::Gone => return Some(End::Abandoned),
            Outcome::MalformedBody => return Some(self.refuse(HeadError::Syntax.refusal()).await),
        };
        let accepted = match connect {
            true => response.status().is_success(),
            false => upgrade && response.status() == StatusCode::SWITCHING_PROTOCOLS,
        };
        // As Envoy does: an answer that is early leaves a body that nobody waits for, and a refused upgrade
        // leaves bytes that may be anything.
        let unread = !self.shared.state.borrow().decoder.is_done();
        let close = !keep_alive || self.drain.started() || (unread && !accepted) || (upgrade && !accepted);
        let context = ResponseContext { head_request, raw: accepted, close, case: HeaderCase::Lower };
        let written = self.respond(response, version, context).await;
        let end = match written {
            Ok(false) => None,
            Ok(true) => Some(self.close(unread, End::Finished).await),
            Err(end) => Some(end),
        };
        self.shared.state.borrow_mut().finish();
        end
    }

    /// Sets the connection up for the body of a request and gives it its body.
    fn begin(
        &mut self,
        request: &mut Request<Body>,
        framing: Framing,
        expect_continue: bool,
    ) -> Option<Informational> {
        let state = &mut *self.shared.state.borrow_mut();
        state.exchange += 1;
        state.decoder = Decoder::new(framing);
        if !state.decoder.is_done() {
            let body = RequestBody::new(self.shared.clone(), state.exchange);
            *request.body_mut() = Body::H1Request(body);
        }
        if self.options.proxy_100_continue {
            let informational = Informational::default();
            request.extensions_mut().insert(informational.clone());
            return Some(informational);
        }
        if expect_continue {
            request.headers_mut().remove(header::EXPECT);
            state.wire.output.gather().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        None
    }

    /// Writes a response. True: the connection must end.
    async fn respond(
        &mut self,
        response: Response<S::Body>,
        version: Version,
        context: ResponseContext<'_>,
    ) -> Result<bool, End> {
        let (mut parts, body) = response.into_parts();
        let mut body = pin!(body);
        let asked_to = ConnectionTokens::of(&parts.headers, parts.headers.contains_key(header::CONNECTION));
        let case = HeaderCase::of(&parts.extensions, self.options.proper_case);
        let mut context = ResponseContext { close: context.close || asked_to.close, case, ..context };
        let facts = BodyFacts { ended: body.is_end_stream(), exact: body.size_hint().exact() };
        let framing = {
            let out = &mut self.shared.state.borrow_mut().wire.output;
            if version == Version::HTTP_10 && facts.exact.is_none() && !facts.ended {
                context.close |= !parts.headers.contains_key(header::CONTENT_LENGTH);
            }
            encode::response(out.gather(), version, parts.status, &parts.headers, facts, context)
        };
        let close = context.close;
        parts.headers.clear();
        self.spare = parts.headers;
        self.shared.stream(body.as_mut(), framing, &*self.service, &self.options).await?;
        Ok(close || framing == Framing::UntilClose)
    }

    /// Answers what is not a request, and closes.
    async fn refuse(&mut self, refusal: Refusal) -> End {
        let details = refusal.details;
        let response = self.service.refuse(&refusal);
        let context = ResponseContext { close: true, ..ResponseContext::default() };
        match self.respond(response, Version::HTTP_11, context).await {
            Ok(_) => self.close(true, End::Refused(details)).await,
            Err(end) => end,
        }
    }

    /// Ends our side. With input that nobody reads, waits for the peer to close first: a reset would take the
    /// answer away from it.
    async fn close(&mut self, unread: bool, end: End) -> End {
        let Self { shared, options, timer, .. } = self;
        let shut = poll_fn(|cx| shared.state.borrow_mut().wire.poll_shutdown(cx)).await;
        let linger = unread || !shared.state.borrow().wire.input.is_empty();
        let (true, Ok(()), Some(_)) = (linger, shut, options.delayed_close) else { return end };
        timer.after(options.delayed_close);
        poll_fn(|cx| {
            let wire = &mut shared.state.borrow_mut().wire;
            loop {
                wire.input.clear();
                match wire.poll_fill(cx, Expect::Head) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return timer.poll(cx),
                }
            }
        })
        .await;
        end
    }
}

fn header_timeout() -> Refusal {
    Refusal {
        status: StatusCode::REQUEST_TIMEOUT,
        details: "request_header_timeout",
        body: "request header timeout",
        version: Version::HTTP_11,
    }
}

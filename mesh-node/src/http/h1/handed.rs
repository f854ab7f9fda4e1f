//! Exchanges of a connection whose two ends are in this process: messages are handed over, not written and
//! parsed.
//!
//! Both ends see the messages as if HTTP/1.1 had lain between: framing headers, limits of heads, trailers, what
//! lets a connection live on, and byte counts are those of the wire. Everything is done by whoever polls the
//! exchange and then the response's body, so a slow receiver slows its sender and nothing is queued. The pipe
//! below carries no byte: each end sees by it that the other is gone. [`serve`] is the server's end;
//! the client's belongs to whoever keeps the connection.

mod head;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use tokio::io::{AsyncRead, ReadBuf};

use self::head::{check, expect, frame_response, is_upgrade, request_bytes, response_bytes, written};
use super::client::Failure;
use super::parse::{ConnectionTokens, Framing, HeadError};
use super::server::{End, Options};
use super::timer::Timer;
use crate::drain::Signal;
use crate::http::body::{Body, BodyError};
use crate::http::service::HttpService;
use crate::turn;

/// Bytes of a request's body that are taken before the server's end asks for them.
const AHEAD_BYTES: usize = 16 << 10;

/// Answers the requests of one connection.
pub trait Callee {
    /// One exchange. `trailers`: the client's end sends those of the request.
    fn call(self: Rc<Self>, request: Request<Body>, trailers: bool) -> Calling;
}

/// An exchange that waits for its response.
pub type Calling = Pin<Box<dyn Future<Output = Result<Answer, Failure>>>>;

/// A response, as the client's end gets it.
pub struct Answer {
    pub response: Response<()>,
    pub body: AnswerBody,
    /// The connection can be used again after it.
    pub keep_alive: bool,
    pub sent: Sent,
    /// What the response's head would have taken on the wire.
    pub head_bytes: usize,
}

/// The body of an answer.
pub enum AnswerBody {
    /// None, or all of it.
    Whole(Option<Bytes>),
    Streaming(Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError>>>),
}

/// What has gone of a request.
pub struct Sent {
    head_bytes: usize,
    body: Option<Rc<Progress>>,
}

impl Sent {
    /// All of the request.
    pub fn is_complete(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.done.get())
    }

    /// All of it, and the server's end has read it.
    fn is_read(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.read.get())
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.head_bytes + self.body.as_ref().map_or(0, |body| body.bytes.get())
    }
}

/// How far a request's body has come.
#[derive(Debug, Default)]
struct Progress {
    bytes: Cell<usize>,
    /// The client's end has given all of it.
    done: Cell<bool>,
    /// The server's end has read all of it.
    read: Cell<bool>,
    failed: RefCell<Option<BodyError>>,
    has_failed: Cell<bool>,
}

/// The server's side of an open question: are messages handed over on this connection? Dropped, the answer is
/// no, and bytes are exchanged.
pub struct Offer(Rc<Desk>);

/// The client's side.
pub struct Offered(Rc<Desk>);

#[derive(Default)]
struct Desk {
    outcome: RefCell<Option<Option<Rc<dyn Callee>>>>,
    waker: Cell<Option<Waker>>,
}

/// Both sides of the question.
pub fn offer() -> (Offer, Offered) {
    let desk = Rc::<Desk>::default();
    (Offer(desk.clone()), Offered(desk))
}

impl Offer {
    fn make(self, callee: Rc<dyn Callee>) {
        *self.0.outcome.borrow_mut() = Some(Some(callee));
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.0.outcome.borrow_mut().get_or_insert(None);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }
}

impl Offered {
    /// Waits for the server's end. `None`: bytes are exchanged.
    pub async fn taken(self) -> Option<Rc<dyn Callee>> {
        poll_fn(|cx| match self.0.outcome.borrow_mut().take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                self.0.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

/// Serves a connection to its end. `io` is the server's end of the pipe.
pub async fn serve<IO, S>(
    mut io: IO,
    offer: Offer,
    options: Rc<Options>,
    service: Rc<S>,
    drain: Arc<Signal>,
) -> End
where
    IO: AsyncRead + Unpin,
    S: HttpService,
{
    let mut limit = options.idle_timeout;
    let drain_timeout = options.drain_timeout;
    let server = Rc::new(Server {
        service,
        options,
        drain: drain.clone(),
        busy: Cell::new(0),
        idle_since: Cell::new(turn::now()),
    });
    offer.make(server.clone());
    let mut timer = Timer::default();
    timer.after(limit);
    let mut draining = pin!(drain.wait());
    let mut drained = false;
    poll_fn(|cx| {
        if Pin::new(&mut io).poll_read(cx, &mut ReadBuf::new(&mut [0])).is_ready() {
            return Poll::Ready(if server.busy.get() > 0 { End::Abandoned } else { End::Closed });
        }
        if !drained && draining.as_mut().poll(cx).is_ready() {
            drained = true;
            limit = Some(drain_timeout);
            timer.at_most(drain_timeout);
        }
        loop {
            ready!(timer.poll(cx));
            let Some(limit) = limit else { return Poll::Pending };
            let left = match server.busy.get() {
                0 if drained => Duration::ZERO,
                0 => limit.saturating_sub(turn::since(server.idle_since.get())),
                _ => limit,
            };
            if left.is_zero() {
                return Poll::Ready(if drained { End::Finished } else { End::IdleTimeout });
            }
            timer.after(Some(left));
        }
    })
    .await
}

struct Server<S> {
    service: Rc<S>,
    options: Rc<Options>,
    drain: Arc<Signal>,
    /// Exchanges under way: one at most.
    busy: Cell<u32>,
    idle_since: Cell<Instant>,
}

/// An exchange under way.
struct Busy<S>(Rc<Server<S>>);

impl<S> Busy<S> {
    fn new(server: Rc<Server<S>>) -> Self {
        server.busy.set(server.busy.get() + 1);
        Self(server)
    }
}

impl<S> Drop for Busy<S> {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
        self.0.idle_since.set(turn::now());
    }
}

impl<S: HttpService> Callee for Server<S> {
    fn call(self: Rc<Self>, request: Request<Body>, trailers: bool) -> Calling {
        // The room first: a future of this size is dear to move.
        let exchange = Box::write(Box::new_uninit(), exchange(Busy::new(self), request, trailers));
        Box::into_pin(exchange)
    }
}

/// What of a request matters to its response.
struct Asked {
    head: bool,
    connect: bool,
    upgrade: bool,
}

async fn exchange<S: HttpService>(
    busy: Busy<S>,
    request: Request<Body>,
    trailers: bool,
) -> Result<Answer, Failure> {
    let (service, options) = (&busy.0.service, &busy.0.options);
    let (mut parts, body) = request.into_parts();
    let upgrade = is_upgrade(&parts);
    let asked = Asked {
        head: parts.method == Method::HEAD,
        connect: parts.method == Method::CONNECT,
        upgrade: upgrade || parts.method == Method::CONNECT,
    };
    let framing = written(&mut parts, &body, asked.upgrade);
    let head_bytes = request_bytes(&parts);
    service.on_read(head_bytes);
    if let Err(error) = check(&parts, head_bytes, &options.limits) {
        let response = service.refuse(&error.refusal());
        let sent = Sent { head_bytes, body: None };
        return answer(busy, response, &asked, sent, true).await;
    }
    expect(&mut parts, options.proxy_100_continue);
    let progress = match framing {
        Framing::None | Framing::Length(0) => None,
        _ => Some(Rc::<Progress>::default()),
    };
    let body = match &progress {
        None => Body::Empty,
        Some(progress) => {
            let mut body = RequestBody {
                inner: body,
                ahead: VecDeque::new(),
                left: if let Framing::Length(length) = framing { Some(length) } else { None },
                trailers: trailers && options.trailers && framing == Framing::Chunked,
                progress: progress.clone(),
                service: service.clone(),
            };
            // The body of an upgrade waits for its answer.
            if !asked.upgrade {
                poll_fn(|cx| {
                    body.read_ahead(cx);
                    Poll::Ready(())
                })
                .await;
            }
            Body::boxed(body)
        }
    };
    let request = Request::from_parts(parts, body);
    let outcome = {
        let mut call = pin!(service.call(request));
        poll_fn(|cx| {
            let outcome = call.as_mut().poll(cx);
            let failed = progress.as_ref().and_then(|progress| progress.failed.borrow_mut().take());
            match failed {
                Some(error) => Poll::Ready(Err(Failure::RequestBody(error))),
                None => outcome.map(Ok),
            }
        })
        .await?
    };
    let Ok(response) = outcome else { return Err(ended()) };
    answer(busy, response, &asked, Sent { head_bytes, body: progress }, false).await
}

/// The server's end closed before it answered.
fn ended() -> Failure {
    Failure::Connection { error: std::io::ErrorKind::UnexpectedEof.into(), untouched: true }
}

/// Brings a response into the form in which it would arrive.
async fn answer<S: HttpService>(
    busy: Busy<S>,
    response: Response<S::Body>,
    asked: &Asked,
    sent: Sent,
    close: bool,
) -> Result<Answer, Failure> {
    let (mut parts, body) = response.into_parts();
    let mut body = Box::pin(body);
    let accepted = match asked.connect {
        true => parts.status.is_success(),
        false => asked.upgrade && parts.status == StatusCode::SWITCHING_PROTOCOLS,
    };
    if parts.status == StatusCode::SWITCHING_PROTOCOLS && !accepted {
        return Err(HeadError::UnaskedUpgrade.into());
    }
    let said = parts.headers.contains_key(header::CONNECTION);
    let said = ConnectionTokens::of(&parts.headers, said).close;
    // As on the wire: an answer that is early leaves a body that nobody waits for.
    let early = asked.upgrade || !sent.is_read();
    let close = close || said || busy.0.drain.started() || (early && !accepted);
    if close && !said {
        parts.headers.append(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let facts = (body.is_end_stream(), body.size_hint().exact());
    let framing = frame_response(&mut parts.headers, parts.status, facts, asked.head, accepted);
    let head_bytes = response_bytes(&parts.headers, parts.status);
    busy.0.service.on_written(head_bytes);
    let mut answer = Response::new(());
    (*answer.status_mut(), *answer.headers_mut()) = (parts.status, parts.headers);
    let keep_alive = !close && framing != Framing::UntilClose;
    let body = match framing {
        Framing::None => AnswerBody::Whole(None),
        _ => {
            let first = poll_fn(|cx| Poll::Ready(body.as_mut().poll_frame(cx))).await;
            whole_or_stream(busy, body, framing, first, sent.body.clone())
        }
    };
    Ok(Answer { response: answer, body, keep_alive, sent, head_bytes })
}

/// Most bodies are here with their head.
fn whole_or_stream<S: HttpService>(
    busy: Busy<S>,
    inner: Pin<Box<S::Body>>,
    framing: Framing,
    first: Poll<Option<Result<Frame<Bytes>, BodyError>>>,
    request: Option<Rc<Progress>>,
) -> AnswerBody {
    let left = if let Framing::Length(length) = framing { Some(length) } else { None };
    match (&first, left) {
        (Poll::Ready(Some(Ok(frame))), Some(left))
            if inner.is_end_stream() && frame.data_ref().is_some_and(|data| data.len() as u64 == left) => {}
        (Poll::Ready(None), None | Some(0)) => return AnswerBody::Whole(None),
        _ => {
            return AnswerBody::Streaming(Box::pin(Streaming {
                inner: Some(inner),
                first: Some(first),
                left,
                framing,
                request,
                busy,
            }));
        }
    }
    let data = match first {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
        _ => None,
    };
    busy.0.service.on_written(data.as_ref().map_or(0, Bytes::len));
    AnswerBody::Whole(data)
}

/// What a body gives when it is asked.
type Given = Option<Result<Frame<Bytes>, BodyError>>;

/// A response's body on its way to the client's end.
struct Streaming<S: HttpService> {
    inner: Option<Pin<Box<S::Body>>>,
    /// What came of looking at it once already.
    first: Option<Poll<Given>>,
    left: Option<u64>,
    framing: Framing,
    request: Option<Rc<Progress>>,
    busy: Busy<S>,
}

impl<S: HttpService> Unpin for Streaming<S> {}

impl<S: HttpService> Streaming<S> {
    /// The response's body broke off. Without framing that is its end.
    fn fail(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        self.inner = None;
        if self.request.as_ref().is_some_and(|request| request.has_failed.get()) {
            return Some(Err(BodyError::Aborted("request body failed")));
        }
        (self.framing != Framing::UntilClose).then_some(Err(BodyError::Incomplete))
    }
}

impl<S: HttpService> http_body::Body for Streaming<S> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let frame = match this.first.take() {
            Some(Poll::Ready(frame)) => frame,
            _ => ready!(inner.as_mut().poll_frame(cx)),
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let length = data.len() as u64;
                    match this.left.map(|left| left.checked_sub(length)) {
                        Some(None) => return Poll::Ready(this.fail()),
                        Some(left) => this.left = left,
                        None => {}
                    }
                    this.busy.0.service.on_written(data.len());
                    Some(Ok(Frame::data(data)))
                }
                Err(frame) => {
                    let kept = this.framing == Framing::Chunked && this.busy.0.options.trailers;
                    // The end of the body is its own to tell.
                    if kept { Some(Ok(frame)) } else { return self.poll_frame(cx) }
                }
            },
            Some(Err(error)) => {
                tracing::debug!(%error, "response body failed");
                this.fail()
            }
            None if this.left.is_some_and(|left| left > 0) => this.fail(),
            None => {
                this.inner = None;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.inner.as_ref().is_none_or(|inner| inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A request's body on its way to the server's end.
struct RequestBody<S> {
    inner: Body,
    /// What would have been written with the head, or soon after.
    ahead: VecDeque<Option<Result<Frame<Bytes>, BodyError>>>,
    left: Option<u64>,
    trailers: bool,
    progress: Rc<Progress>,
    service: Rc<S>,
}

impl<S: HttpService> RequestBody<S> {
    /// Takes what is here of the body already, though the server's end may never ask for it.
    fn read_ahead(&mut self, cx: &mut Context<'_>) {
        while self.progress.bytes.get() < AHEAD_BYTES
            && !self.progress.done.get()
            && !self.progress.has_failed.get()
            && let Poll::Ready(frame) = self.poll_inner(cx)
        {
            self.ahead.push_back(frame);
        }
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let failed = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.progress.bytes.set(self.progress.bytes.get() + data.len());
                    match self.left.map(|left| left.checked_sub(data.len() as u64)) {
                        Some(None) => BodyError::Malformed("longer than its content-length"),
                        left => {
                            self.left = left.flatten();
                            self.progress.done.set(self.left == Some(0) || self.inner.is_end_stream());
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                    }
                }
                Err(frame) => {
                    self.progress.done.set(true);
                    return Poll::Ready(self.trailers.then_some(Ok(frame)));
                }
            },
            Some(Err(error)) => error,
            None if self.left.is_some_and(|left| left > 0) => BodyError::Incomplete,
            None => {
                self.progress.done.set(true);
                return Poll::Ready(None);
            }
        };
        self.progress.has_failed.set(true);
        *self.progress.failed.borrow_mut() = Some(failed);
        // The server's end sees a connection that ends in the middle.
        Poll::Ready(Some(Err(BodyError::Incomplete)))
    }
}

impl<S: HttpService> http_body::Body for RequestBody<S> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match this.ahead.pop_front() {
            Some(frame) => frame,
            None if this.progress.done.get() || this.progress.has_failed.get() => None,
            None => ready!(this.poll_inner(cx)),
        };
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            this.service.on_read(data.len());
        }
        this.progress.read.set(this.progress.done.get() && this.ahead.is_empty());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.progress.read.get()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead = self.ahead.iter().flatten().flatten().filter_map(|frame| frame.data_ref());
        let ahead = ahead.map(|data| data.len() as u64).sum::<u64>();
        match self.progress.read.get() {
            true => SizeHint::with_exact(0),
            false => self.left.map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + ahead)),
        }
    }
}

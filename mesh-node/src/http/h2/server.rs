//! The server side: one connection, its streams on the same worker, one task each.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::backlog::Backlog;
use super::keepalive::KeepAlive;
use super::progress::{Progress, ServiceMeter};
use super::receive::Received;
use super::send::{Broken, send};
use super::{SEND_BUFFER, strip_connection_headers, windows};
use crate::budget::Purse;
use crate::drain::Signal;
use crate::http::body::Body;
use crate::http::informational::Informational;
use crate::http::metered::Metered;
use crate::http::service::{HttpService, Reset};
use crate::model::network::Http2Options;
use crate::turn::Each;

/// Streams that a client may have opened and reset before they were accepted, and resets that its errors may
/// provoke: beyond that the connection is closed (rapid reset). These are `h2`'s figures, stated.
const MAX_RESET_STREAMS: usize = 20;
const MAX_LOCAL_ERROR_RESETS: usize = 1024;

/// How every client begins (RFC 9113 section 3.4): this many bytes before the first frame.
const PREFACE_BYTES: usize = 24;

/// What a connection may do, how long it may take, and who pays for its memory.
#[derive(Debug, Clone)]
pub struct Options {
    pub http2: Http2Options,
    /// Bytes of a request's headers, uncompressed.
    pub max_header_bytes: u32,
    /// `proxy_100_continue`: interim responses are passed on; else `Expect: 100-continue` is answered here.
    pub proxy_100_continue: bool,
    /// Without any traffic on the connection.
    pub idle_timeout: Option<Duration>,
    /// How long a client may take to read why its connection failed.
    pub delayed_close: Option<Duration>,
    /// Where the bytes held for the connection count.
    pub purse: Option<Rc<Purse>>,
}

/// A connection as its streams share it.
struct Connection<S> {
    service: Rc<S>,
    options: Rc<Options>,
    progress: Rc<Progress>,
    backlog: Rc<Backlog>,
    /// A response with `connection: close` ends the connection once its streams are done.
    closing: Notify,
}

/// Serves a connection to its end. `preface`: bytes that were already read off it.
///
/// # Errors
/// The protocol was broken, or the transport failed.
pub async fn serve<IO, S>(
    io: IO,
    preface: Bytes,
    options: Rc<Options>,
    service: Rc<S>,
    drain: Arc<Signal>,
) -> Result<(), h2::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: HttpService,
{
    let progress = Rc::new(Progress::default());
    let linger = options.delayed_close;
    let backlog = Backlog::new(options.purse.clone(), PREFACE_BYTES);
    let (progress_of, backlog_of) = (progress.clone(), backlog.clone());
    let meter = ServiceMeter { service: service.clone(), progress: progress_of, backlog: backlog_of, linger };
    let io = Metered::with_prefix(preface, io, meter);
    let connection = Connection { service, options, progress, backlog, closing: Notify::new() };
    let connection = Rc::new(connection);
    let outcome = connection.clone().run(io, &drain).await;
    connection.progress.end();
    outcome
}

impl<S: HttpService> Connection<S> {
    async fn run<IO>(
        self: Rc<Self>,
        io: Metered<IO, ServiceMeter<S>>,
        drain: &Signal,
    ) -> Result<(), h2::Error>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let mut ending = pin!(async {
            tokio::select! {
                () = drain.wait() => {}
                () = self.closing.notified() => {}
                () = idle(&self.progress, self.options.idle_timeout) => {}
            }
        });
        let failed = |error: h2::Error| {
            self.progress.failed.set(true);
            error
        };
        let mut handshake = pin!(builder(&self.options).handshake(io));
        // A connection that says nothing ends with the idle timeout, or when the proxy drains.
        let connection = tokio::select! {
            biased;
            connection = &mut handshake => Some(connection.map_err(failed)?),
            () = &mut ending => None,
        };
        let Some(mut connection) = connection else { return Ok(()) };
        let mut keepalive = KeepAlive::new(self.options.http2.keepalive, connection.ping_pong());
        let mut shutting_down = false;
        poll_fn(|cx| {
            if !shutting_down && ending.as_mut().poll(cx).is_ready() {
                shutting_down = true;
                connection.graceful_shutdown();
            }
            if keepalive.as_mut().is_some_and(|keepalive| keepalive.poll_dead(cx).is_ready()) {
                return Poll::Ready(Ok(()));
            }
            if let Some(size) = self.backlog.new_window(windows(&self.options.http2).1) {
                connection.set_target_window_size(size);
            }
            loop {
                match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        tokio::task::spawn_local(Each::new(self.clone().stream(request, respond)));
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(failed(error))),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => {
                        self.progress.written(cx.waker());
                        return Poll::Pending;
                    }
                }
            }
        })
        .await
    }

    /// Serves one stream.
    async fn stream(self: Rc<Self>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let Some((mut request, upgrade)) = into_request(request, &self.backlog) else {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return;
        };
        let informational = self.expect(&mut request, &mut respond);
        let answer = {
            let mut call = pin!(self.service.call(request));
            let answer = poll_fn(|cx| {
                let answer = call.as_mut().poll(cx);
                if let Some(informational) = &informational {
                    pass_on(informational, &mut respond, cx);
                }
                match answer {
                    Poll::Ready(answer) => Poll::Ready(Ok(answer)),
                    Poll::Pending => respond.poll_reset(cx).map(|cut| Err(cut.is_ok())),
                }
            })
            .await;
            if let Err(reset) = &answer {
                self.service.on_cut(*reset);
            }
            answer
        };
        match answer {
            Ok(Ok(response)) => self.respond(response, respond, upgrade).await,
            Ok(Err(Reset)) => respond.send_reset(Reason::INTERNAL_ERROR),
            Err(_) => {}
        }
    }

    /// Interim responses of upstreams are passed on, or `Expect: 100-continue` is answered here.
    fn expect(
        &self,
        request: &mut Request<Body>,
        respond: &mut SendResponse<Bytes>,
    ) -> Option<Informational> {
        if self.options.proxy_100_continue {
            let informational = Informational::default();
            request.extensions_mut().insert(informational.clone());
            return Some(informational);
        }
        let expected = request.headers().get(header::EXPECT);
        if expected.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
            request.headers_mut().remove(header::EXPECT);
            interim(respond, StatusCode::CONTINUE, http::HeaderMap::new());
        }
        None
    }

    async fn respond(&self, response: Response<S::Body>, mut respond: SendResponse<Bytes>, upgrade: bool) {
        let (mut parts, body) = response.into_parts();
        let switched = upgrade && parts.status == StatusCode::SWITCHING_PROTOCOLS;
        if switched {
            parts.status = StatusCode::OK;
            parts.headers.remove(header::CONNECTION);
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        if strip_connection_headers(&mut parts.headers) {
            self.closing.notify_one();
        }
        let mut head = Response::new(());
        *head.status_mut() = parts.status;
        *head.version_mut() = Version::HTTP_2;
        *head.headers_mut() = parts.headers;
        let ended = body.is_end_stream();
        // An error means that the stream is gone.
        let Ok(mut stream) = respond.send_response(head, ended) else {
            let reset = respond.poll_reset(&mut Context::from_waker(Waker::noop()));
            return self.service.on_cut(matches!(reset, Poll::Ready(Ok(_))));
        };
        if ended {
            return;
        }
        let mut body = pin!(body);
        match send(body.as_mut(), &mut stream, self.options.purse.clone()).await {
            Ok(()) => {}
            Err(Broken::Peer { reset }) => self.service.on_cut(reset),
            Err(Broken::Body(error)) => {
                tracing::debug!(%error, "response body failed");
                // A reset drops what is still queued of its stream; what was received is passed on first.
                self.progress.flushed().await;
                stream.send_reset(Reason::INTERNAL_ERROR);
            }
        }
    }
}

/// The request in the form that all codecs use. True: an upgrade. `None`: its protocol is no header value.
fn into_request(request: Request<RecvStream>, backlog: &Rc<Backlog>) -> Option<(Request<Body>, bool)> {
    let (mut parts, stream) = request.into_parts();
    let ended = stream.is_end_stream();
    let received = Received::of_request(stream, &parts.headers, backlog);
    let Some(protocol) = parts.extensions.remove::<Protocol>() else {
        let body = if ended { Body::Empty } else { Body::H2(received) };
        return Some((Request::from_parts(parts, body), false));
    };
    parts.method = Method::GET;
    parts.headers.insert(header::UPGRADE, HeaderValue::from_str(protocol.as_str()).ok()?);
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    Some((Request::from_parts(parts, Body::H2(received)), true))
}

fn pass_on(informational: &Informational, respond: &mut SendResponse<Bytes>, cx: &Context<'_>) {
    for (status, mut headers) in informational.take(cx.waker()) {
        strip_connection_headers(&mut headers);
        interim(respond, status, headers);
    }
}

fn interim(respond: &mut SendResponse<Bytes>, status: StatusCode, headers: http::HeaderMap) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    // It fails with the stream, which the stream's own task notices.
    let _ = respond.send_informational(response);
}

fn builder(options: &Options) -> Builder {
    let (stream_window, connection_window) = windows(&options.http2);
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(options.http2.max_concurrent_streams)
        .initial_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(options.max_header_bytes)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS));
    if options.http2.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

/// Returns when nothing went over the wire for `timeout`.
async fn idle(progress: &Progress, timeout: Option<Duration>) {
    let Some(timeout) = timeout else { return std::future::pending().await };
    loop {
        let before = progress.activity.get();
        sleep_until(Instant::now() + timeout).await;
        if progress.activity.get() == before {
            return;
        }
    }
}

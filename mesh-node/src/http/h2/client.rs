//! The client side: a connection that many exchanges share.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::ext::Protocol;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use super::backlog::Backlog;
use super::keepalive::KeepAlive;
use super::receive::Received;
use super::send::{Broken, Sender};
use super::{SEND_BUFFER, strip_connection_headers, windows};
use crate::budget::Purse;
use crate::http::body::{Body, BodyError};
use crate::http::h1::parse::ConnectionTokens;
use crate::http::informational::Informational;
use crate::http::metered::Metered;
use crate::model::network::Http2Options;
use crate::telemetry::stream_info::UpstreamConnection;

/// Bytes of a response's headers, uncompressed: Envoy's `max_response_headers_kb`.
const MAX_HEADER_BYTES: u32 = 60 << 10;
/// Streams that are opened before the server has said how many it allows.
const INITIAL_MAX_STREAMS: usize = 100;

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The server did not look at the request: REFUSED_STREAM, or GOAWAY below its stream. Safe to repeat.
    #[error("stream refused by the server")]
    Refused,
    /// The connection was gone before the request was sent. Safe to repeat.
    #[error("connection closed before the request was sent")]
    NotSent,
    #[error("stream reset by the server: {0}")]
    Reset(h2::Reason),
    #[error("HTTP/2 connection: {0}")]
    Connection(#[from] h2::Error),
    /// The request's own body failed.
    #[error("request body: {0}")]
    RequestBody(BodyError),
}

/// A connection's sending half; clones share it. The connection closes when the last one and all responses
/// are gone.
#[derive(Clone)]
pub struct Handle {
    sender: SendRequest<Bytes>,
    connection: Arc<UpstreamConnection>,
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Exchanges that are not over.
    active: Cell<u32>,
    begun: Cell<u32>,
    /// `max_concurrent_streams` of the cluster.
    limit: usize,
    closed: Cell<bool>,
    backlog: Rc<Backlog>,
    purse: Option<Rc<Purse>>,
    idle_timeout: Option<Duration>,
}

/// Starts HTTP/2 on a connected transport. The owner closes it when it is idle for
/// `idle_timeout`. What is held for it counts in `purse`.
///
/// # Errors
/// The handshake failed.
pub async fn connect<IO>(
    io: IO,
    facts: Arc<UpstreamConnection>,
    options: &Http2Options,
    idle_timeout: Option<Duration>,
    purse: Option<Rc<Purse>>,
) -> Result<Handle, Failure>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (stream_window, connection_window) = windows(options);
    let backlog = Backlog::new(purse.clone(), 0);
    let io = Metered::new(io, backlog.clone());
    let (sender, mut connection) = Builder::new()
        .enable_push(false)
        .initial_max_send_streams(INITIAL_MAX_STREAMS)
        .initial_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADER_BYTES)
        .handshake::<_, Bytes>(io)
        .await?;
    let limit = options.max_concurrent_streams as usize;
    let shared = Rc::new(Shared {
        active: Cell::new(0),
        begun: Cell::new(0),
        limit,
        closed: Cell::new(false),
        backlog,
        purse,
        idle_timeout,
    });
    let mut keepalive = KeepAlive::new(options.keepalive, connection.ping_pong());
    tokio::task::spawn_local({
        let shared = shared.clone();
        async move {
            let mut connection = pin!(connection);
            let outcome = poll_fn(|cx| {
                if keepalive.as_mut().is_some_and(|keepalive| keepalive.poll_dead(cx).is_ready()) {
                    return Poll::Ready(Ok(()));
                }
                if let Some(size) = shared.backlog.new_window(connection_window) {
                    connection.set_target_window_size(size);
                }
                connection.as_mut().poll(cx)
            })
            .await;
            shared.closed.set(true);
            if let Err(error) = outcome {
                tracing::debug!(%error, "HTTP/2 connection to an endpoint ended");
            }
        }
    });
    Ok(Handle { sender, connection: facts, shared })
}

impl Handle {
    /// May carry one exchange more.
    pub fn has_room(&mut self) -> bool {
        let allowed = self.sender.current_max_send_streams().min(self.shared.limit).max(1);
        (self.shared.active.get() as usize) < allowed && self.is_open()
    }

    /// Neither closed nor told to go away.
    pub fn is_open(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        !self.shared.closed.get() && !matches!(self.sender.poll_ready(&mut context), Poll::Ready(Err(_)))
    }

    /// Facts of the connection.
    pub fn connection(&self) -> &Arc<UpstreamConnection> {
        &self.connection
    }

    /// How long it may be without an exchange.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.shared.idle_timeout
    }

    /// Exchanges that are not over.
    pub fn active(&self) -> u32 {
        self.shared.active.get()
    }

    /// Exchanges begun on this connection.
    pub fn exchanges(&self) -> u32 {
        self.shared.begun.get()
    }

    /// Sends a request and returns the response once its headers are here. `lease` lives as long as the exchange.
    /// An upgrade is sent as extended CONNECT, and its acceptance comes back as 101.
    ///
    /// # Errors
    /// See [`Failure`]. A dropped future resets the stream with CANCEL.
    pub fn exchange<L: Unpin + 'static>(
        &mut self,
        request: Request<Body>,
        lease: L,
    ) -> impl Future<Output = Result<Response<Body>, Failure>> + use<L> {
        let active = Active::begin(&self.shared);
        let mut sender = self.sender.clone();
        let (backlog, purse) = (self.shared.backlog.clone(), self.shared.purse.clone());
        async move {
            let (mut parts, body) = request.into_parts();
            let informational = parts.extensions.remove::<Informational>();
            let tunnel = Tunnel::of(&mut parts);
            let connect = parts.method == Method::CONNECT;
            strip_connection_headers(&mut parts.headers);
            parts.headers.remove(header::HOST);
            parts.version = Version::HTTP_2;
            let ended = body.is_end_stream() && !connect;
            poll_fn(|cx| sender.poll_ready(cx)).await.map_err(|_| Failure::NotSent)?;
            let (response, stream) =
                sender.send_request(Request::from_parts(parts, ()), ended).map_err(not_sent)?;
            let mut sending = (!ended).then(|| Sending { body, stream, sender: Sender::new(purse) });
            let mut waiting = Waiting { response, informational };
            let response = poll_fn(|cx| {
                // What follows CONNECT is no part of the request: it waits for the answer.
                if !connect && let Some(Poll::Ready(sent)) = sending.as_mut().map(|sending| sending.poll(cx))
                {
                    sending = None;
                    if let Err(Broken::Body(error)) = sent {
                        return Poll::Ready(Err(Failure::RequestBody(error)));
                    }
                }
                waiting.poll(cx).map_err(classify)
            })
            .await?;
            let (mut parts, stream) = response.into_parts();
            if connect && !parts.status.is_success() {
                sending = None;
            }
            let rest = sending.map(|sending| Rest(tokio::task::spawn_local(sending.finish())));
            if let Some(tunnel) = tunnel {
                tunnel.answered(&mut parts);
            }
            if stream.is_end_stream() {
                return Ok(Response::from_parts(parts, Body::Empty));
            }
            let body = Received::of_response(stream, &parts.headers, &backlog);
            let body = Body::boxed(Leased { body, _rest: rest, _active: active, _lease: lease });
            Ok(Response::from_parts(parts, body))
        }
    }
}

/// An upgrade, which HTTP/2 carries as extended CONNECT (RFC 8441).
struct Tunnel(HeaderValue);

impl Tunnel {
    /// Rewrites the head of a request that asks for an upgrade.
    fn of(parts: &mut http::request::Parts) -> Option<Self> {
        let headers = &mut parts.headers;
        let protocol = headers.get(header::UPGRADE)?;
        if !ConnectionTokens::of(headers, headers.contains_key(header::CONNECTION)).upgrade {
            return None;
        }
        let protocol = protocol.clone();
        parts.extensions.insert(Protocol::from(protocol.to_str().ok()?));
        parts.method = Method::CONNECT;
        headers.remove(header::CONTENT_LENGTH);
        Some(Self(protocol))
    }

    /// Success is what HTTP/1 says by 101.
    fn answered(self, parts: &mut http::response::Parts) {
        if parts.status == StatusCode::OK {
            parts.status = StatusCode::SWITCHING_PROTOCOLS;
            parts.headers.insert(header::UPGRADE, self.0);
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
    }
}

/// A request's body on its way.
struct Sending {
    body: Body,
    stream: SendStream<Bytes>,
    sender: Sender,
}

impl Sending {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.sender.poll(cx, &mut self.stream, Pin::new(&mut self.body))
    }

    /// Sends what is left while the response is read; a body that fails resets the stream.
    async fn finish(mut self) {
        if let Err(Broken::Body(error)) = poll_fn(|cx| self.poll(cx)).await {
            tracing::debug!(%error, "request body failed");
            self.stream.send_reset(h2::Reason::CANCEL);
        }
    }
}

/// The rest of a request, which nobody needs once its response is over.
struct Rest(JoinHandle<()>);

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Waiting {
    response: ResponseFuture,
    informational: Option<Informational>,
}

impl Waiting {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<h2::RecvStream>, h2::Error>> {
        if let Some(informational) = &self.informational {
            while let Poll::Ready(Some(Ok(interim))) = self.response.poll_informational(cx) {
                let (parts, ()) = interim.into_parts();
                informational.send(parts.status, parts.headers);
            }
        }
        Pin::new(&mut self.response).poll(cx)
    }
}

/// The connection ended before the stream could begin, or the request cannot be said in HTTP/2.
fn not_sent(error: h2::Error) -> Failure {
    if error.is_go_away() || error.is_io() { Failure::NotSent } else { Failure::Connection(error) }
}

fn classify(error: h2::Error) -> Failure {
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => Failure::Refused,
        Some(h2::Reason::NO_ERROR) if error.is_go_away() => Failure::Refused,
        Some(reason) => Failure::Reset(reason),
        None => Failure::Connection(error),
    }
}

/// Counts an exchange while it lives.
struct Active(Rc<Shared>);

impl Active {
    fn begin(shared: &Rc<Shared>) -> Self {
        shared.active.set(shared.active.get() + 1);
        shared.begun.set(shared.begun.get().saturating_add(1));
        Self(shared.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
    }
}

/// A response's body that keeps what belongs to its exchange.
struct Leased<L> {
    body: Received,
    _rest: Option<Rest>,
    _active: Active,
    _lease: L,
}

impl<L: Unpin> http_body::Body for Leased<L> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

//! The client side: a connection that many exchanges share.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{LocalExecutor, SEND_BUFFER, reset_reason, windows};
use crate::http::body::{Body, BodyError};
use crate::model::network::Http2Options;

/// Bytes of a response's headers, uncompressed: Envoy's `max_response_headers_kb`.
const MAX_HEADER_BYTES: u32 = 60 << 10;

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
    Connection(#[from] hyper::Error),
}

/// A connection's sending half; clones share it. The connection closes when the last one and all responses
/// are gone.
#[derive(Clone)]
pub struct Handle {
    sender: SendRequest<Body>,
    local: SocketAddr,
    shared: Rc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Exchanges that are not over.
    active: Cell<u32>,
    begun: Cell<u32>,
    /// What the server allows now.
    max_streams: Cell<usize>,
    closed: Cell<bool>,
    idle_timeout: Option<Duration>,
}

/// Starts HTTP/2 on a connected transport with this local address. The owner closes it when it is idle for
/// `idle_timeout`.
///
/// # Errors
/// The handshake failed.
pub async fn connect<IO>(
    io: IO,
    local: SocketAddr,
    options: &Http2Options,
    idle_timeout: Option<Duration>,
) -> Result<Handle, Failure>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (stream_window, connection_window) = windows(options);
    let mut builder = Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADER_BYTES);
    if let Some((interval, timeout)) = options.keepalive {
        builder.keep_alive_interval(interval).keep_alive_timeout(timeout).keep_alive_while_idle(true);
    }
    let (sender, connection) = builder.handshake::<_, Body>(TokioIo::new(io)).await?;
    let shared = Rc::new(Shared { idle_timeout, ..Shared::default() });
    shared.max_streams.set(options.max_concurrent_streams as usize);
    let limit = options.max_concurrent_streams as usize;
    tokio::task::spawn_local({
        let shared = shared.clone();
        async move {
            let mut connection = pin!(connection);
            let outcome = poll_fn(|cx| {
                let outcome = connection.as_mut().poll(cx);
                shared.max_streams.set(connection.current_max_send_streams().min(limit));
                outcome
            })
            .await;
            shared.closed.set(true);
            if let Err(error) = outcome {
                tracing::debug!(%error, "HTTP/2 connection to an endpoint ended");
            }
        }
    });
    Ok(Handle { sender, local, shared })
}

impl Handle {
    /// May carry one exchange more.
    pub fn has_room(&self) -> bool {
        self.is_open() && (self.shared.active.get() as usize) < self.shared.max_streams.get().max(1)
    }

    /// Neither closed nor told to go away.
    pub fn is_open(&self) -> bool {
        !self.shared.closed.get() && !self.sender.is_closed()
    }

    /// The connection's own address.
    pub fn local(&self) -> SocketAddr {
        self.local
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
    ///
    /// # Errors
    /// See [`Failure`]. A dropped future resets the stream with CANCEL.
    pub fn exchange<L: Unpin + 'static>(
        &mut self,
        mut request: Request<Body>,
        lease: L,
    ) -> impl Future<Output = Result<Response<Body>, Failure>> + use<L> {
        let active = Active::begin(&self.shared);
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(header::HOST);
        request.headers_mut().remove(header::TRANSFER_ENCODING);
        if request.body().is_end_stream() {
            // Where no length came, none goes: hyper would add one to a POST.
            *request.body_mut() = Body::boxed(NoBody);
        }
        let response = self.sender.try_send_request(request);
        async move {
            let response = response.await.map_err(|mut failed| {
                let unsent = failed.take_message().is_some();
                classify(failed.into_error(), unsent)
            })?;
            Ok(response.map(|body| match body.is_end_stream() {
                true => Body::Empty,
                false => Body::boxed(Leased { body, _active: active, _lease: lease }),
            }))
        }
    }
}

/// A body that is over and says nothing of its length.
struct NoBody;

impl http_body::Body for NoBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

fn classify(error: hyper::Error, unsent: bool) -> Failure {
    let go_away = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<h2::Error>())
        .is_some_and(|error| error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR));
    match reset_reason(&error) {
        _ if unsent => Failure::NotSent,
        Some(h2::Reason::REFUSED_STREAM) => Failure::Refused,
        _ if go_away => Failure::Refused,
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
    body: Incoming,
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
        Pin::new(&mut self.body).poll_frame(cx).map_err(BodyError::H2)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

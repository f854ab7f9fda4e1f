//! The server side: one connection, its streams on the same worker.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::io::{Meter, Metered};
use super::{LocalExecutor, SEND_BUFFER, windows};
use crate::drain::Signal;
use crate::http::body::Body;
use crate::http::service::{HttpService, Reset};
use crate::model::network::Http2Options;

/// Streams that a client may have opened and reset before they were accepted, and resets that its errors may
/// provoke: beyond that the connection is closed (rapid reset). These are `h2`'s figures, stated.
const MAX_RESET_STREAMS: usize = 20;
const MAX_LOCAL_ERROR_RESETS: usize = 1024;

/// What a connection may do and how long it may take.
#[derive(Debug, Clone)]
pub struct Options {
    pub http2: Http2Options,
    /// Bytes of a request's headers, uncompressed.
    pub max_header_bytes: u32,
    /// Without any traffic on the connection.
    pub idle_timeout: Option<Duration>,
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
) -> Result<(), hyper::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: HttpService,
{
    let activity = Rc::new(Cell::new(0));
    let io = Metered::new(preface, io, ServiceMeter(service.clone()), activity.clone());
    // A response with `connection: close` ends the connection once its streams are done.
    let closing = Rc::new(Notify::new());
    let asked = closing.clone();
    let connection = builder(&options).serve_connection(
        TokioIo::new(io),
        service_fn(move |request| {
            let (service, closing) = (service.clone(), closing.clone());
            async move { answer(&service, request, &closing).await }
        }),
    );
    let mut connection = pin!(connection);
    let mut draining = pin!(async {
        tokio::select! {
            () = drain.wait() => {}
            () = asked.notified() => {}
            () = idle(&activity, options.idle_timeout) => {}
        }
    });
    let mut ending = false;
    poll_fn(|cx| {
        if !ending && draining.as_mut().poll(cx).is_ready() {
            ending = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    })
    .await
}

fn builder(options: &Options) -> Builder<LocalExecutor> {
    let (stream_window, connection_window) = windows(&options.http2);
    let mut builder = Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(options.http2.max_concurrent_streams)
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(options.max_header_bytes)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(MAX_LOCAL_ERROR_RESETS);
    if let Some((interval, timeout)) = options.http2.keepalive {
        builder.keep_alive_interval(interval).keep_alive_timeout(timeout);
    }
    if options.http2.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

async fn answer<S: HttpService>(
    service: &Rc<S>,
    request: Request<Incoming>,
    closing: &Notify,
) -> Result<Response<S::Body>, h2::Error> {
    let request = request.map(|body| if body.is_end_stream() { Body::Empty } else { Body::H2(body) });
    match service.call(request).await {
        Ok(mut response) => {
            if response.headers_mut().remove(header::CONNECTION).is_some() {
                closing.notify_one();
            }
            response.headers_mut().remove(header::TRANSFER_ENCODING);
            *response.version_mut() = Version::HTTP_2;
            Ok(response)
        }
        Err(Reset) => Err(h2::Reason::INTERNAL_ERROR.into()),
    }
}

/// Returns when nothing went over the wire for `timeout`.
async fn idle(activity: &Cell<u64>, timeout: Option<Duration>) {
    let Some(timeout) = timeout else { return std::future::pending().await };
    loop {
        let before = activity.get();
        sleep_until(Instant::now() + timeout).await;
        if activity.get() == before {
            return;
        }
    }
}

struct ServiceMeter<S>(Rc<S>);

impl<S: HttpService> Meter for ServiceMeter<S> {
    fn on_read(&self, bytes: usize) {
        self.0.on_read(bytes);
    }

    fn on_written(&self, bytes: usize) {
        self.0.on_written(bytes);
    }
}

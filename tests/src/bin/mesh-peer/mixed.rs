//! A server of four protocols on four ports, for load: HTTP/1.1, HTTP/2 with prior knowledge, gRPC (the
//! same with trailers) and lines over TCP. It counts its open connections, so that a pod can tell when it
//! may go.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_tests::soak::Protocol;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// One open connection.
struct Open;

impl Open {
    fn new() -> Open {
        OPEN.fetch_add(1, Ordering::Relaxed);
        Open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves until the process is killed. Prints `listening`, and the number of open connections for every
/// line of standard input. The line `drain` also ends idle HTTP connections and those that become idle, as a
/// server does that was asked to end.
pub fn serve() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let (drain, draining) = watch::channel(false);
        for protocol in Protocol::ALL {
            let draining = draining.clone();
            let address = SocketAddr::from(([0u16; 8], protocol.server_port()));
            let listener = TcpListener::bind(address).await?;
            tokio::task::spawn_local(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let draining = draining.clone();
                    tokio::task::spawn_local(async move {
                        let _open = Open::new();
                        // A connection that a client gives up is no failure of the server.
                        connection(stream, protocol, draining).await.ok();
                    });
                }
            });
        }
        println!("listening");
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                if line == "drain" {
                    drain.send_replace(true);
                }
                println!("{}", OPEN.load(Ordering::Relaxed));
            }
        });
        std::future::pending().await
    })
}

async fn connection(
    stream: TcpStream,
    protocol: Protocol,
    mut draining: watch::Receiver<bool>,
) -> Result<()> {
    stream.set_nodelay(true)?;
    match protocol {
        Protocol::Tcp => lines(stream).await,
        Protocol::Http1 => {
            let service = service_fn(|request| answer(request, false));
            let mut server = pin!(
                hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
            );
            tokio::select! {
                ended = &mut server => return Ok(ended?),
                _ = draining.wait_for(|draining| *draining) => server.as_mut().graceful_shutdown(),
            }
            Ok(server.await?)
        }
        Protocol::Http2 | Protocol::Grpc => {
            let grpc = protocol == Protocol::Grpc;
            let service = service_fn(move |request| answer(request, grpc));
            let mut server = pin!(
                hyper::server::conn::http2::Builder::new(LocalExecutor)
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
            );
            tokio::select! {
                ended = &mut server => return Ok(ended?),
                _ = draining.wait_for(|draining| *draining) => server.as_mut().graceful_shutdown(),
            }
            Ok(server.await?)
        }
    }
}

async fn lines(stream: TcpStream) -> Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    let mut line = Vec::new();
    while reading.read_until(b'\n', &mut line).await? > 0 {
        writing.write_all(&line).await?;
        line.clear();
    }
    Ok(())
}

/// Sends the request's body back; a gRPC answer ends with its status.
async fn answer(
    request: Request<Incoming>,
    grpc: bool,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let body = request.into_body();
    let mut response =
        Response::new(if grpc { BoxBody::new(WithStatus { body: Some(body) }) } else { body.boxed() });
    if grpc {
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    }
    Ok(response)
}

/// A body with `grpc-status: 0` after it.
struct WithStatus {
    body: Option<Incoming>,
}

impl Body for WithStatus {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(None) => {
                self.body = None;
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            other => other,
        }
    }
}

/// Tasks of HTTP/2 connections stay on the one thread.
#[derive(Clone)]
pub struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

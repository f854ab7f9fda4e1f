//! From a client connection to its codec: which HTTP version it speaks, and the limits of the connection as a whole.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::super::WorkerContext;
use super::ConnectionManager;
use crate::budget::Purse;
use crate::http::h1::handed::Offer;
use crate::http::{h1, h2};
use crate::model::network::{Codec, HttpConnectionManager};
use crate::telemetry::stream_info::ConnectionInfo;

/// How every HTTP/2 client begins (RFC 9113 section 3.4); Envoy decides by this much of it.
const PREFACE: &[u8] = b"PRI * HTTP/2";

/// Serves a connection to its end. `offer`: its client would rather hand over messages than write them.
pub async fn serve<IO>(
    hcm: Arc<HttpConnectionManager>,
    connection: Arc<ConnectionInfo>,
    mut io: IO,
    ctx: Rc<WorkerContext>,
    offer: Option<Offer>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let begin = Instant::now();
    let stats = hcm.stats.clone();
    stats.downstream_cx_total.inc();
    stats.downstream_cx_active.inc();
    if connection.tls.is_some() {
        stats.downstream_cx_ssl_total.inc();
    }
    let _ended = scopeguard(|| {
        stats.downstream_cx_active.dec();
        stats.downstream_cx_destroy.inc();
        stats.downstream_cx_length_ms.record_ms(begin.elapsed());
    });
    // Such a client speaks HTTP/1.
    let offer = offer.filter(|_| takes_http1(&hcm, &connection));
    if let Some(offer) = offer {
        return serve_http1(hcm, connection, io, Bytes::new(), ctx, Some(offer)).await;
    }
    match detect(&hcm, &connection, &mut io).await {
        Some((Version::Http1, read)) => serve_http1(hcm, connection, io, read, ctx, None).await,
        Some((Version::Http2, read)) => serve_http2(hcm, connection, io, read, ctx).await,
        None => stats.downstream_cx_idle_timeout.inc(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

/// Would a client that speaks HTTP/1 be served as such?
fn takes_http1(hcm: &HttpConnectionManager, connection: &ConnectionInfo) -> bool {
    let alpn = connection.tls.as_deref().and_then(|tls| tls.alpn.as_deref());
    match hcm.codec {
        Codec::Http1 => true,
        Codec::Http2 => false,
        Codec::Auto => alpn != Some("h2"),
    }
}

/// The version, and what was read to tell. `None`: nothing came within the idle timeout.
async fn detect<IO: AsyncRead + Unpin>(
    hcm: &HttpConnectionManager,
    connection: &ConnectionInfo,
    io: &mut IO,
) -> Option<(Version, Bytes)> {
    let alpn = connection.tls.as_deref().and_then(|tls| tls.alpn.as_deref());
    match (hcm.codec, alpn) {
        (Codec::Http1, _) => Some((Version::Http1, Bytes::new())),
        (Codec::Http2, _) | (Codec::Auto, Some("h2")) => Some((Version::Http2, Bytes::new())),
        (Codec::Auto, Some("http/1.1")) => Some((Version::Http1, Bytes::new())),
        (Codec::Auto, _) => within(hcm.idle_timeout, read_preface(io)).await,
    }
}

/// Reads until the bytes are, or cannot become, the preface. A failed or ended connection is left to the codec.
async fn read_preface<IO: AsyncRead + Unpin>(io: &mut IO) -> (Version, Bytes) {
    let mut read = BytesMut::with_capacity(4096);
    loop {
        let ended = !matches!(io.read_buf(&mut read).await, Ok(1..));
        let len = read.len().min(PREFACE.len());
        if read[..len] != PREFACE[..len] || ended {
            return (Version::Http1, read.freeze());
        }
        if len == PREFACE.len() {
            return (Version::Http2, read.freeze());
        }
    }
}

async fn within<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
    match limit {
        None => Some(future.await),
        Some(limit) => tokio::time::timeout(limit, future).await.ok(),
    }
}

async fn serve_http1<IO>(
    hcm: Arc<HttpConnectionManager>,
    connection: Arc<ConnectionInfo>,
    io: IO,
    read: Bytes,
    ctx: Rc<WorkerContext>,
    offer: Option<Offer>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let stats = hcm.stats.clone();
    stats.downstream_cx_http1_total.inc();
    stats.downstream_cx_http1_active.inc();
    let _ended = scopeguard(|| stats.downstream_cx_http1_active.dec());
    let options = Rc::new(h1::Options {
        limits: h1::parse::Limits {
            max_headers: hcm.max_headers_count as usize,
            max_bytes: hcm.max_request_headers_kib as usize * 1024,
            accept_http_10: hcm.http1.accept_http_10,
            allow_chunked_length: hcm.http1.allow_chunked_length,
            keep_case: hcm.http1.keep_case,
        },
        trailers: hcm.http1.enable_trailers,
        proper_case: hcm.http1.proper_case,
        proxy_100_continue: hcm.proxy_100_continue,
        headers_timeout: hcm.request_headers_timeout,
        idle_timeout: hcm.idle_timeout,
        drain_timeout: hcm.drain_timeout,
        delayed_close: hcm.delayed_close_timeout,
        purse: purse(&connection),
    });
    let drain = connection.drain.clone();
    let limit = hcm.max_connection_duration;
    let manager = Rc::new(ConnectionManager::new(hcm, connection, ctx));
    // In memory of its own: what a connection waits with is moved several times before it runs.
    let end = match offer {
        None => {
            let serving = Box::pin(h1::serve(io, read, options, manager.clone(), drain));
            until_old(&manager, limit, serving).await
        }
        Some(offer) => {
            let serving = h1::handed::serve(io, offer, options, manager.clone(), drain);
            until_old(&manager, limit, serving).await
        }
    };
    match end {
        h1::End::IdleTimeout => stats.downstream_cx_idle_timeout.inc(),
        end => tracing::trace!(?end, "HTTP/1 connection ended"),
    }
}

/// Where the bytes held for a connection count.
fn purse(connection: &ConnectionInfo) -> Option<Rc<Purse>> {
    connection.workload.as_ref().map(|workload| Purse::of(&workload.limits.buffers))
}

async fn serve_http2<IO>(
    hcm: Arc<HttpConnectionManager>,
    connection: Arc<ConnectionInfo>,
    io: IO,
    read: Bytes,
    ctx: Rc<WorkerContext>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let stats = hcm.stats.clone();
    stats.downstream_cx_http2_total.inc();
    stats.downstream_cx_http2_active.inc();
    let _ended = scopeguard(|| stats.downstream_cx_http2_active.dec());
    let options = Rc::new(h2::Options {
        http2: hcm.http2.clone(),
        max_header_bytes: hcm.max_request_headers_kib.saturating_mul(1024),
        proxy_100_continue: hcm.proxy_100_continue,
        idle_timeout: hcm.idle_timeout,
        delayed_close: hcm.delayed_close_timeout,
        purse: purse(&connection),
    });
    let drain = connection.drain.clone();
    let limit = hcm.max_connection_duration;
    let manager = Rc::new(ConnectionManager::new(hcm, connection, ctx));
    let serving = Box::pin(h2::serve(io, read, options, manager.clone(), drain));
    if let Err(error) = until_old(&manager, limit, serving).await {
        stats.downstream_cx_protocol_error.inc();
        tracing::debug!(%error, "HTTP/2 connection failed");
    }
}

/// Lets a connection that is older than `max_connection_duration` end after the requests that are under way.
async fn until_old<T>(
    manager: &ConnectionManager,
    limit: Option<Duration>,
    serving: impl Future<Output = T>,
) -> T {
    let Some(limit) = limit else { return serving.await };
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        end = &mut serving => return end,
        () = tokio::time::sleep(limit) => {}
    }
    manager.hcm.stats.downstream_cx_max_duration_reached.inc();
    manager.closing.set(true);
    serving.await
}

/// Runs `ended` when the scope is left, however it is left.
fn scopeguard<F: FnMut()>(ended: F) -> impl Drop {
    struct OnDrop<F: FnMut()>(F);
    impl<F: FnMut()> Drop for OnDrop<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    OnDrop(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(parts: &[&'static [u8]]) -> (Version, Bytes) {
        let mut io = tokio_test_io(parts);
        read_preface(&mut io).await
    }

    fn tokio_test_io(parts: &[&'static [u8]]) -> impl AsyncRead + Unpin {
        let (mut client, server) = tokio::io::duplex(4096);
        let parts = parts.to_vec();
        tokio::spawn(async move {
            for part in parts {
                tokio::io::AsyncWriteExt::write_all(&mut client, part).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        server
    }

    #[tokio::test]
    async fn the_version_is_told_by_the_first_bytes_however_they_arrive() {
        assert_eq!(told(&[b"GET / HTTP/1.1\r\n"]).await, (Version::Http1, Bytes::from("GET / HTTP/1.1\r\n")));
        assert_eq!(told(&[b"PR", b"I * HTT", b"P/2.0\r\n"]).await.0, Version::Http2);
        assert_eq!(told(&[b"PR", b"OPFIND / HTTP/1.1"]).await.0, Version::Http1);
        assert_eq!(told(&[b"PRI"]).await, (Version::Http1, Bytes::from("PRI")));
    }
}

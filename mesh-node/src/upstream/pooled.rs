//! A connection as pools keep it: with its share of the circuit breaker, counting what goes over it.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connect::Connection;
use super::pool::{Lease, Slot};
use super::stream::UpstreamStream;
use crate::cluster::ConnectionGuard;
use crate::http::h1;
use crate::telemetry::stats::ClusterStats;

/// A pooled HTTP/1 connection.
pub(super) type PooledH1 = h1::Connection<Pooled, Lease>;

/// The transport of a pooled connection.
pub(super) struct Pooled {
    stream: UpstreamStream,
    pub(super) local: SocketAddr,
    pub(super) guard: ConnectionGuard,
    _slot: Slot,
    begin: Instant,
}

impl Pooled {
    pub(super) fn new(connection: Connection, slot: Slot) -> Self {
        let Connection { stream, local, guard, .. } = connection;
        Self { stream, local, guard, _slot: slot, begin: Instant::now() }
    }

    pub(super) fn alpn(&self) -> Option<&[u8]> {
        self.stream.alpn()
    }

    fn stats(&self) -> &ClusterStats {
        &self.guard.cluster().stats
    }

    fn wrote(&self, outcome: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = outcome {
            self.stats().upstream_cx_tx_bytes_total.add(*bytes as u64);
        }
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.stats().upstream_cx_length_ms.record_ms(self.begin.elapsed());
    }
}

impl AsyncRead for Pooled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            self.stats().upstream_cx_rx_bytes_total.add(read as u64);
        }
        outcome
    }
}

impl AsyncWrite for Pooled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, data);
        self.wrote(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.wrote(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! A stream that first gives back the bytes that detection has read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::stream::Bare;

/// `prefix`, then what comes from `inner`. Writes go straight through.
#[derive(Debug)]
pub struct Replay<I> {
    /// Never empty. Apart, since most connections have none most of the time.
    prefix: Option<Box<Bytes>>,
    inner: I,
}

impl<I> Replay<I> {
    pub fn new(prefix: Bytes, inner: I) -> Self {
        Self { prefix: (!prefix.is_empty()).then(|| Box::new(prefix)), inner }
    }

    /// The stream below.
    pub fn get_ref(&self) -> &I {
        &self.inner
    }

    pub fn get_mut(&mut self) -> &mut I {
        &mut self.inner
    }
}

impl<I: Bare> Bare for Replay<I> {
    fn bare(&self) -> Option<&TcpStream> {
        self.inner.bare().filter(|_| self.prefix.is_none())
    }

    fn bare_to_write(&self) -> Option<&TcpStream> {
        self.inner.bare_to_write()
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Replay<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(prefix) = &mut self.prefix else {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        };
        let n = prefix.len().min(buf.remaining());
        buf.put_slice(&prefix[..n]);
        prefix.advance(n);
        if prefix.is_empty() {
            self.prefix = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Replay<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

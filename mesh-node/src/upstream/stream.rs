//! The bytes of a connection to an endpoint, with or without TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::stream::{Bare, Stream};

/// A connection to an endpoint.
#[derive(Debug)]
pub enum UpstreamStream {
    Raw(Stream),
    Tls(Box<TlsStream<Stream>>),
}

impl UpstreamStream {
    /// What carries the bytes.
    pub fn transport(&self) -> &Stream {
        match self {
            Self::Raw(io) => io,
            Self::Tls(io) => io.get_ref().0,
        }
    }

    pub fn transport_mut(&mut self) -> &mut Stream {
        match self {
            Self::Raw(io) => io,
            Self::Tls(io) => io.get_mut().0,
        }
    }

    /// Whether what is read and written here is what the transport gets and gives.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Raw(_))
    }

    /// What ALPN agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Raw(_) => None,
            Self::Tls(io) => io.get_ref().1.alpn_protocol(),
        }
    }
}

impl Bare for UpstreamStream {
    fn bare(&self) -> Option<&TcpStream> {
        match self {
            Self::Raw(io) => io.bare(),
            Self::Tls(_) => None,
        }
    }

    fn bare_to_write(&self) -> Option<&TcpStream> {
        match self {
            Self::Raw(io) => io.bare_to_write(),
            Self::Tls(_) => None,
        }
    }
}

macro_rules! either {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            UpstreamStream::Raw($io) => $call,
            UpstreamStream::Tls($io) => $call,
        }
    };
}

impl AsyncRead for UpstreamStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, io => Pin::new(io).poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => Pin::new(io).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => Pin::new(io).poll_shutdown(cx))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Raw(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }
}

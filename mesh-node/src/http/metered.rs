//! A byte stream with a meter beside it, which is told what goes over the wire.
//!
//! Exists once for all that counts: client connections and connections to endpoints. It changes no byte and
//! buffers none, but for those that were read off the stream before it was metered.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Told of bytes that were read and written; never of none.
pub trait Meter: Unpin {
    fn on_read(&self, bytes: &[u8]);
    fn on_written(&self, bytes: usize);

    /// Something was to be written; `blocked`: the transport took nothing.
    fn on_write(&self, blocked: bool) {
        let _ = blocked;
    }

    /// How long the peer may take to read our last words once the stream is dropped; `None` closes at once.
    fn linger(&self) -> Option<Duration> {
        None
    }
}

/// `io`, with bytes before it and a meter beside it.
#[derive(Debug)]
pub struct Metered<IO, M>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    M: Meter,
{
    prefix: Bytes,
    /// `None` only while this is dropped.
    io: Option<IO>,
    meter: M,
}

impl<IO, M> Metered<IO, M>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    M: Meter,
{
    pub fn new(io: IO, meter: M) -> Self {
        Self::with_prefix(Bytes::new(), io, meter)
    }

    /// `prefix`: what was read off `io` before; it is read again, and told to the meter then.
    pub fn with_prefix(prefix: Bytes, io: IO, meter: M) -> Self {
        Self { prefix, io: Some(io), meter }
    }

    /// The stream below; always there until this is dropped.
    pub fn get_ref(&self) -> Option<&IO> {
        self.io.as_ref()
    }

    pub fn meter(&self) -> &M {
        &self.meter
    }

    fn io(&mut self) -> io::Result<Pin<&mut IO>> {
        self.io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn note_read(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.meter.on_read(bytes);
        }
    }

    fn note_write(&self, outcome: &Poll<io::Result<usize>>) {
        self.meter.on_write(outcome.is_pending());
        if let Poll::Ready(Ok(bytes @ 1..)) = outcome {
            self.meter.on_written(*bytes);
        }
    }
}

impl<IO, M> Drop for Metered<IO, M>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    M: Meter,
{
    /// Input that nobody reads makes the kernel send a reset, which can take our last words from the peer.
    fn drop(&mut self) {
        let (Some(linger), Some(mut io)) = (self.meter.linger(), self.io.take()) else { return };
        tokio::task::spawn_local(async move {
            let drain = async {
                let mut scrap = [0; 4096];
                io.shutdown().await?;
                while io.read(&mut scrap).await? > 0 {}
                io::Result::Ok(())
            };
            // However it ends, the connection is closed after it.
            let _ = tokio::time::timeout(linger, drain).await;
        });
    }
}

impl<IO, M> AsyncRead for Metered<IO, M>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    M: Meter,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let length = self.prefix.len().min(out.remaining());
            let bytes = self.prefix.split_to(length);
            out.put_slice(&bytes);
            self.note_read(&bytes);
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        let outcome = self.io()?.poll_read(cx, out);
        self.note_read(&out.filled()[before..]);
        outcome
    }
}

impl<IO, M> AsyncWrite for Metered<IO, M>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    M: Meter,
{
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = self.io()?.poll_write(cx, data);
        self.note_write(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = self.io()?.poll_write_vectored(cx, data);
        self.note_write(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(IO::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_shutdown(cx)
    }
}

//! The byte side of an HTTP/2 connection: replays what was read before, tells what goes over the wire.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Told of bytes read and written.
pub(super) trait Meter: Unpin {
    fn on_read(&self, bytes: usize);
    fn on_written(&self, bytes: usize);
}

/// An I/O object with bytes before it and a meter beside it.
pub(super) struct Metered<IO, M> {
    preface: Bytes,
    io: IO,
    meter: M,
    /// Grows with every read and write; tells an idle connection.
    activity: Rc<Cell<u64>>,
}

impl<IO, M: Meter> Metered<IO, M> {
    pub(super) fn new(preface: Bytes, io: IO, meter: M, activity: Rc<Cell<u64>>) -> Self {
        Self { preface, io, meter, activity }
    }

    fn read(&self, bytes: usize) {
        if bytes > 0 {
            self.activity.set(self.activity.get() + 1);
            self.meter.on_read(bytes);
        }
    }

    fn wrote(&self, outcome: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = outcome {
            self.activity.set(self.activity.get() + 1);
            self.meter.on_written(*bytes);
        }
    }
}

impl<IO: AsyncRead + Unpin, M: Meter> AsyncRead for Metered<IO, M> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.preface.has_remaining() {
            let length = self.preface.len().min(out.remaining());
            out.put_slice(&self.preface.split_to(length));
            self.read(length);
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        let outcome = Pin::new(&mut self.io).poll_read(cx, out);
        self.read(out.filled().len() - before);
        outcome
    }
}

impl<IO: AsyncWrite + Unpin, M: Meter> AsyncWrite for Metered<IO, M> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, data);
        self.wrote(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, data);
        self.wrote(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

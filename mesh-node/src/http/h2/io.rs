//! The byte side of an HTTP/2 connection: replays what was read before, tells what goes over the wire, and ends
//! so that the peer reads our last words.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Told of bytes read and written.
pub(super) trait Meter: Unpin {
    fn on_read(&self, bytes: usize);
    fn on_written(&self, bytes: usize);
}

/// What the tasks of a connection's streams know of its transport.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Grows with every read and write; tells an idle connection.
    pub(super) activity: Cell<u64>,
    /// The transport took less than was to be written.
    blocked: Cell<bool>,
    /// The connection failed: the peer is given time to read why.
    pub(super) failed: Cell<bool>,
    ended: Cell<bool>,
    /// Times that all was written which the windows allow.
    flushes: Cell<u64>,
    connection: RefCell<Option<Waker>>,
    waiting: RefCell<Vec<Waker>>,
}

impl Progress {
    /// The connection's task has written what it could, and will be woken by `waker`.
    pub(super) fn written(&self, waker: &Waker) {
        let mut connection = self.connection.borrow_mut();
        if !connection.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *connection = Some(waker.clone());
        }
        if !self.blocked.get() {
            self.flushes.set(self.flushes.get() + 1);
            self.wake();
        }
    }

    /// The connection is over.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.wake();
    }

    fn wake(&self) {
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Returns once what is queued now is written, as far as the windows allow.
    pub(super) async fn flushed(&self) {
        let before = self.flushes.get();
        std::future::poll_fn(|cx| {
            if self.ended.get() || self.flushes.get() > before {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            if let Some(connection) = &*self.connection.borrow() {
                connection.wake_by_ref();
            }
            Poll::Pending
        })
        .await;
    }
}

/// An I/O object with bytes before it and a meter beside it.
pub(super) struct Metered<IO, M>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    preface: Bytes,
    /// `None` only while this is dropped.
    io: Option<IO>,
    meter: M,
    progress: Rc<Progress>,
    /// How long a peer may take to read why its connection failed.
    linger: Option<Duration>,
}

impl<IO, M: Meter> Metered<IO, M>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    pub(super) fn new(
        preface: Bytes,
        io: IO,
        meter: M,
        progress: Rc<Progress>,
        linger: Option<Duration>,
    ) -> Self {
        Self { preface, io: Some(io), meter, progress, linger }
    }

    fn io(&mut self) -> io::Result<Pin<&mut IO>> {
        self.io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn note_read(&self, bytes: usize) {
        if bytes > 0 {
            self.progress.activity.set(self.progress.activity.get() + 1);
            self.meter.on_read(bytes);
        }
    }

    fn note_write(&self, outcome: &Poll<io::Result<usize>>) {
        self.progress.blocked.set(outcome.is_pending());
        if let Poll::Ready(Ok(bytes)) = outcome {
            self.progress.activity.set(self.progress.activity.get() + 1);
            self.meter.on_written(*bytes);
        }
    }
}

impl<IO, M> Drop for Metered<IO, M>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    /// Input that nobody reads makes the kernel send a reset, which can take our GOAWAY from the peer.
    fn drop(&mut self) {
        let (Some(mut io), Some(linger)) = (self.io.take(), self.linger) else { return };
        if !self.progress.failed.get() {
            return;
        }
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

impl<IO, M: Meter> AsyncRead for Metered<IO, M>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.preface.has_remaining() {
            let length = self.preface.len().min(out.remaining());
            out.put_slice(&self.preface.split_to(length));
            self.note_read(length);
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        let outcome = self.io()?.poll_read(cx, out);
        self.note_read(out.filled().len() - before);
        outcome
    }
}

impl<IO, M: Meter> AsyncWrite for Metered<IO, M>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
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

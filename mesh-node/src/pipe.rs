//! A byte stream between two ends in this process, in the place of a TCP connection between two of the
//! proxy's own sockets.
//!
//! It behaves as a connected socket does: bounded, so that a slow reader slows its writer; each direction ends
//! for itself; an end that goes away with input unread is a reset to the other. What it must not do is know
//! who speaks over it. Both ends live on one worker; the lock is there for the compiler and is never waited for.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that wait in one direction, at most: about what a socket's buffers take before they grow.
const LANE_BYTES: usize = 64 << 10;
/// An empty lane keeps no more room than this.
const IDLE_BYTES: usize = 8 << 10;

/// One end. Dropped, it closes both directions.
#[derive(Debug)]
pub struct Pipe {
    incoming: Arc<Lane>,
    outgoing: Arc<Lane>,
}

#[derive(Debug, Default)]
struct Lane(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    bytes: BytesMut,
    /// The writer has said all.
    ended: bool,
    /// The writer went away with something unread: after the bytes that are here comes a reset.
    cut: bool,
    /// The reader is gone: nothing more is taken.
    deaf: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Lane {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn room(&self) -> io::Result<usize> {
        if self.deaf || self.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(LANE_BYTES - self.bytes.len())
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    fn is_readable(&self) -> bool {
        !self.bytes.is_empty() || self.ended || self.cut
    }
}

/// Two ends that are connected to each other.
pub fn pipe() -> (Pipe, Pipe) {
    let (one, other) = (Arc::<Lane>::default(), Arc::<Lane>::default());
    (Pipe { incoming: one.clone(), outgoing: other.clone() }, Pipe { incoming: other, outgoing: one })
}

impl Pipe {
    /// Makes the end of this one a reset to the other, which loses what it has not read yet.
    pub fn abort(&self) {
        let mut outgoing = self.outgoing.state();
        outgoing.bytes = BytesMut::new();
        outgoing.cut = true;
        outgoing.wake_reader();
    }

    /// Ready when a read would not wait.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut incoming = self.incoming.state();
        if incoming.is_readable() {
            return Poll::Ready(());
        }
        incoming.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let unread = {
            let mut incoming = self.incoming.state();
            incoming.deaf = true;
            incoming.wake_writer();
            !std::mem::take(&mut incoming.bytes).is_empty()
        };
        let mut outgoing = self.outgoing.state();
        outgoing.cut |= unread;
        outgoing.ended = true;
        outgoing.wake_reader();
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let incoming = &mut *self.incoming.state();
        if incoming.bytes.is_empty() {
            if incoming.cut {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if incoming.ended {
                return Poll::Ready(Ok(()));
            }
            incoming.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = buf.remaining().min(incoming.bytes.len());
        buf.put_slice(&incoming.bytes[..length]);
        incoming.bytes.advance(length);
        if incoming.bytes.is_empty() && incoming.bytes.capacity() > IDLE_BYTES {
            incoming.bytes = BytesMut::new();
        }
        incoming.wake_writer();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outgoing = &mut *self.outgoing.state();
        let mut room = outgoing.room()?;
        if room == 0 {
            outgoing.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let before = outgoing.bytes.len();
        for slice in slices {
            let length = slice.len().min(room);
            outgoing.bytes.extend_from_slice(&slice[..length]);
            room -= length;
        }
        outgoing.wake_reader();
        Poll::Ready(Ok(outgoing.bytes.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outgoing = self.outgoing.state();
        outgoing.ended = true;
        outgoing.wake_reader();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_writer_waits_for_its_reader_and_every_byte_arrives_in_order() {
        let (mut near, mut far) = pipe();
        let sent: Vec<u8> = (0..10 * LANE_BYTES).map(|n| ((n * 31) >> 3) as u8).collect();
        let writing = async {
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let reading = async {
            let mut piece = vec![0; 1000];
            loop {
                assert!(far.incoming.state().bytes.len() <= LANE_BYTES);
                match far.read(&mut piece).await.unwrap() {
                    0 => return,
                    n => got.extend_from_slice(&piece[..n]),
                }
            }
        };
        tokio::join!(writing, reading);
        assert_eq!(got, sent);
        assert!(far.incoming.state().bytes.capacity() <= IDLE_BYTES, "an idle pipe holds little");
    }

    #[tokio::test]
    async fn each_direction_ends_for_itself() {
        let (mut near, mut far) = pipe();
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let mut question = String::new();
        far.read_to_string(&mut question).await.unwrap();
        far.write_all(b"answer").await.unwrap();
        drop(far);
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
    }

    #[tokio::test]
    async fn an_end_that_goes_away_with_input_unread_resets_the_other() {
        let (mut near, mut far) = pipe();
        near.write_all(b"never read").await.unwrap();
        far.write_all(b"ok").await.unwrap();
        drop(far);
        let mut two = [0; 2];
        near.read_exact(&mut two).await.unwrap();
        assert_eq!(near.read(&mut two).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(near.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn an_abort_is_seen_at_once() {
        let (mut near, mut far) = pipe();
        far.write_all(b"lost").await.unwrap();
        far.abort();
        drop(far);
        poll_fn(|cx| near.poll_readable(cx)).await;
        assert_eq!(near.read(&mut [0; 4]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}

//! A connection's byte side: one read buffer, one write queue, and what was counted.
//!
//! Small pieces are gathered and large ones are sent where they lie, so that a message usually is one `read`
//! and one `writev`.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::budget::Held;

/// Room for a message head and a small body.
const HEAD_ROOM: usize = 8 << 10;
/// Memory that every connection has: a head and a small answer. What is beyond it counts against the limit of
/// the workload, this against its limit of connections.
const FIXED_BYTES: usize = 2 * HEAD_ROOM;
/// Room for the next piece of a large body.
const BODY_ROOM: usize = 64 << 10;
/// Body pieces up to this size are copied behind what is already queued.
const COPY_BELOW: usize = 4 << 10;
/// The queue takes no more once it holds this much.
const QUEUE_BYTES: usize = 32 << 10;

/// What the next bytes are expected to be; sizes the read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    Head,
    /// A body with at least this many bytes to come.
    Body(u64),
}

/// An I/O object with its buffers.
#[derive(Debug)]
pub(super) struct Wire<IO> {
    io: IO,
    pub input: BytesMut,
    pub output: Output,
    /// The peer sends no more.
    pub eof: bool,
    /// A head came with more behind it than there was room for: the next one probably does, too. `None` where
    /// that is not learned, because nobody gives the memory back while the connection is idle.
    large: Option<bool>,
    held: Held,
    read: usize,
    written: usize,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Wire<IO> {
    /// `held`: where its buffers count.
    pub(super) fn new(io: IO, held: Held) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            output: Output::default(),
            eof: false,
            large: None,
            held,
            read: 0,
            written: 0,
        }
    }

    /// Makes reads as large as the messages turn out to be. The owner calls [`Wire::release_memory`].
    pub(super) fn adaptive(mut self) -> Self {
        self.large = Some(false);
        self
    }

    pub(super) fn io(&self) -> &IO {
        &self.io
    }

    /// Reads once. 0 is the end of the stream.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, expect: Expect) -> Poll<io::Result<usize>> {
        let (least, room) = match expect {
            Expect::Head | Expect::Body(_) if self.held.is_pressed() => (1 << 10, HEAD_ROOM),
            Expect::Head if self.large == Some(true) => (BODY_ROOM / 2, BODY_ROOM),
            Expect::Head => (1 << 10, HEAD_ROOM),
            Expect::Body(left) => {
                let room = usize::try_from(left).map_or(BODY_ROOM, |left| left.clamp(HEAD_ROOM, BODY_ROOM));
                (room / 2, room)
            }
        };
        if self.input.capacity() - self.input.len() < least {
            self.input.reserve(room);
            self.count();
        }
        let available = self.input.capacity() - self.input.len();
        let length = ready!(pin!(self.io.read_buf(&mut self.input)).poll(cx))?;
        if expect == Expect::Head && length == available {
            self.large = self.large.map(|_| true);
        }
        self.read += length;
        self.eof |= length == 0;
        Poll::Ready(Ok(length))
    }

    /// Nothing has come and the peer has not closed. What is read to find out is lost: if this is false, the
    /// connection is of no use.
    pub(super) fn poll_silent(&mut self, cx: &mut Context<'_>) -> bool {
        let mut byte = [0; 1];
        self.input.is_empty()
            && Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// Writes what is queued.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.poll_write_out(cx);
        self.count();
        flushed
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = {
                let slices = self.output.slices();
                if slices[1].is_empty() {
                    ready!(Pin::new(&mut self.io).poll_write(cx, &slices[0]))?
                } else {
                    ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices))?
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
            self.output.advance(written);
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Tells the workload's account what is held now. A piece of a body that was read here and is written
    /// elsewhere counts there.
    fn count(&self) {
        let held = self.input.capacity() + self.output.memory();
        self.held.set(held.saturating_sub(FIXED_BYTES));
    }

    /// Bytes read and written since the last call.
    pub(super) fn take_counts(&mut self) -> (usize, usize) {
        (std::mem::take(&mut self.read), std::mem::take(&mut self.written))
    }

    /// Gives back memory that an idle connection does not need.
    pub(super) fn release_memory(&mut self) {
        self.large = self.large.map(|_| false);
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        self.output.release_memory();
        self.count();
    }

    /// Gives back memory that a large message needed and the next one may not.
    pub(super) fn release_large(&mut self) {
        if self.input.capacity() > FIXED_BYTES {
            self.release_memory();
        }
    }
}

/// Bytes to be written: a gathered part, then one large piece that is not copied, then its line end.
#[derive(Debug, Default)]
pub(super) struct Output {
    gathered: Vec<u8>,
    /// Bytes of `gathered` that are written.
    done: usize,
    piece: Bytes,
    tail: &'static [u8],
}

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.done == self.gathered.len() && self.piece.is_empty() && self.tail.is_empty()
    }

    /// More may be queued before it is written.
    pub(super) fn has_room(&self) -> bool {
        self.piece.is_empty() && self.tail.is_empty() && self.gathered.len() - self.done < QUEUE_BYTES
    }

    /// Where heads, chunk sizes and small pieces are gathered. Only while there [is room](Self::has_room).
    pub(super) fn gather(&mut self) -> &mut Vec<u8> {
        if self.is_empty() {
            self.gathered.clear();
            self.done = 0;
        }
        &mut self.gathered
    }

    /// Queues body bytes as they are.
    pub(super) fn push(&mut self, data: Bytes) {
        if data.len() <= COPY_BELOW {
            self.gather().extend_from_slice(&data);
        } else {
            self.gather();
            self.piece = data;
        }
    }

    /// Queues body bytes as one chunk (RFC 9112 section 7.1). An empty one would end the body, so it is left out.
    pub(super) fn push_chunk(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let gathered = self.gather();
        push_hex(gathered, data.len());
        gathered.extend_from_slice(b"\r\n");
        if data.len() <= COPY_BELOW {
            gathered.extend_from_slice(&data);
            gathered.extend_from_slice(b"\r\n");
        } else {
            self.piece = data;
            self.tail = b"\r\n";
        }
    }

    /// Bytes of memory in use.
    fn memory(&self) -> usize {
        self.gathered.capacity() + self.piece.len()
    }

    fn slices(&self) -> [IoSlice<'_>; 3] {
        let parts = [&self.gathered[self.done..], &self.piece[..], self.tail];
        let mut slices = [IoSlice::new(&[]); 3];
        for (slot, part) in slices.iter_mut().zip(parts.into_iter().filter(|part| !part.is_empty())) {
            *slot = IoSlice::new(part);
        }
        slices
    }

    fn advance(&mut self, mut written: usize) {
        let gathered = written.min(self.gathered.len() - self.done);
        self.done += gathered;
        written -= gathered;
        let piece = written.min(self.piece.len());
        self.piece.advance(piece);
        if self.piece.is_empty() {
            // Lets go of the memory at once: a read buffer may wait for it.
            self.piece = Bytes::new();
        }
        self.tail = &self.tail[written - piece..];
    }

    fn release_memory(&mut self) {
        if self.is_empty() && self.gathered.capacity() > HEAD_ROOM {
            self.gathered = Vec::new();
            self.done = 0;
        }
    }
}

fn push_hex(out: &mut Vec<u8>, value: usize) {
    let digits = (usize::BITS - value.leading_zeros()).div_ceil(4).max(1);
    for position in (0..digits).rev() {
        out.push(b"0123456789abcdef"[value >> (4 * position) & 15]);
    }
}

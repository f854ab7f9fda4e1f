//! Copies bytes both ways between two streams until both directions have ended (RFC 9293 half-close).
//!
//! An idle connection holds no buffer: one is taken from the worker's spare buffers when data is there, and
//! given back when all of it is written. A direction reads only when nothing of it is unwritten; where its
//! workload holds too much already, it reads a small piece.
//!
//! A direction that turns out to be a stream goes through a pipe instead (`splice.rs`), where both sides are bare
//! TCP, for as long as much comes at a time.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::splice::Pipe;
use crate::budget::Purse;
use crate::stream::Bare;
use crate::telemetry::stats::Counter;

/// Size of a copy buffer, and so of the largest read and write.
const BUFFER_BYTES: usize = 64 * 1024;
/// The same for a workload near its limit of buffered bytes.
const SMALL_BUFFER_BYTES: usize = 4 * 1024;
/// A direction is a stream after so many reads in a row of at least [`MUCH_BYTES`].
const STREAM_READS: u8 = 4;
const MUCH_BYTES: usize = BUFFER_BYTES / 2;
/// It is none any more when less than this comes at a time.
const LITTLE_BYTES: usize = 8 * 1024;
/// Spare buffers that a worker keeps: 2 MiB.
const SPARE_BUFFERS: usize = 32;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// How a pair of streams ended.
#[derive(Debug)]
pub enum End {
    /// Both sides finished.
    Finished,
    /// Nothing moved for the idle timeout.
    Idle,
    /// It lasted as long as it may.
    Duration,
    /// The side facing the client failed.
    Downstream(io::Error),
    /// The side facing the endpoint failed.
    Upstream(io::Error),
}

/// Bytes moved: from the client, and to it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    pub received: u64,
    pub sent: u64,
}

/// Live counters that move with the bytes, not only at the end.
#[derive(Debug, Clone, Copy)]
pub struct Meters<'a> {
    pub received: [Option<&'a Counter>; 2],
    pub sent: [Option<&'a Counter>; 2],
}

impl Meters<'_> {
    /// Counts what has moved.
    pub fn count(&self, moved: Moved) {
        self.received.into_iter().flatten().for_each(|counter| counter.add(moved.received));
        self.sent.into_iter().flatten().for_each(|counter| counter.add(moved.sent));
    }
}

/// Which of a direction's streams failed.
pub(super) enum Side {
    Reader(io::Error),
    Writer(io::Error),
}

/// One direction of a pair.
pub(super) struct Direction {
    purse: Option<Rc<Purse>>,
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    /// In place of the buffer, while this is a stream.
    pipe: Option<Box<Pipe>>,
    /// Reads in a row that brought much.
    large_reads: u8,
    /// A pipe was tried and the kernel would not.
    unspliced: bool,
    /// Bytes written so far.
    pub(super) total: u64,
    unflushed: bool,
    read_ended: bool,
    done: bool,
}

impl Direction {
    pub(super) fn new(purse: Option<Rc<Purse>>) -> Self {
        Self {
            purse,
            buffer: None,
            start: 0,
            end: 0,
            pipe: None,
            large_reads: 0,
            unspliced: false,
            total: 0,
            unflushed: false,
            read_ended: false,
            done: false,
        }
    }

    fn is_pressed(&self) -> bool {
        self.purse.as_deref().is_some_and(Purse::is_pressed)
    }

    /// Whether nothing was read that is not written.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end && self.pipe.as_ref().is_none_or(|pipe| pipe.held() == 0)
    }

    /// Whether it waits for its reader, and for nothing else.
    pub(super) fn only_waits(&self) -> bool {
        self.is_empty() && self.buffer.is_none() && !self.unflushed && !self.read_ended && !self.done
    }

    /// Copies what there is. Ready: the direction has ended.
    pub(super) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<(), Side>>
    where
        R: AsyncRead + Bare + Unpin,
        W: AsyncWrite + Bare + Unpin,
    {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.poll_pipe(cx, reader, writer))?;
            while self.start < self.end {
                let buffer = self.buffer.as_deref().unwrap_or_default();
                let written = ready!(Pin::new(&mut *writer).poll_write(cx, &buffer[self.start..self.end]))
                    .and_then(|n| if n == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(n) })
                    .map_err(Side::Writer)?;
                self.start += written;
                self.total += written as u64;
                self.unflushed = true;
            }
            if self.read_ended {
                self.give_back();
                ready!(Pin::new(&mut *writer).poll_shutdown(cx))
                    .or_else(ended_already)
                    .map_err(Side::Writer)?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            let mut into = ReadBuf::new(self.empty_buffer());
            match Pin::new(&mut *reader).poll_read(cx, &mut into) {
                Poll::Ready(Ok(())) => {
                    (self.start, self.end) = (0, into.filled().len());
                    self.read_ended = self.end == 0;
                    self.large_reads = match self.end {
                        MUCH_BYTES.. => self.large_reads.saturating_add(1),
                        _ => 0,
                    };
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Side::Reader(error))),
                Poll::Pending => {
                    self.give_back();
                    if self.unflushed {
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Side::Writer)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Moves bytes through the pipe for as long as this is a stream. Ready: the buffer's turn, or the reader's end.
    fn poll_pipe<R: Bare, W: Bare>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &R,
        writer: &W,
    ) -> Poll<Result<(), Side>> {
        let Some((from, to)) = reader.bare().zip(writer.bare_to_write()) else { return Poll::Ready(Ok(())) };
        loop {
            while let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() > 0) {
                let moved = ready!(pipe.poll_drain(cx, to)).map_err(Side::Writer)?;
                self.total += moved as u64;
                if let Some(purse) = &self.purse {
                    purse.sub(moved);
                }
            }
            let streams = self.large_reads >= STREAM_READS && self.start == self.end;
            if !streams || self.read_ended || self.unspliced || self.is_pressed() {
                self.give_pipe_back();
                return Poll::Ready(Ok(()));
            }
            self.give_back();
            let pipe = match self.pipe.take().map_or_else(|| Pipe::take().map(Box::new), Ok) {
                Ok(pipe) => self.pipe.insert(pipe),
                // Out of descriptors, most likely.
                Err(_) => {
                    self.unspliced = true;
                    continue;
                }
            };
            match pipe.poll_fill(cx, from) {
                Poll::Ready(Ok(moved)) => {
                    self.read_ended = moved == 0;
                    if moved < LITTLE_BYTES {
                        self.large_reads = 0;
                    }
                    if let Some(purse) = &self.purse {
                        purse.add(moved);
                    }
                }
                // What sockets say that cannot be spliced.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.unspliced = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Side::Reader(error))),
                Poll::Pending => {
                    self.give_pipe_back();
                    return Poll::Pending;
                }
            }
        }
    }

    fn give_pipe_back(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            if let Some(purse) = &self.purse {
                purse.sub(pipe.held());
            }
            pipe.give_back();
        }
    }

    /// The buffer to read into, of a size that the workload may have now.
    fn empty_buffer(&mut self) -> &mut [u8] {
        let pressed = self.is_pressed();
        if pressed && self.buffer.as_ref().is_some_and(|buffer| buffer.len() > SMALL_BUFFER_BYTES) {
            self.give_back();
        }
        let purse = &self.purse;
        self.buffer.get_or_insert_with(|| {
            let buffer = if pressed { vec![0; SMALL_BUFFER_BYTES].into_boxed_slice() } else { spare() };
            if let Some(purse) = purse {
                purse.add(buffer.len());
            }
            buffer
        })
    }

    fn give_back(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            if let Some(purse) = &self.purse {
                purse.sub(buffer.len());
            }
            if buffer.len() < BUFFER_BYTES {
                return;
            }
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARE_BUFFERS {
                    spare.push(buffer);
                }
            });
        }
    }
}

impl Drop for Direction {
    fn drop(&mut self) {
        self.give_back();
        self.give_pipe_back();
    }
}

fn spare() -> Box<[u8]> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
}

/// A peer that is gone needs no FIN.
fn ended_already(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;
    use crate::upstream::pair::{Limits, Pair};

    async fn copy<D, U>(
        downstream: &mut D,
        upstream: &mut U,
        idle: Option<Duration>,
        meters: Meters<'_>,
        purse: Option<Rc<Purse>>,
    ) -> (End, Moved)
    where
        D: AsyncRead + AsyncWrite + Bare + Unpin,
        U: AsyncRead + AsyncWrite + Bare + Unpin,
    {
        let mut pair = Pair::new(Limits { idle, duration: None }, purse, None);
        let end = poll_fn(|cx| pair.poll(cx, downstream, upstream, meters)).await;
        (end, pair.finish(meters))
    }

    async fn run(
        idle: Option<Duration>,
        talk: impl AsyncFnOnce(tokio::io::DuplexStream, tokio::io::DuplexStream),
    ) -> (End, Moved) {
        let (client, mut downstream) = duplex(1000);
        let (server, mut upstream) = duplex(1000);
        let (received, sent) = (Counter::default(), Counter::default());
        let meters = Meters { received: [Some(&received), None], sent: [Some(&sent), None] };
        let ((end, moved), ()) = tokio::join!(
            async {
                let end = copy(&mut downstream, &mut upstream, idle, meters, None).await;
                drop((downstream, upstream));
                end
            },
            talk(client, server)
        );
        assert_eq!((received.get(), sent.get()), (moved.received, moved.sent));
        (end, moved)
    }

    #[tokio::test]
    async fn each_side_may_end_first_and_still_hear_the_other() {
        for client_first in [true, false] {
            let (end, moved) = run(None, async |client, server| {
                let (mut first, mut second) = if client_first { (client, server) } else { (server, client) };
                first.write_all(b"bye").await.unwrap();
                first.shutdown().await.unwrap();
                let mut heard = Vec::new();
                second.read_to_end(&mut heard).await.unwrap();
                assert_eq!(heard, b"bye");
                let answer = vec![7; 300_000];
                tokio::join!(
                    async {
                        second.write_all(&answer).await.unwrap();
                        second.shutdown().await.unwrap();
                    },
                    async {
                        let mut heard = Vec::new();
                        first.read_to_end(&mut heard).await.unwrap();
                        assert_eq!(heard, answer);
                    }
                );
            })
            .await;
            assert!(matches!(end, End::Finished), "{end:?}");
            let expected = if client_first { (3, 300_000) } else { (300_000, 3) };
            assert_eq!((moved.received, moved.sent), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_pair_ends_after_the_idle_timeout_but_a_talking_one_does_not() {
        let (end, moved) = run(Some(Duration::from_secs(60)), async |mut client, mut server| {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(50)).await;
                client.write_all(b"x").await.unwrap();
                server.read_u8().await.unwrap();
            }
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        })
        .await;
        assert!(matches!(end, End::Idle), "{end:?}");
        assert_eq!(moved.received, 5);
    }

    #[tokio::test]
    async fn pairs_whose_receivers_read_nothing_get_small_buffers_near_the_limit_and_go_on_when_they_read() {
        const PAIRS: usize = 64;
        let budget = std::sync::Arc::new(crate::budget::Budget::new("ns/hog", 1 << 20));
        let purse = Purse::of(&budget);
        let (received, sent) = (Counter::default(), Counter::default());
        let (mut copies, mut senders, mut receivers) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            let (client, mut downstream) = duplex(1000);
            let (server, mut upstream) = duplex(1000);
            let (purse, meters) =
                (purse.clone(), Meters { received: [Some(&received), None], sent: [Some(&sent), None] });
            copies.push(async move {
                let (_, moved) = copy(&mut downstream, &mut upstream, None, meters, Some(purse)).await;
                drop((downstream, upstream));
                moved.sent
            });
            receivers.push(client);
            senders.push(async move {
                let mut server = server;
                server.write_all(&[7; 50_000]).await.unwrap();
            });
        }
        let mut served = Box::pin(futures_util::future::join(
            futures_util::future::join_all(copies),
            futures_util::future::join_all(senders),
        ));
        // Nobody reads: every pair is stuck with a buffer, most of them with a small one.
        let mut before = 0;
        while !purse.is_pressed() || purse.used() > before {
            before = purse.used();
            assert!(futures_util::poll!(&mut served).is_pending());
            tokio::task::yield_now().await;
        }
        let most = (1 << 20) + PAIRS * SMALL_BUFFER_BYTES;
        assert!(purse.used() > (1 << 20) * 3 / 4 - BUFFER_BYTES && purse.used() < most, "{}", purse.used());
        let reading = futures_util::future::join_all(receivers.into_iter().map(async |mut client| {
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.unwrap();
            heard.len()
        }));
        let ((moved, _), heard) = tokio::join!(served, reading);
        assert_eq!(moved, [50_000; PAIRS]);
        assert_eq!(heard, [50_000; PAIRS]);
        assert_eq!(purse.used(), 0);
    }

    /// What a stream carries at these places.
    fn pattern(places: std::ops::Range<usize>) -> Vec<u8> {
        places.map(|at| (at * 31 + (at >> 8)) as u8).collect()
    }

    async fn connected() -> (tokio::net::TcpStream, tokio::net::TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (one, other) =
            tokio::join!(tokio::net::TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    #[tokio::test]
    async fn a_stream_keeps_its_bytes_while_it_pauses_trickles_goes_on_and_is_answered() {
        // Where the client waits to be heard, and in what pieces it writes until then.
        const STEPS: [(usize, usize); 3] =
            [(8 << 20, 128 << 10), ((8 << 20) + 1000, 100), (12 << 20, 128 << 10)];
        let (mut client, mut downstream) = connected().await;
        let (mut server, mut upstream) = connected().await;
        let budget = std::sync::Arc::new(crate::budget::Budget::new("ns/streams", 64 << 20));
        let purse = Purse::of(&budget);
        let meters = Meters { received: [None; 2], sent: [None; 2] };
        let relay = async {
            let (end, moved) = copy(&mut downstream, &mut upstream, None, meters, Some(purse.clone())).await;
            assert!(matches!(end, End::Finished), "{end:?}");
            moved
        };
        let client = async {
            let mut at = 0;
            for (until, piece) in STEPS {
                while at < until {
                    let next = until.min(at + piece);
                    client.write_all(&pattern(at..next)).await.unwrap();
                    at = next;
                }
                assert_eq!(client.read_u8().await.unwrap(), b'k');
            }
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert!(answer == pattern(0..6 << 20), "the answer is not what was sent");
        };
        let server = async {
            let mut heard = Vec::new();
            for (until, _) in STEPS {
                let from = heard.len();
                heard.resize(until, 0);
                server.read_exact(&mut heard[from..]).await.unwrap();
                server.write_u8(b'k').await.unwrap();
            }
            assert!(heard == pattern(0..heard.len()), "what arrived is not what was sent");
            assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
            server.write_all(&pattern(0..6 << 20)).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let (moved, (), ()) = tokio::join!(relay, client, server);
        assert_eq!((moved.received, moved.sent), (12 << 20, (6 << 20) + 3));
        assert_eq!(purse.used(), 0);
        assert!(super::super::splice::spare_pipes() > 0, "the streams did not go through pipes");
    }

    /// A socket to which bytes may be written behind its back, but not read off it.
    struct WriteOnly(tokio::net::TcpStream);

    impl Bare for WriteOnly {
        fn bare(&self) -> Option<&tokio::net::TcpStream> {
            None
        }
        fn bare_to_write(&self) -> Option<&tokio::net::TcpStream> {
            Some(&self.0)
        }
    }

    impl AsyncWrite for WriteOnly {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn a_stream_to_a_socket_that_is_only_written_to_arrives_whole_through_a_pipe() {
        const SIZE: usize = 9 << 20;
        let (mut client, mut downstream) = connected().await;
        let (mut server, upstream) = connected().await;
        let mut upstream = WriteOnly(upstream);
        // How much comes at a time is the kernel's business: much has come before.
        let mut direction = Direction::new(None);
        direction.large_reads = STREAM_READS;
        let relay = poll_fn(|cx| direction.poll(cx, &mut downstream, &mut upstream));
        let client = async {
            client.write_all(&pattern(0..SIZE)).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let server = async {
            let mut heard = Vec::new();
            // A reader that lags behind, so that the writer has to wait for room.
            while heard.len() < SIZE {
                let before = heard.len();
                heard.resize((before + 50_000).min(SIZE), 0);
                server.read_exact(&mut heard[before..]).await.unwrap();
                tokio::task::yield_now().await;
            }
            assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
            assert!(heard == pattern(0..SIZE), "what arrived is not what was sent");
        };
        let (ended, (), ()) = tokio::join!(relay, client, server);
        assert!(ended.is_ok());
        assert_eq!(direction.total, SIZE as u64);
        assert!(super::super::splice::spare_pipes() > 0, "the stream did not go through a pipe");
    }
}

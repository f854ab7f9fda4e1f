//! A connection of the proxy's own: a socket, also one whose bytes go past TCP, or a pipe to the other half of
//! this proxy.
//!
//! A socket whose bytes go past TCP differs from an ordinary one in two ways that its user must not notice. Reading: what came
//! past TCP and what came by TCP lie in two queues, so once there is something in both, a short read does not
//! mean that nothing is left.
//! Writing: nothing in the kernel stops a writer whose reader is an application that does not read; the
//! bound is kept here, and a stream is given back to TCP: then the socket becomes an ordinary one, which is the
//! faster way for it. It knows nothing of who is served.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mesh_common::accel::{MAX_WAITING_BYTES, STREAM_BYTES};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::model::workload::{Look, PastTcp, Trial, Waiting, Workload};
use crate::pipe::Pipe;
use crate::resting;

/// Nothing tells when a reader has read; it is looked at this often, at first and at last.
const LOOK: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(50));

/// After so many bytes it is looked whether the socket carries a stream, at first and at last.
const MOVED: (u64, u64) = (MAX_WAITING_BYTES, 64 * MAX_WAITING_BYTES);

/// A stream that may be what a TCP socket carries, and nothing else.
pub trait Bare {
    /// The socket, if bytes may be read off it and written to it behind the stream's back: no TLS, nothing read
    /// ahead, nothing past TCP.
    fn bare(&self) -> Option<&TcpStream>;

    /// The socket, if bytes may be written to it behind the stream's back.
    fn bare_to_write(&self) -> Option<&TcpStream> {
        self.bare()
    }
}

/// A connection.
#[derive(Debug)]
pub enum Stream {
    Socket(Socket),
    /// To a half of another pod of this node.
    Memory(Pipe),
}

impl Stream {
    /// A socket accepted or opened for `workload`, connected.
    pub fn new(io: TcpStream, workload: Option<&Workload>) -> Self {
        Self::Socket(Socket::new(io, workload))
    }

    /// The same, to the workload's own application at `remote`.
    pub fn to_application(io: TcpStream, workload: &Workload, remote: SocketAddr) -> Self {
        Self::Socket(Socket::to_application(io, workload, remote))
    }

    /// Whether a new connection in place of this one would be a faster one. True at most once.
    pub fn is_outgrown(&self) -> bool {
        match self {
            Self::Socket(socket) => socket.is_outgrown(),
            Self::Memory(_) => false,
        }
    }

    /// The socket, if it is one.
    pub fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Socket(socket) => Some(&socket.io),
            Self::Memory(_) => None,
        }
    }

    /// Small messages go out at once.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.io.set_nodelay(true),
            Self::Memory(_) => Ok(()),
        }
    }

    /// Makes the end of this connection a reset to the peer.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn abort(&self) -> io::Result<()> {
        match self {
            Self::Socket(socket) => {
                let Some(io) = socket.io.descriptor() else { return Ok(()) };
                socket2::SockRef::from(&io).set_linger(Some(Duration::ZERO))
            }
            Self::Memory(pipe) => {
                pipe.abort();
                Ok(())
            }
        }
    }

    /// Lets go of what the runtime keeps for a socket, which is used no more until it is [woken](Self::wake).
    ///
    /// # Errors
    /// The connection is lost.
    pub fn rest(&mut self) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.io.rest(),
            Self::Memory(_) => Ok(()),
        }
    }

    /// Takes a socket up again.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn wake(&mut self) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.io.wake(),
            Self::Memory(_) => Ok(()),
        }
    }

    /// The socket's descriptor, also while it rests.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Socket(socket) => socket.io.descriptor(),
            Self::Memory(_) => None,
        }
    }

    /// Returns when the peer has sent something or closed.
    ///
    /// # Errors
    /// The connection has failed.
    pub async fn spoken(&self) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.io.peek(&mut [0]).await.map(drop),
            Self::Memory(pipe) => {
                poll_fn(|cx| pipe.poll_readable(cx)).await;
                Ok(())
            }
        }
    }
}

macro_rules! either {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Socket($io) => $call,
            Stream::Memory($io) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
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
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Socket(socket) => socket.is_write_vectored(),
            Self::Memory(pipe) => pipe.is_write_vectored(),
        }
    }
}

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    io: resting::Socket,
    past_tcp: Option<Box<Past>>,
    trial: Option<Arc<dyn Trial>>,
    /// The trial is over.
    judged: Cell<bool>,
}

#[derive(Debug)]
struct Past {
    tcp: PastTcp,
    /// Bytes written since the reader was last known to have read everything.
    unread: u64,
    looking: Option<Box<(Pin<Box<Sleep>>, Duration)>>,
    /// A direction has gone to TCP meanwhile, perhaps the one that is read here.
    in_both_queues: bool,
    /// Writes so far, as far as they are counted.
    writes: u8,
    /// Bytes read and written since the socket was last looked at, and with how many it is again.
    moved: u64,
    look_at: u64,
    /// The socket is an ordinary one again, and will be used as one once it is known that it was read empty.
    plain: bool,
}

/// After so many writes it is known whether a direction goes past TCP: its first byte decides, and this many
/// writes are what a short connection has at most.
const DECIDED: u8 = 2;

impl Socket {
    fn new(io: TcpStream, workload: Option<&Workload>) -> Self {
        let past_tcp = workload.and_then(|workload| workload.sockets.past_tcp(io.as_fd()));
        let past_tcp = past_tcp.map(|tcp| Box::new(Past::new(tcp)));
        Self { io: resting::Socket::new(io), past_tcp, trial: None, judged: Cell::new(false) }
    }

    fn to_application(io: TcpStream, workload: &Workload, remote: SocketAddr) -> Self {
        let mut stream = Self::new(io, Some(workload));
        if stream.past_tcp.is_none() {
            stream.trial = workload.sockets.trial(remote);
        }
        stream
    }

    fn is_outgrown(&self) -> bool {
        let Some(trial) = self.trial.as_ref().filter(|_| !self.judged.get()) else { return false };
        let passed = trial.passed();
        self.judged.set(passed.is_some());
        passed == Some(true)
    }

    /// How many bytes may be written now.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        let Some(past) = &mut self.past_tcp else { return Poll::Ready(usize::MAX) };
        if !past.tcp.bounded {
            past.looking = None;
            return Poll::Ready(usize::MAX);
        }
        loop {
            if past.unread <= STREAM_BYTES {
                return Poll::Ready((MAX_WAITING_BYTES - past.unread) as usize);
            }
            match past.tcp.gauge.waiting(self.io.as_fd()) {
                Waiting::Nothing => {
                    past.unread = 0;
                    past.looking = None;
                }
                // A stream is better off with TCP's own flow control.
                Waiting::NothingOfStream | Waiting::ByTcp => {
                    past.leave(&self.io);
                    past.looking = None;
                    return Poll::Ready(usize::MAX);
                }
                Waiting::Something if past.unread < MAX_WAITING_BYTES => {
                    return Poll::Ready((MAX_WAITING_BYTES - past.unread) as usize);
                }
                Waiting::Something => {
                    let first = || Box::new((Box::pin(tokio::time::sleep(LOOK.0)), LOOK.0));
                    let (sleep, step) = &mut **past.looking.get_or_insert_with(first);
                    ready!(sleep.as_mut().poll(cx));
                    *step = (*step * 2).min(LOOK.1);
                    sleep.as_mut().reset(Instant::now() + *step);
                }
            }
        }
    }

    /// So many bytes were read or written.
    fn moved(&mut self, n: usize) {
        let Some(past) = &mut self.past_tcp else { return };
        past.moved += n as u64;
        if past.moved < past.look_at || past.plain {
            return;
        }
        past.moved = 0;
        match past.tcp.gauge.look(self.io.as_fd()) {
            Look::Stays => past.look_at = (past.look_at * 2).min(MOVED.1),
            Look::Left => {
                past.on_tcp();
                past.look_at = MOVED.0;
            }
            Look::Plain => {
                past.on_tcp();
                past.plain = true;
            }
        }
    }

    fn wrote(&mut self, n: usize) {
        self.moved(n);
        let Some(past) = self.past_tcp.as_mut().filter(|past| past.tcp.bounded && n > 0) else { return };
        past.unread += n as u64;
        if past.writes >= DECIDED {
            return;
        }
        past.writes += 1;
        // The other end may have been too late to take the first bytes.
        if past.writes == DECIDED && past.tcp.gauge.waiting(self.io.as_fd()) == Waiting::ByTcp {
            past.leave(&self.io);
        }
    }
}

impl Past {
    fn new(tcp: PastTcp) -> Self {
        Self {
            tcp,
            unread: 0,
            looking: None,
            in_both_queues: false,
            writes: 0,
            moved: 0,
            look_at: MOVED.0,
            plain: false,
        }
    }

    fn leave(&mut self, io: &TcpStream) {
        // Before the other end's first byte by TCP.
        self.on_tcp();
        self.tcp.gauge.leave(io.as_fd());
    }

    fn on_tcp(&mut self) {
        self.in_both_queues = true;
        self.tcp.bounded = false;
        // It may be a read that finds this out, while a writer waits for room: nothing else would wake it.
        if let Some(looking) = &mut self.looking {
            looking.0.as_mut().reset(Instant::now());
        }
    }
}

impl Bare for Stream {
    fn bare(&self) -> Option<&TcpStream> {
        match self {
            Self::Socket(socket) => socket.past_tcp.is_none().then_some(&socket.io),
            Self::Memory(_) => None,
        }
    }

    fn bare_to_write(&self) -> Option<&TcpStream> {
        match self {
            // What is not known yet of an ordinary socket concerns its reader only; one that sends nothing
            // would never be known.
            Self::Socket(socket) => {
                socket.past_tcp.as_ref().is_none_or(|past| past.plain).then_some(&socket.io)
            }
            Self::Memory(_) => None,
        }
    }
}

impl<I> Bare for tokio_rustls::server::TlsStream<I> {
    fn bare(&self) -> Option<&TcpStream> {
        None
    }
}

#[cfg(test)]
impl Bare for TcpStream {
    fn bare(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

#[cfg(test)]
impl Bare for tokio::io::DuplexStream {
    fn bare(&self) -> Option<&TcpStream> {
        None
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.past_tcp.is_none() {
            return Pin::new(&mut *this.io).poll_read(cx, buf);
        }
        let before = buf.filled().len();
        let read = ready!(this.poll_read_past(cx, buf));
        this.moved(buf.filled().len() - before);
        Poll::Ready(read)
    }
}

impl Socket {
    /// Reads from a socket that has, or had, two queues.
    fn poll_read_past(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self;
        let Some(past) = &mut this.past_tcp else { return Poll::Ready(Ok(())) };
        if !past.in_both_queues {
            let read = Pin::new(&mut *this.io).poll_read(cx, buf);
            // Asked after reading: what is by TCP now was not there, or the answer is no.
            past.in_both_queues = past.tcp.gauge.last_switch() != past.tcp.since;
            if !past.in_both_queues || read.is_ready() {
                return read;
            }
        }
        // The reads above took a short read for the end of what there was.
        match receive(&this.io, buf) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
        // A writer that waits goes on first: what it waits by is kept here.
        if past.plain && past.looking.is_none() {
            this.past_tcp = None;
            return Pin::new(&mut *this.io).poll_read(cx, buf);
        }
        loop {
            ready!(this.io.poll_read_ready(cx))?;
            match this.io.try_io(Interest::READABLE, || receive(&this.io, buf)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

/// One read that leaves the socket's readiness as it is.
fn receive(io: &TcpStream, buf: &mut ReadBuf<'_>) -> io::Result<()> {
    // SAFETY: only written to.
    let room = unsafe { buf.unfilled_mut() };
    let n = socket2::SockRef::from(io).recv(room)?;
    // SAFETY: the kernel wrote so many bytes.
    unsafe { buf.assume_init(n) };
    buf.advance(n);
    Ok(())
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let room = ready!(self.poll_room(cx));
        let n = ready!(Pin::new(&mut *self.io).poll_write(cx, &buf[..buf.len().min(room)]))?;
        self.wrote(n);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let room = ready!(self.poll_room(cx));
        if room < bufs.iter().map(|buf| buf.len()).sum() {
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
            return self.poll_write(cx, first);
        }
        let n = ready!(Pin::new(&mut *self.io).poll_write_vectored(cx, bufs))?;
        self.wrote(n);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::model::workload::Gauge;

    /// A kernel of which only as much is known as a test says.
    #[derive(Debug)]
    struct Known {
        waiting: Waiting,
        look: Look,
        last_switch: AtomicU64,
        looks: AtomicU64,
    }

    impl Known {
        fn new(waiting: Waiting, look: Look, last_switch: u64) -> Arc<Self> {
            Arc::new(Self {
                waiting,
                look,
                last_switch: AtomicU64::new(last_switch),
                looks: AtomicU64::new(0),
            })
        }
    }

    impl Gauge for Known {
        fn waiting(&self, _: BorrowedFd<'_>) -> Waiting {
            self.waiting
        }
        fn leave(&self, _: BorrowedFd<'_>) {}
        fn look(&self, _: BorrowedFd<'_>) -> Look {
            // At first there is nothing to be seen: the writer has to wait.
            if self.looks.fetch_add(1, Ordering::Relaxed) == 0 { Look::Stays } else { self.look }
        }
        fn last_switch(&self) -> u64 {
            self.last_switch.load(Ordering::Relaxed)
        }
    }

    /// A socket whose bytes go past TCP, as `gauge` has it, and the other end.
    async fn connected(gauge: &Arc<Known>, bounded: bool, since: u64) -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (io, accepted) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let mut socket = Socket::new(io.unwrap(), None);
        socket.past_tcp = Some(Box::new(Past::new(PastTcp { bounded, since, gauge: gauge.clone() })));
        (socket, accepted.unwrap().0)
    }

    #[tokio::test]
    async fn short_reads_are_distrusted_after_any_switch_since_the_connection_began_however_late_it_was_written()
     {
        let gauge = Known::new(Waiting::Nothing, Look::Stays, 9);
        let (mut socket, mut peer) = connected(&gauge, false, 9).await;
        let mut read = async |expected| {
            peer.write_all(b"!").await.unwrap();
            assert_eq!(socket.read_u8().await.unwrap(), b'!');
            assert_eq!(socket.past_tcp.as_ref().unwrap().in_both_queues, expected);
        };
        read(false).await;
        // Of a flow that began before this one, and was slower to say so than a later one.
        gauge.last_switch.store(3, Ordering::Relaxed);
        read(true).await;
    }

    #[tokio::test]
    async fn a_writer_that_waits_for_room_goes_on_when_a_read_finds_the_socket_to_be_an_ordinary_one() {
        const SENT: usize = 2 * MAX_WAITING_BYTES as usize;
        const ANSWER: usize = 2 * MOVED.0 as usize;
        for look in [Look::Left, Look::Plain] {
            let gauge = Known::new(Waiting::Something, look, 0);
            let (mut socket, mut peer) = connected(&gauge, true, 0).await;
            let sent = vec![7; SENT];
            let (mut written, mut read) = (0, 0);
            let ours = poll_fn(move |cx| {
                // The writer first, as a pair of directions is polled: its wait is begun before the read. A reader
                // goes on until nothing is left.
                while written < sent.len()
                    && let Poll::Ready(n) = Pin::new(&mut socket).poll_write(cx, &sent[written..])
                {
                    written += n.unwrap();
                }
                let mut room = [0; 16 << 10];
                let mut into = ReadBuf::new(&mut room);
                while Pin::new(&mut socket).poll_read(cx, &mut into).is_ready() {
                    read += into.filled().len();
                    into.clear();
                }
                if written == SENT && read == ANSWER { Poll::Ready(()) } else { Poll::Pending }
            });
            let theirs = async {
                peer.write_all(&vec![1; ANSWER]).await.unwrap();
                peer.read_exact(&mut vec![0; SENT]).await.unwrap();
                peer
            };
            // A task of its own: what the peer waits for must not wake it.
            let tasks = tokio::task::LocalSet::new();
            let ours = tasks.spawn_local(ours);
            let both = tasks.run_until(async { tokio::join!(ours, theirs) });
            let done = tokio::time::timeout(Duration::from_secs(20), both).await;
            drop(done.unwrap_or_else(|_| panic!("{look:?}: the writer was never woken")));
            assert!(gauge.looks.load(Ordering::Relaxed) > 1, "the socket was never looked at");
        }
    }
}

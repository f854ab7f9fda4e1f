//! Transfers whose every byte, order and end is checked by both sides. What a transfer is like follows from its
//! seed alone, which is all that one side tells the other, so that a failure can be had again.
//!
//! Both sides use their sockets as event loops do: non-blocking, and told once of what comes (edge), in which
//! case a short read is taken for the end of what there is, or again and again (level). With `blocking` they
//! use them as threads do: one reads, one writes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use mesh_tests::peer::Tally;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A side that hears nothing for so long has lost something.
const STALL: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

/// How a transfer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    ClientFirst,
    ServerFirst,
    Both,
    ClientResets,
    ServerResets,
}

/// What both sides do, from the seed.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    /// Bytes from the client, and to it.
    sizes: [u64; 2],
    /// Turns that the bytes are sent in, one side after the other; 1: both at once.
    turns: u64,
    ending: Ending,
}

impl Plan {
    fn of(seed: u64) -> Plan {
        let mut rng = Rng::with_seed(seed ^ 0x5eed);
        let mut size = || match rng.u32(0..100) {
            0 => rng.u64(1..=8 * MIB),
            1..10 => rng.u64(1..=MIB),
            10..50 => rng.u64(1..=64 * 1024),
            _ => rng.u64(1..=4096),
        };
        let sizes = [size(), size()];
        let turns = if rng.u32(0..3) == 0 { 1 } else { rng.u64(1..=40).min(sizes[0]).min(sizes[1]) };
        let ending = match rng.u32(0..10) {
            0 => Ending::ClientResets,
            1 => Ending::ServerResets,
            2..5 => Ending::ServerFirst,
            5..7 => Ending::Both,
            _ => Ending::ClientFirst,
        };
        Plan { seed, sizes, turns, ending }
    }

    /// Where turn `turn` of `turns` ends.
    fn until(&self, side: usize, turn: u64) -> u64 {
        (u128::from(self.sizes[side]) * u128::from(turn.min(self.turns)) / u128::from(self.turns)) as u64
    }
}

/// The bytes of one direction: every place can be computed, none repeats soon.
fn fill(seed: u64, side: usize, from: u64, buffer: &mut [u8]) {
    for (at, byte) in (from..).zip(buffer) {
        let word = (at / 8 + seed * 31 + side as u64 * 7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *byte = (word >> (at % 8 * 8)) as u8;
    }
}

/// One end of a transfer.
struct End<'a> {
    stream: &'a TcpStream,
    plan: &'a Plan,
    /// 0 is the client.
    side: usize,
    rng: Rng,
    epoll: Option<Epoll>,
    sent: u64,
    got: u64,
    ended: bool,
    readable: bool,
    /// The other side's end was told, with what came before it.
    ending: bool,
    slow: bool,
    scratch: Vec<u8>,
}

impl<'a> End<'a> {
    fn new(stream: &'a TcpStream, plan: &'a Plan, side: usize) -> Result<End<'a>> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let mut rng = Rng::with_seed(plan.seed.wrapping_mul(3) + side as u64);
        let epoll = if rng.bool() { Some(Epoll::new(stream)?) } else { None };
        let slow = rng.u32(0..20) == 0 && plan.sizes[1 - side] < 256 * 1024;
        Ok(End {
            stream,
            plan,
            side,
            rng,
            epoll,
            sent: 0,
            got: 0,
            ended: false,
            readable: true,
            ending: false,
            slow,
            scratch: vec![0; 128 * 1024],
        })
    }

    /// Runs to the end that the plan says.
    fn run(&mut self) -> Result<()> {
        let mut turn = 1;
        let mut shut = false;
        let resets =
            matches!((self.side, self.plan.ending), (0, Ending::ClientResets) | (1, Ending::ServerResets));
        let reset_by_other =
            matches!((self.side, self.plan.ending), (1, Ending::ClientResets) | (0, Ending::ServerResets));
        let mut heard = Instant::now();
        loop {
            let mine = self.plan.until(self.side, turn);
            // The client's turn comes first; the server's when it has read the client's.
            let theirs = self.plan.until(1 - self.side, if self.side == 0 { turn - 1 } else { turn });
            let my_turn = self.plan.turns == 1 || self.got >= theirs;
            let before = (self.sent, self.got);
            if my_turn && self.sent < mine {
                match self.write_some(mine) {
                    Err(error) if reset_by_other && is_reset(&error) => return Ok(()),
                    other => other.context("sending")?,
                }
            }
            if self.sent == mine && turn < self.plan.turns {
                turn += 1;
            }
            let all_sent = self.sent == self.plan.sizes[self.side];
            if resets && all_sent && self.got == self.plan.sizes[1 - self.side] {
                socket2::SockRef::from(self.stream).set_linger(Some(Duration::ZERO))?;
                return Ok(());
            }
            let waits_for_end = match self.plan.ending {
                Ending::ClientFirst => self.side == 1,
                Ending::ServerFirst => self.side == 0,
                _ => false,
            };
            if all_sent && !shut && !resets && !reset_by_other && (!waits_for_end || self.ended) {
                self.stream.shutdown(Shutdown::Write).context("half-closing")?;
                shut = true;
            }
            if !self.ended {
                match self.read_some() {
                    // What was still on its way is lost with a reset; what came was checked.
                    Err(error) if reset_by_other && is_reset(&error) => return Ok(()),
                    other => other?,
                }
            }
            if self.ended && reset_by_other {
                return Ok(());
            }
            if shut && self.ended {
                return self.all_came();
            }
            if before != (self.sent, self.got) {
                heard = Instant::now();
                continue;
            }
            ensure!(
                heard.elapsed() < STALL,
                "stalled: {} of {} sent, {} of {} received, turn {turn}",
                self.sent,
                self.plan.sizes[self.side],
                self.got,
                self.plan.sizes[1 - self.side]
            );
            let wants_write = self.plan.until(self.side, turn) > self.sent
                && (self.plan.turns == 1
                    || self.got
                        >= self.plan.until(1 - self.side, if self.side == 0 { turn - 1 } else { turn }));
            self.wait(wants_write)?;
        }
    }

    fn all_came(&self) -> Result<()> {
        ensure!(
            self.got == self.plan.sizes[1 - self.side],
            "the end came after {} of {} bytes",
            self.got,
            self.plan.sizes[1 - self.side]
        );
        Ok(())
    }

    fn wait(&mut self, wants_write: bool) -> Result<()> {
        if self.ended && !wants_write {
            thread::sleep(Duration::from_millis(1)); // only the other direction is left, which has no events here
            return Ok(());
        }
        if let Some(epoll) = &self.epoll {
            if self.readable && !self.ended {
                return Ok(());
            }
            let (readable, ending) = epoll.wait(Duration::from_secs(1))?;
            self.readable |= readable;
            self.ending |= ending;
            return Ok(());
        }
        let mut flags = if self.ended { PollFlags::empty() } else { PollFlags::POLLIN };
        if wants_write {
            flags |= PollFlags::POLLOUT;
        }
        poll(&mut [PollFd::new(self.stream.as_fd(), flags)], PollTimeout::from(1000_u16))?;
        self.readable = true;
        Ok(())
    }

    fn read_some(&mut self) -> Result<()> {
        if !self.readable {
            return Ok(());
        }
        if self.slow {
            thread::sleep(Duration::from_micros(self.rng.u64(50..2000)));
        }
        let room = match self.rng.u32(0..4) {
            0 => self.rng.usize(1..=16),
            1 => self.rng.usize(1..=2048),
            _ => self.scratch.len(),
        };
        let mut buffer = std::mem::take(&mut self.scratch);
        let result = self.read_into(&mut buffer[..room]);
        self.scratch = buffer;
        result
    }

    fn read_into(&mut self, buffer: &mut [u8]) -> Result<()> {
        if self.rng.u32(0..8) == 0
            && let Ok(n) = self.stream.peek(buffer)
        {
            self.check(&buffer[..n]).context("peeking")?;
            let waiting = waiting(self.stream)?;
            ensure!(waiting >= n, "{n} bytes peeked, {waiting} waiting by FIONREAD");
        }
        match (&mut &*self.stream).read(buffer) {
            Ok(0) => self.ended = true,
            Ok(n) => {
                self.check(&buffer[..n])?;
                self.got += n as u64;
                // As event loops do that save the read that says "nothing more".
                if n < buffer.len() && !self.ending {
                    self.readable = false;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn check(&self, bytes: &[u8]) -> Result<()> {
        let mut want = vec![0; bytes.len()];
        fill(self.plan.seed, 1 - self.side, self.got, &mut want);
        if let Some(at) = bytes.iter().zip(&want).position(|(a, b)| a != b) {
            bail!("byte {} is not the one sent", self.got + at as u64);
        }
        Ok(())
    }

    fn write_some(&mut self, until: u64) -> io::Result<()> {
        let left = (until - self.sent) as usize;
        let most = match self.rng.u32(0..5) {
            0 => self.rng.usize(1..=100),
            1 => self.rng.usize(1..=8192),
            2 => self.rng.usize(1..=64 * 1024),
            _ => MIB as usize,
        };
        let mut data = vec![0; left.min(most)];
        fill(self.plan.seed, self.side, self.sent, &mut data);
        let written = match self.rng.u32(0..8) {
            0 => send_file(self.stream, &data),
            1 => splice(self.stream, &data),
            2 => {
                let half = data.len() / 2;
                let parts = [io::IoSlice::new(&data[..half]), io::IoSlice::new(&data[half..])];
                (&mut &*self.stream).write_vectored(&parts)
            }
            _ => (&mut &*self.stream).write(&data),
        };
        match written {
            Ok(n) => self.sent += n as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn is_reset(error: &(impl std::fmt::Debug + ?Sized + AsIo)) -> bool {
    error.as_io().is_some_and(|e| matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
}

trait AsIo {
    fn as_io(&self) -> Option<&io::Error>;
}

impl AsIo for io::Error {
    fn as_io(&self) -> Option<&io::Error> {
        Some(self)
    }
}

impl AsIo for anyhow::Error {
    fn as_io(&self) -> Option<&io::Error> {
        self.downcast_ref()
    }
}

/// Edge-triggered readiness of one socket.
struct Epoll(nix::sys::epoll::Epoll);

impl Epoll {
    fn new(stream: &TcpStream) -> Result<Epoll> {
        use nix::sys::epoll::{EpollCreateFlags, EpollEvent, EpollFlags};
        let epoll = nix::sys::epoll::Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        epoll.add(stream, EpollEvent::new(flags, 0))?;
        Ok(Epoll(epoll))
    }

    /// Whether something to read was told, and whether the end was.
    fn wait(&self, timeout: Duration) -> Result<(bool, bool)> {
        use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
        let mut events = [EpollEvent::empty()];
        let n = self.0.wait(&mut events, EpollTimeout::try_from(timeout)?)?;
        let told = if n > 0 { events[0].events() } else { EpollFlags::empty() };
        let end = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        Ok((told.intersects(end | EpollFlags::EPOLLIN), told.intersects(end)))
    }
}

fn waiting(stream: &TcpStream) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::FIONREAD, &raw mut value) };
    if result == 0 { Ok(value as usize) } else { Err(io::Error::last_os_error()) }
}

/// Sends from a file in memory.
fn send_file(stream: &TcpStream, data: &[u8]) -> io::Result<usize> {
    let file = nix::sys::memfd::memfd_create(c"data", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(data)?;
    let mut offset = 0;
    // SAFETY: the offset is readable and writable.
    let n = unsafe { libc::sendfile(stream.as_raw_fd(), file.as_raw_fd(), &raw mut offset, data.len()) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// Sends through a pipe, no more than fits into it.
fn splice(stream: &TcpStream, data: &[u8]) -> io::Result<usize> {
    let (out, into) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let data = &data[..data.len().min(16 * 1024)];
    std::fs::File::from(into).write_all(data)?;
    // SAFETY: without offsets nothing is read or written through pointers.
    let n = unsafe {
        libc::splice(
            out.as_raw_fd(),
            std::ptr::null_mut(),
            stream.as_raw_fd(),
            std::ptr::null_mut(),
            data.len(),
            libc::SPLICE_F_NONBLOCK,
        )
    };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// Threads that use a socket as it is by default: one writes, one reads.
fn run_blocking(stream: &TcpStream, plan: &Plan, side: usize) -> Result<()> {
    stream.set_nonblocking(false)?;
    thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<()> {
            let mut rng = Rng::with_seed(plan.seed + side as u64);
            let mut sent = 0;
            while sent < plan.sizes[side] {
                let mut data = vec![0; (plan.sizes[side] - sent).min(rng.u64(1..=64 * 1024)) as usize];
                fill(plan.seed, side, sent, &mut data);
                (&mut &*stream).write_all(&data).context("a blocking send")?;
                sent += data.len() as u64;
            }
            stream.shutdown(Shutdown::Write).context("half-closing")
        });
        let (mut got, mut buffer) = (0, vec![0; 64 * 1024]);
        loop {
            let n = (&mut &*stream).read(&mut buffer).context("a blocking receive")?;
            if n == 0 {
                break;
            }
            let mut want = vec![0; n];
            fill(plan.seed, 1 - side, got, &mut want);
            ensure!(buffer[..n] == want, "bytes after {got} are not the ones sent");
            got += n as u64;
        }
        ensure!(got == plan.sizes[1 - side], "the end came after {got} of {} bytes", plan.sizes[1 - side]);
        writer.join().map_err(|_| anyhow::anyhow!("the writing thread panicked"))?
    })
}

fn run(stream: &TcpStream, plan: &Plan, side: usize, blocking: bool) -> Result<()> {
    if blocking { run_blocking(stream, plan, side) } else { End::new(stream, plan, side)?.run() }
}

/// Serves transfers until killed; a failure is told on standard error. Prints `listening`.
pub fn serve(listen: SocketAddr, blocking: bool) -> Result<()> {
    let listener = TcpListener::bind(listen)?;
    println!("listening");
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            let outcome = seed_of(&stream, blocking).and_then(|seed| {
                run(&stream, &Plan::of(seed), 1, blocking).with_context(|| format!("seed {seed}"))
            });
            if let Err(error) = outcome {
                eprintln!("server: {error:#}");
            }
        });
    }
    Ok(())
}

fn seed_of(stream: &TcpStream, blocking: bool) -> Result<u64> {
    stream.set_nonblocking(!blocking)?;
    let (mut seed, mut got) = ([0; 8], 0);
    while got < seed.len() {
        match (&mut &*stream).read(&mut seed[got..]) {
            Ok(0) => bail!("no seed came"),
            Ok(n) => got += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
                ensure!(poll(&mut fds, PollTimeout::try_from(STALL)?)? > 0, "the seed never came");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(u64::from_le_bytes(seed))
}

/// `count` transfers from `seed` on, so many at a time; prints a tally.
pub fn call(to: SocketAddr, seed: u64, count: u64, concurrency: usize, blocking: bool) -> Result<()> {
    let next = AtomicU64::new(0);
    let tally = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for _ in 0..concurrency {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let outcome = transfer(to, seed + index, blocking);
                    let mut tally = tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    tally.exchanges += 1;
                    if let Err(error) = outcome {
                        tally.failed += 1;
                        if tally.errors.len() < 5 {
                            let plan = Plan::of(seed + index);
                            tally.errors.push(format!("{error:#} ({plan:?})"));
                        }
                    }
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!("{}", serde_json::to_string(&tally)?);
    Ok(())
}

fn transfer(to: SocketAddr, seed: u64, blocking: bool) -> Result<()> {
    let stream = connect(to, blocking)?;
    (&mut &stream).write_all(&seed.to_le_bytes()).context("sending the seed")?;
    run(&stream, &Plan::of(seed), 0, blocking)
}

/// A socket that is non-blocking from the start, as those of event loops.
fn connect(to: SocketAddr, blocking: bool) -> Result<TcpStream> {
    if blocking {
        return TcpStream::connect(to).context("connecting");
    }
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(to),
        socket2::Type::STREAM.nonblocking().cloexec(),
        None,
    )?;
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            ensure!(poll(&mut fds, PollTimeout::try_from(STALL)?)? > 0, "the connection never opened");
            if let Some(error) = socket.take_error()? {
                return Err(error).context("connecting");
            }
        }
        Err(error) => return Err(error).context("connecting"),
    }
    Ok(socket.into())
}

/// Accepts and never reads. Prints `listening`.
pub fn deaf(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen)?;
    println!("listening");
    let mut held = Vec::new();
    for stream in listener.incoming() {
        let stream = stream?;
        stream.set_nonblocking(true)?;
        // The first connections answer once, so that it is seen how they are used.
        (&mut &stream).write_all(b"!")?;
        held.push(stream);
    }
    Ok(())
}

/// Writes until nothing more is taken for a second; prints the number of bytes.
pub fn flood(to: SocketAddr, message: usize) -> Result<()> {
    let stream = connect(to, false)?;
    let data = vec![7; message];
    let mut written = 0_u64;
    loop {
        match (&mut &stream).write(&data) {
            Ok(n) => written += n as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut fds, PollTimeout::from(1000_u16))? == 0 {
                    break;
                }
            }
            Err(error) => return Err(error.into()),
        }
        if written > 1 << 30 {
            break;
        }
    }
    println!("{written}");
    Ok(())
}

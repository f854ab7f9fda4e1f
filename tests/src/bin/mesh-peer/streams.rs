//! Transfers whose every byte, order and end is checked by both sides. What a transfer is like follows from its
//! seed alone, which is all that one side tells the other, so that a failure can be had again.
//!
//! Both sides use their sockets as event loops do: non-blocking, and told once of what comes (edge), in which
//! case a short read is taken for the end of what there is, or again and again (level). With `blocking` they
//! use them as threads do: one reads, one writes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use mesh_tests::peer::Tally;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sockets::{Epoll, send_file, splice, waiting};

/// A side that hears nothing for so long has lost something.
fn stall() -> Duration {
    mesh_tests::process::deadline()
}

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
pub fn fill(seed: u64, side: usize, from: u64, buffer: &mut [u8]) {
    let word =
        |at: u64| (at / 8 + seed * 31 + side as u64 * 7).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let (mut at, mut rest) = (from, buffer);
    while !rest.is_empty() {
        // A word at a time: the programs of the tests are not optimized.
        let within = (at % 8) as usize;
        let n = rest.len().min(8 - within);
        let (now, later) = rest.split_at_mut(n);
        now.copy_from_slice(&word(at)[within..within + n]);
        (at, rest) = (at + n as u64, later);
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
        let epoll = if rng.bool() { Some(Epoll::new(stream, true)?) } else { None };
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
            if self.ended {
                self.all_came()?;
            }
            if shut && self.ended {
                return self.all_came();
            }
            if before != (self.sent, self.got) {
                heard = Instant::now();
                continue;
            }
            ensure!(
                heard.elapsed() < stall(),
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
        let of = self.plan.sizes[1 - self.side];
        if self.got != of {
            return Err(Early { got: self.got, of }.into());
        }
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

/// The other side's end came before all of its bytes.
#[derive(Debug)]
struct Early {
    got: u64,
    of: u64,
}

impl std::fmt::Display for Early {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the end came after {} of {} bytes", self.got, self.of)
    }
}

impl std::error::Error for Early {}

/// Whether a transfer ended as connections do whose proxy is killed: no byte was wrong, and nothing was waited for in
/// vain.
fn is_cut(error: &anyhow::Error) -> bool {
    use ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotConnected, PermissionDenied,
    };
    let cut =
        [BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotConnected, PermissionDenied];
    let by_error = |error: &io::Error| cut.contains(&error.kind());
    error.chain().any(|e| e.is::<Early>() || e.downcast_ref().is_some_and(by_error))
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
        if got != plan.sizes[1 - side] {
            return Err(Early { got, of: plan.sizes[1 - side] }.into());
        }
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
    loop {
        let stream =
            if blocking { listener.accept()?.0 } else { mesh_tests::sys::accept_non_blocking(&listener)? };
        thread::spawn(move || {
            let outcome = seed_of(&stream, blocking).and_then(|seed| {
                run(&stream, &Plan::of(seed), 1, blocking).with_context(|| format!("seed {seed}"))
            });
            if let Err(error) = outcome {
                eprintln!("server: {error:#}");
            }
        });
    }
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
                ensure!(poll(&mut fds, PollTimeout::try_from(stall())?)? > 0, "the seed never came");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(u64::from_le_bytes(seed))
}

/// Transfers as they are asked for.
#[derive(clap::Args)]
pub struct CallArgs {
    #[arg(long)]
    to: SocketAddr,
    /// Of the first; the others follow
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    count: u64,
    #[arg(long)]
    concurrency: usize,
    /// Use sockets as threads do
    #[arg(long)]
    blocking: bool,
    /// End with standard input, and count transfers apart that are cut off as when a proxy is killed
    #[arg(long)]
    until_told: bool,
}

/// Makes the transfers, so many at a time; prints a tally.
pub fn call(args: &CallArgs) -> Result<()> {
    let next = AtomicU64::new(0);
    let stop = Arc::new(AtomicBool::new(false));
    if args.until_told {
        let stop = stop.clone();
        thread::spawn(move || {
            io::stdin().read_to_end(&mut Vec::new()).ok();
            stop.store(true, Ordering::Relaxed);
        });
    }
    let tally = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for _ in 0..args.concurrency {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= args.count || stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let seed = args.seed + index;
                    let outcome = transfer(args.to, seed, args.blocking);
                    let cut = args.until_told && outcome.as_ref().is_err_and(is_cut);
                    if cut {
                        thread::sleep(Duration::from_millis(5)); // the pace of trying again
                    }
                    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                    tally.exchanges += 1;
                    tally.cut += u64::from(cut);
                    if let Some(error) = outcome.err().filter(|_| !cut) {
                        tally.failed += 1;
                        if tally.errors.len() < 5 {
                            let plan = Plan::of(seed);
                            tally.errors.push(format!("{error:#} ({plan:?})"));
                        }
                    }
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
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
            ensure!(poll(&mut fds, PollTimeout::try_from(stall())?)? > 0, "the connection never opened");
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

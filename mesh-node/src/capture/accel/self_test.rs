//! Tests at start what a kernel may lack or have broken of sockets whose bytes go past TCP. Behaviour is
//! tested, never a version: fixes and defects both came with stable releases.
//!
//! Runs connections over the host's loopback; touches nothing of pods. Takes a few hundred milliseconds at
//! most, nearly all of it waits that only a broken kernel makes long.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use mesh_common::{SocketTag, accel::MAX_WAITING_BYTES, kind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use super::super::bpf::Map;
use super::super::sockopt;
use super::gauge::KernelGauge;
use crate::model::workload::{Gauge, Look, Waiting};

/// How long something that happens at once on a sound kernel is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// One behaviour of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tested {
    pub name: String,
    /// What is wrong with it; `None`: as with TCP.
    pub problem: Option<String>,
    /// What made it so where the kernel alone does not.
    pub mended: Option<String>,
    /// Without it nothing is accelerated.
    pub needed: bool,
}

/// The name of the test whose failure leaves applications' sockets on TCP.
pub(super) const SPLICE: &str = "splice";

type Check = fn(&mut Ends) -> Result<(), String>;

const CHECKS: [(&str, Check); 12] = [
    ("redirect", redirect),
    ("fionread", fionread),
    ("peek", peek),
    ("level_triggered", level_triggered),
    ("edge_triggered", edge_triggered),
    ("wake_ups", wake_ups),
    ("large_write", large_write),
    ("half_close", half_close),
    ("end_with_data_queued", end_with_data_queued),
    ("reset_with_data_queued", reset_with_data_queued),
    ("bound", bound),
    ("leave", leave),
];

/// Both ends of one accelerated connection, non-blocking.
struct Ends<'a> {
    gauge: &'a KernelGauge,
    /// Connected; what it sends is bounded as the proxy's to an application.
    proxy: TcpStream,
    application: TcpStream,
}

/// Which programs beside the needed ones the kernel took.
pub(super) struct Watched {
    /// Sees who splices.
    pub(super) splice: Result<(), String>,
    /// Refuses options that an accelerated socket cannot have.
    pub(super) options: Result<(), String>,
}

pub(super) fn run(
    gauge: &KernelGauge,
    tags: &Map<i32, SocketTag>,
    watched: Watched,
    mend_fionread: impl FnOnce() -> Result<(), String>,
) -> Vec<Tested> {
    let mut tests = Vec::new();
    let mut mend_fionread = Some(mend_fionread);
    for (name, check) in CHECKS {
        let once = || connect(gauge, tags).and_then(|mut ends| check(&mut ends));
        let (mut outcome, mut mended) = (once(), None);
        if let Err(wrong) = &outcome
            && name == "fionread"
            && let Some(mend) = mend_fionread.take()
        {
            match mend() {
                Ok(()) => (outcome, mended) = (once(), Some("by a program of ours".to_owned())),
                Err(reason) => outcome = Err(format!("{wrong}, which cannot be mended: {reason}")),
            }
        }
        let failed = outcome.is_err();
        let problem = outcome.err().map(|e| format!("{name}: {e}"));
        tests.push(Tested { name: name.to_owned(), problem, mended, needed: true });
        if failed && name == CHECKS[0].0 {
            return tests;
        }
    }
    // One of the two is enough.
    let spliced = connect(gauge, tags).and_then(|mut ends| splice(&mut ends));
    let problem = match (spliced, watched.splice) {
        (Ok(()), _) | (Err(_), Ok(())) => None,
        (Err(cannot), Err(unseen)) => {
            Some(format!("{cannot}, and pods that splice cannot be told from others ({unseen})"))
        }
    };
    let options = watched.options.map_err(|reason| format!("options cannot be refused: {reason}"));
    let options = options.and_then(|()| connect(gauge, tags).and_then(|mut ends| late_options(&mut ends)));
    tests.push(Tested {
        name: "late_options".to_owned(),
        problem: options.err(),
        mended: None,
        needed: false,
    });
    tests.push(Tested { name: SPLICE.to_owned(), problem, mended: None, needed: false });
    tests
}

/// The calling thread is in the host's network namespace.
fn connect<'a>(gauge: &'a KernelGauge, tags: &Map<i32, SocketTag>) -> Result<Ends<'a>, String> {
    let ends = || -> io::Result<Ends<'a>> {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
        tags.tag(socket.as_fd(), &SocketTag { netns: 0, slot: 0, kind: kind::TEST, worker: 0 })?;
        socket.connect(&listener.local_addr()?.into())?;
        let proxy: TcpStream = socket.into();
        let (application, _) = listener.accept()?;
        proxy.set_nonblocking(true)?;
        proxy.set_nodelay(true)?;
        application.set_nonblocking(true)?;
        application.set_nodelay(true)?;
        Ok(Ends { gauge, proxy, application })
    };
    ends().map_err(|error| format!("a connection over the loopback interface: {error}"))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn wait(stream: &TcpStream, flags: PollFlags) -> Result<PollFlags, String> {
    let mut fds = [PollFd::new(stream.as_fd(), flags)];
    let timeout = PollTimeout::try_from(PATIENCE).map_err(text)?;
    poll(&mut fds, timeout).map_err(text)?;
    Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
}

/// Reads until `length` bytes, an end or an error came.
fn read(stream: &mut TcpStream, length: usize) -> Result<Vec<u8>, String> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
    while bytes.len() < length {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => bytes.extend(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if wait(stream, PollFlags::POLLIN)?.is_empty() {
                    return Err(format!("{} of {length} bytes came, and nothing more", bytes.len()));
                }
            }
            Err(error) => return Err(text(error)),
        }
    }
    Ok(bytes)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn same(what: &str, got: &[u8], want: &[u8]) -> Result<(), String> {
    if got == want {
        Ok(())
    } else {
        Err(format!("{what}: {} bytes came that were not the {} sent", got.len(), want.len()))
    }
}

/// Bytes go past TCP in both directions.
fn redirect(ends: &mut Ends<'_>) -> Result<(), String> {
    for turn in 0..3_u8 {
        ends.proxy.write_all(&[turn; 100]).map_err(text)?;
        same("to the application", &read(&mut ends.application, 100)?, &[turn; 100])?;
        ends.application.write_all(&[turn; 50]).map_err(text)?;
        same("to the proxy", &read(&mut ends.proxy, 50)?, &[turn; 50])?;
    }
    for (name, stream) in [("proxy", &ends.proxy), ("application", &ends.application)] {
        if ends.gauge.waiting(stream.as_fd()) == Waiting::ByTcp {
            return Err(format!("what the {name} sends goes by TCP; is mesh-node inside cgroup_root?"));
        }
    }
    Ok(())
}

fn fionread(ends: &mut Ends<'_>) -> Result<(), String> {
    ends.proxy.write_all(&[1; 1000]).map_err(text)?;
    let waiting = |stream: &TcpStream| sockopt::bytes_waiting(stream).map_err(text);
    let mut counts = vec![waiting(&ends.application)?];
    let mut some = [0; 300];
    ends.application.read_exact(&mut some).map_err(text)?;
    counts.push(waiting(&ends.application)?);
    read(&mut ends.application, 700)?;
    counts.push(waiting(&ends.application)?);
    if counts == [1000, 700, 0] { Ok(()) } else { Err(format!("told {counts:?} for 1000, 700 and 0 bytes")) }
}

fn peek(ends: &mut Ends<'_>) -> Result<(), String> {
    let (first, second) = (pattern(600), pattern(700));
    ends.proxy.write_all(&first).and_then(|()| ends.proxy.write_all(&second)).map_err(text)?;
    let whole = [first, second].concat();
    let mut buffer = [0; 2000];
    for _ in 0..2 {
        let n = ends.application.peek(&mut buffer).map_err(text)?;
        same("peeked", &buffer[..n], &whole)?;
    }
    same("read after peeking", &read(&mut ends.application, whole.len())?, &whole)
}

fn level_triggered(ends: &mut Ends<'_>) -> Result<(), String> {
    ends.proxy.write_all(&[1; 10]).map_err(text)?;
    for left in (0..10).rev() {
        if !wait(&ends.application, PollFlags::POLLIN)?.contains(PollFlags::POLLIN) {
            return Err(format!("not readable with {} bytes waiting", left + 1));
        }
        ends.application.read_exact(&mut [0]).map_err(text)?;
    }
    let mut fds = [PollFd::new(ends.application.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO).map_err(text)? {
        0 => Ok(()),
        _ => Err("readable with nothing waiting".to_owned()),
    }
}

/// Every message after everything was read is told, on a reader that is told only once.
fn edge_triggered(ends: &mut Ends<'_>) -> Result<(), String> {
    let edges = sockopt::Edges::new(&ends.application).map_err(text)?;
    edges.wait(Duration::ZERO).map_err(text)?;
    for turn in 0..200_usize {
        let message = pattern(1 + turn * 37 % 5000);
        ends.proxy.write_all(&message).map_err(text)?;
        if !edges.wait(PATIENCE).map_err(text)? {
            return Err(format!("message {turn} was never told"));
        }
        same("after the edge", &read(&mut ends.application, message.len())?, &message)?;
    }
    Ok(())
}

/// The same with both ends in threads of their own, so that a message may come at any moment between a read and
/// the wait after it. A short read is taken for the end of what there is, as event loops do.
fn wake_ups(ends: &mut Ends<'_>) -> Result<(), String> {
    const TURNS: usize = 400;
    fn receive(stream: &mut TcpStream, edges: &sockopt::Edges, turn: usize) -> Result<(), String> {
        let length = size(turn);
        let (mut got, mut buffer, mut readable) = (0, [0; 4096], true);
        while got < length {
            if !readable && !edges.wait(PATIENCE).map_err(text)? {
                return Err(format!("{got} of the {length} bytes of turn {turn} were told"));
            }
            match stream.read(&mut buffer) {
                Ok(0) => return Err(format!("an end in turn {turn}")),
                Ok(n) => {
                    got += n;
                    readable = n == buffer.len();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => readable = false,
                Err(error) => return Err(text(error)),
            }
        }
        Ok(())
    }
    fn size(turn: usize) -> usize {
        1 + turn * 97 % 9000
    }
    let Ends { proxy, application, .. } = ends;
    let edges = [sockopt::Edges::new(proxy).map_err(text)?, sockopt::Edges::new(application).map_err(text)?];
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| {
            (0..TURNS).try_for_each(|turn| {
                receive(application, &edges[1], turn)?;
                application.write_all(&pattern(size(turn))).map_err(text)
            })
        });
        let asking = (0..TURNS).try_for_each(|turn| {
            proxy.write_all(&pattern(size(turn))).map_err(text)?;
            receive(proxy, &edges[0], turn)
        });
        let answering = answering.join().map_err(|_| "a thread ended".to_owned())?;
        asking.and(answering)
    })
}

/// Writes as much as there is room for at a time, from either end, while the other reads.
fn large_write(ends: &mut Ends<'_>) -> Result<(), String> {
    let sent = pattern(1 << 20);
    for _ in 0..2 {
        let (mut written, mut got, mut buffer) = (0, Vec::new(), vec![0; 64 * 1024]);
        let until = Instant::now() + PATIENCE;
        while got.len() < sent.len() && Instant::now() < until {
            if written < sent.len() {
                match ends.application.write(&sent[written..]) {
                    Ok(n) => written += n,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(text(error)),
                }
            }
            match ends.proxy.read(&mut buffer) {
                Ok(n) => got.extend(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(text(error)),
            }
        }
        same("1 MiB", &got, &sent)?;
        std::mem::swap(&mut ends.proxy, &mut ends.application);
    }
    Ok(())
}

fn half_close(ends: &mut Ends<'_>) -> Result<(), String> {
    let (request, answer) = (pattern(5000), pattern(7000));
    ends.proxy.write_all(&request).map_err(text)?;
    ends.proxy.shutdown(Shutdown::Write).map_err(text)?;
    same("before the end", &read(&mut ends.application, usize::MAX)?, &request)?;
    ends.application.write_all(&answer).map_err(text)?;
    ends.application.shutdown(Shutdown::Write).map_err(text)?;
    same("after the other side's end", &read(&mut ends.proxy, usize::MAX)?, &answer)?;
    match ends.proxy.write(&[1]) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => Err(format!("a write after the end gave {other:?}")),
    }
}

fn end_with_data_queued(ends: &mut Ends<'_>) -> Result<(), String> {
    let sent = pattern(100_000);
    ends.application.write_all(&sent).map_err(text)?;
    replace(&mut ends.application)?;
    same("before the end", &read(&mut ends.proxy, usize::MAX)?, &sent)
}

/// What was sent before a reset is readable, then the reset is told: as Linux does with TCP.
fn reset_with_data_queued(ends: &mut Ends<'_>) -> Result<(), String> {
    let sent = pattern(20_000);
    ends.application.write_all(&sent).map_err(text)?;
    socket2::SockRef::from(&ends.application).set_linger(Some(Duration::ZERO)).map_err(text)?;
    replace(&mut ends.application)?;
    if !wait(&ends.proxy, PollFlags::empty())?.contains(PollFlags::POLLERR) {
        return Err("the reset was never told".to_owned());
    }
    same("before the reset", &read(&mut ends.proxy, sent.len())?, &sent)?;
    match ends.proxy.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => Err(format!("a read after the reset gave {other:?}")),
    }
}

/// What one side writes to a side that never reads ends at the bound or at TCP's window, and the program that
/// looks at the reader's queue sees it. What went past TCP and what went by TCP is one stream.
fn bound(ends: &mut Ends<'_>) -> Result<(), String> {
    if ends.gauge.waiting(ends.proxy.as_fd()) != Waiting::Nothing {
        return Err("something waits before anything was sent".to_owned());
    }
    ends.proxy.write_all(&[1; 1000]).map_err(text)?;
    if ends.gauge.waiting(ends.proxy.as_fd()) != Waiting::Something {
        return Err("nothing waits although it was not read".to_owned());
    }
    read(&mut ends.application, 1000)?;
    if ends.gauge.waiting(ends.proxy.as_fd()) != Waiting::Nothing {
        return Err("something waits although all was read".to_owned());
    }
    // Towards the proxy the program keeps the bound: what is more goes by TCP, whose window ends it.
    let (limit, mut written) = (64 << 20, 0);
    let sent = pattern(16 * 1024);
    while written < limit {
        match ends.application.write(&sent[written % sent.len()..]) {
            Ok(n) => written += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(text(error)),
        }
    }
    if written >= limit || ends.gauge.waiting(ends.application.as_fd()) != Waiting::ByTcp {
        return Err(format!("{written} bytes were taken from a side whose peer does not read"));
    }
    debug_assert!(written as u64 > MAX_WAITING_BYTES);
    let look = |ends: &Ends<'_>| ends.gauge.look(ends.proxy.as_fd());
    let looks = [look(ends), look(ends)];
    if looks != [Look::Left; 2] {
        return Err(format!("of a stream that still waits the looks are {looks:?}"));
    }
    let whole: Vec<u8> = sent.iter().copied().cycle().take(written).collect();
    same("past TCP, then by TCP", &read(&mut ends.proxy, written)?, &whole)?;
    // Both ends are ordinary sockets then.
    if look(ends) != Look::Plain {
        return Err("a stream was not given back to TCP".to_owned());
    }
    ends.proxy.write_all(&pattern(3000)).map_err(text)?;
    same("after that", &read(&mut ends.application, 3000)?, &pattern(3000))?;
    ends.application.write_all(&pattern(3000)).map_err(text)?;
    same("after that, back", &read(&mut ends.proxy, 3000)?, &pattern(3000))
}

/// An application's socket that leaves is as any other, and what it sent before comes first.
fn leave(ends: &mut Ends<'_>) -> Result<(), String> {
    ends.proxy.write_all(&pattern(100)).map_err(text)?;
    same("before leaving", &read(&mut ends.application, 100)?, &pattern(100))?;
    let whole = pattern(500);
    ends.application.write_all(&whole[..200]).map_err(text)?;
    ends.gauge.leave(ends.proxy.as_fd());
    ends.application.write_all(&whole[200..]).map_err(text)?;
    ends.proxy.write_all(&pattern(5000)).map_err(text)?;
    wait(&ends.application, PollFlags::POLLIN)?;
    let waiting = sockopt::bytes_waiting(&ends.application).map_err(text)?;
    if waiting != 5000 {
        return Err(format!("FIONREAD tells {waiting} for 5000 bytes by TCP"));
    }
    same("after leaving", &read(&mut ends.application, 5000)?, &pattern(5000))?;
    same("sent before and after leaving", &read(&mut ends.proxy, 500)?, &whole)
}

/// What cannot be had on an accelerated socket is refused there, and it works on.
fn late_options(ends: &mut Ends<'_>) -> Result<(), String> {
    let low_watermark =
        |ends: &Ends<'_>| sockopt::set(&ends.application, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 2);
    if low_watermark(ends).is_ok() {
        return Err("SO_RCVLOWAT was taken by an accelerated socket".to_owned());
    }
    ends.application.write_all(&[1]).map_err(text)?;
    same("after a refused option", &read(&mut ends.proxy, 1)?, &[1])
}

fn splice(ends: &mut Ends<'_>) -> Result<(), String> {
    ends.proxy.write_all(&[1; 100]).map_err(text)?;
    match sockopt::splice_some(&ends.application, 100) {
        Ok(100) => Ok(()),
        Ok(n) => Err(format!("{n} of 100 bytes could be spliced")),
        Err(error) => Err(format!("waiting bytes cannot be spliced ({error})")),
    }
}

/// Closes a stream in place.
fn replace(stream: &mut TcpStream) -> Result<(), String> {
    let other = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None).map_err(text)?;
    drop(std::mem::replace(stream, other.into()));
    Ok(())
}

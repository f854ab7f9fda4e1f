//! One end of connections, moved step by step by the lines of standard input: each line is one thing that an
//! application does with a socket, each answer is what it saw. So a test can say what both ends do, in which
//! order, and compare what they see when the bytes go this way and that.
//!
//! The bytes of a direction follow from its place in the connection, so that the reader can tell a wrong one. Nothing here may
//! depend on how long something takes, besides giving up.

use std::collections::HashMap;
use std::io::{self, BufRead, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{Domain, SockRef, Socket, Type};

use crate::sockets::{Epoll, completed, poll_events, send_file, set_int, splice, waiting};
use crate::streams::fill;

/// What does not come within this time never does.
const PATIENCE: Duration = Duration::from_secs(8);
const PIECE: usize = 64 * 1024;

/// One connection as its process sees it.
struct Connection {
    stream: TcpStream,
    /// 0 connected, 1 accepted: whose bytes are whose.
    side: usize,
    seed: u64,
    sent: u64,
    got: u64,
    epoll: Option<Epoll>,
    /// Sends without copy whose completion is still to come.
    uncompleted: u32,
    /// What they sent: the kernel still reads it.
    lent: Vec<Vec<u8>>,
}

#[derive(Default)]
struct Puppet {
    listener: Option<TcpListener>,
    connections: HashMap<String, Connection>,
    seed: u64,
}

/// Follows standard input to its end.
pub fn run() -> Result<()> {
    let mut puppet = Puppet::default();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = puppet.follow(&words).unwrap_or_else(|error| name_of(&error));
        println!("{answer}");
    }
    Ok(())
}

/// The system's name of an error, as `ECONNRESET`.
fn name_of(error: &anyhow::Error) -> String {
    let io =
        error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).map(nix::errno::Errno::from_raw);
    let errno = io.or_else(|| error.downcast_ref::<nix::errno::Errno>().copied());
    errno.map_or_else(|| format!("{error:#}"), |errno| format!("{errno:?}"))
}

impl Puppet {
    fn follow(&mut self, words: &[&str]) -> Result<String> {
        match words {
            ["listen", address] => {
                let address: SocketAddr = address.parse()?;
                let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), None)?;
                socket.set_reuse_address(true)?;
                socket.bind(&address.into())?;
                socket.listen(128)?;
                socket.set_nonblocking(true)?;
                self.listener = Some(socket.into());
                Ok("listening".to_owned())
            }
            ["seed", seed] => {
                self.seed = seed.parse()?;
                Ok("ok".to_owned())
            }
            ["connect", name, to] => self.connect(name, to.parse()?, None),
            ["connect", name, to, from] => self.connect(name, to.parse()?, Some(from.parse()?)),
            ["accept", name] => self.accept(name),
            ["close", name] => {
                self.connections.remove(*name).context("no such connection")?;
                Ok("closed".to_owned())
            }
            [step, name, rest @ ..] => {
                self.connections.get_mut(*name).context("no such connection")?.follow(step, rest)
            }
            _ => bail!("no such step: {words:?}"),
        }
    }

    fn connect(&mut self, name: &str, to: SocketAddr, from: Option<SocketAddr>) -> Result<String> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), None)?;
        if let Some(from) = from {
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
        }
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                if !ready(&socket, PollFlags::POLLOUT, PATIENCE)? {
                    bail!("the connection never opened");
                }
                if let Some(error) = socket.take_error()? {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
        self.add(name, socket.into(), 0)?;
        Ok("connected".to_owned())
    }

    fn accept(&mut self, name: &str) -> Result<String> {
        let listener = self.listener.as_ref().context("it does not listen")?;
        if !ready(listener, PollFlags::POLLIN, PATIENCE)? {
            bail!("no connection came");
        }
        let (stream, _) = listener.accept()?;
        stream.set_nonblocking(true)?;
        self.add(name, stream, 1)?;
        Ok("accepted".to_owned())
    }

    fn add(&mut self, name: &str, stream: TcpStream, side: usize) -> Result<()> {
        stream.set_nodelay(true)?;
        let connection = Connection {
            stream,
            side,
            seed: self.seed,
            sent: 0,
            got: 0,
            epoll: None,
            uncompleted: 0,
            lent: Vec::new(),
        };
        self.connections.insert(name.to_owned(), connection);
        Ok(())
    }
}

fn ready(what: &impl AsFd, flags: PollFlags, limit: Duration) -> Result<bool> {
    Ok(poll(&mut [PollFd::new(what.as_fd(), flags)], PollTimeout::try_from(limit)?)? > 0)
}

impl Connection {
    fn follow(&mut self, step: &str, words: &[&str]) -> Result<String> {
        let number =
            |at: usize| -> Result<u64> { Ok(words.get(at).context("a number is missing")?.parse()?) };
        match step {
            "send" => self.send(number(0)?, words.get(1).copied().unwrap_or("write")),
            "recv" => self.receive(number(0)?),
            "once" => self.receive_once(number(0)? as usize, MsgFlags::empty()),
            "peek" => self.receive_once(number(0)? as usize, MsgFlags::MSG_PEEK),
            "exchange" => {
                self.exchange(number(0)?, number(1)?, Duration::from_micros(number(2).unwrap_or(0)))
            }
            "threads" => self.threads(number(0)?, number(1)?),
            "fionread" => self.wait_fionread(number(0)? as usize),
            "poll" => self.poll(words.first().copied().unwrap_or("in"), number(1)?),
            "epoll" => {
                self.epoll = Some(Epoll::new(&self.stream, words == ["edge"])?);
                Ok("registered".to_owned())
            }
            "events" => {
                let epoll = self.epoll.as_ref().context("not registered")?;
                Ok(epoll.events(Duration::from_millis(number(0)?))?)
            }
            "shutdown" => {
                let how = match words {
                    ["write"] => Shutdown::Write,
                    ["read"] => Shutdown::Read,
                    _ => Shutdown::Both,
                };
                self.stream.shutdown(how)?;
                Ok("shut".to_owned())
            }
            "error" => Ok(match self.stream.take_error()? {
                Some(error) => name_of(&error.into()),
                None => "none".to_owned(),
            }),
            "spliced" => self.splice_out(number(0)? as usize),
            "urgent" => self.urgent(),
            "completions" => self.completions(),
            option => self.set(option, number(0)?),
        }
    }

    fn set(&self, option: &str, value: u64) -> Result<String> {
        let socket = SockRef::from(&self.stream);
        match option {
            "linger" => socket.set_linger(Some(Duration::from_secs(value)))?,
            "blocking" => socket.set_nonblocking(value == 0)?,
            "inline" => socket.set_out_of_band_inline(value != 0)?,
            "receive_buffer" => socket.set_recv_buffer_size(value as usize)?,
            "receive_timeout_ms" => socket.set_read_timeout(Some(Duration::from_millis(value)))?,
            "low_watermark" => set_int(&self.stream, libc::SOL_SOCKET, libc::SO_RCVLOWAT, value as i32)?,
            "zerocopy" => set_int(&self.stream, libc::SOL_SOCKET, libc::SO_ZEROCOPY, value as i32)?,
            // Closed then, it says nothing to the other side.
            "silent" => set_int(&self.stream, libc::SOL_TCP, libc::TCP_REPAIR, value as i32)?,
            _ => bail!("no such step: {option}"),
        }
        Ok("set".to_owned())
    }

    fn next_piece(&self, most: u64) -> Vec<u8> {
        let mut data = vec![0; most.min(1 << 20) as usize];
        fill(self.seed, self.side, self.sent, &mut data);
        data
    }

    /// Sends so many bytes, by which call says `how`.
    fn send(&mut self, count: u64, how: &str) -> Result<String> {
        let until = self.sent + count;
        while self.sent < until {
            let data = self.next_piece(until - self.sent);
            let outcome = self.send_piece(&data, how);
            if how == "zerocopy" {
                self.lent.push(data);
            }
            match outcome {
                Ok(n) => self.sent += n as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !ready(&self.stream, PollFlags::POLLOUT, PATIENCE)? {
                        return Ok(format!("{} bytes cannot be sent", until - self.sent));
                    }
                }
                Err(error) => return Ok(name_of(&error.into())),
            }
        }
        Ok(format!("sent {count}"))
    }

    fn send_piece(&mut self, data: &[u8], how: &str) -> io::Result<usize> {
        let flags = match how {
            "sendfile" => return send_file(&self.stream, data),
            "splice" => return splice(&self.stream, data),
            "vectored" => {
                let parts: Vec<IoSlice<'_>> = data.chunks(data.len().div_ceil(7)).map(IoSlice::new).collect();
                return (&self.stream).write_vectored(&parts);
            }
            "zerocopy" => MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY),
            "more" => MsgFlags::from_bits_retain(libc::MSG_MORE),
            "urgent" => MsgFlags::MSG_OOB,
            _ => return (&self.stream).write(data),
        };
        let n = send(self.stream.as_raw_fd(), data, flags | MsgFlags::MSG_NOSIGNAL)?;
        self.uncompleted += u32::from(how == "zerocopy");
        Ok(n)
    }

    /// Compares what came with what was sent, and says how much it is.
    fn check(&self, bytes: &[u8], from: u64) -> Result<(), String> {
        let mut want = vec![0; bytes.len()];
        fill(self.seed, 1 - self.side, from, &mut want);
        match bytes.iter().zip(&want).position(|(a, b)| a != b) {
            Some(at) => Err(format!("byte {} is not the one sent", from + at as u64)),
            None => Ok(()),
        }
    }

    /// Receives so many bytes, or up to the end.
    fn receive(&mut self, count: u64) -> Result<String> {
        let (mut left, mut buffer) = (count, vec![0; PIECE]);
        while left > 0 {
            let room = left.min(PIECE as u64) as usize;
            match (&self.stream).read(&mut buffer[..room]) {
                Ok(0) => return Ok(format!("{} and the end", count - left)),
                Ok(n) => {
                    if let Err(wrong) = self.check(&buffer[..n], self.got) {
                        return Ok(wrong);
                    }
                    self.got += n as u64;
                    left -= n as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !ready(&self.stream, PollFlags::POLLIN, PATIENCE)? {
                        return Ok(format!("{} and nothing more", count - left));
                    }
                }
                Err(error) => return Ok(format!("{} and {}", count - left, name_of(&error.into()))),
            }
        }
        Ok(format!("{count} right"))
    }

    fn receive_once(&mut self, room: usize, flags: MsgFlags) -> Result<String> {
        let mut buffer = vec![0; room];
        let n = recv(self.stream.as_raw_fd(), &mut buffer, flags)?;
        if let Err(wrong) = self.check(&buffer[..n], self.got) {
            return Ok(wrong);
        }
        if !flags.contains(MsgFlags::MSG_PEEK) {
            self.got += n as u64;
        }
        Ok(format!("{n} right"))
    }

    /// Sends and receives at once, until both are done; `pause` is between two reads.
    fn exchange(&mut self, send: u64, receive: u64, pause: Duration) -> Result<String> {
        let (until, expected) = (self.sent + send, self.got + receive);
        let mut buffer = vec![0; PIECE];
        while self.sent < until || self.got < expected {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLOUT, self.sent < until);
            flags.set(PollFlags::POLLIN, self.got < expected);
            if !ready(&self.stream, flags, PATIENCE)? {
                bail!("stalled with {} to send and {} to come", until - self.sent, expected - self.got);
            }
            if self.sent < until {
                match (&self.stream).write(&self.next_piece(until - self.sent)) {
                    Ok(n) => self.sent += n as u64,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => bail!("sending: {}", name_of(&error.into())),
                }
            }
            if self.got < expected {
                let room = (expected - self.got).min(PIECE as u64) as usize;
                match (&self.stream).read(&mut buffer[..room]) {
                    Ok(0) => bail!("the end came {} bytes early", expected - self.got),
                    Ok(n) => {
                        self.check(&buffer[..n], self.got).map_err(anyhow::Error::msg)?;
                        self.got += n as u64;
                        thread::sleep(pause); // the pace of a slow reader
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => bail!("receiving: {}", name_of(&error.into())),
                }
            }
        }
        Ok(format!("sent {send}, {receive} right"))
    }

    /// The same with a socket that blocks, one thread for each direction.
    fn threads(&mut self, send: u64, receive: u64) -> Result<String> {
        self.stream.set_nonblocking(false)?;
        let data: Vec<u8> = {
            let mut data = vec![0; send as usize];
            fill(self.seed, self.side, self.sent, &mut data);
            data
        };
        let stream = &self.stream;
        let (written, read) = thread::scope(|scope| {
            let writer =
                scope.spawn(|| data.chunks(5000).try_for_each(|piece| (&mut &*stream).write_all(piece)));
            let mut got = vec![0; receive as usize];
            let read = (&mut &*stream).read_exact(&mut got).map(|()| got);
            (writer.join(), read)
        });
        written.map_err(|_| anyhow::anyhow!("the writing thread panicked"))??;
        self.sent += send;
        self.check(&read?, self.got).map_err(anyhow::Error::msg)?;
        self.got += receive;
        self.stream.set_nonblocking(true)?;
        Ok(format!("sent {send}, {receive} right"))
    }

    /// Waits until as many bytes can be read as are wanted, and says how many can.
    fn wait_fionread(&self, wanted: usize) -> Result<String> {
        for _ in 0..400 {
            if waiting(&self.stream)? == wanted {
                break;
            }
            thread::sleep(Duration::from_millis(5)); // the period of the look
        }
        Ok(format!("{} waiting", waiting(&self.stream)?))
    }

    fn poll(&self, what: &str, limit_ms: u64) -> Result<String> {
        let events = match what {
            "in" => libc::POLLIN | libc::POLLRDHUP,
            _ => libc::POLLOUT,
        };
        let told = poll_events(&self.stream, events, limit_ms as i32)?;
        let names = [
            (libc::POLLIN, "in"),
            (libc::POLLOUT, "out"),
            (libc::POLLRDHUP, "end"),
            (libc::POLLHUP, "hung up"),
            (libc::POLLERR, "error"),
        ];
        let told: Vec<&str> =
            names.iter().filter(|(bit, _)| told & bit != 0).map(|(_, name)| *name).collect();
        Ok(if told.is_empty() { "nothing".to_owned() } else { told.join(", ") })
    }

    /// Takes waiting bytes out by `splice`, as relays do.
    fn splice_out(&mut self, count: usize) -> Result<String> {
        let (out, into): (OwnedFd, OwnedFd) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        if !ready(&self.stream, PollFlags::POLLIN, PATIENCE)? {
            return Ok("nothing comes".to_owned());
        }
        // SAFETY: without offsets nothing is read or written through pointers.
        let n = unsafe {
            libc::splice(
                self.stream.as_raw_fd(),
                std::ptr::null_mut(),
                into.as_raw_fd(),
                std::ptr::null_mut(),
                count,
                libc::SPLICE_F_NONBLOCK,
            )
        };
        if n < 0 {
            return Err(io::Error::last_os_error().into());
        }
        let mut bytes = vec![0; n as usize];
        std::fs::File::from(out).read_exact(&mut bytes)?;
        if let Err(wrong) = self.check(&bytes, self.got) {
            return Ok(wrong);
        }
        self.got += n as u64;
        Ok(format!("{n} right"))
    }

    /// The urgent byte, out of line.
    fn urgent(&mut self) -> Result<String> {
        let mut byte = [0];
        match recv(self.stream.as_raw_fd(), &mut byte, MsgFlags::MSG_OOB) {
            Ok(n) => Ok(format!("{n} urgent")),
            Err(errno) => Ok(format!("{errno:?}")),
        }
    }

    /// Waits for the completions of all sends without copy.
    fn completions(&mut self) -> Result<String> {
        let wanted = self.uncompleted;
        while self.uncompleted > 0 {
            // Readiness of the error queue needs no flag.
            if !ready(&self.stream, PollFlags::empty(), PATIENCE)? {
                return Ok(format!("{} completions are missing", self.uncompleted));
            }
            self.uncompleted = self.uncompleted.saturating_sub(completed(&self.stream)?);
        }
        self.lent.clear();
        Ok(if wanted == 0 { "nothing was sent so".to_owned() } else { "all completed".to_owned() })
    }
}

//! Connections whose sockets are of a kind that must never be accelerated, used as event loops use theirs.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::peer::{Kind, Tally};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(20);
/// Lines exchanged on each connection: what an application does with its socket is looked at while it is used.
const LINES: usize = 4;

/// `count` connections one after the other; prints a tally, or `unsupported` if this kernel has no such sockets.
pub fn call(to: SocketAddr, kind: Kind, count: u64) -> Result<()> {
    let mut tally = Tally::default();
    for _ in 0..count {
        match exchange(to, kind) {
            Ok(true) => {}
            Ok(false) => {
                println!("unsupported");
                return Ok(());
            }
            Err(error) => {
                tally.failed += 1;
                tally.errors.push(format!("{error:#}"));
            }
        }
        tally.exchanges += 1;
    }
    println!("{}", serde_json::to_string(&tally)?);
    Ok(())
}

/// False if this kernel has no such sockets.
fn exchange(to: SocketAddr, kind: Kind) -> Result<bool> {
    let protocol = if kind == Kind::Mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket =
        match Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(protocol)) {
            Err(_) if kind == Kind::Mptcp => return Ok(false),
            socket => socket?,
        };
    if kind == Kind::ZeroCopy {
        set(&socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1_i32.to_ne_bytes()).context("SO_ZEROCOPY")?;
    }
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
            return Err(error).context("connecting");
        }
        _ => {}
    }
    let mut stream: TcpStream = socket.into();
    wait(&stream, PollFlags::POLLOUT)?;
    if let Some(error) = SockRef::from(&stream).take_error()? {
        return Err(error).context("connecting");
    }
    let late = match kind {
        Kind::Ktls => set(&stream, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls"),
        // One byte less than a line of answer.
        Kind::LowWatermark => set(&stream, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &4_i32.to_ne_bytes()),
        Kind::Mptcp | Kind::ZeroCopy => Ok(()),
    };
    match late {
        // Applications go on without, as they do on kernels that lack it.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        Err(_) if kind == Kind::Ktls => return Ok(false),
        other => other.context("an option")?,
    }
    for line in 0..LINES {
        let line = format!("{line:04}\n");
        send(&mut stream, kind, line.as_bytes())?;
        let mut answer: Vec<u8> = Vec::new();
        while answer.len() < line.len() {
            let mut buffer = [0; 64];
            match stream.read(&mut buffer) {
                Ok(0) => bail!("the connection ended after {answer:?}"),
                Ok(n) => answer.extend(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait(&stream, PollFlags::POLLIN)?,
                Err(error) => return Err(error).context("receiving"),
            }
        }
        ensure!(answer == line.as_bytes(), "{answer:?} is not the line sent");
    }
    Ok(true)
}

fn send(stream: &mut TcpStream, kind: Kind, line: &[u8]) -> Result<()> {
    if kind != Kind::ZeroCopy {
        return stream.write_all(line).context("sending");
    }
    // SAFETY: the bytes are readable for their length, and live until the completion is told.
    let sent =
        unsafe { libc::send(stream.as_raw_fd(), line.as_ptr().cast(), line.len(), libc::MSG_ZEROCOPY) };
    ensure!(sent == line.len() as isize, "sending without copying: {}", std::io::Error::last_os_error());
    // The completion, without which an application may not use its memory again.
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    ensure!(poll(&mut fds, PollTimeout::try_from(PATIENCE)?)? > 0, "no completion was told");
    let mut control = [0_u8; 256];
    // SAFETY: an empty message header is valid; its control buffer is writable for its length.
    let told = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control.len();
        libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE)
    };
    ensure!(told >= 0, "the completion: {}", std::io::Error::last_os_error());
    Ok(())
}

fn wait(stream: &TcpStream, flags: PollFlags) -> Result<()> {
    let told = poll(&mut [PollFd::new(stream.as_fd(), flags)], PollTimeout::try_from(PATIENCE)?)?;
    ensure!(told > 0, "nothing was told for {PATIENCE:?}");
    Ok(())
}

fn set(socket: &impl AsRawFd, level: i32, name: i32, value: &[u8]) -> std::io::Result<()> {
    // SAFETY: the value is readable for the length given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

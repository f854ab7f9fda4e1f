//! Moves the bytes of a stream from socket to socket inside the kernel, through a pipe: pages are passed on, and
//! nothing is copied. Worth it only for streams; `copy.rs` decides.
//!
//! A leaf with `unsafe` in it. Nothing here may be used on a socket whose bytes come past TCP: what waits there
//! is not seen by a splice, and would be overtaken.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

/// Most bytes in a pipe. It has a place for each page or run of pages, so it may be full with less.
const PIPE_BYTES: usize = 512 * 1024;
/// Spare pipes that a worker keeps.
const SPARE_PIPES: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe, and what is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty pipe of this worker.
    pub(super) fn take() -> io::Result<Self> {
        if let Some(spare) = SPARE.with_borrow_mut(Vec::pop) {
            return Ok(spare);
        }
        let mut ends = [0; 2];
        // SAFETY: the kernel writes two descriptors, which are ours alone.
        let (out, into) = unsafe {
            if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) != 0 {
                return Err(io::Error::last_os_error());
            }
            (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        };
        // Without the right to more it stays at 64 KiB.
        // SAFETY: no pointers.
        unsafe { libc::fcntl(into.as_raw_fd(), libc::F_SETPIPE_SZ, 2 * PIPE_BYTES as libc::c_int) };
        Ok(Self { out, into, held: 0 })
    }

    /// Back to the worker's spare pipes; one that is not empty is of no use to anybody.
    pub(super) fn give_back(self) {
        SPARE.with_borrow_mut(|spare| {
            if self.held == 0 && spare.len() < SPARE_PIPES {
                spare.push(self);
            }
        });
    }

    /// Bytes in the pipe.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Takes what has come at `from` into the pipe, which must be empty. 0 is the end of the stream.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            let moved = from
                .try_io(Interest::READABLE, || splice(from.as_raw_fd(), self.into.as_raw_fd(), PIPE_BYTES));
            match moved {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(moved) => {
                    self.held += moved;
                    return Poll::Ready(Ok(moved));
                }
            }
        }
    }

    /// Sends what is in the pipe, or a part of it, to `to`.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            let moved =
                to.try_io(Interest::WRITABLE, || splice(self.out.as_raw_fd(), to.as_raw_fd(), self.held));
            match moved {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(moved) => {
                    self.held -= moved;
                    return Poll::Ready(Ok(moved));
                }
            }
        }
    }
}

fn splice(from: RawFd, to: RawFd, length: usize) -> io::Result<usize> {
    // SAFETY: no offsets are given, so nothing is read or written through pointers.
    let moved = unsafe {
        libc::splice(
            from,
            std::ptr::null_mut(),
            to,
            std::ptr::null_mut(),
            length,
            libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE,
        )
    };
    if moved < 0 { Err(io::Error::last_os_error()) } else { Ok(moved as usize) }
}

/// Pipes that this thread keeps.
#[cfg(test)]
pub(super) fn spare_pipes() -> usize {
    SPARE.with_borrow(Vec::len)
}

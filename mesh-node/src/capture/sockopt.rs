//! Socket options that no crate in use offers. A leaf with `unsafe` in it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

pub(super) const IPV6_TRANSPARENT: i32 = 75;
/// Linux 6.3. The highest port in the upper half, the lowest in the lower.
pub(super) const IP_LOCAL_PORT_RANGE: i32 = 51;
const SO_NETNS_COOKIE: i32 = 71;

pub(super) fn set(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is a readable `int` of the size given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The cookie of the network namespace that `socket` was made in; `ENOPROTOOPT` before Linux 5.14.
pub(super) fn netns_cookie(socket: &impl AsRawFd) -> io::Result<u64> {
    let mut value = [0; 8];
    get(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

fn get(socket: &impl AsRawFd, level: i32, name: i32, value: &mut [u8]) -> io::Result<()> {
    let mut size = value.len() as libc::socklen_t;
    // SAFETY: the value is writable for the size given.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut size)
    };
    match result {
        0 if size as usize == value.len() => Ok(()),
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number that the kernel gives to `socket` and never to another.
pub(super) fn cookie(socket: &impl AsRawFd) -> io::Result<u64> {
    let mut value = [0; 8];
    get(socket, libc::SOL_SOCKET, libc::SO_COOKIE, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

/// Bytes of payload that came to `socket` by TCP itself.
pub(super) fn received_by_tcp(socket: &impl AsRawFd) -> io::Result<u64> {
    /// `tcpi_bytes_received` in `struct tcp_info` (Linux 4.2).
    const BYTES_RECEIVED: usize = 128;
    let mut info = [0; BYTES_RECEIVED + 8];
    get(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    let bytes = info[BYTES_RECEIVED..].try_into().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Bytes that can be read from `socket` at once (`FIONREAD`).
pub(super) fn bytes_waiting(socket: &impl AsRawFd) -> io::Result<i32> {
    let mut value = 0_i32;
    // SAFETY: the kernel writes one `int`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, std::ptr::from_mut(&mut value)) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Moves up to `length` waiting bytes from `socket` to a pipe that is thrown away; how many were moved.
pub(super) fn splice_some(socket: &impl AsRawFd, length: usize) -> io::Result<usize> {
    let mut ends = [0_i32; 2];
    // SAFETY: the kernel writes two descriptors, which are ours alone.
    let (_out, into) = unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) != 0 {
            return Err(io::Error::last_os_error());
        }
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    };
    // SAFETY: no offsets are given, so nothing is read or written through pointers.
    let moved = unsafe {
        libc::splice(
            socket.as_raw_fd(),
            std::ptr::null_mut(),
            into.as_raw_fd(),
            std::ptr::null_mut(),
            length,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    if moved < 0 { Err(io::Error::last_os_error()) } else { Ok(moved as usize) }
}

/// Edge-triggered readiness of one socket.
pub(super) struct Edges(OwnedFd);

impl Edges {
    pub(super) fn new(socket: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: a descriptor just returned is ours alone; the event is read during the call.
        unsafe {
            let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if epoll < 0 {
                return Err(io::Error::last_os_error());
            }
            let this = Self(OwnedFd::from_raw_fd(epoll));
            let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: 0 };
            if libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &raw mut event) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(this)
        }
    }

    /// Whether something was told within `timeout`.
    pub(super) fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event.
        let told =
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), &raw mut event, 1, timeout.as_millis() as i32) };
        if told < 0 { Err(io::Error::last_os_error()) } else { Ok(told > 0) }
    }
}

//! Socket options that no crate in use offers. A leaf with `unsafe` in it.

use std::io;
use std::os::fd::AsRawFd;

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
    let mut value = 0_u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value is a writable `u64` of the size given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut value).cast(),
            &raw mut size,
        )
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

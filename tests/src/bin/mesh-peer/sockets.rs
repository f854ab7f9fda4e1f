//! What tests do with a socket that the standard library has no call for.

use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::Result;

/// Readiness of one socket.
pub struct Epoll(nix::sys::epoll::Epoll);

impl Epoll {
    pub fn new(stream: &TcpStream, edge: bool) -> Result<Epoll> {
        use nix::sys::epoll::{EpollCreateFlags, EpollEvent, EpollFlags};
        let epoll = nix::sys::epoll::Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
        flags.set(EpollFlags::EPOLLET, edge);
        epoll.add(stream, EpollEvent::new(flags, 0))?;
        Ok(Epoll(epoll))
    }

    /// What is told within the time.
    pub fn events(&self, timeout: Duration) -> Result<String> {
        use nix::sys::epoll::{EpollEvent, EpollTimeout};
        let mut events = [EpollEvent::empty()];
        let n = self.0.wait(&mut events, EpollTimeout::try_from(timeout)?)?;
        Ok(if n > 0 { format!("{:?}", events[0].events()) } else { "nothing".to_owned() })
    }

    /// Whether something to read was told, and whether the end was.
    pub fn wait(&self, timeout: Duration) -> Result<(bool, bool)> {
        use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
        let mut events = [EpollEvent::empty()];
        let n = self.0.wait(&mut events, EpollTimeout::try_from(timeout)?)?;
        let told = if n > 0 { events[0].events() } else { EpollFlags::empty() };
        let end = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        Ok((told.intersects(end | EpollFlags::EPOLLIN), told.intersects(end)))
    }
}

/// Bytes that can be read, by `FIONREAD`.
pub fn waiting(stream: &TcpStream) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::FIONREAD, &raw mut value) };
    if result == 0 { Ok(value as usize) } else { Err(io::Error::last_os_error()) }
}

/// Sends from a file in memory.
pub fn send_file(stream: &TcpStream, data: &[u8]) -> io::Result<usize> {
    let file = nix::sys::memfd::memfd_create(c"data", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(data)?;
    let mut offset = 0;
    // SAFETY: the offset is readable and writable.
    let n = unsafe { libc::sendfile(stream.as_raw_fd(), file.as_raw_fd(), &raw mut offset, data.len()) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// Sends through a pipe, no more than fits into it.
pub fn splice(stream: &TcpStream, data: &[u8]) -> io::Result<usize> {
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

/// Sets an option of the socket level.
pub fn set_int(stream: &TcpStream, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads one int.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes one message from the error queue, and tells how many sends without copy it says are completed.
pub fn completed(stream: &TcpStream) -> io::Result<u32> {
    let mut control = [0_u64; 64];
    // SAFETY: all zero is a header without buffers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the header tells the buffer above and its length.
    if unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let errors = [(libc::SOL_IP, libc::IP_RECVERR), (libc::SOL_IPV6, libc::IPV6_RECVERR)];
    let mut done = 0;
    // SAFETY: the kernel filled the buffer with whole control messages; those of errors begin with this structure.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if errors.contains(&((*header).cmsg_level, (*header).cmsg_type)) {
                let error = libc::CMSG_DATA(header).cast::<libc::sock_extended_err>().read_unaligned();
                done += error.ee_data - error.ee_info + 1;
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(done)
}

/// What `poll` tells of these events within the time.
pub fn poll_events(stream: &TcpStream, events: i16, limit_ms: i32) -> io::Result<i16> {
    let mut fd = libc::pollfd { fd: stream.as_raw_fd(), events, revents: 0 };
    // SAFETY: one structure, which the kernel reads and writes.
    if unsafe { libc::poll(&raw mut fd, 1, limit_ms) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd.revents)
}

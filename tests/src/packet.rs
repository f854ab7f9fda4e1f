//! Packets that no socket would send, and what arrives at an interface: for the tests of the guard.
//!
//! Frames leave through a packet socket that skips the queueing discipline, the way that a pod with
//! `CAP_NET_RAW` would take around everything on its own side of the interface.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::netns::Netns;

/// What is odd about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A plain TCP segment.
    Plain,
    /// IPv4 options, or an IPv6 destination-options header, before the TCP header.
    Options,
    /// A first fragment that ends within the TCP header, so that the flags are in the second one.
    Fragments,
}

/// TCP flags of a crafted segment.
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// A TCP segment to be sent as it is.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub flags: u8,
    pub shape: Shape,
}

impl Segment {
    /// The IP packets that carry the segment.
    pub fn packets(&self) -> Result<Vec<Vec<u8>>> {
        match (self.from, self.to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => Ok(self.v4(*from.ip(), *to.ip())),
            (SocketAddr::V6(from), SocketAddr::V6(to)) => Ok(self.v6(*from.ip(), *to.ip())),
            _ => bail!("addresses of two families in one packet"),
        }
    }

    fn tcp(&self, pseudo: &[u8]) -> Vec<u8> {
        let mut tcp = Vec::with_capacity(24);
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(0x1234_5678_u32.to_be_bytes());
        tcp.extend(0u32.to_be_bytes());
        tcp.extend([0x60, self.flags]); // six words
        tcp.extend(0xfaf0_u16.to_be_bytes());
        tcp.extend([0, 0, 0, 0]); // checksum, urgent pointer
        tcp.extend([2, 4, 5, 0xb4]); // maximum segment size 1460
        let sum = checksum(&[pseudo, &(tcp.len() as u16).to_be_bytes(), &tcp].concat());
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp
    }

    fn v4(&self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<Vec<u8>> {
        let tcp = self.tcp(&[&from.octets()[..], &to.octets()[..], &[0, 6]].concat());
        let packet = |options: &[u8], fragment: u16, payload: &[u8]| {
            let header_bytes = 20 + options.len();
            let mut ip = vec![0x40 | (header_bytes / 4) as u8, 0];
            ip.extend(((header_bytes + payload.len()) as u16).to_be_bytes());
            ip.extend([0x42, 0x42]);
            ip.extend(fragment.to_be_bytes());
            ip.extend([64, 6, 0, 0]);
            ip.extend(from.octets());
            ip.extend(to.octets());
            ip.extend(options);
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            ip.extend(payload);
            ip
        };
        match self.shape {
            Shape::Plain => vec![packet(&[], 0x4000, &tcp)],
            Shape::Options => vec![packet(&[1, 1, 1, 0], 0, &tcp)],
            Shape::Fragments => {
                let (first, second) = tcp.split_at(8);
                vec![packet(&[], 0x2000, first), packet(&[], 1, second)]
            }
        }
    }

    fn v6(&self, from: Ipv6Addr, to: Ipv6Addr) -> Vec<Vec<u8>> {
        let pseudo = [&from.octets()[..], &to.octets()[..], &[0, 6]].concat();
        let tcp = self.tcp(&pseudo);
        let packet = |next: u8, extension: &[u8], payload: &[u8]| {
            let mut ip = vec![0x60, 0, 0, 0];
            ip.extend(((extension.len() + payload.len()) as u16).to_be_bytes());
            ip.extend([next, 64]);
            ip.extend(from.octets());
            ip.extend(to.octets());
            ip.extend(extension);
            ip.extend(payload);
            ip
        };
        let fragment = |offset_and_more: u16| {
            let mut header = vec![6, 0];
            header.extend(offset_and_more.to_be_bytes());
            header.extend([0, 0, 0x42, 0x42]);
            header
        };
        match self.shape {
            Shape::Plain => vec![packet(6, &[], &tcp)],
            Shape::Options => vec![packet(60, &[6, 0, 1, 4, 0, 0, 0, 0], &tcp)],
            Shape::Fragments => {
                let (first, second) = tcp.split_at(8);
                vec![packet(44, &fragment(1), first), packet(44, &fragment(8), second)]
            }
        }
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [last] => u32::from(*last) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sends IP packets out of `device` of `netns` to the Ethernet address `to_mac`, past the queueing
/// discipline of the interface.
pub fn send(netns: &Netns, device: &str, to_mac: [u8; 6], packets: &[Vec<u8>]) -> Result<()> {
    netns.run(|| {
        let socket = packet_socket(0)?;
        let on = 1;
        set_option(&socket, libc::PACKET_QDISC_BYPASS, &on).context("skipping the queueing discipline")?;
        for packet in packets {
            let protocol = if packet[0] >> 4 == 6 { libc::ETH_P_IPV6 } else { libc::ETH_P_IP };
            let mut address = link_address(device, protocol as u16)?;
            address.sll_halen = 6;
            address.sll_addr[..6].copy_from_slice(&to_mac);
            // SAFETY: the buffers are valid for their lengths and the address is a sockaddr_ll.
            let sent = unsafe {
                libc::sendto(
                    socket.as_raw_fd(),
                    packet.as_ptr().cast(),
                    packet.len(),
                    0,
                    (&raw const address).cast(),
                    size_of::<libc::sockaddr_ll>() as u32,
                )
            };
            ensure!(sent == packet.len() as isize, "sendto: {}", std::io::Error::last_os_error());
        }
        Ok(())
    })?
}

/// Everything that an interface receives from now on.
pub struct Sniffer {
    socket: OwnedFd,
}

impl Sniffer {
    pub fn new(netns: &Netns, device: &str) -> Result<Sniffer> {
        netns.run(|| {
            let socket = packet_socket(libc::ETH_P_ALL as u16)?;
            let address = link_address(device, libc::ETH_P_ALL as u16)?;
            // SAFETY: the address is a valid sockaddr_ll for the length given.
            let bound = unsafe {
                libc::bind(
                    socket.as_raw_fd(),
                    (&raw const address).cast(),
                    size_of::<libc::sockaddr_ll>() as u32,
                )
            };
            ensure!(bound == 0, "binding to {device}: {}", std::io::Error::last_os_error());
            Ok(Sniffer { socket })
        })?
    }

    /// Waits for an incoming IP packet that `wanted` accepts; `None` if none came within `limit`.
    pub fn wait(&self, limit: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd, for the duration of the call.
            let ready = unsafe { libc::poll(&mut poll, 1, left.as_millis() as i32) };
            if ready == 0 {
                return Ok(None);
            }
            let mut buffer = vec![0u8; 65_536];
            // SAFETY: sockaddr_ll is plain data, for which zeros are valid.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut from_len = size_of::<libc::sockaddr_ll>() as u32;
            // SAFETY: the buffer and the address are valid for the lengths given.
            let read = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    (&raw mut from).cast(),
                    &mut from_len,
                )
            };
            ensure!(read >= 0, "recvfrom: {}", std::io::Error::last_os_error());
            buffer.truncate(read as usize);
            if from.sll_pkttype != libc::PACKET_OUTGOING && wanted(&buffer) {
                return Ok(Some(buffer));
            }
        }
    }
}

/// Source, destination and flags of a TCP packet without options or extension headers.
pub fn tcp_of(packet: &[u8]) -> Option<(SocketAddr, SocketAddr, u8)> {
    let (from, to, tcp): (std::net::IpAddr, std::net::IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&6) => {
            let header = usize::from(packet[0] & 0xf) * 4;
            let address = |at: usize| <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok().map(Ipv4Addr::from);
            (address(12)?.into(), address(16)?.into(), packet.get(header..)?)
        }
        6 if packet.get(6) == Some(&6) => {
            let address = |at: usize| <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok().map(Ipv6Addr::from);
            (address(8)?.into(), address(24)?.into(), packet.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    Some((SocketAddr::new(from, port(0)?), SocketAddr::new(to, port(2)?), *tcp.get(13)?))
}

/// The Ethernet address of an interface, as `ip` prints it.
pub fn mac_of(netns: &Netns, device: &str) -> Result<[u8; 6]> {
    let text = netns.ip_output(&format!("-br link show dev {device}"))?;
    let mac = text.split_whitespace().nth(2).context("no Ethernet address in the output of ip")?;
    let bytes: Vec<u8> = mac.split(':').map(|b| u8::from_str_radix(b, 16)).collect::<Result<_, _>>()?;
    <[u8; 6]>::try_from(bytes).ok().with_context(|| format!("{mac} is no Ethernet address"))
}

fn packet_socket(protocol: u16) -> Result<OwnedFd> {
    // SAFETY: plain system call.
    let fd = unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol.to_be().into())
    };
    ensure!(fd >= 0, "packet socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was just made and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option(socket: &OwnedFd, option: i32, value: &i32) -> Result<()> {
    // SAFETY: the value is an int for the length given.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<i32>() as u32,
        )
    };
    ensure!(set == 0, "setsockopt: {}", std::io::Error::last_os_error());
    Ok(())
}

fn link_address(device: &str, protocol: u16) -> Result<libc::sockaddr_ll> {
    let index = nix::net::if_::if_nametoindex(device).with_context(|| format!("interface {device}"))?;
    // SAFETY: sockaddr_ll is plain data, for which zeros are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index as i32;
    Ok(address)
}

//! What TC sees of a packet: whether it is TCP, whose, and what it would begin. Headers that hide
//! TCP from this reading are named as such, never skipped.

use aya_ebpf::{cty::c_long, helpers::generated::bpf_skb_load_bytes, programs::TcContext};
use mesh_common::{Address, FlowKey, reason};

use crate::context::field;

pub const ETHERNET: u32 = 14;
pub const IPV4: u32 = 20;
pub const IPV6: u32 = 40;
pub const TCP: u32 = 20;

const ETH_P_IP: u32 = 0x0800;
const ETH_P_IPV6: u32 = 0x86dd;
const ETH_P_8021Q: u32 = 0x8100;
const ETH_P_8021AD: u32 = 0x88a8;
const PROTOCOL_TCP: u8 = 6;

/// Extension headers of IPv6 (RFC 8200, section 4) that are followed to what they carry.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
/// More of them than any honest packet has.
const MAX_EXTENSIONS: u32 = 6;

pub mod flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 1 << 1;
    pub const RST: u8 = 1 << 2;
    pub const ACK: u8 = 1 << 4;
}

/// A packet as far as steering is concerned.
pub enum Packet {
    /// Neither IPv4 nor IPv6.
    NotIp,
    Ip {
        source: Address,
        protocol: Protocol,
    },
}

pub enum Protocol {
    Tcp(Segment),
    Other,
    /// TCP, or what may be TCP, that cannot be judged: one of `mesh_common::reason`.
    Hidden(u16),
}

/// A TCP segment behind plain headers.
#[derive(Clone, Copy)]
pub struct Segment {
    pub v4: bool,
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub flags: u8,
    pub payload: u32,
}

impl Segment {
    /// Whether it asks for a new connection.
    #[inline(always)]
    pub fn begins(&self) -> bool {
        self.flags & (flag::SYN | flag::ACK) == flag::SYN
    }

    /// Its flow, sent by the pod.
    #[inline(always)]
    pub fn flow(&self, slot: u32) -> FlowKey {
        FlowKey {
            slot,
            local: self.source,
            remote: self.destination,
            local_port: self.source_port,
            remote_port: self.destination_port,
        }
    }
}

/// Reads `N` bytes of the packet, also behind its linear part.
#[inline(always)]
fn load<const N: usize>(ctx: &TcContext, offset: u32) -> Result<[u8; N], c_long> {
    let mut bytes = [0; N];
    // SAFETY: the buffer has the length given.
    let result =
        unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) };
    if result == 0 { Ok(bytes) } else { Err(result) }
}

/// Reads the headers of a packet of an Ethernet interface.
#[inline(always)]
pub fn parse(ctx: &TcContext) -> Packet {
    // SAFETY: the kernel hands a valid context.
    let (protocol, vlan) = unsafe {
        (u16::from_be(field!(ctx.skb.skb, protocol) as u16) as u32, field!(ctx.skb.skb, vlan_present))
    };
    let hidden = |reason| Packet::Ip { source: Address([0; 4]), protocol: Protocol::Hidden(reason) };
    // A tag would carry the packet past what looks at the type only.
    if vlan != 0 || protocol == ETH_P_8021Q || protocol == ETH_P_8021AD {
        return hidden(reason::HEADERS);
    }
    let parsed = match protocol {
        ETH_P_IP => parse_v4(ctx),
        ETH_P_IPV6 => parse_v6(ctx),
        _ => return Packet::NotIp,
    };
    // Too short for its own headers.
    parsed.unwrap_or(hidden(reason::HEADERS))
}

#[inline(always)]
fn parse_v4(ctx: &TcContext) -> Result<Packet, c_long> {
    let ip: [u8; IPV4 as usize] = load(ctx, ETHERNET)?;
    let word = |at: usize| u32::from_ne_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
    let (source, destination) = (Address::from_v4(word(12)), Address::from_v4(word(16)));
    let header_length = u32::from(ip[0] & 0xf) * 4;
    let protocol = if ip[9] != PROTOCOL_TCP {
        Protocol::Other
    } else if u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0 {
        Protocol::Hidden(reason::FRAGMENT)
    } else if header_length != IPV4 {
        Protocol::Hidden(reason::IP_OPTIONS)
    } else {
        let total = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
        Protocol::Tcp(segment(ctx, true, source, destination, total.saturating_sub(IPV4))?)
    };
    Ok(Packet::Ip { source, protocol })
}

#[inline(always)]
fn parse_v6(ctx: &TcContext) -> Result<Packet, c_long> {
    let ip: [u8; IPV6 as usize] = load(ctx, ETHERNET)?;
    let word = |at: usize| u32::from_ne_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
    let source = Address([word(8), word(12), word(16), word(20)]);
    let destination = Address([word(24), word(28), word(32), word(36)]);
    let protocol = if ip[6] == PROTOCOL_TCP {
        let length = u32::from(u16::from_be_bytes([ip[4], ip[5]]));
        Protocol::Tcp(segment(ctx, false, source, destination, length)?)
    } else {
        behind_extensions(ctx, ip[6])?
    };
    Ok(Packet::Ip { source, protocol })
}

/// What extension headers lead to. No honest TCP is behind any, so finding it is enough.
#[inline(always)]
fn behind_extensions(ctx: &TcContext, first: u8) -> Result<Protocol, c_long> {
    let mut next = first;
    let mut offset = ETHERNET + IPV6;
    let mut left = MAX_EXTENSIONS;
    while left > 0 {
        left -= 1;
        if next == PROTOCOL_TCP {
            return Ok(Protocol::Hidden(reason::HEADERS));
        }
        if !is_extension(next) {
            return Ok(Protocol::Other);
        }
        let header: [u8; 4] = load(ctx, offset)?;
        if next == FRAGMENT {
            let inner = header[0];
            // A later fragment shows no more than this byte, and it may name another header.
            let may_be_tcp = inner == PROTOCOL_TCP || is_extension(inner);
            return Ok(if may_be_tcp { Protocol::Hidden(reason::FRAGMENT) } else { Protocol::Other });
        }
        offset += if next == AUTHENTICATION {
            (u32::from(header[1]) + 2) * 4
        } else {
            (u32::from(header[1]) + 1) * 8
        };
        next = header[0];
    }
    Ok(Protocol::Hidden(reason::HEADERS))
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY)
}

/// `length` is that of TCP header and payload.
#[inline(always)]
fn segment(
    ctx: &TcContext,
    v4: bool,
    source: Address,
    destination: Address,
    length: u32,
) -> Result<Segment, c_long> {
    let tcp: [u8; TCP as usize] = load(ctx, ETHERNET + if v4 { IPV4 } else { IPV6 })?;
    let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    Ok(Segment {
        v4,
        source,
        destination,
        source_port: u16::from_be_bytes([tcp[0], tcp[1]]),
        destination_port: u16::from_be_bytes([tcp[2], tcp[3]]),
        sequence: word(4),
        acknowledgment: word(8),
        flags: tcp[13],
        payload: length.saturating_sub(u32::from(tcp[12] >> 4) * 4),
    })
}

//! Turns a segment into the reset that refuses it, and gives it to whoever sent the segment.
//!
//! Made here because nobody else would: a host that has no socket for a forwarded flow stays silent.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, BPF_F_INVALIDATE_HASH, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use mesh_common::Address;

use crate::{
    context::field,
    packet::{ETHERNET, IPV4, IPV6, Segment, TCP, flag},
};

const TTL: u8 = 64;

/// On which side of the interface the program stands.
#[derive(Clone, Copy)]
pub enum Side {
    /// The segment came in by the interface: the reset leaves by it.
    Ingress,
    /// The segment was to leave by the interface: the reset comes in by it.
    Egress,
}

/// The verdict that sends the reset, or `None` if the packet could not be rewritten.
#[inline(always)]
pub fn refuse(ctx: &TcContext, segment: &Segment, side: Side) -> Option<i32> {
    if segment.flags & flag::RST != 0 {
        return None;
    }
    let header = if segment.v4 { IPV4 } else { IPV6 };
    // SAFETY: a helper on the program's own context.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, ETHERNET + header + TCP, 0) } != 0 {
        return None;
    }
    swap_ethernet(ctx)?;
    let tcp = tcp_header(segment);
    if segment.v4 {
        store(ctx, ETHERNET, &ipv4_header(segment))?;
        store(ctx, ETHERNET + IPV4, &tcp)?;
    } else {
        store(ctx, ETHERNET, &ipv6_header(segment))?;
        store(ctx, ETHERNET + IPV6, &tcp)?;
    }
    let direction = match side {
        Side::Ingress => 0,
        Side::Egress => BPF_F_INGRESS.into(),
    };
    // SAFETY: as above.
    unsafe { Some(bpf_redirect(field!(ctx.skb.skb, ifindex), direction) as i32) }
}

#[inline(always)]
fn store<const N: usize>(ctx: &TcContext, offset: u32, bytes: &[u8; N]) -> Option<()> {
    let flags = (BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH).into();
    // SAFETY: the buffer has the length given.
    let result = unsafe { bpf_skb_store_bytes(ctx.skb.skb, offset, bytes.as_ptr().cast(), N as u32, flags) };
    (result == 0).then_some(())
}

#[inline(always)]
fn swap_ethernet(ctx: &TcContext) -> Option<()> {
    let mut old = [0_u8; 12];
    // SAFETY: the buffer has the length given.
    if unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), 0, old.as_mut_ptr().cast(), 12) } != 0 {
        return None;
    }
    let new =
        [old[6], old[7], old[8], old[9], old[10], old[11], old[0], old[1], old[2], old[3], old[4], old[5]];
    store(ctx, 0, &new)
}

/// The numbers of RFC 9293, section 3.5.2.
#[inline(always)]
fn tcp_header(segment: &Segment) -> [u8; TCP as usize] {
    let (sequence, acknowledgment, flags) = if segment.flags & flag::ACK != 0 {
        (segment.acknowledgment, 0, flag::RST)
    } else {
        let mut length = segment.payload;
        if segment.flags & flag::SYN != 0 {
            length += 1;
        }
        if segment.flags & flag::FIN != 0 {
            length += 1;
        }
        (0, segment.sequence.wrapping_add(length), flag::RST | flag::ACK)
    };
    let [s0, s1] = segment.destination_port.to_be_bytes();
    let [d0, d1] = segment.source_port.to_be_bytes();
    let [q0, q1, q2, q3] = u32::to_be_bytes(sequence);
    let [a0, a1, a2, a3] = u32::to_be_bytes(acknowledgment);
    let offset = (TCP as u8 / 4) << 4;
    // Both families' pseudo headers have the same sum: an IPv4 address in its mapped form only
    // has more in it, which is left out.
    let sum = address_sum(segment.v4, &segment.source)
        + address_sum(segment.v4, &segment.destination)
        + 6 // the protocol
        + TCP
        + u32::from(segment.destination_port)
        + u32::from(segment.source_port)
        + (sequence >> 16)
        + (sequence & 0xffff)
        + (acknowledgment >> 16)
        + (acknowledgment & 0xffff)
        + (u32::from(offset) << 8 | u32::from(flags));
    let [c0, c1] = fold(sum).to_be_bytes();
    [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags, 0, 0, c0, c1, 0, 0]
}

#[inline(always)]
fn ipv4_header(segment: &Segment) -> [u8; IPV4 as usize] {
    let [s0, s1, s2, s3] = segment.destination.0[3].to_ne_bytes();
    let [d0, d1, d2, d3] = segment.source.0[3].to_ne_bytes();
    let length = (IPV4 + TCP) as u16;
    let [l0, l1] = length.to_be_bytes();
    let sum = 0x4500
        + u32::from(length)
        + 0x4000 // do not fragment
        + (u32::from(TTL) << 8 | 6)
        + address_sum(true, &segment.source)
        + address_sum(true, &segment.destination);
    let [c0, c1] = fold(sum).to_be_bytes();
    [0x45, 0, l0, l1, 0, 0, 0x40, 0, TTL, 6, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3]
}

#[inline(always)]
fn ipv6_header(segment: &Segment) -> [u8; IPV6 as usize] {
    let mut header = [0; IPV6 as usize];
    header[0] = 0x60;
    header[5] = TCP as u8;
    header[6] = 6;
    header[7] = TTL;
    put_address(&mut header, 8, &segment.destination);
    put_address(&mut header, 24, &segment.source);
    header
}

#[inline(always)]
fn put_address(header: &mut [u8; IPV6 as usize], at: usize, address: &Address) {
    for (word, chunk) in address.0.iter().zip(header[at..at + 16].chunks_exact_mut(4)) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
}

/// The sum of an address's 16-bit words.
#[inline(always)]
fn address_sum(v4: bool, address: &Address) -> u32 {
    let word = |word: u32| {
        let word = u32::from_be(word);
        (word >> 16) + (word & 0xffff)
    };
    let last = word(address.0[3]);
    if v4 { last } else { last + word(address.0[0]) + word(address.0[1]) + word(address.0[2]) }
}

/// The one's complement checksum of a sum of 16-bit words.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    !(sum as u16)
}

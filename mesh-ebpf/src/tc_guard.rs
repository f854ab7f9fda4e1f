//! On the host's side of a pod's interface, where the pod has no hands: what leaves it must carry its
//! own address, and its TCP must be the proxy's, or be allowed to go around it.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use aya_log_ebpf::debug;
use mesh_common::{Address, Pod, Settings, action, hook, kind, pod_flags, reason, settings_flags};

use crate::{
    context::field,
    maps::{FLOWS, INTERFACES, count, pod, proxy_serves, settings},
    packet::{self, Packet, Protocol, Segment, flag},
    reset::{self, Side},
    verdict,
};

/// Others' programs on the interface run too.
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

#[classifier]
pub fn mesh_tc_guard(ctx: TcContext) -> i32 {
    // SAFETY: the kernel hands a valid context.
    let ifindex = unsafe { field!(ctx.skb.skb, ifindex) };
    // SAFETY: the value is copied at once.
    let Some(slot) = unsafe { INTERFACES.get(&ifindex) }.copied() else { return NEXT };
    let (Some(pod), Some(settings)) = (pod(slot), settings()) else { return NEXT };
    if pod.flags & pod_flags::GUARD == 0 {
        return NEXT;
    }
    let Packet::Ip { source, protocol } = packet::parse(&ctx) else { return NEXT };
    if let Protocol::Hidden(reason) = protocol {
        return drop_for(&ctx, settings, slot, reason);
    }
    let segment = match protocol {
        Protocol::Tcp(segment) => segment,
        _ => {
            return if may_send(slot, &source) || is_neighbour_talk(&source) {
                NEXT
            } else {
                drop_for(&ctx, settings, slot, reason::SPOOFED)
            };
        }
    };
    if source.is_link_local_v6() {
        // Reaches no further than the host's end of the interface.
        return NEXT;
    }
    if !may_send(slot, &source) {
        return drop_for(&ctx, settings, slot, reason::SPOOFED);
    }
    judge(&ctx, settings, slot, pod, &segment)
}

#[inline(always)]
fn may_send(slot: u32, source: &Address) -> bool {
    verdict::is_address_of(slot, source)
}

/// Neighbour and address discovery and DHCP speak before an address is known.
#[inline(always)]
fn is_neighbour_talk(source: &Address) -> bool {
    source.is_link_local_v6() || source.0 == [0; 4] || (source.is_v4() && source.0[3] == 0)
}

#[inline(always)]
fn judge(ctx: &TcContext, settings: &Settings, slot: u32, pod: &Pod, segment: &Segment) -> i32 {
    // SAFETY: the value is copied at once.
    let noted = kind::of(unsafe { FLOWS.get(&segment.flow(slot)) }.copied().unwrap_or(0));
    // Answers of an application to the proxy stay inside the pod: one that comes out does not pass.
    if noted == kind::NETWORK || noted == kind::INBOUND || noted == kind::HOST {
        return NEXT;
    }
    if verdict::outbound_passes(slot, pod, &segment.destination, segment.destination_port).is_some() {
        return NEXT;
    }
    if segment.begins() {
        if settings.flags & settings_flags::FAIL_OPEN != 0 && !proxy_serves(settings, slot) {
            return NEXT;
        }
        let reasons = (reason::REFUSED_UNSTEERED, reason::PASSED_UNSTEERED);
        return act(ctx, settings, slot, segment, settings.unsteered, reasons);
    }
    // Says nothing to anyone: the answer to what sk_lookup let in, the end of a connection, or a
    // socket that waits out its last segments.
    let harmless = segment.flags & (flag::SYN | flag::RST) != 0
        || (segment.payload == 0 && segment.flags & flag::FIN == 0);
    if harmless || verdict::inbound_excluded(slot, pod, &segment.destination, segment.source_port) {
        return NEXT;
    }
    let reasons = (reason::REFUSED_OLDER, reason::PASSED_OLDER);
    act(ctx, settings, slot, segment, settings.older, reasons)
}

#[inline(always)]
fn act(
    ctx: &TcContext,
    settings: &Settings,
    slot: u32,
    segment: &Segment,
    configured: u32,
    (refused, passed): (u16, u16),
) -> i32 {
    if configured == action::PASS {
        count(slot, hook::TC_GUARD, passed);
        return NEXT;
    }
    count(slot, hook::TC_GUARD, refused);
    if settings.flags & settings_flags::LOG != 0 {
        debug!(ctx, "tc_guard: pod {} port {} refused, reason {}", slot, segment.destination_port, refused);
    }
    reset::refuse(ctx, segment, Side::Ingress).unwrap_or(DROP)
}

#[inline(always)]
fn drop_for(ctx: &TcContext, settings: &Settings, slot: u32, reason: u16) -> i32 {
    count(slot, hook::TC_GUARD, reason);
    if settings.flags & settings_flags::LOG != 0 {
        debug!(ctx, "tc_guard: pod {} packet dropped, reason {}", slot, reason);
    }
    DROP
}

//! On the pod's own side of its interface: brings to the proxy what the connect hook did not reach,
//! by sending it back into the loopback interface, where `sk_lookup` takes it as it takes the rest.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{bpf_redirect, bpf_sk_fullsock, bpf_skb_store_bytes},
    macros::classifier,
    programs::TcContext,
};
use mesh_common::{FlowKey, Settings, action, hook, kind, reason, settings_flags};

use crate::{
    context::field,
    maps::{FLOWS, SLOT, SOCKETS, STEERED, count, pod, proxy_serves, settings},
    packet::{self, Packet, Protocol, Segment},
    reset::{self, Side},
    verdict,
};

const NEXT: i32 = TC_ACT_UNSPEC;
const LOOPBACK_IFINDEX: u32 = 1;

#[classifier]
pub fn mesh_tc_steer(ctx: TcContext) -> i32 {
    let slot = SLOT.load();
    let Some(settings) = settings() else { return NEXT };
    // What is hidden is left to the guard, which refuses it.
    let Packet::Ip { protocol: Protocol::Tcp(segment), .. } = packet::parse(&ctx) else { return NEXT };
    let flow = segment.flow(slot);
    if segment.begins() {
        return begin(&ctx, settings, slot, &segment, &flow);
    }
    // SAFETY: only presence is looked at.
    if unsafe { STEERED.get(&flow) }.is_some() {
        return to_loopback(&ctx, settings);
    }
    if settings.flags & settings_flags::SOCKOPS == 0 {
        note_own(&ctx, &flow);
    }
    NEXT
}

#[inline(always)]
fn begin(ctx: &TcContext, settings: &Settings, slot: u32, segment: &Segment, flow: &FlowKey) -> i32 {
    if settings.flags & settings_flags::SOCKOPS == 0 {
        note_own(ctx, flow);
    }
    // SAFETY: the value is copied at once.
    let own = unsafe { FLOWS.get(flow) }.is_some_and(|noted| kind::of(*noted) == kind::NETWORK);
    let Some(pod) = pod(slot) else { return NEXT };
    let passes =
        verdict::outbound_passes(slot, pod, &segment.destination, segment.destination_port).is_some();
    // Another's address is for the guard.
    if own || passes || !verdict::is_address_of(slot, &segment.source) {
        let _ = STEERED.remove(flow);
        return NEXT;
    }
    if !proxy_serves(settings, slot) && settings.flags & settings_flags::FAIL_OPEN != 0 {
        let _ = STEERED.remove(flow);
        count(slot, hook::TC_STEER, reason::PASSED_PROXY_AWAY);
        return NEXT;
    }
    if !way_is_there(ctx, settings, segment, flow) {
        let _ = STEERED.remove(flow);
        return unsteered(ctx, settings, slot, segment);
    }
    // The sequence number tells a retransmission from another connection with the same ends.
    if STEERED.insert(flow, &segment.sequence, 0).is_err() {
        count(slot, hook::TC_STEER, reason::FAILED);
        return TC_ACT_SHOT as i32;
    }
    count(slot, hook::TC_STEER, reason::STEERED_OUTBOUND);
    to_loopback(ctx, settings)
}

/// Whether the rule and the route to the loopback interface seem to be in place. A pod may have removed them:
/// then what the connect hook marked comes out here, and what was sent to the loopback interface is lost, so
/// that its sender asks again.
#[inline(always)]
fn way_is_there(ctx: &TcContext, settings: &Settings, segment: &Segment, flow: &FlowKey) -> bool {
    // SAFETY: the kernel hands a valid context; the value is copied at once.
    let (mark, asked) = unsafe { (field!(ctx.skb.skb, mark), STEERED.get(flow).copied()) };
    mark & settings.mark_mask != settings.mark && asked != Some(segment.sequence)
}

/// What cannot be steered is refused here, not left to the guard: there may be none.
#[inline(always)]
fn unsteered(ctx: &TcContext, settings: &Settings, slot: u32, segment: &Segment) -> i32 {
    if settings.unsteered == action::PASS {
        count(slot, hook::TC_STEER, reason::PASSED_UNSTEERED);
        return NEXT;
    }
    count(slot, hook::TC_STEER, reason::REFUSED_UNSTEERED);
    reset::refuse(ctx, segment, Side::Egress).unwrap_or(TC_ACT_SHOT as i32)
}

/// Without sockops, notes a flow of the proxy by the tag of the socket that sends it.
#[inline(always)]
fn note_own(ctx: &TcContext, flow: &FlowKey) {
    // SAFETY: the kernel hands a valid context, and each pointer is checked before its use.
    let tag = unsafe {
        let sk = field!(ctx.skb.skb, __bindgen_anon_2.sk);
        if sk.is_null() {
            return;
        }
        let sk = bpf_sk_fullsock(sk);
        if sk.is_null() {
            return;
        }
        SOCKETS.get(sk)
    };
    let Some(tag) = tag else { return };
    // SAFETY: only presence is looked at.
    if (tag.kind == kind::NETWORK || tag.kind == kind::INBOUND) && unsafe { FLOWS.get(flow) }.is_none() {
        let _ = FLOWS.insert(flow, &tag.noted(), 0);
    }
}

/// Makes the packet one that came in by the loopback interface, marked so that it is delivered here.
#[inline(always)]
fn to_loopback(ctx: &TcContext, settings: &Settings) -> i32 {
    let no_addresses = [0_u8; 12];
    // SAFETY: the kernel hands a valid context; the buffer has the length given.
    unsafe {
        let theirs = field!(ctx.skb.skb, mark);
        ctx.set_mark((theirs & !settings.mark_mask) | settings.mark);
        if bpf_skb_store_bytes(ctx.skb.skb, 0, no_addresses.as_ptr().cast(), 12, 0) != 0 {
            return TC_ACT_SHOT as i32;
        }
        bpf_redirect(LOOPBACK_IFINDEX, BPF_F_INGRESS.into()) as i32
    }
}

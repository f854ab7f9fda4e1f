//! Gives a new connection inside a pod's network namespace to one of the proxy's listeners there.
//! Runs for listener lookups only: established flows, TIME_WAIT and SYN cookies stay TCP's own.

use aya_ebpf::{
    bindings::{BPF_SK_LOOKUP_F_NO_REUSEPORT, bpf_sk_lookup, sk_action},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use mesh_common::{
    FlowKey, MAX_WORKERS, Settings, direction, hook, kind, listener_index, reason, settings_flags,
    worker_listener_index,
};

use crate::{
    context::{address, field},
    maps::{
        ADDRESS_PODS, FLOWS, HAS_INGRESS_IFINDEX, LISTENERS, SLOT, WORKER_LISTENERS, count, pod, proxy_alive,
        settings,
    },
    verdict,
};

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const LOOPBACK_IFINDEX: u32 = 1;

const PASS: u32 = sk_action::SK_PASS;
/// The lookup finds nothing, which TCP answers with a reset.
const DROP: u32 = sk_action::SK_DROP;

#[sk_lookup]
pub fn mesh_sk_lookup(ctx: SkLookupContext) -> u32 {
    // SAFETY: the kernel hands a valid context; fields are read at their own width.
    let protocol = unsafe { field!(ctx.lookup, protocol) };
    if protocol != IPPROTO_TCP {
        return PASS;
    }
    let slot = SLOT.load();
    let (Some(pod), Some(settings)) = (pod(slot), settings()) else { return PASS };
    let flow = flow_of(&ctx, slot);
    if flow.local.is_loopback() {
        return PASS;
    }
    // SAFETY: the value is copied at once.
    match unsafe { FLOWS.get(&flow) }.map(|noted| kind::of(*noted)) {
        Some(kind::APPLICATION) => {
            count(slot, hook::SK_LOOKUP, reason::PASSED_OWN);
            return PASS;
        }
        Some(kind::HOST) => {
            count(slot, hook::SK_LOOKUP, reason::PASSED_HOST);
            return PASS;
        }
        _ => {}
    }
    if !from_proxy(&flow) {
        // Nothing but the steering route delivers a foreign destination locally.
        if !verdict::is_address_of(slot, &flow.local) && !from_outside(&ctx) {
            return assign(&ctx, settings, slot, &flow, direction::OUTBOUND, reason::STEERED_OUTBOUND);
        }
        if verdict::is_address_of(slot, &flow.remote) {
            count(slot, hook::SK_LOOKUP, reason::PASSED_LOCAL);
            return PASS;
        }
    }
    if verdict::inbound_excluded(slot, pod, &flow.remote, flow.local_port) {
        count(slot, hook::SK_LOOKUP, reason::PASSED_EXCLUDED);
        return PASS;
    }
    assign(&ctx, settings, slot, &flow, direction::INBOUND, reason::STEERED_INBOUND)
}

/// Whether a flow between two addresses of the pod is the proxy's way to the network, which came
/// back because the chosen endpoint is the pod itself.
#[inline(always)]
fn from_proxy(flow: &FlowKey) -> bool {
    // SAFETY: the value is copied at once.
    unsafe { FLOWS.get(&flow.seen_by(flow.slot)) }.is_some_and(|noted| kind::of(*noted) == kind::NETWORK)
}

/// Gives a connection that the proxy makes from another pod of this node to the worker that makes it: the two
/// halves then wake nobody between them, and the bytes stay in one processor's cache.
#[inline(always)]
fn assign_to_sibling(ctx: &SkLookupContext, slot: u32, flow: &FlowKey) -> bool {
    // SAFETY: the value is copied at once.
    let Some(client) = unsafe { ADDRESS_PODS.get(&flow.remote) }.copied() else { return false };
    // SAFETY: as above.
    let worker = unsafe { FLOWS.get(&flow.seen_by(client)) }.map_or(0, |noted| kind::worker(*noted));
    if worker == 0 || u32::from(worker) > MAX_WORKERS {
        return false;
    }
    let index = worker_listener_index(slot, worker);
    let given = WORKER_LISTENERS.redirect_sk_lookup(ctx, index, BPF_SK_LOOKUP_F_NO_REUSEPORT.into()).is_ok();
    if given {
        count(slot, hook::SK_LOOKUP, reason::STEERED_SIBLING);
    }
    given
}

#[inline(always)]
fn assign(
    ctx: &SkLookupContext,
    settings: &Settings,
    slot: u32,
    flow: &FlowKey,
    direction: u16,
    reason: u16,
) -> u32 {
    let listener = listener_index(slot, direction);
    if proxy_alive(settings)
        && (direction == direction::INBOUND && assign_to_sibling(ctx, slot, flow)
            || LISTENERS.redirect_sk_lookup(ctx, listener, 0).is_ok())
    {
        // With sockops, the connection is counted when it is one.
        if settings.flags & settings_flags::SOCKOPS == 0 {
            count(slot, hook::SK_LOOKUP, reason);
        }
        return PASS;
    }
    if settings.flags & settings_flags::FAIL_OPEN != 0 {
        count(slot, hook::SK_LOOKUP, reason::PASSED_PROXY_AWAY);
        return PASS;
    }
    count(slot, hook::SK_LOOKUP, reason::REFUSED_PROXY_AWAY);
    DROP
}

#[inline(always)]
fn flow_of(ctx: &SkLookupContext, slot: u32) -> FlowKey {
    let lookup: *const bpf_sk_lookup = ctx.lookup;
    // SAFETY: as in the caller.
    unsafe {
        let v4 = field!(lookup, family) == AF_INET;
        FlowKey {
            slot,
            local: address!(lookup, v4, local_ip4, local_ip6),
            remote: address!(lookup, v4, remote_ip4, remote_ip6),
            local_port: field!(lookup, local_port) as u16,
            remote_port: u16::from_be(field!(lookup, remote_port)),
        }
    }
}

/// Whether a connection to an address that is not listed as the pod's came over the network: to a
/// second address of the pod then. (For listed addresses the kernel names the interface that holds
/// the address, also for connections made inside the pod.)
#[inline(always)]
fn from_outside(ctx: &SkLookupContext) -> bool {
    if HAS_INGRESS_IFINDEX.load() == 0 {
        return false;
    }
    // SAFETY: as in the caller.
    unsafe { field!(ctx.lookup, ingress_ifindex) != LOOPBACK_IFINDEX }
}

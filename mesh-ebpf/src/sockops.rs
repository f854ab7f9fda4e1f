//! Notes the four-tuple of flows that must be known before their first packet is judged: the
//! proxy's own, which `sk_lookup` and the guard let pass, and the host's. Forgets them at close. Counts the
//! connections that the proxy's listeners got. Tells `accel` of connections made, and of
//! what happens on those that it observes.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_SOCK_OPS_TIMEOUT_INIT, bpf_sock, bpf_sock_ops,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use mesh_common::{FlowKey, SocketTag, hook, kind, reason};

use crate::{
    accel,
    context::{address, field},
    hold,
    maps::{ACCELERATES, FLOWS, SOCKETS, count},
};

const AF_INET: u32 = 2;
const TCP_CLOSE: u32 = 7;

#[sock_ops]
pub fn mesh_sockops(ctx: SockOpsContext) -> u32 {
    let op = ctx.op();
    if op != BPF_SOCK_OPS_TCP_CONNECT_CB
        && op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
        && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
        && op != BPF_SOCK_OPS_STATE_CB
        && op != BPF_SOCK_OPS_RTT_CB
        && op != BPF_SOCK_OPS_TIMEOUT_INIT
    {
        return 1;
    }
    // SAFETY: the kernel hands a valid context.
    let sk = unsafe { field!(ctx.ops, __bindgen_anon_2.sk) };
    if sk.is_null() {
        return 1;
    }
    // SAFETY: checked for null; the ops above run on full sockets.
    let tag = unsafe { SOCKETS.get(sk) };
    if op == BPF_SOCK_OPS_TIMEOUT_INIT {
        if let Some(tag) = tag {
            ctx.set_reply(hold::first_wait(tag));
        }
        return 1;
    }
    // One that was held is an application's like any other.
    let tag = tag.filter(|tag| tag.kind != kind::HELD && tag.kind != kind::LET_GO);
    if ACCELERATES.load() != 0 {
        accelerate(&ctx, op, sk, tag.as_deref());
    }
    let Some(tag) = tag else { return 1 };
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => match tag.kind {
            kind::NETWORK | kind::APPLICATION | kind::HOST => note(&ctx, tag),
            _ => {}
        },
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => match tag.kind {
            kind::INBOUND => {
                note(&ctx, tag);
                count_steered(&ctx, tag, reason::STEERED_INBOUND);
            }
            kind::OUTBOUND => count_steered(&ctx, tag, reason::STEERED_OUTBOUND),
            _ => {}
        },
        BPF_SOCK_OPS_STATE_CB => {
            if ctx.arg(1) == TCP_CLOSE {
                let _ = FLOWS.remove(&key(&ctx, tag));
            }
        }
        _ => {}
    }
    1
}

#[inline(always)]
fn accelerate(ctx: &SockOpsContext, op: u32, sk: *mut bpf_sock, tag: Option<&SocketTag>) {
    match op {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => accel::connected(ctx, sk, tag),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accel::accepted(ctx, sk, tag),
        BPF_SOCK_OPS_RTT_CB => accel::observe(ctx, sk),
        BPF_SOCK_OPS_STATE_CB => accel::state_changed(ctx, sk),
        _ => {}
    }
}

#[inline(always)]
fn note(ctx: &SockOpsContext, tag: &SocketTag) {
    // The map evicts its oldest entry when full, so this fails only for want of memory; then the
    // guard refuses the flow, which is the safe side.
    let _ = FLOWS.insert(&key(ctx, tag), &tag.noted(), 0);
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// Counts what `sk_lookup` gave to a listener: there, a segment of a connection that is over looks like one
/// that begins. Connections to the listener's own address came by themselves.
#[inline(always)]
fn count_steered(ctx: &SockOpsContext, tag: &SocketTag, reason: u16) {
    let ops: *const bpf_sock_ops = ctx.ops;
    // SAFETY: the kernel hands a valid context.
    let local = unsafe {
        let v4 = field!(ops, family) == AF_INET;
        address!(ops, v4, local_ip4, local_ip6)
    };
    if !local.is_loopback() {
        count(tag.slot, hook::SK_LOOKUP, reason);
    }
}

/// The flow as the pod sees it: for connections *to* the pod the socket's remote end is the pod's.
#[inline(always)]
fn key(ctx: &SockOpsContext, tag: &SocketTag) -> FlowKey {
    let ops: *const bpf_sock_ops = ctx.ops;
    // SAFETY: the kernel hands a valid context.
    let (local, remote, local_port, remote_port) = unsafe {
        let v4 = field!(ops, family) == AF_INET;
        (
            address!(ops, v4, local_ip4, local_ip6),
            address!(ops, v4, remote_ip4, remote_ip6),
            field!(ops, local_port) as u16,
            u32::from_be(field!(ops, remote_port)) as u16,
        )
    };
    let own = FlowKey { slot: tag.slot, local, remote, local_port, remote_port };
    if tag.kind == kind::NETWORK || tag.kind == kind::INBOUND { own } else { own.seen_by(tag.slot) }
}

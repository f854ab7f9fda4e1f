//! What `connect4` and `connect6` share: mark a pod's socket so that its packets meet the proxy.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_get_netns_cookie, bpf_setsockopt},
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use mesh_common::{Address, Settings, SocketTag, hook, kind, reason, settings_flags};

use crate::{
    accel,
    context::field,
    hold,
    maps::{ADDRESS_PODS, NAMESPACES, SOCKETS, count, pod, proxy_serves, settings},
    verdict,
};

const IPPROTO_TCP: u32 = 6;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;

/// `connect` goes on.
pub const PASS: i32 = 1;
/// `connect` fails with `EPERM`.
pub const REFUSE: i32 = 0;

#[inline(always)]
pub fn connect(ctx: &SockAddrContext, remote: Address) -> i32 {
    let addr: *const bpf_sock_addr = ctx.sock_addr;
    // SAFETY: the kernel hands a valid context.
    let (protocol, port, sk) = unsafe {
        (
            field!(addr, protocol),
            u16::from_be(field!(addr, user_port) as u16),
            field!(addr, __bindgen_anon_1.sk),
        )
    };
    if protocol != IPPROTO_TCP {
        return PASS;
    }
    // SAFETY: `sk` is the connecting socket, never null in this hook.
    if let Some(tag) = unsafe { SOCKETS.get(sk) } {
        match tag.kind {
            kind::NETWORK | kind::APPLICATION => return PASS,
            kind::LEARN => {
                // SAFETY: a helper on the program's own context.
                tag.netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
                return REFUSE;
            }
            _ => {}
        }
    }
    let Some(settings) = settings() else { return PASS };
    // SAFETY: as above.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the value is copied at once.
    let Some(slot) = unsafe { NAMESPACES.get(&netns) }.copied() else {
        if netns == settings.host_netns {
            note_host(settings, sk, netns, remote);
            return PASS;
        }
        return hold::connects(ctx, settings, sk, netns, remote);
    };
    if settings.flags & settings_flags::CONNECT == 0 {
        return PASS;
    }
    steer(ctx, settings, slot, sk, remote, port)
}

#[inline(always)]
fn steer(
    ctx: &SockAddrContext,
    settings: &Settings,
    slot: u32,
    sk: *mut bpf_sock,
    remote: Address,
    port: u16,
) -> i32 {
    let Some(pod) = pod(slot) else { return PASS };
    if let Some(reason) = verdict::outbound_passes(slot, pod, &remote, port) {
        count(slot, hook::CONNECT, reason);
        return PASS;
    }
    if !proxy_serves(settings, slot) {
        if settings.flags & settings_flags::FAIL_OPEN != 0 {
            count(slot, hook::CONNECT, reason::PASSED_PROXY_AWAY);
            return PASS;
        }
        count(slot, hook::CONNECT, reason::REFUSED_PROXY_AWAY);
        return REFUSE;
    }
    // SAFETY: `sk` is a full socket; its mark is readable.
    let theirs = unsafe { field!(sk, mark) };
    let mut mark = (theirs & !settings.mark_mask) | settings.mark;
    // SAFETY: the option's value is a `u32` on the stack.
    let set = unsafe {
        bpf_setsockopt(
            ctx.as_ptr(),
            SOL_SOCKET,
            SO_MARK,
            core::ptr::from_mut(&mut mark).cast(),
            size_of::<u32>() as i32,
        )
    };
    if set != 0 {
        count(slot, hook::CONNECT, reason::FAILED);
        return PASS;
    }
    count(slot, hook::CONNECT, reason::STEERED_OUTBOUND);
    accel::connecting(settings, pod, slot, sk);
    if settings.flags & settings_flags::LOG != 0 {
        debug!(ctx, "connect: pod {} port {} steered", slot, port);
    }
    PASS
}

/// A connection of the host itself to a pod is told to sockops, which knows its port. Host-network
/// pods are not the host: their cgroup is below that of all pods.
#[inline(always)]
fn note_host(settings: &Settings, sk: *mut bpf_sock, netns: u64, remote: Address) {
    // SAFETY: the value is copied at once.
    let Some(slot) = unsafe { ADDRESS_PODS.get(&remote) }.copied() else { return };
    if hold::in_a_pod(settings) {
        return;
    }
    // SAFETY: `sk` is the connecting socket.
    unsafe { SOCKETS.set(sk, SocketTag { netns, slot, kind: kind::HOST, worker: 0 }) };
}

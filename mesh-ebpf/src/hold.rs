//! Holds what a new pod connects to until user space has looked at the pod, so that no pod's first connection goes
//! around the proxy.
//!
//! The connect hook notes the socket of a pod that it does not know and tells user space of it; here, on the way out of
//! the pod's control group, the socket's SYN is dropped. TCP asks again after a few ticks, which `sockops` sees to, and
//! by then the pod is enrolled, or known to be none of the mesh, or has been held for long enough. An established
//! connection is never touched, and nothing is held that is not TCP.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_ktime_get_ns, bpf_setsockopt, bpf_sk_fullsock,
    },
    macros::cgroup_skb,
    programs::{SkBuffContext, SockAddrContext},
};
use mesh_common::{Address, Settings, SocketTag, kind, settings_flags};

use crate::{
    connect::{PASS, REFUSE},
    context::field,
    maps::{NAMESPACES, NEWCOMERS, NEWS, SOCKETS, STRANGERS, proxy_alive},
};

const IPPROTO_TCP: i32 = 6;
const TCP_SYNCNT: i32 = 7;
/// How often TCP asks again when it is held: the steps are short, so there are more of them than by default.
const ASK_AGAIN: i32 = 9;
/// How deep the control group of all pods may be below the root: a node may itself be in a container.
const MAX_DEPTH: i32 = 8;

const SEND: i32 = 1;
const DROP: i32 = 0;

/// Whether the calling process is in a pod of this node.
#[inline(always)]
pub fn in_a_pod(settings: &Settings) -> bool {
    if settings.kubepods == 0 {
        return false;
    }
    let mut level = 1;
    while level <= MAX_DEPTH {
        // SAFETY: a helper with a plain argument.
        if unsafe { bpf_get_current_ancestor_cgroup_id(level) } == settings.kubepods {
            return true;
        }
        level += 1;
    }
    false
}

/// A socket of a namespace that is no enrolled pod's connects. The verdict of the connect hook.
#[inline(always)]
pub fn connects(
    ctx: &SockAddrContext,
    settings: &Settings,
    sk: *mut bpf_sock,
    netns: u64,
    remote: Address,
) -> i32 {
    // The host's own namespace must be known: it is not held.
    if settings.hold_ms == 0 || settings.host_netns == 0 || remote.is_loopback() || remote.is_link_local_v6()
    {
        return PASS;
    }
    // SAFETY: only presence is looked at.
    if unsafe { STRANGERS.get(&netns) }.is_some() || !in_a_pod(settings) {
        return PASS;
    }
    let alive = proxy_alive(settings);
    if !alive && passes_without_proxy(settings) {
        return PASS;
    }
    // SAFETY: a helper without arguments; the value is copied at once.
    let (now, since) = unsafe { (bpf_ktime_get_ns(), NEWCOMERS.get(&netns).copied()) };
    match since {
        Some(since) if is_over(settings, since, now) => return if alive { PASS } else { REFUSE },
        Some(_) => {}
        None => {
            let _ = NEWCOMERS.insert(&netns, &now, 0);
        }
    }
    // SAFETY: `sk` is the connecting socket; the option's value is an `i32` on the stack.
    unsafe {
        SOCKETS.set(sk, SocketTag { netns, slot: 0, kind: kind::HELD, worker: 0 });
        let mut times = ASK_AGAIN;
        let value = core::ptr::from_mut(&mut times).cast();
        // Where it cannot be set the usual number of times has to do.
        let _ = bpf_setsockopt(ctx.as_ptr(), IPPROTO_TCP, TCP_SYNCNT, value, size_of::<i32>() as i32);
    }
    // A buffer that is full: the next connection tells.
    let _ = NEWS.output::<u64>(netns, 0);
    PASS
}

/// What pods that nobody knows connect to while no proxy runs: with nobody asking for the mesh they are none of it.
#[inline(always)]
fn passes_without_proxy(settings: &Settings) -> bool {
    settings.flags & (settings_flags::FAIL_OPEN | settings_flags::UNASKED) != 0
}

#[inline(always)]
fn is_over(settings: &Settings, since: u64, now: u64) -> bool {
    now.wrapping_sub(since) > u64::from(settings.hold_ms) * 1_000_000
}

/// On every packet that a process of the node sends; almost all are none of its business.
#[cgroup_skb(egress)]
pub fn mesh_hold(ctx: SkBuffContext) -> i32 {
    // SAFETY: the kernel hands a valid context, and each pointer is checked before its use.
    let tag = unsafe {
        let sk = field!(ctx.skb.skb, __bindgen_anon_2.sk);
        if sk.is_null() {
            return SEND;
        }
        let sk = bpf_sk_fullsock(sk);
        if sk.is_null() {
            return SEND;
        }
        SOCKETS.get(sk)
    };
    let Some(tag) = tag else { return SEND };
    if tag.kind != kind::HELD {
        return SEND;
    }
    let netns = tag.netns;
    // SAFETY: only presence is looked at; the value is copied at once.
    let (known, since, now) = unsafe {
        let known = NAMESPACES.get(&netns).is_some() || STRANGERS.get(&netns).is_some();
        (known, NEWCOMERS.get(&netns).copied(), bpf_ktime_get_ns())
    };
    let Some(settings) = crate::maps::settings() else { return SEND };
    let over = since.is_none_or(|since| is_over(settings, since, now));
    if known || (over && (proxy_alive(settings) || passes_without_proxy(settings))) {
        tag.kind = kind::LET_GO;
        return SEND;
    }
    DROP
}

/// The first wait for an answer to a SYN, in ticks of the kernel (1 to 10 ms each): 0 is the usual second.
#[inline(always)]
pub fn first_wait(tag: &SocketTag) -> u32 {
    const TICKS: u32 = 8;
    if tag.kind == kind::HELD { TICKS } else { 0 }
}

//! Which flows are accelerated, and how their two ends find each other.
//!
//! The connecting end decides, since it knows whose the other end is; it leaves word under a key that only
//! the two ends of one connection can have in common. The accepting end finds it and joins. No program takes
//! a socket out again (user space does, of streams that have gone to TCP): what is not right for a socket must
//! be known before.

use core::ptr::read_volatile;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_NOEXIST, BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_ops},
    helpers::bpf_get_socket_cookie,
    programs::SockOpsContext,
};
use mesh_common::{
    Pod, Settings, SocketTag,
    accel::{ENOUGH_SEEN, End, Owner, OwnerKey, Pair, PairKey, role, state, way},
    hook, kind, pod_flags, reason, settings_flags,
};

use crate::{
    context::{address, field},
    kernel::{self, Manner},
    maps::{ACCELERATED, ADDRESS_PODS, ENDS, OWNERS, PAIRS, SWITCHED, count, pod, settings},
};

const AF_INET: u32 = 2;
const TCP_FIN_WAIT1: u32 = 4;
const TCP_CLOSE: u32 = 7;
const TCP_LAST_ACK: u32 = 9;

/// What becomes of a new flow: one of these, or the reason for which it stays on TCP. A number, because the fields of
/// an enum that its other variants do not have are memory that was never written, and before Linux 6.3 the
/// verifier refuses a program that as much as moves such memory about.
type Verdict = u32;
const ACCELERATE: Verdict = 0;
/// Watch how the application uses its socket.
const LEARN: Verdict = 1;

/// An application's socket is about to be steered to the proxy.
#[inline(always)]
pub fn connecting(settings: &Settings, pod: &Pod, slot: u32, sk: *mut bpf_sock) {
    if settings.flags & settings_flags::ACCELERATE == 0 || pod.flags & pod_flags::ACCELERATE == 0 {
        return;
    }
    if settings.flags & settings_flags::APPLICATIONS == 0 {
        count(slot, hook::ACCEL, reason::TCP_SPLICE_UNSEEN);
        return;
    }
    let Some(offsets) = kernel::offsets() else { return };
    let owner = OwnerKey { id: kernel::executable(offsets), slot, role: role::CLIENT };
    // SAFETY: the connecting socket, never null in that hook.
    unsafe { ENDS.set(sk, end(owner, state::CONNECTING, way::TO_PROXY)) };
}

#[inline(always)]
fn end(owner: OwnerKey, state: u32, way: u32) -> End {
    End {
        owner,
        key: 0,
        peer: 0,
        peer_cookie: 0,
        own: 0,
        waiting: 0,
        messages: 0,
        bytes: 0,
        joined: 0,
        state,
        way,
        first_seq: 0,
        leaving: 0,
        connecting_seq: 0,
        accepting_seq: 0,
        direction: 0,
        straight: 0,
    }
}

/// A connection was made from here.
#[inline(always)]
pub fn connected(ctx: &SockOpsContext, sk: *mut bpf_sock, tag: Option<&SocketTag>) {
    let Some(offsets) = kernel::offsets() else { return };
    let Some(settings) = settings() else { return };
    let on = settings.flags & settings_flags::ACCELERATE != 0;
    let address = kernel::raw_socket(sk);
    let (owner, way, verdict) = match tag {
        Some(tag) if tag.kind == kind::TEST => {
            let owner = OwnerKey { id: 0, slot: 0, role: role::POD };
            (owner, way::TO_APPLICATION, ACCELERATE)
        }
        _ if !on => return,
        Some(tag) if tag.kind == kind::APPLICATION => {
            if !accelerates(tag.slot) {
                return;
            }
            if settings.flags & settings_flags::APPLICATIONS == 0 {
                count(tag.slot, hook::ACCEL, reason::TCP_SPLICE_UNSEEN);
                return;
            }
            let port = u64::from(remote_port(ctx));
            let owner = OwnerKey { id: port, slot: tag.slot, role: role::SERVER };
            (owner, way::TO_APPLICATION, judge(&owner))
        }
        Some(tag) if tag.kind == kind::NETWORK => {
            let remote = pair_key(ctx, true).accepting;
            // SAFETY: the value is copied at once.
            let Some(slot) = unsafe { ADDRESS_PODS.get(&remote) }.copied() else { return };
            if !accelerates(tag.slot) || !accelerates(slot) {
                return;
            }
            let owner = OwnerKey { id: 0, slot: tag.slot, role: role::POD };
            (owner, way::BETWEEN_PROXIES, ACCELERATE)
        }
        Some(_) => return,
        None => {
            // SAFETY: checked for null by the caller.
            let Some(end) = (unsafe { ENDS.get(sk) }) else { return };
            if end.state != state::CONNECTING {
                return;
            }
            let mut verdict = judge(&end.owner);
            if verdict == ACCELERATE && kernel::manner(offsets, address) != Manner::NonBlocking {
                // It may be set up only after it is connected.
                verdict = LEARN;
            }
            end.state = state::OBSERVED;
            (end.owner, way::TO_PROXY, verdict)
        }
    };
    let slot = owner.slot;
    let flow = match verdict {
        LEARN => {
            count(slot, hook::ACCEL, reason::TCP_LEARNING);
            if way == way::TO_PROXY {
                watch(ctx);
                return;
            }
            0
        }
        // SAFETY: a helper on the program's own context.
        ACCELERATE => (unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }) << 1,
        reason => {
            count(slot, hook::ACCEL, reason as u16);
            return;
        }
    };
    let key = pair_key(ctx, true);
    if flow != 0 {
        let new = End {
            key: flow,
            own: address,
            first_seq: key.connecting_seq,
            connecting_seq: key.connecting_seq,
            accepting_seq: key.accepting_seq,
            ..end(owner, state::CLEAN, way)
        };
        if !join(ctx, sk, new) {
            count(slot, hook::ACCEL, reason::FAILED);
            return;
        }
    } else {
        // Nothing but its numbers is of interest, when it is closed before its other end is found.
        let new = End {
            connecting_seq: key.connecting_seq,
            accepting_seq: key.accepting_seq,
            ..end(owner, state::TCP, way)
        };
        // SAFETY: checked for null by the caller.
        unsafe { ENDS.set(sk, new) };
        let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    }
    let pair = Pair { owner, flow, socket: address, cookie: flow >> 1, way, reserved: 0 };
    let _ = PAIRS.insert(&key, &pair, 0);
}

/// A connection was accepted by the kernel; no process has it yet.
#[inline(always)]
pub fn accepted(ctx: &SockOpsContext, sk: *mut bpf_sock, tag: Option<&SocketTag>) {
    let Some(offsets) = kernel::offsets() else { return };
    let key = pair_key(ctx, false);
    // SAFETY: the value is copied at once.
    let Some(pair) = (unsafe { PAIRS.get(&key) }).copied() else { return };
    let kind = tag.map_or(0, |tag| tag.kind);
    let fits = match pair.way {
        // A pod that is enrolled anew is for a moment still served by the listener of its last time: the slot may
        // be another.
        way::TO_PROXY => kind == kind::OUTBOUND,
        way::TO_APPLICATION => kind != kind::OUTBOUND && kind != kind::INBOUND,
        _ => kind == kind::INBOUND,
    };
    if !fits {
        return;
    }
    if PAIRS.remove(&key).is_err() {
        return;
    }
    let back = match pair.way {
        way::TO_PROXY => way::TO_APPLICATION,
        way::TO_APPLICATION => way::TO_PROXY,
        other => other,
    };
    if pair.flow == 0 {
        // SAFETY: checked for null by the caller.
        unsafe { ENDS.set(sk, end(pair.owner, state::OBSERVED, back)) };
        watch(ctx);
        return;
    }
    // From here on it has one: by it the other end is told from a later socket at the same address.
    // SAFETY: a helper on the program's own context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let address = kernel::raw_socket(sk);
    // What it inherits of its listener.
    if let Manner::Never(reason) = kernel::manner(offsets, address) {
        count(pair.owner.slot, hook::ACCEL, reason);
        return;
    }
    let new = End {
        key: pair.flow | 1,
        peer: pair.socket,
        peer_cookie: pair.cookie,
        own: address,
        first_seq: key.accepting_seq,
        ..end(pair.owner, state::CLEAN, back)
    };
    let outcome = if join(ctx, sk, new) { reason::ACCELERATED } else { reason::FAILED };
    count(pair.owner.slot, hook::ACCEL, outcome);
}

/// Puts this end among the sockets that messages can be given to.
#[inline(always)]
fn join(ctx: &SockOpsContext, sk: *mut bpf_sock, mut end: End) -> bool {
    let map = core::ptr::from_ref(&ACCELERATED).cast_mut().cast();
    let mut key = end.key;
    // SAFETY: the socket was checked for null by the caller; the key is on the stack. The state comes
    // first: from the moment that the socket is in the map its messages are judged by it.
    unsafe {
        end.joined = SWITCHED.get_ptr(0).map_or(0, |switched| read_volatile(switched));
        ENDS.set(sk, end);
        let done = aya_ebpf::helpers::bpf_sock_hash_update(
            ctx.ops,
            map,
            core::ptr::from_mut(&mut key).cast(),
            BPF_NOEXIST.into(),
        );
        if done == 0 {
            let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
            let _ = ctx.set_cb_flags(flags as i32);
        }
        done == 0
    }
}

#[inline(always)]
fn accelerates(slot: u32) -> bool {
    pod(slot).is_some_and(|pod| pod.flags & pod_flags::ACCELERATE != 0)
}

#[inline(always)]
fn judge(owner: &OwnerKey) -> Verdict {
    let whole = OwnerKey { id: 0, slot: owner.slot, role: role::POD };
    // SAFETY: the values are read at once.
    if let Some(Owner { never, .. }) = unsafe { OWNERS.get(&whole) }
        && *never != 0
    {
        return *never;
    }
    // SAFETY: as above.
    match unsafe { OWNERS.get(owner) } {
        Some(Owner { never, .. }) if *never != 0 => *never,
        Some(Owner { seen, .. }) if *seen >= ENOUGH_SEEN => ACCELERATE,
        _ => LEARN,
    }
}

/// Asks to be told what happens on an application's socket.
#[inline(always)]
fn watch(ctx: &SockOpsContext) {
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_RTT_CB_FLAG | BPF_SOCK_OPS_STATE_CB_FLAG;
    let _ = ctx.set_cb_flags(flags as i32);
}

/// What an application sent has arrived, so that its socket is set up as it means to use it.
#[inline(always)]
pub fn observe(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    // SAFETY: checked for null by the caller; a field of the program's context.
    let (end, acknowledged) = unsafe { (ENDS.get(sk), field!(ctx.ops, bytes_acked)) };
    let Some(end) = end else { return };
    // The first is the SYN's.
    if acknowledged <= 1 || end.state > state::LEARNED {
        return;
    }
    let Some(offsets) = kernel::offsets() else { return };
    match kernel::manner(offsets, kernel::raw_socket(sk)) {
        Manner::Unowned => {}
        Manner::Never(reason) => never(&end.owner, reason),
        Manner::NonBlocking => {
            if end.state == state::OBSERVED {
                end.state = state::LEARNED;
                seen(&end.owner);
                // Its end is still looked at.
                let _ = ctx.set_cb_flags((ctx.cb_flags() & !BPF_SOCK_OPS_RTT_CB_FLAG) as i32);
            }
        }
    }
}

#[inline(always)]
fn seen(owner: &OwnerKey) {
    if let Some(known) = OWNERS.get_ptr_mut(owner) {
        // SAFETY: a map value; a count lost to another CPU means one more connection is learned from.
        unsafe { (*known).seen = (*known).seen.saturating_add(1) };
    } else {
        let _ = OWNERS.insert(owner, &Owner { seen: 1, never: 0 }, 0);
    }
}

/// No socket of this owner is accelerated from now on.
#[inline(always)]
pub fn never(owner: &OwnerKey, reason: u16) {
    if let Some(known) = OWNERS.get_ptr_mut(owner) {
        // SAFETY: a map value, written in one store.
        unsafe { (*known).never = reason.into() };
    } else {
        let _ = OWNERS.insert(owner, &Owner { seen: 0, never: reason.into() }, 0);
    }
}

/// A socket that is observed or accelerated changes its state.
#[inline(always)]
pub fn state_changed(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    let to = ctx.arg(1);
    match to {
        // Its own process ends it.
        TCP_FIN_WAIT1 | TCP_LAST_ACK => observe(ctx, sk),
        TCP_CLOSE => {
            // SAFETY: checked for null by the caller.
            let Some(end) = (unsafe { ENDS.get(sk) }) else { return };
            if end.connecting_seq != 0 {
                // Left there only if nobody accepted.
                let mut key = pair_key(ctx, true);
                key.connecting_seq = end.connecting_seq;
                key.accepting_seq = end.accepting_seq;
                let _ = PAIRS.remove(&key);
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn remote_port(ctx: &SockOpsContext) -> u16 {
    // SAFETY: the kernel hands a valid context.
    u32::from_be(unsafe { field!(ctx.ops, remote_port) }) as u16
}

#[inline(always)]
fn pair_key(ctx: &SockOpsContext, connecting: bool) -> PairKey {
    let ops: *const bpf_sock_ops = ctx.ops;
    // SAFETY: the kernel hands a valid context.
    let (local, remote, local_port, remote_port, sent, received) = unsafe {
        let v4 = field!(ops, family) == AF_INET;
        (
            address!(ops, v4, local_ip4, local_ip6),
            address!(ops, v4, remote_ip4, remote_ip6),
            field!(ops, local_port) as u16,
            u32::from_be(field!(ops, remote_port)) as u16,
            field!(ops, snd_nxt),
            field!(ops, rcv_nxt),
        )
    };
    if connecting {
        PairKey {
            connecting: local,
            accepting: remote,
            connecting_port: local_port,
            accepting_port: remote_port,
            connecting_seq: sent,
            accepting_seq: received,
        }
    } else {
        PairKey {
            connecting: remote,
            accepting: local,
            connecting_port: remote_port,
            accepting_port: local_port,
            connecting_seq: received,
            accepting_seq: sent,
        }
    }
}

//! A process of a pod that nobody knows gives a TCP socket its address: user space is told, so that a server is
//! enrolled before somebody asks it for the first time. Nothing is held or refused here.

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_get_netns_cookie, macros::cgroup_sock, programs::SockContext,
};

use crate::{
    context::field,
    hold::in_a_pod,
    maps::{NAMESPACES, NEWS, STRANGERS, settings},
};

const IPPROTO_TCP: u32 = 6;
const TAKE: i32 = 1;

#[cgroup_sock(post_bind4)]
pub fn mesh_bind4(ctx: SockContext) -> i32 {
    tell(&ctx);
    TAKE
}

#[cgroup_sock(post_bind6)]
pub fn mesh_bind6(ctx: SockContext) -> i32 {
    tell(&ctx);
    TAKE
}

#[inline(always)]
fn tell(ctx: &SockContext) {
    // SAFETY: the kernel hands a valid context.
    if unsafe { field!(ctx.sock, protocol) } != IPPROTO_TCP {
        return;
    }
    let Some(settings) = settings() else { return };
    // SAFETY: a helper on the program's own context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if settings.hold_ms == 0 || netns == settings.host_netns {
        return;
    }
    // SAFETY: only presence is looked at.
    let known = unsafe { NAMESPACES.get(&netns).is_some() || STRANGERS.get(&netns).is_some() };
    if !known && in_a_pod(settings) {
        // A buffer that is full: what the pod does next tells.
        let _ = NEWS.output::<u64>(netns, 0);
    }
}

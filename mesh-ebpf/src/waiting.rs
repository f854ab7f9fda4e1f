//! Tells the proxy, which runs it by hand, whether something that went past TCP still waits at a socket, and
//! whether that socket is out of acceleration. Attached nowhere.

use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::RawTracePointContext};

use mesh_common::accel::waits;

use crate::kernel;

/// The number of the process that runs it, which may be in a namespace where it has another. Written as the next.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/sys_enter")]
pub extern "C" fn mesh_process(_: *mut c_void) -> i32 {
    (bpf_get_current_pid_tgid() >> 32) as i32
}

/// One of [`waits`]. Arguments: the kernel address and the cookie of the socket.
///
/// Written without aya's macro, which makes every program of this kind return 0.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/sys_enter")]
pub extern "C" fn mesh_waiting(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    let (peer, cookie) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1));
    let Some(offsets) = kernel::offsets() else { return waits::OUT as i32 };
    if kernel::read::<u64>(peer, offsets.sock_cookie) != cookie {
        return waits::OUT as i32;
    }
    // The kernel takes its part of the socket down when the last process that is inside a send or a receive
    // by it has left, and not before.
    let waits = match kernel::nothing_waits(offsets, peer) {
        None => waits::OUT,
        Some(true) => waits::NOTHING,
        Some(false) => waits::SOMETHING,
    };
    waits as i32
}

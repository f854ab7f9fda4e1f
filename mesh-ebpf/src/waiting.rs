//! Tells the proxy, which runs it by hand, whether what it wrote still waits at its reader. Attached nowhere.

use core::ffi::c_void;

use aya_ebpf::programs::RawTracePointContext;

use crate::kernel;

/// 1: nothing waits, or the reader is gone. Arguments: the kernel address and the cookie of the reader.
///
/// Written without aya's macro, which makes every program of this kind return 0.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/sys_enter")]
pub extern "C" fn mesh_waiting(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    let (peer, cookie) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1));
    let Some(offsets) = kernel::offsets() else { return 1 };
    if kernel::read::<u64>(peer, offsets.sock_cookie) != cookie {
        return 1;
    }
    i32::from(kernel::nothing_waits(offsets, peer).unwrap_or(true))
}

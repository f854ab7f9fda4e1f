//! Makes `FIONREAD` count what came past TCP, for kernels that count only what came by TCP. Loaded only where the
//! self-test found that wrong; the answer is mended before the caller gets it.

use aya_ebpf::{
    helpers::{bpf_probe_read_user, bpf_probe_write_user},
    macros::fexit,
    programs::FExitContext,
};

use crate::kernel;

const FIONREAD: u32 = 0x541b;

/// Which function of the kernel answers is said by user space: it has the arguments socket, request, and where
/// the answer goes.
#[fexit(function = "tcp_ioctl")]
pub fn mesh_fionread(ctx: FExitContext) -> i32 {
    if ctx.arg::<u64>(1) as u32 != FIONREAD || ctx.arg::<u64>(3) as i32 != 0 {
        return 0;
    }
    let Some(offsets) = kernel::offsets() else { return 0 };
    let sk = kernel::raw(ctx.arg::<*mut u8>(0));
    let past = kernel::bytes_waiting(offsets, sk);
    if past == 0 {
        return 0;
    }
    let answer = kernel::raw(ctx.arg::<*mut u8>(2)) as *mut i32;
    // SAFETY: both helpers refuse what is not the calling process's own memory, which the kernel has just
    // written to.
    unsafe {
        if let Ok(told) = bpf_probe_read_user(answer) {
            let _ = bpf_probe_write_user(answer, &told.wrapping_add(past as i32));
        }
    }
    0
}

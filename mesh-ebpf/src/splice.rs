//! Sees who splices from TCP sockets. Bytes that went past TCP cannot be spliced: the reader would wait for
//! ever. A pod that splices has none of its flows accelerated from then on.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
    macros::{fentry, raw_tracepoint},
    programs::{FEntryContext, RawTracePointContext},
};
use mesh_common::{
    accel::{Offsets, OwnerKey, role},
    reason,
};

use crate::{accel::never, kernel, maps::NAMESPACES};

/// A thread of the kernel that does what a process has asked of io_uring.
const PF_IO_WORKER: u32 = 0x10;

#[fentry(function = "tcp_splice_read")]
pub fn mesh_splice(ctx: FEntryContext) -> i32 {
    if let Some(offsets) = kernel::offsets() {
        let socket = kernel::raw(ctx.arg::<*mut u8>(0));
        spliced(kernel::read(socket, offsets.socket_sock), offsets);
    }
    0
}

/// For kernels that let no program attach to a function: this is met by every read of a TCP socket, also one that
/// finds nothing, and the system call tells which are not by `splice`. What io_uring reads by its own threads counts
/// as spliced, since nothing tells.
#[raw_tracepoint(tracepoint = "tcp_rcv_space_adjust")]
pub fn mesh_splice_call(ctx: RawTracePointContext) -> i32 {
    let Some(offsets) = kernel::offsets() else { return 0 };
    // SAFETY: helpers on the current task.
    let (task, registers) = unsafe {
        let task = bpf_get_current_task_btf();
        (task, bpf_task_pt_regs(task))
    };
    let flags: u32 = kernel::read(kernel::raw(task), offsets.task_flags);
    if flags & PF_IO_WORKER == 0
        && kernel::read::<u32>(registers as u64, offsets.registers_call) != offsets.splice_call
    {
        return 0;
    }
    spliced(kernel::raw(ctx.arg::<*mut u8>(0)), offsets);
    0
}

/// Somebody has read from the socket at `sk` without a buffer of his own. The proxy does so too, inside the pod, from
/// sockets that are not accelerated.
#[inline(always)]
fn spliced(sk: u64, offsets: &Offsets) {
    if (bpf_get_current_pid_tgid() >> 32) as u32 == offsets.own_process {
        return;
    }
    let net: u64 = kernel::read(sk, offsets.sock_net);
    let cookie: u64 = kernel::read(net, offsets.net_cookie);
    // SAFETY: the value is copied at once.
    if let Some(slot) = unsafe { NAMESPACES.get(&cookie) }.copied() {
        never(&OwnerKey { id: 0, slot, role: role::POD }, reason::TCP_SPLICE);
    }
}

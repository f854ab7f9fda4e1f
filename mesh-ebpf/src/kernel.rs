//! Reads fields of the running kernel's own structures, at the offsets that user space took from its type
//! information. A read of memory that is gone gives garbage, never a fault: what is concluded here must
//! do no harm when wrong about a socket that is gone.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_get_current_task, bpf_probe_read_kernel},
};
use mesh_common::{accel::Offsets, reason};

use crate::maps::OFFSETS;

const O_NONBLOCK: u32 = 0o4000;
/// Bits of the pointer to a socket's `sk_psock` that say what kind of pointer it is.
const POINTER_FLAGS: u64 = 7;

/// The offsets, if user space found them.
#[inline(always)]
pub fn offsets() -> Option<&'static Offsets> {
    OFFSETS.get(0).filter(|offsets| offsets.known != 0)
}

/// A field; 0 if it cannot be read.
#[inline(always)]
pub fn read<T: Default>(base: u64, offset: u32) -> T {
    let at = (base + u64::from(offset)) as *const T;
    // SAFETY: the helper refuses what cannot be read.
    unsafe { bpf_probe_read_kernel(at) }.unwrap_or_default()
}

/// The address behind a pointer that the verifier knows as one, for arithmetic that it would refuse.
#[inline(always)]
pub fn raw<T>(pointer: *mut T) -> u64 {
    let held = pointer;
    // SAFETY: reads the variable itself.
    unsafe { bpf_probe_read_kernel((&raw const held).cast::<u64>()) }.unwrap_or_default()
}

#[inline(always)]
pub fn raw_socket(sk: *mut bpf_sock) -> u64 {
    raw(sk)
}

/// What a socket's owner does with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Nobody has accepted it yet.
    Unowned,
    NonBlocking,
    /// With a [`reason`].
    Never(u16),
}

/// How the socket at `sk` is used.
#[inline(always)]
pub fn manner(offsets: &Offsets, sk: u64) -> Manner {
    if read::<u64>(sk, offsets.protocol_above) != 0 {
        return Manner::Never(reason::TCP_PROTOCOL);
    }
    if read::<u64>(sk, offsets.sock_flags) >> (offsets.zerocopy_bit & 63) & 1 != 0 {
        return Manner::Never(reason::TCP_ZEROCOPY);
    }
    if read::<u32>(sk, offsets.sock_low_watermark) > 1 {
        return Manner::Never(reason::TCP_LOW_WATERMARK);
    }
    let socket: u64 = read(sk, offsets.sock_socket);
    if socket == 0 {
        return Manner::Unowned;
    }
    let file: u64 = read(socket, offsets.socket_file);
    if file == 0 {
        return Manner::Unowned;
    }
    if read::<u32>(file, offsets.file_flags) & O_NONBLOCK == 0 {
        return Manner::Never(reason::TCP_BLOCKING);
    }
    Manner::NonBlocking
}

/// Whether nothing that went past TCP waits at the socket; `None` if it can take nothing.
#[inline(always)]
pub fn nothing_waits(offsets: &Offsets, sk: u64) -> Option<bool> {
    let psock = read::<u64>(sk, offsets.sock_user_data) & !POINTER_FLAGS;
    if psock == 0 {
        return None;
    }
    let list = psock + u64::from(offsets.psock_queue);
    Some(read::<u64>(list, 0) == list)
}

/// Messages that are counted at most. More than the bound of what may wait is made of by any sane sender.
const MAX_MESSAGES: u32 = 512;

/// Bytes that went past TCP and wait at the socket.
#[inline(always)]
pub fn bytes_waiting(offsets: &Offsets, sk: u64) -> u32 {
    let psock = read::<u64>(sk, offsets.sock_user_data) & !POINTER_FLAGS;
    if psock == 0 {
        return 0;
    }
    let list = psock + u64::from(offsets.psock_queue);
    let mut bytes = 0_u32;
    let mut at: u64 = read(list, 0);
    for _ in 0..MAX_MESSAGES {
        if at == list || at == 0 {
            break;
        }
        let message = at - u64::from(offsets.message_list);
        bytes = bytes.wrapping_add(read::<u32>(message, offsets.message_size));
        at = read(at, 0);
    }
    bytes
}

/// A number that stands for the executable of the current process: its device and inode.
#[inline(always)]
pub fn executable(offsets: &Offsets) -> u64 {
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let memory: u64 = read(task, offsets.task_memory);
    let file: u64 = read(memory, offsets.memory_executable);
    let inode: u64 = read(file, offsets.file_inode);
    let number: u64 = read(inode, offsets.inode_number);
    let device: u32 = read(read(inode, offsets.inode_super_block), offsets.super_block_device);
    number ^ u64::from(device) << 40
}

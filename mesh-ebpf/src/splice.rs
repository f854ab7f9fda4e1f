//! Sees who splices from TCP sockets. Bytes that went past TCP cannot be spliced: the reader would wait for
//! ever. A pod that splices has none of its flows accelerated from then on.

use aya_ebpf::{macros::fentry, programs::FEntryContext};
use mesh_common::{
    accel::{OwnerKey, role},
    reason,
};

use crate::{accel::never, kernel, maps::NAMESPACES};

#[fentry(function = "tcp_splice_read")]
pub fn mesh_splice(ctx: FEntryContext) -> i32 {
    let Some(offsets) = kernel::offsets() else { return 0 };
    let socket = kernel::raw(ctx.arg::<*mut u8>(0));
    let sk: u64 = kernel::read(socket, offsets.socket_sock);
    let net: u64 = kernel::read(sk, offsets.sock_net);
    let cookie: u64 = kernel::read(net, offsets.net_cookie);
    // SAFETY: the value is copied at once.
    if let Some(slot) = unsafe { NAMESPACES.get(&cookie) }.copied() {
        never(&OwnerKey { id: 0, slot, role: role::POD }, reason::TCP_SPLICE);
    }
    0
}

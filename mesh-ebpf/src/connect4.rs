//! `connect` of IPv4 sockets, in any cgroup below the one it is attached to.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::Address;

use crate::{connect, context::field};

#[cgroup_sock_addr(connect4)]
pub fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel hands a valid context.
    let word = unsafe { field!(ctx.sock_addr, user_ip4) };
    connect::connect(&ctx, Address::from_v4(word))
}

//! `connect` of IPv6 sockets. One that connects to an IPv4-mapped address is an IPv4 connection
//! in everything that follows, and `Address` holds both alike.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::Address;

use crate::{connect, context::field};

#[cgroup_sock_addr(connect6)]
pub fn mesh_connect6(ctx: SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: the kernel hands a valid context.
    let words = unsafe {
        [
            field!(addr, user_ip6[0]),
            field!(addr, user_ip6[1]),
            field!(addr, user_ip6[2]),
            field!(addr, user_ip6[3]),
        ]
    };
    connect::connect(&ctx, Address(words))
}

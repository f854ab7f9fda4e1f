//! The kernel programs: one file per hook.
//!
//! They steer a pod's TCP connections to the listeners that mesh-node keeps inside the pod's
//! network namespace, and see that nothing leaves the pod around them. They decide only *whether*
//! a connection is steered; who may talk to whom is never decided here.
#![no_std]
#![no_main]

mod accel;
mod bind;
mod connect;
mod connect4;
mod connect6;
mod context;
mod fionread;
mod hand_off;
mod hold;
mod kernel;
mod maps;
mod packet;
mod reset;
mod setsockopt;
mod sk_lookup;
mod sk_msg;
mod sockops;
mod splice;
mod tc_guard;
mod tc_steer;
mod verdict;
mod waiting;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Unreachable: the verifier would not load a program that can come here.
    loop {}
}

/// Lets programs call helpers of the kernel that are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

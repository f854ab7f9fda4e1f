//! Keeps what an accelerated socket cannot be from being asked of it later on: a protocol above TCP, sends without
//! copies, a low-water mark of reading. The application is told that it cannot have it, as on a kernel without, and
//! no socket of its owner is accelerated from then on. All other calls and sockets are left alone.

use aya_ebpf::{macros::cgroup_sockopt, programs::SockoptContext};
use mesh_common::{accel::state, reason};

use crate::{accel::never, context::field, maps::ENDS};

const SOL_SOCKET: i32 = 1;
const SOL_TCP: i32 = 6;
const SO_RCVLOWAT: i32 = 18;
const SO_ZEROCOPY: i32 = 60;
const TCP_ULP: i32 = 31;
/// The kernel shows a program no more of a value, and takes the value unread if it is told that there is none.
const MOST_SHOWN: i32 = 4096;
const TAKE: i32 = 1;
const REFUSE: i32 = 0;

#[cgroup_sockopt(setsockopt)]
pub fn mesh_setsockopt(ctx: SockoptContext) -> i32 {
    // SAFETY: the kernel hands a valid context.
    let (level, name) = unsafe { (field!(ctx.sockopt, level), field!(ctx.sockopt, optname)) };
    let reason = match (level, name) {
        (SOL_TCP, TCP_ULP) => reason::TCP_PROTOCOL,
        (SOL_SOCKET, SO_ZEROCOPY) => reason::TCP_ZEROCOPY,
        (SOL_SOCKET, SO_RCVLOWAT) => reason::TCP_LOW_WATERMARK,
        _ => {
            // SAFETY: as above; a field that this hook may write.
            unsafe {
                if field!(ctx.sockopt, optlen) > MOST_SHOWN {
                    core::ptr::write_volatile(&raw mut (*ctx.sockopt).optlen, 0);
                }
            }
            return TAKE;
        }
    };
    // SAFETY: as above.
    let sk = unsafe { field!(ctx.sockopt, __bindgen_anon_1.sk) };
    if sk.is_null() {
        return TAKE;
    }
    // SAFETY: checked for null; a full socket.
    let Some(end) = (unsafe { ENDS.get(sk) }) else { return TAKE };
    if end.key == 0 || (end.state != state::CLEAN && end.state != state::ACCELERATED) {
        return TAKE;
    }
    never(&end.owner, reason);
    REFUSE
}

//! Gives what one application sends straight to the other application, where the proxy between them has said who
//! that is.
//!
//! Every message is judged for itself: straight, if nothing that was sent before is still on its way through
//! the proxy, otherwise as if there were no hand-off. Going back to the proxy needs no barrier: what went
//! straight is in the receiver's queue before the next message is sent. Straight to a receiver goes only what
//! comes before all that the proxy may later give it by TCP, because the proxy counts only what it gave past TCP.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{bindings::BPF_F_INGRESS, helpers::generated::bpf_ktime_get_ns, programs::SkMsgContext};
use mesh_common::{
    accel::{End, Offsets, STREAM_BYTES, state, way},
    hand_off::Direction,
    hook, reason, settings_flags,
};

use crate::{
    kernel::{self, Manner},
    maps::{ACCELERATED, DIRECTIONS, HANDED_OFF, count, settings},
    sk_msg::{PASS, TCP_ESTABLISHED, carried},
};

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// It goes to the other application.
    Yes,
    /// It goes to the proxy.
    No,
    /// So much waits at the receiver that this is a stream, which TCP's flow control is for.
    Stream,
}

/// Judges a message of `size` bytes whose sender is in the TCP state `connection`.
#[inline(always)]
pub fn give(ctx: &SkMsgContext, end: &mut End, offsets: &Offsets, connection: u32, size: u64) -> Given {
    // A sender that has heard the other side's end is left to the proxy, which knows whether that was the
    // other application's or its own: of a proxy that died nothing else is seen.
    if end.way != way::TO_PROXY || connection != TCP_ESTABLISHED {
        return Given::No;
    }
    if settings().is_none_or(|settings| settings.flags & settings_flags::HAND_OFF == 0) {
        return Given::No;
    }
    let Some(direction) = find(end) else { return Given::No };
    // SAFETY: a map value, whose words are written one at a time; the sender's socket is locked, so this
    // program alone writes those that are its own.
    let direction = unsafe { &mut *direction };
    let message = kernel::raw(ctx.msg);
    if end.straight != 0 && kernel::read::<u32>(message, offsets.message_start) != 0 {
        // The rest of the last message, of which the receiver could take only a part; all of it was counted.
        // SAFETY: as above; the proxy reads this.
        unsafe { write_volatile(&raw mut direction.bytes, direction.bytes.wrapping_sub(size)) };
    }
    // SAFETY: as above; the proxy writes these.
    let (receiver, forwarded) = unsafe {
        (read_volatile(&raw const direction.receiver), read_volatile(&raw const direction.forwarded))
    };
    if receiver == 0 || forwarded != end.bytes {
        return Given::No;
    }
    if direction.peer != 0 {
        match kernel::nothing_waits(offsets, direction.peer) {
            Some(true) => direction.waiting = 0,
            Some(false) => {}
            None => return Given::No,
        }
        if let Manner::Never(_) = kernel::manner(offsets, direction.peer) {
            // The proxy gives it what it gets now, and learns what it has become.
            return Given::No;
        }
    }
    if direction.waiting + size > STREAM_BYTES {
        return Given::Stream;
    }
    if ACCELERATED.redirect_msg(ctx, receiver, BPF_F_INGRESS.into()) != PASS.into() {
        return Given::No;
    }
    if direction.peer == 0 {
        direction.peer = kernel::read(message, offsets.message_receiver);
        count(end.owner.slot, hook::ACCEL, reason::HANDED_OFF);
    }
    end.state = state::ACCELERATED;
    end.straight = 1;
    direction.waiting += size;
    // SAFETY: as above; the proxy reads these.
    unsafe {
        write_volatile(&raw mut direction.messages, direction.messages + 1);
        write_volatile(&raw mut direction.bytes, direction.bytes + size);
        write_volatile(&raw mut direction.last_ns, bpf_ktime_get_ns());
    }
    carried(end.owner.slot, size);
    Given::Yes
}

/// The direction that begins at this end.
#[inline(always)]
fn find(end: &mut End) -> Option<*mut Direction> {
    if end.direction == 0 {
        // SAFETY: the value is copied at once.
        end.direction = unsafe { HANDED_OFF.get(&end.key) }.copied()?;
    }
    let direction = DIRECTIONS.get_ptr_mut(end.direction)?;
    // SAFETY: a map value.
    if unsafe { read_volatile(&raw const (*direction).sender) } != end.key {
        end.direction = 0;
        return None;
    }
    Some(direction)
}

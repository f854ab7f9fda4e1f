//! Judges every message that an accelerated socket sends: to the other end past TCP, or by TCP.
//!
//! A direction is clean until its first byte, then goes past TCP, and from the moment that one byte goes by
//! TCP all do: the reader takes what came past TCP first, so the other order would mix up the stream. Only
//! the proxy reads what came both ways; an application may take a short read for the end of what there is,
//! and would sleep on the rest.

use core::ptr::write_volatile;

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, sk_action},
    macros::sk_msg,
    programs::SkMsgContext,
};
use mesh_common::{
    accel::{End, MAX_WAITING_BYTES, Offsets, STREAM_BYTES, state, way},
    hook, reason,
};

use crate::{
    accel::never,
    context::field,
    hand_off::{self, Given},
    kernel::{self, Manner},
    maps::{ACCELERATED, CARRIED, ENDS, SWITCHED, count},
};

pub const PASS: u32 = sk_action::SK_PASS;
pub const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE_WAIT: u32 = 8;

#[sk_msg]
pub fn mesh_sk_msg(ctx: SkMsgContext) -> u32 {
    // SAFETY: the kernel hands a valid context; the sending socket is a full one.
    let (sk, size) = unsafe { (field!(ctx.msg, __bindgen_anon_3.sk), field!(ctx.msg, size)) };
    // SAFETY: as above, and never null.
    let Some(end) = (unsafe { ENDS.get(sk) }) else { return PASS };
    if end.state != state::CLEAN && end.state != state::ACCELERATED {
        return PASS;
    }
    // SAFETY: as above.
    let connection = unsafe { field!(sk, state) };
    if connection != TCP_ESTABLISHED && connection != TCP_CLOSE_WAIT {
        // Sending has ended: TCP knows the error.
        return PASS;
    }
    let Some(offsets) = kernel::offsets() else { return PASS };
    if end.state == state::CLEAN
        && kernel::read::<u32>(kernel::raw_socket(sk), offsets.write_seq) != end.first_seq
    {
        return leave(end, reason::LEFT_UNCLEAN);
    }
    match hand_off::give(&ctx, end, offsets, connection, size.into()) {
        Given::Yes => return PASS,
        Given::No => end.straight = 0,
        Given::Stream => {
            // The proxy has read all that it was given.
            end.waiting = 0;
            return leave(end, reason::LEFT_STREAM);
        }
    }
    if let Err(reason) = check_reader(end, offsets, size.into()) {
        return leave(end, reason);
    }
    // The result for a missing socket is to drop the message.
    if ACCELERATED.redirect_msg(&ctx, end.key ^ 1, BPF_F_INGRESS.into()) != PASS.into() {
        return leave(end, reason::LEFT_NO_PEER);
    }
    if end.peer == 0 {
        end.peer = kernel::read(kernel::raw(ctx.msg), offsets.message_receiver);
        end.peer_cookie = kernel::read(end.peer, offsets.sock_cookie);
    }
    end.state = state::ACCELERATED;
    end.waiting += u64::from(size);
    end.messages += 1;
    end.bytes += u64::from(size);
    carried(end.owner.slot, size.into());
    PASS
}

/// Counts a message that went past TCP.
#[inline(always)]
pub fn carried(slot: u32, size: u64) {
    if let Some(carried) = CARRIED.get_ptr_mut(slot) {
        // SAFETY: this CPU's own value; programs of one CPU do not interrupt each other here.
        unsafe {
            (*carried).messages += 1;
            (*carried).bytes += size;
        }
    }
}

/// Whether the other end may get `size` bytes past TCP.
#[inline(always)]
fn check_reader(end: &mut End, offsets: &Offsets, size: u64) -> Result<(), u16> {
    let empty = if end.peer == 0 {
        // Nothing was sent.
        end.waiting == 0
    } else {
        kernel::nothing_waits(offsets, end.peer).ok_or(reason::LEFT_NO_PEER)?
    };
    if empty {
        end.waiting = 0;
    }
    if end.way == way::TO_APPLICATION {
        // The kernel tells an application wrongly how much it can read if some of that came by TCP. So its
        // socket gets none: the proxy keeps the bound, and takes the socket out of the map for streams.
        if end.peer != 0
            && end.messages > 1
            && let Manner::Never(manner) = kernel::manner(offsets, end.peer)
        {
            // What is accelerated already stays so: an application that uses its sockets in two ways is
            // left alone from now on.
            never(&end.owner, manner);
        }
        return Ok(());
    }
    if empty && end.leaving != 0 {
        return Err(end.leaving as u16);
    }
    let total = end.waiting + size;
    if total > MAX_WAITING_BYTES {
        return Err(reason::LEFT_STREAM);
    }
    if total > STREAM_BYTES && end.leaving == 0 {
        end.leaving = reason::LEFT_STREAM.into();
    }
    Ok(())
}

/// This message and all later ones of the direction go by TCP.
#[inline(always)]
fn leave(end: &mut End, reason: u16) -> u32 {
    if end.waiting != 0
        && let Some(switched) = SWITCHED.get_ptr_mut(0)
    {
        // Before the first byte goes by TCP.
        // SAFETY: a map value, written in one store.
        unsafe { write_volatile(switched, end.key) };
    }
    end.state = state::TCP;
    count(end.owner.slot, hook::ACCEL, reason);
    PASS
}

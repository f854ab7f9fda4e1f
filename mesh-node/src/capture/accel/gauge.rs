//! What the proxy's own sockets ask about what they wrote past TCP.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use mesh_common::accel::{End, STREAM_BYTES, state, waits, way};

use super::super::bpf::{self, Map, Mapped};
use super::super::sockopt;
use crate::model::workload::{Gauge, Look, PastTcp, Waiting};

/// The storage of sockets, and the program that looks at a reader's queue.
#[derive(Debug)]
pub(in crate::capture) struct KernelGauge {
    pub(super) ends: Map<i32, End>,
    pub(super) waiting: OwnedFd,
    pub(super) switched: Mapped,
    /// The sockets that messages can be given to.
    pub(super) sockets: Map<u64, u32>,
    /// Directions that may go straight to another application, by the key of the socket where they begin.
    pub(super) handed_off: Map<u64, u32>,
}

impl KernelGauge {
    fn end(&self, socket: BorrowedFd<'_>) -> Option<End> {
        self.ends.get(&socket.as_raw_fd()).ok().flatten()
    }

    /// How a connected socket of the proxy is accelerated; `None` if it is not.
    pub(in crate::capture) fn past_tcp(self: &Arc<Self>, socket: BorrowedFd<'_>) -> Option<PastTcp> {
        let end = self.end(socket).filter(|end| end.key != 0)?;
        let bounded = end.way == way::TO_APPLICATION;
        Some(PastTcp { bounded, since: end.joined, gauge: self.clone() })
    }
}

impl KernelGauge {
    /// One of [`waits`]; `None` if the kernel cannot say, which it could before.
    fn at(&self, socket: u64, cookie: u64) -> Option<u32> {
        bpf::run(self.waiting.as_fd(), &[socket, cookie]).ok()
    }

    /// Takes a socket out of the map. What still waits at it would be lost.
    fn remove(&self, key: u64) {
        if let Err(error) = self.sockets.remove(&key) {
            tracing::warn!("a socket stays accelerated: {error}");
        }
    }

    fn look_at(&self, socket: BorrowedFd<'_>) -> Option<Look> {
        let Some(end) = self.end(socket).filter(|end| end.key != 0) else { return Some(Look::Plain) };
        let cookie = sockopt::cookie(&socket).ok()?;
        if self.at(end.own, cookie)? == waits::OUT {
            return Some(Look::Plain);
        }
        // Before anything was sent it is not known who is there.
        if end.peer == 0 {
            return None;
        }
        let by_tcp = || end.state == state::TCP || sockopt::received_by_tcp(&socket).is_ok_and(|n| n > 0);
        // The other application may be giving it something.
        if self.handed_off.get(&(end.key ^ 1)).ok()?.is_some() {
            return None;
        }
        let mut peer = self.at(end.peer, end.peer_cookie)?;
        if peer == waits::NOTHING && by_tcp() {
            // Nothing comes there any more: its only sender is the caller.
            self.remove(end.key ^ 1);
            peer = self.at(end.peer, end.peer_cookie).unwrap_or(waits::SOMETHING);
            if peer != waits::OUT {
                return Some(Look::Left);
            }
        }
        if peer != waits::OUT {
            return None;
        }
        // Only now is it certain that nothing more comes here past TCP.
        if self.at(end.own, cookie)? != waits::NOTHING {
            return Some(Look::Left);
        }
        self.remove(end.key);
        Some(Look::Plain)
    }
}

impl Gauge for KernelGauge {
    fn leave(&self, socket: BorrowedFd<'_>) {
        let Some(end) = self.end(socket).filter(|end| end.key != 0) else { return };
        self.remove(end.key ^ 1);
    }

    fn look(&self, socket: BorrowedFd<'_>) -> Look {
        self.look_at(socket).unwrap_or(Look::Stays)
    }

    fn last_switch(&self) -> u64 {
        self.switched.load()
    }

    fn waiting(&self, socket: BorrowedFd<'_>) -> Waiting {
        let Some(end) = self.end(socket) else { return Waiting::ByTcp };
        match end.state {
            state::CLEAN => Waiting::Nothing,
            state::ACCELERATED => match self.at(end.peer, end.peer_cookie) {
                Some(waits::SOMETHING) => Waiting::Something,
                Some(_) if end.waiting > STREAM_BYTES => Waiting::NothingOfStream,
                // If the kernel cannot say, the bound is kept by the program alone.
                Some(_) | None => Waiting::Nothing,
            },
            _ => Waiting::ByTcp,
        }
    }
}

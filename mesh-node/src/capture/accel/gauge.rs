//! What the proxy's own sockets ask about what they wrote past TCP.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use mesh_common::accel::{End, STREAM_BYTES, state, way};

use super::super::bpf::{self, Map, Mapped};
use crate::model::workload::{Gauge, PastTcp, Waiting};

/// The storage of sockets, and the program that looks at a reader's queue.
#[derive(Debug)]
pub(in crate::capture) struct KernelGauge {
    pub(super) ends: Map<i32, End>,
    pub(super) waiting: OwnedFd,
    pub(super) switched: Mapped,
    /// The sockets that messages can be given to.
    pub(super) sockets: Map<u64, u32>,
}

impl KernelGauge {
    fn end(&self, socket: BorrowedFd<'_>) -> Option<End> {
        self.ends.get(&socket.as_raw_fd()).ok().flatten()
    }

    /// How a connected socket of the proxy is accelerated; `None` if it is not.
    pub(in crate::capture) fn past_tcp(self: &Arc<Self>, socket: BorrowedFd<'_>) -> Option<PastTcp> {
        let end = self.end(socket).filter(|end| end.key != 0)?;
        let bounded = end.way == way::TO_APPLICATION;
        Some(PastTcp { bounded, since_ns: end.joined, gauge: self.clone() })
    }
}

impl Gauge for KernelGauge {
    fn leave(&self, socket: BorrowedFd<'_>) {
        let Some(end) = self.end(socket).filter(|end| end.key != 0) else { return };
        if let Err(error) = self.sockets.remove(&(end.key ^ 1)) {
            tracing::warn!("a socket stays accelerated: {error}");
        }
    }

    fn last_switch_ns(&self) -> u64 {
        self.switched.load()
    }

    fn waiting(&self, socket: BorrowedFd<'_>) -> Waiting {
        let Some(end) = self.end(socket) else { return Waiting::ByTcp };
        match end.state {
            state::CLEAN => Waiting::Nothing,
            state::ACCELERATED => match bpf::run(self.waiting.as_fd(), &[end.peer, end.peer_cookie]) {
                Ok(0) => Waiting::Something,
                Ok(_) if end.waiting > STREAM_BYTES => Waiting::NothingOfStream,
                // A kernel that cannot say now could before: the bound is then kept by the program alone.
                Ok(_) | Err(_) => Waiting::Nothing,
            },
            _ => Waiting::ByTcp,
        }
    }
}

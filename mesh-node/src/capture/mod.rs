//! Capture: brings the connections of enrolled pods to this process, told by the network namespace
//! they were made in.
//!
//! Follows the pods file, keeps listeners and kernel programs inside each pod's namespace, opens
//! sockets there, and emits [`Captured`] connections to the workers. It decides nothing about where
//! a connection goes: that begins with the listener stage.
//!
//! Reading order: [`settings`], [`pods`] (what is wanted), `manager` (who acts), `enrol` (what is
//! done for one pod), `programs` and `bpf` (the kernel's part), `netns` and `ports` (sockets inside a
//! pod), `worker` (accepting), `lock`, `record` and [`mod@cleanup`] (putting back). `accel` makes
//! it faster and may be left out.

mod accel;
mod addresses;
mod bpf;
mod cleanup;
mod counters;
mod enrol;
mod error;
mod kernel_log;
mod leaving;
mod lock;
mod manager;
mod memory;
mod netlink;
mod netns;
mod newcomers;
pub mod pods;
mod ports;
mod programs;
mod record;
mod release;
pub mod settings;
mod sockopt;
mod start;
mod status;
mod sysctl;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::model::listener::Direction;
use crate::model::workload::Workload;

pub use accel::{Known, Report, Tested, Traffic};
pub use addresses::Addresses;
pub use cleanup::{Removed, cleanup};
pub use counters::Counter;
pub use error::{CaptureError, PodProblem};
pub use memory::{LocalSockets, MemoryCapture, local_workload, memory_capture};
pub use settings::Settings;
pub use start::{Capture, start};
pub use status::{PodStatus, Status, status};
pub use worker::WorkerCapture;

/// One captured connection.
#[derive(Debug)]
pub struct Captured {
    pub io: TcpStream,
    /// The client's address. Outbound: the pod's own. IPv4-mapped addresses are IPv4.
    pub source: SocketAddr,
    /// Where the client connected to: a service's address as the application gave it (outbound), or
    /// the pod's address and port after every translation (inbound).
    pub original_dst: SocketAddr,
    /// `Inbound` or `Outbound`, seen from the pod.
    pub direction: Direction,
    /// The pod in whose namespace the connection was accepted.
    pub workload: Arc<Workload>,
}

/// Where a worker gets its connections from.
pub trait CaptureSource {
    /// The next captured connection of this worker, or `None` when there will be no more. Safe to
    /// cancel: no connection is lost. To be called inside a `LocalSet`.
    fn accept(&mut self) -> impl Future<Output = Option<Captured>>;
}

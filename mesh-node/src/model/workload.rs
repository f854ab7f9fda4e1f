//! A pod of this node that is enrolled, and how sockets are opened on its behalf.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::Str;
use crate::budget::Budget;
use crate::telemetry::peer::LocalPeer;

/// Opens sockets inside the network namespace of one pod, so that all traffic of the workload is ordinary
/// traffic of that pod. The test implementation opens them in the current namespace.
///
/// Sockets are non-blocking, not yet connected, and are never captured again.
pub trait SocketFactory: Send + Sync + std::fmt::Debug {
    /// A TCP socket for a connection from the pod to the network, from `source` if the configuration names
    /// one (port 0: any).
    fn to_network(&self, remote: SocketAddr, source: Option<SocketAddr>) -> io::Result<socket2::Socket>;
    /// A TCP socket for a connection to the pod's own application that carries the address of the client
    /// (`source`), as if no proxy were between.
    fn to_application(&self, source: SocketAddr, remote: SocketAddr) -> io::Result<socket2::Socket>;
}

/// A pod of this node whose traffic is steered here.
#[derive(Debug)]
pub struct Workload {
    /// The pod's `metadata.uid`; the only identity that is never reused.
    pub uid: Str,
    pub namespace: Str,
    pub name: Str,
    pub service_account: Str,
    pub labels: BTreeMap<String, String>,
    /// What the workload tells of itself.
    pub peer: Arc<LocalPeer>,
    pub ips: Vec<IpAddr>,
    pub sockets: Arc<dyn SocketFactory>,
    /// What the workload may use of this process, and what it uses now. Outlives edits of the pod.
    pub limits: Arc<WorkloadLimits>,
}

/// Bounds that keep one pod from starving its neighbours.
#[derive(Debug, Default)]
pub struct WorkloadLimits {
    /// Captured connections open at once, both directions. 0 is no limit.
    pub max_connections: u32,
    /// Captured connections open now.
    pub connections: AtomicU32,
    /// Connections reset because of `max_connections`.
    pub refused: AtomicU64,
    /// Bytes held for the workload.
    pub buffers: Arc<Budget>,
}

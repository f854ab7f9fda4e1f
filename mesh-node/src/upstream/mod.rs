//! Connections to endpoints: opening them in the right network namespace, TLS, pools, copying bytes.
//!
//! Everything here belongs to one worker. Connections are never shared between workloads.

mod beside;
mod connect;
pub mod copy;
mod error;
mod exchange;
mod pool;
mod pooled;
mod probe;
mod stream;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::cluster::{ClusterState, Host};
use crate::model::http_filter::AlpnList;
use crate::model::workload::Workload;

pub use beside::Beside;
pub use connect::{Connection, connect, connect_within_limits};
pub use error::{ErrorKind, UpstreamError};
pub use exchange::{Exchange, Upstreams};
pub use probe::Prober;
pub use stream::UpstreamStream;

/// Where a connection or request goes, and on whose behalf.
#[derive(Debug, Clone)]
pub struct Target {
    /// `None`: a bound listener's connection; sockets are the process's own.
    pub workload: Option<Arc<Workload>>,
    pub cluster: Arc<ClusterState>,
    pub host: Arc<Host>,
    pub path: UpstreamPath,
    /// What TLS offers in place of its context's protocols (`istio.alpn`).
    pub alpn: Option<AlpnList>,
}

/// Which way out of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamPath {
    /// To the network, with the pod's own address.
    Network,
    /// The inbound half: to the pod's own application, from the client's address.
    Application { source: SocketAddr },
}

//! Connections to endpoints: opening them in the right network namespace, TLS, pools, copying bytes.
//!
//! Everything here belongs to one worker. Connections are never shared between workloads.

mod beside;
mod connect;
pub mod copy;
mod error;
mod exchange;
mod handed;
mod neighbour;
pub mod pair;
mod pool;
mod pooled;
mod probe;
mod proxy_header;
mod splice;
mod stream;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::cluster::{ClusterState, Host};
use crate::model::cluster::UpstreamProtocol;
use crate::model::http_filter::AlpnList;
use crate::model::workload::Workload;

pub use beside::Beside;
pub use connect::{Connection, connect, connect_within_limits};
pub use error::{ErrorKind, UpstreamError};
pub use exchange::{Exchange, Upstreams};
pub use neighbour::{Handed, Neighbours, Speaks};
pub use probe::{Current, Prober};
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
    /// Of a connection that is one client's: its address, and where it wanted to go.
    pub client: Option<(SocketAddr, SocketAddr)>,
    /// What TLS offers where neither `alpn` nor its context names a protocol.
    pub implied_alpn: ImpliedAlpn,
}

/// Protocols that follow from what is to be spoken.
pub type ImpliedAlpn = &'static [&'static [u8]];

/// What requests to a cluster of this protocol imply (Envoy: `applicationProtocolFallback`).
pub fn implied_alpn(protocol: UpstreamProtocol, downstream: http::Version) -> ImpliedAlpn {
    match protocol {
        UpstreamProtocol::Http2 => &[b"h2"],
        UpstreamProtocol::Auto => &[b"h2", b"http/1.1"],
        UpstreamProtocol::Downstream if downstream == http::Version::HTTP_2 => &[b"h2"],
        UpstreamProtocol::Http1 | UpstreamProtocol::Downstream => &[b"http/1.1"],
    }
}

/// Which way out of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamPath {
    /// To the network, with the pod's own address.
    Network,
    /// The inbound half: to the pod's own application, from the client's address.
    Application { source: SocketAddr },
}

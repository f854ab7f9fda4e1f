//! A pod of this node that is enrolled, and how sockets are opened on its behalf.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use super::Str;
use super::listener::Cidr;
use super::pod::PodDetails;
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
    /// How bytes of a connected socket of this pod, accepted or opened here, go past TCP; `None` if they do not.
    fn past_tcp(&self, socket: BorrowedFd<'_>) -> Option<PastTcp> {
        let _ = socket;
        None
    }
    /// What hands the connection off whose one half is between these two sockets of the pod; `None` if that
    /// never happens.
    fn hand_off(&self, half: &HalfOfConnection<'_>) -> Option<Box<dyn HandOff>> {
        let _ = half;
        None
    }
    /// For a connection to the pod's own application that goes by TCP: what tells when the next one would
    /// not, if that may come.
    fn trial(&self, remote: SocketAddr) -> Option<Arc<dyn Trial>> {
        let _ = remote;
        None
    }
}

/// An application is being watched: whether its connections may go past TCP is not known yet.
pub trait Trial: Send + Sync + std::fmt::Debug {
    /// Whether new connections go past TCP now; `None` while that is not known.
    fn passed(&self) -> Option<bool>;
}

/// A socket whose bytes go to the other end past TCP.
#[derive(Debug, Clone)]
pub struct PastTcp {
    /// The other end is an application's: who writes must see to it that not too much waits there.
    pub bounded: bool,
    /// What [`Gauge::last_switch`] was when that began.
    pub since: u64,
    pub gauge: Arc<dyn Gauge>,
}

/// Looks at the other end's queue.
pub trait Gauge: Send + Sync + std::fmt::Debug {
    fn waiting(&self, socket: BorrowedFd<'_>) -> Waiting;
    /// Takes the other end, an application's socket at which nothing may wait, out of acceleration: what either
    /// side sends from now on goes by TCP.
    fn leave(&self, socket: BorrowedFd<'_>);
    /// Sees whether the socket carries a stream by TCP by now, and takes first the other end, then the socket itself
    /// out of acceleration, each when nothing can be lost by it.
    fn look(&self, socket: BorrowedFd<'_>) -> Look;
    /// Which direction last went to TCP whose reader still had something to read that went past TCP: on the
    /// whole node, told before the first byte goes by TCP. No direction is told twice.
    fn last_switch(&self) -> u64;
}

/// What the proxy copies between: a client and an endpoint.
#[derive(Debug)]
pub struct HalfOfConnection<'a> {
    /// The endpoint is the pod's own application, else the client is.
    pub inbound: bool,
    /// The sockets towards the client and the endpoint, if what is written to one is what is read from the
    /// other. Open for as long as what hands off is used.
    pub plain: Option<[BorrowedFd<'a>; 2]>,
}

/// Lets two applications of this node send each other bytes past the proxy, which goes on copying what they give
/// to it. Dropped, or told to end, it lets everything go through the proxy.
pub trait HandOff: Send + Sync + std::fmt::Debug {
    /// Nothing is held back in this half: it has written so many bytes to the endpoint and to the client since
    /// the connection began.
    fn all_written(&self, received: u64, sent: u64);
    /// What went past the proxy.
    fn past_proxy(&self) -> PastProxy;
    /// From now on everything goes through the proxy.
    fn end(&self);
}

/// Bytes of a connection that applications sent each other straight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PastProxy {
    /// From the client.
    pub received: u64,
    /// To the client.
    pub sent: u64,
    /// How long ago the last did; `None`: none did.
    pub quiet: Option<Duration>,
}

/// What waits at the other end of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    Nothing,
    /// The same after so much had waited that it was a stream.
    NothingOfStream,
    Something,
    /// What is sent goes by TCP, from now on and for good.
    ByTcp,
}

/// How far a socket is on its way back to TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It is as it was.
    Stays,
    /// What is sent here and there goes by TCP, while something that went past TCP may still wait here.
    Left,
    /// It is an ordinary socket again.
    Plain,
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
    pub annotations: BTreeMap<String, String>,
    pub details: PodDetails,
    /// What the workload tells of itself.
    pub peer: Arc<LocalPeer>,
    pub ips: Vec<IpAddr>,
    pub sockets: Arc<dyn SocketFactory>,
    /// What the workload may use of this process, and what it uses now. Outlives edits of the pod.
    pub limits: Arc<WorkloadLimits>,
    pub hand_over: HandOver,
    /// Started when the pod leaves the mesh.
    pub drain: Arc<crate::drain::Signal>,
}

/// Which connections between pods of this node need no socket between them (in-memory hand-over).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HandOver {
    /// The pod takes part, as a client and as a server.
    pub on: bool,
    /// Ports whose connections are not the proxy's on their way in.
    pub excluded_ports: Vec<u16>,
    /// Clients whose connections are not the proxy's on their way in.
    pub excluded_sources: Vec<Cidr>,
}

impl HandOver {
    /// Would a connection from `source` to the pod's `port` come to its inbound half, and may it do so without a
    /// socket?
    pub fn takes(&self, source: IpAddr, port: u16) -> bool {
        self.on
            && !self.excluded_ports.contains(&port)
            && !self.excluded_sources.iter().any(|range| range.contains(source))
    }
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

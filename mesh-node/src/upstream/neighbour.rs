//! Pods of this node as targets: a connection to the inbound half of one needs no socket.
//!
//! Decides which connections are handed over in memory. What serves them is handed in, since the stages
//! before this one do. A hand-over goes where a connection would: whether one may be made is asked of the network
//! from time to time, so that who is kept away by a NetworkPolicy stays away.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connect::knock;
use super::error::UpstreamError;
use super::{Target, UpstreamPath};
use crate::http::h1::handed::{Offer, Offered, offer};
use crate::model::Str;
use crate::model::cluster::Transport;
use crate::model::workload::Workload;
use crate::pipe::{Pipe, pipe};

/// For so long the network's word counts that connections between two pods are let through.
const ADMISSION: Duration = Duration::from_secs(10);
/// Ports that client ends seem to have: those of ordinary clients.
const FIRST_PORT: u16 = 32768;
const PORTS: u16 = 28232;

/// The inbound halves of the pods of this node.
pub trait Neighbours {
    /// The enrolled pod that has this address.
    fn pod(&self, ip: IpAddr) -> Option<Arc<Workload>>;
    /// A connection from `source` is about to come that only asks the network.
    fn expect_knock(&self, source: SocketAddr);
    /// Serves a connection to the end.
    fn serve(&self, handed: Handed);
}

/// What a client's end says first, where that is known before it says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Anything,
    Http1,
    Http2,
}

/// A connection that is handed to the inbound half of a pod.
pub struct Handed {
    pub pipe: Pipe,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub workload: Arc<Workload>,
    pub speaks: Speaks,
    /// The client would rather hand over messages.
    pub offer: Option<Offer>,
}

/// The client's end.
pub(super) struct Handing {
    pub(super) pipe: Pipe,
    pub(super) local: SocketAddr,
    pub(super) offered: Option<Offered>,
}

/// Who lives on this node, as far as a worker's upstream connections care.
#[derive(Clone, Default)]
pub(super) struct Neighbourhood(Rc<Inner>);

#[derive(Default)]
struct Inner {
    neighbours: RefCell<Option<Rc<dyn Neighbours>>>,
    admitted: RefCell<HashMap<(Str, SocketAddr), Instant, ahash::RandomState>>,
    next_port: Cell<u16>,
}

impl Neighbourhood {
    pub(super) fn set(&self, neighbours: Option<Rc<dyn Neighbours>>) {
        *self.0.neighbours.borrow_mut() = neighbours;
    }

    /// Hands a connection over, where the target is a pod of this node that takes it so.
    ///
    /// # Errors
    /// The network lets no connection through, as connecting would have found.
    pub(super) async fn hand_over(
        &self,
        target: &Target,
        speaks: Speaks,
    ) -> Result<Option<Handing>, UpstreamError> {
        let Some((neighbours, workload, source)) = self.neighbour(target) else { return Ok(None) };
        self.ask_network(target, &*neighbours, source).await?;
        let source = SocketAddr::new(source, self.next_port());
        let (near, far) = pipe();
        let (offer, offered) = match speaks {
            Speaks::Http1 => Some(offer()).unzip(),
            _ => (None, None),
        };
        // What comes first on a wire is a ClientHello, or a PROXY header, then.
        let speaks = if matches!(target.host.transport, Transport::Raw) { speaks } else { Speaks::Anything };
        let destination = target.host.address;
        neighbours.serve(Handed { pipe: far, source, destination, workload, speaks, offer });
        Ok(Some(Handing { pipe: near, local: source, offered }))
    }

    fn neighbour(&self, target: &Target) -> Option<(Rc<dyn Neighbours>, Arc<Workload>, IpAddr)> {
        let remote = target.host.address;
        let own = target.workload.as_ref().filter(|own| own.hand_over.on)?;
        if target.path != UpstreamPath::Network || target.cluster.config.bind_source(remote).is_some() {
            return None;
        }
        let source = *own.ips.iter().find(|ip| ip.is_ipv4() == remote.is_ipv4())?;
        let neighbours = self.0.neighbours.borrow().clone()?;
        let pod = neighbours.pod(remote.ip())?;
        let takes = pod.uid != own.uid && pod.hand_over.takes(source, remote.port()) && !pod.drain.started();
        takes.then_some((neighbours, pod, source))
    }

    /// Connects and closes again, unless that was done lately.
    async fn ask_network(
        &self,
        target: &Target,
        neighbours: &dyn Neighbours,
        source: IpAddr,
    ) -> Result<(), UpstreamError> {
        let Some(own) = &target.workload else { return Ok(()) };
        let remote = target.host.address;
        let key = (own.uid.clone(), remote);
        if self.0.admitted.borrow().get(&key).is_some_and(|since| since.elapsed() < ADMISSION) {
            return Ok(());
        }
        let limit = target.cluster.config.connect_timeout;
        knock(own, source, remote, limit, |from| neighbours.expect_knock(from)).await?;
        let mut admitted = self.0.admitted.borrow_mut();
        admitted.retain(|_, since| since.elapsed() < ADMISSION);
        admitted.insert(key, Instant::now());
        Ok(())
    }

    fn next_port(&self) -> u16 {
        let next = self.0.next_port.get();
        self.0.next_port.set((next + 1) % PORTS);
        FIRST_PORT + next
    }
}

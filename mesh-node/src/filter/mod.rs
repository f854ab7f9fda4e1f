//! Network filters: what serves a connection once its filter chain is chosen. A closed set; each is compiled
//! when configuration changes.

pub mod http;
mod istio_labels;
mod istio_tcp;
pub mod mongo;
mod network;
mod rbac;
pub mod tcp_proxy;
mod tcp_relay;
mod tcp_tunnel;

use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;

use nix::net::if_::InterfaceFlags;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::cluster::ClusterManager;
use crate::http::h1::handed::Offer;
use crate::model::Published;
use crate::model::listener::FilterChain;
use crate::model::network::{NetworkFilter, TcpProxy};
use crate::stream::{Bare, Stream};
use crate::telemetry::peer::LocalPeer;
use crate::telemetry::stream_info::ConnectionInfo;
use crate::upstream::Upstreams;
pub use tcp_relay::Copying;

/// What the streams of one worker share.
#[derive(Debug)]
pub struct WorkerContext {
    pub published: Published,
    pub clusters: Arc<ClusterManager>,
    /// Connections to endpoints, kept for HTTP requests.
    pub upstreams: Upstreams,
    pub timers: http::Timers,
    pub date: Rc<http::DateCache>,
    /// Peers that were decoded before.
    pub peers: Rc<http::Peers>,
    pub scripts: Rc<http::Machines>,
    /// Spans on their way to collectors.
    pub spans: Rc<http::Reporters>,
    /// Who streams of no workload speak for: the node of the bootstrap.
    pub node: Arc<LocalPeer>,
    /// This machine's, as Envoy chooses it: what `x-forwarded-for` says in place of a loopback peer.
    pub address: IpAddr,
}

impl WorkerContext {
    /// The context of a worker that has served nothing yet.
    pub fn new(published: Published, clusters: Arc<ClusterManager>, node: Arc<LocalPeer>) -> Self {
        Self {
            published,
            clusters,
            upstreams: Upstreams::default(),
            timers: http::Timers::default(),
            date: Rc::default(),
            peers: Rc::default(),
            spans: Rc::default(),
            scripts: Rc::default(),
            node,
            address: own_address(),
        }
    }

    /// The context of the same worker for connections that another configuration serves.
    pub fn serving(&self, published: Published, clusters: Arc<ClusterManager>) -> Self {
        Self {
            published,
            clusters,
            upstreams: self.upstreams.clone(),
            timers: self.timers.clone(),
            date: self.date.clone(),
            peers: self.peers.clone(),
            spans: self.spans.clone(),
            scripts: self.scripts.clone(),
            node: self.node.clone(),
            address: self.address,
        }
    }
}

/// The first IPv4 address of an interface that is up and not the loopback; 127.0.0.1 if there is none.
fn own_address() -> IpAddr {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let up = interfaces.filter(|i| i.flags.contains(InterfaceFlags::IFF_UP));
    let addresses = up.filter_map(|i| Some(i.address?.as_sockaddr_in()?.ip()));
    addresses.map(IpAddr::V4).find(|ip| !ip.is_loopback()).unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// A client's connection after detection and TLS.
pub trait Downstream: AsyncRead + AsyncWrite + Bare + Unpin + 'static {
    /// What carries the bytes.
    fn transport(&self) -> &Stream;
    fn transport_mut(&mut self) -> &mut Stream;
    /// Whether what is read and written here is what the transport gets and gives.
    fn is_plain(&self) -> bool;
}

/// Runs the network filters of `chain`, to the end of the connection or until there is nothing left to do but what
/// is returned. `offer`: its client, the other half of this proxy, would rather hand over HTTP messages.
pub async fn run<I: Downstream>(
    chain: &FilterChain,
    info: Arc<ConnectionInfo>,
    mut io: I,
    ctx: Rc<WorkerContext>,
    offer: Option<Offer>,
) -> Option<Copying> {
    // Envoy: a chain without filters closes its connections.
    let (last, before) = chain.filters.split_last()?;
    // Dropped where bytes are needed: the client waits to know.
    let exchanges = network::exchange_of(before, &info).is_some();
    let takes = matches!(last, NetworkFilter::HttpConnectionManager(_)) && !exchanges;
    let offer = offer.filter(|_| takes);
    let mut admitted = match network::admit(before, &info) {
        Ok(admitted) => admitted,
        Err(refused) => {
            drop(offer);
            tracing::debug!(chain = %chain.name, source = %info.remote, details = %refused.details, "refused");
            if let Some(delay) = refused.delay {
                tokio::time::sleep(delay).await;
            }
            if let NetworkFilter::TcpProxy(config) = last {
                tcp_proxy::refused(config, info, &refused, &ctx);
            }
            return None;
        }
    };
    if exchanges {
        let local = info.workload.as_ref().map_or(&ctx.node, |workload| &workload.peer).clone();
        match Box::pin(network::exchange(&mut io, &local)).await {
            Ok(peer) => admitted.peer = peer,
            Err(error) => {
                tracing::debug!(source = %info.remote, %error, "metadata exchange failed");
                return None;
            }
        }
    }
    match last {
        NetworkFilter::TcpProxy(config) => {
            config.stats.downstream_cx_total.inc();
            let dialed = Box::pin(tcp_proxy::open(config, info, admitted, &ctx)).await;
            match mongo::of(before) {
                None => tcp_proxy::serve(config.clone(), dialed, io),
                Some(own) => tcp_proxy::serve(config.clone(), dialed, mongo::Sniffed::new(own.clone(), io)),
            }
        }
        NetworkFilter::HttpConnectionManager(hcm) => {
            // Apart, as all that is large: else a connection that only copies bytes would hold as much.
            Box::pin(http::serve(hcm.clone(), info, io, ctx, offer)).await;
            drop(admitted);
            None
        }
        // The converter ends every chain with one of the two.
        _ => None,
    }
}

/// Does the TCP proxy serve this chain?
pub fn ends_in_tcp_proxy(chain: &FilterChain) -> bool {
    matches!(chain.filters.last(), Some(NetworkFilter::TcpProxy(_)))
}

/// The TCP proxy of a chain that does nothing but proxy bytes: its upstream side may be opened before the
/// client has said anything, for protocols in which the server speaks first.
pub fn server_first(chain: &FilterChain) -> Option<&Arc<TcpProxy>> {
    match chain.filters.split_last() {
        Some((NetworkFilter::TcpProxy(config), before))
            if chain.tls.is_none() && network::are_passive(before) =>
        {
            Some(config)
        }
        _ => None,
    }
}

/// Opens the upstream side of a connection for [`server_first`]; `None`: a filter refuses it.
pub async fn open_first(
    chain: &FilterChain,
    config: &TcpProxy,
    info: Arc<ConnectionInfo>,
    ctx: &WorkerContext,
) -> Option<tcp_proxy::Dialed> {
    let (_, before) = chain.filters.split_last()?;
    let admitted = network::admit(before, &info).ok()?;
    Some(tcp_proxy::open(config, info, admitted, ctx).await)
}

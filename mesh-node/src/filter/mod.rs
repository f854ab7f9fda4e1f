//! Network filters: what serves a connection once its filter chain is chosen. A closed set; each is compiled
//! when configuration changes.

pub mod http;
mod istio_labels;
mod rbac;
pub mod tcp_proxy;

use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;

use nix::net::if_::InterfaceFlags;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::cluster::ClusterManager;
use crate::model::Published;
use crate::model::listener::FilterChain;
use crate::model::network::{NetworkFilter, TcpProxy};
use crate::telemetry::peer::LocalPeer;
use crate::telemetry::stream_info::ConnectionInfo;
use crate::upstream::Upstreams;

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
    /// Who streams of no workload speak for: the node of the bootstrap.
    pub node: Arc<LocalPeer>,
    /// This machine's, as Envoy chooses it: what `x-forwarded-for` says in place of a loopback peer.
    pub address: IpAddr,
}

impl WorkerContext {
    /// The context of a worker that has served nothing yet.
    pub fn new(published: Published, clusters: Arc<ClusterManager>) -> Self {
        Self {
            published,
            clusters,
            upstreams: Upstreams::default(),
            timers: http::Timers::default(),
            date: Rc::default(),
            peers: Rc::default(),
            node: Arc::default(),
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
pub trait Downstream: AsyncRead + AsyncWrite + Unpin + 'static {
    /// The socket below, for its options.
    fn socket(&self) -> &TcpStream;
}

/// Runs the network filters of `chain` to the end of the connection.
pub async fn run<I: Downstream>(
    chain: &FilterChain,
    info: Arc<ConnectionInfo>,
    io: I,
    ctx: Rc<WorkerContext>,
) {
    match chain.filters.last() {
        Some(NetworkFilter::TcpProxy(config)) => {
            config.stats.downstream_cx_total.inc();
            let dialed = tcp_proxy::open(config, info, &ctx).await;
            tcp_proxy::serve(config, dialed, io).await;
        }
        Some(NetworkFilter::HttpConnectionManager(hcm)) => http::serve(hcm.clone(), info, io, ctx).await,
        // Envoy: a chain without filters closes its connections.
        None => {}
    }
}

/// The TCP proxy of a chain that does nothing but proxy bytes: its upstream side may be opened before the
/// client has said anything, for protocols in which the server speaks first.
pub fn server_first(chain: &FilterChain) -> Option<&Arc<TcpProxy>> {
    match chain.filters.as_slice() {
        [NetworkFilter::TcpProxy(config)] if chain.tls.is_none() => Some(config),
        _ => None,
    }
}

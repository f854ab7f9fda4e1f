//! Network filters: what serves a connection once its filter chain is chosen. A closed set; each is compiled
//! when configuration changes.

pub mod tcp_proxy;

use std::rc::Rc;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::cluster::ClusterManager;
use crate::model::Published;
use crate::model::listener::FilterChain;
use crate::model::network::NetworkFilter;
use crate::telemetry::stream_info::ConnectionInfo;

/// What the streams of one worker share.
#[derive(Debug)]
pub struct WorkerContext {
    pub published: Published,
    pub clusters: Arc<ClusterManager>,
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
        Some(NetworkFilter::TcpProxy(config)) => tcp_proxy::run(config, info, io, &ctx).await,
        Some(NetworkFilter::HttpConnectionManager(_)) => {
            unreachable!("the converter does not make these yet")
        }
        // Envoy: a chain without filters closes its connections.
        None => {}
    }
}

//! TCP proxy (`envoy.extensions.filters.network.tcp_proxy.v3`): one upstream connection per client connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http::Version;

use super::istio_tcp::Series;
use super::network::{self, Admitted, Refused};
use super::tcp_relay::{Copying, Relay, Way};
use super::tcp_tunnel;
use super::{Downstream, WorkerContext};
use crate::cluster::{ClusterState, Host, LbContext, Report, RoutingPriority};
use crate::model::Str;
use crate::model::cluster::Discovery;
use crate::model::listener::Direction;
use crate::model::network::{TcpClusters, TcpProxy};
use crate::router::address_hash;
use crate::telemetry::peer::LocalPeer;
use crate::telemetry::stream_info::{ConnectionInfo, ResponseFlags, StreamInfo};
use crate::upstream::{ErrorKind, Target, UpstreamPath, implied_alpn};

/// A client's connection for which the upstream side has been opened, or could not be.
#[derive(Debug)]
pub struct Dialed {
    stream: StreamInfo,
    connection: Option<Way>,
    admitted: Admitted,
    /// Who this end is, as it tells others.
    local: Arc<LocalPeer>,
    target: Option<(Arc<ClusterState>, Arc<Host>)>,
}

impl Dialed {
    /// Returns when the server has sent something, or closed. Never, when it cannot be reached.
    pub async fn server_spoke(&self) {
        match &self.connection {
            Some(connection) if connection.stream.transport().spoken().await.is_ok() => {}
            _ => std::future::pending().await,
        }
    }
}

/// Opens the upstream side of a connection. Counts no client: this may be to hear whether the server speaks
/// first, of a client that then comes through another filter chain, or once more through this.
pub async fn open(
    config: &TcpProxy,
    info: Arc<ConnectionInfo>,
    mut admitted: Admitted,
    ctx: &WorkerContext,
) -> Dialed {
    let local = info.workload.as_ref().map_or(&ctx.node, |workload| &workload.peer).clone();
    let mut stream = StreamInfo::new(info);
    stream.peer = admitted.peer.take();
    let mut dialed = Dialed { stream, connection: None, admitted, local, target: None };
    dialed.connection = dial(config, &mut dialed, ctx).await;
    dialed
}

/// What moves the bytes to the end of the connection and logs it; `None`: there is nothing to move, and that is logged.
pub fn serve<I: Downstream>(config: Arc<TcpProxy>, dialed: Dialed, io: I) -> Option<Copying> {
    let Dialed { mut stream, connection, admitted, local, target } = dialed;
    let stats = admitted.stats.as_ref();
    let series = stats.map(|stats| Series::open(stats, &local, &stream, target.as_ref()));
    match connection {
        Some(connection) => {
            let counts = admitted.counted;
            Some(Box::pin(Relay::new(config, stream, io, connection, series, counts)))
        }
        None => {
            drop(series);
            log(&config, &mut stream);
            None
        }
    }
}

/// Logs and counts a connection that a filter before closed.
pub fn refused(config: &TcpProxy, info: Arc<ConnectionInfo>, refused: &Refused, ctx: &WorkerContext) {
    let local = info.workload.as_ref().map_or(&ctx.node, |workload| &workload.peer).clone();
    let mut stream = StreamInfo::new(info);
    if let Some(stats) = &refused.stats {
        drop(Series::open(stats, &local, &stream, None));
    }
    stream.connection_termination_details = Some(refused.details.clone());
    log(config, &mut stream);
}

pub(super) fn log(config: &TcpProxy, stream: &mut StreamInfo) {
    stream.end = Some(stream.start.elapsed());
    for log in config.access_log.iter().chain(&stream.connection.listener_log) {
        log.log(stream, None, None, None, None);
    }
}

/// Connects to a host of the configured cluster, trying `max_connect_attempts` times.
async fn dial(config: &TcpProxy, dialed: &mut Dialed, ctx: &WorkerContext) -> Option<Way> {
    let configured = || pick(&config.cluster, fastrand::u64(..)).clone();
    let name = dialed.admitted.cluster.clone().unwrap_or_else(configured);
    let stream = &mut dialed.stream;
    stream.upstream.cluster = Some(name.clone());
    let Some(cluster) = ctx.clusters.get(&name) else {
        config.stats.downstream_cx_no_route.inc();
        stream.flags.set(ResponseFlags::NO_CLUSTER_FOUND);
        return None;
    };
    let forward = match forward_to(&dialed.admitted, &cluster, &stream.connection, ctx).await {
        Ok(forward) => forward,
        Err(NoSuchName) => {
            stream.flags.set(ResponseFlags::DNS_RESOLUTION_FAILED);
            return None;
        }
    };
    for attempt in 1..=config.max_connect_attempts {
        stream.upstream.attempts = attempt;
        match attempt_once(config, &cluster, forward, stream, ctx).await {
            Ok((mut connection, host)) => {
                dialed.target = Some((cluster.clone(), host));
                return match exchange(&cluster, &mut connection, stream, &dialed.local).await {
                    Ok(()) => Some(connection),
                    Err(error) => {
                        tracing::debug!(cluster = %cluster.name(), %error, "metadata exchange failed");
                        stream.flags.set(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION);
                        None
                    }
                };
            }
            Err(Worth::Retrying) => {}
            Err(Worth::Nothing) => return None,
        }
    }
    stream.flags.set(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
    None
}

/// Tells the server who we are, where it agreed to hear it.
async fn exchange(
    cluster: &ClusterState,
    connection: &mut Way,
    stream: &mut StreamInfo,
    local: &LocalPeer,
) -> io::Result<()> {
    let Some(protocol) = &cluster.config.istio.exchange else { return Ok(()) };
    if connection.stream.alpn() == Some(protocol.as_bytes()) {
        let heard = Box::pin(network::exchange(&mut connection.stream, local)).await?;
        // An inbound stream keeps the client's.
        if stream.connection.direction != Direction::Inbound {
            stream.peer = heard;
        }
    }
    Ok(())
}

/// A name has no address.
struct NoSuchName;

/// Where the name that the client asked for is, for a cluster that forwards to such names.
async fn forward_to(
    admitted: &Admitted,
    cluster: &ClusterState,
    info: &ConnectionInfo,
    ctx: &WorkerContext,
) -> Result<Option<SocketAddr>, NoSuchName> {
    let (Some(own), Discovery::ForwardProxy(_)) = (&admitted.forward, &cluster.config.discovery) else {
        return Ok(None);
    };
    let Some(name) = info.requested_server_name.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let ip = Box::pin(ctx.clusters.resolve(name, &own.cache)).await.ok_or(NoSuchName)?;
    Ok(Some(SocketAddr::new(ip, own.port)))
}

enum Worth {
    Retrying,
    Nothing,
}

async fn attempt_once(
    config: &TcpProxy,
    cluster: &Arc<ClusterState>,
    forward: Option<SocketAddr>,
    stream: &mut StreamInfo,
    ctx: &WorkerContext,
) -> Result<(Way, Arc<Host>), Worth> {
    let info = stream.connection.clone();
    let hash = (config.hash_source_ip && cluster.config.lb.hashes()).then(|| address_hash(info.remote.ip()));
    let context = LbContext {
        original_dst: match cluster.config.discovery {
            Discovery::ForwardProxy(_) => forward,
            _ => info.original_dst,
        },
        hash,
        metadata_match: config.metadata_match.as_deref(),
        ..LbContext::default()
    };
    let Ok(host) = cluster.choose(&context) else {
        stream.flags.set(ResponseFlags::NO_HEALTHY_UPSTREAM);
        return Err(Worth::Nothing);
    };
    stream.upstream.host = Some(host.address);
    let target = Target {
        workload: info.workload.clone(),
        cluster: cluster.clone(),
        host,
        path: match info.direction {
            Direction::Inbound if info.workload.is_some() => UpstreamPath::Application { source: info.peer },
            _ => UpstreamPath::Network,
        },
        alpn: None,
        // The connection around a tunnel is not one client's.
        client: match config.tunnel {
            Some(_) => None,
            None => Some((info.remote, info.original_dst.unwrap_or(info.local))),
        },
        implied_alpn: match config.tunnel {
            Some(_) => implied_alpn(cluster.config.protocol, Version::HTTP_11),
            None => &[],
        },
    };
    let connected = match &config.tunnel {
        Some(tunnel) => Box::pin(tcp_tunnel::open(tunnel, &target, stream, ctx)).await,
        None => ctx.upstreams.connect(&target, RoutingPriority::Default).await.map(Way::from),
    };
    match connected {
        Ok(connection) => {
            cluster.report(&target.host, Report::ConnectedForGood);
            stream.upstream.connection = Some(connection.facts.clone());
            stream.upstream.transport_failure = None;
            Ok((connection, target.host))
        }
        Err(error) => {
            tracing::debug!(cluster = %cluster.name(), host = %target.host.address, %error, "cannot connect");
            stream.flags.set(error.response_flag());
            match error.kind {
                ErrorKind::Overflow => {}
                ErrorKind::ConnectTimeout => cluster.report(&target.host, Report::Timeout),
                _ => cluster.report(&target.host, Report::ConnectFailed),
            }
            let worth = if error.kind == ErrorKind::Overflow { Worth::Nothing } else { Worth::Retrying };
            stream.upstream.transport_failure = error.details;
            Err(worth)
        }
    }
}

/// The cluster for this connection; `random` decides between weighted ones.
fn pick(clusters: &TcpClusters, random: u64) -> &Str {
    match clusters {
        TcpClusters::Single(name) => name,
        TcpClusters::Weighted { clusters, total } => {
            let mut left = random % u64::from(*total);
            for (name, weight) in clusters {
                match left.checked_sub(u64::from(*weight)) {
                    Some(rest) => left = rest,
                    None => return name,
                }
            }
            unreachable!("the converter makes `total` the sum of the weights")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weighted_clusters_share_connections_by_weight() {
        let clusters = TcpClusters::Weighted {
            clusters: vec![("a".into(), 1), ("b".into(), 0), ("c".into(), 3)],
            total: 4,
        };
        let picks: Vec<&str> = (0..4).map(|random| &**pick(&clusters, random)).collect();
        assert_eq!(picks, ["a", "c", "c", "c"]);
    }
}

//! `envoy.filters.network.tcp_proxy`.

use std::sync::Arc;
use std::time::Duration;

use mesh_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy as Proto;
use mesh_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, TunnelingConfig,
};
use mesh_xds::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;

use super::common::{number, timeout};
use super::error::{At, XdsError};
use super::{Context, access_log, format, headers, metadata};
use crate::model::network::{TcpClusters, TcpProxy, Tunnel};

/// Envoy's `idle_timeout` of TCP connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) fn convert(at: At<'_>, proto: &Proto, context: &Context<'_>) -> Result<TcpProxy, XdsError> {
    let at_duration = at.field("max_downstream_connection_duration");
    Ok(TcpProxy {
        stat_prefix: proto.stat_prefix.as_str().into(),
        cluster: clusters(at, proto, context)?,
        idle_timeout: timeout(at.field("idle_timeout"), proto.idle_timeout, Some(IDLE_TIMEOUT))?,
        max_downstream_connection_duration: timeout(
            at_duration,
            proto.max_downstream_connection_duration,
            None,
        )?,
        max_connect_attempts: number(proto.max_connect_attempts, 1).max(1),
        tunnel: match &proto.tunneling_config {
            Some(config) => Some(Box::new(tunnel(at.field("tunneling_config"), config)?)),
            None => None,
        },
        metadata_match: metadata::criteria(proto.metadata_match.as_ref(), None),
        hash_source_ip: proto.hash_policy.iter().any(|policy| {
            // The only policy that the table of supported fields lets through.
            matches!(policy.policy_specifier, Some(PolicySpecifier::SourceIp(_)))
        }),
        access_log: access_log::convert(at.field("access_log"), &proto.access_log, context)?,
        stats: context.stats.tcp(&proto.stat_prefix),
    })
}

fn tunnel(at: At<'_>, proto: &TunnelingConfig) -> Result<Tunnel, XdsError> {
    let at_path = at.field("post_path");
    // Envoy's own rules.
    if !proto.post_path.is_empty() && !proto.use_post {
        return Err(at_path.invalid("needs use_post"));
    }
    let path = if proto.post_path.is_empty() { "/" } else { &proto.post_path };
    if !path.starts_with('/') || path.parse::<http::Uri>().is_err() {
        return Err(at_path.invalid(format!("{path:?} must be a path that begins with /")));
    }
    Ok(Tunnel {
        host: format::parse(&proto.hostname).map_err(|message| at.field("hostname").invalid(message))?,
        post_path: proto.use_post.then(|| path.to_owned()),
        headers: headers::adds(at.field("headers_to_add"), &proto.headers_to_add)?,
    })
}

fn clusters(at: At<'_>, proto: &Proto, context: &Context<'_>) -> Result<TcpClusters, XdsError> {
    match &proto.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            context.known_cluster(at.field("cluster"), name)?;
            Ok(TcpClusters::Single(name.as_str().into()))
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            let at = at.field("weighted_clusters");
            let at = at.field("clusters");
            let mut total = 0u32;
            let mut clusters = Vec::with_capacity(weighted.clusters.len());
            for (i, cluster) in weighted.clusters.iter().enumerate() {
                let at = at.index(i);
                context.known_cluster(at.field("name"), &cluster.name)?;
                total = total
                    .checked_add(cluster.weight)
                    .ok_or_else(|| at.field("weight").invalid("the sum of all weights exceeds 4294967295"))?;
                clusters.push((Arc::from(cluster.name.as_str()), cluster.weight));
            }
            if total == 0 {
                return Err(at.invalid("needs at least one cluster with a weight above 0"));
            }
            Ok(TcpClusters::Weighted { clusters, total })
        }
        None => Err(at.invalid("needs one of cluster, weighted_clusters")),
    }
}

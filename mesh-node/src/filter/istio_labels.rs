//! The labels of Istio's standard metrics, the same for requests and for connections, and what configuration
//! changes in them (`stats.PluginConfig.metrics`).

use std::borrow::Cow;
use std::sync::Arc;

use crate::model::cluster::Cluster;
use crate::model::http_filter::{Dimension, IstioStats, Reporter};
use crate::telemetry::istio_metrics::Labels;
use crate::telemetry::peer::{LocalPeer, Peer};
use crate::telemetry::stats::{Counter, Histogram};
use crate::telemetry::stream_info::{ConnectionInfo, StreamInfo, UpstreamInfo};

/// What is known of both ends of a stream.
#[derive(Clone, Copy)]
pub struct Ends<'a> {
    pub local: &'a LocalPeer,
    /// The other end, as it told itself.
    pub peer: Option<&'a Peer>,
    /// The chosen endpoint, as the control plane tells it.
    pub endpoint: Option<&'a Peer>,
    pub connection: &'a ConnectionInfo,
    pub upstream: &'a UpstreamInfo,
    pub cluster: Option<&'a Cluster>,
    /// In place of the cluster's service.
    pub service_name: Option<&'a str>,
    /// The request's host, if it may stand for the service.
    pub authority: Option<&'a str>,
}

const UNKNOWN: &str = "unknown";

fn or<'a>(text: &'a str, other: &'a str) -> &'a str {
    if text.is_empty() { other } else { text }
}

/// The labels up to `destination_cluster`, and the connection's security policy.
pub fn peer_labels(reporter: Reporter, ends: &Ends<'_>) -> (Labels, &'static str) {
    let nobody = Peer::default();
    let server_side = reporter != Reporter::Source;
    let peer = ends.peer.or(ends.endpoint.filter(|_| !server_side)).unwrap_or(&nobody);
    let (peer_principal, own_principal) = if server_side {
        let tls = ends.connection.tls.as_deref();
        let peer = tls.and_then(|tls| tls.peer_uri_sans.first()).map_or("", String::as_str);
        (peer, tls.and_then(|tls| tls.local_uri_sans.first()).map_or("", |san| &**san))
    } else {
        let tls = ends.upstream.tls();
        let told = tls.and_then(|tls| tls.peer_uri_sans.first()).map_or("", String::as_str);
        (or(told, &peer.identity), tls.and_then(|tls| tls.local_uri_sans.first()).map_or("", |san| &**san))
    };
    let security = match server_side {
        true if !peer_principal.is_empty() && !own_principal.is_empty() => "mutual_tls",
        true => "none",
        false => UNKNOWN,
    };
    let peer_namespace = or(namespace_of(peer_principal), &peer.namespace);
    let own = &ends.local.peer;
    let mut service = service(ends);
    let mut labels = Labels::with_capacity(25);
    let mut label = |name: &'static str, value: &str| labels.push((Cow::Borrowed(name), value.to_owned()));
    label(
        "reporter",
        match reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
            Reporter::Waypoint => "waypoint",
        },
    );
    let (source, source_namespace, source_principal) = match server_side {
        true => (peer, or(peer_namespace, UNKNOWN), or(peer_principal, UNKNOWN)),
        false => (own, own.namespace.as_str(), or(own_principal, UNKNOWN)),
    };
    // What is not known of ourselves is empty, of others it is "unknown".
    let unknown = |known: &Peer| if std::ptr::eq(known, own) { "" } else { UNKNOWN };
    let latest = |known: &Peer| if std::ptr::eq(known, own) { "" } else { "latest" };
    label("source_workload", or(&source.workload, unknown(source)));
    label("source_canonical_service", or(&source.canonical_name, unknown(source)));
    label("source_canonical_revision", or(&source.canonical_revision, latest(source)));
    label("source_workload_namespace", source_namespace);
    label("source_principal", source_principal);
    label("source_app", or(&source.app, unknown(source)));
    label("source_version", or(&source.version, unknown(source)));
    label("source_cluster", or(&source.cluster, unknown(source)));
    let endpoint = ends.endpoint.unwrap_or(&nobody);
    let (destination, namespace, principal) = match reporter {
        Reporter::Source => (peer, or(peer_namespace, UNKNOWN), or(peer_principal, UNKNOWN)),
        Reporter::Destination => (own, own.namespace.as_str(), or(own_principal, UNKNOWN)),
        Reporter::Waypoint => (endpoint, or(&endpoint.namespace, UNKNOWN), or(&endpoint.identity, UNKNOWN)),
    };
    let fallback = if reporter == Reporter::Destination { own.canonical_name.as_str() } else { UNKNOWN };
    let service_namespace = match reporter {
        Reporter::Destination => own.namespace.as_str(),
        Reporter::Source => or(service.namespace, or(peer_namespace, UNKNOWN)),
        Reporter::Waypoint => or(service.namespace, UNKNOWN),
    };
    service.host = or(service.host, fallback);
    label("destination_workload", or(&destination.workload, unknown(destination)));
    label("destination_workload_namespace", namespace);
    label("destination_principal", principal);
    label("destination_app", or(&destination.app, unknown(destination)));
    label("destination_version", or(&destination.version, unknown(destination)));
    label("destination_service", service.host);
    label("destination_canonical_service", or(&destination.canonical_name, unknown(destination)));
    let revision = if reporter == Reporter::Waypoint { UNKNOWN } else { latest(destination) };
    label("destination_canonical_revision", or(&destination.canonical_revision, revision));
    label("destination_service_name", or(service.name, fallback));
    label("destination_service_namespace", service_namespace);
    label("destination_cluster", or(&destination.cluster, unknown(destination)));
    (labels, security)
}

struct Service<'a> {
    host: &'a str,
    name: &'a str,
    namespace: &'a str,
}

/// The service that a stream goes to, as the cluster's metadata names it.
fn service<'a>(ends: &Ends<'a>) -> Service<'a> {
    let host = ends.authority.unwrap_or_default();
    let mut service = Service { host, name: host, namespace: "" };
    if let Some(name) = ends.service_name {
        service.name = name;
        return service;
    }
    let Some(cluster) = ends.cluster else { return service };
    match &*cluster.name {
        "BlackHoleCluster"
        | "PassthroughCluster"
        | "InboundPassthroughCluster"
        | "InboundPassthroughClusterIpv4"
        | "InboundPassthroughClusterIpv6" => service.name = &cluster.name,
        _ => {
            if let Some(known) = &cluster.istio.service {
                service = Service { host: &known.host, name: &known.name, namespace: &known.namespace };
            }
        }
    }
    service
}

/// `NS` of `spiffe://TD/ns/NS/sa/SA`.
fn namespace_of(principal: &str) -> &str {
    principal.split_once("/ns/").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default())
}

/// Finds metrics, as configuration changes them.
pub struct Metrics<'a> {
    pub config: &'a IstioStats,
    /// Who holds them.
    pub local: &'a LocalPeer,
    pub value: &'a dyn Fn(&Dimension) -> Option<String>,
}

impl Metrics<'_> {
    /// `None`: configuration drops the metric. `name` is without `istio_`.
    pub fn counter(&self, name: &str, labels: &Labels) -> Option<Arc<Counter>> {
        let labels = self.overridden(name, labels)?;
        Some(self.local.metrics.counter(&self.config.custom, &format!("istio_{name}"), &labels))
    }

    /// As [`Metrics::counter`].
    pub fn histogram(&self, name: &str, labels: &Labels) -> Option<Arc<Histogram>> {
        let labels = self.overridden(name, labels)?;
        Some(self.local.metrics.histogram(&self.config.custom, &format!("istio_{name}"), &labels))
    }

    fn overridden<'l>(&self, name: &str, labels: &'l Labels) -> Option<Cow<'l, Labels>> {
        let mut labels = Cow::Borrowed(labels);
        let concerned = |metric: &str| metric.is_empty() || metric == name;
        for change in self.config.overrides.iter().filter(|change| concerned(&change.metric)) {
            if change.drop {
                return None;
            }
            let labels = labels.to_mut();
            labels.retain(|(label, _)| !change.remove.iter().any(|removed| removed == label));
            for (label, dimension) in &change.dimensions {
                let value = (self.value)(dimension).unwrap_or_else(|| UNKNOWN.to_owned());
                match labels.iter_mut().find(|(known, _)| known == label) {
                    Some((_, old)) => *old = value,
                    None => labels.push((Cow::Owned(label.clone()), value)),
                }
            }
        }
        Some(labels)
    }
}

/// The value of a dimension that a connection has too.
pub fn connection_dimension(dimension: &Dimension, info: &StreamInfo) -> Option<String> {
    let connection = &info.connection;
    match dimension {
        Dimension::Literal(text) => Some(text.clone()),
        Dimension::DestinationPort => Some(connection.local.port().to_string()),
        Dimension::SourceAddress => Some(info.remote.to_string()),
        Dimension::DestinationAddress => Some(connection.local.to_string()),
        Dimension::ClusterName => info.upstream.cluster.as_deref().map(str::to_owned),
        Dimension::RouteName => info.route_name.as_deref().map(str::to_owned),
        Dimension::RequestedServerName => connection.requested_server_name.clone(),
        Dimension::PeerLabel(name) => {
            let labels = info.peer.as_ref().map(|peer| &peer.labels)?;
            labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.clone())
        }
        _ => None,
    }
}

//! Istio's own HTTP filters, and its statistics filter, which is a network filter too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_xds::istio::alpn::{self, Protocol};
use mesh_xds::istio::peer_metadata;
use mesh_xds::istio::stats::{MetricConfig, PluginConfig, Reporter as ReporterProto};
use mesh_xds::pb::google::protobuf::Any;

use super::super::Context;
use super::super::common::{duration_or, enumeration};
use super::super::error::{At, XdsError};
use super::{Place, read};
use crate::model::http_filter::{
    Alpn, Dimension, HttpFilterKind, IstioStats, MetricOverride, PeerMetadata, Reporter,
};
use crate::model::listener::Direction;

/// Istio's `tcp_reporting_duration`.
const TCP_REPORTING: Duration = Duration::from_secs(5);

pub(super) fn filter(
    at: At<'_>,
    config: &Any,
    place: &Place<'_, '_>,
) -> Result<Option<HttpFilterKind>, XdsError> {
    if let Some(proto) = read::<peer_metadata::Config>(at, config)? {
        return Ok(Some(HttpFilterKind::PeerMetadata(Arc::new(peer_metadata(&proto)))));
    }
    if let Some(proto) = read::<PluginConfig>(at, config)? {
        let stats = stats(at, &proto, place.direction, place.context)?;
        return Ok(Some(HttpFilterKind::IstioStats(Arc::new(stats))));
    }
    if let Some(proto) = read::<alpn::FilterConfig>(at, config)? {
        return Ok(Some(HttpFilterKind::Alpn(Arc::new(alpn(at, &proto)?))));
    }
    Ok(None)
}

/// Methods that ask for what is not here (`workload_discovery`) find nobody, as they do in a proxy without it.
fn peer_metadata(proto: &peer_metadata::Config) -> PeerMetadata {
    let tells = |of: &[peer_metadata::PropagationMethod]| of.iter().any(|m| m.istio_headers.is_some());
    let finds = |of: &[peer_metadata::DiscoveryMethod]| of.iter().any(|m| m.istio_headers.is_some());
    PeerMetadata {
        discover_downstream: finds(&proto.downstream_discovery),
        discover_upstream: finds(&proto.upstream_discovery),
        tell_downstream: tells(&proto.downstream_propagation),
        tell_upstream: tells(&proto.upstream_propagation),
        skip_external: proto
            .upstream_propagation
            .iter()
            .any(|m| m.istio_headers.as_ref().is_some_and(|headers| headers.skip_external_clusters)),
        discover_baggage: proto.downstream_discovery.iter().any(|m| m.baggage.is_some()),
        tell_baggage: proto.downstream_propagation.iter().any(|m| m.baggage.is_some()),
        labels: proto.additional_labels.clone(),
    }
}

fn alpn(at: At<'_>, proto: &alpn::FilterConfig) -> Result<Alpn, XdsError> {
    let mut lists = Alpn::default();
    let at = at.field("alpn_override");
    for (i, of) in proto.alpn_override.iter().enumerate() {
        let list = match enumeration(at.index(i).field("upstream_protocol"), of.upstream_protocol)? {
            Protocol::Http10 => &mut lists.http10,
            Protocol::Http11 => &mut lists.http11,
            Protocol::Http2 => &mut lists.http2,
        };
        let protocols: Vec<Vec<u8>> = of.alpn_override.iter().map(|p| p.clone().into_bytes()).collect();
        *list = (!protocols.is_empty()).then(|| Arc::new(protocols));
    }
    Ok(lists)
}

/// `istio.stats`, of requests or of connections.
pub(in crate::xds) fn stats(
    at: At<'_>,
    proto: &PluginConfig,
    direction: Direction,
    context: &Context<'_>,
) -> Result<IstioStats, XdsError> {
    let reporter = match enumeration(at.field("reporter"), proto.reporter)? {
        ReporterProto::ServerGateway => Reporter::Waypoint,
        ReporterProto::Unspecified if direction == Direction::Inbound => Reporter::Destination,
        ReporterProto::Unspecified => Reporter::Source,
    };
    let at_metrics = at.field("metrics");
    let overrides = proto.metrics.iter().enumerate();
    Ok(IstioStats {
        reporter,
        disable_host_header_fallback: proto.disable_host_header_fallback,
        tcp_reporting: duration_or(
            at.field("tcp_reporting_duration"),
            proto.tcp_reporting_duration,
            TCP_REPORTING,
        )?,
        overrides: overrides
            .map(|(i, proto)| metric(at_metrics.index(i), proto))
            .collect::<Result<_, _>>()?,
        custom: context.stats.custom().clone(),
    })
}

fn metric(at: At<'_>, proto: &MetricConfig) -> Result<MetricOverride, XdsError> {
    let at = at.field("dimensions");
    let sorted: BTreeMap<_, _> = proto.dimensions.iter().collect();
    let dimensions = sorted.into_iter().map(|(name, text)| {
        let value = dimension(text).ok_or_else(|| {
            let message =
                format!("{text:?} is not an expression that mesh-node knows; use an attribute or a literal");
            at.field(name).invalid(message)
        })?;
        Ok((name.clone(), value))
    });
    Ok(MetricOverride {
        metric: proto.name.clone(),
        drop: proto.drop,
        remove: proto.tags_to_remove.clone(),
        dimensions: dimensions.collect::<Result<_, _>>()?,
    })
}

/// Attributes and literals, of all of CEL.
fn dimension(text: &str) -> Option<Dimension> {
    let quoted = |text: &str| {
        let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
        (!inner.contains([quote, '\\'])).then(|| inner.to_owned())
    };
    let index = |prefix: &str| {
        let inner = text.strip_prefix(prefix)?.strip_prefix('[')?.strip_suffix(']')?;
        quoted(inner.trim())
    };
    let header = |prefix: &str| index(prefix).and_then(|name| name.to_ascii_lowercase().parse().ok());
    let text = text.trim();
    Some(match text {
        "request.host" => Dimension::RequestHost,
        "request.method" => Dimension::RequestMethod,
        "request.path" => Dimension::RequestPath,
        "request.url_path" => Dimension::RequestUrlPath,
        "request.scheme" => Dimension::RequestScheme,
        "request.protocol" => Dimension::RequestProtocol,
        "response.code" => Dimension::ResponseCode,
        "destination.port" | "string(destination.port)" => Dimension::DestinationPort,
        "source.address" => Dimension::SourceAddress,
        "destination.address" => Dimension::DestinationAddress,
        "xds.cluster_name" => Dimension::ClusterName,
        "xds.route_name" => Dimension::RouteName,
        "connection.requested_server_name" => Dimension::RequestedServerName,
        _ => quoted(text)
            .map(Dimension::Literal)
            .or_else(|| header("request.headers").map(Dimension::RequestHeader))
            .or_else(|| header("response.headers").map(Dimension::ResponseHeader))
            .or_else(|| index("filter_state.upstream_peer.labels").map(Dimension::PeerLabel))
            .or_else(|| index("filter_state.downstream_peer.labels").map(Dimension::PeerLabel))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_are_attributes_and_literals() {
        assert_eq!(dimension("request.host"), Some(Dimension::RequestHost));
        assert_eq!(dimension("'v1'"), Some(Dimension::Literal("v1".into())));
        let header = dimension("request.headers['X-Team']");
        assert_eq!(header, Some(Dimension::RequestHeader("x-team".parse().unwrap())));
        assert_eq!(dimension("request.host == 'a' ? 'b' : 'c'"), None);
    }
}

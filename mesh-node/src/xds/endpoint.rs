//! `envoy.config.endpoint.v3.ClusterLoadAssignment`.

use std::sync::Arc;

use mesh_xds::pb::envoy::config::core::v3::{HealthStatus as HealthProto, Metadata};
use mesh_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use mesh_xds::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints};
use mesh_xds::pb::google::protobuf::Struct;
use mesh_xds::pb::google::protobuf::value::Kind;

use super::common::{endpoint_address, enumeration, non_empty, number, socket_address};
use super::error::{At, XdsError};
use super::{Context, health_check, istio, metadata, support};
use crate::model::cluster::{Assignment, Endpoint, EndpointAddress, HealthStatus, Locality};

/// Compiles the endpoints of an EDS cluster; `path` is where they stand, for errors.
pub fn assignment(
    path: &str,
    proto: &ClusterLoadAssignment,
    context: &mut Context<'_>,
) -> Result<Assignment, XdsError> {
    support::check(path, proto, &mut context.ignored)?;
    convert(At::root(path), proto, false)
}

/// The endpoints of an assignment. `hosts_allowed`: addresses may be names to resolve.
pub(super) fn convert(
    at: At<'_>,
    proto: &ClusterLoadAssignment,
    hosts_allowed: bool,
) -> Result<Assignment, XdsError> {
    let at = at.field("endpoints");
    let localities = proto.endpoints.iter().enumerate();
    let localities = localities.map(|(i, proto)| locality(at.index(i), proto, hosts_allowed));
    Ok(Assignment {
        localities: localities.collect::<Result<_, _>>()?,
        overprovisioning_factor_percent: number(
            proto.policy.as_ref().and_then(|policy| policy.overprovisioning_factor),
            140,
        ),
    })
}

fn locality(at: At<'_>, proto: &LocalityLbEndpoints, hosts_allowed: bool) -> Result<Locality, XdsError> {
    let at_endpoints = at.field("lb_endpoints");
    let endpoints = proto.lb_endpoints.iter().enumerate();
    let endpoints = endpoints.map(|(i, proto)| endpoint(at_endpoints.index(i), proto, hosts_allowed));
    let place = proto.locality.clone().unwrap_or_default();
    Ok(Locality {
        region: place.region.into(),
        zone: place.zone.into(),
        sub_zone: place.sub_zone.into(),
        priority: proto.priority,
        weight: number(proto.load_balancing_weight, 0),
        endpoints: endpoints.collect::<Result<_, _>>()?,
    })
}

fn endpoint(at: At<'_>, proto: &LbEndpoint, hosts_allowed: bool) -> Result<Arc<Endpoint>, XdsError> {
    let Some(HostIdentifier::Endpoint(inner)) = &proto.host_identifier else {
        return Err(at.field("endpoint").invalid("is required"));
    };
    let at_endpoint = at.field("endpoint");
    let at_address = at_endpoint.field("address");
    let address = endpoint_address(at_address, inner.address.as_ref())?;
    if let (EndpointAddress::Host(host, _), false) = (&address, hosts_allowed) {
        let message = format!("{host:?} is not an IP address; use one, or type STRICT_DNS or LOGICAL_DNS");
        return Err(at_address.invalid(message));
    }
    let at_additional = at_endpoint.field("additional_addresses");
    let additional = inner.additional_addresses.iter().enumerate();
    let additional = additional.map(|(i, of)| {
        let at = at_additional.index(i);
        socket_address(at.field("address"), of.address.as_ref())
    });
    Ok(Arc::new(Endpoint {
        additional: additional.collect::<Result<_, _>>()?,
        address,
        hostname: non_empty(&inner.hostname),
        weight: number(proto.load_balancing_weight, 1).max(1),
        health: health(at.field("health_status"), proto.health_status)?,
        transport_match: transport_match(proto.metadata.as_ref()),
        peer: istio::peer(proto.metadata.as_ref()),
        metadata: metadata::by_namespace(
            proto.metadata.as_ref(),
            &["envoy.lb", "envoy.transport_socket_match"],
        ),
        lb_metadata: lb_metadata(proto.metadata.as_ref()),
        check: match &inner.health_check_config {
            Some(check) => {
                Some(health_check::endpoint_check(at_endpoint.field("health_check_config"), check)?)
            }
            None => None,
        },
    }))
}

/// UNKNOWN is as good as HEALTHY, TIMEOUT as bad as UNHEALTHY.
pub(super) fn health(at: At<'_>, status: i32) -> Result<HealthStatus, XdsError> {
    Ok(match enumeration(at, status)? {
        HealthProto::Unknown | HealthProto::Healthy => HealthStatus::Healthy,
        HealthProto::Degraded => HealthStatus::Degraded,
        HealthProto::Draining => HealthStatus::Draining,
        HealthProto::Unhealthy | HealthProto::Timeout => HealthStatus::Unhealthy,
    })
}

fn transport_match(metadata: Option<&Metadata>) -> Vec<(String, String)> {
    let of_socket = metadata.and_then(|m| m.filter_metadata.get("envoy.transport_socket_match"));
    of_socket.map(pairs).unwrap_or_default()
}

fn lb_metadata(metadata: Option<&Metadata>) -> crate::model::metadata::Metadata {
    let of_lb = metadata.and_then(|m| m.filter_metadata.get("envoy.lb"));
    of_lb.map_or_else(|| Vec::new().into(), metadata::fields)
}

/// The text entries of a struct, sorted: what `transport_socket_matches` compare.
pub(super) fn pairs(fields: &Struct) -> Vec<(String, String)> {
    let mut pairs: Vec<_> = fields
        .fields
        .iter()
        .filter_map(|(key, value)| match &value.kind {
            Some(Kind::StringValue(text)) => Some((key.clone(), text.clone())),
            _ => None,
        })
        .collect();
    pairs.sort();
    pairs
}

//! Dynamic forward proxy: clusters and filters that share a cache of names.

use std::time::Duration;

use mesh_xds::pb::envoy::config::cluster::v3::cluster::CustomClusterType;
use mesh_xds::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::ClusterConfig;
use mesh_xds::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::cluster_config::ClusterImplementationSpecifier;
use mesh_xds::pb::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use mesh_xds::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3::FilterConfig;
use mesh_xds::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3::PerRouteConfig;
use mesh_xds::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3::filter_config::ImplementationSpecifier;
use mesh_xds::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3::per_route_config::HostRewriteSpecifier;

use mesh_xds::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3::FilterConfig as SniConfig;
use mesh_xds::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3::filter_config::PortSpecifier;

use super::common::{duration_or, number};
use super::error::{At, XdsError};
use super::listener::extension;
use super::{cluster, headers};
use crate::model::cluster::{Discovery, DnsCache};
use crate::model::http_filter::{ForwardTo, Override};
use crate::model::network::SniForwardProxy;

/// Envoy's `dns_refresh_rate`, `host_ttl` and `max_hosts`.
const REFRESH: Duration = Duration::from_secs(60);
const HOST_TTL: Duration = Duration::from_secs(300);
const MAX_HOSTS: u32 = 1024;
/// Where the configuration names no port.
const HTTPS: u16 = 443;

/// `cluster_type` of a cluster. True: without TLS options of its own it need not be safe.
pub(super) fn discovery(at: At<'_>, proto: &CustomClusterType) -> Result<(Discovery, bool), XdsError> {
    let at = at.field("typed_config");
    let config = proto.typed_config.as_ref().ok_or_else(|| at.invalid("is required"))?;
    let Some(config) = mesh_xds::unpack::<ClusterConfig>(config) else { return Err(extension(at, config)) };
    let config = config.map_err(|error| at.invalid(error.to_string()))?;
    match &config.cluster_implementation_specifier {
        Some(ClusterImplementationSpecifier::DnsCacheConfig(proto)) => {
            let cache = cache(at.field("dns_cache_config"), proto)?;
            Ok((Discovery::ForwardProxy(cache), config.allow_insecure_cluster_options))
        }
        _ => Err(at.field("dns_cache_config").invalid("is required")),
    }
}

pub(super) fn filter(at: At<'_>, proto: &FilterConfig) -> Result<DnsCache, XdsError> {
    match &proto.implementation_specifier {
        Some(ImplementationSpecifier::DnsCacheConfig(proto)) => cache(at.field("dns_cache_config"), proto),
        _ => Err(at.field("dns_cache_config").invalid("is required")),
    }
}

/// The filter that forwards by server name.
pub(super) fn by_sni(at: At<'_>, proto: &SniConfig) -> Result<SniForwardProxy, XdsError> {
    let at_cache = at.field("dns_cache_config");
    let cache = proto.dns_cache_config.as_ref().ok_or_else(|| at_cache.invalid("is required"))?;
    let port = match proto.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port)
            .map_err(|_| at.field("port_value").invalid(format!("{port} is not a port")))?,
        None => HTTPS,
    };
    Ok(SniForwardProxy { cache: self::cache(at_cache, cache)?, port })
}

pub(super) fn of_route(at: At<'_>, proto: &PerRouteConfig) -> Result<Override, XdsError> {
    Ok(match &proto.host_rewrite_specifier {
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            Override::ForwardTo(ForwardTo::Literal(host.clone()))
        }
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            Override::ForwardTo(ForwardTo::Header(headers::name(at.field("host_rewrite_header"), name)?))
        }
        None => Override::Nothing,
    })
}

fn cache(at: At<'_>, proto: &DnsCacheConfig) -> Result<DnsCache, XdsError> {
    Ok(DnsCache {
        name: proto.name.as_str().into(),
        family: cluster::family(at.field("dns_lookup_family"), proto.dns_lookup_family)?,
        refresh: duration_or(at.field("dns_refresh_rate"), proto.dns_refresh_rate, REFRESH)?,
        host_ttl: duration_or(at.field("host_ttl"), proto.host_ttl, HOST_TTL)?,
        max_hosts: number(proto.max_hosts, MAX_HOSTS) as usize,
    })
}

//! `envoy.config.listener.v3.Listener`: addresses, listener filters, filter chains.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_xds::pb::envoy::config::core::v3::TrafficDirection;
use mesh_xds::pb::envoy::config::core::v3::proxy_protocol_config::Version;
use mesh_xds::pb::envoy::config::listener::v3::filter_chain_match::ConnectionSourceType;
use mesh_xds::pb::envoy::config::listener::v3::listener_filter::ConfigType as ListenerConfigType;
use mesh_xds::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::Rule;
use mesh_xds::pb::envoy::config::listener::v3::{
    FilterChain as ChainProto, FilterChainMatch as MatchProto, Listener as Proto,
    ListenerFilterChainMatchPredicate as PredicateProto,
};
use mesh_xds::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol as ProxyProtocolProto;
use mesh_xds::pb::google::protobuf::Any;

use super::common::{boolean, cidrs, content_hash, enumeration, number, socket_address, timeout};
use super::error::{At, XdsError};
use super::{Context, access_log, network_filters, support, tls};
use crate::model::listener::{
    Direction, FilterChain, FilterChainMatch, Listener, ListenerFilters, PortPredicate, ProxyProtocol,
    SourceType,
};

/// Envoy's `listener_filters_timeout`.
const LISTENER_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's `per_connection_buffer_limit_bytes`.
pub(super) const BUFFER_LIMIT_BYTES: u32 = 1 << 20;

/// Compiles a listener; `path` is where it stands, for errors.
pub fn convert(path: &str, proto: &Proto, context: &mut Context<'_>) -> Result<Listener, XdsError> {
    support::check(path, proto, &mut context.ignored)?;
    let context = &*context;
    let at = At::root(path);
    let address = socket_address(at.field("address"), proto.address.as_ref())?;
    let mut files = tls::Files::default();
    let direction = match enumeration(at.field("traffic_direction"), proto.traffic_direction)? {
        TrafficDirection::Unspecified => Direction::Unspecified,
        TrafficDirection::Inbound => Direction::Inbound,
        TrafficDirection::Outbound => Direction::Outbound,
    };
    let scope = (direction, context);
    let filter_chains = chains(at.field("filter_chains"), &proto.filter_chains, scope, &mut files)?;
    let default_filter_chain = match &proto.default_filter_chain {
        Some(proto) => Some(chain(at.field("default_filter_chain"), proto, scope, &mut files)?),
        None => None,
    };
    if filter_chains.is_empty() && default_filter_chain.is_none() {
        return Err(at.invalid("needs at least one of filter_chains, default_filter_chain"));
    }
    let name = if proto.name.is_empty() { address.to_string() } else { proto.name.clone() };
    let stat_name =
        if proto.stat_prefix.is_empty() { address.to_string() } else { proto.stat_prefix.clone() };
    let deprecated_bind = proto.deprecated_v1.and_then(|v1| v1.bind_to_port);
    Ok(Listener {
        name: name.into(),
        address,
        additional_addresses: additional_addresses(at.field("additional_addresses"), proto, direction)?,
        direction,
        bind_to_port: boolean(proto.bind_to_port.or(deprecated_bind), true),
        use_original_dst: boolean(proto.use_original_dst, false),
        listener_filters: listener_filters(at.field("listener_filters"), proto)?,
        listener_filters_timeout: timeout(
            at.field("listener_filters_timeout"),
            proto.listener_filters_timeout,
            Some(LISTENER_FILTERS_TIMEOUT),
        )?,
        continue_on_listener_filters_timeout: proto.continue_on_listener_filters_timeout,
        filter_chains,
        default_filter_chain,
        access_log: access_log::convert(at.field("access_log"), &proto.access_log, context)?,
        per_connection_buffer_limit_bytes: number(
            proto.per_connection_buffer_limit_bytes,
            BUFFER_LIMIT_BYTES,
        ),
        stats: context.stats.listener(&stat_name),
        drain: Arc::default(),
        content_hash: content_hash(proto, files.hashes()),
    })
}

/// Addresses that would have to be bound are another matter.
fn additional_addresses(
    at: At<'_>,
    proto: &Proto,
    direction: Direction,
) -> Result<Vec<SocketAddr>, XdsError> {
    if !proto.additional_addresses.is_empty()
        && direction == Direction::Unspecified
        && boolean(proto.bind_to_port, true)
    {
        return Err(at.index(0).invalid("is not bound by mesh-node; use a listener for each address"));
    }
    let additional = proto.additional_addresses.iter().enumerate();
    additional.map(|(i, of)| socket_address(at.index(i).field("address"), of.address.as_ref())).collect()
}

fn listener_filters(at: At<'_>, proto: &Proto) -> Result<ListenerFilters, XdsError> {
    let mut filters =
        ListenerFilters { original_dst: boolean(proto.use_original_dst, false), ..Default::default() };
    for (i, filter) in proto.listener_filters.iter().enumerate() {
        let at = at.index(i);
        let disabled = match &filter.filter_disabled {
            Some(predicate) => self::predicate(at.field("filter_disabled"), predicate)?,
            None => PortPredicate::Never,
        };
        let Some(ListenerConfigType::TypedConfig(config)) = &filter.config_type else {
            return Err(at.field("typed_config").invalid("is required"));
        };
        match short_type(config).as_str() {
            "OriginalDst" => filters.original_dst = true,
            "TlsInspector" => filters.tls_inspector = Some(disabled),
            "HttpInspector" => filters.http_inspector = Some(disabled),
            "ProxyProtocol" if matches!(disabled, PortPredicate::Never) => {
                filters.proxy_protocol = Some(proxy_protocol(at.field("typed_config"), config)?);
            }
            "ProxyProtocol" => return Err(at.field("filter_disabled").unsupported()),
            _ => return Err(extension(at.field("typed_config"), config)),
        }
    }
    Ok(filters)
}

fn proxy_protocol(at: At<'_>, config: &Any) -> Result<ProxyProtocol, XdsError> {
    let proto = mesh_xds::unpack::<ProxyProtocolProto>(config).ok_or_else(|| extension(at, config))?;
    let proto = proto.map_err(|error| at.invalid(error.to_string()))?;
    let mut versions = [true; 2];
    for (i, version) in proto.disallowed_versions.iter().enumerate() {
        match enumeration(at.field("disallowed_versions").index(i), *version)? {
            Version::V1 => versions[0] = false,
            Version::V2 => versions[1] = false,
        }
    }
    if versions == [false; 2] {
        return Err(at.field("disallowed_versions").invalid("leaves no version"));
    }
    Ok(ProxyProtocol { optional: proto.allow_requests_without_proxy_protocol, versions })
}

/// The last part of a type's name. The table of supported fields has made sure of the whole.
fn short_type(any: &Any) -> String {
    mesh_xds::type_name(any).rsplit('.').next().unwrap_or_default().to_owned()
}

/// The extension in `any` has no place here.
pub(super) fn extension(at: At<'_>, any: &Any) -> XdsError {
    XdsError::Extension { path: at.to_string(), name: mesh_xds::type_name(any) }
}

fn predicate(at: At<'_>, proto: &PredicateProto) -> Result<PortPredicate, XdsError> {
    let all = |name: &str, rules: &[PredicateProto]| -> Result<Vec<PortPredicate>, XdsError> {
        let at = at.field(name);
        let at = at.field("rules");
        rules.iter().enumerate().map(|(i, rule)| predicate(at.index(i), rule)).collect()
    };
    Ok(match &proto.rule {
        Some(Rule::OrMatch(set)) => PortPredicate::Or(all("or_match", &set.rules)?),
        Some(Rule::AndMatch(set)) => PortPredicate::And(all("and_match", &set.rules)?),
        Some(Rule::NotMatch(rule)) => PortPredicate::Not(Box::new(predicate(at.field("not_match"), rule)?)),
        Some(Rule::AnyMatch(any)) => {
            if *any {
                PortPredicate::Any
            } else {
                PortPredicate::Never
            }
        }
        Some(Rule::DestinationPortRange(range)) => {
            let at = at.field("destination_port_range");
            let start = u16::try_from(range.start)
                .map_err(|_| at.field("start").invalid("must be a port from 0 to 65535"))?;
            let end = u32::try_from(range.end)
                .map_err(|_| at.field("end").invalid("must be a port from 1 to 65536"))?;
            PortPredicate::DestinationPorts { start, end }
        }
        None => return Err(at.invalid("needs a rule")),
    })
}

fn chains(
    at: At<'_>,
    protos: &[ChainProto],
    scope: (Direction, &Context<'_>),
    files: &mut tls::Files,
) -> Result<Vec<Arc<FilterChain>>, XdsError> {
    let mut chains: Vec<Arc<FilterChain>> = Vec::with_capacity(protos.len());
    for (i, proto) in protos.iter().enumerate() {
        let at = at.index(i);
        let chain = chain(at, proto, scope, files)?;
        // Envoy refuses this too: which of them would serve is undefined.
        if let Some(other) = chains.iter().position(|other| overlap(&other.matches, &chain.matches)) {
            let message = format!("overlaps that of filter_chains[{other}]; change one");
            return Err(at.field("filter_chain_match").invalid(message));
        }
        chains.push(chain);
    }
    Ok(chains)
}

/// Is there a connection that both describe equally well?
fn overlap(a: &FilterChainMatch, b: &FilterChainMatch) -> bool {
    fn common<T: PartialEq>(a: &[T], b: &[T]) -> bool {
        (a.is_empty() && b.is_empty()) || a.iter().any(|x| b.contains(x))
    }
    a.destination_port == b.destination_port
        && a.transport_protocol == b.transport_protocol
        && a.source_type == b.source_type
        && common(&a.prefix_ranges, &b.prefix_ranges)
        && common(&a.server_names, &b.server_names)
        && common(&a.application_protocols, &b.application_protocols)
        && common(&a.direct_source_prefix_ranges, &b.direct_source_prefix_ranges)
        && common(&a.source_prefix_ranges, &b.source_prefix_ranges)
        && common(&a.source_ports, &b.source_ports)
}

fn chain(
    at: At<'_>,
    proto: &ChainProto,
    (direction, context): (Direction, &Context<'_>),
    files: &mut tls::Files,
) -> Result<Arc<FilterChain>, XdsError> {
    let matches = match &proto.filter_chain_match {
        Some(matches) => chain_match(at.field("filter_chain_match"), matches)?,
        None => FilterChainMatch::default(),
    };
    let tls = match &proto.transport_socket {
        Some(socket) => tls::downstream(at.field("transport_socket"), socket, context, files)?,
        None => None,
    };
    let filters = network_filters::chain(at.field("filters"), &proto.filters, direction, context)?;
    Ok(Arc::new(FilterChain {
        name: proto.name.as_str().into(),
        matches,
        tls,
        filters,
        transport_socket_connect_timeout: timeout(
            at.field("transport_socket_connect_timeout"),
            proto.transport_socket_connect_timeout,
            None,
        )?,
    }))
}

fn chain_match(at: At<'_>, proto: &MatchProto) -> Result<FilterChainMatch, XdsError> {
    let port = |at: At<'_>, port: u32| {
        u16::try_from(port)
            .ok()
            .filter(|&p| p > 0)
            .ok_or_else(|| at.invalid(format!("must be a port from 1 to 65535, not {port}")))
    };
    let destination_port = match proto.destination_port {
        Some(value) => Some(port(at.field("destination_port"), value.value)?),
        None => None,
    };
    let at_ports = at.field("source_ports");
    let source_ports = proto.source_ports.iter().enumerate().map(|(i, &p)| port(at_ports.index(i), p));
    let at_names = at.field("server_names");
    let server_names = proto.server_names.iter().enumerate().map(|(i, name)| {
        // Envoy: a wildcard is the whole first label.
        if name.strip_prefix("*.").unwrap_or(name).contains('*') {
            return Err(at_names.index(i).invalid(format!("{name:?}: only a leading *. may be a wildcard")));
        }
        Ok(name.to_ascii_lowercase())
    });
    Ok(FilterChainMatch {
        destination_port,
        prefix_ranges: cidrs(at.field("prefix_ranges"), &proto.prefix_ranges)?,
        server_names: server_names.collect::<Result<_, _>>()?,
        transport_protocol: proto.transport_protocol.clone(),
        application_protocols: proto.application_protocols.clone(),
        direct_source_prefix_ranges: cidrs(
            at.field("direct_source_prefix_ranges"),
            &proto.direct_source_prefix_ranges,
        )?,
        source_type: match enumeration(at.field("source_type"), proto.source_type)? {
            ConnectionSourceType::Any => SourceType::Any,
            ConnectionSourceType::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            ConnectionSourceType::External => SourceType::External,
        },
        source_prefix_ranges: cidrs(at.field("source_prefix_ranges"), &proto.source_prefix_ranges)?,
        source_ports: source_ports.collect::<Result<_, _>>()?,
    })
}

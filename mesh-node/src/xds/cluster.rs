//! `envoy.config.cluster.v3.Cluster`.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_xds::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds as ThresholdsProto;
use mesh_xds::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, ClusterProtocolSelection, DiscoveryType, DnsLookupFamily, LbConfig,
};
use mesh_xds::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster as Proto};
use mesh_xds::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonProto, SocketAddress,
    TcpKeepalive as KeepaliveProto, TransportSocket, UpstreamHttpProtocolOptions,
};
use mesh_xds::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use mesh_xds::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions;
use mesh_xds::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;

use super::common::{content_hash, duration_or, enumeration, number, percent, socket, timeout};
use super::config_source::need;
use super::error::{At, XdsError};
use super::http_options::{http1, http2};
use super::listener::BUFFER_LIMIT_BYTES;
use super::{
    Context, endpoint, forward_proxy, headers, health_check, istio, lb_extension, lb_policy, metadata,
    outlier, support, tls,
};
use crate::model::cluster::{
    Assignment, Cluster, Discovery, DnsFamily, DnsOptions, EndpointAddress, TcpKeepalive, Thresholds,
    Transport, TransportSocketMatch, UpstreamProtocol,
};
use crate::model::resilience::ResponsePredicate;
use crate::model::source::NeedKind;

/// Envoy's `connect_timeout`, `dns_refresh_rate` and `cleanup_interval`.
const FIVE_SECONDS: Duration = Duration::from_secs(5);
/// Envoy's idle timeout of pooled connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Key and type of the extension that holds HTTP options.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Envoy's default header for `use_http_header`.
const ORIGINAL_DST_HEADER: &str = "x-envoy-original-dst-host";

/// Compiles a cluster; `path` is where it stands, for errors.
pub fn convert(path: &str, proto: &Proto, context: &mut Context<'_>) -> Result<Cluster, XdsError> {
    let mut known = Cow::Borrowed(proto);
    if proto.load_balancing_policy.is_some() {
        known.to_mut().load_balancing_policy.iter_mut().for_each(lb_extension::keep_known);
    }
    let proto = &*known;
    support::check(path, proto, &mut context.ignored)?;
    let context = &*context;
    let at = At::root(path);
    let (discovery, insecure) = discovery(at, proto, context)?;
    let hosts_allowed = matches!(discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_));
    let load_assignment = match &proto.load_assignment {
        Some(assignment) => endpoint::convert(at.field("load_assignment"), assignment, hosts_allowed)?,
        None => Assignment::default(),
    };
    check_endpoints(at, &discovery, load_assignment.localities.iter().map(|l| l.endpoints.len()).sum())?;
    let common = proto.common_lb_config.as_ref();
    let http = Http::of(at, proto)?;
    // A dynamic forward proxy is safe unless it says otherwise, and says that it may be unsafe.
    let forward_proxy = matches!(discovery, Discovery::ForwardProxy(_));
    let auto_sni = http.upstream.as_ref().map_or(forward_proxy, |u| u.auto_sni);
    let auto_san_validation = http.upstream.as_ref().map_or(forward_proxy, |u| u.auto_san_validation);
    if forward_proxy && !insecure && !(auto_sni && auto_san_validation) {
        let message = "needs auto_sni and auto_san_validation, or allow_insecure_cluster_options";
        return Err(at.field("cluster_type").invalid(message));
    }
    let mut files = tls::Files::default();
    let mut transport = |at: At<'_>, socket: Option<&TransportSocket>| match socket {
        Some(socket) => tls::upstream(at, socket, auto_san_validation, context, &mut files),
        None => Ok(Transport::Raw),
    };
    let transport_socket = transport(at.field("transport_socket"), proto.transport_socket.as_ref())?;
    let at_matches = at.field("transport_socket_matches");
    let mut transport_socket_matches = Vec::with_capacity(proto.transport_socket_matches.len());
    for (i, of) in proto.transport_socket_matches.iter().enumerate() {
        let at = at_matches.index(i);
        transport_socket_matches.push(TransportSocketMatch {
            name: of.name.as_str().into(),
            matches: of.r#match.as_ref().map(endpoint::pairs).unwrap_or_default(),
            transport: transport(at.field("transport_socket"), of.transport_socket.as_ref())?,
        });
    }
    if http.protocol == UpstreamProtocol::Auto && !transport_socket.is_tls() {
        // Envoy: "ALPN configured for cluster which has a non-ALPN transport socket".
        return Err(at
            .field("transport_socket")
            .invalid("auto_config needs TLS; add it or use explicit_http_config"));
    }
    let at_common = at.field("common_http_protocol_options");
    let stat_name = if proto.alt_stat_name.is_empty() { &proto.name } else { &proto.alt_stat_name };
    let connection = proto.upstream_connection_options.as_ref();
    let circuit_breakers = circuit_breakers(at, proto.circuit_breakers.as_ref())?;
    let ignore_new_hosts = common.is_some_and(|common| common.ignore_new_hosts_until_first_hc);
    let original_dst = matches!(discovery, Discovery::OriginalDst { .. } | Discovery::ForwardProxy(_));
    let balancing = lb_policy::convert(at, proto, original_dst, stat_name, context)?;
    Ok(Cluster {
        name: proto.name.as_str().into(),
        stat_name: stat_name.as_str().into(),
        lb: balancing.lb,
        balancing: balancing.balancing,
        health_check: health_check::convert(
            at,
            &proto.health_checks,
            (stat_name, http.protocol != UpstreamProtocol::Http1, ignore_new_hosts),
            context,
        )?,
        outlier_detection: match &proto.outlier_detection {
            Some(outlier) => {
                Some(outlier::convert(at.field("outlier_detection"), outlier, stat_name, context)?)
            }
            None => None,
        },
        error_matcher: http.error_matcher,
        discovery,
        load_assignment: Arc::new(load_assignment),
        panic_threshold_percent: percent(
            at.field("common_lb_config.healthy_panic_threshold"),
            common.and_then(|common| common.healthy_panic_threshold),
            50.0,
        )?,
        locality_weighted: balancing.locality_weighted,
        connect_timeout: duration_or(at.field("connect_timeout"), proto.connect_timeout, FIVE_SECONDS)?,
        bind_sources: bind_sources(at, proto)?,
        tcp_keepalive: connection.and_then(|options| options.tcp_keepalive.as_ref()).map(keepalive),
        transport_socket_matches,
        transport_socket,
        protocol: http.protocol,
        http1: http1(at.field("http_protocol_options"), http.http1.as_ref())?,
        http2: http2(at.field("http2_protocol_options"), http.http2.as_ref())?,
        idle_timeout: timeout(
            at_common.field("idle_timeout"),
            http.common.as_ref().and_then(|c| c.idle_timeout),
            Some(IDLE_TIMEOUT),
        )?,
        max_requests_per_connection: number(
            http.common
                .as_ref()
                .and_then(|c| c.max_requests_per_connection)
                .or(proto.max_requests_per_connection),
            0,
        ),
        max_stream_duration: timeout(
            at_common.field("max_stream_duration"),
            http.common.as_ref().and_then(|c| c.max_stream_duration),
            None,
        )?,
        auto_sni,
        auto_san_validation,
        remaining_stats: circuit_breakers
            .iter()
            .any(|thresholds| thresholds.track_remaining)
            .then(|| context.stats.remaining(stat_name)),
        circuit_breakers,
        per_connection_buffer_limit_bytes: number(
            proto.per_connection_buffer_limit_bytes,
            BUFFER_LIMIT_BYTES,
        ),
        close_connections_on_host_health_failure: proto.close_connections_on_host_health_failure,
        stats: context.stats.cluster(stat_name),
        istio: Arc::new(istio::cluster(at, proto)?),
        metadata: metadata::by_namespace(proto.metadata.as_ref(), &[]),
        content_hash: content_hash(proto, files.hashes()),
    })
}

/// And whether the cluster may go without what a dynamic forward proxy must check.
fn discovery(at: At<'_>, proto: &Proto, context: &Context<'_>) -> Result<(Discovery, bool), XdsError> {
    let kind = match &proto.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => enumeration(at.field("type"), *kind)?,
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return forward_proxy::discovery(at.field("cluster_type"), custom);
        }
        None => DiscoveryType::Static,
    };
    let discovery = match kind {
        DiscoveryType::Static => Discovery::Static,
        DiscoveryType::StrictDns => Discovery::StrictDns(dns(at, proto)?),
        DiscoveryType::LogicalDns => Discovery::LogicalDns(dns(at, proto)?),
        DiscoveryType::Eds => {
            let at = at.field("eds_cluster_config");
            let config = proto.eds_cluster_config.as_ref().ok_or_else(|| at.invalid("is required"))?;
            let service_name = Some(config.service_name.as_str()).filter(|name| !name.is_empty());
            let service_name = service_name.unwrap_or(&proto.name);
            let source = config.eds_config.as_ref();
            let scope = format!("cluster.{}", proto.name);
            need(at.field("eds_config"), NeedKind::Endpoints, service_name, &scope, source, context)?;
            Discovery::Eds { service_name: service_name.into() }
        }
        DiscoveryType::OriginalDst => original_dst(at, proto)?,
    };
    Ok((discovery, false))
}

fn check_endpoints(at: At<'_>, discovery: &Discovery, endpoints: usize) -> Result<(), XdsError> {
    let at = at.field("load_assignment");
    match (discovery, endpoints) {
        // Envoy: "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint".
        (Discovery::LogicalDns(_), n) if n != 1 => {
            Err(at.invalid(format!("a LOGICAL_DNS cluster needs exactly one endpoint, not {n}")))
        }
        (Discovery::Eds { .. }, n) if n > 0 => {
            Err(at.invalid("an EDS cluster takes its endpoints from eds_config; remove it"))
        }
        (Discovery::ForwardProxy(_), n) if n > 0 => {
            Err(at.invalid("a dynamic forward proxy takes no endpoints; remove it"))
        }
        (Discovery::OriginalDst { .. }, n) if n > 0 => {
            Err(at.invalid("an ORIGINAL_DST cluster takes no endpoints; remove it"))
        }
        _ => Ok(()),
    }
}

fn dns(at: At<'_>, proto: &Proto) -> Result<DnsOptions, XdsError> {
    let at_failure = at.field("dns_failure_refresh_rate");
    let failure_refresh = match &proto.dns_failure_refresh_rate {
        Some(rate) => {
            let base = duration_or(at_failure.field("base_interval"), rate.base_interval, FIVE_SECONDS)?;
            let max = duration_or(at_failure.field("max_interval"), rate.max_interval, base * 10)?;
            if max < base {
                return Err(at_failure.field("max_interval").invalid("must not be below base_interval"));
            }
            Some((base, max))
        }
        None => None,
    };
    Ok(DnsOptions {
        refresh: duration_or(at.field("dns_refresh_rate"), proto.dns_refresh_rate, FIVE_SECONDS)?,
        failure_refresh,
        jitter: duration_or(at.field("dns_jitter"), proto.dns_jitter, Duration::ZERO)?,
        respect_ttl: proto.respect_dns_ttl,
        family: family(at.field("dns_lookup_family"), proto.dns_lookup_family)?,
    })
}

pub(super) fn family(at: At<'_>, family: i32) -> Result<DnsFamily, XdsError> {
    Ok(match enumeration(at, family)? {
        DnsLookupFamily::Auto => DnsFamily::Auto,
        DnsLookupFamily::V4Only => DnsFamily::V4Only,
        DnsLookupFamily::V6Only => DnsFamily::V6Only,
        DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
        DnsLookupFamily::All => DnsFamily::All,
    })
}

fn original_dst(at: At<'_>, proto: &Proto) -> Result<Discovery, XdsError> {
    let at_config = at.field("original_dst_lb_config");
    let cleanup_interval = duration_or(at.field("cleanup_interval"), proto.cleanup_interval, FIVE_SECONDS)?;
    let (mut http_header, mut port_override) = (None, None);
    if let Some(LbConfig::OriginalDstLbConfig(config)) = &proto.lb_config {
        if config.use_http_header {
            let name = Some(config.http_header_name.as_str()).filter(|name| !name.is_empty());
            let at = at_config.field("http_header_name");
            http_header = Some(headers::name(at, name.unwrap_or(ORIGINAL_DST_HEADER))?);
        }
        if let Some(port) = config.upstream_port_override {
            let at = at_config.field("upstream_port_override");
            let message = format!("must be at most 65535, not {}", port.value);
            port_override = Some(u16::try_from(port.value).map_err(|_| at.invalid(message))?);
        }
    }
    Ok(Discovery::OriginalDst { http_header, port_override, cleanup_interval })
}

/// All source addresses, in the order in which they are preferred.
fn bind_sources(at: At<'_>, proto: &Proto) -> Result<Vec<SocketAddr>, XdsError> {
    let at = at.field("upstream_bind_config");
    let Some(bind) = &proto.upstream_bind_config else { return Ok(Vec::new()) };
    let (at_extra, at_more) = (at.field("extra_source_addresses"), at.field("additional_source_addresses"));
    let mut sources = Vec::new();
    if let Some(address) = &bind.source_address {
        sources.push(source(at.field("source_address"), address)?);
    }
    for (i, extra) in bind.extra_source_addresses.iter().enumerate() {
        let at = at_extra.index(i);
        let at = at.field("address");
        sources.push(source(at, extra.address.as_ref().ok_or_else(|| at.invalid("is required"))?)?);
    }
    for (i, address) in bind.additional_source_addresses.iter().enumerate() {
        sources.push(source(at_more.index(i), address)?);
    }
    Ok(sources)
}

fn source(at: At<'_>, address: &SocketAddress) -> Result<SocketAddr, XdsError> {
    match socket(at, address)? {
        EndpointAddress::Socket(address) => Ok(address),
        EndpointAddress::Host(host, _) => {
            Err(at.field("address").invalid(format!("must be an IP address, not {host:?}")))
        }
    }
}

fn keepalive(proto: &KeepaliveProto) -> TcpKeepalive {
    let seconds = |value: u32| Duration::from_secs(value.into());
    TcpKeepalive {
        probes: proto.keepalive_probes.map(|v| v.value),
        time: proto.keepalive_time.map(|v| seconds(v.value)),
        interval: proto.keepalive_interval.map(|v| seconds(v.value)),
    }
}

fn circuit_breakers(at: At<'_>, proto: Option<&CircuitBreakers>) -> Result<[Thresholds; 2], XdsError> {
    let at_breakers = at.field("circuit_breakers");
    let at = at_breakers.field("thresholds");
    let mut thresholds = [Thresholds::default(); 2];
    let given = proto.map(|breakers| breakers.thresholds.as_slice()).unwrap_or_default();
    for (i, proto) in given.iter().enumerate() {
        let priority = usize::try_from(proto.priority).unwrap_or(usize::MAX);
        let Some(of_priority) = thresholds.get_mut(priority) else {
            return Err(at.index(i).field("priority").invalid("must be DEFAULT or HIGH"));
        };
        *of_priority = with(at.index(i), *of_priority, proto)?;
    }
    let per_host = proto.map(|breakers| breakers.per_host_thresholds.as_slice()).unwrap_or_default();
    for (i, proto) in per_host.iter().enumerate() {
        let priority = usize::try_from(proto.priority).unwrap_or(usize::MAX);
        let at = at_breakers.field("per_host_thresholds");
        let Some(of_priority) = thresholds.get_mut(priority) else {
            return Err(at.index(i).field("priority").invalid("must be DEFAULT or HIGH"));
        };
        // Envoy: "per_host_thresholds currently only supports max_connections".
        let only = ThresholdsProto {
            priority: proto.priority,
            max_connections: proto.max_connections,
            ..Default::default()
        };
        if *proto != only {
            return Err(at
                .index(i)
                .invalid("only max_connections is possible for each host; remove the others"));
        }
        of_priority.max_connections_per_host = proto.max_connections.map(|v| v.value);
    }
    Ok(thresholds)
}

fn with(at: At<'_>, defaults: Thresholds, proto: &ThresholdsProto) -> Result<Thresholds, XdsError> {
    Ok(Thresholds {
        max_connections: number(proto.max_connections, defaults.max_connections),
        max_pending_requests: number(proto.max_pending_requests, defaults.max_pending_requests),
        max_requests: number(proto.max_requests, defaults.max_requests),
        max_retries: number(proto.max_retries, defaults.max_retries),
        // Envoy: 20 percent, and three at least.
        retry_budget: match &proto.retry_budget {
            Some(budget) => {
                let at = at.field("retry_budget.budget_percent");
                Some((percent(at, budget.budget_percent, 20.0)?, number(budget.min_retry_concurrency, 3)))
            }
            None => None,
        },
        budget_interval: match &proto.retry_budget {
            Some(budget) => timeout(at.field("retry_budget.budget_interval"), budget.budget_interval, None)?,
            None => None,
        },
        max_connections_per_host: None,
        track_remaining: proto.track_remaining,
    })
}

/// HTTP options, from the extension or from the deprecated fields of the cluster.
struct Http {
    protocol: UpstreamProtocol,
    common: Option<CommonProto>,
    upstream: Option<UpstreamHttpProtocolOptions>,
    http1: Option<Http1ProtocolOptions>,
    http2: Option<Http2ProtocolOptions>,
    error_matcher: Option<Box<ResponsePredicate>>,
}

impl Http {
    fn of(at: At<'_>, proto: &Proto) -> Result<Self, XdsError> {
        let at_options = at.field("typed_extension_protocol_options");
        let mut found = None;
        for (key, config) in &proto.typed_extension_protocol_options {
            let at = at_options.field(key);
            match mesh_xds::unpack::<HttpProtocolOptions>(config) {
                Some(options) if key == HTTP_OPTIONS => {
                    found = Some(options.map_err(|e| at.invalid(e.to_string()))?);
                }
                _ => return Err(at.invalid(format!("the only key is {HTTP_OPTIONS}"))),
            }
        }
        match found {
            Some(options) => Self::of_extension(at_options.field(HTTP_OPTIONS), options),
            None => Self::of_deprecated(at, proto),
        }
    }

    fn of_extension(at: At<'_>, options: HttpProtocolOptions) -> Result<Self, XdsError> {
        let (protocol, http1, http2) = match options.upstream_protocol_options {
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(config)) => match config.protocol_config {
                Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                    (UpstreamProtocol::Http2, None, Some(http2))
                }
                Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
                    (UpstreamProtocol::Http1, Some(http1), None)
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) | None => {
                    return Err(at
                        .field("explicit_http_config")
                        .invalid("needs one of http_protocol_options, http2_protocol_options"));
                }
            },
            Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
                (UpstreamProtocol::Downstream, config.http_protocol_options, config.http2_protocol_options)
            }
            Some(UpstreamProtocolOptions::AutoConfig(config)) => {
                (UpstreamProtocol::Auto, config.http_protocol_options, config.http2_protocol_options)
            }
            None => {
                let message =
                    "needs one of explicit_http_config, use_downstream_protocol_config, auto_config";
                return Err(at.invalid(message));
            }
        };
        let upstream = options.upstream_http_protocol_options;
        let at_errors = at.field("outlier_detection.error_matcher");
        let errors = options.outlier_detection.and_then(|outlier| outlier.error_matcher);
        let error_matcher = match errors {
            Some(errors) => Some(Box::new(outlier::error_matcher(at_errors, &errors)?)),
            None => None,
        };
        let common = options.common_http_protocol_options;
        Ok(Self { protocol, common, upstream, http1, http2, error_matcher })
    }

    fn of_deprecated(at: At<'_>, proto: &Proto) -> Result<Self, XdsError> {
        let protocol = match enumeration(at.field("protocol_selection"), proto.protocol_selection)? {
            ClusterProtocolSelection::UseDownstreamProtocol => UpstreamProtocol::Downstream,
            ClusterProtocolSelection::UseConfiguredProtocol if proto.http2_protocol_options.is_some() => {
                UpstreamProtocol::Http2
            }
            ClusterProtocolSelection::UseConfiguredProtocol => UpstreamProtocol::Http1,
        };
        Ok(Self {
            protocol,
            common: proto.common_http_protocol_options,
            upstream: proto.upstream_http_protocol_options.clone(),
            http1: proto.http_protocol_options.clone(),
            http2: proto.http2_protocol_options.clone(),
            error_matcher: None,
        })
    }
}

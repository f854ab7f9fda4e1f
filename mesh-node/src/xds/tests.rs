//! What listeners and clusters become, and the exact words about those that are refused.

mod balancing;

use std::sync::Arc;
use std::time::Duration;

use mesh_xds::{Node, from_node};

use super::*;
use crate::model::cluster::{Cluster, Discovery, EndpointAddress, LbPolicy, Transport, UpstreamProtocol};
use crate::model::listener::Listener;
use crate::model::network::{Codec, HttpConnectionManager, NetworkFilter, RouteSource, TcpClusters};
use crate::model::route::{Action, ClusterChoice, PathMatch, PathRewrite, RedirectPath, RouteTable};

/// Calls `f` with a context that knows the clusters `a` and `b` and the given secrets.
pub(super) fn with_context<T>(secrets: &str, f: impl FnOnce(&mut Context<'_>) -> T) -> T {
    let stats = Store::default();
    let log_files = LogFiles::start(stats.filesystem().clone()).unwrap();
    let secrets = Node::parse(secrets).ok().and_then(|n| from_node::<Secret>(&n).ok());
    let mut context = Context {
        stats: &stats,
        log_files: &log_files,
        secrets: secrets.into_iter().map(|s| (s.name.clone(), s)).collect(),
        clusters: Some(["a", "b"].map(str::to_owned).into()),
        needs: Default::default(),
        ignored: Ignored::default(),
    };
    f(&mut context)
}

pub(super) fn try_listener(yaml: &str) -> Result<Listener, String> {
    let node = Node::parse(yaml).unwrap_or_else(|e| panic!("{e} in {yaml}"));
    let proto = from_node(&node).map_err(|p| p[0].to_string())?;
    with_context("", |context| super::listener("L", &proto, context).map_err(|e| e.to_string()))
}

pub(super) fn try_cluster(yaml: &str) -> Result<Cluster, String> {
    let node = Node::parse(yaml).unwrap_or_else(|e| panic!("{e} in {yaml}"));
    let proto = from_node(&node).map_err(|p| p[0].to_string())?;
    with_context("", |context| super::cluster("C", &proto, context).map_err(|e| e.to_string()))
}

fn listener_with(filters: &str) -> String {
    format!(
        "{{name: l, address: {{socket_address: {{address: 0.0.0.0, port_value: 80}}}}, \
         filter_chains: [{{filters: [{filters}]}}]}}"
    )
}

fn tcp(fields: &str) -> String {
    listener_with(&format!(
        "{{name: tcp, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, {fields}}}}}"
    ))
}

fn http(manager: &str, routes: &str) -> String {
    listener_with(&format!(
        "{{name: http, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.\
         http_connection_manager.v3.HttpConnectionManager, stat_prefix: x, {manager} http_filters: [{{name: \
         router, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}], \
         route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{routes}]}}]}}}}}}"
    ))
}

fn manager(yaml: &str) -> Arc<HttpConnectionManager> {
    let listener = try_listener(yaml).unwrap();
    match &listener.filter_chains[0].filters[0] {
        NetworkFilter::HttpConnectionManager(manager) => manager.clone(),
        other => panic!("{other:?}"),
    }
}

const MANAGER: &str = "L.filter_chains[0].filters[0].typed_config";
const ROUTE: &str = "L.filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0]";

#[test]
fn a_listener_that_cannot_be_honoured_is_refused_by_field_and_remedy() {
    let route = |route: &str| http("", route);
    let forward = |fields: &str| route(&format!("{{match: {{prefix: /}}, route: {{cluster: a, {fields}}}}}"));
    let filter = |name: &str, of: &str| {
        listener_with(&format!("{{name: {name}, typed_config: {{'@type': type.googleapis.com/envoy.{of}}}}}"))
    };
    let table = [
        (
            filter("redis", "extensions.filters.network.redis_proxy.v3.RedisProxy, stat_prefix: x, settings: {op_timeout: 1s}"),
            format!(
                "{MANAGER}: extension envoy.extensions.filters.network.redis_proxy.v3.RedisProxy is not supported by \
                 mesh-node; remove it"
            ),
        ),
        (
            http("", "{match: {prefix: /}, route: {cluster: a}}")
                .replace("http_filters: [", "http_filters: [{name: jwt, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication}}, "),
            format!(
                "{MANAGER}.http_filters[0].typed_config: extension \
                 envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication is not supported by mesh-node; \
                 remove it"
            ),
        ),
        (
            tcp("cluster: nope"),
            format!("{MANAGER}.cluster: unknown cluster \"nope\"; add it to static_resources.clusters"),
        ),
        (
            tcp("cluster: a, downstream_idle_timeout: 1s"),
            format!("{MANAGER}.downstream_idle_timeout: this field is not supported by mesh-node; remove it"),
        ),
        (
            forward("request_mirror_policies: [{cluster: nope}]"),
            format!("{ROUTE}.route.request_mirror_policies[0].cluster: unknown cluster \"nope\"; add it to static_resources.clusters"),
        ),
        (
            forward("timeout: -1s"),
            format!("{ROUTE}.route.timeout: must be a duration that is not negative"),
        ),
        (
            route("{match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: a, weight: 0}]}}}"),
            format!("{ROUTE}.route.weighted_clusters.clusters: needs at least one cluster with a weight above 0"),
        ),
        (
            route("{match: {safe_regex: {regex: '('}}, route: {cluster: a}}"),
            format!("{ROUTE}.match.safe_regex.regex: \"(\" is not a regular expression: unclosed group"),
        ),
        (
            route("{match: {path_separated_prefix: /a/}, route: {cluster: a}}"),
            format!(
                "{ROUTE}.match.path_separated_prefix: \"/a/\" must begin with /, not end with /, and have no ? \
                 or #"
            ),
        ),
        (
            forward("regex_rewrite: {pattern: {regex: '^/(.)'}, substitution: '\\2'}"),
            format!("{ROUTE}.route.regex_rewrite.substitution: names group 2, which the pattern does not have"),
        ),
        (
            route("{match: {prefix: /}, direct_response: {status: 99}}"),
            format!("{ROUTE}.direct_response.status: must be at least 200, not 99").replace(&format!("{ROUTE}."), "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0]."),
        ),
        (
            route("{match: {prefix: /}, route: {cluster: a}, request_headers_to_add: [{header: {key: x, value: '%NO%'}}]}"),
            format!(
                "{ROUTE}.request_headers_to_add[0].header.value: %NO% is not an operator that mesh-node knows; \
                 remove it"
            ),
        ),
        (
            route("{match: {prefix: /}, route: {cluster: a}, response_headers_to_remove: [':status']}"),
            format!("{ROUTE}.response_headers_to_remove[0]: \":status\" cannot be removed"),
        ),
        (
            route(
                "{match: {prefix: /}, route: {cluster: a}, request_headers_to_add: [{header: {key: Host, value: \
                 x}}]}",
            ),
            format!(
                "{ROUTE}.request_headers_to_add[0].header.key: \"Host\" cannot be changed; use a rewrite of the \
                 route"
            ),
        ),
        (
            forward("upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: WebSocket}]"),
            format!("{ROUTE}.route.upgrade_configs[1]: upgrade \"websocket\" is given twice; keep one"),
        ),
        (
            http("rds: {route_config_name: x, config_source: {api_config_source: {api_type: REST, cluster_names: [x]}}},", "").replace("route_config: {name: r, virtual_hosts: [{name: v, domains: ['*'], routes: []}]}", ""),
            format!("{MANAGER}.rds.config_source.api_config_source.refresh_delay: is required"),
        ),
        (
            tcp("cluster: a").replace("0.0.0.0", "10.0.0.300"),
            "L.address.socket_address.address: \"10.0.0.300\" is not an IP address or host name".to_owned(),
        ),
        (
            tcp("cluster: a").replace("{filters", "{filter_chain_match: {prefix_ranges: [{address_prefix: 1.2.3.4, prefix_len: 33}]}, filters"),
            "L.filter_chains[0].filter_chain_match.prefix_ranges[0].prefix_len: must be at most 32, not 33".to_owned(),
        ),
        (
            tcp("cluster: a").replace("filter_chains: [", "filter_chains: [{filters: [{name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: b}}]}, "),
            "L.filter_chains[1].filter_chain_match: overlaps that of filter_chains[0]; change one".to_owned(),
        ),
        (
            "{name: l, address: {socket_address: {address: '::', port_value: 1}}}".to_owned(),
            "L: needs at least one of filter_chains, default_filter_chain".to_owned(),
        ),
        (
            tcp("cluster: a, access_log: [{name: f, typed_config: {'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /no/such/folder/log}}]"),
            format!(
                "{MANAGER}.access_log[0].typed_config.path: cannot open access log /no/such/folder/log: No such \
                 file or directory (os error 2); its folder must exist and be writable"
            ),
        ),
    ];
    for (yaml, expected) in table {
        assert_eq!(try_listener(&yaml).expect_err(&yaml), expected);
    }
}

#[test]
fn a_cluster_that_cannot_be_honoured_is_refused_by_field_and_remedy() {
    let endpoint = "{endpoint: {address: {socket_address: {address: host, port_value: 1}}}}";
    let table = [
        (
            "{name: c, type: EDS}".to_owned(),
            "C.eds_cluster_config: is required",
        ),
        (
            "{name: c, lb_policy: MAGLEV, maglev_lb_config: {table_size: 10}}".to_owned(),
            "C.maglev_lb_config.table_size: must be a prime of at most 5000011, not 10",
        ),
        (
            "{name: c, lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 2, maximum_ring_size: 1}}".to_owned(),
            "C.ring_hash_lb_config.minimum_ring_size: must not be above maximum_ring_size (2 > 1)",
        ),
        (
            "{name: c, type: ORIGINAL_DST}".to_owned(),
            "C.lb_policy: must be CLUSTER_PROVIDED with type ORIGINAL_DST",
        ),
        (
            format!("{{name: c, load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{endpoint}]}}]}}}}"),
            "C.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address: \"host\" is not an IP address; \
             use one, or type STRICT_DNS or LOGICAL_DNS",
        ),
        (
            "{name: c, type: LOGICAL_DNS}".to_owned(),
            "C.load_assignment: a LOGICAL_DNS cluster needs exactly one endpoint, not 0",
        ),
        (
            "{name: c, outlier_detection: {base_ejection_time: 10s, max_ejection_time: 5s}}".to_owned(),
            "C.outlier_detection.max_ejection_time: must not be below base_ejection_time",
        ),
        (
            "{name: c, transport_socket: {name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {validation_context: {match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: x}}]}}}}}".to_owned(),
            "C.transport_socket.typed_config.common_tls_context.validation_context: subject alternative names can \
             be verified only together with trusted_ca; add it",
        ),
        (
            "{name: c, transport_socket: {name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {validation_context: {trusted_ca: {filename: /no/ca.pem}}}}}}".to_owned(),
            "C.transport_socket.typed_config.common_tls_context.validation_context.trusted_ca.filename: reading \
             /no/ca.pem: No such file or directory (os error 2); check the path and its permissions",
        ),
        (
            "{name: c, transport_socket: {name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {tls_certificate_sds_secret_configs: [{name: s}]}}}}".to_owned(),
            "C.transport_socket.typed_config.common_tls_context.tls_certificate_sds_secret_configs[0].name: unknown \
             secret \"s\"; add it to static_resources.secrets",
        ),
    ];
    for (yaml, expected) in table {
        assert_eq!(try_cluster(&yaml).expect_err(&yaml), expected);
    }
}

fn inline(manager: &HttpConnectionManager) -> &RouteTable {
    let RouteSource::Inline(table) = &manager.routes else { panic!("{:?}", manager.routes) };
    table
}

#[test]
fn envoys_defaults_hold_where_nothing_is_said() {
    let listener = try_listener(&tcp("cluster: a")).unwrap();
    assert_eq!(listener.listener_filters_timeout, Some(Duration::from_secs(15)));
    assert_eq!(listener.per_connection_buffer_limit_bytes, 1 << 20);
    assert!(listener.bind_to_port && !listener.use_original_dst);
    let NetworkFilter::TcpProxy(proxy) = &listener.filter_chains[0].filters[0] else { panic!() };
    assert_eq!((proxy.idle_timeout, proxy.max_connect_attempts), (Some(Duration::from_secs(3600)), 1));
    assert!(matches!(&proxy.cluster, TcpClusters::Single(name) if &**name == "a"));

    let manager = manager(&http("", "{match: {prefix: /}, route: {cluster: a}}"));
    assert_eq!(manager.codec, Codec::Auto);
    assert_eq!(manager.stream_idle_timeout, Some(Duration::from_secs(300)));
    assert_eq!((manager.request_timeout, manager.max_headers_count), (None, 100));
    let Action::Forward(forward) = &inline(&manager).virtual_hosts[0].routes[0].action else { panic!() };
    assert_eq!(forward.timeout, Some(Duration::from_secs(15)));

    let cluster = try_cluster("{name: c}").unwrap();
    assert!(matches!(cluster.discovery, Discovery::Static) && matches!(cluster.lb, LbPolicy::RoundRobin));
    assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
    assert_eq!(cluster.circuit_breakers[0].max_retries, 3);
    assert_eq!((cluster.protocol, cluster.panic_threshold_percent), (UpstreamProtocol::Http1, 50.0));
}

#[test]
fn a_zero_timeout_means_no_limit() {
    let yaml = http(
        "stream_idle_timeout: 0s, common_http_protocol_options: {idle_timeout: 0s},",
        "{match: {prefix: /}, route: {cluster: a, timeout: 0s, max_grpc_timeout: 0s}}",
    );
    let manager = manager(&yaml);
    assert_eq!((manager.stream_idle_timeout, manager.idle_timeout), (None, None));
    let Action::Forward(forward) = &inline(&manager).virtual_hosts[0].routes[0].action else { panic!() };
    assert_eq!((forward.timeout, forward.max_grpc_timeout), (None, Some(None)));
}

#[test]
fn routes_keep_their_matches_and_actions() {
    let yaml = http(
        "",
        "{match: {path: /x, case_sensitive: false, query_parameters: [{name: q, string_match: {exact: v}}]}, \
          route: {weighted_clusters: {clusters: [{name: a, weight: 99}, {name: b, weight: 1}]}, \
                  prefix_rewrite: /y, retry_policy: {retry_on: '5xx, reset', num_retries: 2, \
                  retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}]}}}, \
         {match: {prefix: /r}, redirect: {host_redirect: h, path_redirect: '', response_code: FOUND}}, \
         {match: {safe_regex: {regex: '/a.*'}}, direct_response: {status: 403, body: {inline_string: no}}}, \
         {match: {prefix: /h, headers: [{name: ':method', string_match: {exact: GET}}]}, \
          route: {cluster: a, regex_rewrite: {pattern: {regex: '^/h/([^/]+)$'}, substitution: '/\\1$'}}}",
    );
    let manager = manager(&yaml);
    let routes = &inline(&manager).virtual_hosts[0].routes;
    let Action::Forward(forward) = &routes[0].action else { panic!() };
    assert!(
        matches!(&forward.cluster, ClusterChoice::Weighted { clusters, total: Some(100) } if clusters[1].weight.now() == 1)
    );
    assert!(matches!(&forward.path_rewrite, PathRewrite::Prefix(to) if to == "/y"));
    let retry = forward.retry.as_ref().unwrap();
    assert!(retry.on.server_error && retry.on.reset && !retry.on.connect_failure && retry.previous_hosts);
    assert_eq!(retry.back_off, (Duration::from_millis(25), Duration::from_millis(250)));
    assert!(!routes[0].matches.case_sensitive && routes[0].matches.query.len() == 1);
    let Action::Redirect(redirect) = &routes[1].action else { panic!() };
    assert_eq!((redirect.status, redirect.host.as_deref()), (302, Some("h")));
    assert!(matches!(redirect.path, RedirectPath::Keep), "an empty path_redirect keeps the path");
    assert!(
        matches!(&routes[2].matches.path, PathMatch::Regex(r) if r.is_match("/abc") && !r.is_match("x/abc"))
    );
    let Action::Direct(direct) = &routes[2].action else { panic!() };
    assert_eq!((direct.status, &direct.body[..]), (403, &b"no"[..]));
    let Action::Forward(forward) = &routes[3].action else { panic!() };
    let PathRewrite::Regex(regex, to) = &forward.path_rewrite else { panic!() };
    assert_eq!(regex.replace("/h/z", to.as_str()), "/z$");
}

#[test]
fn clusters_keep_endpoints_protocol_and_limits() {
    let yaml = "
name: c
alt_stat_name: stat;
type: STRICT_DNS
lb_policy: LEAST_REQUEST
dns_lookup_family: V4_ONLY
connect_timeout: 0.25s
circuit_breakers: {thresholds: [{priority: HIGH, max_requests: 7, retry_budget: {}}]}
upstream_connection_options: {tcp_keepalive: {keepalive_time: 300}}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {max_concurrent_streams: 50}}
    common_http_protocol_options: {idle_timeout: 30s, max_requests_per_connection: 10}
load_assignment:
  cluster_name: c
  policy: {overprovisioning_factor: 150}
  endpoints:
  - locality: {region: r}
    priority: 1
    lb_endpoints:
    - endpoint: {address: {socket_address: {address: svc.local, port_value: 80}}}
      load_balancing_weight: 3
      health_status: UNHEALTHY
      metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: istio}}}
";
    let cluster = try_cluster(yaml).unwrap();
    assert_eq!(&*cluster.stat_name, "stat;");
    assert_eq!((cluster.protocol, cluster.http2.max_concurrent_streams), (UpstreamProtocol::Http2, 50));
    assert_eq!(
        (cluster.idle_timeout, cluster.max_requests_per_connection),
        (Some(Duration::from_secs(30)), 10)
    );
    assert_eq!(
        (cluster.circuit_breakers[1].max_requests, cluster.circuit_breakers[0].max_requests),
        (7, 1024)
    );
    assert_eq!(cluster.circuit_breakers[1].retry_budget, Some((20.0, 3)));
    assert_eq!(cluster.load_assignment.overprovisioning_factor_percent, 150);
    let locality = &cluster.load_assignment.localities[0];
    let endpoint = &locality.endpoints[0];
    assert_eq!((locality.priority, endpoint.weight), (1, 3));
    assert_eq!(endpoint.address, EndpointAddress::Host("svc.local".into(), 80));
    assert_eq!(endpoint.transport_match, [("tlsMode".to_owned(), "istio".to_owned())]);
    assert!(matches!(cluster.transport_socket, Transport::Raw));
}

#[test]
fn an_equal_resource_has_an_equal_hash_and_a_changed_one_does_not() {
    let hash = |yaml: &str| try_cluster(yaml).unwrap().content_hash;
    assert_eq!(hash("{name: c, connect_timeout: 1s}"), hash("{connectTimeout: 1.0s, name: c}"));
    assert_ne!(hash("{name: c, connect_timeout: 1s}"), hash("{name: c, connect_timeout: 2s}"));
}

#[test]
fn fields_without_effect_are_told_of_but_do_not_refuse() {
    let node = Node::parse("{name: c, track_cluster_stats: {timeout_budgets: true}, metadata: {}}").unwrap();
    let proto = from_node(&node).unwrap();
    with_context("", |context| {
        super::cluster("C", &proto, context).unwrap();
        assert_eq!(context.ignored.paths, ["C.track_cluster_stats"]);
    });
}

#[test]
fn the_default_bootstrap_of_a_deployment_is_honoured() {
    use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
    let text = include_str!("../../../deploy/bootstrap.yaml");
    let bootstrap: Bootstrap = from_node(&Node::parse(text).unwrap()).unwrap();
    let resources = bootstrap.static_resources.unwrap();
    with_context("", |context| {
        context.clusters = Some(resources.clusters.iter().map(|c| c.name.clone()).collect());
        for cluster in &resources.clusters {
            super::cluster(&cluster.name, cluster, context).unwrap();
        }
        for listener in &resources.listeners {
            super::listener(&listener.name, listener, context).unwrap();
        }
        assert!(context.ignored.paths.is_empty());
    });
}

//! What a user's file may say, and the exact words about what it may not.

use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::core::v3::Node as EnvoyNode;
use mesh_xds::{Node, from_node, to_json};
use serde_json::json;

fn cluster(yaml: &str) -> Result<Cluster, Vec<String>> {
    let node = Node::parse(yaml).expect("the test's YAML is well formed");
    from_node(&node).map_err(|problems| problems.iter().map(|p| format!("{}: {p}", p.line)).collect())
}

#[test]
fn mistakes_are_named_with_line_path_and_remedy() {
    let table = [
        (
            "name: a\nconnect_timout: 1s\n",
            "2: connect_timout: no such field in envoy.config.cluster.v3.Cluster; did you mean connect_timeout?",
        ),
        (
            "name: a\nwombat: 1s\n",
            "2: wombat: no such field in envoy.config.cluster.v3.Cluster; remove it or check its spelling",
        ),
        ("name: a\nconnect_timeout: 5\n", "2: connect_timeout: must be a duration such as 1.5s, not 5"),
        ("name: a\nconnect_timeout: 0s\n", "2: connect_timeout: must be longer than 0s, not 0s"),
        ("connect_timeout: 1s\n", "1: name: is required"),
        ("name: ''\n", "1: name: must not be empty"),
        (
            "name: a\nlb_policy: BEST\n",
            "2: lb_policy: must be one of ROUND_ROBIN, LEAST_REQUEST, RING_HASH, RANDOM, MAGLEV, \
             CLUSTER_PROVIDED, LOAD_BALANCING_POLICY_CONFIG, not BEST",
        ),
        (
            "name: a\nper_connection_buffer_limit_bytes: -1\n",
            "2: per_connection_buffer_limit_bytes: must be a whole number from 0 to 4294967295, not -1",
        ),
        (
            "name: a\nignore_health_on_host_removal: maybe\n",
            "2: ignore_health_on_host_removal: must be true or false, not maybe",
        ),
        ("name: a\nhealth_checks: 1\n", "2: health_checks: must be a list, not 1"),
        (
            "name: a\ntransport_socket:\n  name: x\n  typed_config:\n    '@type': type.googleapis.com/no.Such\n",
            "4: transport_socket.typed_config: @type type.googleapis.com/no.Such is not known; check its spelling",
        ),
        (
            "name: a\ntransport_socket:\n  name: x\n  typed_config: {sni: x}\n",
            "4: transport_socket.typed_config: needs an @type, such as type.googleapis.com/PACKAGE.MESSAGE",
        ),
        (
            "name: a\nload_assignment:\n  cluster_name: a\n  endpoints:\n  - lb_endpoints:\n    - endpoint: {address: {socket_address: {address: 1.2.3.4, port_value: 70000}}}\n",
            "6: load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: must be at most 65535, not 70000",
        ),
        (
            "name: a\nload_assignment:\n  cluster_name: a\n  endpoints:\n  - lb_endpoints:\n    - endpoint: {address: {}}\n",
            "6: load_assignment.endpoints[0].lb_endpoints[0].endpoint.address: needs one of socket_address, pipe, envoy_internal_address (address)",
        ),
        (
            "name: a\ntype: EDS\nclusterType: {name: x}\n",
            "3: clusterType: cannot be given beside type; keep one",
        ),
    ];
    for (yaml, expected) in table {
        let problems = cluster(yaml).expect_err(yaml);
        assert!(problems.iter().any(|p| p.starts_with(expected)), "{yaml}: {problems:#?}");
    }
}

#[test]
fn all_mistakes_of_a_file_are_reported_at_once() {
    let problems = cluster("nam: a\nconnect_timeout: 5\nlb_policy: 99\n").unwrap_err();
    assert_eq!(problems.len(), 4, "{problems:#?}");
}

#[test]
fn a_bootstrap_survives_the_way_to_typed_messages_and_back_to_json() {
    let yaml = r#"
node: {id: n, metadata: {A: 1, B: "2", C: [true, null], D: 1.5}}
admin:
  address: &any {socket_address: {address: 127.0.0.1, port_value: 15000}}
static_resources:
  clusters:
  - name: a
    connectTimeout: 0.250s
    lb_policy: LEAST_REQUEST
    type: STATIC
    circuit_breakers: {thresholds: [{max_connections: 4294967295}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/udpa.type.v1.TypedStruct
        type_url: type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        value:
          sni: example.com
          common_tls_context:
            tls_certificates: [{private_key: {inline_string: secret}}]
"#;
    let node = Node::parse(yaml).unwrap();
    let bootstrap: Bootstrap = from_node(&node).unwrap();
    let admin = bootstrap.admin.clone().unwrap();
    assert!(admin.address.is_some());
    let shown = to_json(&bootstrap).unwrap();
    assert_eq!(
        shown["static_resources"]["clusters"][0],
        json!({
            "name": "a",
            "connect_timeout": "0.250s",
            "lb_policy": "LEAST_REQUEST",
            "type": "STATIC",
            "circuit_breakers": {"thresholds": [{"max_connections": 4294967295u32}]},
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}},
                },
            },
            "transport_socket": {
                "name": "tls",
                "typed_config": {
                    "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
                    "type_url": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "value": {
                        "sni": "example.com",
                        "common_tls_context": {
                            "tls_certificates": [{"private_key": {"inline_string": "[redacted]"}}],
                        },
                    },
                },
            },
        })
    );
    assert_eq!(shown["node"]["metadata"], json!({"A": 1, "B": "2", "C": [true, null], "D": 1.5}));
}

#[test]
fn shown_json_reads_as_the_same_message() {
    let node = Node::parse("id: x\nlocality: {region: r}\nmetadata: {a: {b: [1, 2]}}\n").unwrap();
    let message: EnvoyNode = from_node(&node).unwrap();
    let again = Node::parse(&to_json(&message).unwrap().to_string()).unwrap();
    assert_eq!(from_node::<EnvoyNode>(&again).unwrap(), message);
}

#[test]
fn rules_of_alternatives_hold_only_for_the_one_that_is_given() {
    use mesh_xds::pb::envoy::config::route::v3::RouteMatch;
    let read = |yaml| from_node::<RouteMatch>(&Node::parse(yaml).expect("well formed"));
    assert!(read("prefix: /").is_ok());
    assert!(read("{}").is_err(), "one of the alternatives is needed");
}

/// Bootstraps rely on it: go-control-plane's own write `grpc_services` so.
#[test]
fn one_message_where_a_list_belongs_is_a_list_of_one() {
    let read = |text: &str| from_node::<Cluster>(&Node::parse(text).unwrap()).unwrap();
    let one = "name: a\nload_assignment:\n  cluster_name: a\n  endpoints: {priority: 1}\n";
    let list = "name: a\nload_assignment:\n  cluster_name: a\n  endpoints: [{priority: 1}]\n";
    assert_eq!(read(one), read(list));
}

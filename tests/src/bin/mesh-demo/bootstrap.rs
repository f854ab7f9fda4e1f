//! The Envoy bootstrap of the demo's two mesh-nodes, as a file that a person can read and edit.
//!
//! Text and not a built value on purpose: with `--keep` this file is what the visitor changes. Its
//! shape is what istiod sends a sidecar: one listener per service address and port, one cluster per
//! service and subset, and the two virtual listeners.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use mesh_tests::mesh::ADMIN_PORT;

/// A service with its backends; one that has versions is routed by weight.
pub struct Service {
    pub name: &'static str,
    pub address: Ipv4Addr,
    pub backends: Backends,
}

pub enum Backends {
    All(Vec<SocketAddrV4>),
    /// Version, endpoint, weight in percent; the weights add up to 100.
    Split(Vec<(&'static str, SocketAddrV4, u32)>),
}

/// Port of every Bookinfo service.
pub const PORT: u16 = 9080;

/// The whole file.
pub fn text(services: &[Service]) -> String {
    let mut listeners = String::new();
    let mut clusters = String::new();
    for service in services {
        let Service { name, address, .. } = service;
        let _ = write!(
            listeners,
            "\n  # The service {name}: connections to its address come here from `virtualOutbound`.\n{}",
            outbound_listener(name, *address, &routes(service))
        );
        for (cluster, endpoints) in cluster_endpoints(service) {
            clusters += &static_cluster(&cluster, &endpoints);
        }
    }
    format!(
        "# Envoy bootstrap of a mesh-node: every pod of the node is served from it. Edit it while the\n\
         # demo runs: mesh-node takes a good edit at once, and keeps the last good one over a bad edit.\n\
         node: {{ id: demo, cluster: bookinfo }}\n\
         admin:\n\
         \x20 address: {{ socket_address: {{ address: 127.0.0.1, port_value: {ADMIN_PORT} }} }}\n\
         static_resources:\n\
         \x20 listeners:\n{VIRTUAL_LISTENERS}{listeners}\n\
         \x20 clusters:\n{PASSTHROUGH_CLUSTERS}{clusters}",
    )
}

const VIRTUAL_LISTENERS: &str = r#"
  # What pods connect to: on to the listener of that address, or where it was going.
  - name: virtualOutbound
    traffic_direction: OUTBOUND
    use_original_dst: true
    address: { socket_address: { address: 0.0.0.0, port_value: 15001 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: PassthroughCluster
          cluster: PassthroughCluster

  # What others connect to in pods.
  - name: virtualInbound
    traffic_direction: INBOUND
    address: { socket_address: { address: 0.0.0.0, port_value: 15006 } }
    listener_filters:
    - name: envoy.filters.listener.original_dst
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst
    filter_chains:
    - filter_chain_match: { destination_port: 9080 }
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: inbound_9080
          route_config:
            name: inbound|9080||
            virtual_hosts:
            - name: inbound|http|9080
              domains: ["*"]
              routes:
              - match: { prefix: "/" }
                route: { cluster: "inbound|9080||" }
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
"#;

const PASSTHROUGH_CLUSTERS: &str = r#"
  - name: PassthroughCluster
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    connect_timeout: 10s
  - name: "inbound|9080||"
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    connect_timeout: 10s
"#;

fn outbound_listener(name: &str, address: Ipv4Addr, routes: &str) -> String {
    format!(
        r#"  - name: {address}_{PORT}
    traffic_direction: OUTBOUND
    bind_to_port: false
    address: {{ socket_address: {{ address: {address}, port_value: {PORT} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: outbound_{name}
          route_config:
            name: {name}:{PORT}
            virtual_hosts:
            - name: {name}
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                route:
{routes}          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
"#
    )
}

fn routes(service: &Service) -> String {
    match &service.backends {
        Backends::All(_) => format!("                  cluster: \"{}\"\n", cluster_name(service.name, "")),
        Backends::Split(versions) => {
            let mut text = "                  weighted_clusters:\n                    clusters:\n".to_owned();
            for (version, _, weight) in versions {
                let cluster = cluster_name(service.name, version);
                let _ = writeln!(text, "                    - {{ name: \"{cluster}\", weight: {weight} }}");
            }
            text
        }
    }
}

fn cluster_name(service: &str, subset: &str) -> String {
    format!("outbound|{PORT}|{subset}|{service}")
}

fn cluster_endpoints(service: &Service) -> Vec<(String, Vec<SocketAddrV4>)> {
    match &service.backends {
        Backends::All(endpoints) => vec![(cluster_name(service.name, ""), endpoints.clone())],
        Backends::Split(versions) => versions
            .iter()
            .map(|(version, endpoint, _)| (cluster_name(service.name, version), vec![*endpoint]))
            .collect(),
    }
}

fn static_cluster(name: &str, endpoints: &[SocketAddrV4]) -> String {
    let mut text = format!(
        "  - name: \"{name}\"\n    type: STATIC\n    connect_timeout: 10s\n    load_assignment:\n      \
         cluster_name: \"{name}\"\n      endpoints:\n      - lb_endpoints:\n"
    );
    for endpoint in endpoints {
        let _ = writeln!(
            text,
            "        - endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }}",
            endpoint.ip(),
            endpoint.port()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_a_visitor_edits_is_yaml_with_the_weights_in_it() {
        let endpoint = |last| SocketAddrV4::new(Ipv4Addr::new(10, 244, 1, last), PORT);
        let services = [
            Service {
                name: "details",
                address: Ipv4Addr::new(10, 96, 0, 11),
                backends: Backends::All(vec![endpoint(2)]),
            },
            Service {
                name: "reviews",
                address: Ipv4Addr::new(10, 96, 0, 12),
                backends: Backends::Split(vec![("v1", endpoint(3), 99), ("v3", endpoint(4), 1)]),
            },
        ];
        let value: serde_json::Value = serde_yaml_ng::from_str(&text(&services)).unwrap();
        let listeners = value["static_resources"]["listeners"].as_array().unwrap();
        assert_eq!(listeners.len(), 4);
        let route = &listeners[3]["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]
            [0]["routes"][0]["route"];
        assert_eq!(route["weighted_clusters"]["clusters"][1]["weight"], 1);
        assert_eq!(value["static_resources"]["clusters"].as_array().unwrap().len(), 5);
    }
}

//! What the demo's xDS server sends to the sidecar of every pod, as a file that a person can read and edit.
//!
//! Text and not a built value on purpose: with `--keep` this file is what the visitor changes. Its shape is what
//! istiod sends a sidecar: one listener per service address and port with its route table, one cluster per service
//! and subset with its endpoints, and the two virtual listeners.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

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
    let (mut listeners, mut routes) = (String::new(), String::new());
    let (mut clusters, mut endpoints) = (String::new(), String::new());
    for service in services {
        let Service { name, address, .. } = service;
        let _ = write!(
            listeners,
            "\n# The service {name}: connections to its address come here from `virtualOutbound`.\n{}",
            outbound_listener(name, *address)
        );
        routes += &route_table(service);
        for (cluster, hosts) in cluster_endpoints(service) {
            clusters += &eds_cluster(&cluster);
            endpoints += &assignment(&cluster, &hosts);
        }
    }
    format!(
        "# What the xDS server sends to the sidecar of every pod. Edit it while the demo runs (--keep): when the\n\
         # file is saved, what has changed is pushed.\n\
         routes:\n{routes}\n\
         listeners:\n{VIRTUAL_LISTENERS}{listeners}\n\
         clusters:\n{PASSTHROUGH_CLUSTERS}{clusters}\n\
         endpoints:\n{endpoints}",
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

fn outbound_listener(name: &str, address: Ipv4Addr) -> String {
    format!(
        r#"- name: {address}_{PORT}
  traffic_direction: OUTBOUND
  bind_to_port: false
  address: {{ socket_address: {{ address: {address}, port_value: {PORT} }} }}
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: outbound_{name}
        rds:
          route_config_name: {name}:{PORT}
          config_source: {{ ads: {{}}, resource_api_version: V3 }}
        http_filters:
        - name: envoy.filters.http.router
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
"#
    )
}

fn route_table(service: &Service) -> String {
    let name = service.name;
    let mut text = format!(
        "- name: {name}:{PORT}\n  virtual_hosts:\n  - name: {name}\n    domains: [\"*\"]\n    routes:\n    \
         - match: {{ prefix: \"/\" }}\n      route:\n"
    );
    match &service.backends {
        Backends::All(_) => {
            let _ = writeln!(text, "        cluster: \"{}\"", cluster_name(name, ""));
        }
        Backends::Split(versions) => {
            text += "        weighted_clusters:\n          clusters:\n";
            for (version, _, weight) in versions {
                let cluster = cluster_name(name, version);
                let _ = writeln!(text, "          - {{ name: \"{cluster}\", weight: {weight} }}");
            }
        }
    }
    text
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

fn eds_cluster(name: &str) -> String {
    format!(
        "- name: \"{name}\"\n  type: EDS\n  connect_timeout: 10s\n  \
         eds_cluster_config: {{ eds_config: {{ ads: {{}}, resource_api_version: V3 }} }}\n"
    )
}

fn assignment(cluster: &str, endpoints: &[SocketAddrV4]) -> String {
    let mut text = format!("- cluster_name: \"{cluster}\"\n  endpoints:\n  - lb_endpoints:\n");
    for endpoint in endpoints {
        let _ = writeln!(
            text,
            "    - endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }}",
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
        let text = text(&services);
        let value: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
        assert_eq!(value["listeners"].as_array().unwrap().len(), 4);
        let route = &value["routes"][1]["virtual_hosts"][0]["routes"][0]["route"];
        assert_eq!(route["weighted_clusters"]["clusters"][1]["weight"], 1);
        assert_eq!(value["clusters"].as_array().unwrap().len(), 5);
        assert_eq!(value["endpoints"].as_array().unwrap().len(), 3);
        mesh_tests::xds::Snapshot::of("1", &value).expect("resources that can be sent");
    }
}

//! The Envoy bootstrap that sidecars and mesh-node are given.
//!
//! One builder for both, so that they are measured with the same listeners, routes and clusters: those
//! that istiod sends, without its extensions. The few places where a sidecar needs more are named by
//! [`Proxy`].

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::certificates::Certificates;
use crate::servers::Port;

/// Who reads the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// An Envoy in the pod behind iptables rules: its inbound connections leave from 127.0.0.6, which
    /// the rules let pass.
    Sidecar,
    /// A mesh-node on the node, which connects from the client's address.
    MeshNode,
}

/// What a configuration is built from.
pub struct Bootstrap<'a> {
    pub proxy: Proxy,
    pub l7: bool,
    /// Mutual TLS between the two halves.
    pub tls: Option<&'a Certificates>,
    /// The server pod.
    pub server: Ipv4Addr,
    /// Port of the admin interface on 127.0.0.1.
    pub admin_port: u16,
}

impl Bootstrap<'_> {
    pub fn build(&self) -> Value {
        let mut listeners = vec![self.virtual_outbound(), self.virtual_inbound()];
        listeners.extend(Port::ALL.map(|port| self.outbound(port)));
        let mut clusters = vec![json!({
            "name": "PassthroughCluster", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "10s",
        })];
        clusters.extend(Port::ALL.map(|port| self.outbound_cluster(port)));
        clusters.extend(Port::ALL.map(|port| self.inbound_cluster(port)));
        json!({
            "node": {"id": "bench", "cluster": "bench"},
            "admin": {"address": socket_address("127.0.0.1", self.admin_port)},
            "static_resources": {"listeners": listeners, "clusters": clusters},
        })
    }

    fn virtual_outbound(&self) -> Value {
        json!({
            "name": "virtualOutbound", "traffic_direction": "OUTBOUND", "use_original_dst": true,
            "address": socket_address("0.0.0.0", 15001),
            "filter_chains": [{"filters": [tcp_proxy("PassthroughCluster")]}],
        })
    }

    fn outbound(&self, port: Port) -> Value {
        let number = port.number();
        json!({
            "name": format!("0.0.0.0_{number}"), "traffic_direction": "OUTBOUND", "bind_to_port": false,
            "address": socket_address("0.0.0.0", number),
            "filter_chains": [{"filters": [self.filter(port, &outbound_name(port))]}],
        })
    }

    /// TLS is told from plaintext as Istio's PERMISSIVE mode does, where TLS is used at all.
    fn virtual_inbound(&self) -> Value {
        let mut listener_filters = vec![typed(
            "envoy.filters.listener.original_dst",
            "listener.original_dst.v3.OriginalDst",
            json!({}),
        )];
        if self.tls.is_some() {
            listener_filters.push(typed(
                "envoy.filters.listener.tls_inspector",
                "listener.tls_inspector.v3.TlsInspector",
                json!({}),
            ));
        }
        let chain = |port: Port| {
            let mut chain = json!({
                "name": inbound_name(port),
                "filter_chain_match": {"destination_port": port.number()},
                "filters": [self.filter(port, &inbound_name(port))],
            });
            if let Some(tls) = self.tls {
                chain["filter_chain_match"]["transport_protocol"] = "tls".into();
                chain["transport_socket"] = typed(
                    "envoy.transport_sockets.tls",
                    "transport_sockets.tls.v3.DownstreamTlsContext",
                    json!({
                        "require_client_certificate": true,
                        "common_tls_context": tls_context(tls, &["istio-peer-exchange", "h2", "http/1.1"]),
                    }),
                );
            }
            chain
        };
        json!({
            "name": "virtualInbound", "traffic_direction": "INBOUND",
            "address": socket_address("0.0.0.0", 15006),
            "listener_filters": listener_filters,
            "filter_chains": Port::ALL.map(chain),
        })
    }

    fn filter(&self, port: Port, cluster: &str) -> Value {
        if self.l7 && port.is_http() { http_connection_manager(cluster) } else { tcp_proxy(cluster) }
    }

    fn outbound_cluster(&self, port: Port) -> Value {
        let name = outbound_name(port);
        let mut cluster = json!({
            "name": name, "type": "STATIC", "connect_timeout": "10s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": socket_address(&self.server.to_string(), port.number())}},
            ]}]},
        });
        if let Some(tls) = self.tls {
            let alpn = match (self.l7, port) {
                (true, Port::Http2 | Port::Grpc) => "h2",
                (true, Port::Http1) => "http/1.1",
                _ => "istio-peer-exchange",
            };
            cluster["transport_socket"] = typed(
                "envoy.transport_sockets.tls",
                "transport_sockets.tls.v3.UpstreamTlsContext",
                json!({
                    "sni": format!("outbound_.{}_._.server.default.svc.cluster.local", port.number()),
                    "common_tls_context": tls_context(tls, &[alpn]),
                }),
            );
        }
        self.use_downstream_protocol(port, cluster)
    }

    fn inbound_cluster(&self, port: Port) -> Value {
        let mut cluster = json!({
            "name": inbound_name(port), "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "10s",
        });
        if self.proxy == Proxy::Sidecar {
            cluster["upstream_bind_config"] =
                json!({"source_address": {"address": "127.0.0.6", "port_value": 0}});
        }
        self.use_downstream_protocol(port, cluster)
    }

    fn use_downstream_protocol(&self, port: Port, mut cluster: Value) -> Value {
        if self.l7 && port.is_http() {
            cluster["typed_extension_protocol_options"] = json!({
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}},
                },
            });
        }
        cluster
    }
}

fn outbound_name(port: Port) -> String {
    format!("outbound|{}||server.default.svc.cluster.local", port.number())
}

fn inbound_name(port: Port) -> String {
    format!("inbound|{}||", port.number())
}

fn socket_address(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

fn typed(name: &str, message: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/envoy.extensions.{}{message}", prefix_of(message)).into();
    json!({"name": name, "typed_config": config})
}

/// Listener and network filters live in the package `filters`, transport sockets do not.
fn prefix_of(message: &str) -> &'static str {
    if message.starts_with("transport_sockets") { "" } else { "filters." }
}

fn tcp_proxy(cluster: &str) -> Value {
    typed(
        "envoy.filters.network.tcp_proxy",
        "network.tcp_proxy.v3.TcpProxy",
        json!({"stat_prefix": cluster, "cluster": cluster}),
    )
}

fn http_connection_manager(cluster: &str) -> Value {
    typed(
        "envoy.filters.network.http_connection_manager",
        "network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": cluster,
            "codec_type": "AUTO",
            "normalize_path": true,
            "route_config": {"name": cluster, "virtual_hosts": [{
                "name": cluster, "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}],
            }]},
            "http_filters": [typed("envoy.filters.http.router", "http.router.v3.Router", json!({}))],
        }),
    )
}

fn tls_context(files: &Certificates, alpn: &[&str]) -> Value {
    let file = |path: &std::path::Path| json!({"filename": path.to_string_lossy()});
    json!({
        "alpn_protocols": alpn,
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": file(&files.chain), "private_key": file(&files.key)}],
        "validation_context": {"trusted_ca": file(&files.authority)},
    })
}

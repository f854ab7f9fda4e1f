//! Connections that go where the client's TLS says, not where it connected to (`sni_dynamic_forward_proxy`).

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use mesh_tests::mesh::{MeshConfig, passthrough_with};
use mesh_tests::need_root;
use mesh_tests::peer::{Place, Server};
use serde_json::{Value, json};

use crate::stage::{Stage, Way};

const PORT: u16 = 9443;

/// The first message of a TLS client that asks for `name`: just enough to be one (RFC 8446 section 4.1.2), and short
/// enough that every length takes one byte that is a character.
fn client_hello(name: &str) -> String {
    let text = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect::<String>();
    let length = |of: &str| text(&[0, of.len() as u8]);
    let name = text(&[0]) + &length(name) + name; // a host name
    let names = length(&name) + &name;
    let signatures = text(&[0, 13, 0, 4, 0, 2, 4, 3]);
    let extensions = text(&[0, 0]) + &length(&names) + &names + &signatures;
    let suites = text(&[0, 2, 0x13, 1, 1, 0]); // one, without compression
    let body = text(&[3, 3]) + &"r".repeat(32) + &text(&[0]) + &suites + &length(&extensions) + &extensions;
    let message = text(&[1, 0]) + &length(&body) + &body;
    text(&[0x16, 3, 1]) + &length(&message) + &message
}

fn extension(name: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.{kind}"));
    json!({"name": name, "typed_config": config})
}

#[test]
fn a_connection_goes_to_the_name_that_its_tls_client_asks_for() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let cache = json!({"name": "names", "dns_lookup_family": "V4_ONLY"});
    let by_name = json!({
        "name": "virtualOutbound",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15001}},
        "use_original_dst": true,
        "traffic_direction": "OUTBOUND",
        "listener_filters": [extension("tls", "filters.listener.tls_inspector.v3.TlsInspector", json!({}))],
        "filter_chains": [{"filters": [
            extension(
                "name",
                "filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
                json!({"dns_cache_config": cache, "port_value": PORT}),
            ),
            extension(
                "tcp",
                "filters.network.tcp_proxy.v3.TcpProxy",
                json!({"stat_prefix": "by-name", "cluster": "by-name"}),
            ),
        ]}],
    });
    let names = json!({
        "name": "by-name",
        "connect_timeout": "10s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": extension(
            "envoy.clusters.dynamic_forward_proxy",
            "clusters.dynamic_forward_proxy.v3.ClusterConfig",
            json!({"dns_cache_config": cache}),
        ),
    });
    let config =
        MeshConfig { bootstrap: passthrough_with(vec![by_name], vec![names]), ..MeshConfig::default() };
    let _mesh = stage.mesh(&config, &[&stage.client])?;
    // Every resolver knows this name, and the pod's own loopback is behind it.
    let named = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let _server = stage.client.serve("named", Server::Report, &[named])?;
    let mut session = stage.client.session(stage.target(Way::V4))?;
    let hello = client_hello("localhost");
    assert_eq!(session.exchange(&hello)?, hello);
    assert_eq!(session.who()?.name, "named");
    Ok(())
}

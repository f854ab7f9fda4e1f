//! A pod that leaves the mesh while connections through the proxy are open: they are told to end, and when they
//! have, the pod is as it was found.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{MeshConfig, passthrough_with};
use mesh_tests::need_root;
use mesh_tests::netns::Pod;
use mesh_tests::peer::{Place, Server, Session};
use mesh_tests::process::deadline;
use serde_json::{Value, json};

use crate::stage::{Stage, Way};

const HTTP_PORT: u16 = 8090;

/// An inbound listener that reads HTTP.
fn http_inbound() -> Value {
    json!({
        "name": "virtualInbound",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15006}},
        "use_original_dst": true,
        "traffic_direction": "INBOUND",
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "inbound",
                "drain_timeout": "1s",
                "route_config": {"virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "InboundPassthroughCluster"}}],
                }]},
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                }],
            },
        }]}],
    })
}

/// A request on a connection that stays open, and the first line of its answer.
fn request(session: &mut Session) -> Result<String> {
    // Of the end of a line the session takes one CR with the LF, and gives the LF back.
    session.exchange("GET / HTTP/1.1\r\r\nhost: server\r\r\n\r\r")
}

/// Waits until nothing of ours is left in the pod.
fn wait_as_found(pod: &Pod) -> Result<()> {
    let until = Instant::now() + deadline();
    loop {
        let rules = pod.netns().ip_output("-4 rule show")? + &pod.netns().ip_output("-6 rule show")?;
        if !rules.contains("fwmark") {
            return Ok(());
        }
        ensure!(Instant::now() < until, "the pod has left, and its rules are still {rules}");
        std::thread::sleep(Duration::from_millis(20)); // the period of the poll
    }
}

#[test]
fn idle_connections_of_a_pod_that_leaves_are_ended_and_nothing_of_ours_stays_in_it() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let to = SocketAddr::new(Way::V4.of(&stage.server), HTTP_PORT);
    let _server = stage.server.serve("http", Server::Http, &[to])?;
    let config =
        MeshConfig { bootstrap: passthrough_with(vec![http_inbound()], Vec::new()), ..MeshConfig::default() };
    let mut mesh = stage.mesh(&config, &[&stage.server])?;
    let mut session = stage.client.session(to)?;
    assert!(request(&mut session)?.contains("200"));
    assert_eq!(mesh.stat("http.inbound.downstream_cx_total")?, 1, "through the proxy");

    mesh.enrol(&[])?;
    let end =
        std::iter::repeat_with(|| session.ended()).find(|line| !matches!(line, Ok(l) if l.starts_with("> ")));
    assert_eq!(end.context("no end")??, "end of file");
    wait_as_found(&stage.server)?;
    assert!(request(&mut stage.client.session(to)?)?.contains("200"), "without the proxy");
    assert_eq!(mesh.stat("http.inbound.downstream_cx_total")?, 1, "without the proxy");
    Ok(())
}

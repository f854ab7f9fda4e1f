//! Outbound and inbound steering between pods, in both address families, over both kinds of pod network.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use mesh_tests::mesh::{MeshConfig, MeshNode, passthrough_with};
use mesh_tests::need_root;
use mesh_tests::netns::{Link, Node, Pod, PodSpec};
use mesh_tests::peer::{CallOptions, ForeignCgroup, HostNetworkPod, Place};
use serde_json::json;

use crate::stage::{FIRST_PORT, PORT, Stage, Taken, WAYS, Way, ends_are_true, serve, taken, taken_during};

const OUTBOUND: Taken = Taken { outbound: 1, inbound: 0 };
const INBOUND: Taken = Taken { outbound: 0, inbound: 1 };
const BOTH: Taken = Taken { outbound: 1, inbound: 1 };
const NEITHER: Taken = Taken { outbound: 0, inbound: 0 };

/// Calls the server in every family and by both protocols, and checks what each end sees and what
/// the proxy took.
fn check(stage: &Stage, mesh: &MeshNode, from: &impl Place, expected: Taken) -> Result<()> {
    for way in WAYS {
        let to = stage.target(way);
        let (call, taken) = taken_during(mesh, || from.call_with(to, &way.options()))?;
        ends_are_true(&call, way.of(&stage.client), to).with_context(|| format!("{way:?}"))?;
        assert_eq!(taken, expected, "{way:?}");
        let to = SocketAddr::new(to.ip(), FIRST_PORT);
        let first = CallOptions { server_first: true, ..way.options() };
        ends_are_true(&from.call_with(to, &first)?, way.of(&stage.client), to)
            .with_context(|| format!("{way:?}, server first"))?;
    }
    Ok(())
}

fn outbound_by_the_connect_hook(stage: &Stage) -> Result<()> {
    let mesh = stage.mesh(&MeshConfig::default(), &[&stage.client])?;
    check(stage, &mesh, &stage.client, OUTBOUND)?;
    assert!(mesh.count("connect", "steered_outbound")? >= 6.0, "the connect hook steered");
    assert_eq!(mesh.count("tc_guard", "refused_unsteered")?, 0.0);
    Ok(())
}

#[test]
fn outbound_of_a_routed_pod_is_steered_by_the_connect_hook_unnoticed_by_both_ends() -> Result<()> {
    need_root!();
    outbound_by_the_connect_hook(&Stage::routed()?)
}

#[test]
fn outbound_of_a_bridged_pod_is_steered_by_the_connect_hook_unnoticed_by_both_ends() -> Result<()> {
    need_root!();
    outbound_by_the_connect_hook(&Stage::bridged()?)
}

fn outbound_by_tc(stage: &Stage) -> Result<()> {
    let config = MeshConfig::default().without_connect_hook();
    let mesh = stage.mesh(&config, &[&stage.client])?;
    check(stage, &mesh, &stage.client, OUTBOUND)?;
    assert_eq!(mesh.count("connect", "steered_outbound")?, 0.0);
    assert!(mesh.count("tc_steer", "steered_outbound")? >= 6.0, "TC steered");
    Ok(())
}

#[test]
fn outbound_of_a_routed_pod_is_steered_by_tc_where_the_connect_hook_is_off() -> Result<()> {
    need_root!();
    outbound_by_tc(&Stage::routed()?)
}

#[test]
fn outbound_of_a_bridged_pod_is_steered_by_tc_where_the_connect_hook_is_off() -> Result<()> {
    need_root!();
    outbound_by_tc(&Stage::bridged()?)
}

#[test]
fn a_process_outside_the_pods_cgroup_is_steered_by_tc() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let mesh = stage.mesh(&MeshConfig::default(), &[&stage.client])?;
    check(&stage, &mesh, &ForeignCgroup(&stage.client), OUTBOUND)?;
    assert!(mesh.count("tc_steer", "steered_outbound")? >= 6.0, "TC steered");
    Ok(())
}

fn inbound(stage: &Stage) -> Result<()> {
    let mesh = stage.mesh(&MeshConfig::default(), &[&stage.server])?;
    check(stage, &mesh, &stage.client, INBOUND)?;
    assert!(mesh.count("sk_lookup", "steered_inbound")? >= 6.0);
    Ok(())
}

#[test]
fn inbound_of_a_routed_pod_is_steered_and_the_server_sees_the_client() -> Result<()> {
    need_root!();
    inbound(&Stage::routed()?)
}

#[test]
fn inbound_of_a_bridged_pod_is_steered_and_the_server_sees_the_client() -> Result<()> {
    need_root!();
    inbound(&Stage::bridged()?)
}

#[test]
fn between_two_enrolled_pods_of_a_node_both_halves_run() -> Result<()> {
    need_root!();
    for stage in [Stage::routed()?, Stage::bridged()?] {
        let mesh = stage.mesh(&MeshConfig::default(), &[&stage.client, &stage.server])?;
        check(&stage, &mesh, &stage.client, BOTH)?;
        // Each connection stays with the worker that has its outbound half.
        let connections = mesh.count("sk_lookup", "steered_inbound")?;
        assert!(connections >= 6.0, "{connections}");
        assert!(mesh.count("sk_lookup", "steered_sibling")? >= connections);
    }
    Ok(())
}

#[test]
fn between_two_nodes_each_proxy_takes_its_half() -> Result<()> {
    need_root!();
    let (one, two) = (Node::new("one", 1)?, Node::new("two", 2)?);
    let _link = Link::new(&one, &two)?;
    let client = one.pod("client")?;
    let server = two.pod_with(PodSpec::new("server").bridged())?;
    let _servers = serve(&server, "server")?;
    let near = MeshNode::start(&one, &MeshConfig::default(), &[&client])?;
    let far = MeshNode::start(&two, &MeshConfig::default(), &[&server])?;
    for way in WAYS {
        let to = SocketAddr::new(way.of(&server), PORT);
        let ((call, there), here) =
            taken_during(&near, || taken_during(&far, || client.call_with(to, &way.options())))?;
        ends_are_true(&call, way.of(&client), to)?;
        assert_eq!((here, there), (OUTBOUND, INBOUND), "{way:?}");
    }
    Ok(())
}

#[test]
fn a_service_address_reaches_its_listener_as_original_destination() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let vips = ["10.96.0.20", "fd10:96::20"];
    let listeners: Vec<_> = vips
        .iter()
        .enumerate()
        .map(|(i, vip)| {
            json!({
                "name": vip,
                "address": {"socket_address": {"address": vip, "port_value": 80}},
                "bind_to_port": false,
                "traffic_direction": "OUTBOUND",
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.tcp_proxy",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                        "stat_prefix": format!("vip{i}"),
                        "cluster": format!("vip{i}"),
                    },
                }]}],
            })
        })
        .collect();
    let clusters: Vec<_> = stage.server.addresses().iter().enumerate().map(|(i, ip)| json!({
        "name": format!("vip{i}"),
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": format!("vip{i}"), "endpoints": [{"lb_endpoints": [{"endpoint":
            {"address": {"socket_address": {"address": ip, "port_value": PORT}}}}]}]},
    })).collect();
    let config = MeshConfig { bootstrap: passthrough_with(listeners, clusters), ..MeshConfig::default() };
    let mesh = stage.mesh(&config, &[&stage.client])?;
    for (way, i) in [(Way::V4, 0), (Way::V6, 1), (Way::Mapped, 0)] {
        let vip = SocketAddr::new(vips[i].parse()?, 80);
        let before = mesh.stat(&format!("tcp.vip{i}.downstream_cx_total"))?;
        let call = stage.client.call_with(vip, &way.options())?;
        let seen = call.ok().with_context(|| format!("{way:?}"))?;
        assert_eq!(seen.local, stage.target(way), "the listener of the service took the connection");
        assert_eq!(seen.peer.ip(), way.of(&stage.client));
        assert_eq!(call.peer.map(|p| p.ip().to_canonical()), Some(vip.ip()), "the client sees the service");
        assert_eq!(mesh.stat(&format!("tcp.vip{i}.downstream_cx_total"))?, before + 1);
    }
    Ok(())
}

#[test]
fn probes_of_the_kubelet_pass_and_host_network_pods_do_not() -> Result<()> {
    need_root!();
    for stage in [Stage::routed()?, Stage::bridged()?] {
        let mesh = stage.mesh(&MeshConfig::default(), &[&stage.server])?;
        for way in WAYS {
            let to = stage.target(way);
            let (call, taken) = taken_during(&mesh, || stage.node.call_with(to, &way.options()))?;
            call.ok().with_context(|| format!("probe, {way:?}"))?;
            assert_eq!(taken, NEITHER, "a probe is not steered, {way:?}");
            let pod = HostNetworkPod(&stage.node);
            let (call, taken) = taken_during(&mesh, || pod.call_with(to, &way.options()))?;
            call.ok().with_context(|| format!("host-network pod, {way:?}"))?;
            assert_eq!(taken, INBOUND, "a host-network pod is steered, {way:?}");
        }
        assert!(mesh.count("sk_lookup", "passed_host")? >= 3.0);
    }
    Ok(())
}

#[test]
fn a_pod_that_opted_out_is_left_alone() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let out = stage.node.pod_with(PodSpec::new("out").opt_out())?;
    let _servers = serve(&out, "out")?;
    let mesh = stage.mesh(&MeshConfig::default(), &[&out])?;
    let to = SocketAddr::new(Way::V4.of(&out), PORT);
    let (call, taken) = taken_during(&mesh, || stage.client.call(to))?;
    call.ok()?;
    assert_eq!(taken, NEITHER, "inbound");
    let (call, taken) = taken_during(&mesh, || out.call(stage.target(Way::V6)))?;
    call.ok()?;
    assert_eq!(taken, NEITHER, "outbound");
    Ok(())
}

/// Excludes the same of the client and the server of `stage`, for the whole node or by annotations of
/// the two pods.
fn exclusions(stage: &Stage, config: &MeshConfig, client: &Pod, server: &Pod) -> Result<()> {
    let _servers = serve(server, "other")?;
    let mesh = stage.mesh(config, &[client, server])?;
    let first = CallOptions { server_first: true, ..Way::V4.options() };
    let plain = Way::V4.options();
    let at = |ip, port| SocketAddr::new(ip, port);
    let stranger = stage.node.pod("stranger")?;
    for (from, to, options, expected, what) in [
        (client, at(Way::V4.of(&stage.server), FIRST_PORT), &first, NEITHER, "outbound, excluded port"),
        (client, stage.target(Way::V4), &plain, OUTBOUND, "outbound, other port"),
        (client, stage.target(Way::V6), &plain, NEITHER, "outbound, excluded address"),
        (&stranger, at(Way::V4.of(server), FIRST_PORT), &first, NEITHER, "inbound, excluded port"),
        (&stranger, at(Way::V6.of(server), PORT), &plain, INBOUND, "inbound, other port"),
    ] {
        let (call, taken) = taken_during(&mesh, || from.call_with(to, options))?;
        call.ok().context(what)?;
        assert_eq!(taken, expected, "{what}");
    }
    Ok(())
}

#[test]
fn ports_and_addresses_excluded_on_the_node_are_left_alone_and_others_are_not() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let (client, server) = (stage.node.pod("picky")?, stage.node.pod("partly")?);
    let config = MeshConfig::default()
        .setting("exclude_outbound_ports", vec![FIRST_PORT])
        .setting("exclude_outbound_cidrs", vec![format!("{}/128", stage.server.v6())])
        .setting("exclude_inbound_ports", vec![FIRST_PORT]);
    exclusions(&stage, &config, &client, &server)
}

#[test]
fn ports_and_addresses_excluded_by_a_pods_annotations_are_left_alone_and_others_are_not() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let annotation = |name: &str| format!("traffic.sidecar.istio.io/{name}");
    let port = FIRST_PORT.to_string();
    let picky = PodSpec::new("picky")
        .annotation(&annotation("excludeOutboundPorts"), &port)
        .annotation(&annotation("excludeOutboundIPRanges"), &format!("{}/128", stage.server.v6()));
    let partly = PodSpec::new("partly").annotation(&annotation("excludeInboundPorts"), &port);
    let (client, server) = (stage.node.pod_with(picky)?, stage.node.pod_with(partly)?);
    exclusions(&stage, &MeshConfig::default(), &client, &server)
}

#[test]
fn a_client_that_thinks_before_it_speaks_is_served_and_counted_once() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let inspecting = json!({
        "name": "virtualOutbound",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15001}},
        "use_original_dst": true,
        "traffic_direction": "OUTBOUND",
        "listener_filters": [{
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
            },
        }],
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "PassthroughCluster",
                "cluster": "PassthroughCluster",
            },
        }]}],
    });
    let config =
        MeshConfig { bootstrap: passthrough_with(vec![inspecting], Vec::new()), ..MeshConfig::default() };
    let mut mesh = stage.mesh(&config, &[&stage.client])?;
    let mut session = stage.client.session(stage.target(Way::V4))?;
    // The server is asked meanwhile whether it speaks first.
    mesh.wait_stat("cluster.PassthroughCluster.upstream_cx_total", |opened| opened == 1)?;
    assert_eq!(taken(&mesh)?, NEITHER, "the client has not come yet");
    assert_eq!(session.exchange("at last")?, "at last");
    assert_eq!(taken(&mesh)?, OUTBOUND);
    Ok(())
}

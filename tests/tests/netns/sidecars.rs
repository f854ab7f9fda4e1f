//! Each pod with a sidecar of its own: one server, a configuration for each pod over ADS.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{MeshConfig, MeshNode, passthrough_with};
use mesh_tests::need_root;
use mesh_tests::netns::Pod;
use mesh_tests::peer::Place;
use mesh_tests::process::{Process, deadline};
use mesh_tests::xds::{Form, Server, Snapshot, ads, bootstrap};
use mesh_xds::client::ResourceType;
use serde_json::{Value, json};

use crate::stage::{PORT, Stage, released, serve, taken_during};

/// A service address that only the configuration knows.
const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, 50)), 80);

/// Two servers, two clients, and the xDS server of their node.
struct Scene {
    stage: Stage,
    other_server: Pod,
    other_client: Pod,
    _other: Vec<Process>,
    xds: Server,
}

impl Scene {
    fn new() -> Result<Scene> {
        let stage = Stage::routed()?;
        let other_server = stage.node.pod("other-server")?;
        let other_client = stage.node.pod("other-client")?;
        let other = serve(&other_server, "other-server")?;
        let socket = stage.node.netns().run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
        let xds = Server::start(socket)?;
        Ok(Scene { stage, other_server, other_client, _other: other, xds })
    }

    fn mesh(&self, form: Form, pods: &[&Pod]) -> Result<MeshNode> {
        let bootstrap = bootstrap(self.xds.address(), form);
        let config = MeshConfig { bootstrap: bootstrap.to_string(), ..MeshConfig::default() };
        self.stage.mesh(&config.setting("virtual_sidecars", true), pods)
    }

    /// From now on connections of `client` to the service go to `server`.
    fn push(&self, version: &str, client: &Pod, server: &Pod) -> Result<()> {
        self.xds.push(&node_id(client), snapshot(version, server)?);
        Ok(())
    }

    /// Connects to the service, and says who answers.
    fn reached_by(&self, client: &Pod) -> Result<String> {
        Ok(client.call(SERVICE)?.ok().with_context(|| client.name().to_owned())?.name.clone())
    }

    /// Waits until the client's sidecar has taken this version of its endpoints.
    fn applied(&self, version: &str, client: &Pod) -> Result<()> {
        self.xds.wait_acked(&node_id(client), ResourceType::Endpoint, version, deadline())
    }
}

fn node_id(pod: &Pod) -> String {
    let namespace = &pod.spec().namespace;
    format!("sidecar~{}~{}.{namespace}~{namespace}.svc.cluster.local", pod.v4(), pod.name())
}

/// Passthrough, but for the service, whose only endpoint is `server`.
fn snapshot(version: &str, server: &Pod) -> Result<Snapshot> {
    let service = json!({ "name": "service", "type": "EDS", "eds_cluster_config": { "eds_config": ads() } });
    let all = passthrough_with(vec![to_cluster("service", "service")], vec![service]);
    let all: Value = serde_json::from_str(&all)?;
    let mut snapshot = Snapshot::of(version, &all["static_resources"])?;
    let endpoint = json!({ "endpoint": { "address": address((server.v4(), PORT).into()) } });
    let endpoints = json!({ "cluster_name": "service", "endpoints": [{ "lb_endpoints": [endpoint] }] });
    snapshot.add(ResourceType::Endpoint, &endpoints)?;
    Ok(snapshot)
}

/// The listener of the service.
fn to_cluster(name: &str, cluster: &str) -> Value {
    json!({
        "name": name, "address": address(SERVICE), "bind_to_port": false, "traffic_direction": "OUTBOUND",
        "filter_chains": [{ "filters": [{ "name": "tcp", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": name, "cluster": cluster } }] }],
    })
}

fn address(of: SocketAddr) -> Value {
    json!({ "socket_address": { "address": of.ip().to_string(), "port_value": of.port() } })
}

#[test]
fn each_pods_traffic_goes_as_its_own_configuration_says_and_a_push_moves_only_its_own() -> Result<()> {
    need_root!();
    let scene = Scene::new()?;
    let (client, other_client) = (&scene.stage.client, &scene.other_client);
    let (server, other_server) = (&scene.stage.server, &scene.other_server);
    for (round, form) in [Form::Delta, Form::StateOfTheWorld].into_iter().enumerate() {
        let version = |step: u32| format!("{round}.{step}");
        scene.push(&version(1), client, server)?;
        scene.push(&version(1), other_client, other_server)?;
        scene.xds.push_to_others(snapshot(&version(1), server)?);
        let mesh = scene.mesh(form, &[client, other_client, server])?;
        ensure!(scene.reached_by(client)? == "server", "{form:?}");
        ensure!(scene.reached_by(other_client)? == "other-server", "{form:?}");
        // Both halves of a connection between two pods are each served by their own pod's sidecar.
        let direct: SocketAddr = (server.v4(), PORT).into();
        let (call, taken) = taken_during(&mesh, || client.call(direct))?;
        ensure!(call.ok()?.name == "server" && (taken.outbound, taken.inbound) == (1, 1), "{taken:?}");
        // One pod's configuration changes; the other pod's connection does not notice.
        let mut session = other_client.session(SERVICE)?;
        session.who()?;
        scene.push(&version(2), client, other_server)?;
        scene.applied(&version(2), client)?;
        ensure!(scene.reached_by(client)? == "other-server", "{form:?}: after the push");
        ensure!(scene.reached_by(other_client)? == "other-server", "{form:?}: not its push");
        ensure!(session.exchange("still")? == "still", "{form:?}");
        let (status, dump) = mesh.get(&format!("/config_dump?workload=default/{}", client.name()))?;
        ensure!(status == 200 && dump.contains("\"service\""), "{status} {dump}");
        ensure!(!mesh.get("/config_dump")?.1.contains("\"active_state\""), "the node itself has none");
    }
    Ok(())
}

#[test]
fn pods_come_and_go_and_one_that_is_refused_its_configuration_keeps_the_last_without_disturbing_others()
-> Result<()> {
    need_root!();
    let scene = Scene::new()?;
    let (client, other_client) = (&scene.stage.client, &scene.other_client);
    let (server, other_server) = (&scene.stage.server, &scene.other_server);
    scene.push("1", client, server)?;
    scene.push("1", other_client, other_server)?;
    let mut mesh = scene.mesh(Form::Delta, &[client])?;
    let mut session = client.session(SERVICE)?;
    ensure!(session.who()?.name == "server");
    // A pod that comes is served by its own from its first connection on.
    mesh.enrol(&[client, other_client])?;
    ensure!(scene.reached_by(other_client)? == "other-server");
    // A bad listener is refused by name, and what served before serves.
    let mut bad = snapshot("2", server)?;
    bad.add(
        ResourceType::Listener,
        &json!({
            "name": "bad", "address": address(SERVICE),
            "filter_chains": [{ "filters": [{ "name": "echo", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo" } }] }],
        }),
    )?;
    scene.xds.push(&node_id(other_client), bad);
    let listeners = (node_id(other_client), ResourceType::Listener);
    scene.xds.wait("the NACK", deadline(), |book| {
        let nacked = book.get(&listeners).and_then(|standing| standing.nacked.as_deref());
        nacked.is_some_and(|reason| reason.contains("bad") && reason.contains("Echo"))
    })?;
    // The endpoints of the same push were taken.
    scene.applied("2", other_client)?;
    ensure!(scene.reached_by(other_client)? == "server");
    // A pod that goes takes its own with it; one that returns is asked for anew.
    mesh.enrol(&[client])?;
    released(other_client)?;
    ensure!(session.exchange("still")? == "still");
    scene.push("3", other_client, other_server)?;
    mesh.enrol(&[client, other_client])?;
    ensure!(scene.reached_by(other_client)? == "other-server");
    ensure!(session.exchange("still")? == "still");
    Ok(())
}

#[test]
fn a_changed_bootstrap_reaches_the_sidecars_of_pods_that_are_there() -> Result<()> {
    need_root!();
    let scene = Scene::new()?;
    let client = &scene.stage.client;
    // The listener is the pod's own, its cluster the bootstrap's.
    let mut own = snapshot("1", &scene.stage.server)?;
    own.add(ResourceType::Listener, &to_cluster("service", "fixed"))?;
    scene.xds.push(&node_id(client), own);
    let text = |server: &Pod| {
        let mut bootstrap = bootstrap(scene.xds.address(), Form::Delta);
        let endpoint = json!({ "endpoint": { "address": address((server.v4(), PORT).into()) } });
        let fixed = json!({ "name": "fixed", "load_assignment": {
            "cluster_name": "fixed", "endpoints": [{ "lb_endpoints": [endpoint] }] } });
        if let Some(clusters) = bootstrap["static_resources"]["clusters"].as_array_mut() {
            clusters.push(fixed);
        }
        bootstrap.to_string()
    };
    let config = MeshConfig { bootstrap: text(&scene.stage.server), ..MeshConfig::default() };
    let mesh = scene.stage.mesh(&config.setting("virtual_sidecars", true), &[client])?;
    let mut session = client.session(SERVICE)?;
    ensure!(session.who()?.name == "server");
    mesh.set_bootstrap(&text(&scene.other_server))?;
    let until = std::time::Instant::now() + deadline();
    while scene.reached_by(client)? != "other-server" {
        ensure!(std::time::Instant::now() < until, "the changed bootstrap does not serve");
    }
    ensure!(session.exchange("still")? == "still", "a connection from before goes on");
    Ok(())
}

//! Pods from the Kubernetes API: enrolled by label, found by their processes, served while the API is away.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::kube_api::KubeApi;
use mesh_tests::mesh::{MeshConfig, MeshNode};
use mesh_tests::need_root;
use mesh_tests::netns::Pod;
use mesh_tests::peer::{Call, CallOptions, Place};
use mesh_tests::process::{Process, binary};
use serde_json::{Value, json};

use crate::stage::{Stage, Taken, Way, released, taken_during};

const LABEL: &str = "istio.io/dataplane-mode";
const NODE: &str = "node-1";

/// A stage, an API that knows its pods, and a process in each pod, as every pod has one.
struct Scene {
    stage: Stage,
    api: KubeApi,
    address: SocketAddr,
    folder: tempfile::TempDir,
    _sandboxes: Vec<Process>,
}

impl Scene {
    fn new() -> Result<Scene> {
        let stage = Stage::routed()?;
        let sandboxes = [&stage.client, &stage.server].map(sandbox).into_iter().collect::<Result<_>>()?;
        let mut api = KubeApi::default();
        let address = api.serve(socket(&stage, 0)?)?;
        api.set_namespace("default", &[])?;
        for pod in [&stage.client, &stage.server] {
            api.set_pod(object(pod, |_| {}))?;
        }
        let folder = tempfile::tempdir()?;
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{address}") } }],
            "users": [{ "name": "u", "user": {} }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        });
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string())?;
        Ok(Scene { stage, api, address, folder, _sandboxes: sandboxes })
    }

    /// Goes away, and comes back under the same address.
    fn serve_again(&mut self) -> Result<()> {
        let socket = socket(&self.stage, self.address.port())?;
        self.api.serve(socket).map(drop)
    }

    fn mesh(&self) -> Result<MeshNode> {
        self.mesh_of(MeshConfig::default())
    }

    fn mesh_of(&self, config: MeshConfig) -> Result<MeshNode> {
        let config = config
            .setting("pods_file", Value::Null)
            .setting("pods_from", "kubernetes")
            .setting("node_name", NODE)
            .setting("kubeconfig", self.folder.path().join("kubeconfig").display().to_string());
        self.stage.mesh(&config, &[])
    }

    fn enrol_namespace(&self) -> Result<()> {
        self.api.set_namespace("default", &[(LABEL, "mesh")])
    }

    /// Connects from the client to the server: who steered it?
    fn steered(&self, mesh: &MeshNode) -> Result<Taken> {
        let (call, taken) = taken_during(mesh, || self.stage.client.call(self.stage.target(Way::V4)))?;
        call.ok()?;
        Ok(taken)
    }
}

const BOTH: Taken = Taken { outbound: 1, inbound: 1 };
const NONE: Taken = Taken { outbound: 0, inbound: 0 };

/// A process that only is there, as a pod's pause container.
fn sandbox(pod: &Pod) -> Result<Process> {
    let mut command = Command::new("sleep");
    command.arg("infinity");
    pod.spawn(command)
}

fn socket(stage: &Stage, port: u16) -> Result<TcpListener> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    stage.node.netns().run(bind)?.context("listening")
}

/// The pod as the API has it.
fn object(pod: &Pod, change: impl FnOnce(&mut Value)) -> Value {
    let ips: Vec<Value> = pod.addresses().iter().map(|ip| json!({ "ip": ip })).collect();
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": pod.name(), "namespace": "default", "uid": pod.uid(), "labels": {} },
        "spec": { "nodeName": NODE, "containers": [{ "name": "app" }] },
        "status": { "phase": "Running", "podIP": pod.v4(), "podIPs": ips },
    });
    change(&mut object);
    object
}

#[test]
fn labels_of_namespace_and_pod_enrol_pods_that_run_and_let_them_go_and_pods_of_others_are_left() -> Result<()>
{
    need_root!();
    let scene = Scene::new()?;
    let (client, server) = (&scene.stage.client, &scene.stage.server);
    let elsewhere = |pod: &mut Value| pod["spec"]["nodeName"] = "node-2".into();
    let named = |name: &str, change: &dyn Fn(&mut Value)| -> Value {
        object(client, |pod| {
            pod["metadata"]["name"] = name.into();
            pod["metadata"]["uid"] = format!("uid-{name}").into();
            change(pod);
        })
    };
    scene.api.set_pod(named("elsewhere", &elsewhere))?;
    scene.api.set_pod(named("host", &|pod| pod["spec"]["hostNetwork"] = true.into()))?;
    scene
        .api
        .set_pod(named("injected", &|pod| pod["spec"]["containers"][0]["name"] = "istio-proxy".into()))?;
    scene.api.set_pod(named("done", &|pod| pod["status"]["phase"] = "Succeeded".into()))?;
    let mut mesh = scene.mesh()?;
    ensure!(scene.steered(&mesh)? == NONE, "nobody asked for it");
    scene.enrol_namespace()?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 2.0)?;
    ensure!(scene.steered(&mesh)? == BOTH);
    // One pod opts out, and comes back.
    scene.api.set_pod(object(server, |pod| pod["metadata"]["labels"][LABEL] = "none".into()))?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 1.0)?;
    released(server)?;
    scene.api.set_pod(object(server, |_| {}))?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 2.0)?;
    ensure!(scene.steered(&mesh)? == BOTH);
    // The namespace leaves, one pod asks for itself.
    scene.api.set_pod(object(client, |pod| pod["metadata"]["labels"][LABEL] = "mesh".into()))?;
    scene.api.set_namespace("default", &[])?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 1.0)?;
    released(server)?;
    ensure!(scene.steered(&mesh)? == Taken { outbound: 1, inbound: 0 });
    scene.api.delete_pod("default", client.name());
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 0.0)?;
    let told = mesh.process()?.errors();
    ensure!(told.contains("default/host is not enrolled: it runs in the host's network"), "{told}");
    ensure!(told.contains("default/injected is not enrolled: it has a sidecar of its own"), "{told}");
    Ok(())
}

#[test]
fn whatever_happens_to_the_api_enrolled_pods_stay_served_and_what_was_missed_is_made_up_for() -> Result<()> {
    need_root!();
    let mut scene = Scene::new()?;
    scene.enrol_namespace()?;
    let mut mesh = scene.mesh()?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 2.0)?;
    let server = object(&scene.stage.server, |_| {});
    let opted_out = object(&scene.stage.server, |pod| pod["metadata"]["labels"][LABEL] = "none".into());
    // The watch ends: it goes on where it was.
    let listed = scene.api.asked("list pods");
    scene.api.hang_up();
    scene.api.set_pod(opted_out.clone())?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 1.0)?;
    ensure!(scene.api.asked("list pods") == listed, "it was listed anew");
    // The past is forgotten: everything is listed anew, and a pod that was deleted meanwhile is let go.
    released(&scene.stage.server)?;
    scene.api.set_pod(server.clone())?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 2.0)?;
    scene.api.delete_pod_and_forget("default", scene.stage.server.name());
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 1.0)?;
    ensure!(scene.api.asked("list pods") > listed);
    released(&scene.stage.server)?;
    scene.api.set_pod(server)?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 2.0)?;
    // Rights are taken away, then the API itself: everybody is served.
    scene.api.forbid(true);
    mesh.process()?.wait_error("grant its service account `list` and `watch`")?;
    ensure!(scene.steered(&mesh)? == BOTH);
    scene.api.forbid(false);
    scene.api.stop();
    mesh.process()?.wait_error("check that the address is reachable")?;
    ensure!(scene.steered(&mesh)? == BOTH);
    scene.api.set_pod(opted_out)?;
    scene.serve_again()?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 1.0)?;
    mesh.process()?.wait_error("answers again")?;
    Ok(())
}

#[test]
fn a_restart_without_the_api_serves_the_pods_of_before_that_still_run() -> Result<()> {
    need_root!();
    let mut scene = Scene::new()?;
    scene.enrol_namespace()?;
    let gone = scene.stage.node.pod("gone")?;
    let process = sandbox(&gone)?;
    scene.api.set_pod(object(&gone, |_| {}))?;
    let mut mesh = scene.mesh()?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 3.0)?;
    mesh.kill_9();
    scene.api.stop();
    drop(process);
    drop(gone);
    mesh.launch()?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 2.0)?;
    ensure!(scene.steered(&mesh)? == BOTH);
    // The API is back and knows better.
    scene.api.delete_pod("default", "gone");
    scene.api.set_pod(object(&scene.stage.server, |pod| pod["metadata"]["labels"][LABEL] = "none".into()))?;
    scene.serve_again()?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 1.0)?;
    mesh.terminate()?;
    mesh.cleanup()?;
    Ok(())
}

#[test]
fn a_pod_that_connects_before_anybody_knows_it_is_captured_or_let_go_as_its_labels_say() -> Result<()> {
    need_root!();
    let scene = Scene::new()?;
    scene.enrol_namespace()?;
    let client = &scene.stage.client;
    scene.api.delete_pod("default", client.name());
    // However long it takes on a slow machine.
    let mut mesh = scene.mesh_of(MeshConfig::default().setting("hold_new_pods_ms", 30_000))?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 1.0)?;
    // As the API has it while it starts: no address yet.
    let starting = |label: &str| {
        object(client, |pod| {
            pod["status"] = json!({ "phase": "Pending" });
            pod["metadata"]["labels"] = json!({ LABEL: label });
        })
    };
    // Not of the mesh: it is not kept waiting for longer than it takes to find that out.
    scene.api.set_pod(starting("none"))?;
    ensure!(scene.steered(&mesh)? == Taken { outbound: 0, inbound: 1 });
    scene.api.delete_pod("default", client.name());

    let newcomer = scene.stage.node.pod("newcomer")?;
    let _sandbox = sandbox(&newcomer)?;
    let before = mesh.metric("mesh_enrolled_pods", "")?;
    let (call, taken) = taken_during(&mesh, || {
        let mut peer = Command::new(binary("mesh-peer")?);
        peer.args(["call", "--to", &scene.stage.target(Way::V4).to_string()]);
        let mut calling = newcomer.spawn(peer)?;
        // The API tells of it while it waits.
        scene.api.set_pod(object(&newcomer, |pod| pod["status"] = json!({ "phase": "Pending" })))?;
        Ok(serde_json::from_str::<Call>(&calling.line()?)?)
    })?;
    call.ok()?;
    ensure!(before == 1.0 && taken == BOTH, "{taken:?}");
    // What the API says of its address later changes nothing.
    scene.api.set_pod(object(&newcomer, |_| {}))?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 2.0)?;
    let told = mesh.process()?.errors();
    ensure!(!told.contains("released pod=default/newcomer"), "{told}");
    Ok(())
}

#[test]
fn a_new_server_is_looked_for_when_it_takes_its_port_and_not_when_it_is_asked() -> Result<()> {
    need_root!();
    let scene = Scene::new()?;
    scene.enrol_namespace()?;
    let mut mesh = scene.mesh_of(MeshConfig::default().setting("log_level", "info,mesh_node::app=debug"))?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 2.0)?;
    let newcomer = scene.stage.node.pod("newcomer")?;
    let mut serve = Command::new(binary("mesh-peer")?);
    serve.args(["serve", "--listen", "0.0.0.0:8080", "--name", "newcomer", "--mode", "report"]);
    let _server = newcomer.spawn(serve)?;
    mesh.process()?.wait_error("a pod that nobody knows uses the network")?;
    scene.api.set_pod(object(&newcomer, |pod| pod["status"] = json!({ "phase": "Pending" })))?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 3.0)?;
    Ok(())
}

#[test]
fn without_a_proxy_a_new_pod_is_refused_only_where_somebody_asks_for_the_mesh() -> Result<()> {
    need_root!();
    let scene = Scene::new()?;
    let config =
        || MeshConfig::default().setting("heartbeat_timeout_ms", 1000).setting("hold_new_pods_ms", 100);
    let mut mesh = scene.mesh_of(config())?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 0.0)?;
    mesh.kill_9();
    away(&mesh)?;
    let stranger = scene.stage.node.pod("stranger")?;
    stranger.call(scene.stage.target(Way::V4))?.ok()?;

    scene.enrol_namespace()?;
    mesh.launch()?;
    mesh.wait_metric("mesh_enrolled_pods", |pods| pods == 2.0)?;
    mesh.kill_9();
    away(&mesh)?;
    let newcomer = scene.stage.node.pod("newcomer")?;
    let hasty = CallOptions { timeout_ms: Some(500), ..CallOptions::default() };
    let refused = |call: &Call| call.failure.as_ref().is_some_and(|f| f.errno == Some(nix::libc::EPERM));
    let held = newcomer.call_with(scene.stage.target(Way::V4), &hasty)?;
    ensure!(held.server.is_none(), "{held:?}");
    // Held for its time, it is refused from then on.
    let call = newcomer.call_with(scene.stage.target(Way::V4), &hasty)?;
    ensure!(refused(&call), "{call:?}");
    Ok(())
}

/// Returns when the programs hold the proxy for gone.
fn away(mesh: &MeshNode) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(20);
    while !mesh.status()?.contains("proxy::away") {
        ensure!(Instant::now() < until, "{}", mesh.status()?);
        std::thread::sleep(Duration::from_millis(50)); // the period of the poll
    }
    Ok(())
}

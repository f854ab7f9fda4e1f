//! Bookinfo's services, an Envoy sidecar and a mesh-node on one node, all under one istiod.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{ADMIN_PORT, MeshConfig, MeshNode};
use mesh_tests::netns::{Node, Pod};
use mesh_tests::process::{Process, deadline};
use mesh_tests::xds::Form;
use mesh_tests::{redirect, run};
use serde_json::{Value, json};

use crate::backend::{Backend, PORT};
use crate::call::{Answer, Ask};
use crate::control::{Filters, Istiod, XDS_PORT};

/// The services' addresses.
pub const REVIEWS: SocketAddr = vip(11);
pub const RATINGS: SocketAddr = vip(12);
pub const DETAILS: SocketAddr = vip(13);
/// A service that only says which configuration is in force.
const MARKER: SocketAddr = vip(99);

const fn vip(last: u8) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, last)), PORT)
}

/// Where istiod's resources come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Registry {
    /// `ServiceEntry` in files.
    Files,
    /// Services, endpoint slices and pods of an API server.
    Kubernetes,
}

/// The client pods: one behind each proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Envoy,
    Mesh,
}

pub struct Stage {
    pub istiod: Istiod,
    mesh: MeshNode,
    pub backends: Vec<Backend>,
    /// Outside the mesh: what leads to it is egress.
    pub external: Backend,
    mesh_client: Pod,
    envoy: Option<(Pod, Process)>,
    marker: std::cell::Cell<u32>,
}

impl Stage {
    /// Both proxies on one istiod; `None` where something is missing that was said.
    pub fn with_both(registry: Registry, form: Form) -> Result<Option<Self>> {
        let Some(envoy) = envoy() else { return Ok(None) };
        Self::start(registry, form, Some(envoy))
    }

    /// mesh-node alone on an istiod that sends everything that a stock one does. The services' pods have sidecars too.
    pub fn with_mesh(registry: Registry) -> Result<Option<Self>> {
        Self::start(registry, Form::Delta, None)
    }

    fn start(registry: Registry, form: Form, envoy: Option<PathBuf>) -> Result<Option<Self>> {
        let filters = if envoy.is_some() { Filters::ForUpstreamEnvoy } else { Filters::Stock };
        let node = Node::new("istio", 1)?;
        let mut backends = Vec::new();
        let pods = [
            ("reviews", "v1", ""),
            ("reviews", "v1", "-b"),
            ("reviews", "v1", "-c"),
            ("reviews", "v2", ""),
            ("reviews", "v3", ""),
            ("ratings", "v1", ""),
            ("details", "v1", ""),
        ];
        for (service, version, copy) in pods {
            backends.push(Backend::start(&node, service, version, copy, PORT)?);
        }
        let external = Backend::start(&node, "external", "v1", "", 80)?;
        let mesh_client = node.pod("client-mesh")?;
        let envoy_client = envoy.as_ref().map(|_| node.pod("client-envoy")).transpose()?;
        let istiod = match registry {
            Registry::Files => Istiod::with_files(&node, filters, &service_entries(&backends))?,
            Registry::Kubernetes => Istiod::with_kube(&node, filters, &services(&backends))?,
        };
        let Some(istiod) = istiod else { return Ok(None) };
        if let Some(kube) = istiod.kube() {
            let clients = envoy_client.iter().chain([&mesh_client]);
            for pod in backends.iter().map(|backend| &backend.pod).chain(clients) {
                kube.pod(pod.name(), &pod.spec().labels, pod.v4())?;
            }
        }
        let bootstrap = bootstrap(&node, form, "mesh-node", &Value::Null);
        let config = MeshConfig { bootstrap: bootstrap.to_string(), ..MeshConfig::default() };
        let config = config.setting("virtual_sidecars", true);
        let mut enrolled = vec![&mesh_client];
        if filters == Filters::Stock {
            enrolled.extend(backends.iter().map(|backend| &backend.pod));
        }
        let mesh = MeshNode::start(&node, &config, &enrolled)?;
        let envoy = match envoy.zip(envoy_client) {
            Some((program, pod)) => Some((pod.clone(), start_envoy(&program, &pod, form)?)),
            None => None,
        };
        let marker = std::cell::Cell::new(0);
        let stage = Self { istiod, mesh, backends, external, mesh_client, envoy, marker };
        stage.settled()?;
        Ok(Some(stage))
    }

    pub fn sides(&self) -> Vec<Side> {
        let envoy = self.envoy.iter().map(|_| Side::Envoy);
        envoy.chain([Side::Mesh]).collect()
    }

    pub fn client(&self, side: Side) -> &Pod {
        match (side, &self.envoy) {
            (Side::Envoy, Some((pod, _))) => pod,
            _ => &self.mesh_client,
        }
    }

    /// A page of the proxy's administration.
    pub fn admin(&self, side: Side, page: &str) -> Result<String> {
        let pod = self.client(side);
        let (netns, page) = match side {
            Side::Envoy => (pod.netns(), page.to_owned()),
            Side::Mesh => {
                let more = if page.contains('?') { '&' } else { '?' };
                (self.mesh.node().netns(), format!("{page}{more}workload=default/{}", pod.name()))
            }
        };
        let mut command = Command::new("curl");
        command.args(["-sSf", "-m", "20", &format!("http://127.0.0.1:{ADMIN_PORT}{page}")]);
        netns.tool(command, None)
    }

    /// Asks through one proxy; the request must be answered.
    pub fn ask(&self, side: Side, ask: &Ask) -> Result<Answer> {
        let answer = ask.from(self.client(side)).with_context(|| format!("{side:?}: {ask:?}"))?;
        answer.with_context(|| format!("{side:?}: {ask:?}: the connection ended without an answer"))
    }

    /// Asks through both; they must agree. Returns the answer through mesh-node.
    pub fn agree(&self, ask: &Ask) -> Result<Answer> {
        let mesh = self.ask(Side::Mesh, ask)?;
        if self.envoy.is_some() {
            let envoy = self.ask(Side::Envoy, ask)?;
            let (envoy, mesh) = (envoy.comparable(), mesh.comparable());
            ensure!(envoy == mesh, "{ask:?}: the proxies differ:\nEnvoy     {envoy}\nmesh-node {mesh}");
        }
        Ok(mesh)
    }

    /// Puts these resources into force in all proxies.
    pub fn rules(&self, name: &str, yaml: &str) -> Result<()> {
        self.istiod.apply(name, yaml)?;
        self.settled()
    }

    /// Waits until every proxy has what was applied: a route that is changed last has come. A listener that is new has
    /// asked for its routes by then; they are there when the next such push has come too.
    pub fn settled(&self) -> Result<()> {
        let next = self.marker.get() + 1;
        self.marker.set(next);
        self.istiod.apply("marker", &marker(next))?;
        let until = Instant::now() + 2 * deadline();
        for side in self.sides() {
            loop {
                let answer =
                    Ask::get(MARKER, "marker.default.svc.cluster.local:9080", "/").from(self.client(side));
                match answer {
                    Ok(Some(answer)) if answer.body.trim() == format!("marker {next}") => break,
                    other => {
                        let refused = self.istiod.nothing_was_refused();
                        ensure!(
                            Instant::now() < until && refused.is_ok(),
                            "{side:?} did not take configuration {next}: {other:?}, {refused:?}"
                        );
                    }
                }
                std::thread::sleep(Duration::from_millis(30)); // the period of the poll
            }
        }
        Ok(())
    }

    /// Requests that the pods of a version have seen.
    pub fn hits(&self, service: &str, version: &str) -> u64 {
        let of = |b: &&Backend| b.service == service && b.version == version;
        self.backends.iter().filter(of).map(Backend::hits).sum()
    }
}

/// The oracle.
fn envoy() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.local/envoy/envoy");
    if !path.exists() {
        eprintln!("SKIPPED: Envoy is missing: `cargo xtask setup` unpacks it to .local/envoy");
        return None;
    }
    Some(path)
}

fn start_envoy(program: &Path, pod: &Pod, form: Form) -> Result<Process> {
    let (ip, name) = (pod.v4(), pod.name());
    let ips: Vec<String> = pod.addresses().iter().map(ToString::to_string).collect();
    let metadata = json!({
        "NAME": name, "NAMESPACE": "default", "SERVICE_ACCOUNT": "default", "INSTANCE_IPS": ips.join(","),
        "ISTIO_VERSION": "1.32.0", "CLUSTER_ID": "Kubernetes", "MESH_ID": "cluster.local", "NETWORK": "",
        "INTERCEPTION_MODE": "REDIRECT", "POD_PORTS": "[]", "PROXY_CONFIG": {}, "WORKLOAD_NAME": name,
        "LABELS": { "app": name, "security.istio.io/tlsMode": "istio" },
    });
    let id = format!("sidecar~{ip}~{name}.default~default.svc.cluster.local");
    let bootstrap = bootstrap(pod.node(), form, &id, &metadata);
    let file = run::work_dir().join(format!("{}.json", pod.netns().name()));
    std::fs::write(&file, bootstrap.to_string())?;
    redirect::to_sidecar(pod)?;
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={0}", redirect::PROXY_ID), &format!("--regid={0}", redirect::PROXY_ID)]);
    command.arg("--clear-groups").arg(program);
    command.args(["--concurrency", "1", "--log-level", "warning", "--disable-hot-restart", "-c"]).arg(file);
    pod.spawn(command)
}

/// For both proxies: everything comes by ADS. `sds-grpc` is the agent beside a sidecar, which is not there.
fn bootstrap(node: &Node, form: Form, id: &str, metadata: &Value) -> Value {
    let api_type = match form {
        Form::Delta => "DELTA_GRPC",
        Form::StateOfTheWorld => "GRPC",
    };
    let cluster = |name: &str, address: Ipv4Addr, port: u16| {
        json!({
            "name": name, "connect_timeout": "1s", "type": "STATIC",
            "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} } } },
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": {
                "address": { "socket_address": { "address": address, "port_value": port } } } }] }] },
        })
    };
    let ads = json!({ "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s" });
    let mut clusters = vec![cluster("xds-grpc", node.v4(), XDS_PORT)];
    if !metadata.is_null() {
        clusters.push(cluster("sds-grpc", Ipv4Addr::LOCALHOST, 1));
    }
    let mut who = json!({ "id": id, "cluster": "client" });
    if !metadata.is_null() {
        who["metadata"] = metadata.clone();
    }
    json!({
        "node": who,
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": ADMIN_PORT } } },
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type, "transport_api_version": "V3", "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
            },
            "cds_config": ads, "lds_config": ads,
        },
        "static_resources": { "clusters": clusters },
    })
}

/// A route that says which configuration it belongs to.
fn marker(number: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: marker, namespace: default}}
spec:
  hosts: [marker.default.svc.cluster.local]
  http: [{{directResponse: {{status: 200, body: {{string: 'marker {number}'}}}}}}]
"
    )
}

fn addresses() -> [(&'static str, SocketAddr); 4] {
    [("reviews", REVIEWS), ("ratings", RATINGS), ("details", DETAILS), ("marker", MARKER)]
}

/// The services as entries of a mesh without Kubernetes.
fn service_entries(backends: &[Backend]) -> String {
    let entry = |(name, vip): (&str, SocketAddr)| {
        let endpoints = backends
            .iter()
            .filter(|b| b.service == name)
            .map(|b| json!({ "address": b.pod.v4(), "labels": { "app": name, "version": b.version } }));
        let mut endpoints: Vec<Value> = endpoints.collect();
        if endpoints.is_empty() {
            endpoints.push(json!({ "address": "10.244.1.250" }));
        }
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "hosts": [format!("{name}.default.svc.cluster.local")], "addresses": [vip.ip()],
                "location": "MESH_INTERNAL", "resolution": "STATIC",
                "ports": [{ "number": PORT, "name": "http", "protocol": "HTTP" }], "endpoints": endpoints,
            },
        })
    };
    documents(addresses().map(entry))
}

/// The services as Kubernetes has them.
fn services(backends: &[Backend]) -> String {
    let of = |(name, vip): (&str, SocketAddr)| {
        let endpoints = backends.iter().filter(|b| b.service == name).map(|b| {
            json!({
                "addresses": [b.pod.v4()], "conditions": { "ready": true }, "nodeName": "node-1",
                "targetRef": { "kind": "Pod", "name": b.pod.name(), "namespace": "default" },
            })
        });
        let endpoints: Vec<Value> = endpoints.collect();
        let port = json!([{ "name": "http", "port": PORT, "protocol": "TCP" }]);
        [
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
                "spec": { "clusterIP": vip.ip(), "ports": port },
            }),
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": { "name": format!("{name}-1"), "namespace": "default",
                              "labels": { "kubernetes.io/service-name": name } },
                "endpoints": endpoints, "ports": port,
            }),
        ]
    };
    documents(addresses().map(of).concat())
}

fn documents(of: impl IntoIterator<Item = Value>) -> String {
    let texts: Vec<String> = of.into_iter().map(|document| document.to_string()).collect();
    texts.join("\n---\n")
}

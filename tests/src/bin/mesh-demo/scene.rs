//! The scene: two nodes with a link, Bookinfo's pods on both, kube-proxy's rules for its services.
//!
//! ```text
//!   node 1: client  productpage  reviews-v1  ratings
//!   node 2: details  reviews-v2  reviews-v3
//! ```

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail};

use mesh_tests::kube_proxy::{self, KubeProxy};
use mesh_tests::mesh::{MeshConfig, MeshNode};
use mesh_tests::netns::{Link, Node, Pod, PodSpec};
use mesh_tests::process::{self, Process, deadline};
use mesh_tests::run;
use mesh_tests::xds::{self, Form, Server, Snapshot, Standings};
use mesh_xds::client::ResourceType;

use crate::client::Report;
use crate::resources::{self, Backends, PORT, Service};

/// Everything that runs. Parts are dropped, and thereby removed, in the order of the fields.
pub struct Scene {
    pub mesh: Vec<MeshNode>,
    /// The control plane, in node 1's network.
    pub xds: Server,
    /// How often something was pushed: the version of the last push.
    pushes: u32,
    processes: Vec<Process>,
    pub client: Pod,
    pods: Vec<Pod>,
    pub nodes: [Node; 2],
    _link: Link,
}

/// Addresses of the services.
pub const PRODUCTPAGE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const DETAILS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 11);
const REVIEWS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 12);
const RATINGS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 13);

/// A pod of the application.
struct AppPod {
    name: &'static str,
    /// Index into the nodes.
    node: usize,
    service: &'static str,
    version: &'static str,
    calls: &'static [(&'static str, Ipv4Addr)],
}

const fn app(
    name: &'static str,
    node: usize,
    service: &'static str,
    version: &'static str,
    calls: &'static [(&'static str, Ipv4Addr)],
) -> AppPod {
    AppPod { name, node, service, version, calls }
}

const PODS: [AppPod; 6] = [
    app("productpage-v1", 0, "productpage", "v1", &[("details", DETAILS), ("reviews", REVIEWS)]),
    app("reviews-v1", 0, "reviews", "v1", &[]),
    app("ratings-v1", 0, "ratings", "v1", &[]),
    app("details-v1", 1, "details", "v1", &[]),
    app("reviews-v2", 1, "reviews", "v2", &[("ratings", RATINGS)]),
    app("reviews-v3", 1, "reviews", "v3", &[("ratings", RATINGS)]),
];

/// The types of resources that each sidecar has, in the order in which they are asked for.
pub const TYPES: [ResourceType; 4] =
    [ResourceType::Cluster, ResourceType::Endpoint, ResourceType::Listener, ResourceType::Route];
/// Port of the xDS server: istiod's for plain text.
const XDS_PORT: u16 = 15010;

/// What came of a push.
pub struct Pushed {
    pub at: SystemTime,
    pub version: String,
    /// Until the first and the last sidecar had said that it took it.
    pub acked: (std::time::Duration, std::time::Duration),
}

/// Percent of requests to `reviews` for v1, v2, v3.
pub type Split = [u32; 3];

impl Scene {
    /// Nodes, pods and services, without a mesh. Returns when every service answers.
    pub fn build() -> Result<Scene> {
        let nodes = [Node::new("node-1", 1)?, Node::new("node-2", 2)?];
        let link = Link::new(&nodes[0], &nodes[1])?;
        let client = nodes[0].pod_with(PodSpec::new("client"))?;
        let mut pods = Vec::new();
        let mut processes = Vec::new();
        for AppPod { name, node, service, version, calls } in PODS {
            let spec = PodSpec::new(name).label("app", service).label("version", version);
            let pod = nodes[node].pod_with(spec)?;
            let mut command = Command::new(process::binary("bookinfo")?);
            command.args([
                "--service",
                service,
                "--version",
                version,
                "--listen",
                &format!("0.0.0.0:{PORT}"),
            ]);
            for (name, address) in calls {
                command.args(["--upstream", &format!("{name}={address}:{PORT}")]);
            }
            processes.push(pod.spawn(command)?);
            pods.push(pod);
        }
        let socket = nodes[0].netns().run(|| TcpListener::bind((nodes[0].v4(), XDS_PORT)))??;
        let xds = Server::start(socket)?;
        let scene = Scene { mesh: Vec::new(), xds, pushes: 0, processes, client, pods, nodes, _link: link };
        let services: Vec<kube_proxy::Service> = scene
            .services([50, 0, 50])
            .into_iter()
            .map(|service| kube_proxy::Service {
                name: service.name.to_owned(),
                addresses: vec![service.address.into()],
                port: PORT,
                node_port: None,
                endpoints: endpoints(&service.backends),
            })
            .collect();
        for node in &scene.nodes {
            KubeProxy::Nftables.apply(node, &services)?;
        }
        scene.wait_for_page()?;
        Ok(scene)
    }

    /// Starts a mesh-node on each node and enrols all pods of it; each pod's sidecar asks the xDS server for its
    /// configuration.
    pub fn start_mesh(&mut self, split: Split) -> Result<()> {
        self.set_split(split)?;
        let bootstrap = xds::bootstrap(self.xds.address(), Form::Delta).to_string();
        let config = MeshConfig { bootstrap, ..MeshConfig::default() }.setting("virtual_sidecars", true);
        for node in &self.nodes {
            let on_node: Vec<&Pod> = self
                .pods
                .iter()
                .chain([&self.client])
                .filter(|pod| pod.node().index() == node.index())
                .collect();
            let mut mesh = MeshNode::start(node, &config, &on_node)
                .with_context(|| format!("starting mesh-node on node {}", node.index()))?;
            mesh.enrol(&on_node)?;
            self.mesh.push(mesh);
        }
        let all: Vec<_> = self.pods().flat_map(|pod| TYPES.map(|kind| (node_id(pod), kind))).collect();
        self.xds.wait("the configuration of every pod", deadline(), |book| {
            all.iter().all(|key| book.get(key).is_some_and(|standing| standing.acked.is_some()))
        })?;
        // Connections from before the enrolment go on unproxied; Bookinfo's end when idle for 500 ms.
        std::thread::sleep(std::time::Duration::from_millis(600));
        Ok(())
    }

    /// Pushes other weights of `reviews`, and waits until every pod's sidecar has taken them.
    pub fn push_split(&mut self, split: Split) -> Result<Pushed> {
        let (at, began) = (SystemTime::now(), Instant::now());
        self.set_split(split)?;
        let acked = self.wait_for_routes(began)?;
        Ok(Pushed { at, version: self.pushes.to_string(), acked })
    }

    /// Writes the file and pushes it.
    fn set_split(&mut self, split: Split) -> Result<()> {
        let text = resources::text(&self.services(split));
        std::fs::write(self.resources_path(), text).context("writing the resources")?;
        self.push_file()
    }

    /// Pushes what the file of resources says now.
    pub fn push_file(&mut self) -> Result<()> {
        let path = self.resources_path();
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let lists = serde_yaml_ng::from_str(&text)?;
        let snapshot = Snapshot::of(&(self.pushes + 1).to_string(), &lists)?;
        self.pushes += 1;
        self.xds.push_to_others(snapshot);
        Ok(())
    }

    /// The file that holds what is pushed.
    pub fn resources_path(&self) -> PathBuf {
        run::work_dir().join("resources.yaml")
    }

    /// Waits until all sidecars have taken the routes of the last push: how long the first and the last took.
    fn wait_for_routes(&self, since: Instant) -> Result<(std::time::Duration, std::time::Duration)> {
        let version = self.pushes.to_string();
        let ids: Vec<String> = self.pods().map(node_id).collect();
        let times = |book: &Standings| {
            let of = |id: &String| {
                let (acked, at) = book.get(&(id.clone(), ResourceType::Route))?.acked.clone()?;
                (acked == version).then(|| at.saturating_duration_since(since))
            };
            ids.iter().map(of).collect::<Option<Vec<_>>>()
        };
        self.xds.wait("the ACK of every pod's sidecar", deadline(), |book| times(book).is_some())?;
        let times = times(&self.xds.standings()).unwrap_or_default();
        Ok((times.iter().min().copied().unwrap_or_default(), times.iter().max().copied().unwrap_or_default()))
    }

    /// Starts the client in its pod; with `times` it also reports when each page came.
    pub fn start_client(&self, connections: usize, seconds: u64, times: bool) -> Result<Process> {
        let mut command = client_command(connections, seconds)?;
        if times {
            command.arg("--times");
        }
        self.client.spawn(command)
    }

    /// Runs the client in its pod to its end.
    pub fn run_client(&self, connections: usize, seconds: u64) -> Result<Report> {
        read_report(&mut self.start_client(connections, seconds, false)?)
    }

    /// Runs the client in its pod's network but in a control group outside the node's pods, where the
    /// connect hook does not see it.
    pub fn run_foreign_client(&self, connections: usize, seconds: u64) -> Result<Report> {
        let foreign = mesh_tests::run::cgroup()?.join("foreign");
        read_report(&mut self.client.spawn_in(&foreign, client_command(connections, seconds)?)?)
    }

    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().chain([&self.client])
    }

    fn services(&self, split: Split) -> Vec<Service> {
        let endpoint = |name: &str| {
            let pod = self.pods.iter().find(|pod| pod.name() == name);
            SocketAddrV4::new(pod.map_or(Ipv4Addr::UNSPECIFIED, Pod::v4), PORT)
        };
        let all = |name| Backends::All(vec![endpoint(name)]);
        let versions = ["v1", "v2", "v3"].into_iter().zip(["reviews-v1", "reviews-v2", "reviews-v3"]);
        let versions = versions.zip(split).map(|((version, pod), weight)| (version, endpoint(pod), weight));
        vec![
            Service { name: "productpage", address: PRODUCTPAGE, backends: all("productpage-v1") },
            Service { name: "details", address: DETAILS, backends: all("details-v1") },
            Service { name: "reviews", address: REVIEWS, backends: Backends::Split(versions.collect()) },
            Service { name: "ratings", address: RATINGS, backends: all("ratings-v1") },
        ]
    }

    /// The services have no event that says they listen; the first page says it of all of them.
    fn wait_for_page(&self) -> Result<()> {
        let until = std::time::Instant::now() + deadline();
        loop {
            let report = self.run_client(1, 1)?;
            if report.pages > 0 {
                return Ok(());
            }
            if std::time::Instant::now() > until {
                let errors: Vec<String> = self.processes.iter().map(Process::errors).collect();
                bail!(
                    "Bookinfo does not answer without a mesh: {}\n{}",
                    report.first_failure.unwrap_or_default(),
                    errors.join("\n").trim()
                );
            }
        }
    }
}

/// Who the pod's sidecar is to the xDS server.
pub fn node_id(pod: &Pod) -> String {
    let namespace = &pod.spec().namespace;
    format!("sidecar~{}~{}.{namespace}~{namespace}.svc.cluster.local", pod.v4(), pod.name())
}

fn client_command(connections: usize, seconds: u64) -> Result<Command> {
    let mut command = Command::new(process::binary("mesh-demo")?);
    let to = SocketAddr::from((PRODUCTPAGE, PORT));
    command.args(["client", &to.to_string(), &connections.to_string(), &seconds.to_string()]);
    Ok(command)
}

/// Waits for the client's end.
pub fn read_report(client: &mut Process) -> Result<Report> {
    let line = client.line_within(2 * deadline())?;
    serde_json::from_str(&line).context("the client's report")
}

/// Endpoints that a service without a mesh spreads its connections over: those with a weight.
fn endpoints(backends: &Backends) -> Vec<SocketAddr> {
    match backends {
        Backends::All(endpoints) => endpoints.iter().copied().map(SocketAddr::V4).collect(),
        Backends::Split(versions) => versions
            .iter()
            .filter(|(_, _, weight)| *weight > 0)
            .map(|(_, endpoint, _)| SocketAddr::V4(*endpoint))
            .collect(),
    }
}

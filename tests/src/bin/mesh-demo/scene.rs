//! The scene: two nodes with a link, Bookinfo's pods on both, kube-proxy's rules for its services.
//!
//! ```text
//!   node 1: client  productpage  reviews-v1  ratings
//!   node 2: details  reviews-v2  reviews-v3
//! ```

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Command;

use anyhow::{Context, Result, bail};

use mesh_tests::kube_proxy::{self, KubeProxy};
use mesh_tests::mesh::{MeshConfig, MeshNode};
use mesh_tests::netns::{Link, Node, Pod, PodSpec};
use mesh_tests::process::{self, Process, deadline};

use crate::bootstrap::{self, Backends, PORT, Service};
use crate::client::Report;

/// Everything that runs. Parts are dropped, and thereby removed, in the order of the fields.
pub struct Scene {
    pub mesh: Vec<MeshNode>,
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
        let scene = Scene { mesh: Vec::new(), processes, client, pods, nodes, _link: link };
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

    /// Starts a mesh-node on each node and enrols all pods of it.
    pub fn start_mesh(&mut self, split: Split) -> Result<()> {
        let config = MeshConfig { bootstrap: self.bootstrap(split), ..MeshConfig::default() };
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
        // Connections from before the enrolment go on unproxied; Bookinfo's end when idle for 500 ms.
        std::thread::sleep(std::time::Duration::from_millis(600));
        Ok(())
    }

    /// Edits the configuration file of both running mesh-nodes, and waits until both have taken it.
    pub fn change_split(&mut self, split: Split) -> Result<()> {
        let text = self.bootstrap(split);
        for mesh in &self.mesh {
            mesh.set_bootstrap(&text)?;
        }
        let wanted = format!("\"weight\":{}", split[0]);
        let until = std::time::Instant::now() + deadline();
        for mesh in &self.mesh {
            loop {
                let (_, dump) = mesh.get("/config_dump")?;
                if dump.split_whitespace().collect::<String>().contains(&wanted) {
                    break;
                }
                if std::time::Instant::now() > until {
                    bail!("a mesh-node has not taken the edited configuration after {:?}", deadline());
                }
                std::thread::sleep(std::time::Duration::from_millis(20)); // the period of the poll
            }
        }
        Ok(())
    }

    pub fn bootstrap(&self, split: Split) -> String {
        bootstrap::text(&self.services(split))
    }

    /// Starts the client in its pod.
    pub fn start_client(&self, connections: usize, seconds: u64) -> Result<Process> {
        self.client.spawn(client_command(connections, seconds)?)
    }

    /// Runs the client in its pod to its end.
    pub fn run_client(&self, connections: usize, seconds: u64) -> Result<Report> {
        read_report(&mut self.start_client(connections, seconds)?)
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

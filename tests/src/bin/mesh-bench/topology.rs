//! Builds each path: its node or nodes, the two pods, the server, and the proxies between.
//!
//! Every path has nodes of its own, so that all paths of a row can be up at the same time and take
//! turns. What is built here is removed when it is dropped.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use mesh_tests::mesh::{ADMIN_PORT, MeshConfig, MeshNode};
use mesh_tests::netns::{Link, Node, Pod};
use mesh_tests::process::Process;
use mesh_tests::redirect::{self, PROXY_ID};

use crate::bootstrap::{Bootstrap, Proxy};
use crate::certificates::Certificates;
use crate::rows::{Path, Placement, Way};
use crate::servers::{self, Port};

/// What all paths of a run share.
pub struct Shared {
    /// Folder for configurations, readable by the sidecar's user.
    pub folder: PathBuf,
    pub envoy: Option<PathBuf>,
    pub certificates: Certificates,
}

/// A path that is up. Dropped, and thereby removed, in the order of the fields.
pub struct Topology {
    mesh: Vec<MeshNode>,
    proxies: Vec<Process>,
    pub client: Pod,
    /// Where the client sends its requests.
    pub address: Ipv4Addr,
    pids: Vec<u32>,
    _servers: Vec<Process>,
    _link: Option<Link>,
}

impl Topology {
    /// Builds the path and waits until a request goes through it.
    pub fn build(way: Way, placement: Placement, shared: &Shared) -> Result<Topology> {
        let Way { path, acceleration } = way;
        let node = Node::new("bench", 1)?;
        let (far, link) = match placement {
            Placement::SameNode => (node.clone(), None),
            Placement::TwoNodes | Placement::TwoNodesMtls => {
                let far = Node::new("bench-far", 2)?;
                let link = Link::new(&node, &far)?;
                (far, Some(link))
            }
        };
        let client = node.pod("client")?;
        let server = far.pod("server")?;
        for pod in [&client, &server] {
            // New connections at full speed use up the ports of the default range.
            pod.netns().sysctl(&[("net/ipv4/ip_local_port_range", "16000 65535")])?;
            pod.netns().sysctl(&[("net/core/somaxconn", "4096")])?;
        }
        let servers = servers::start(&server, &shared.folder)?;
        let mut topology = Topology {
            address: server.v4(),
            client,
            proxies: Vec::new(),
            mesh: Vec::new(),
            pids: Vec::new(),
            _servers: servers,
            _link: link,
        };
        let tls = path.is_mtls(placement).then_some(&shared.certificates);
        if path == Path::Haproxy {
            topology.proxies.push(servers::start_haproxy(&node, &server, &shared.folder)?);
            topology.address = node.v4();
        } else if path.is_sidecar() {
            for pod in [&topology.client, &server] {
                topology.proxies.push(start_sidecar(pod, path, tls, server.v4(), shared)?);
            }
        } else if path.is_mesh() {
            let bootstrap = Bootstrap {
                proxy: Proxy::MeshNode,
                l7: path.is_l7(),
                tls,
                server: server.v4(),
                admin_port: ADMIN_PORT,
            };
            let config = MeshConfig { bootstrap: bootstrap.build().to_string(), ..MeshConfig::default() }
                .setting("acceleration", acceleration);
            let mut pods = vec![&topology.client];
            if path.has_inbound_half() {
                pods.push(&server);
            }
            for node in if placement == Placement::SameNode { vec![&node] } else { vec![&node, &far] } {
                let own: Vec<&Pod> =
                    pods.iter().copied().filter(|pod| pod.node().index() == node.index()).collect();
                if !own.is_empty() {
                    topology.mesh.push(MeshNode::start(node, &config, &own)?);
                }
            }
        }
        topology.pids = topology.proxies.iter().map(Process::id).collect();
        for mesh in &mut topology.mesh {
            topology.pids.push(mesh.process()?.id());
        }
        match topology.wait_ready() {
            Ok(()) => Ok(topology),
            Err(error) => Err(error.context(topology.last_words())),
        }
    }

    /// Process ids of the proxies.
    pub fn proxies(&self) -> &[u32] {
        &self.pids
    }

    /// The last lines that the proxies wrote to standard error.
    fn last_words(&mut self) -> String {
        let mesh = self.mesh.iter_mut().filter_map(|mesh| Some(mesh.process().ok()?.errors()));
        let lines: Vec<String> =
            self.proxies.iter().map(Process::errors).chain(mesh).filter(|text| !text.is_empty()).collect();
        if lines.is_empty() { "the path does not answer".to_owned() } else { lines.join("\n") }
    }

    /// A request is tried until it is answered with 200; there is no other event that says that both
    /// halves of any proxy are up.
    fn wait_ready(&self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let address = self.address;
            let outcome = self.client.netns().run(|| request(address))?;
            match outcome {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > until => {
                    return Err(error.context("no answer through the path within 20 s"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// One small request from the calling thread's namespace.
fn request(address: Ipv4Addr) -> Result<()> {
    use std::io::{Read, Write};
    let to = (address, Port::Http1.number()).into();
    let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET /{} HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n", crate::rows::SMALL)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 200") {
        bail!("answered with: {}", answer.lines().next().unwrap_or("nothing"));
    }
    Ok(())
}

fn start_sidecar(
    pod: &Pod,
    path: Path,
    tls: Option<&Certificates>,
    server: Ipv4Addr,
    shared: &Shared,
) -> Result<Process> {
    let envoy = shared.envoy.as_ref().context(
        "Envoy is missing: run `cargo xtask setup`, which unpacks it to .local/envoy, or give --envoy",
    )?;
    let bootstrap =
        Bootstrap { proxy: Proxy::Sidecar, l7: path.is_l7(), tls, server, admin_port: ADMIN_PORT };
    let file = write_config(&shared.folder, pod.netns().name(), &bootstrap.build())?;
    redirect::to_sidecar(pod)?;
    let mut command = Command::new("setpriv");
    command
        .args([&format!("--reuid={PROXY_ID}"), &format!("--regid={PROXY_ID}"), "--clear-groups"])
        .arg(envoy)
        .args(["--concurrency", "2", "--log-level", "error", "--disable-hot-restart", "-c"])
        .arg(file);
    pod.spawn(command)
}

fn write_config(folder: &FilePath, name: &str, config: &serde_json::Value) -> Result<PathBuf> {
    let file = folder.join(format!("{name}.json"));
    fs::write(&file, serde_json::to_string_pretty(config)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

//! The long test: mixed load over two nodes while pods come and go, and what the proxies use meanwhile.
//!
//! A pod that goes leaves the configuration first and then ends its idle connections and waits for the
//! others, as a pod does that is terminated. Under that rule no request may fail, and what the proxies hold must not grow.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::mesh::{MeshConfig, MeshNode, passthrough_with};
use crate::netns::{Link, Node, Pod, PodSpec};
use crate::peer::{Place, Tally};
use crate::process::{self, Process};

/// What the load speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
    Grpc,
    Tcp,
}

impl Protocol {
    pub const ALL: [Protocol; 4] = [Protocol::Http1, Protocol::Http2, Protocol::Grpc, Protocol::Tcp];

    pub fn name(self) -> &'static str {
        match self {
            Protocol::Http1 => "http1",
            Protocol::Http2 => "http2",
            Protocol::Grpc => "grpc",
            Protocol::Tcp => "tcp",
        }
    }

    pub fn named(name: &str) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|protocol| protocol.name() == name)
    }

    /// The port of every server.
    pub fn server_port(self) -> u16 {
        8080 + self as u16
    }

    /// The address of the service.
    fn service(self) -> SocketAddr {
        SocketAddr::from(([10, 96, 1, 10 + self as u8], 80))
    }

    fn is_http2(self) -> bool {
        matches!(self, Protocol::Http2 | Protocol::Grpc)
    }
}

/// What a run found.
#[derive(Debug)]
pub struct Summary {
    pub tallies: Vec<(Protocol, Tally)>,
    /// Pods that came and went.
    pub guests: usize,
    /// For each proxy: resident bytes and open descriptors, in order of time.
    pub usage: Vec<Vec<Usage>>,
}

#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub resident_bytes: u64,
    pub descriptors: usize,
}

/// Requests or lines at a time, of all protocols together.
const CONCURRENCY: usize = 128;
/// How long a guest serves before it leaves again.
const STAY: Duration = Duration::from_secs(3);
/// How long a guest goes on serving after it left the configuration, for requests that are on their way: what a
/// `preStop` hook waits in a cluster.
const PRE_STOP: Duration = Duration::from_secs(2);
/// How long a leaving guest may wait for its last connection.
const DRAIN: Duration = Duration::from_secs(60);

/// Two nodes with a proxy and a lasting server each, and a client pod on the first.
struct Cluster {
    nodes: [Node; 2],
    meshes: [MeshNode; 2],
    client: Pod,
    servers: Vec<(Pod, Process)>,
    _link: Link,
}

/// Runs load for `duration`; `progress` is called about every ten seconds.
pub fn run(duration: Duration, mut progress: impl FnMut(Duration, &[(Protocol, Tally)])) -> Result<Summary> {
    let mut cluster = Cluster::new()?;
    let start = Instant::now();
    let mut loads = Protocol::ALL.map(|protocol| (protocol, cluster.load(protocol)));
    let mut summary = Summary { tallies: Vec::new(), guests: 0, usage: vec![Vec::new(); 2] };
    let mut reported = Instant::now();
    while start.elapsed() < duration {
        cluster.guest(summary.guests % 2).with_context(|| format!("guest {}", summary.guests))?;
        summary.guests += 1;
        for (usage, mesh) in summary.usage.iter_mut().zip(&mut cluster.meshes) {
            usage.push(usage_of(mesh.process()?.id())?);
        }
        if reported.elapsed() > Duration::from_secs(10) {
            reported = Instant::now();
            progress(start.elapsed(), &tallies(&mut loads, |load| load.send("tally"))?);
        }
    }
    summary.tallies = tallies(&mut loads, |load| {
        load.close_stdin();
        Ok(())
    })?;
    Ok(summary)
}

/// Where the logs of the last run's proxies are: beside the programs, as the files of a run itself go with it.
pub fn log_folder() -> Result<PathBuf> {
    let folder = process::binary("mesh-node")?.with_file_name("soak");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}

fn tallies(
    loads: &mut [(Protocol, Result<Process>)],
    ask: impl Fn(&mut Process) -> Result<()>,
) -> Result<Vec<(Protocol, Tally)>> {
    let mut tallies = Vec::new();
    for (protocol, load) in loads {
        let load = load.as_mut().map_err(|error| anyhow::anyhow!("{}: {error:#}", protocol.name()))?;
        ask(load)?;
        let line = load.line_within(Duration::from_secs(60))?;
        tallies.push((*protocol, serde_json::from_str(&line).with_context(|| format!("tally {line}"))?));
    }
    Ok(tallies)
}

impl Cluster {
    fn new() -> Result<Cluster> {
        let nodes = [Node::new("one", 1)?, Node::new("two", 2)?];
        let link = Link::new(&nodes[0], &nodes[1])?;
        let client = nodes[0].pod("client")?;
        let servers = nodes.iter().map(server).collect::<Result<Vec<_>>>()?;
        let pods: Vec<&Pod> = servers.iter().map(|(pod, _)| pod).collect();
        let config = MeshConfig { bootstrap: bootstrap(&pods), ..MeshConfig::default() };
        let mut meshes = [
            MeshNode::start(&nodes[0], &config, &[&client, pods[0]])?,
            MeshNode::start(&nodes[1], &config, &[pods[1]])?,
        ];
        let folder = log_folder()?;
        for (mesh, name) in meshes.iter_mut().zip(["one", "two"]) {
            mesh.process()?.log_to(&folder.join(format!("node-{name}.log")))?;
        }
        Ok(Cluster { nodes, meshes, client, servers, _link: link })
    }

    fn load(&self, protocol: Protocol) -> Result<Process> {
        let mut command = Command::new(process::binary("mesh-peer")?);
        command.args(["load", "--to", &protocol.service().to_string(), "--protocol", protocol.name()]);
        command.args(["--concurrency", &(CONCURRENCY / Protocol::ALL.len()).to_string()]);
        self.client.start(command)
    }

    /// A pod comes to node `at`, serves for a while, and leaves.
    fn guest(&mut self, at: usize) -> Result<()> {
        let (guest, mut process) = server(&self.nodes[at])?;
        self.enrol(at, Some(&guest))?;
        self.configure(Some(&guest))?;
        std::thread::sleep(STAY); // the guest's stay, not a wait for something
        ensure!(open_connections(&mut process, "open")? > 0, "the guest got no connection in {STAY:?}");
        self.configure(None)?;
        std::thread::sleep(PRE_STOP); // part of the guest's stay
        let until = Instant::now() + DRAIN;
        loop {
            match open_connections(&mut process, "drain")? {
                0 => break,
                open if Instant::now() > until => {
                    bail!("{open} connections to the guest stay open after {DRAIN:?}")
                }
                _ => std::thread::sleep(Duration::from_millis(50)), // the period of the poll
            }
        }
        self.enrol(at, None)
    }

    /// Enrols the lasting pods of a node, and the guest.
    fn enrol(&mut self, at: usize, guest: Option<&Pod>) -> Result<()> {
        let mut pods = vec![&self.servers[at].0];
        if at == 0 {
            pods.push(&self.client);
        }
        pods.extend(guest);
        self.meshes[at].enrol(&pods)
    }

    /// Gives every proxy the lasting servers and the guest as endpoints, and waits until they have them.
    fn configure(&mut self, guest: Option<&Pod>) -> Result<()> {
        let pods: Vec<&Pod> = self.servers.iter().map(|(pod, _)| pod).chain(guest).collect();
        let wanted: Vec<IpAddr> = pods.iter().map(|pod| pod.v4().into()).collect();
        for mesh in &mut self.meshes {
            mesh.set_bootstrap(&bootstrap(&pods))?;
        }
        for mesh in &mut self.meshes {
            mesh.wait_hosts(Protocol::Http1.name(), &wanted)?;
        }
        Ok(())
    }
}

fn server(node: &Node) -> Result<(Pod, Process)> {
    let pod = node.pod_with(PodSpec::new("server"))?;
    let mut command = Command::new(process::binary("mesh-peer")?);
    command.arg("mixed");
    let mut process = pod.start(command)?;
    ensure!(process.line()? == "listening", "the server does not start");
    Ok((pod, process))
}

/// The number of open connections; with the command `drain` the server also ends idle ones.
fn open_connections(server: &mut Process, command: &str) -> Result<usize> {
    server.send(command)?;
    server.line()?.parse().context("number of open connections")
}

fn usage_of(pid: u32) -> Result<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse()?;
    Ok(Usage { resident_bytes: kib * 1024, descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() })
}

/// A service of each protocol over these pods; HTTP is read by both halves.
fn bootstrap(servers: &[&Pod]) -> String {
    let listeners = Protocol::ALL.map(|protocol| {
        json!({
            "name": format!("service-{}", protocol.name()),
            "address": address(protocol.service()),
            "bind_to_port": false,
            "traffic_direction": "OUTBOUND",
            "filter_chains": [{"filters": [filter(protocol, protocol.name())]}],
        })
    });
    let inbound = json!({
        "name": "virtualInbound",
        "address": address(SocketAddr::from(([0, 0, 0, 0], 15006))),
        "use_original_dst": true,
        "traffic_direction": "INBOUND",
        "filter_chains": Protocol::ALL.map(|protocol| json!({
            "filter_chain_match": {"destination_port": protocol.server_port()},
            "filters": [filter(protocol, if protocol.is_http2() { "inbound-http2" } else { "inbound" })],
        })),
    });
    let mut clusters: Vec<Value> = Protocol::ALL
        .map(|protocol| {
            let endpoints: Vec<Value> = servers
                .iter()
                .map(|pod| SocketAddr::new(pod.v4().into(), protocol.server_port()))
                .map(|endpoint| json!({"endpoint": {"address": address(endpoint)}}))
                .collect();
            let mut cluster = json!({
                "name": protocol.name(),
                "type": "STATIC",
                "lb_policy": "LEAST_REQUEST",
                "connect_timeout": "10s",
                "load_assignment": {"cluster_name": protocol.name(), "endpoints": [{"lb_endpoints": endpoints}]},
            });
            speak_http2(&mut cluster, protocol.is_http2());
            cluster
        })
        .to_vec();
    for (name, http2) in [("inbound", false), ("inbound-http2", true)] {
        let mut cluster = json!({
            "name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "10s",
        });
        speak_http2(&mut cluster, http2);
        clusters.push(cluster);
    }
    passthrough_with([listeners.to_vec(), vec![inbound]].concat(), clusters)
}

fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}

fn speak_http2(cluster: &mut Value, http2: bool) {
    if http2 {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        });
    }
}

fn filter(protocol: Protocol, cluster: &str) -> Value {
    if protocol == Protocol::Tcp {
        return json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": cluster,
                "cluster": cluster,
            },
        });
    }
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type":
                "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": cluster,
            "codec_type": "AUTO",
            "route_config": {
                "name": cluster,
                "virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "30s"}}],
                }],
            },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }],
        },
    })
}

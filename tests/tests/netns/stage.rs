//! What most tests start from: a node with a client and a server pod, and the two address families.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use mesh_tests::mesh::{MeshConfig, MeshNode};
use mesh_tests::netns::{Node, Pod, PodSpec};
use mesh_tests::peer::{Call, CallOptions, Place, Seen, Server};
use mesh_tests::process::{Process, deadline};

/// Port of the servers that wait for the client; the next one speaks first.
pub const PORT: u16 = 8080;
pub const FIRST_PORT: u16 = 8081;

/// How a client reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    V4,
    V6,
    /// IPv4 through an IPv6 socket.
    Mapped,
}

pub const WAYS: [Way; 3] = [Way::V4, Way::V6, Way::Mapped];

impl Way {
    pub fn options(self) -> CallOptions {
        CallOptions { mapped: self == Way::Mapped, timeout_ms: Some(5000), ..CallOptions::default() }
    }

    /// The address of this family out of an IPv4 and an IPv6 one.
    pub fn pick(self, addresses: [IpAddr; 2]) -> IpAddr {
        addresses[usize::from(self == Way::V6)]
    }

    pub fn of(self, pod: &Pod) -> IpAddr {
        self.pick(pod.addresses())
    }

    pub fn node(self, node: &Node) -> IpAddr {
        self.pick([node.v4().into(), node.v6().into()])
    }
}

/// A node with two pods; the server serves [`PORT`] and [`FIRST_PORT`].
pub struct Stage {
    pub node: Node,
    pub client: Pod,
    pub server: Pod,
    _servers: Vec<Process>,
}

impl Stage {
    pub fn routed() -> Result<Stage> {
        Stage::new(|spec| spec)
    }

    pub fn bridged() -> Result<Stage> {
        Stage::new(PodSpec::bridged)
    }

    pub fn new(network: fn(PodSpec) -> PodSpec) -> Result<Stage> {
        let node = Node::new("node", 1)?;
        let client = node.pod_with(network(PodSpec::new("client")))?;
        let server = node.pod_with(network(PodSpec::new("server")))?;
        let servers = serve(&server, "server")?;
        Ok(Stage { node, client, server, _servers: servers })
    }

    pub fn mesh(&self, config: &MeshConfig, pods: &[&Pod]) -> Result<MeshNode> {
        MeshNode::start(&self.node, config, pods)
    }

    /// The server's address of the given family.
    pub fn target(&self, way: Way) -> SocketAddr {
        SocketAddr::new(way.of(&self.server), PORT)
    }
}

/// Both servers of a place.
pub fn serve(place: &impl Place, name: &str) -> Result<Vec<Process>> {
    let listen = |port: u16| [SocketAddr::from(([0u16; 8], port))];
    Ok(vec![
        place.serve(name, Server::Report, &listen(PORT))?,
        place.serve(name, Server::First, &listen(FIRST_PORT))?,
    ])
}

/// Waits until nothing of the mesh is left in the pod.
pub fn released(pod: &Pod) -> Result<()> {
    let until = std::time::Instant::now() + deadline();
    while pod.netns().ip_output("-4 rule show")?.contains("fwmark") {
        ensure!(std::time::Instant::now() < until, "{} is not released", pod.name());
        std::thread::sleep(std::time::Duration::from_millis(20)); // the period of the poll
    }
    Ok(())
}

/// Connections that the proxy has taken so far, outbound and inbound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub outbound: u64,
    pub inbound: u64,
}

pub fn taken(mesh: &MeshNode) -> Result<Taken> {
    Ok(Taken {
        outbound: mesh.stat("tcp.PassthroughCluster.downstream_cx_total")?,
        inbound: mesh.stat("tcp.InboundPassthroughCluster.downstream_cx_total")?,
    })
}

/// Runs `exchange` and returns its result with the connections that the proxy took meanwhile.
pub fn taken_during<T>(mesh: &MeshNode, exchange: impl FnOnce() -> Result<T>) -> Result<(T, Taken)> {
    let before = taken(mesh)?;
    let result = exchange()?;
    let after = taken(mesh)?;
    let taken = Taken { outbound: after.outbound - before.outbound, inbound: after.inbound - before.inbound };
    Ok((result, taken))
}

/// The one thing an application must not notice: both ends see each other as without a mesh.
pub fn ends_are_true(call: &Call, from: IpAddr, to: SocketAddr) -> Result<Seen> {
    let seen = call.ok()?.clone();
    ensure!(seen.peer.ip() == from, "the server sees {} in place of the client {from}", seen.peer);
    ensure!(seen.local == to, "the server was reached at {} in place of {to}", seen.local);
    let peer = call.peer.map(|p| SocketAddr::new(p.ip().to_canonical(), p.port()));
    ensure!(peer == Some(to), "the client sees {peer:?} in place of {to}");
    Ok(seen)
}

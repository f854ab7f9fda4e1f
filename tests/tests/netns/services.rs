//! Outbound and inbound again under the rules of kube-proxy, in both of its forms: what the rules do to
//! addresses must neither hide a connection from the mesh nor break one.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use mesh_tests::kube_proxy::{KubeProxy, Service};
use mesh_tests::mesh::{MeshConfig, MeshNode};
use mesh_tests::need_root;
use mesh_tests::netns::{Link, Node, Pod};
use mesh_tests::peer::{HostNetworkPod, Place};
use mesh_tests::process::Process;

use crate::stage::{PORT, Stage, Taken, WAYS, Way, serve, taken_during};

const SERVICE_PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;
/// Where the host-network server and the machine outside listen.
const HOST_PORT: u16 = 9000;

/// A stage under rules, with a machine outside the cluster and a server in the node's namespace.
struct Cluster {
    stage: Stage,
    outside: Node,
    vips: [IpAddr; 2],
    _link: Link,
    _servers: Vec<Process>,
}

impl Cluster {
    fn new(rules: KubeProxy, stage: Stage) -> Result<Cluster> {
        let outside = Node::new("outside", 9)?;
        let link = Link::outside(&stage.node, &outside)?;
        let vips = ["10.96.0.10".parse()?, "fd10:96::10".parse()?];
        let service = Service {
            name: "server".to_owned(),
            addresses: vips.to_vec(),
            port: SERVICE_PORT,
            node_port: Some(NODE_PORT),
            endpoints: WAYS[..2].iter().map(|way| stage.target(*way)).collect(),
        };
        rules.apply(&stage.node, &[service])?;
        let any = [SocketAddr::from(([0u16; 8], HOST_PORT))];
        let servers = vec![
            outside.serve("outside", mesh_tests::peer::Server::Report, &any)?,
            HostNetworkPod(&stage.node).serve("host", mesh_tests::peer::Server::Report, &any)?,
        ];
        Ok(Cluster { stage, outside, vips, _link: link, _servers: servers })
    }

    fn vip(&self, way: Way) -> SocketAddr {
        SocketAddr::new(way.pick(self.vips), SERVICE_PORT)
    }

    /// One call in each family; the name of the server that answered and the proxy's share are checked.
    fn expect(
        &self,
        mesh: &MeshNode,
        what: &str,
        from: &impl Place,
        to: impl Fn(Way) -> SocketAddr,
        server: &str,
        expected: Taken,
    ) -> Result<()> {
        for way in WAYS {
            let at = || format!("{what}, {way:?}, to {}", to(way));
            let (call, taken) = taken_during(mesh, || from.call_with(to(way), &way.options()))?;
            assert_eq!(call.ok().with_context(at)?.name, server, "{}", at());
            assert_eq!(taken, expected, "{}", at());
        }
        Ok(())
    }

    /// Every kind of connection that the rules touch, with these pods enrolled.
    fn check(&self, pods: &[&Pod]) -> Result<()> {
        let Stage { node, client, server, .. } = &self.stage;
        let mesh = self.stage.mesh(&MeshConfig::default(), pods)?;
        let enrolled = |pod: &Pod| u64::from(pods.iter().any(|p| p.uid() == pod.uid()));
        let (out, into) = (enrolled(client), enrolled(server));
        let taken = |outbound, inbound| Taken { outbound, inbound };
        let node_port = |way: Way| SocketAddr::new(way.node(node), NODE_PORT);
        let host = |way: Way| SocketAddr::new(way.node(node), HOST_PORT);
        let outside = |way: Way| SocketAddr::new(way.node(&self.outside), HOST_PORT);

        self.expect(&mesh, "service", client, |w| self.vip(w), "server", taken(out, into))?;
        self.expect(&mesh, "pod address", client, |w| self.stage.target(w), "server", taken(out, into))?;
        self.expect(&mesh, "node port from a pod", client, node_port, "server", taken(out, into))?;
        self.expect(&mesh, "node port from outside", &self.outside, node_port, "server", taken(0, into))?;
        self.expect(&mesh, "self-call by the service", server, |w| self.vip(w), "server", taken(into, into))?;
        self.expect(&mesh, "host-network server", client, host, "host", taken(out, 0))?;
        self.expect(&mesh, "egress", client, outside, "outside", taken(out, 0))?;

        // An unenrolled pod of the node reaches an enrolled server, by both of its addresses.
        let stranger = node.pod_with({
            let mut spec = mesh_tests::netns::PodSpec::new("stranger");
            spec.network = client.spec().network;
            spec
        })?;
        self.expect(
            &mesh,
            "local stranger by the service",
            &stranger,
            |w| self.vip(w),
            "server",
            taken(0, into),
        )?;
        self.expect(&mesh, "local stranger", &stranger, |w| self.stage.target(w), "server", taken(0, into))?;

        // The client is seen by its own address wherever the rules do not masquerade.
        for way in WAYS {
            let seen = client.call_with(self.vip(way), &way.options())?;
            assert_eq!(seen.ok()?.peer.ip(), way.of(client), "client address by the service, {way:?}");
            let seen = client.call_with(outside(way), &way.options())?;
            assert_eq!(seen.ok()?.peer.ip(), way.node(node), "egress is masqueraded, {way:?}");
        }
        Ok(())
    }
}

fn check_all(rules: KubeProxy, stage: Stage) -> Result<()> {
    let cluster = Cluster::new(rules, stage)?;
    let (client, server) = (&cluster.stage.client, &cluster.stage.server);
    cluster.check(&[client]).context("client enrolled")?;
    cluster.check(&[server]).context("server enrolled")?;
    cluster.check(&[client, server]).context("both enrolled")
}

#[test]
fn under_iptables_rules_routed_pods_are_steered_on_every_way() -> Result<()> {
    need_root!();
    check_all(KubeProxy::Iptables, Stage::routed()?)
}

#[test]
fn under_iptables_rules_bridged_pods_are_steered_on_every_way() -> Result<()> {
    need_root!();
    check_all(KubeProxy::Iptables, Stage::bridged()?)
}

#[test]
fn under_nftables_rules_routed_pods_are_steered_on_every_way() -> Result<()> {
    need_root!();
    check_all(KubeProxy::Nftables, Stage::routed()?)
}

#[test]
fn under_nftables_rules_bridged_pods_are_steered_on_every_way() -> Result<()> {
    need_root!();
    check_all(KubeProxy::Nftables, Stage::bridged()?)
}

#[test]
fn services_of_an_enrolled_pod_survive_a_change_of_the_rules() -> Result<()> {
    need_root!();
    let cluster = Cluster::new(KubeProxy::Nftables, Stage::routed()?)?;
    let other = cluster.stage.node.pod("other")?;
    let _servers = serve(&other, "other")?;
    let mesh = cluster.stage.mesh(&MeshConfig::default(), &[&cluster.stage.client])?;
    let moved = Service {
        name: "server".to_owned(),
        addresses: cluster.vips.to_vec(),
        port: SERVICE_PORT,
        node_port: None,
        endpoints: other.addresses().map(|ip| SocketAddr::new(ip, PORT)).to_vec(),
    };
    KubeProxy::Nftables.apply(&cluster.stage.node, &[moved])?;
    let taken = Taken { outbound: 1, inbound: 0 };
    cluster.expect(&mesh, "moved service", &cluster.stage.client, |w| cluster.vip(w), "other", taken)
}

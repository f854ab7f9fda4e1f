//! A pod: a namespace with one interface towards its node, routed or bridged, and a control group below
//! the node's `kubepods`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::{Netns, Node};
use crate::process::{self, Process};
use crate::sys;

/// How a pod hangs on its node; all pods of a node alike, as a node has one CNI plug-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A point-to-point interface with a `/32` route on the node (Calico, the `ptp` plug-in).
    Routed,
    /// A port of the node's bridge `cni0` (the `bridge` plug-in, flannel).
    Bridged,
}

/// What a pod is made from.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub labels: Vec<(String, String)>,
    pub annotations: Vec<(String, String)>,
    pub opt_out: bool,
    pub network: Network,
    /// The last number of the pod's addresses; by default the next free one of the node.
    pub index: Option<u8>,
}

impl PodSpec {
    pub fn new(name: &str) -> PodSpec {
        PodSpec {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            service_account: "default".to_owned(),
            labels: vec![("app".to_owned(), name.to_owned())],
            annotations: Vec::new(),
            opt_out: false,
            network: Network::Routed,
            index: None,
        }
    }

    pub fn bridged(mut self) -> PodSpec {
        self.network = Network::Bridged;
        self
    }

    pub fn label(mut self, key: &str, value: &str) -> PodSpec {
        self.labels.retain(|(k, _)| k != key);
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    pub fn annotation(mut self, key: &str, value: &str) -> PodSpec {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Opts out of the mesh, although the pods file lists the pod.
    pub fn opt_out(mut self) -> PodSpec {
        self.opt_out = true;
        self
    }

    pub fn index(mut self, index: u8) -> PodSpec {
        self.index = Some(index);
        self
    }
}

/// A pod; a cheap handle, the pod goes with its last handle and process.
#[derive(Clone)]
pub struct Pod(Arc<PodInner>);

struct PodInner {
    netns: Netns,
    cgroup: PathBuf,
    spec: PodSpec,
    uid: String,
    index: u8,
    host_device: String,
    node: Node,
}

impl Pod {
    pub(super) fn new(node: &Node, spec: PodSpec) -> Result<Pod> {
        let netns = Netns::new(&spec.name)?;
        let index = node.take_pod_index(spec.index)?;
        let uid = uid_of(netns.name());
        let cgroup = node.kubepods().join(format!("pod{uid}"));
        fs::create_dir_all(&cgroup).with_context(|| format!("creating {}", cgroup.display()))?;
        let host_device = format!("pod{index}");
        let pod =
            Pod(Arc::new(PodInner { netns, cgroup, spec, uid, index, host_device, node: node.clone() }));
        node.netns().ip(&format!(
            "link add {} type veth peer name eth0 netns {}",
            pod.host_device(),
            pod.netns().name()
        ))?;
        match pod.spec().network {
            Network::Routed => pod.connect_routed()?,
            Network::Bridged => pod.connect_bridged()?,
        }
        Ok(pod)
    }

    fn connect_routed(&self) -> Result<()> {
        let (device, v4, v6) = (self.host_device(), self.v4(), self.v6());
        self.node().netns().sysctl(&[(&format!("net/ipv4/conf/{device}/proxy_arp"), "1")])?;
        self.node().netns().ip(&format!(
            "link set {device} addrgenmode none\n\
             link set {device} up\n\
             addr add fe80::1/64 dev {device} nodad\n\
             route add {v4}/32 dev {device}\n\
             route add {v6}/128 dev {device}"
        ))?;
        self.netns().ip(&format!(
            "addr add {v4}/32 dev eth0\n\
             addr add {v6}/128 dev eth0 nodad\n\
             link set eth0 up\n\
             route add 169.254.1.1/32 dev eth0 scope link\n\
             route add default via 169.254.1.1 dev eth0\n\
             route add ::/0 via fe80::1 dev eth0"
        ))
    }

    fn connect_bridged(&self) -> Result<()> {
        let (device, node) = (self.host_device(), self.node());
        let gateway4 = format!("10.244.{}.1", node.index());
        let gateway6 = format!("fd10:244:{:x}::1", node.index());
        if node.netns().ip_output("-br link show cni0").is_err() {
            // Left to itself a bridge takes the lowest address of its ports, a new one with each new
            // pod, and what the other pods know of it is wrong for a while.
            let mac = format!("0a:58:0a:f4:{:02x}:01", node.index());
            node.netns().ip(&format!(
                "link add cni0 address {mac} type bridge\n\
                 addr add {gateway4}/24 dev cni0\n\
                 addr add {gateway6}/64 dev cni0 nodad\n\
                 link set cni0 up"
            ))?;
            // Services between pods of one bridge need the rules of the IP layer on bridged packets.
            // The kernel may lack that (br_netfilter); then only the tests of such services fail.
            node.netns()
                .sysctl(&[
                    ("net/bridge/bridge-nf-call-iptables", "1"),
                    ("net/bridge/bridge-nf-call-ip6tables", "1"),
                ])
                .ok();
        }
        node.netns().ip(&format!(
            "link set {device} master cni0\n\
             link set {device} type bridge_slave hairpin on\n\
             link set {device} up"
        ))?;
        self.netns().ip(&format!(
            "addr add {}/24 dev eth0\n\
             addr add {}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {gateway4} dev eth0\n\
             route add ::/0 via {gateway6} dev eth0",
            self.v4(),
            self.v6(),
        ))
    }

    pub fn name(&self) -> &str {
        &self.0.spec.name
    }

    pub fn uid(&self) -> &str {
        &self.0.uid
    }

    pub fn spec(&self) -> &PodSpec {
        &self.0.spec
    }

    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.node().index(), self.0.index)
    }

    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd10, 0x244, self.node().index().into(), 0, 0, 0, 0, self.0.index.into())
    }

    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4().into(), self.v6().into()]
    }

    pub fn node(&self) -> &Node {
        &self.0.node
    }

    pub fn netns(&self) -> &Netns {
        &self.0.netns
    }

    pub fn cgroup(&self) -> &Path {
        &self.0.cgroup
    }

    /// The pod's interface as the node sees it; inside the pod it is `eth0`.
    pub fn host_device(&self) -> &str {
        &self.0.host_device
    }

    /// Starts a process in the pod: its namespace and its control group.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        self.spawn_in(&self.0.cgroup, command)
    }

    /// Runs a tool in the pod to its end and returns its output.
    pub fn tool(&self, mut command: Command) -> Result<String> {
        sys::place(&mut command, self.netns().file(), Some(&self.0.cgroup))?;
        process::output_of(&mut command, None)
    }

    /// Starts a process in the pod's namespace, in a control group of the caller's choice.
    pub fn spawn_in(&self, cgroup: &Path, mut command: Command) -> Result<Process> {
        fs::create_dir_all(cgroup).with_context(|| format!("creating {}", cgroup.display()))?;
        sys::place(&mut command, self.netns().file(), Some(cgroup))?;
        Process::spawn(command, Some(Box::new(self.clone())))
    }
}

impl Drop for PodInner {
    fn drop(&mut self) {
        if let Err(error) = sys::remove_cgroup(&self.cgroup) {
            eprintln!("removing the pod {}: {error:#}", self.spec.name);
        }
        // Deleting the interface now frees the address at once; the namespace goes later, in the
        // kernel's own time.
        self.node.netns().ip(&format!("link del {}", self.host_device)).ok();
        self.node.free_pod_index(self.index);
    }
}

/// A uid in the shape that Kubernetes uses, different for each pod.
fn uid_of(name: &str) -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let part = || {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write(name.as_bytes());
        hasher.finish()
    };
    let (a, b) = (part(), part());
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    )
}

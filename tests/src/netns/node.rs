//! A Kubernetes node: a namespace with an address and forwarding, and a control group subtree with
//! `kubepods` in it, as a kubelet makes it.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use super::{Netns, Pod, PodSpec};
use crate::process::Process;
use crate::{run, sys};

/// A node; a cheap handle, the node goes with its last handle, pod and process.
#[derive(Clone)]
pub struct Node(pub(super) Arc<NodeInner>);

pub(super) struct NodeInner {
    pub(super) netns: Netns,
    pub(super) index: u8,
    cgroup: PathBuf,
    pod_indices: Mutex<PodIndices>,
}

/// Which pod addresses are taken. A free one is reused as late as possible, as the CNI plug-ins do.
struct PodIndices {
    last: u8,
    used: [bool; 256],
}

/// Where a process that runs in the node's own namespace belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCgroup {
    /// A service of the host, as the kubelet: not below `kubepods`.
    System,
    /// A pod with `hostNetwork: true`: below `kubepods`.
    HostNetworkPod,
}

impl Node {
    /// A node with the addresses of `index` (1 to 254).
    pub fn new(label: &str, index: u8) -> Result<Node> {
        let netns = Netns::new(label)?;
        let cgroup = run::cgroup()?.join(netns.name());
        fs::create_dir_all(cgroup.join("kubepods/hostnetwork"))
            .and_then(|()| fs::create_dir_all(cgroup.join("system.slice")))
            .with_context(|| format!("creating the control group {}", cgroup.display()))?;
        let pod_indices = Mutex::new(PodIndices { last: 1, used: [false; 256] });
        let node = Node(Arc::new(NodeInner { netns, index, cgroup, pod_indices }));
        node.netns().sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        // The way to everywhere: an interface whose other end never answers. Without a default route
        // a connection of the host to a service address would end before the rules see it.
        node.netns().ip(&format!(
            "link add up0 type veth peer name up0-void\n\
             link set up0 up\n\
             link set up0-void up\n\
             addr add {v4}/32 dev up0\n\
             addr add {v6}/128 dev up0 nodad\n\
             route add default dev up0 src {v4}\n\
             route add ::/0 dev up0 src {v6}",
            v4 = node.v4(),
            v6 = node.v6(),
        ))?;
        Ok(node)
    }

    pub fn index(&self) -> u8 {
        self.0.index
    }

    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 77, self.0.index)
    }

    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, self.0.index.into())
    }

    /// The pods' addresses on this node, as `10.244.n.0/24`.
    pub fn pod_cidr_v4(&self) -> String {
        format!("10.244.{}.0/24", self.0.index)
    }

    /// The pods' addresses on this node, as `fd10:244:n::/64`.
    pub fn pod_cidr_v6(&self) -> String {
        format!("fd10:244:{:x}::/64", self.0.index)
    }

    pub fn netns(&self) -> &Netns {
        &self.0.netns
    }

    /// The root of this node's control groups.
    pub fn cgroup(&self) -> &Path {
        &self.0.cgroup
    }

    /// The group below which pods are.
    pub fn kubepods(&self) -> PathBuf {
        self.0.cgroup.join("kubepods")
    }

    /// A routed pod with both address families.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.pod_with(PodSpec::new(name))
    }

    pub fn pod_with(&self, spec: PodSpec) -> Result<Pod> {
        Pod::new(self, spec)
    }

    /// Starts a process in the node's namespace.
    pub fn spawn(&self, cgroup: HostCgroup, command: Command) -> Result<Process> {
        let folder = match cgroup {
            HostCgroup::System => self.0.cgroup.join("system.slice"),
            HostCgroup::HostNetworkPod => self.0.cgroup.join("kubepods/hostnetwork"),
        };
        self.spawn_in(&folder, command)
    }

    /// Starts a process in the node's namespace and in a control group of the caller's choice, which
    /// is created.
    pub fn spawn_in(&self, cgroup: &Path, mut command: Command) -> Result<Process> {
        fs::create_dir_all(cgroup).with_context(|| format!("creating {}", cgroup.display()))?;
        sys::place(&mut command, self.netns().file(), Some(cgroup))?;
        Process::spawn(command, Some(Box::new(self.clone())))
    }

    /// Takes the wanted pod address, or the next free one.
    pub(super) fn take_pod_index(&self, wanted: Option<u8>) -> Result<u8> {
        let mut indices = self.0.pod_indices.lock().unwrap_or_else(PoisonError::into_inner);
        let last = indices.last;
        let mut candidates = (last..=254).chain(2..=last).skip(1);
        let free = match wanted {
            Some(index) => Some(index),
            None => candidates.find(|index| *index >= 2 && !indices.used[usize::from(*index)]),
        };
        let index = free.context("the node has no free pod address")?;
        ensure!(index >= 2 && !indices.used[usize::from(index)], "pod address {index} is not free");
        indices.used[usize::from(index)] = true;
        indices.last = index;
        Ok(index)
    }

    pub(super) fn free_pod_index(&self, index: u8) {
        self.0.pod_indices.lock().unwrap_or_else(PoisonError::into_inner).used[usize::from(index)] = false;
    }
}

impl Drop for NodeInner {
    fn drop(&mut self) {
        if let Err(error) = sys::remove_cgroup(&self.cgroup) {
            eprintln!("removing the node {}: {error:#}", self.netns.name());
        }
    }
}

//! Our own settings, as far as stages read them: what is steered, how much a workload may use.
//!
//! `config` fills these from flags, environment and settings file; nothing here reads a file.

use std::path::PathBuf;

use super::Str;
use super::listener::Cidr;

/// What the kernel part steers, where its objects live, and what happens when the proxy is away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureSettings {
    /// False: no pod is enrolled and no program is loaded; the process is a plain proxy.
    pub enabled: bool,
    /// Name of this instance: its folder in bpffs, so that several may run on one machine.
    pub instance: Str,
    /// Watched file that lists the pods of this node.
    pub pods_file: Option<PathBuf>,
    /// The compiled kernel programs.
    pub bpf_object: PathBuf,
    /// A mounted bpffs; pins go to `BPFFS_ROOT/mesh-node/INSTANCE`.
    pub bpffs_root: PathBuf,
    /// The cgroup2 folder that the connect and sockops programs attach to.
    pub cgroup_root: PathBuf,
    pub steering: Steering,
    pub fail_mode: FailMode,
    pub unproxied: UnproxiedFlows,
    /// Port of the transparent outbound listener in each pod's namespace.
    pub outbound_port: u16,
    /// Port of the transparent inbound listener in each pod's namespace.
    pub inbound_port: u16,
    /// Destination ports that are never steered on the way out of a pod.
    pub exclude_outbound_ports: Vec<u16>,
    /// Ports of a pod that are never steered on the way in.
    pub exclude_inbound_ports: Vec<u16>,
    /// Destination prefixes that are never steered on the way out of a pod.
    pub exclude_outbound_cidrs: Vec<Cidr>,
    /// Source prefixes that are never steered on the way into a pod.
    pub exclude_inbound_cidrs: Vec<Cidr>,
    /// Captured connections that one workload may have open at once; 0 is no limit.
    pub max_connections: u32,
    /// Bytes that the proxy buffers for one workload at most; 0 is no limit.
    pub max_buffered_bytes: u64,
}

impl Default for CaptureSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            instance: "default".into(),
            pods_file: None,
            bpf_object: PathBuf::from("/usr/lib/mesh-node/mesh-ebpf.o"),
            bpffs_root: PathBuf::from("/sys/fs/bpf"),
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
            steering: Steering::Auto,
            fail_mode: FailMode::Closed,
            unproxied: UnproxiedFlows::Refuse,
            outbound_port: 15001,
            inbound_port: 15006,
            exclude_outbound_ports: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            exclude_inbound_cidrs: Vec::new(),
            max_connections: 0,
            max_buffered_bytes: 0,
        }
    }
}

/// Which hook steers outbound connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steering {
    /// The connect hook, and TC for what that one does not reach.
    Auto,
    /// The connect hook alone.
    Connect,
    /// TC alone.
    Tc,
}

/// What happens to enrolled pods' new connections while no proxy runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailMode {
    /// They pass unproxied.
    Open,
    /// They are refused at once.
    Closed,
}

/// What happens to a TCP flow that leaves an enrolled pod and is not the proxy's (raw sockets, a deleted
/// rule, connections older than enrolment).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnproxiedFlows {
    Refuse,
    Pass,
}

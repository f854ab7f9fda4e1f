//! What an operator can set about capture. Plain data: no default depends on the host, so that the
//! effective settings can be logged before anything is touched.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Less buffer than this would refuse the connections of a pod that does nothing unusual.
const MIN_BUFFERED_BYTES: usize = 1 << 20;

/// Settings of capture, with the names they have in the settings file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Names this mesh-node's folder in bpffs and in `state_dir`; letters, digits, `-` and `_`.
    pub instance: String,
    /// The watched file that lists the pods. None: no pod is enrolled.
    pub pods_file: Option<PathBuf>,
    /// The compiled kernel programs. None: `mesh-ebpf.o` beside the binary, then `target/bpf/`.
    pub bpf_object: Option<PathBuf>,
    /// Where bpffs is mounted.
    pub bpffs: PathBuf,
    /// The cgroup2 folder that holds every pod and the host's services. None: the hierarchy's root.
    pub cgroup_root: Option<PathBuf>,
    /// The cgroup all pods are below. None: `kubepods.slice` or `kubepods` in `cgroup_root`.
    pub kubepods_cgroup: Option<PathBuf>,
    /// Where is recorded what `cleanup` has to put back; must be lost at reboot, as the rest is.
    pub state_dir: PathBuf,
    /// What connections meet while no proxy is running.
    pub fail_mode: FailMode,
    /// A new connection that leaves a pod around the proxy.
    pub unsteered: Action,
    /// A packet of a connection whose beginning was not seen: it is older than the enrolment.
    pub older_connections: Action,
    /// How long the first connections of a pod that is not known yet are held at most, milliseconds, where pods come
    /// from the Kubernetes API; 0 lets them pass.
    pub hold_new_pods_ms: u32,
    /// Steer by the cgroup `connect` hook, where the kernel and the host allow it.
    pub connect_hook: bool,
    /// Steer by TC what the connect hook does not reach.
    pub tc_steering: bool,
    /// Judge on the host side what leaves a pod.
    pub tc_guard: bool,
    /// New connections between pods and the proxy go past TCP, where the kernel and the application allow
    /// it. A pod can be left out in the pods file.
    pub acceleration: bool,
    /// Accelerate the sockets of applications also where the kernel does not show who splices from them; a pod that
    /// does would wait for ever. Without it such a kernel accelerates only what is between two of the proxy's own.
    pub acceleration_unseen_splice: bool,
    /// Accelerated TCP connections between two applications of this node, plaintext all the way, are handed off:
    /// bytes go from one application straight to the other, while the proxy looks on. Needs `acceleration`. A
    /// pod can be left out in the pods file.
    pub hand_off: bool,
    /// Between two enrolled pods of this node the proxy's two halves meet in memory, without a connection
    /// between them. A pod can be left out in the pods file.
    pub in_memory: bool,
    /// Ports of the two listeners inside each pod, on its loopback address.
    pub outbound_port: u16,
    pub inbound_port: u16,
    /// The mark of steered sockets; the one towards applications is the next number.
    pub mark: u32,
    /// Bits of a mark that are ours.
    pub mark_mask: u32,
    /// Number of the routing table, and priority of the rule, inside each pod.
    pub route_table: u32,
    pub rule_priority: u32,
    /// The proxy counts as away when it has shown no sign of life for this long.
    pub heartbeat_timeout_ms: u64,
    /// Captured connections that one pod may have open at once; 0 is no limit.
    pub max_connections: u32,
    /// Bytes that may be held for one pod: copy buffers, messages under way, bodies kept for retries; 0 is no
    /// limit. The default is half the memory that Istio requests for a sidecar; it is 512 TCP connections of
    /// which both sides read nothing.
    pub max_buffered_bytes: usize,
    /// For every pod, beside the pod's own.
    pub exclude_outbound_ports: Vec<u16>,
    pub exclude_inbound_ports: Vec<u16>,
    pub exclude_outbound_cidrs: Vec<Cidr>,
    pub exclude_inbound_cidrs: Vec<Cidr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            instance: "default".to_owned(),
            pods_file: None,
            bpf_object: None,
            bpffs: PathBuf::from("/sys/fs/bpf"),
            cgroup_root: None,
            kubepods_cgroup: None,
            state_dir: PathBuf::from("/run/mesh-node"),
            fail_mode: FailMode::Closed,
            unsteered: Action::Refuse,
            older_connections: Action::Pass,
            hold_new_pods_ms: 5000,
            connect_hook: true,
            tc_steering: true,
            tc_guard: true,
            acceleration: false,
            acceleration_unseen_splice: false,
            hand_off: false,
            in_memory: false,
            outbound_port: 15001,
            inbound_port: 15006,
            mark: 0x500,
            mark_mask: 0xfff,
            route_table: 500,
            rule_priority: 500,
            heartbeat_timeout_ms: 10_000,
            max_connections: 0,
            max_buffered_bytes: 64 << 20,
            exclude_outbound_ports: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            exclude_inbound_cidrs: Vec::new(),
        }
    }
}

impl Settings {
    /// All that is wrong with these settings, each as one line that names the field.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let named = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.instance.is_empty() || self.instance.len() > 64 || !self.instance.chars().all(named) {
            problems.push(format!("instance: {:?} is not a name of letters, digits, - and _", self.instance));
        }
        if self.mark & 1 != 0 || self.mark == 0 || self.mark & !self.mark_mask != 0 || self.mark_mask & 1 == 0
        {
            problems.push(format!(
                "mark: {:#x} must be even, not 0, and within mark_mask ({:#x}), whose lowest bit must be set",
                self.mark, self.mark_mask
            ));
        }
        if self.outbound_port == 0 || self.inbound_port == 0 || self.outbound_port == self.inbound_port {
            problems.push("outbound_port, inbound_port: must differ and not be 0".to_owned());
        }
        if self.route_table == 0 || (253..=255).contains(&self.route_table) {
            problems.push(format!("route_table: {} is reserved by the kernel", self.route_table));
        }
        if self.rule_priority == 0 || self.rule_priority >= 32766 {
            problems.push(format!("rule_priority: {} is not between 1 and 32765", self.rule_priority));
        }
        if self.hand_off && !self.acceleration {
            problems.push("hand_off: needs acceleration; set both to true".to_owned());
        }
        if self.heartbeat_timeout_ms < 500 {
            problems.push("heartbeat_timeout_ms: less than 500 takes a busy proxy for a dead one".to_owned());
        }
        if (1..MIN_BUFFERED_BYTES).contains(&self.max_buffered_bytes) {
            problems.push(format!(
                "max_buffered_bytes: {} is less than {MIN_BUFFERED_BYTES}, which a few connections fill; 0 is no \
                 limit",
                self.max_buffered_bytes
            ));
        }
        problems
    }

    /// The mark of the proxy's sockets towards applications.
    pub(super) fn application_mark(&self) -> u32 {
        self.mark + 1
    }

    /// This instance's folder in bpffs.
    pub(super) fn pins(&self) -> PathBuf {
        self.bpffs.join("mesh-node").join(&self.instance)
    }

    /// Where the enrolled pods are written down that do not come from a file.
    pub fn known_pods(&self) -> PathBuf {
        self.state_dir.join(format!("{}.pods", self.instance))
    }

    /// This instance's folder of records.
    pub(super) fn records(&self) -> PathBuf {
        self.state_dir.join(&self.instance)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailMode {
    /// Connections are refused while no proxy runs.
    #[default]
    Closed,
    /// Connections go unsteered while no proxy runs.
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Answered with a reset, and counted.
    Refuse,
    /// Let through, and counted.
    Pass,
}

/// An address with a prefix length, as `10.0.0.0/8`; without a length it is one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    pub address: IpAddr,
    pub bits: u8,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_| format!("{text:?} is not an address or a CIDR"))?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => width,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= width)
                .ok_or_else(|| format!("{text:?} has no prefix length between 0 and {width}"))?,
        };
        Ok(Self { address, bits })
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        format!("{}/{}", cidr.address, cidr.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_settings_have_no_problem_and_bad_ones_are_named_all_at_once() {
        assert_eq!(Settings::default().problems(), Vec::<String>::new());
        let bad = Settings {
            instance: "a/b".into(),
            mark: 0x501,
            route_table: 254,
            max_buffered_bytes: 4096,
            hand_off: true,
            ..Settings::default()
        };
        let problems = bad.problems();
        assert_eq!(problems.len(), 5);
        assert!(problems[0].starts_with("instance"));
        assert!(problems[2].starts_with("route_table"));
        assert!(problems[3].starts_with("hand_off"));
        assert!(problems[4].starts_with("max_buffered_bytes"));
    }

    #[test]
    fn cidrs_without_a_length_are_one_address_and_too_long_ones_are_refused() {
        assert_eq!("10.0.0.1".parse(), Ok(Cidr { address: [10, 0, 0, 1].into(), bits: 32 }));
        assert_eq!("fd00::/8".parse::<Cidr>().map(|c| c.bits), Ok(8));
        assert!("10.0.0.0/33".parse::<Cidr>().is_err());
        assert!("10.0.0/8".parse::<Cidr>().is_err());
    }
}

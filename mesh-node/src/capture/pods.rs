//! What is known of a pod that is to be enrolled, and the pods of this node from a watched file.
//!
//! The file is read whole and judged whole: a bad edit changes nothing. It says which pods there
//! are; entering them is `enrol`'s job.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use notify::Watcher;
use serde::{Deserialize, Serialize};

use super::error::CaptureError;
use super::settings::Cidr;
use crate::model::pod::PodDetails;

/// The annotations of Istio that exclude a pod's traffic from capture; comma-separated.
const ANNOTATIONS: &str = "traffic.sidecar.istio.io/";
const ACCELERATION: &str = "mesh-node/acceleration";
const HAND_OFF: &str = "mesh-node/hand-off";
const IN_MEMORY: &str = "mesh-node/in-memory";

/// One pod, as the pods file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodSpec {
    /// `metadata.uid`.
    pub uid: String,
    pub name: String,
    pub namespace: String,
    #[serde(default = "default_service_account", alias = "serviceAccount")]
    pub service_account: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `traffic.sidecar.istio.io/excludeOutboundPorts`, `excludeInboundPorts`,
    /// `excludeOutboundIPRanges` and `excludeInboundIPRanges` add to the lists below; others, beside
    /// those of acceleration and hand-off, are not looked at.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// What made the pod, its containers and ports; without it that is guessed from the pod's name.
    #[serde(default)]
    pub details: PodDetails,
    /// Empty: those that its network namespace has.
    pub ips: Vec<IpAddr>,
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// What keeps the path valid where it is a descriptor's.
    #[serde(skip)]
    pub held: Option<Held>,
    /// Name of the host's end of the pod's interface. None: found by the pod's end.
    #[serde(default)]
    pub interface: Option<String>,
    /// The pod is not enrolled.
    #[serde(default, alias = "optOut")]
    pub opt_out: bool,
    /// The pod's connections may be accelerated where acceleration is on. Also by the annotation
    /// `mesh-node/acceleration`, `on` or `off`.
    #[serde(default = "yes")]
    pub acceleration: bool,
    /// The pod's connections may be handed off where that is on. Also by the annotation `mesh-node/hand-off`,
    /// `on` or `off`.
    #[serde(default = "yes", alias = "handOff")]
    pub hand_off: bool,
    /// The pod's connections with pods of this node may be handed over in memory where that is on. Also by the
    /// annotation `mesh-node/in-memory`, `on` or `off`.
    #[serde(default = "yes")]
    pub in_memory: bool,
    #[serde(default, alias = "excludeOutboundPorts")]
    pub exclude_outbound_ports: Vec<u16>,
    #[serde(default, alias = "excludeInboundPorts")]
    pub exclude_inbound_ports: Vec<u16>,
    #[serde(default, alias = "excludeOutboundCidrs")]
    pub exclude_outbound_cidrs: Vec<Cidr>,
    #[serde(default, alias = "excludeInboundCidrs")]
    pub exclude_inbound_cidrs: Vec<Cidr>,
}

/// An open network namespace. Equal is only the same one.
#[derive(Clone, Debug)]
pub struct Held(Arc<File>);

impl Held {
    /// Keeps `namespace` open, and says by which path it is reached meanwhile.
    pub fn new(namespace: File) -> (Self, PathBuf) {
        let held = Self(Arc::new(namespace));
        let path = held.path();
        (held, path)
    }

    /// By which path it is reached.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Held {}

impl Default for PodSpec {
    fn default() -> Self {
        Self {
            uid: String::new(),
            name: String::new(),
            namespace: String::new(),
            service_account: default_service_account(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            details: PodDetails::default(),
            ips: Vec::new(),
            netns: PathBuf::new(),
            held: None,
            interface: None,
            opt_out: false,
            acceleration: yes(),
            hand_off: yes(),
            in_memory: yes(),
            exclude_outbound_ports: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            exclude_inbound_cidrs: Vec::new(),
        }
    }
}

fn default_service_account() -> String {
    "default".to_owned()
}

fn yes() -> bool {
    true
}

impl PodSpec {
    /// Takes what annotations say into account.
    ///
    /// # Errors
    /// What is wrong with the pod, in one line that names the field.
    pub fn check(&mut self) -> Result<(), String> {
        if self.ips.is_empty() && !self.opt_out {
            return Err("ips is empty; list the pod's addresses".to_owned());
        }
        self.check_but_addresses()
    }

    /// The same for a pod whose addresses are not known yet.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_but_addresses(&mut self) -> Result<(), String> {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
        if self.uid.is_empty() || self.uid.len() > 128 || !self.uid.chars().all(legal) {
            return Err(format!("uid {:?} is not letters, digits, '-', '_' and '.'", self.uid));
        }
        if let Some(ip) =
            self.ips.iter().find(|ip| ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
        {
            return Err(format!("ips: {ip} is no address of a pod"));
        }
        self.ips.iter_mut().for_each(|ip| *ip = ip.to_canonical());
        take_annotations(self).map_err(|problem| format!("annotation {problem}"))
    }

    /// How messages name the pod.
    pub fn display_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PodsFile {
    pods: Vec<PodSpec>,
}

/// Reads the pods file, YAML or JSON: `pods:` with a list of pods.
///
/// # Errors
/// The first problem, with the pod's name and its place in the file.
pub fn read(path: &Path) -> Result<Vec<PodSpec>, CaptureError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| CaptureError::PodsUnreadable { path: path.to_owned(), source })?;
    parse(&text).map_err(|reason| CaptureError::PodsInvalid { path: path.to_owned(), reason })
}

fn parse(text: &str) -> Result<Vec<PodSpec>, String> {
    let file: PodsFile = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
    let mut pods = file.pods;
    let mut uids = HashSet::new();
    for pod in &mut pods {
        let name = pod.display_name();
        pod.check().map_err(|problem| format!("pod {name}: {problem}"))?;
        if !uids.insert(pod.uid.clone()) {
            return Err(format!("pod {name}: uid {} is another pod's too; give each pod its own", pod.uid));
        }
    }
    Ok(pods)
}

fn take_annotations(pod: &mut PodSpec) -> Result<(), String> {
    fn values<T: std::str::FromStr>(
        annotations: &BTreeMap<String, String>,
        name: &str,
        kind: &str,
    ) -> Result<Vec<T>, String> {
        let name = format!("{ANNOTATIONS}{name}");
        let Some(text) = annotations.get(&name) else { return Ok(Vec::new()) };
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(|item| item.parse().map_err(|_| format!("{name}: {item:?} is not {kind}"))).collect()
    }
    for (name, switch) in [
        (ACCELERATION, &mut pod.acceleration),
        (HAND_OFF, &mut pod.hand_off),
        (IN_MEMORY, &mut pod.in_memory),
    ] {
        match pod.annotations.get(name).map(String::as_str) {
            None => {}
            Some("on") => *switch = true,
            Some("off") => *switch = false,
            Some(other) => return Err(format!("{name}: {other:?} is neither on nor off")),
        }
    }
    let annotations = &pod.annotations;
    pod.exclude_outbound_ports.extend(values::<u16>(annotations, "excludeOutboundPorts", "a port")?);
    pod.exclude_inbound_ports.extend(values::<u16>(annotations, "excludeInboundPorts", "a port")?);
    pod.exclude_outbound_cidrs.extend(values::<Cidr>(annotations, "excludeOutboundIPRanges", "a CIDR")?);
    pod.exclude_inbound_cidrs.extend(values::<Cidr>(annotations, "excludeInboundIPRanges", "a CIDR")?);
    Ok(())
}

/// Follows the pods file: calls `changed` on a thread of its own with every new, valid list. Edits
/// in place, atomic replacement and swapped symbolic links are all noticed. Ends when `changed`
/// returns false.
///
/// # Errors
/// When the kernel has no more watches for the file's folder.
pub(super) fn watch(
    path: PathBuf,
    mut current: Vec<PodSpec>,
    mut changed: impl FnMut(Vec<PodSpec>) -> bool + Send + 'static,
) -> Result<notify::RecommendedWatcher, notify::Error> {
    let (sender, events) = mpsc::channel();
    // What changed between the first reading and now is noticed too.
    let _ = sender.send(());
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the file is itself an event; only what may have changed it counts.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = sender.send(());
        }
    })?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    watcher.watch(folder, notify::RecursiveMode::NonRecursive)?;
    std::thread::Builder::new().name("pods-file".to_owned()).spawn(move || {
        let mut told = String::new();
        while events.recv().is_ok() {
            // An editor writes in several steps; take what comes close together as one.
            while events.recv_timeout(Duration::from_millis(20)).is_ok() {}
            match read(&path) {
                Ok(pods) if pods == current => told.clear(),
                Ok(pods) => {
                    told.clear();
                    current.clone_from(&pods);
                    if !changed(pods) {
                        return;
                    }
                }
                Err(error) => {
                    let message = error.to_string();
                    if message != told {
                        tracing::error!("{message}; the last good list stays");
                        told = message;
                    }
                }
            }
        }
    })?;
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "{uid: u-1, name: a, namespace: default, ips: [10.0.0.1], netns: /run/netns/a}";

    #[test]
    fn a_list_of_pods_is_read_from_yaml_and_from_json() {
        let pods = parse(&format!("pods:\n- {POD}\n")).unwrap();
        assert_eq!(pods[0].service_account, "default");
        assert_eq!(pods[0].display_name(), "default/a");
        let json = r#"{"pods": [{"uid": "u", "name": "n", "namespace": "s", "service_account": "sa",
            "labels": {"app": "x"}, "ips": ["::ffff:10.0.0.9", "fd00::9"], "netns": "/proc/9/ns/net"}]}"#;
        let pods = parse(json).unwrap();
        assert_eq!(pods[0].ips[0], IpAddr::from([10, 0, 0, 9]));
    }

    #[test]
    fn mistakes_are_named_with_the_pod() {
        let twice = parse(&format!("pods:\n- {POD}\n- {}\n", POD.replace("name: a", "name: b"))).unwrap_err();
        assert!(twice.contains("default/b") && twice.contains("u-1"), "{twice}");
        let unknown = parse(&format!("pods:\n- {}\n", POD.replace("ips:", "ip:"))).unwrap_err();
        assert!(unknown.contains("unknown field `ip`"), "{unknown}");
        let address = parse(&format!("pods:\n- {}\n", POD.replace("10.0.0.1", "10.0.0.256"))).unwrap_err();
        assert!(address.contains("line") || address.contains("pods[0]"), "{address}");
        let loopback = parse(&format!("pods:\n- {}\n", POD.replace("10.0.0.1", "127.0.0.1"))).unwrap_err();
        assert!(loopback.contains("default/a"), "{loopback}");
    }

    #[test]
    fn istio_annotations_exclude_ports_and_ranges() {
        let annotated = POD.replace(
            "ips:",
            "annotations: {traffic.sidecar.istio.io/excludeOutboundPorts: '3306, 5432', \
             traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.9.0.0/16, other: x}, ips:",
        );
        let pods = parse(&format!("pods:\n- {annotated}\n")).unwrap();
        assert_eq!(pods[0].exclude_outbound_ports, [3306, 5432]);
        assert_eq!(pods[0].exclude_outbound_cidrs[0].bits, 16);
        let bad = annotated.replace("5432", "x");
        assert!(parse(&format!("pods:\n- {bad}\n")).unwrap_err().contains("excludeOutboundPorts"));
    }

    #[test]
    fn edits_in_place_and_by_rename_are_followed_and_a_bad_edit_keeps_the_last_list() {
        let folder = std::env::temp_dir().join(format!("mesh-pods-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("pods.yaml");
        std::fs::write(&path, "pods: []").unwrap();
        let (sender, lists) = mpsc::channel();
        let _watcher =
            watch(path.clone(), read(&path).unwrap(), move |pods| sender.send(pods).is_ok()).unwrap();
        let next =
            |lists: &mpsc::Receiver<Vec<PodSpec>>| lists.recv_timeout(Duration::from_secs(10)).unwrap();

        std::fs::write(&path, format!("pods: [{POD}]")).unwrap();
        assert_eq!(next(&lists).len(), 1);
        std::fs::write(&path, "pods: [{").unwrap();
        let replacement = folder.join("next.yaml");
        let second = POD.replace("u-1", "u-2");
        std::fs::write(&replacement, format!("pods: [{POD}, {second}]")).unwrap();
        std::fs::rename(&replacement, &path).unwrap();
        assert_eq!(next(&lists).len(), 2);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

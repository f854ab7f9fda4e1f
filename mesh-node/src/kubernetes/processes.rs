//! Finds the network namespace of a pod by a process that is in one of its control groups.
//!
//! The kubelet names a pod's control group by the pod's uid, whatever the runtime: `kubepods/burstable/podUID/ID`, or
//! with systemd `kubepods-burstable-podU_I_D.slice/cri-containerd-ID.scope`, in every hierarchy of cgroup v1 and in
//! that of v2. Where it does not, the last part still holds the id of a container that the API reports.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Digits of a container's id.
const ID_DIGITS: usize = 64;

/// Whose processes are looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sought<'a> {
    pub(super) cgroup_uid: &'a str,
    pub(super) container_ids: &'a [String],
}

/// The processes of the host.
#[derive(Debug)]
pub(super) struct Processes {
    proc: PathBuf,
}

impl Processes {
    pub(super) fn of_host() -> Self {
        Self { proc: PathBuf::from("/proc") }
    }

    /// The network namespaces of those that have a process outside the host's own, in the order asked for. The
    /// oldest process decides: the pod's sandbox.
    pub(super) fn namespaces(&self, sought: &[Sought<'_>]) -> Vec<Option<File>> {
        let mut found: Vec<Option<File>> = sought.iter().map(|_| None).collect();
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        for (i, of) in sought.iter().enumerate() {
            by_name.insert(of.cgroup_uid, i);
            by_name.extend(of.container_ids.iter().map(|id| (id.as_str(), i)));
        }
        let host = fs::metadata(self.proc.join("self/ns/net")).map(|own| (own.dev(), own.ino())).ok();
        for process in self.numbers() {
            let folder = self.proc.join(process.to_string());
            let pod = || {
                let cgroups = fs::read_to_string(folder.join("cgroup")).ok()?;
                pod_of(&cgroups, &by_name)
            };
            let Some(i) = pod().filter(|i| found[*i].is_none()) else { continue };
            let Ok(namespace) = File::open(folder.join("ns/net")) else { continue };
            let id = namespace.metadata().map(|of| (of.dev(), of.ino())).ok();
            // The number may have become another process's meanwhile.
            if id != host && pod() == Some(i) {
                found[i] = Some(namespace);
            }
        }
        found
    }

    /// All processes, the oldest first as long as numbers have not wrapped.
    fn numbers(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.proc).into_iter().flatten().flatten();
        let mut numbers: Vec<u32> =
            entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    }
}

/// Whose the control groups of a process are; a line is `NUMBER:CONTROLLERS:PATH`.
fn pod_of(cgroups: &str, by_name: &HashMap<&str, usize>) -> Option<usize> {
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.flat_map(|path| path.split(['/', ':'])).find_map(|part| {
        let part = part.trim_end_matches(".slice").trim_end_matches(".scope");
        let uid = part.rsplit_once("-pod").map_or_else(|| part.strip_prefix("pod"), |(_, uid)| Some(uid));
        if let Some(uid) = uid
            && let Some(i) = by_name.get(uid).or_else(|| by_name.get(uid.replace('_', "-").as_str()))
        {
            return Some(*i);
        }
        let id = part.get(part.len().checked_sub(ID_DIGITS)?..)?;
        by_name.get(id).copied()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "3f1d2c1e-8f0b-4a50-9d43-0f4f3a6f7b11";
    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_pods_control_group_is_known_with_every_driver_and_hierarchy() {
        let dashed = UID.replace('-', "_");
        for cgroups in [
            format!("12:pids:/kubepods/burstable/pod{UID}/{ID}\n0::/"),
            format!("0::/kubepods/besteffort/pod{UID}/{ID}"),
            format!("0::/kubepods/pod{UID}/{ID}"),
            format!("0::/kubepods.slice/kubepods-pod{dashed}.slice/cri-containerd-{ID}.scope"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{dashed}.slice/crio-{ID}.scope"
            ),
            format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{dashed}.slice/crio-{ID}.scope"
            ),
            // Seen from a cgroup namespace beside it.
            format!("0::/../../pod{UID}/{ID}"),
            format!("1:name=systemd:/system.slice/kubepods-besteffort-pod{dashed}.slice:cri-containerd:{ID}"),
        ] {
            assert_eq!(pod_of(&cgroups, &HashMap::from([(UID, 7)])), Some(7), "{cgroups}");
            assert_eq!(pod_of(&cgroups, &HashMap::from([(ID, 8)])), Some(8), "{cgroups}");
        }
        for cgroups in ["0::/", "0::/system.slice/kubelet.service", "garbage", "0::/kubepods/podé", ""] {
            assert_eq!(pod_of(cgroups, &HashMap::from([(UID, 7), (ID, 8)])), None, "{cgroups}");
        }
    }

    #[test]
    fn the_oldest_process_outside_the_hosts_network_decides() {
        let proc = tempfile::tempdir().unwrap();
        let process = |name: &str, cgroup: &str, namespace: &str| {
            let folder = proc.path().join(name);
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::write(folder.join("cgroup"), cgroup).unwrap();
            let shared = proc.path().join(namespace);
            fs::write(&shared, namespace).unwrap();
            fs::hard_link(shared, folder.join("ns/net")).unwrap();
        };
        let of_pod = format!("0::/kubepods/pod{UID}/{ID}");
        process("self", "0::/", "host");
        process("90", &of_pod, "host");
        process("1000", &of_pod, "newer");
        process("200", &of_pod, "sandbox");
        process("7", "0::/system.slice", "other");
        let processes = Processes { proc: proc.path().to_owned() };
        let sought = |cgroup_uid| Sought { cgroup_uid, container_ids: &[] };
        let found = processes.namespaces(&[sought("absent"), sought(UID)]);
        assert!(found[0].is_none());
        let text = std::io::read_to_string(found[1].as_ref().unwrap()).unwrap();
        assert_eq!(text, "sandbox");
    }
}

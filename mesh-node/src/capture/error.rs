//! What can go wrong in capture. Each message is one line that names the feature or the pod, and
//! what to do about it.

use std::io;
use std::path::PathBuf;

/// An error of the capture stage.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("settings: {}", .0.join("; "))]
    Settings(Vec<String>),

    #[error(
        "the kernel programs were not found at {}; build them with `cargo xtask build-ebpf`, or set bpf_object",
        list(.0)
    )]
    ObjectMissing(Vec<PathBuf>),
    #[error("{}: not readable: {source}; set bpf_object to the file that `cargo xtask build-ebpf` makes", path.display())]
    ObjectUnreadable { path: PathBuf, source: io::Error },
    #[error("{}: not the kernel programs of this version: {reason}; build them again with `cargo xtask build-ebpf`", path.display())]
    ObjectInvalid { path: PathBuf, reason: String },

    #[error("instance {instance:?} is run by process {holder}; stop that first, or set another instance")]
    InstanceInUse { instance: String, holder: String },
    #[error("{} is not a BPF file system; mount one with `mount -t bpf bpf {}`, or set bpffs", .0.display(), .0.display())]
    NoBpffs(PathBuf),
    #[error("the capabilities {0} are missing; run mesh-node as root or give it these capabilities")]
    Capability(&'static str),
    #[error(
        "this kernel does not load {program}, without which nothing can be steered (Linux 5.10 or newer is needed): {reason}"
    )]
    Program { program: &'static str, reason: String },
    #[error("{action} {}: {source}; check that the folder can be written", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("BPF map {name}: {source}; run `mesh-node cleanup` and start again")]
    Map { name: &'static str, source: io::Error },
    #[error("attaching {program}: {source}; another program may be attached so that none may be added")]
    Attach { program: &'static str, source: io::Error },
    #[error("{}: {source}; set cgroup_root or kubepods_cgroup to a folder of a cgroup2 file system", path.display())]
    Cgroup { path: PathBuf, source: io::Error },

    #[error("{}: {source}; set pods_file to the file that lists the pods", path.display())]
    PodsUnreadable { path: PathBuf, source: io::Error },
    #[error("{}: {reason}", path.display())]
    PodsInvalid { path: PathBuf, reason: String },
    #[error("pod {pod}: {problem}")]
    Pod { pod: String, problem: PodProblem },
    #[error("{0} pods are enrolled, which is as many as there can be on one node; the rest is not steered")]
    TooManyPods(u32),
}

/// What is wrong with one pod.
#[derive(Debug, thiserror::Error)]
pub enum PodProblem {
    #[error("network namespace {}: {source}; remove the pod from the pods file if it is gone", path.display())]
    Namespace { path: PathBuf, source: io::Error },
    #[error("network namespace {} is the host's own; host-network pods cannot be enrolled, remove it", .0.display())]
    HostNamespace(PathBuf),
    #[error("network namespace {} is another enrolled pod's; give each pod its own", .0.display())]
    SharedNamespace(PathBuf),
    #[error("address {0} is not on an interface of its network namespace; correct `ips`")]
    Address(std::net::IpAddr),
    #[error("its network namespace has no address yet; it is tried again when the API tells one")]
    NoAddress,
    #[error("{step}: {source}")]
    Setup { step: &'static str, source: io::Error },
    #[error("{name} cannot be set: {source}; mount the node's /proc/sys/net at /host/proc/sys/net")]
    Sysctl { name: String, source: io::Error },
    #[error("{program}: {reason}")]
    Program { program: &'static str, reason: String },
}

impl PodProblem {
    pub(super) fn of(self, pod: impl Into<String>) -> CaptureError {
        CaptureError::Pod { pod: pod.into(), problem: self }
    }

    pub(super) fn setup(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Setup { step, source }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

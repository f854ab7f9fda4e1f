//! `mesh-node cleanup`: removes all that an instance left on the host and in its pods, and nothing
//! else; also after `kill -9`, because everything was recorded or pinned before it was done.

use std::path::{Path, PathBuf};

use aya::programs::TcAttachType;
use aya::programs::tc::qdisc_detach_program;

use super::error::CaptureError;
use super::lock::InstanceLock;
use super::netlink::Netlink;
use super::netns::Namespace;
use super::programs::{TC_GUARD, TC_STEER, check_capabilities};
use super::record::{self, Interface};
use super::release;
use super::settings::Settings;

/// What [`cleanup`] removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// `namespace/name` of the pods whose namespaces were put back.
    pub pods: Vec<String>,
    /// The instance's folder in bpffs, with the programs pinned there.
    pub pins: Option<PathBuf>,
}

/// Removes programs, pins, rules and routes of `settings.instance`, and puts sysctls back. Finding
/// nothing is success.
///
/// # Errors
/// While a process of the instance runs, without the capabilities, or when the calling thread's own namespace
/// cannot be opened.
pub fn cleanup(settings: &Settings) -> Result<Removed, CaptureError> {
    check_capabilities()?;
    cleanup_locked(settings, InstanceLock::take(settings)?)
}

/// The same for who holds the lock already.
pub(super) fn cleanup_locked(settings: &Settings, lock: InstanceLock) -> Result<Removed, CaptureError> {
    let current = PathBuf::from("/proc/thread-self/ns/net");
    let host = Namespace::current().map_err(|source| CaptureError::File {
        action: "opening",
        path: current,
        source,
    })?;
    let mut removed = Removed::default();
    let pins = settings.pins();
    // Programs first: while the way to the listeners is removed, nothing is steered any more.
    if pins.exists() {
        release::remove_folder(&pins);
        removed.pins = Some(pins);
        // Shared with other instances: goes with the last.
        let _ = std::fs::remove_dir(settings.bpffs.join("mesh-node"));
    }
    let folder = settings.records();
    for record in record::read_all(&folder) {
        release::undo_outside_maps(&host, &record);
        removed.pods.push(record.pod);
    }
    if folder.exists()
        && let Err(error) = std::fs::remove_dir_all(&folder)
    {
        tracing::warn!("removing {}: {error}", folder.display());
    }
    let _ = std::fs::remove_file(settings.known_pods());
    lock.remove();
    // Shared, too.
    if std::fs::remove_dir(&settings.state_dir).is_err() {
        // In a container it is a mount, which cannot be removed from there: as the node's first process sees it, it can.
        let below = settings.state_dir.strip_prefix("/").unwrap_or(&settings.state_dir);
        let _ = std::fs::remove_dir(Path::new("/proc/1/root").join(below));
    }
    Ok(removed)
}

/// Removes our netlink filter from an interface of the current namespace, the guard's on the host's
/// side and the steering program's on the pod's, and the queueing discipline if it was added for it.
pub(super) fn remove_filter(interface: &Interface, host_side: bool) {
    let (side, name) =
        if host_side { (TcAttachType::Ingress, TC_GUARD) } else { (TcAttachType::Egress, TC_STEER) };
    if let Err(error) = qdisc_detach_program(&interface.name, side, name) {
        // Usually gone with the interface.
        tracing::debug!("{}: {name} is not there: {error}", interface.name);
        return;
    }
    if interface.qdisc_added
        && let Err(error) = Netlink::open().and_then(|mut n| n.remove_empty_clsact(interface.index))
    {
        tracing::debug!("{}: its queueing discipline stays: {error}", interface.name);
    }
}

//! Kernel settings of a pod's network namespace that steering needs. What is changed is told
//! beforehand, so that it can be recorded and put back.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nix::sys::statvfs::{FsFlags, statvfs};
use serde::{Deserialize, Serialize};

/// One setting, changed from `old` to `new`; `name` is its path below `/proc/sys/net`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Change {
    pub(super) name: String,
    pub(super) old: String,
    pub(super) new: String,
}

/// What has to be changed in the namespace that the calling thread is in, whose interfaces are
/// `interfaces`. Reads only.
pub(super) fn plan(interfaces: &[String]) -> Result<Vec<Change>, (String, io::Error)> {
    let mut changes = Vec::new();
    // Answers of an application carry the mark of the connection they belong to.
    want(&mut changes, "ipv4/tcp_fwmark_accept", "1")?;
    // So do those of the kernel itself to what comes for a connection that an application has no longer: else the
    // proxy would never hear of an end that got lost.
    want(&mut changes, "ipv4/fwmark_reflect", "1")?;
    if path("ipv6/fwmark_reflect").exists() {
        want(&mut changes, "ipv6/fwmark_reflect", "1")?;
    }
    // Connections to the application come from few addresses and end often; their ports may be used
    // again after a second instead of a minute.
    want(&mut changes, "ipv4/tcp_tw_reuse", "1")?;
    // What TC brings to the loopback interface has the pod's own source address.
    want(&mut changes, "ipv4/conf/lo/accept_local", "1")?;
    want(&mut changes, "ipv4/conf/lo/rp_filter", "0")?;
    // The kernel takes the maximum of `all` and the interface; the others keep what `all` gave them.
    let all = read("ipv4/conf/all/rp_filter")?;
    if all == "1" {
        for interface in interfaces {
            let name = format!("ipv4/conf/{interface}/rp_filter");
            if read(&name)? == "0" {
                want(&mut changes, &name, &all)?;
            }
        }
        want(&mut changes, "ipv4/conf/all/rp_filter", "0")?;
    }
    Ok(changes)
}

fn want(changes: &mut Vec<Change>, name: &str, new: &str) -> Result<(), (String, io::Error)> {
    let old = read(name)?;
    if old != new {
        changes.push(Change { name: name.to_owned(), old, new: new.to_owned() });
    }
    Ok(())
}

/// Makes the changes, in order.
pub(super) fn apply(changes: &[Change]) -> Result<(), (String, io::Error)> {
    changes.iter().try_for_each(|change| write(&change.name, &change.new))
}

/// Puts back what still is as it was set here; what another changed since stays.
pub(super) fn restore(changes: &[Change]) -> Result<(), (String, io::Error)> {
    for change in changes.iter().rev() {
        if read(&change.name).is_ok_and(|now| now == change.new) {
            write(&change.name, &change.old)?;
        }
    }
    Ok(())
}

/// Where settings are written: in a container `/proc/sys` is read-only, and the node's is mounted beside it. Either way
/// they are those of the network namespace that the calling thread is in.
static ROOT: LazyLock<&Path> = LazyLock::new(|| {
    let own = Path::new("/proc/sys/net");
    let nodes = Path::new("/host/proc/sys/net");
    let read_only = statvfs(own).is_ok_and(|of| of.flags().contains(FsFlags::ST_RDONLY));
    if read_only && nodes.is_dir() { nodes } else { own }
});

fn path(name: &str) -> PathBuf {
    ROOT.join(name)
}

/// The value of a setting in the namespace of the calling thread.
pub(super) fn read(name: &str) -> Result<String, (String, io::Error)> {
    let text = std::fs::read_to_string(path(name)).map_err(|error| (name.to_owned(), error))?;
    Ok(text.trim().to_owned())
}

fn write(name: &str, value: &str) -> Result<(), (String, io::Error)> {
    std::fs::write(path(name), value).map_err(|error| (name.to_owned(), error))
}

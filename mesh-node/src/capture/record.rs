//! What was changed for each pod, on disk before it is changed: `cleanup` and a new process put it
//! back from here, also after `kill -9`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::accel::Report;
use super::error::CaptureError;
use super::netlink::Steering;
use super::sysctl;

const ACCELERATION: &str = "acceleration";

/// Everything done for one pod outside this instance's folder in bpffs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) slot: u32,
    pub(super) uid: String,
    pub(super) pod: String,
    pub(super) netns: PathBuf,
    /// Device and inode of the namespace: another one at the same path is not ours to touch.
    pub(super) netns_id: (u64, u64),
    pub(super) steering: Steering,
    pub(super) v4: bool,
    pub(super) v6: bool,
    pub(super) sysctls: Vec<sysctl::Change>,
    /// The pod's own ends of its interfaces.
    pub(super) pod_interfaces: Vec<Interface>,
    /// The host's ends.
    pub(super) host_interfaces: Vec<Interface>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    /// The program is a netlink filter (before Linux 6.6), which no pin holds.
    pub(super) filter: bool,
    /// The queueing discipline that filters need was added here.
    pub(super) qdisc_added: bool,
}

/// The folder of records of one instance.
#[derive(Clone, Debug)]
pub(super) struct Records(PathBuf);

impl Records {
    /// # Errors
    /// When the folder cannot be made.
    pub(super) fn open(folder: PathBuf) -> Result<Self, CaptureError> {
        std::fs::create_dir_all(&folder).map_err(|source| CaptureError::File {
            action: "creating",
            path: folder.clone(),
            source,
        })?;
        Ok(Self(folder))
    }

    fn path(&self, slot: u32) -> PathBuf {
        self.0.join(format!("{slot}.json"))
    }

    /// Writes a record so that a reader sees the old one or the new one.
    pub(super) fn write(&self, record: &Record) -> Result<(), CaptureError> {
        let path = self.path(record.slot);
        let next = path.with_extension("next");
        let text = serde_json::to_string(record).unwrap_or_default();
        std::fs::write(&next, text)
            .and_then(|()| std::fs::rename(&next, &path))
            .map_err(|source| CaptureError::File { action: "writing", path, source })
    }

    pub(super) fn remove(&self, slot: u32) {
        let path = self.path(slot);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("removing {}: {error}", path.display());
        }
    }

    /// Writes down how acceleration stands, for those who ask without the process.
    pub(super) fn write_acceleration(&self, report: &Report) {
        let path = self.0.join(ACCELERATION);
        let text = serde_json::to_string(report).unwrap_or_default();
        if let Err(error) = std::fs::write(&path, text) {
            tracing::warn!("writing {}: {error}", path.display());
        }
    }

    /// All records. One that cannot be read was written by another version; it is named and left.
    pub(super) fn all(&self) -> Vec<Record> {
        read_all(&self.0)
    }
}

/// How acceleration stood last; `None` if nobody asked for it.
pub(super) fn read_acceleration(folder: &Path) -> Option<Report> {
    serde_json::from_str(&std::fs::read_to_string(folder.join(ACCELERATION)).ok()?).ok()
}

/// The records in `folder`; none if it does not exist.
pub(super) fn read_all(folder: &Path) -> Vec<Record> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut records = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let read = std::fs::read_to_string(&path).map_err(|e| e.to_string());
        match read.and_then(|text| serde_json::from_str(&text).map_err(|e| e.to_string())) {
            Ok(record) => records.push(record),
            Err(error) => tracing::warn!("{}: not a record of a pod: {error}", path.display()),
        }
    }
    records
}

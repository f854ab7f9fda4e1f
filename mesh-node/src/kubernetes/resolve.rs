//! From pods that are to be enrolled to the list that capture takes: each with its network namespace, held open.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::pod::Candidate;
use super::processes::{Processes, Sought};
use crate::capture::pods::{Held, PodSpec};

/// A pod as it is written down for the next process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    spec: PodSpec,
    cgroup_uid: String,
    container_ids: Vec<String>,
}

/// The file of the pods that are enrolled.
#[derive(Debug)]
pub(super) struct Known {
    path: PathBuf,
    written: Vec<Entry>,
}

impl Known {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path, written: Vec::new() }
    }

    /// What an earlier process wrote; `None` if there is nothing that can be read.
    fn read(&self) -> Option<Vec<Entry>> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        let entries = serde_json::from_str(&text);
        if let Err(error) = &entries {
            tracing::warn!("{}: written by another version, not used: {error}", self.path.display());
        }
        entries.ok()
    }

    fn write(&mut self, entries: Vec<Entry>) {
        if entries == self.written {
            return;
        }
        let next = self.path.with_extension("next");
        let write = || -> io::Result<()> {
            if let Some(folder) = self.path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(&next, serde_json::to_string(&entries)?)?;
            std::fs::rename(&next, &self.path)
        };
        if let Err(error) = write() {
            tracing::warn!("{}: not written, a restart must ask the API first: {error}", self.path.display());
        }
        self.written = entries;
    }
}

/// A network namespace that was found.
#[derive(Debug)]
struct Found {
    id: (u64, u64),
    held: Held,
    path: PathBuf,
}

/// Keeps the namespaces of enrolled pods open.
#[derive(Debug)]
pub(super) struct Resolver {
    processes: Processes,
    known: Known,
    found: BTreeMap<String, Found>,
}

/// The list, and the pods whose network was not found.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) pods: Vec<PodSpec>,
    pub(super) missing: Vec<Missing>,
}

/// A pod whose network was not found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) name: String,
    /// The API says that it has a network.
    pub(super) has_address: bool,
}

impl Resolver {
    pub(super) fn new(processes: Processes, known: Known) -> Self {
        Self { processes, known, found: BTreeMap::new() }
    }

    /// The pods that an earlier process had enrolled and that still run; `None` if it left no list.
    pub(super) fn left_by_an_earlier_process(&mut self) -> Option<Vec<PodSpec>> {
        let entries = self.known.read()?;
        let pods = self.list(&entries).pods;
        tracing::info!(
            pods = pods.len(),
            "until the Kubernetes API has answered, pods known from before are served"
        );
        Some(pods)
    }

    /// What capture is to enrol now; written down, too.
    pub(super) fn resolve(&mut self, wanted: Vec<&Candidate>) -> Resolved {
        let entry = |candidate: &Candidate| Entry {
            spec: candidate.spec.clone(),
            cgroup_uid: candidate.cgroup_uid.clone(),
            container_ids: candidate.container_ids.clone(),
        };
        let entries: Vec<Entry> = wanted.into_iter().map(entry).collect();
        let resolved = self.list(&entries);
        self.known.write(entries);
        resolved
    }

    /// The network namespaces of these, as far as they have a process.
    pub(super) fn namespaces(&self, of: &[&Candidate]) -> Vec<Held> {
        let sought: Vec<Sought<'_>> = of
            .iter()
            .map(|of| Sought { cgroup_uid: &of.cgroup_uid, container_ids: &of.container_ids })
            .collect();
        self.processes.namespaces(&sought).into_iter().flatten().map(|file| Held::new(file).0).collect()
    }

    fn list(&mut self, entries: &[Entry]) -> Resolved {
        let sought: Vec<Sought<'_>> = entries
            .iter()
            .map(|entry| Sought { cgroup_uid: &entry.cgroup_uid, container_ids: &entry.container_ids })
            .collect();
        let namespaces = self.processes.namespaces(&sought);
        let mut before = std::mem::take(&mut self.found);
        let mut resolved = Resolved { pods: Vec::new(), missing: Vec::new() };
        for (entry, namespace) in entries.iter().zip(namespaces) {
            let uid = &entry.spec.uid;
            // A pod without a process keeps its network: its container may be starting again.
            let found = match (before.remove(uid), namespace) {
                (Some(known), None) => Some(known),
                (known, Some(namespace)) => hold(known, namespace),
                (None, None) => None,
            };
            let Some(found) = found else {
                let (name, has_address) = (entry.spec.display_name(), !entry.spec.ips.is_empty());
                resolved.missing.push(Missing { name, has_address });
                continue;
            };
            let (netns, held) = (found.path.clone(), Some(found.held.clone()));
            resolved.pods.push(PodSpec { netns, held, ..entry.spec.clone() });
            self.found.insert(uid.clone(), found);
        }
        resolved
    }
}

/// The same namespace keeps its descriptor, so that nothing changes for the pod.
fn hold(known: Option<Found>, namespace: File) -> Option<Found> {
    let metadata = namespace.metadata().ok()?;
    let id = (metadata.dev(), metadata.ino());
    if known.as_ref().is_some_and(|known| known.id == id) {
        return known;
    }
    let (held, path) = Held::new(namespace);
    Some(Found { id, held, path })
}

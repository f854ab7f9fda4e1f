//! All clusters of the process, kept in step with the published configuration.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{ClusterState, Random, ThreadRandom};
use crate::model::{Snapshot, Str};

type Clusters = HashMap<Str, Arc<ClusterState>, ahash::RandomState>;

/// Clusters by name, shared by all workers.
#[derive(Debug)]
pub struct ClusterManager {
    clusters: ArcSwap<Clusters>,
    random: Arc<dyn Random>,
    workers: usize,
}

impl ClusterManager {
    /// A manager without clusters, for that many worker threads.
    pub fn new(workers: usize) -> Self {
        Self::with_random(workers, Arc::new(ThreadRandom))
    }

    /// A manager whose choices come from `random`.
    pub fn with_random(workers: usize, random: Arc<dyn Random>) -> Self {
        Self { clusters: ArcSwap::default(), random, workers }
    }

    /// Takes over the clusters of `snapshot`. A cluster with the same content keeps its state; one that
    /// changed starts anew, but its hosts keep their counters by address. To be called before the snapshot
    /// is published, by one caller at a time, on the background runtime.
    pub fn apply(&self, snapshot: &Snapshot) {
        let old = self.clusters.load_full();
        let mut new = Clusters::default();
        for (name, config) in &snapshot.clusters {
            let previous = old.get(name);
            let state = match previous {
                Some(same) if same.config.content_hash == config.content_hash => same.clone(),
                _ => Arc::new(ClusterState::new(
                    config.clone(),
                    previous.map(|p| &**p),
                    self.random.clone(),
                    self.workers,
                )),
            };
            new.insert(name.clone(), state);
        }
        let new = Arc::new(new);
        self.clusters.store(new.clone());
        for (name, state) in old.iter() {
            if !new.get(name).is_some_and(|kept| Arc::ptr_eq(kept, state)) {
                state.retire();
            }
        }
    }

    /// The cluster of that name, if configured.
    pub fn get(&self, name: &str) -> Option<Arc<ClusterState>> {
        self.clusters.load().get(name).cloned()
    }

    /// All clusters, sorted by name.
    pub fn all(&self) -> Vec<Arc<ClusterState>> {
        let mut all: Vec<_> = self.clusters.load().values().cloned().collect();
        all.sort_by(|a, b| a.name().cmp(b.name()));
        all
    }
}

//! All clusters of the process, kept in step with the published configuration.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{ClusterState, Random, Resolve, SystemResolver, ThreadRandom};
use crate::model::cluster::Cluster;
use crate::model::{Snapshot, Str};

type Clusters = HashMap<Str, Arc<ClusterState>, ahash::RandomState>;

/// Clusters by name, shared by all workers.
#[derive(Debug)]
pub struct ClusterManager {
    clusters: ArcSwap<Clusters>,
    random: Arc<dyn Random>,
    resolver: Arc<dyn Resolve>,
    workers: usize,
}

impl ClusterManager {
    /// A manager without clusters, for that many worker threads.
    pub fn new(workers: usize) -> Self {
        Self::with(workers, Arc::new(ThreadRandom), Arc::<SystemResolver>::default())
    }

    /// A manager whose choices come from `random` and addresses from `resolver`.
    pub fn with(workers: usize, random: Arc<dyn Random>, resolver: Arc<dyn Resolve>) -> Self {
        Self { clusters: ArcSwap::default(), random, resolver, workers }
    }

    /// Takes over the clusters of `snapshot`. A cluster with the same content keeps its state; one that
    /// changed starts anew, but its hosts keep their counters and names their addresses. To be called before
    /// the snapshot is published, by one caller at a time, on the runtime that is to resolve names.
    pub fn apply(&self, snapshot: &Snapshot) {
        let old = self.clusters.load_full();
        let mut new = Clusters::default();
        for (name, config) in &snapshot.clusters {
            let previous = old.get(name);
            let state = match previous {
                Some(same) if same.config.content_hash == config.content_hash => same.clone(),
                _ => self.create(config, previous),
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

    fn create(&self, config: &Arc<Cluster>, previous: Option<&Arc<ClusterState>>) -> Arc<ClusterState> {
        let previous = previous.map(|p| &**p);
        let state = ClusterState::new(config.clone(), previous, self.random.clone(), self.workers);
        let state = Arc::new(state);
        state.start(&self.resolver);
        state
    }

    /// Returns when every name of every cluster has been looked up once, with or without success: until
    /// then a new DNS cluster may have no hosts.
    pub async fn warmed(&self) {
        for cluster in self.all() {
            cluster.warmed().await;
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

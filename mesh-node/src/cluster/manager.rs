//! All clusters of the process, kept in step with the published configuration: make-before-break.

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
    clusters: Arc<ArcSwap<Clusters>>,
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
        Self { clusters: Arc::default(), random, resolver, workers }
    }

    /// Takes over the clusters of `snapshot`. A cluster with the same content keeps its state; one that
    /// changed starts anew, but its hosts keep their counters and names their addresses. To be called before
    /// the snapshot is published, by one caller at a time, on the runtime that is to resolve names.
    ///
    /// Clusters that are gone are found until the returned value is dropped: requests that were routed by the
    /// snapshot before may still ask for them.
    pub fn apply(&self, snapshot: &Snapshot) -> Removed {
        let old = self.clusters.load_full();
        let mut new = Clusters::default();
        let mut replaced = Vec::new();
        for (name, config) in &snapshot.clusters {
            let previous = old.get(name);
            let state = match previous {
                Some(same) if same.config.content_hash == config.content_hash => same.clone(),
                _ => {
                    replaced.extend(previous.cloned());
                    self.create(config, previous)
                }
            };
            state.set_configured(true);
            new.insert(name.clone(), state);
        }
        let gone: Vec<_> = old.values().filter(|state| !new.contains_key(state.name())).cloned().collect();
        for state in &gone {
            state.set_configured(false);
            new.insert(state.name().clone(), state.clone());
        }
        self.clusters.store(Arc::new(new));
        replaced.iter().for_each(|state| state.retire());
        Removed { clusters: self.clusters.clone(), gone }
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

    /// All configured clusters, sorted by name.
    pub fn all(&self) -> Vec<Arc<ClusterState>> {
        let mut all: Vec<_> =
            self.clusters.load().values().filter(|state| state.configured()).cloned().collect();
        all.sort_by(|a, b| a.name().cmp(b.name()));
        all
    }
}

/// Clusters that the configuration no longer has. Dropping it ends them, unless they came back meanwhile.
#[derive(Debug)]
pub struct Removed {
    clusters: Arc<ArcSwap<Clusters>>,
    gone: Vec<Arc<ClusterState>>,
}

impl Drop for Removed {
    fn drop(&mut self) {
        let gone = |state: &Arc<ClusterState>| {
            !state.configured() && self.gone.iter().any(|gone| Arc::ptr_eq(gone, state))
        };
        if self.gone.is_empty() {
            return;
        }
        self.clusters.rcu(|clusters| {
            let kept = clusters.iter().filter(|(_, state)| !gone(state));
            kept.map(|(name, state)| (name.clone(), state.clone())).collect::<Clusters>()
        });
        self.gone.iter().filter(|state| !state.configured()).for_each(|state| state.retire());
    }
}

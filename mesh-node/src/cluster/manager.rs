//! All clusters of one workload, or of the process, kept in step with the published configuration:
//! make-before-break.
//!
//! A cluster takes run-time state when it is first asked for: a pod that is told of two thousand services and
//! calls three keeps the state of three. Clusters that work on their own (names to resolve, sweeps) have theirs
//! from the start.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;

use super::checks::{NoProbe, Probe};
use super::names::Names;
use super::{ClusterState, LocalCluster, Random, Resolve, SystemResolver, ThreadRandom};
use crate::model::cluster::{Assignment, Cluster, Discovery, DnsCache};
use crate::model::tls::Secrets;
use crate::model::{Snapshot, Str};

type Clusters = HashMap<Str, Arc<Entry>, ahash::RandomState>;

/// Clusters by name, shared by all workers.
#[derive(Debug)]
pub struct ClusterManager {
    clusters: Arc<ArcSwap<Clusters>>,
    /// What EDS gave, by the name of the assignment. Its lock orders changes of endpoints and of clusters.
    assignments: Mutex<HashMap<Str, Arc<Assignment>, ahash::RandomState>>,
    /// Of the workload whose clusters these are.
    secrets: Arc<Secrets>,
    random: Arc<dyn Random>,
    resolver: Arc<dyn Resolve>,
    names: Names,
    prober: Arc<dyn Probe>,
    /// The cluster that this proxy belongs to.
    local: Option<Arc<LocalCluster>>,
    workers: usize,
    /// Where the clusters' own work runs, whoever asks for them first.
    runtime: Option<Handle>,
}

/// A cluster as configured, and its state once something has asked for it.
#[derive(Debug)]
struct Entry {
    config: Arc<Cluster>,
    /// Its endpoints as of now, for the state that is still to be made.
    assignment: ArcSwap<Assignment>,
    state: OnceLock<Arc<ClusterState>>,
    /// False once the configuration no longer has the cluster.
    configured: AtomicBool,
}

impl ClusterManager {
    /// A manager without clusters, for that many worker threads.
    pub fn new(workers: usize) -> Self {
        Self::with(workers, Arc::new(ThreadRandom), Arc::<SystemResolver>::default())
    }

    /// A manager whose choices come from `random` and addresses from `resolver`. Names are resolved on the
    /// current runtime.
    pub fn with(workers: usize, random: Arc<dyn Random>, resolver: Arc<dyn Resolve>) -> Self {
        let (clusters, assignments, secrets) = (Arc::default(), Mutex::default(), Arc::default());
        let (prober, runtime) = (Arc::new(NoProbe), Handle::try_current().ok());
        let names = Names::default();
        let local = None;
        Self { clusters, assignments, secrets, random, resolver, names, prober, local, workers, runtime }
    }

    /// The same manager with hosts checked by `prober`; without one every check fails.
    pub fn checking_with(self, prober: Arc<dyn Probe>) -> Self {
        Self { prober, ..self }
    }

    /// The same manager for a proxy that belongs to a cluster: zones count.
    pub fn within(self, local: Option<LocalCluster>) -> Self {
        Self { local: local.map(Arc::new), ..self }
    }

    /// Takes over the clusters of `snapshot`. A cluster with the same content keeps its state; one that
    /// changed starts anew, but its hosts keep their counters and names their addresses. To be called before
    /// the snapshot is published, by one caller at a time.
    ///
    /// Clusters that are gone are found until the returned value is dropped: requests that were routed by the
    /// snapshot before may still ask for them.
    pub fn apply(&self, snapshot: &Snapshot) -> Removed {
        let assignments = self.assignments();
        let old = self.clusters.load_full();
        let mut new = Clusters::default();
        let mut replaced = Vec::new();
        for (name, config) in &snapshot.clusters {
            let previous = old.get(name);
            let entry = match previous {
                Some(same) if same.config.content_hash == config.content_hash => same.clone(),
                _ => {
                    let assignment = match &config.discovery {
                        Discovery::Eds { service_name } => {
                            assignments.get(service_name).cloned().unwrap_or_default()
                        }
                        _ => config.load_assignment.clone(),
                    };
                    let state = OnceLock::new();
                    let assignment = ArcSwap::new(assignment);
                    let entry = Entry { config: config.clone(), assignment, state, configured: true.into() };
                    let before = previous.and_then(|previous| previous.state.get());
                    if before.is_some() || works_on_its_own(config) || self.is_local(config) {
                        self.state(&entry, before);
                    }
                    replaced.extend(before.cloned());
                    Arc::new(entry)
                }
            };
            entry.configured.store(true, Ordering::Relaxed);
            new.insert(name.clone(), entry);
        }
        let gone: Vec<_> = old.values().filter(|e| !new.contains_key(&e.config.name)).cloned().collect();
        for entry in &gone {
            entry.configured.store(false, Ordering::Relaxed);
            new.insert(entry.config.name.clone(), entry.clone());
        }
        self.clusters.store(Arc::new(new));
        replaced.iter().for_each(|state| state.retire());
        Removed { clusters: self.clusters.clone(), gone }
    }

    /// Takes over endpoints that EDS gave under this name. Costs what the clusters that use them cost.
    pub fn set_endpoints(&self, name: &Str, assignment: &Arc<Assignment>) {
        let mut assignments = self.assignments();
        assignments.insert(name.clone(), assignment.clone());
        let clusters = self.clusters.load();
        let uses = |entry: &Entry| matches!(&entry.config.discovery, Discovery::Eds { service_name } if service_name == name);
        let take = |entry: &Entry| {
            entry.assignment.store(assignment.clone());
            if let Some(state) = entry.state.get() {
                state.set_assignment(assignment.clone());
            }
        };
        match clusters.get(name) {
            // As a rule the cluster has the name of its endpoints.
            Some(entry) if uses(entry) => take(entry),
            _ => clusters.values().filter(|entry| uses(entry)).for_each(|entry| take(entry)),
        }
    }

    /// Forgets endpoints that nothing subscribes to any more.
    pub fn forget_endpoints(&self, name: &str) {
        self.assignments().remove(name);
    }

    /// An address of a name that a request brought; `None` if it has none.
    pub async fn resolve(&self, name: &str, cache: &DnsCache) -> Option<IpAddr> {
        self.names.resolve(name, cache, &self.resolver, self.runtime.as_ref()).await
    }

    /// Secrets for TLS that come apart from clusters and listeners.
    pub fn secrets(&self) -> &Arc<Secrets> {
        &self.secrets
    }

    fn assignments(&self) -> MutexGuard<'_, HashMap<Str, Arc<Assignment>, ahash::RandomState>> {
        self.assignments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self, entry: &Entry, previous: Option<&Arc<ClusterState>>) -> Arc<ClusterState> {
        let made = entry.state.get_or_init(|| {
            let state = self.fresh(entry, previous);
            let _runtime = self.runtime.as_ref().map(Handle::enter);
            state.start(&self.resolver, &self.prober);
            state
        });
        // Endpoints that came while it was made.
        made.set_assignment(entry.assignment.load_full());
        made.clone()
    }

    fn fresh(&self, entry: &Entry, previous: Option<&Arc<ClusterState>>) -> Arc<ClusterState> {
        Arc::new(ClusterState::new(
            entry.config.clone(),
            entry.assignment.load_full(),
            previous.map(|previous| &**previous),
            self.secrets.clone(),
            self.random.clone(),
            (self.local.clone(), self.workers),
        ))
    }

    /// Others look at the hosts of the cluster that the proxy belongs to.
    fn is_local(&self, config: &Cluster) -> bool {
        self.local.as_ref().is_some_and(|local| local.name == config.name)
    }

    /// Returns when every name of every cluster has been looked up once, with or without success: until
    /// then a new DNS cluster may have no hosts.
    pub async fn warmed(&self) {
        let clusters = self.clusters.load_full();
        for state in clusters.values().filter_map(|entry| entry.state.get()) {
            state.warmed().await;
        }
    }

    /// The cluster of that name, if configured.
    pub fn get(&self, name: &str) -> Option<Arc<ClusterState>> {
        let clusters = self.clusters.load();
        let entry = clusters.get(name)?;
        match entry.state.get() {
            Some(state) => Some(state.clone()),
            None => Some(self.state(entry, None)),
        }
    }

    /// All configured clusters, sorted by name. Those that nothing has asked for are shown without keeping
    /// their state.
    pub fn all(&self) -> Vec<Arc<ClusterState>> {
        let shown =
            |entry: &Arc<Entry>| entry.state.get().cloned().unwrap_or_else(|| self.fresh(entry, None));
        let clusters = self.clusters.load();
        let mut all: Vec<_> = clusters.values().filter(|entry| entry.configured()).map(shown).collect();
        all.sort_by(|a, b| a.name().cmp(b.name()));
        all
    }
}

impl Entry {
    fn configured(&self) -> bool {
        self.configured.load(Ordering::Relaxed)
    }
}

/// Does the cluster do something before anybody asks for it?
fn works_on_its_own(config: &Cluster) -> bool {
    match config.discovery {
        Discovery::Static | Discovery::Eds { .. } => config.health_check.is_some(),
        Discovery::StrictDns(_)
        | Discovery::LogicalDns(_)
        | Discovery::ForwardProxy(_)
        | Discovery::OriginalDst { .. } => true,
    }
}

/// Clusters that the configuration no longer has. Dropping it ends them, unless they came back meanwhile.
#[derive(Debug)]
pub struct Removed {
    clusters: Arc<ArcSwap<Clusters>>,
    gone: Vec<Arc<Entry>>,
}

impl Drop for Removed {
    fn drop(&mut self) {
        if self.gone.is_empty() {
            return;
        }
        let is_gone =
            |entry: &Arc<Entry>| !entry.configured() && self.gone.iter().any(|gone| Arc::ptr_eq(gone, entry));
        self.clusters.rcu(|clusters| {
            let kept = clusters.iter().filter(|(_, entry)| !is_gone(entry));
            kept.map(|(name, entry)| (name.clone(), entry.clone())).collect::<Clusters>()
        });
        let gone = self.gone.iter().filter(|entry| !entry.configured());
        gone.filter_map(|entry| entry.state.get()).for_each(|state| state.retire());
    }
}

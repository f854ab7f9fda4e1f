//! One virtual sidecar per enrolled pod: its own xDS node, its own configuration, its own clusters.
//!
//! Pods come and go without disturbing others. A connection of a pod waits until its sidecar has been configured
//! once, as the pod itself would wait for its sidecar to start.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_xds::pb::envoy::config::core::v3::Node;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::pod_token::{Keeper, PodToken};
use super::publish::swap;
use crate::cluster::ClusterManager;
use crate::dynamic::{
    Assembled, Assembly, Compiler, Identity, Outlet, Refused, Servers, Sidecar, Statics, local_cluster,
    node_of,
};
use crate::kubernetes::{Bearer, Tokens};
use crate::model::source::Dynamic;
use crate::model::workload::Workload;
use crate::model::{Published, Snapshot, Str};
use crate::runtime::Values;
use crate::upstream::{Current, Prober};

/// For so long a connection waits for its pod's first configuration.
const PATIENCE: Duration = Duration::from_secs(30);

/// What serves the connections of one pod.
#[derive(Debug)]
pub struct Serving {
    pub published: Published,
    pub clusters: Arc<ClusterManager>,
    pub assembly: Arc<Mutex<Assembly>>,
    configured: watch::Sender<bool>,
}

/// All pods' sidecars, for workers and admin pages.
#[derive(Debug, Default)]
pub struct Servings {
    by_uid: ArcSwap<HashMap<Str, Arc<Serving>, ahash::RandomState>>,
    changed: Notify,
}

impl Servings {
    /// What serves the pod, once it has been configured. `None` if that takes too long.
    pub async fn of(&self, workload: &Workload) -> Option<Arc<Serving>> {
        let found = self.by_uid.load().get(&workload.uid).cloned();
        if let Some(serving) = found.filter(|serving| *serving.configured.borrow()) {
            return Some(serving);
        }
        tokio::time::timeout(PATIENCE, self.wait(workload)).await.ok()
    }

    async fn wait(&self, workload: &Workload) -> Arc<Serving> {
        loop {
            let changed = self.changed.notified();
            let found = self.by_uid.load().get(&workload.uid).cloned();
            if let Some(serving) = found {
                // The sender is the serving's own: it cannot be gone.
                let _ = serving.configured.subscribe().wait_for(|configured| *configured).await;
                return serving;
            }
            changed.await;
        }
    }

    /// The sidecar of a pod by its uid.
    pub fn get(&self, uid: &str) -> Option<Arc<Serving>> {
        self.by_uid.load().get(uid).cloned()
    }

    fn set(&self, all: HashMap<Str, Arc<Serving>, ahash::RandomState>) {
        self.by_uid.store(Arc::new(all));
        self.changed.notify_waiters();
    }
}

/// Starts and ends sidecars as pods come and go.
pub struct PodSidecars {
    pub servings: Arc<Servings>,
    compiler: Arc<Compiler>,
    servers: Arc<Servers>,
    /// What every pod has; its tasks are told when that changes.
    statics: watch::Sender<Statics>,
    dynamic: Dynamic,
    /// The bootstrap's node, of which each pod's is made.
    node: Node,
    /// Where the pods' streams have tokens from, if they show any.
    tokens: Option<Tokens>,
    workers: usize,
    running: BTreeMap<Str, Running>,
}

/// The sidecar of one pod.
struct Running {
    task: AbortHandle,
    /// An edit of the pod makes another workload of the same uid.
    workload: Current,
}

impl PodSidecars {
    /// `statics`: of the bootstrap, its clusters serve every pod.
    pub fn new(
        compiler: Arc<Compiler>,
        servers: Arc<Servers>,
        statics: Statics,
        (identity, tokens): (Identity, Option<Tokens>),
        workers: usize,
    ) -> Self {
        let statics = watch::Sender::new(Statics { listeners: Vec::new(), ..statics });
        let Identity { node, dynamic, .. } = identity;
        let (servings, running) = (Arc::default(), BTreeMap::new());
        Self { servings, compiler, servers, statics, dynamic, node, tokens, workers, running }
    }

    /// Other static resources are in force, for all pods.
    pub fn set_statics(&self, statics: &Statics) {
        self.statics.send_replace(Statics { listeners: Vec::new(), ..statics.clone() });
    }

    /// These are the pods now.
    pub fn set(&mut self, pods: &[Arc<Workload>]) {
        let mut all = (**self.servings.by_uid.load()).clone();
        self.running.retain(|uid, sidecar| {
            let stays = pods.iter().any(|pod| pod.uid == *uid);
            if !stays {
                sidecar.task.abort();
                all.remove(uid);
            }
            stays
        });
        for pod in pods {
            if let Some(sidecar) = self.running.get(&pod.uid) {
                *sidecar.workload.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(pod);
                continue;
            }
            let (serving, sidecar) = self.start(pod);
            all.insert(pod.uid.clone(), serving);
            self.running.insert(pod.uid.clone(), sidecar);
        }
        self.servings.set(all);
    }

    fn start(&self, pod: &Arc<Workload>) -> (Arc<Serving>, Running) {
        let keeper = self.tokens.clone().map(|tokens| Keeper {
            tokens,
            pod: Bearer::from(&**pod),
            shown: Arc::<PodToken>::default(),
        });
        let credentials = keeper.as_ref().map(|keeper| keeper.shown.clone() as _);
        let identity =
            Identity { node: node_of(pod, &self.node), dynamic: self.dynamic.clone(), credentials };
        let (compiler, dynamic) = (self.compiler.clone(), self.dynamic.clone());
        let mut statics = self.statics.subscribe();
        let first = statics.borrow_and_update().clone();
        let assembly = Assembly::new(compiler, dynamic, first.clone(), Instant::now());
        let published: Published = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        // Hosts are asked from the pod, as its requests go out from there.
        let workload = Current::new(Mutex::new(Arc::downgrade(pod)));
        let prober = Prober { workload: Some(workload.clone()) };
        let clusters = ClusterManager::new(self.workers)
            .checking_with(Arc::new(prober))
            .within(local_cluster(&self.dynamic, &identity.node));
        let clusters = Arc::new(clusters);
        let outlet = PodOutlet { published: published.clone(), clusters: clusters.clone() };
        let sidecar = Sidecar::new(assembly, &identity, self.servers.clone(), outlet);
        let serving = Arc::new(Serving {
            published,
            clusters,
            assembly: sidecar.assembly().clone(),
            configured: watch::Sender::new(false),
        });
        tracing::info!(node = %identity.node.id, "sidecar starts");
        let running = run(sidecar, serving.clone(), statics, first);
        let task = tokio::spawn(async move {
            let Some(keeper) = keeper else { return running.await };
            let renew_after = keeper.renew().await;
            tokio::join!(running, keeper.keep(renew_after));
        });
        let task = task.abort_handle();
        (serving, Running { task, workload })
    }
}

async fn run(
    mut sidecar: Sidecar<PodOutlet>,
    serving: Arc<Serving>,
    mut statics: watch::Receiver<Statics>,
    mut in_force: Statics,
) {
    sidecar.settle().await;
    loop {
        if sidecar.has_started() {
            serving.configured.send_if_modified(|configured| !std::mem::replace(configured, true));
        }
        tokio::select! {
            happened = sidecar.next() => sidecar.handle(happened).await,
            Ok(()) = statics.changed() => {
                let next = statics.borrow_and_update().clone();
                let previous = std::mem::replace(&mut in_force, next.clone());
                // Nothing of a pod is bound on the host: nothing of it can be refused.
                if let Err(refused) = sidecar.set_statics(next, previous).await {
                    tracing::error!("{refused}");
                }
            }
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        for listener in &self.published.load().listeners {
            listener.drain.start();
        }
    }
}

/// Where a pod's configuration goes: connections enter through the sockets in the pod.
struct PodOutlet {
    published: Published,
    clusters: Arc<ClusterManager>,
}

impl Outlet for PodOutlet {
    async fn publish(&mut self, assembled: Assembled) -> Result<(), Refused> {
        swap(&self.published, &self.clusters, assembled).await;
        Ok(())
    }

    /// The runtime is the process's.
    fn runtime(&self, _name: &str, _values: Option<Values>) {}

    fn clusters(&self) -> &Arc<ClusterManager> {
        &self.clusters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::local_workload;
    use crate::model::source::Source;
    use crate::telemetry::log_file::LogFiles;
    use crate::telemetry::stats::Store;

    /// Sidecars whose clusters come from a file.
    fn sidecars(folder: &std::path::Path) -> PodSidecars {
        let file = folder.join("cds.yaml");
        let cluster = "{'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a}";
        std::fs::write(&file, format!("{{resources: [{cluster}]}}")).unwrap();
        let source = Source::File { path: file, watched: None };
        let dynamic = Dynamic { clusters: Some((source, Some(PATIENCE))), ..Dynamic::default() };
        let stats = Arc::new(Store::default());
        let log_files = LogFiles::start(stats.filesystem().clone()).unwrap();
        let servers = Arc::new(Servers::new(Arc::new(ClusterManager::new(1))));
        let identity = Identity { node: Node::default(), dynamic, credentials: None };
        PodSidecars::new(
            Arc::new(Compiler::new(stats, log_files)),
            servers,
            Statics::default(),
            (identity, None),
            1,
        )
    }

    #[tokio::test]
    async fn pods_come_and_go_without_disturbing_others_and_share_what_is_equal() {
        let folder = tempfile::tempdir().unwrap();
        let mut sidecars = sidecars(folder.path());
        let (a, b) = (local_workload("a"), local_workload("b"));
        let servings = sidecars.servings.clone();
        // A connection that is there before its sidecar waits for it.
        let early = tokio::spawn({
            let (servings, a) = (servings.clone(), a.clone());
            async move { servings.of(&a).await }
        });
        tokio::task::yield_now().await;
        sidecars.set(std::slice::from_ref(&a));
        let of_a = early.await.unwrap().expect("configured");
        sidecars.set(&[a.clone(), b.clone()]);
        let of_b = servings.of(&b).await.expect("configured");
        let cluster = |serving: &Serving| serving.published.load().clusters["a"].clone();
        assert!(Arc::ptr_eq(&cluster(&of_a), &cluster(&of_b)), "compiled once");
        assert!(!Arc::ptr_eq(&of_a.clusters.get("a").unwrap(), &of_b.clusters.get("a").unwrap()));
        sidecars.set(std::slice::from_ref(&b));
        assert!(servings.get("a").is_none());
        assert!(Arc::ptr_eq(&servings.get("b").unwrap(), &of_b), "undisturbed");
    }
}

//! What the admin pages see of the process, and what they may ask of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh_xds::Stored;
use tokio::sync::mpsc;

use super::logging::Level;
use super::sidecars::{Serving, Servings};
use crate::admin::{
    AccelerationView, AdminState, KernelCount, KnownView, Logging, PastTcpView, Stage, WorkloadView,
};
use crate::capture::{Capture, Counter, Known, Report, Tested, Traffic};
use crate::cluster::ClusterManager;
use crate::config::Settings;
use crate::dynamic::Assembly;
use crate::model::{Published, Snapshot};
use crate::readiness::Readiness;
use crate::runtime::Runtime;
use crate::telemetry::log_file::LogFiles;
use crate::telemetry::stats::Store;

/// What an admin page asks of the main loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    ShutDown,
    DrainListeners { inbound_only: bool },
}

/// Shared with the admin server's connections.
pub struct State {
    pub stats: Arc<Store>,
    pub log_files: Arc<LogFiles>,
    pub clusters: Arc<ClusterManager>,
    pub published: Published,
    pub runtime: Arc<Runtime>,
    pub readiness: Readiness,
    /// Once pods are steered.
    pub capture: Arc<OnceLock<Arc<Capture>>>,
    pub assembly: Arc<Mutex<Assembly>>,
    /// With a sidecar for each pod.
    pub servings: Option<Arc<Servings>>,
    pub settings: serde_json::Value,
    pub logging: Logging,
    pub requests: mpsc::UnboundedSender<Request>,
    begun: Instant,
    draining: AtomicBool,
    bootstrap: Mutex<(Option<Stored>, SystemTime)>,
}

/// The parts of [`State`] that the composition root has at hand.
pub struct Parts<'a> {
    pub stats: Arc<Store>,
    pub log_files: Arc<LogFiles>,
    pub clusters: Arc<ClusterManager>,
    pub published: Published,
    pub runtime: Arc<Runtime>,
    pub readiness: Readiness,
    pub assembly: Arc<Mutex<Assembly>>,
    pub servings: Option<Arc<Servings>>,
    pub settings: &'a Settings,
    pub level: Level,
    pub requests: mpsc::UnboundedSender<Request>,
}

impl State {
    pub fn new(parts: Parts<'_>, bootstrap: Option<Stored>) -> Self {
        let Parts { stats, log_files, clusters, published, runtime, readiness, assembly, .. } = parts;
        let Parts { servings, settings, level, requests, .. } = parts;
        let capture = Arc::new(OnceLock::<Arc<Capture>>::new());
        let of_kernel = capture.clone();
        let logging = Logging::new(&settings.node.log_level, move |directives| {
            if let Err(error) = level.set(directives) {
                tracing::warn!("log level: {error}");
            }
            // The kernel programs format a line only when somebody reads it.
            if let Some(capture) = of_kernel.get() {
                capture
                    .log_connections(tracing::enabled!(target: "mesh_node::capture", tracing::Level::DEBUG));
            }
        });
        Self {
            stats,
            log_files,
            clusters,
            published,
            runtime,
            readiness,
            capture,
            assembly,
            servings,
            settings: settings.to_json(),
            logging,
            requests,
            begun: Instant::now(),
            draining: AtomicBool::new(false),
            bootstrap: Mutex::new((bootstrap, SystemTime::now())),
        }
    }

    /// The bootstrap that is in force from now on.
    pub fn took(&self, bootstrap: Option<Stored>) {
        *self.bootstrap.lock().unwrap_or_else(PoisonError::into_inner) = (bootstrap, SystemTime::now());
    }

    /// Marks the process as draining, or not.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// The sidecar of a pod by `NAMESPACE/NAME`.
    fn serving(&self, name: &str) -> Option<Arc<Serving>> {
        let pods = self.capture.get()?.workloads();
        let pod = pods.iter().find(|pod| format!("{}/{}", pod.namespace, pod.name) == name)?;
        self.servings.as_ref()?.get(&pod.uid)
    }

    fn ask(&self, request: Request) {
        if self.requests.send(request).is_err() {
            tracing::debug!(?request, "the process ends already");
        }
    }
}

impl AdminState for State {
    fn store(&self) -> &Store {
        &self.stats
    }
    fn clusters(&self, workload: Option<&str>) -> Option<Arc<ClusterManager>> {
        match workload {
            Some(name) => self.serving(name).map(|serving| serving.clusters.clone()),
            None => Some(self.clusters.clone()),
        }
    }
    fn runtime(&self) -> &Runtime {
        &self.runtime
    }
    fn snapshot(&self) -> Arc<Snapshot> {
        self.published.load_full()
    }
    fn stage(&self) -> Stage {
        if self.draining.load(Ordering::Relaxed) {
            Stage::Draining
        } else if self.readiness.pending().is_empty() {
            Stage::Live
        } else {
            Stage::Initializing
        }
    }
    fn bootstrap(&self) -> (serde_json::Value, SystemTime) {
        let held = self.bootstrap.lock().unwrap_or_else(PoisonError::into_inner);
        (held.0.as_ref().map(Stored::to_json).unwrap_or_default(), held.1)
    }
    fn dynamic(
        &self,
        workload: Option<&str>,
    ) -> Option<BTreeMap<&'static str, serde_json::Map<String, serde_json::Value>>> {
        let dump =
            |assembly: &Mutex<Assembly>| assembly.lock().unwrap_or_else(PoisonError::into_inner).dump();
        match workload {
            Some(name) => self.serving(name).map(|serving| dump(&serving.assembly)),
            None => Some(dump(&self.assembly)),
        }
    }
    fn name_table(&self, workload: Option<&str>) -> Option<serde_json::Value> {
        let table =
            |assembly: &Mutex<Assembly>| assembly.lock().unwrap_or_else(PoisonError::into_inner).name_table();
        match workload {
            Some(name) => self.serving(name).map(|serving| table(&serving.assembly)),
            None => Some(table(&self.assembly)),
        }
    }
    fn settings(&self) -> serde_json::Value {
        self.settings.clone()
    }
    fn uptime(&self) -> Duration {
        self.begun.elapsed()
    }
    fn workloads(&self) -> Vec<WorkloadView> {
        let Some(capture) = self.capture.get() else { return Vec::new() };
        let counters = capture.counters();
        let mut traffic = capture.traffic();
        let mut view = |workload: &Arc<crate::model::workload::Workload>| {
            let traffic = traffic.remove(&*workload.uid).unwrap_or_default();
            let key = format!("{}/{}", workload.namespace, workload.name);
            let limits = &workload.limits;
            let refusals = limits.buffers.refusals();
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            WorkloadView {
                uid: workload.uid.to_string(),
                namespace: workload.namespace.to_string(),
                name: workload.name.to_string(),
                service_account: workload.service_account.to_string(),
                ips: workload.ips.clone(),
                connections: limits.connections.load(Ordering::Relaxed),
                max_connections: limits.max_connections,
                buffered_bytes: limits.buffers.buffered() as u64,
                max_buffered_bytes: limits.buffers.max() as u64,
                refused: [
                    ("cx_refused_by_max_connections", count(&limits.refused)),
                    ("cx_refused_by_max_buffered_bytes", count(&refusals.connections)),
                    ("rq_refused_by_max_buffered_bytes", count(&refusals.requests)),
                    ("retries_given_up", count(&refusals.retries)),
                    ("buffers_pressed", count(&refusals.pressed)),
                ],
                counters: counts(&counters, &key),
                past_tcp: past_tcp(&traffic),
            }
        };
        capture.workloads().iter().map(&mut view).collect()
    }
    fn acceleration(&self) -> AccelerationView {
        let Some(capture) = self.capture.get() else { return AccelerationView::default() };
        acceleration(capture.acceleration())
    }
    fn accelerate(&self, on: bool) {
        if let Some(capture) = self.capture.get() {
            capture.accelerate(on);
        }
    }
    fn hand_off(&self, on: bool) {
        if let Some(capture) = self.capture.get() {
            capture.hand_off(on);
        }
    }
    fn logging(&self) -> &Logging {
        &self.logging
    }
    fn reopen_logs(&self) {
        self.log_files.reopen();
    }
    fn drain_listeners(&self, inbound_only: bool) {
        self.ask(Request::DrainListeners { inbound_only });
    }
    fn fail_health_checks(&self, fail: bool) {
        self.set_draining(fail);
    }
    fn shut_down(&self) {
        self.ask(Request::ShutDown);
    }
}

/// What the kernel programs counted for the pod named `namespace/name`.
pub fn counts(counters: &[Counter], pod: &str) -> Vec<KernelCount> {
    let of_pod = counters.iter().filter(|counter| counter.pod == pod);
    of_pod.map(|c| KernelCount { hook: c.hook, reason: c.reason, value: c.value }).collect()
}

/// How acceleration stands, as the pages show it.
pub fn acceleration(report: Report) -> AccelerationView {
    let outcome = |test: Tested| match (test.problem, test.mended) {
        (Some(problem), _) => (test.name, problem),
        (None, Some(by)) => (test.name, format!("as TCP, {by}")),
        (None, None) => (test.name, "as TCP".to_owned()),
    };
    let tests = report.tests.into_iter().map(outcome).collect();
    AccelerationView { on: report.on, hand_off: report.hand_off, refused: report.refused, tests }
}

/// What went past TCP, as the pages show it.
pub fn past_tcp(traffic: &Traffic) -> PastTcpView {
    PastTcpView {
        allowed: traffic.accelerates,
        hand_off_allowed: traffic.hands_off,
        messages: traffic.messages,
        bytes: traffic.bytes,
        known: traffic.known.iter().map(known).collect(),
    }
}

fn known(known: &Known) -> KnownView {
    KnownView {
        port: known.port,
        program: known.program.clone(),
        seen: known.seen,
        enough: known.enough,
        never: known.never,
    }
}

//! The composition root: puts the stages together, and runs the life of the process from the first read of
//! the configuration to the end of the drain. The only module that sees every other.

mod admin_state;
mod files;
mod logging;
mod pod_token;
mod publish;
mod sidecars;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin;
use crate::capture::pods::PodSpec;
use crate::capture::{self, Capture, CaptureError};
use crate::cluster::ClusterManager;
use crate::config::bootstrap::{BootstrapError, Source};
use crate::config::{Cli, Loaded, Mode, PodsFrom, Settings, SettingsError};
use crate::dynamic::{
    Assembly, Compiler, Identity, Refused, Servers, Sidecar, Statics, Watch, local_cluster, send_remote_logs,
};
use crate::filter::WorkerContext;
use crate::kubernetes::{self, Heard};
use crate::model::{Published, Snapshot};
use crate::readiness::{Guard, Readiness};
use crate::runtime::{Counts, Runtime};
use crate::telemetry::log_file::LogFiles;
use crate::telemetry::peer::LocalPeer;
use crate::telemetry::stats::{Kind, Store};
use crate::upstream::Prober;
use admin_state::{Parts, Request, State};
use files::WatchedFiles;
use publish::Publisher;
use sidecars::{PodSidecars, Servings};
use worker::{Command, Worker};

/// Why the process cannot start. One line for each mistake.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Listener(#[from] Refused),
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::Error),
    #[error("admin.address: cannot listen on {address}: {source}; stop what listens there or change it")]
    Admin { address: std::net::SocketAddr, source: std::io::Error },
    #[error("starting threads: {0}; raise the process limit (ulimit -u)")]
    Threads(#[source] std::io::Error),
    #[error("{}: cannot be watched: {source}; raise fs.inotify.max_user_instances", path.display())]
    Watch { path: std::path::PathBuf, source: notify::Error },
}

/// Does what the command line asks.
///
/// # Errors
/// Why it cannot; the host is then left as it was found.
pub fn run(cli: &Cli) -> Result<(), StartError> {
    let settings = Settings::load(cli.settings.as_deref(), std::env::vars(), &cli.flags)?;
    let log_level = logging::start(&settings.node);
    match cli.mode {
        Mode::Cleanup => cleanup(&settings, cli.stay),
        Mode::Status => status(&settings),
        Mode::Validate => validate(cli, &settings),
        Mode::Run => serve(cli, &settings, log_level),
    }
}

fn cleanup(settings: &Settings, stay: bool) -> Result<(), StartError> {
    let mut ends = nix::sys::signal::SigSet::empty();
    ends.add(nix::sys::signal::SIGTERM);
    ends.add(nix::sys::signal::SIGINT);
    if stay {
        // From the beginning: an end that is asked for meanwhile waits until all is done.
        ends.thread_block().map_err(|errno| StartError::Threads(errno.into()))?;
    }
    let removed = capture::cleanup(&settings.capture)?;
    let instance = &settings.capture.instance;
    match &removed.pins {
        Some(pins) => println!("instance {instance}: programs and maps removed ({})", pins.display()),
        None => println!("instance {instance}: no programs were pinned"),
    }
    for pod in &removed.pods {
        println!("instance {instance}: rules, routes and settings put back in pod {pod}");
    }
    if stay {
        println!("instance {instance}: clean, waiting to be ended");
        ends.wait().map_err(|errno| StartError::Threads(errno.into()))?;
    }
    Ok(())
}

fn status(settings: &Settings) -> Result<(), StartError> {
    let status = capture::status(&settings.capture)?;
    match status.silent {
        Some(silent) if silent < status.silent_limit => println!("proxy::running"),
        Some(silent) => println!("proxy::away: its last sign of life was {} s ago", silent.as_secs()),
        None => println!("proxy::away: it was never ready"),
    }
    let view = admin_state::acceleration(status.acceleration);
    print!("{}", admin::acceleration_text(&view));
    for pod in &status.pods {
        let state =
            if pod.enrolled { "enrolled" } else { "released::what it has open is served until it ends" };
        println!("{}::{state}", pod.name);
        let counters = admin_state::counts(&pod.counters, &pod.name);
        let past = admin_state::past_tcp(&pod.traffic);
        print!("{}", admin::acceleration_of_pod(&pod.name, &counters, &past, view.on));
    }
    Ok(())
}

/// Checks the bootstrap, and the pods file where the settings name one that is here.
fn validate(cli: &Cli, settings: &Settings) -> Result<(), StartError> {
    let source = Source::of(cli)?;
    let stats = Store::default();
    let log_files = LogFiles::start(stats.filesystem().clone()).map_err(StartError::Threads)?;
    let loaded = source.load(&stats, &log_files)?;
    for field in &loaded.ignored {
        println!("{field}: has no effect in mesh-node");
    }
    let mut parts = vec![count(loaded.listeners.len(), "listener"), count(loaded.clusters.len(), "cluster")];
    match settings.capture.pods_file.as_deref() {
        Some(file) if file.exists() => parts.push(count(capture::pods::read(file)?.len(), "pod")),
        Some(file) => println!("{}: not here, so not checked", file.display()),
        None => {}
    }
    println!("configuration OK: {}", parts.join(", "));
    Ok(())
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn serve(cli: &Cli, settings: &Settings, level: logging::Level) -> Result<(), StartError> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), settings = %settings.effective().join(" "), "mesh-node starts");
    for flag in &cli.ignored {
        tracing::warn!(%flag, "this flag of Envoy has no effect in mesh-node");
    }
    let source = Source::of(cli)?;
    let stats = Arc::new(Store::default());
    let log_files = LogFiles::start(stats.filesystem().clone()).map_err(StartError::Threads)?;
    // Watched from before it is read, so that no edit is missed.
    let watch = source
        .file()
        .map(|path| Watch::new(path).map_err(|source| StartError::Watch { path: path.to_owned(), source }))
        .transpose()?;
    let since = SystemTime::now();
    let mut loaded = source.load(&stats, &log_files)?;
    let mut files = WatchedFiles::default();
    if files.set(&loaded.files, since) {
        loaded = source.load(&stats, &log_files)?;
    }
    introduce(cli, &mut loaded);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Threads)?;
    runtime.block_on(async {
        let node = Node::start(settings, (source, watch, files), (stats, log_files, level), loaded).await?;
        node.live().await
    })
}

/// Who this process is to xDS servers: the flags win over the bootstrap.
fn introduce(cli: &Cli, loaded: &mut Loaded) {
    if let Some(id) = &cli.service_node {
        loaded.node.id.clone_from(id);
    }
    if let Some(cluster) = &cli.service_cluster {
        loaded.node.cluster.clone_from(cluster);
    }
    loaded.node.user_agent_name = "mesh-node".to_owned();
    loaded.node.user_agent_version_type =
        Some(mesh_xds::pb::envoy::config::core::v3::node::UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        ));
}

/// The running process.
struct Node {
    sidecar: Sidecar<Publisher>,
    /// With a sidecar for each pod.
    pods: Option<PodSidecars>,
    /// Where pods come from the API.
    kubernetes: Option<kubernetes::Source>,
    /// The static resources in force.
    statics: Statics,
    settings: Settings,
    /// Held until everything that the start waits for has come.
    starting: Option<Guard>,
    state: Arc<State>,
    requests: mpsc::UnboundedReceiver<Request>,
    source: Source,
    watch: Option<Watch>,
    files: WatchedFiles,
    drain_time: Duration,
    /// `--service-cluster`, or the node's.
    cluster: String,
}

impl Node {
    async fn start(
        settings: &Settings,
        (source, watch, files): (Source, Option<Watch>, WatchedFiles),
        (stats, log_files, level): (Arc<Store>, Arc<LogFiles>, logging::Level),
        loaded: Loaded,
    ) -> Result<Self, StartError> {
        let readiness = Readiness::default();
        let starting = readiness.task("configuration");
        let count = worker_count(settings.node.workers);
        let clusters = ClusterManager::new(count)
            .checking_with(Arc::new(Prober::default()))
            .within(local_cluster(&loaded.dynamic, &loaded.node));
        let clusters = Arc::new(clusters);
        let published: Published = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        // What can fail without a trace on the host comes first.
        let admin = match loaded.admin {
            Some(address) => Some(listen_admin(address).await?),
            None => None,
        };
        let workers = start_workers(count, &published, &clusters, &own_peer(&loaded.node))?;
        let runtime = Arc::new(Runtime::default());
        show_runtime(&stats, &runtime);
        stats.set_shape(loaded.stats);
        runtime.configure(&loaded.runtime, &loaded.node.cluster);
        let publisher =
            Publisher::new(published.clone(), clusters.clone(), workers, settings.steers(), runtime.clone());
        let kubernetes = match settings.node.pods_from {
            PodsFrom::Kubernetes => Some(kubernetes::Source::start(&kubernetes_options(settings)).await?),
            PodsFrom::File => None,
        };
        let cluster = loaded.node.cluster.clone();
        let mut identity = Identity { node: loaded.node, dynamic: loaded.dynamic, credentials: None };
        let statics = Statics { clusters: loaded.clusters, listeners: loaded.listeners };
        let compiler = Arc::new(Compiler::new(stats.clone(), log_files.clone()));
        let servers = Arc::new(Servers::new(clusters.clone()));
        tokio::spawn(send_remote_logs(Arc::downgrade(&log_files), servers.clone(), identity.node.clone()));
        let pods = settings.node.virtual_sidecars.then(|| {
            let mut whole = identity.clone();
            whole.dynamic.runtime.clear();
            // Clusters and listeners are the pods' own; this process has those of the bootstrap.
            (identity.dynamic.clusters, identity.dynamic.listeners) = (None, None);
            let audience = settings.node.pod_token_audience.as_deref();
            let tokens = kubernetes.as_ref().zip(audience).map(|(source, audience)| source.tokens(audience));
            PodSidecars::new(compiler.clone(), servers.clone(), statics.clone(), (whole, tokens), count)
        });
        let assembly = Assembly::new(compiler, identity.dynamic.clone(), statics.clone(), Instant::now());
        let mut sidecar = Sidecar::new(assembly, &identity, servers, publisher);
        sidecar.start().await?;
        let (requests, inbox) = mpsc::unbounded_channel();
        let assembly = sidecar.assembly().clone();
        let servings = pods.as_ref().map(|pods| pods.servings.clone());
        let parts = Parts {
            stats,
            log_files,
            clusters,
            published,
            runtime,
            readiness,
            assembly,
            servings,
            settings,
            level,
            requests,
        };
        let state = Arc::new(State::new(parts, loaded.message));
        for field in &loaded.ignored {
            tracing::warn!(%field, "this field has no effect in mesh-node");
        }
        if let Some(listener) = admin {
            tokio::spawn(admin::serve(listener, state.clone()));
        }
        let drain_time = Duration::from_secs(settings.node.drain_time_s);
        let (settings, starting) = (settings.clone(), Some(starting));
        let mut node = Self {
            sidecar,
            pods,
            kubernetes,
            statics,
            settings,
            starting,
            state,
            requests: inbox,
            source,
            watch,
            files,
            drain_time,
            cluster,
        };
        node.start_when_ready()?;
        Ok(node)
    }

    /// Pods are steered here only when there is something that serves them.
    fn start_when_ready(&mut self) -> Result<(), StartError> {
        if self.starting.is_none() || !self.sidecar.has_started() {
            return Ok(());
        }
        let mut pods = 0;
        if self.sidecar.outlet.capture {
            // Which pods an earlier process served must be known first: the others are released.
            let given = match self.kubernetes.as_mut().map(kubernetes::Source::current) {
                Some(None) => return Ok(()),
                given => given.flatten(),
            };
            let asked_for = given.as_ref().is_none_or(|given| given.asked_for);
            let given = given.map(|given| given.pods);
            let servings = self.pods.as_ref().map(|pods| pods.servings.clone());
            let capture = start_capture(&self.settings, &self.sidecar.outlet, servings, given)?;
            pods = capture.workloads().len();
            capture.asked_for(asked_for);
            // Set here only, and once.
            let _ = self.state.capture.set(capture);
            // For acceleration the kernel's type information was read.
            crate::heap::give_back();
        }
        self.starting = None;
        tracing::info!(workers = self.sidecar.outlet.workers.len(), pods, "mesh-node serves");
        Ok(())
    }

    /// Serves until a signal or `/quitquitquit`, then drains.
    async fn live(mut self) -> Result<(), StartError> {
        let mut terminate = signal(SignalKind::terminate()).expect("signal handlers can be installed");
        let mut interrupt = signal(SignalKind::interrupt()).expect("signal handlers can be installed");
        let mut reopen = signal(SignalKind::user_defined1()).expect("signal handlers can be installed");
        loop {
            let changed = async {
                match &self.watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                // As Envoy: access logs were rotated.
                _ = reopen.recv() => self.state.log_files.reopen(),
                request = self.requests.recv() => match request {
                    Some(Request::DrainListeners { inbound_only }) => {
                        self.sidecar.outlet.drain_listeners(inbound_only);
                    }
                    Some(Request::ShutDown) | None => break,
                },
                () = changed => self.reload().await,
                () = pods_changed(self.state.capture.get()) => self.follow_pods(),
                news = news(&mut self.kubernetes, self.state.capture.get()) => {
                    hand_on(&mut self.kubernetes, self.state.capture.get(), news);
                    self.start_when_ready()?;
                }
                () = self.files.changed() => {
                    tracing::info!("a file that the configuration names has changed");
                    self.reload().await;
                }
                happened = self.sidecar.next() => {
                    self.sidecar.handle(happened).await;
                    self.start_when_ready()?;
                }
            }
        }
        self.drain(&mut terminate).await;
        Ok(())
    }

    fn follow_pods(&mut self) {
        if let (Some(pods), Some(capture)) = (&mut self.pods, self.state.capture.get()) {
            pods.set(&capture.workloads());
        }
    }

    /// Takes a changed bootstrap, or says what is wrong with it and goes on with the last good one.
    async fn reload(&mut self) {
        let since = SystemTime::now();
        let loaded = self.source.load(&self.state.stats, &self.state.log_files);
        let loaded = match loaded {
            Ok(loaded) if self.files.set(&loaded.files, since) => {
                self.source.load(&self.state.stats, &self.state.log_files)
            }
            loaded => loaded,
        };
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(BootstrapError(mistakes)) => {
                for mistake in mistakes {
                    tracing::error!("configuration not taken, the last good one serves: {mistake}");
                }
                return;
            }
        };
        let statics = Statics { clusters: loaded.clusters, listeners: loaded.listeners };
        let previous = std::mem::replace(&mut self.statics, statics.clone());
        match self.sidecar.set_statics(statics, previous.clone()).await {
            Ok(()) => {
                self.state.runtime.configure(&loaded.runtime, &self.cluster);
                self.state.stats.set_shape(loaded.stats);
                self.state.took(loaded.message);
                if let Some(pods) = &self.pods {
                    pods.set_statics(&self.statics);
                }
            }
            Err(error) => {
                self.statics = previous;
                tracing::error!("configuration not taken, the last good one serves: {error}");
            }
        }
    }

    /// Lets connections finish, for the drain time at most; a second signal ends it at once.
    async fn drain(mut self, terminate: &mut tokio::signal::unix::Signal) {
        self.state.set_draining(true);
        self.sidecar.outlet.drain();
        let begun = Instant::now();
        tracing::info!(connections = self.sidecar.outlet.connections(), "draining");
        let outlet = &self.sidecar.outlet;
        let capture = self.state.capture.get();
        let idle = async || {
            // Counters have no events; the wait ends within a step of the last connection.
            let mut step = tokio::time::interval(Duration::from_millis(20));
            loop {
                step.tick().await;
                if outlet.connections() == 0 && !capture.is_some_and(|capture| capture.is_letting_go()) {
                    break;
                }
            }
        };
        tokio::select! {
            () = idle() => {}
            () = tokio::time::sleep(self.drain_time) => {}
            () = follow_on(&mut self.kubernetes, capture) => {}
            _ = terminate.recv() => {}
        }
        // Until here new ones were taken, so that the time without a proxy is short. The last may be answered.
        outlet.end_capture();
        tokio::select! {
            () = idle() => {}
            () = tokio::time::sleep(LAST_ANSWERS.min(self.drain_time)) => {}
        }
        let left = self.sidecar.outlet.connections();
        for worker in self.sidecar.outlet.workers {
            worker.stop();
        }
        self.state.log_files.flush();
        tracing::info!(
            connections_cut = left,
            after_ms = begun.elapsed().as_millis() as u64,
            "mesh-node ends"
        );
    }
}

/// `runtime.*` among the statistics.
fn show_runtime(stats: &Store, runtime: &Arc<Runtime>) {
    type Read = fn(Counts) -> u64;
    let figures: [(&str, Kind, Read); 5] = [
        ("runtime.num_keys", Kind::Gauge, |counts| counts.keys as u64),
        ("runtime.num_layers", Kind::Gauge, |counts| counts.layers as u64),
        ("runtime.admin_overrides_active", Kind::Gauge, |counts| counts.overridden.into()),
        ("runtime.load_success", Kind::Counter, |counts| counts.loads),
        ("runtime.load_error", Kind::Counter, |counts| counts.errors),
    ];
    for (name, kind, read) in figures {
        let runtime = runtime.clone();
        stats.register(name, kind, move || read(runtime.counts()));
    }
}

async fn listen_admin(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Admin { address, source })
}

/// Returns when pods have come or gone; never before any is followed.
async fn pods_changed(capture: Option<&Arc<Capture>>) {
    match capture {
        Some(capture) => capture.changed().await,
        None => std::future::pending().await,
    }
}

/// What connections get that came when the drain time was over.
const LAST_ANSWERS: Duration = Duration::from_millis(300);

/// What is heard of pods where they come from the Kubernetes API.
enum News {
    Heard(Heard),
    /// A pod has connected that nobody knows.
    Newcomer,
}

/// Returns when there is something new of pods.
async fn news(source: &mut Option<kubernetes::Source>, capture: Option<&Arc<Capture>>) -> News {
    let Some(source) = source else { return std::future::pending().await };
    let newcomer = async {
        match capture {
            Some(capture) => capture.newcomer().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        heard = source.next() => News::Heard(heard),
        () = newcomer => News::Newcomer,
    }
}

/// Hands on what is new of pods, once there is somebody who takes it.
fn hand_on(source: &mut Option<kubernetes::Source>, capture: Option<&Arc<Capture>>, news: News) {
    let (Some(source), Some(capture)) = (source, capture) else { return };
    match news {
        News::Heard(Heard::Listed) => {
            if let Some(listed) = source.current() {
                capture.asked_for(listed.asked_for);
                capture.set_pods(listed.pods);
            }
        }
        News::Heard(Heard::Strangers(namespaces)) => capture.strangers(namespaces),
        News::Newcomer => {
            tracing::debug!("a pod that nobody knows uses the network: looking for it");
            source.look();
        }
    }
}

/// Follows pods for as long as it is polled: those that come while this process drains are its business still.
async fn follow_on(source: &mut Option<kubernetes::Source>, capture: Option<&Arc<Capture>>) {
    loop {
        let news = news(source, capture).await;
        hand_on(source, capture, news);
    }
}

fn kubernetes_options(settings: &Settings) -> kubernetes::Options {
    kubernetes::Options {
        node_name: settings.node.node_name.clone(),
        kubeconfig: settings.node.kubeconfig.clone(),
        known_pods: settings.capture.known_pods(),
    }
}

fn start_capture(
    settings: &Settings,
    publisher: &Publisher,
    servings: Option<Arc<Servings>>,
    given: Option<Vec<PodSpec>>,
) -> Result<Arc<Capture>, StartError> {
    let (capture, sources) = capture::start(&settings.capture, publisher.workers.len(), given)?;
    for (worker, source) in publisher.workers.iter().zip(sources) {
        worker.send(Command::Capture(source, servings.clone()));
    }
    Ok(Arc::new(capture))
}

/// Who streams of no workload speak for.
fn own_peer(node: &mesh_xds::pb::envoy::config::core::v3::Node) -> Arc<LocalPeer> {
    let shown = mesh_xds::to_json(node).unwrap_or_default();
    let zone = node.locality.as_ref().map_or("", |locality| locality.zone.as_str());
    Arc::new(LocalPeer::of_node(&node.id, &shown["metadata"]).in_cluster(&node.cluster).in_zone(zone))
}

fn start_workers(
    count: usize,
    published: &Published,
    clusters: &Arc<ClusterManager>,
    node: &Arc<LocalPeer>,
) -> Result<Vec<Worker>, StartError> {
    let start = |index| {
        let (published, clusters, node) = (published.clone(), clusters.clone(), node.clone());
        Worker::start(index, move || WorkerContext::new(published, clusters, node))
            .map_err(StartError::Threads)
    };
    (0..count).map(start).collect()
}

fn worker_count(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

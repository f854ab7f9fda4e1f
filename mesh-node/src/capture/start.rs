//! Starts capture: probes the kernel, attaches the node's programs, enrols the first pods.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use mesh_common::{LAYOUT, Settings as KernelSettings, SocketTag, action, settings_flags};
use tokio::sync::Notify;
use tokio::sync::mpsc::unbounded_channel;

use super::accel::{self, Acceleration, Report, Traffic};
use super::bpf::{self, AttachType, Map};
use super::cleanup::cleanup_locked;
use super::counters::{self, Counter};
use super::error::CaptureError;
use super::kernel_log;
use super::lock::InstanceLock;
use super::manager::{Command, Manager, Roster};
use super::netns::{self, Namespace};
use super::newcomers;
use super::pods::{self, Held, PodSpec};
use super::programs::{self, BIND4, BIND6, CONNECT4, CONNECT6, HOLD, Maps, Programs};
use super::record::Records;
use super::settings::{Action, FailMode, Settings};
use super::worker::WorkerCapture;
use crate::model::workload::Workload;

/// Running capture. Dropping it stops following pods; programs and pins stay for the next process.
#[derive(Debug)]
pub struct Capture {
    maps: Arc<Maps>,
    roster: Arc<Roster>,
    acceleration: Arc<Acceleration>,
    commands: mpsc::Sender<Command>,
    newcomers: Arc<Notify>,
    manager: Option<JoinHandle<()>>,
    _watcher: Option<notify::RecommendedWatcher>,
    /// Held as long as this process acts for the instance.
    lock: Option<InstanceLock>,
}

impl Capture {
    /// The enrolled pods.
    pub fn workloads(&self) -> Vec<Arc<Workload>> {
        self.roster.pods().values().cloned().collect()
    }

    /// These are all pods now. For pods that do not come from a file.
    pub fn set_pods(&self, pods: Vec<PodSpec>) {
        // Without a receiver the process ends.
        let _ = self.commands.send(Command::Pods(pods));
    }

    /// Returns when a pod that nobody knows has made a connection since the last call. For one caller.
    pub async fn newcomer(&self) {
        self.newcomers.notified().await;
    }

    /// These network namespaces are pods' that are not to be enrolled: what they connect to is not held.
    pub fn strangers(&self, namespaces: Vec<Held>) {
        // Without a receiver the process ends.
        let _ = self.commands.send(Command::Strangers(namespaces));
    }

    /// Whether anybody asks for the mesh: if not, new pods pass while no proxy runs, whatever `fail_mode` says.
    pub fn asked_for(&self, anybody: bool) {
        if let Err(error) = self.maps.set_flag(settings_flags::UNASKED, !anybody) {
            tracing::warn!("that nobody asks for the mesh cannot be noted: {error}");
        }
    }

    /// Whether new connections may still come of pods that were released: nobody else would take them.
    pub fn is_letting_go(&self) -> bool {
        self.roster.letting_go.load(Ordering::Relaxed)
    }

    /// Returns when pods may have come or gone since the last call. For one caller.
    pub async fn changed(&self) {
        self.roster.changed.notified().await;
    }

    /// What the kernel programs counted for the enrolled pods.
    pub fn counters(&self) -> Vec<Counter> {
        counters::read(&self.maps, &self.roster).unwrap_or_else(|error| {
            tracing::warn!("counters cannot be read: {error}");
            Vec::new()
        })
    }

    /// What went past TCP, and what is known of its sockets, for every enrolled pod by its uid.
    pub fn traffic(&self) -> BTreeMap<String, Traffic> {
        let read = || -> std::io::Result<BTreeMap<String, Traffic>> {
            let mut known = accel::known(&self.maps)?;
            let roster = self.roster.pods();
            let mut all = BTreeMap::new();
            for (slot, workload) in roster.iter() {
                let traffic = accel::traffic(&self.maps, *slot, &mut known)?;
                all.insert(workload.uid.to_string(), traffic);
            }
            Ok(all)
        };
        read().unwrap_or_else(|error| {
            tracing::warn!("what went past TCP cannot be read: {error}");
            BTreeMap::new()
        })
    }

    /// How acceleration stands.
    pub fn acceleration(&self) -> Report {
        self.acceleration.report()
    }

    /// Switches acceleration of new flows; takes effect soon after.
    pub fn accelerate(&self, on: bool) {
        // Without a receiver the process ends.
        let _ = self.commands.send(Command::Accelerate(on));
    }

    /// Switches handing off: on for connections that come from now on, off for all; takes effect soon after.
    pub fn hand_off(&self, on: bool) {
        // Without a receiver the process ends.
        let _ = self.commands.send(Command::HandOff(on));
    }

    /// Switches log lines of the kernel programs on or off.
    pub fn log_connections(&self, on: bool) {
        if let Err(error) = self.maps.set_flag(settings_flags::LOG, on) {
            tracing::warn!("kernel log lines cannot be switched: {error}");
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(manager) = self.manager.take()
            && manager.join().is_err()
        {
            tracing::error!("the capture thread has panicked");
        }
    }
}

/// Starts capture for `workers` workers and returns their sources. The calling thread must be in the
/// host's network namespace. `given` are the first pods where they do not come from a file: of those, one that
/// cannot be enrolled is only said.
///
/// # Errors
/// The first problem; the host is then as it was found, except for what an earlier process of the
/// same instance had left, which still stands.
pub fn start(
    settings: &Settings,
    workers: usize,
    given: Option<Vec<PodSpec>>,
) -> Result<(Capture, Vec<WorkerCapture>), CaptureError> {
    let problems = settings.problems();
    if !problems.is_empty() {
        return Err(CaptureError::Settings(problems));
    }
    let lenient = given.is_some();
    let pods = match (given, settings.pods_file.as_deref()) {
        (Some(pods), _) => pods,
        (None, Some(file)) => pods::read(file)?,
        (None, None) => Vec::new(),
    };
    let lock = InstanceLock::take(settings)?;
    let fresh = !settings.pins().exists() && !settings.records().exists();
    match try_start(settings, workers, pods, lenient) {
        Ok((mut capture, sources)) => {
            capture.lock = Some(lock);
            Ok((capture, sources))
        }
        Err(error) => {
            if fresh {
                cleanup_locked(settings, lock)?;
            }
            Err(error)
        }
    }
}

fn try_start(
    settings: &Settings,
    workers: usize,
    pods: Vec<PodSpec>,
    lenient: bool,
) -> Result<(Capture, Vec<WorkerCapture>), CaptureError> {
    let current = PathBuf::from("/proc/thread-self/ns/net");
    let host = Namespace::current()
        .map_err(|source| CaptureError::File { action: "opening", path: current, source })
        .map(Arc::new)?;
    let (mut programs, maps) = Programs::load(settings)?;
    let tags = Arc::new(programs::open_tags(&settings.pins())?);
    kernel_log::follow(programs.node());
    let cgroups = Cgroups::find(settings)?;
    let sockops = attach_node(settings, &mut programs, cgroups.as_ref())?;
    let newcomers = Arc::<Notify>::default();
    let holds = lenient && hold(settings, &mut programs, cgroups.as_ref(), sockops, &newcomers);
    if !holds {
        for name in [HOLD, BIND4, BIND6] {
            programs.detach_cgroup(name);
        }
    }
    // An earlier process may have been away for long: the time begins anew.
    for netns in maps.newcomers.keys().unwrap_or_default() {
        let _ = maps.newcomers.remove(&netns);
    }
    write_settings(settings, &maps, &host, &tags, cgroups.as_ref(), (sockops, holds))?;

    let guard = settings.tc_guard && loaded("tc_guard", programs.load_guard());
    let (commands, inbox) = mpsc::channel();
    let maps = Arc::new(maps);
    let roster = Arc::<Roster>::default();
    let (mut senders, mut sources, mut pulses) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=workers {
        let (sender, receiver) = unbounded_channel();
        let pulse = Arc::new(AtomicU64::new(0));
        sources.push(WorkerCapture::new(
            u16::try_from(number).unwrap_or(0),
            receiver,
            pulse.clone(),
            roster.addresses.clone(),
        ));
        senders.push(sender);
        pulses.push(pulse);
    }
    let acceleration = Arc::<Acceleration>::default();
    let mut manager = Manager {
        settings: settings.clone(),
        host,
        programs,
        maps: maps.clone(),
        tags,
        records: Records::open(settings.records())?,
        workers: senders,
        pulses,
        commands: commands.clone(),
        inbox,
        guard,
        tc_steering: settings.tc_steering,
        sockops,
        acceleration: acceleration.clone(),
        roster: roster.clone(),
        enrolled: BTreeMap::new(),
        leaving: BTreeMap::new(),
        kept: BTreeMap::new(),
        last_slot: 0,
    };
    if settings.acceleration {
        manager.accelerate(true);
        manager.acceleration.switch_hand_off(settings.hand_off, &manager.maps);
    }
    for error in manager.begin(&pods) {
        if !lenient {
            return Err(error);
        }
        tracing::error!("{error}");
    }
    let thread =
        std::thread::Builder::new().name("capture".to_owned()).spawn(move || manager.run()).map_err(
            |source| CaptureError::File { action: "starting the thread of", path: "capture".into(), source },
        )?;
    let watcher = settings.pods_file.clone().map(|path| follow(path, pods, commands.clone())).transpose()?;
    let capture = Capture {
        maps,
        roster,
        acceleration,
        commands,
        newcomers,
        manager: Some(thread),
        _watcher: watcher,
        lock: None,
    };
    Ok((capture, sources))
}

fn follow(
    path: PathBuf,
    pods: Vec<PodSpec>,
    commands: mpsc::Sender<Command>,
) -> Result<notify::RecommendedWatcher, CaptureError> {
    pods::watch(path.clone(), pods, move |pods| commands.send(Command::Pods(pods)).is_ok()).map_err(|error| {
        CaptureError::PodsInvalid {
            path,
            reason: format!("cannot be watched: {error}; raise fs.inotify limits"),
        }
    })
}

/// The cgroups that hooks are attached to and told by.
struct Cgroups {
    root: File,
    /// Id of the one that all pods are below.
    kubepods: Option<u64>,
}

impl Cgroups {
    /// None when the host has no cgroup2, which is said; an explicitly set folder must be good.
    fn find(settings: &Settings) -> Result<Option<Self>, CaptureError> {
        let Some(path) = settings.cgroup_root.clone().or_else(cgroup2_mount) else {
            tracing::warn!(
                "no cgroup2 file system is mounted: connections are steered by TC only, and probes of the \
                 kubelet are captured; mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`"
            );
            return Ok(None);
        };
        let wrong = |path: &Path| {
            let path = path.to_owned();
            move |source| CaptureError::Cgroup { path, source }
        };
        let root = File::open(&path).map_err(wrong(&path))?;
        let candidates = match &settings.kubepods_cgroup {
            Some(kubepods) => vec![kubepods.clone()],
            None => KUBEPODS.iter().map(|below| path.join(below)).collect(),
        };
        let mut kubepods = None;
        for candidate in candidates {
            match std::fs::metadata(&candidate) {
                Ok(metadata) => {
                    kubepods = Some(metadata.ino());
                    break;
                }
                Err(error) if settings.kubepods_cgroup.is_some() => return Err(wrong(&candidate)(error)),
                Err(_) => {}
            }
        }
        if kubepods.is_none() {
            tracing::info!(
                "no cgroup of pods was found, so that every connection of the host passes as a probe"
            );
        }
        Ok(Some(Self { root, kubepods }))
    }
}

/// Where the kubelet keeps the pods: with systemd and without, and below its own group as in nodes that are containers.
const KUBEPODS: [&str; 4] =
    ["kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"];

/// Where the whole of cgroup2 is mounted.
fn cgroup2_mount() -> Option<PathBuf> {
    whole_cgroup2(&std::fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// Of the mounts of cgroup2 in a `mountinfo` the one that shows most: a container sees its own group too. The fourth
/// field of a line is what of the file system is mounted, the fifth where, as seen from this process.
fn whole_cgroup2(mounts: &str) -> Option<PathBuf> {
    let found = mounts.lines().filter_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        let depth = root.split('/').filter(|part| !part.is_empty());
        let depth: i32 = depth.map(|part| if part == ".." { -1 } else { 1 }).sum();
        (rest.split(' ').next() == Some("cgroup2")).then_some((depth, place))
    });
    found.min_by_key(|(depth, _)| *depth).map(|(_, place)| PathBuf::from(place))
}

/// Whether connections of pods that nobody knows are held from now on. What is in the way is said.
fn hold(
    settings: &Settings,
    programs: &mut Programs,
    cgroups: Option<&Cgroups>,
    sockops: bool,
    came: &Arc<Notify>,
) -> bool {
    if settings.hold_new_pods_ms == 0 {
        return false;
    }
    // Without a cgroup of pods they cannot be told from the host's processes; without sockops they would wait a second.
    let Some(cgroups) =
        cgroups.filter(|cgroups| cgroups.kubepods.is_some() && sockops && settings.tc_steering)
    else {
        tracing::warn!(
            "first connections of new pods are not held, and may go by the proxy: that needs cgroup2 with the pods' \
             group in it, sockops and tc_steering"
        );
        return false;
    };
    let holds = loaded(
        "holding new pods",
        newcomers::follow(programs, came.clone())
            .and_then(|()| programs.attach_cgroup(HOLD, AttachType::CgroupEgress, &cgroups.root)),
    );
    if holds {
        for (name, kind) in [(BIND4, AttachType::PostBind4), (BIND6, AttachType::PostBind6)] {
            loaded("hearing of new servers", programs.attach_cgroup(name, kind, &cgroups.root));
        }
    }
    holds
}

/// Attaches the node-wide programs. Returns whether sockops notes flows. What cannot be attached is
/// said once; it is an error only if nothing is left to steer by.
fn attach_node(
    settings: &Settings,
    programs: &mut Programs,
    cgroups: Option<&Cgroups>,
) -> Result<bool, CaptureError> {
    let Some(cgroups) = cgroups else {
        if settings.tc_steering {
            return Ok(false);
        }
        return Err(CaptureError::Program {
            program: "connect4",
            reason: "there is no cgroup2 file system; mount one or set tc_steering".to_owned(),
        });
    };
    // Before the connect hook, whose sockets it knows more about.
    let sockops = loaded("sockops", programs.attach_sockops(&cgroups.root));
    let mut attach = |name, kind| programs.attach_cgroup(name, kind, &cgroups.root);
    // Also without steering by it: it tells the host's own connections.
    for (name, kind) in [(CONNECT4, AttachType::Connect4), (CONNECT6, AttachType::Connect6)] {
        match attach(name, kind) {
            Err(reason) if !settings.tc_steering => {
                return Err(CaptureError::Program { program: name, reason });
            }
            result => drop(loaded(name, result)),
        }
    }
    if bpf::count_programs(cgroups.root.as_fd(), AttachType::Connect4).is_ok_and(|count| count > 1) {
        tracing::info!(
            "another program is attached to connect; if it translates the addresses of services, as Cilium's \
             socket load balancer does, the mesh sees endpoints where applications named services"
        );
    }
    Ok(sockops)
}

/// Whether an optional program works; if not, says so.
fn loaded(name: &str, result: Result<(), String>) -> bool {
    if let Err(reason) = &result {
        tracing::warn!("{name} is not available and goes unused: {reason}");
    }
    result.is_ok()
}

fn write_settings(
    settings: &Settings,
    maps: &Maps,
    host: &Namespace,
    tags: &Map<i32, SocketTag>,
    cgroups: Option<&Cgroups>,
    (sockops, holds): (bool, bool),
) -> Result<(), CaptureError> {
    let host_netns = match netns::cookie(host, host, tags) {
        Ok(cookie) => cookie,
        Err(error) => {
            tracing::warn!("connections of the host are not told from others': {error}");
            0
        }
    };
    let kubepods = cgroups.and_then(|c| c.kubepods).unwrap_or_default();
    let mut flags = 0;
    if settings.fail_mode == FailMode::Open {
        flags |= settings_flags::FAIL_OPEN;
    }
    if tracing::enabled!(target: "mesh_ebpf", tracing::Level::DEBUG) {
        flags |= settings_flags::LOG;
    }
    if settings.connect_hook {
        flags |= settings_flags::CONNECT;
    }
    if sockops {
        flags |= settings_flags::SOCKOPS;
    }
    let act = |a| if a == Action::Pass { action::PASS } else { action::REFUSE };
    let value = KernelSettings {
        host_netns,
        heartbeat_timeout_ns: settings.heartbeat_timeout_ms * 1_000_000,
        kubepods,
        hold_ms: if holds { settings.hold_new_pods_ms } else { 0 },
        layout: LAYOUT,
        flags,
        mark: settings.mark,
        application_mark: settings.application_mark(),
        mark_mask: settings.mark_mask,
        unsteered: act(settings.unsteered),
        older: act(settings.older_connections),
    };
    maps.settings.insert(&0, &value).map_err(|source| CaptureError::Map { name: "SETTINGS", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_own_control_group_is_not_taken_for_the_nodes() {
        let line = |root: &str, place: &str, kind: &str| {
            format!("31 23 0:27 {root} {place} rw,nosuid - {kind} cgroup rw\n")
        };
        let own = line("/kubepods/pod1/c", "/sys/fs/cgroup", "cgroup2");
        let whole = line("/", "/host/cgroup", "cgroup2");
        assert_eq!(whole_cgroup2(&(own.clone() + &whole)), Some("/host/cgroup".into()));
        // Seen from a cgroup namespace.
        let (own, whole) =
            (line("/", "/sys/fs/cgroup", "cgroup2"), line("/../../..", "/host/cgroup", "cgroup2"));
        assert_eq!(whole_cgroup2(&(own + &whole)), Some("/host/cgroup".into()));
        assert_eq!(whole_cgroup2(&line("/", "/sys/fs/cgroup/cpu", "cgroup")), None);
    }
}

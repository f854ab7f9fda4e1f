//! Acceleration: bytes between an application's socket and the proxy's go past TCP, in the kernel.
//!
//! Here is what user space has to do for it: find the kernel's offsets, load the programs, test that this
//! kernel keeps the byte stream (`self_test`), switch, and say how things stand. Which flow is accelerated
//! and when it goes back to TCP is decided in the kernel (`mesh-ebpf/src/accel.rs`, `sk_msg.rs`).
//! Nothing here may be needed for steering: with acceleration refused or off everything works by TCP.

mod btf;
mod gauge;
mod hand_off;
mod self_test;

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use mesh_common::accel::{ENOUGH_SEEN, OwnerKey, role};
use mesh_common::{SocketTag, pod_flags, reason, settings_flags};

use serde::{Deserialize, Serialize};

use super::bpf::{self, Map, Mapped};
use super::programs::{Maps, Programs};
pub(super) use gauge::KernelGauge;
pub(super) use hand_off::HandOffs;
pub use self_test::Tested;

use crate::model::workload::Trial;

/// How acceleration stands on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// New flows are accelerated.
    pub on: bool,
    /// Connections between two applications of this node are handed off.
    pub hand_off: bool,
    /// Why they are not although it was asked for.
    pub refused: Option<String>,
    /// What was tested of the kernel, in order; empty before the first time it was asked for.
    pub tests: Vec<Tested>,
}

/// Shared by the manager, which switches, and those who look.
#[derive(Debug, Default)]
pub(super) struct Acceleration {
    pub(super) gauge: OnceLock<Arc<KernelGauge>>,
    pub(super) hand_off: OnceLock<Arc<HandOffs>>,
    /// Handing off was asked for; it needs acceleration.
    hands_off: AtomicBool,
    report: Mutex<Report>,
    /// As in the report, for those who ask for every connection.
    on: AtomicBool,
}

/// A listening port of a pod that is being watched.
#[derive(Debug)]
struct PortOnTrial {
    maps: Arc<Maps>,
    port: OwnerKey,
}

impl Trial for PortOnTrial {
    fn passed(&self) -> Option<bool> {
        let owner = self.maps.owners.get(&self.port).ok().flatten()?;
        if owner.never != 0 { Some(false) } else { (owner.seen >= ENOUGH_SEEN).then_some(true) }
    }
}

impl Acceleration {
    /// A watch over a port, unless everything about it is known.
    pub(super) fn trial(&self, maps: &Arc<Maps>, slot: u32, port: u16) -> Option<Arc<dyn Trial>> {
        if !self.on.load(Ordering::Relaxed) {
            return None;
        }
        let port = OwnerKey { id: port.into(), slot, role: role::SERVER };
        let trial = PortOnTrial { maps: maps.clone(), port };
        trial.passed().is_none().then(|| Arc::new(trial) as Arc<dyn Trial>)
    }

    pub(super) fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Switches acceleration of new flows; prepares it when it is first asked for. What is refused is
    /// logged, and goes by TCP. `unseen_splice`: applications' sockets too where the kernel does not show who splices.
    pub(super) fn switch(
        &self,
        on: bool,
        sockops: bool,
        unseen_splice: bool,
        programs: &mut Programs,
        maps: &Arc<Maps>,
        tags: &Map<i32, SocketTag>,
    ) {
        let mut refused = None;
        if on && !sockops {
            refused = Some("sockops is not attached".to_owned());
        } else if on && self.gauge.get().is_none() {
            match prepare(programs, maps, tags) {
                Ok((gauge, tests)) => {
                    let failed: Vec<_> =
                        tests.iter().filter(|t| t.needed).filter_map(|t| t.problem.as_deref()).collect();
                    if failed.is_empty() {
                        tracing::info!(tests = %summary(&tests), "the kernel keeps the byte stream past TCP");
                        for test in tests.iter().filter(|test| test.problem.is_some()) {
                            tracing::warn!("{}: {}", test.name, test.problem.as_deref().unwrap_or_default());
                        }
                        let gauge = Arc::new(gauge);
                        match HandOffs::open(programs, maps.clone(), gauge.clone()) {
                            Ok(hand_off) => drop(self.hand_off.set(Arc::new(hand_off))),
                            Err(error) => tracing::warn!("no connection is handed off: {error}"),
                        }
                        let _ = self.gauge.set(gauge);
                    } else {
                        refused = Some(failed.join("; "));
                    }
                    self.report.lock().unwrap_or_else(PoisonError::into_inner).tests = tests;
                }
                Err(reason) => refused = Some(reason),
            }
        }
        let on = on && refused.is_none();
        let seen =
            self.report().tests.iter().all(|test| test.name != self_test::SPLICE || test.problem.is_none());
        if let Err(error) = maps.set_flag(settings_flags::APPLICATIONS, seen || unseen_splice) {
            refused = Some(format!("SETTINGS map: {error}"));
        }
        if on && !seen && !unseen_splice {
            tracing::warn!(
                "applications' sockets stay on TCP, only the proxy's own are accelerated: a pod that splices would be \
                 cut off, and the kernel does not show which do; if none does, set acceleration_unseen_splice"
            );
        }
        if let Err(error) = maps.set_flag(settings_flags::ACCELERATE, on) {
            refused = Some(format!("SETTINGS map: {error}"));
        }
        if let Some(reason) = &refused {
            tracing::warn!("acceleration is refused, connections stay on TCP: {reason}");
        } else {
            tracing::info!(on, "acceleration of new connections");
        }
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.on = on && refused.is_none();
        self.on.store(report.on, Ordering::Relaxed);
        report.refused = refused;
        drop(report);
        self.settle_hand_off(maps);
    }

    /// Switches handing off: on for connections to come, off for open ones too, whose bytes stay in order.
    pub(super) fn switch_hand_off(&self, on: bool, maps: &Maps) {
        self.hands_off.store(on, Ordering::Relaxed);
        self.settle_hand_off(maps);
    }

    fn settle_hand_off(&self, maps: &Maps) {
        let wanted = self.hands_off.load(Ordering::Relaxed);
        let ready = self.hand_off.get().filter(|_| wanted && self.on.load(Ordering::Relaxed));
        let mut on = ready.is_some_and(|hand_off| hand_off.prepare());
        if let Err(error) = maps.set_flag(settings_flags::HAND_OFF, on) {
            tracing::warn!("handing off is not switched: SETTINGS map: {error}");
            on = false;
        }
        if let Some(hand_off) = self.hand_off.get() {
            hand_off.switch(on);
        }
        if on != wanted {
            tracing::warn!(
                "connections between applications are not handed off: acceleration is not on, or see above"
            );
        }
        self.report.lock().unwrap_or_else(PoisonError::into_inner).hand_off = on;
    }
}

fn summary(tests: &[Tested]) -> String {
    let line = |t: &Tested| match &t.problem {
        None => {
            format!("{} right{}", t.name, t.mended.as_ref().map(|by| format!(" {by}")).unwrap_or_default())
        }
        Some(problem) => format!("{} not ({problem})", t.name),
    };
    tests.iter().map(line).collect::<Vec<_>>().join(", ")
}

fn prepare(
    programs: &mut Programs,
    maps: &Maps,
    tags: &Map<i32, SocketTag>,
) -> Result<(KernelGauge, Vec<Tested>), String> {
    let mut offsets = btf::offsets().map_err(|error| error.to_string())?;
    let loaded = programs.load_acceleration()?;
    bpf::attach_to_map(loaded.message.as_fd(), loaded.sockets.as_fd())
        .map_err(|error| format!("sk_msg: {error}"))?;
    offsets.own_process =
        bpf::run(loaded.process.as_fd(), &[0, 0]).map_err(|error| format!("its own process: {error}"))?;
    maps.offsets.insert(&0, &offsets).map_err(|error| format!("OFFSETS map: {error}"))?;
    let ends = Map::open(&programs.pin("ENDS")).map_err(|error| format!("ENDS map: {error}"))?;
    let switched =
        Mapped::open(&programs.pin("SWITCHED")).map_err(|error| format!("SWITCHED map: {error}"))?;
    let sockets =
        Map::open(&programs.pin("ACCELERATED")).map_err(|error| format!("ACCELERATED map: {error}"))?;
    let handed_off =
        Map::open(&programs.pin("HANDED_OFF")).map_err(|error| format!("HANDED_OFF map: {error}"))?;
    let gauge = KernelGauge { ends, waiting: loaded.waiting, switched, sockets, handed_off };
    let watched = self_test::Watched { splice: loaded.splice_watched, options: loaded.options_guarded };
    let tests = self_test::run(&gauge, tags, watched, || programs.mend_fionread());
    Ok((gauge, tests))
}

/// What went past TCP for one pod since its enrolment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The pod's own switch.
    pub accelerates: bool,
    /// The pod's own switch of handing off.
    pub hands_off: bool,
    pub messages: u64,
    pub bytes: u64,
    pub known: Vec<Known>,
}

/// Of the pod in `slot`, whose part is taken out of what is known of all.
pub(super) fn traffic(maps: &Maps, slot: u32, known: &mut Vec<(u32, Known)>) -> std::io::Result<Traffic> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    let mut traffic = Traffic::default();
    for carried in maps.carried.per_cpu(&slot, cpus)? {
        traffic.messages += carried.messages;
        traffic.bytes += carried.bytes;
    }
    traffic.known = known.extract_if(.., |(of, _)| *of == slot).map(|(_, known)| known).collect();
    let flags = maps.pods.get(&slot)?.map_or(0, |pod| pod.flags);
    traffic.accelerates = flags & pod_flags::ACCELERATE != 0;
    traffic.hands_off = flags & pod_flags::HAND_OFF != 0;
    Ok(traffic)
}

/// What is known of a pod's sockets by now: its listening ports and, as one, its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// A port of the pod; `None`: an executable that connects from it, or the pod as a whole.
    pub port: Option<u16>,
    /// Path of the executable, as its own process sees it, if one runs.
    pub program: Option<String>,
    /// Connections seen so far, all fit for acceleration.
    pub seen: u32,
    /// So many are enough for the next one to be accelerated.
    pub enough: u32,
    /// Why none is accelerated, as `tcp_blocking`.
    pub never: Option<&'static str>,
}

/// All that is known, by the slot of the pod.
pub(super) fn known(maps: &Maps) -> std::io::Result<Vec<(u32, Known)>> {
    let (mut all, mut programs) = (Vec::new(), None);
    for key in maps.owners.keys()? {
        let Some(owner) = maps.owners.get(&key)? else { continue };
        let never = (owner.never != 0).then(|| reason::NAMES.get(owner.never as usize).copied()).flatten();
        let port = (key.role == role::SERVER).then_some(key.id as u16);
        let program = (key.role == role::CLIENT)
            .then(|| programs.get_or_insert_with(running_programs).get(&key.id).cloned())
            .flatten();
        all.push((key.slot, Known { port, program, seen: owner.seen, enough: ENOUGH_SEEN, never }));
    }
    all.sort_by(|(a, x), (b, y)| (a, x.port, &x.program, x.seen).cmp(&(b, y.port, &y.program, y.seen)));
    Ok(all)
}

/// The executables of the processes that run, by the number that the programs know them by.
fn running_programs() -> HashMap<u64, String> {
    use std::os::unix::fs::MetadataExt;
    let mut programs = HashMap::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let link = process.path().join("exe");
        // Not a process, one of the kernel's, or gone.
        let (Ok(path), Ok(metadata)) = (std::fs::read_link(&link), std::fs::metadata(&link)) else {
            continue;
        };
        let device = metadata.dev();
        let device = u64::from(libc::major(device)) << 20 | u64::from(libc::minor(device));
        programs.insert(metadata.ino() ^ device << 40, path.to_string_lossy().into_owned());
    }
    programs
}

/// A slot begins anew.
pub(super) fn forget(maps: &Maps, slot: u32) {
    let of_slot = |key: &OwnerKey| key.slot == slot;
    for key in maps.owners.keys().unwrap_or_default().into_iter().filter(of_slot) {
        let _ = maps.owners.remove(&key);
    }
    if let Ok(cpus) = aya::util::nr_cpus() {
        let _ = maps.carried.clear_per_cpu(&slot, cpus);
    }
}

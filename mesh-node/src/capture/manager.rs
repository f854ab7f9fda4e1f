//! The thread that owns the programs and the set of enrolled pods. It alone enrols and releases,
//! and it alone says to the kernel that the proxy is alive, which it does only while every worker is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use mesh_common::{MAX_PODS, SocketTag};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use super::accel::Acceleration;
use super::addresses::Addresses;
use super::bpf::Map;
use super::enrol::{self, Context, Enrolled, Listeners};
use super::error::CaptureError;
use super::leaving::{Leaving, Step};
use super::netns::{self, Namespace, PodSockets};
use super::pods::{Held, PodSpec};
use super::programs::{Maps, Programs};
use super::record::{Record, Records};
use super::release;
use super::settings::Settings;
use super::worker::Assignment;
use crate::model::workload::Workload;

const HEARTBEAT: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) enum Command {
    /// These are all pods now.
    Pods(Vec<PodSpec>),
    /// These namespaces are pods' that nobody enrols.
    Strangers(Vec<Held>),
    /// The last connection of a released pod is gone.
    Gone(u32),
    /// Accelerate new flows, or not.
    Accelerate(bool),
    /// Hand connections off, or not.
    HandOff(bool),
    Stop,
}

/// The enrolled pods by slot, for those who only look.
#[derive(Debug, Default)]
pub(super) struct Roster {
    pods: Mutex<BTreeMap<u32, Arc<Workload>>>,
    /// The same by address, for those who look often.
    pub(super) addresses: Addresses,
    /// One who looks is told of changes.
    pub(super) changed: Notify,
    /// A pod was released and its new connections may still be brought to its listeners.
    pub(super) letting_go: AtomicBool,
}

impl Roster {
    pub(super) fn pods(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Workload>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, slot: u32, workload: Option<Arc<Workload>>) {
        let mut pods = self.pods();
        match workload {
            Some(workload) => drop(pods.insert(slot, workload)),
            None => drop(pods.remove(&slot)),
        }
        let by_address = pods.values().flat_map(|pod| pod.ips.iter().map(|ip| (*ip, pod.clone())));
        self.addresses.set(by_address.collect());
        drop(pods);
        self.changed.notify_one();
    }
}

pub(super) struct Manager {
    pub(super) settings: Settings,
    pub(super) host: Arc<Namespace>,
    pub(super) programs: Programs,
    pub(super) maps: Arc<Maps>,
    pub(super) tags: Arc<Map<i32, SocketTag>>,
    pub(super) records: Records,
    pub(super) workers: Vec<UnboundedSender<Assignment>>,
    /// One counter per worker that moves while the worker runs.
    pub(super) pulses: Vec<Arc<AtomicU64>>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) inbox: mpsc::Receiver<Command>,
    pub(super) guard: bool,
    pub(super) tc_steering: bool,
    pub(super) sockops: bool,
    pub(super) acceleration: Arc<Acceleration>,
    pub(super) roster: Arc<Roster>,
    pub(super) enrolled: BTreeMap<u32, Enrolled>,
    /// Pods that this process released and that are still served, by slot.
    pub(super) leaving: BTreeMap<u32, Leaving>,
    /// Records of pods that are enrolled, released, or were enrolled by an earlier process.
    pub(super) kept: BTreeMap<u32, Record>,
    pub(super) last_slot: u32,
}

impl Manager {
    /// Takes over what an earlier process left, then enrols `pods`. Returns what went wrong, one error per pod.
    pub(super) fn begin(&mut self, pods: &[PodSpec]) -> Vec<CaptureError> {
        for record in self.records.all() {
            self.last_slot = self.last_slot.max(record.slot);
            self.kept.insert(record.slot, record);
        }
        self.beat();
        self.apply(pods)
    }

    /// Serves commands until told to stop.
    pub(super) fn run(mut self) {
        let mut pulses = Pulses::new(&self.pulses, Duration::from_millis(self.settings.heartbeat_timeout_ms));
        loop {
            match self.inbox.recv_timeout(HEARTBEAT) {
                Ok(Command::Pods(pods)) => {
                    for error in self.apply(&pods) {
                        tracing::error!("{error}");
                    }
                }
                Ok(Command::Strangers(namespaces)) => self.let_strangers_go(&namespaces),
                Ok(Command::Gone(slot)) => self.finish(slot),
                Ok(Command::Accelerate(on)) => self.accelerate(on),
                Ok(Command::HandOff(on)) => self.acceleration.switch_hand_off(on, &self.maps),
                Ok(Command::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                    // Pods that were let go must not meet what waits for the next process.
                    for (slot, leaving) in &self.leaving {
                        if let Step::Brought { .. } = leaving.step {
                            release::stop_lookup(&self.programs, &self.maps, *slot);
                        }
                    }
                    return;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            self.go_on_leaving(Instant::now());
            if pulses.all_alive(&self.pulses) {
                self.beat();
            }
        }
    }

    fn let_strangers_go(&self, namespaces: &[Held]) {
        for namespace in namespaces {
            let cookie = Namespace::open(&namespace.path())
                .and_then(|namespace| netns::cookie(&self.host, &namespace, &self.tags));
            match cookie.and_then(|cookie| self.maps.strangers.insert(&cookie, &1)) {
                Ok(()) => {}
                // It may have ended meanwhile; if not, it is let go when its time is over.
                Err(error) => tracing::debug!("a pod that is not enrolled stays held for now: {error}"),
            }
        }
    }

    pub(super) fn accelerate(&mut self, on: bool) {
        let unseen = self.settings.acceleration_unseen_splice;
        self.acceleration.switch(on, self.sockops, unseen, &mut self.programs, &self.maps, &self.tags);
        self.records.write_acceleration(&self.acceleration.report());
    }

    /// Makes the enrolled pods those of `pods`: releases first, so that an address that moved from
    /// one pod to another is free. Returns what went wrong, one error per pod.
    fn apply(&mut self, pods: &[PodSpec]) -> Vec<CaptureError> {
        let pods: Vec<PodSpec> = pods.iter().map(|pod| self.with_addresses(pod)).collect();
        let wanted: BTreeMap<&str, &PodSpec> =
            pods.iter().filter(|pod| !pod.opt_out).map(|pod| (pod.uid.as_str(), pod)).collect();
        let mut leaving = Vec::new();
        let mut changed = Vec::new();
        for (slot, pod) in &self.enrolled {
            match wanted.get(pod.spec.uid.as_str()) {
                Some(spec) if **spec == pod.spec && netns_id(spec) == Some(pod.netns_id) => {}
                Some(spec) if same_place(spec, &pod.spec) && netns_id(spec) == Some(pod.netns_id) => {
                    changed.push((*slot, (*spec).clone()));
                }
                _ => leaving.push(*slot),
            }
        }
        for slot in leaving {
            self.release(slot);
        }
        for (slot, spec) in changed {
            self.update(slot, spec);
        }
        self.discard_left_behind(&wanted);
        let mut errors = Vec::new();
        for spec in wanted.into_values() {
            if self.enrolled.values().any(|pod| pod.spec.uid == spec.uid) {
                continue;
            }
            if let Err(error) = self.enrol(spec) {
                errors.push(error);
            }
            self.beat();
        }
        errors
    }

    /// Where a pod's addresses are not told yet, those it was enrolled with are meant.
    fn with_addresses(&self, spec: &PodSpec) -> PodSpec {
        let mut spec = spec.clone();
        if spec.ips.is_empty()
            && let Some(enrolled) = self.enrolled.values().find(|pod| pod.spec.uid == spec.uid)
        {
            spec.ips.clone_from(&enrolled.spec.ips);
        }
        spec
    }

    /// Undoes records of an earlier process whose pods are not wanted now.
    fn discard_left_behind(&mut self, wanted: &BTreeMap<&str, &PodSpec>) {
        // Connections of a pod that this process released keep its record.
        let alive = |slot: &u32| self.enrolled.contains_key(slot) || self.leaving.contains_key(slot);
        let stale: Vec<u32> = self
            .kept
            .iter()
            .filter(|(slot, record)| {
                let wanted = wanted.get(record.uid.as_str()).and_then(|spec| netns_id(spec));
                !alive(slot) && wanted != Some(record.netns_id)
            })
            .map(|(slot, _)| *slot)
            .collect();
        for slot in stale {
            release::stop_steering(&self.maps, slot, None, &[]);
            self.finish(slot);
        }
    }

    fn enrol(&mut self, spec: &PodSpec) -> Result<(), CaptureError> {
        if let Some((slot, sockets)) = self.still_here(spec) {
            return self.take_back(slot, spec, &sockets);
        }
        // The slot of an earlier process's enrolment of the same pod in the same namespace goes on.
        let adopted = self.adoptable(spec);
        let slot = match &adopted {
            Some(record) => record.slot,
            None => self.free_slot().ok_or(CaptureError::TooManyPods(MAX_PODS - 1))?,
        };
        self.last_slot = slot;
        // What was changed in the namespace by an enrolment whose connections still run is not changed
        // twice, but must be put back by whoever leaves last.
        let id = netns_id(spec);
        let before =
            adopted.or_else(|| self.kept.values().find(|record| Some(record.netns_id) == id).cloned());
        let result = enrol::enrol(&mut self.context(), slot, spec, before.as_ref());
        let (pod, listeners) = match result {
            Ok(done) => done,
            Err(error) => {
                self.kept.remove(&slot);
                return Err(error);
            }
        };
        if let Some(record) = self.records.all().into_iter().find(|record| record.slot == slot) {
            self.kept.insert(slot, record);
        }
        self.supersede(slot);
        self.serve(slot, pod, Some(listeners));
        Ok(())
    }

    fn context(&mut self) -> Context<'_> {
        Context {
            settings: &self.settings,
            host: &self.host,
            programs: &mut self.programs,
            maps: &self.maps,
            tags: &self.tags,
            records: &self.records,
            workers: self.workers.len(),
            commands: &self.commands,
            guard: self.guard,
            tc_steering: self.tc_steering,
            sockops: self.sockops,
            acceleration: &self.acceleration,
        }
    }

    /// The workers accept for `pod` from now on, by `listeners` or by those that they have.
    fn serve(&mut self, slot: u32, pod: Enrolled, listeners: Option<Vec<Listeners>>) {
        let workload = || pod.workload.clone();
        // A worker that has ended accepts nothing more.
        match listeners {
            Some(listeners) => {
                for (worker, listeners) in self.workers.iter().zip(listeners) {
                    let _ = worker.send(Assignment::Add { slot, workload: workload(), listeners });
                }
            }
            None => {
                for worker in &self.workers {
                    let _ = worker.send(Assignment::Update { slot, workload: workload() });
                }
            }
        }
        tracing::info!(pod = %pod.spec.display_name(), uid = %pod.spec.uid, slot, "enrolled");
        self.roster.set(slot, Some(workload()));
        self.enrolled.insert(slot, pod);
    }

    /// The slot in which a pod is still served that was released, with its sockets.
    fn still_here(&self, spec: &PodSpec) -> Option<(u32, Arc<PodSockets>)> {
        let id = netns_id(spec)?;
        let same =
            |pod: &Leaving| pod.spec.uid == spec.uid && pod.netns_id == id && same_place(&pod.spec, spec);
        let (slot, leaving) = self.leaving.iter().find(|(_, leaving)| same(leaving))?;
        Some((*slot, leaving.sockets.upgrade()?))
    }

    /// Enrols a pod in the slot that it is leaving.
    fn take_back(
        &mut self,
        slot: u32,
        spec: &PodSpec,
        sockets: &Arc<PodSockets>,
    ) -> Result<(), CaptureError> {
        let Some(mut leaving) = self.leaving.remove(&slot) else { return Ok(()) };
        let record = self.kept.get(&slot).cloned();
        match leaving.return_to(&mut self.context(), slot, spec, sockets, record) {
            Ok((pod, listeners)) => self.serve(slot, pod, listeners),
            Err(error) => {
                // What was attached again goes in its turn.
                leaving.step = Step::first(Instant::now());
                self.leaving.insert(slot, leaving);
                return Err(error);
            }
        }
        Ok(())
    }

    /// New connections of this slot's namespace are its own from now on, though an earlier enrolment is still leaving
    /// it.
    fn supersede(&mut self, slot: u32) {
        let Some(netns) = self.kept.get(&slot).map(|record| record.netns_id) else { return };
        for (other, leaving) in &mut self.leaving {
            if leaving.netns_id == netns && matches!(leaving.step, Step::Brought { .. }) {
                leaving.step = leaving.step.next(Instant::now());
                release::stop_lookup(&self.programs, &self.maps, *other);
            }
        }
    }

    /// The record by which an earlier process enrolled `spec`, if its namespace is still the same.
    fn adoptable(&self, spec: &PodSpec) -> Option<Record> {
        let id = netns_id(spec)?;
        let free = |slot| !self.enrolled.contains_key(slot) && !self.leaving.contains_key(slot);
        self.kept.values().find(|r| r.uid == spec.uid && r.netns_id == id && free(&r.slot)).cloned()
    }

    /// Changes what is excluded and how the pod is called, under running connections.
    fn update(&mut self, slot: u32, spec: PodSpec) {
        let Some(pod) = self.enrolled.get_mut(&slot) else { return };
        if let Err(error) = enrol::fill_maps(&self.maps, &self.settings, self.guard, slot, &spec, pod.cookie)
        {
            tracing::error!(
                "pod {}: its exclusions are not as the pods file has them: {error}",
                spec.display_name()
            );
        }
        let Workload { sockets, limits, drain, .. } = &*pod.workload;
        pod.workload = enrol::workload(&self.settings, &spec, sockets.clone(), limits.clone(), drain.clone());
        for worker in &self.workers {
            let _ = worker.send(Assignment::Update { slot, workload: pod.workload.clone() });
        }
        self.roster.set(slot, Some(pod.workload.clone()));
        tracing::info!(pod = %spec.display_name(), uid = %spec.uid, slot, "updated");
        pod.spec = spec;
    }

    /// The next slot that nobody uses, as late reused as can be: flows of a pod that is gone are
    /// noted under its slot for a while.
    fn free_slot(&self) -> Option<u32> {
        (1..MAX_PODS)
            .map(|step| (self.last_slot + step - 1) % (MAX_PODS - 1) + 1)
            .find(|slot| !self.kept.contains_key(slot) && !self.enrolled.contains_key(slot))
    }

    fn release(&mut self, slot: u32) {
        let Some(pod) = self.enrolled.remove(&slot) else { return };
        release::stop_steering(&self.maps, slot, Some(pod.cookie), &pod.spec.ips);
        // At once: the pod's network may be gone soon, and then nobody can be told any more.
        pod.workload.drain.start();
        self.roster.set(slot, None);
        tracing::info!(pod = %pod.spec.display_name(), uid = %pod.spec.uid, slot, "released");
        self.roster.letting_go.store(true, Ordering::Relaxed);
        self.leaving.insert(slot, Leaving::begin(pod, Instant::now()));
    }

    /// Takes each pod that leaves a step further whose time has come.
    fn go_on_leaving(&mut self, now: Instant) {
        for (slot, leaving) in &mut self.leaving {
            if !leaving.step.is_over(now) {
                continue;
            }
            if let Step::Brought { .. } = leaving.step {
                release::stop_lookup(&self.programs, &self.maps, *slot);
            } else {
                for worker in &self.workers {
                    let _ = worker.send(Assignment::Remove { slot: *slot });
                }
            }
            leaving.step = leaving.step.next(now);
        }
        let letting_go = self.leaving.values().any(|leaving| !matches!(leaving.step, Step::Closed));
        self.roster.letting_go.store(letting_go, Ordering::Relaxed);
    }

    fn finish(&mut self, slot: u32) {
        self.leaving.remove(&slot);
        if let Some(record) = self.kept.remove(&slot) {
            release::undo_inside_maps(&self.programs, &self.maps, &record);
            // The pod may be enrolled again already; then its namespace stays prepared.
            if !self.kept.values().any(|other| other.netns_id == record.netns_id) {
                release::undo_outside_maps(&self.host, &record);
            }
            self.records.remove(slot);
        }
    }

    fn beat(&self) {
        if let Err(error) = self.maps.heartbeat.insert(&0, &(monotonic().as_nanos() as u64)) {
            tracing::error!("the heartbeat cannot be written: {error}");
        }
    }
}

/// The clock of heartbeats, which the programs read too.
pub(super) fn monotonic() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// Device and inode of the namespace that a pod's path leads to now.
fn netns_id(spec: &PodSpec) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(&spec.netns).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Whether two entries of one pod differ only in what can be changed under running connections.
fn same_place(a: &PodSpec, b: &PodSpec) -> bool {
    let sorted = |spec: &PodSpec| spec.ips.iter().copied().collect::<BTreeSet<IpAddr>>();
    a.netns == b.netns && sorted(a) == sorted(b) && a.interface == b.interface
}

/// Which workers have moved lately.
struct Pulses {
    seen: Vec<(u64, Instant)>,
    timeout: Duration,
}

impl Pulses {
    fn new(pulses: &[Arc<AtomicU64>], timeout: Duration) -> Self {
        let now = Instant::now();
        Self { seen: pulses.iter().map(|_| (0, now)).collect(), timeout }
    }

    fn all_alive(&mut self, pulses: &[Arc<AtomicU64>]) -> bool {
        let now = Instant::now();
        for (seen, pulse) in self.seen.iter_mut().zip(pulses) {
            let value = pulse.load(Ordering::Relaxed);
            if value != seen.0 {
                *seen = (value, now);
            }
        }
        self.seen.iter().all(|(_, at)| now - *at < self.timeout)
    }
}

//! The thread that owns the programs and the set of enrolled pods. It alone enrols and releases,
//! and it alone says to the kernel that the proxy is alive, which it does only while every worker is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use mesh_common::{MAX_PODS, SocketTag};
use tokio::sync::mpsc::UnboundedSender;

use super::bpf::Map;
use super::enrol::{self, Context, Enrolled};
use super::error::CaptureError;
use super::netns::Namespace;
use super::pods::PodSpec;
use super::programs::{Maps, Programs};
use super::record::{Record, Records};
use super::settings::Settings;
use super::worker::Assignment;
use crate::model::workload::Workload;

/// How long a released pod's listeners stay, for handshakes that were under way.
const LINGER: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) enum Command {
    /// These are all pods now.
    Pods(Vec<PodSpec>),
    /// The last connection of a released pod is gone.
    Gone(u32),
    Stop,
}

/// The enrolled pods by slot, for those who only look.
pub(super) type Roster = Arc<Mutex<BTreeMap<u32, Arc<Workload>>>>;

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
    pub(super) roster: Roster,
    pub(super) enrolled: BTreeMap<u32, Enrolled>,
    /// Released pods whose listeners stay until then.
    pub(super) lingering: Vec<(Instant, u32)>,
    /// Records of pods that are enrolled, lingering, or still have connections.
    pub(super) kept: BTreeMap<u32, Record>,
    pub(super) last_slot: u32,
}

impl Manager {
    /// Takes over what an earlier process left, then enrols `pods`.
    ///
    /// # Errors
    /// The first pod that cannot be enrolled: at start that ends the process.
    pub(super) fn begin(&mut self, pods: &[PodSpec]) -> Result<(), CaptureError> {
        for record in self.records.all() {
            self.last_slot = self.last_slot.max(record.slot);
            self.kept.insert(record.slot, record);
        }
        self.beat();
        self.apply(pods).into_iter().next().map_or(Ok(()), Err)
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
                Ok(Command::Gone(slot)) => self.finish(slot),
                Ok(Command::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            self.end_lingering();
            if pulses.all_alive(&self.pulses) {
                self.beat();
            }
        }
    }

    /// Makes the enrolled pods those of `pods`: releases first, so that an address that moved from
    /// one pod to another is free. Returns what went wrong, one error per pod.
    fn apply(&mut self, pods: &[PodSpec]) -> Vec<CaptureError> {
        let wanted: BTreeMap<&str, &PodSpec> =
            pods.iter().filter(|pod| !pod.opt_out).map(|pod| (pod.uid.as_str(), pod)).collect();
        let leaving: Vec<u32> = self
            .enrolled
            .iter()
            .filter(|(_, pod)| wanted.get(pod.spec.uid.as_str()).is_none_or(|spec| **spec != pod.spec))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in leaving {
            self.release(slot);
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

    /// Undoes records of an earlier process whose pods are not wanted now.
    fn discard_left_behind(&mut self, wanted: &BTreeMap<&str, &PodSpec>) {
        let alive =
            |slot: &u32| self.enrolled.contains_key(slot) || self.lingering.iter().any(|(_, s)| s == slot);
        let roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        let stale: Vec<u32> = self
            .kept
            .iter()
            .filter(|(slot, record)| {
                !alive(slot) && !roster.contains_key(slot) && !wanted.contains_key(record.uid.as_str())
            })
            .map(|(slot, _)| *slot)
            .collect();
        drop(roster);
        for slot in stale {
            enrol::stop_steering(&self.maps, slot, None, &[]);
            self.finish(slot);
        }
    }

    fn enrol(&mut self, spec: &PodSpec) -> Result<(), CaptureError> {
        // The slot of an earlier process's enrolment of the same pod in the same namespace goes on.
        let adopted = self.adoptable(spec);
        let slot = match &adopted {
            Some(record) => record.slot,
            None => self.free_slot().ok_or(CaptureError::TooManyPods(MAX_PODS - 1))?,
        };
        let mut context = Context {
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
        };
        let result = enrol::enrol(&mut context, slot, spec, adopted.as_ref());
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
        for (worker, listeners) in self.workers.iter().zip(listeners) {
            let workload = pod.workload.clone();
            // A worker that has ended accepts nothing more.
            let _ = worker.send(Assignment::Add { slot, workload, listeners });
        }
        tracing::info!(pod = %spec.display_name(), uid = %spec.uid, slot, "enrolled");
        self.roster.lock().unwrap_or_else(PoisonError::into_inner).insert(slot, pod.workload.clone());
        self.enrolled.insert(slot, pod);
        Ok(())
    }

    /// The record by which `spec` was enrolled before, if its namespace is still the same and no
    /// pod of this process holds the slot.
    fn adoptable(&self, spec: &PodSpec) -> Option<Record> {
        use std::os::unix::fs::MetadataExt;
        let record = self.kept.values().find(|record| record.uid == spec.uid)?;
        let metadata = std::fs::metadata(&spec.netns).ok()?;
        let free = !self.enrolled.contains_key(&record.slot)
            && !self.lingering.iter().any(|(_, s)| *s == record.slot);
        (free && record.netns_id == (metadata.dev(), metadata.ino())).then(|| record.clone())
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
        enrol::stop_steering(&self.maps, slot, Some(pod.cookie), &pod.spec.ips);
        self.lingering.push((Instant::now() + LINGER, slot));
        for worker in &self.workers {
            let _ = worker.send(Assignment::Remove { slot, linger: LINGER });
        }
        self.roster.lock().unwrap_or_else(PoisonError::into_inner).remove(&slot);
        tracing::info!(pod = %pod.spec.display_name(), uid = %pod.spec.uid, slot, "released");
    }

    fn end_lingering(&mut self) {
        let now = Instant::now();
        let (over, rest) =
            std::mem::take(&mut self.lingering).into_iter().partition(|(until, _)| *until <= now);
        self.lingering = rest;
        for (_, slot) in over {
            enrol::stop_lookup(&self.programs, &self.maps, slot);
        }
    }

    fn finish(&mut self, slot: u32) {
        self.lingering.retain(|(_, lingering)| *lingering != slot);
        if let Some(record) = self.kept.remove(&slot) {
            enrol::undo(&self.programs, &self.maps, &self.host, &record);
            self.records.remove(slot);
        }
    }

    fn beat(&self) {
        if let Ok(now) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) {
            let nanoseconds = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
            if let Err(error) = self.maps.heartbeat.insert(&0, &nanoseconds) {
                tracing::error!("the heartbeat cannot be written: {error}");
            }
        }
    }
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

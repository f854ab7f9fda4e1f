//! The load balancing policies over one group of hosts (`Cluster.lb_policy`).
//!
//! As in Envoy each worker balances on its own, from a random start: workers share nothing but the hosts'
//! counts of active requests.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::edf::Edf;
use super::{Host, Random, clock};
use crate::model::cluster::{Cluster, LbPolicy, SlowStart};

/// How many picks into a weighted schedule a worker may start.
const MAX_START: u64 = 1 << 16;

/// The state of balancing between equal things, one part per worker.
#[derive(Debug)]
pub(crate) struct Shards(Box<[Shard]>);

/// On a cache line of its own, for workers on different cores.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard {
    next: AtomicUsize,
    /// Made at the first weighted pick. Only its own worker takes the lock.
    schedule: Mutex<Option<Edf>>,
}

impl Shards {
    pub(crate) fn new(workers: usize, random: &dyn Random) -> Self {
        let start = |_| Shard { next: AtomicUsize::new(random.next() as usize), ..Shard::default() };
        Self((0..workers.max(1)).map(start).collect())
    }

    fn mine(&self) -> &Shard {
        &self.0[worker_index() % self.0.len()]
    }

    /// The next of `0..n` in turn.
    fn in_turn(&self, n: usize) -> usize {
        self.mine().next.fetch_add(1, Ordering::Relaxed) % n
    }

    /// The next of `0..n` by weight; `None` when nothing has weight.
    pub(crate) fn by_weight(
        &self,
        n: usize,
        weight: impl Fn(usize) -> f64,
        random: &dyn Random,
    ) -> Option<usize> {
        let mut schedule = self.mine().schedule.lock().unwrap_or_else(PoisonError::into_inner);
        schedule.get_or_insert_with(|| Edf::new((0..n).map(&weight), random.next() % MAX_START)).pick(weight)
    }
}

/// A small number that is the calling thread's own, so that its state is found without a lock.
fn worker_index() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static INDEX: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed)));
    INDEX.with(Cell::get)
}

/// Hosts that one choice is made from.
#[derive(Debug)]
pub(crate) struct Group {
    hosts: Vec<Arc<Host>>,
    equal_weights: bool,
    /// With slow start: the time until which some host has less than its weight.
    ramps_until_ms: u64,
    shards: Shards,
}

impl Group {
    pub(crate) fn new(cluster: &Cluster, hosts: Vec<Arc<Host>>, workers: usize, random: &dyn Random) -> Self {
        let equal_weights = hosts.windows(2).all(|w| w[0].weight() == w[1].weight());
        // Many groups are of one host, where nothing is to be balanced.
        let workers = if hosts.len() < 2 { 1 } else { workers };
        let ramps_until_ms = cluster.balancing.slow_start.as_ref().map_or(0, |slow_start| {
            let last = hosts.iter().filter_map(|host| host.counters.health.healthy_since()).max();
            last.map_or(0, |last| last + slow_start.window.as_millis() as u64)
        });
        Self { hosts, equal_weights, ramps_until_ms, shards: Shards::new(workers, random) }
    }

    pub(crate) fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// The next host; `None` when the group is empty.
    pub(crate) fn pick(&self, cluster: &Cluster, random: &dyn Random) -> Option<&Arc<Host>> {
        let n = self.hosts.len();
        if n < 2 {
            return self.hosts.first();
        }
        let ramp = self.ramp(cluster);
        let equal = self.equal_weights && ramp.is_none();
        let weight = |host: &Host| {
            f64::from(host.weight()) * ramp.map_or(1.0, |(slow_start, now)| ramped(host, slow_start, now))
        };
        let index = match &cluster.lb {
            LbPolicy::RoundRobin if equal => self.shards.in_turn(n),
            LbPolicy::RoundRobin => self.shards.by_weight(n, |i| weight(&self.hosts[i]), random)?,
            LbPolicy::LeastRequest { full_scan: true, .. } if equal => self.least_of_all(random),
            LbPolicy::LeastRequest { choices, .. } if equal => self.least_of(*choices, random),
            LbPolicy::LeastRequest { active_request_bias: bias, .. } => {
                let bias = bias.now();
                let loaded = |host: &Host| loaded_weight(weight(host), host, bias);
                self.shards.by_weight(n, |i| loaded(&self.hosts[i]), random)?
            }
            // A policy that hashes has a table and does not come here.
            LbPolicy::Random
            | LbPolicy::ClusterProvided
            | LbPolicy::RingHash { .. }
            | LbPolicy::Maglev { .. } => below(n, random),
        };
        self.hosts.get(index)
    }

    /// The cluster's slow start and the time, while some host has less than its weight.
    fn ramp<'c>(&self, cluster: &'c Cluster) -> Option<(&'c SlowStart, u64)> {
        let slow_start = cluster.balancing.slow_start.as_ref()?;
        let now = clock::now_ms();
        (now < self.ramps_until_ms).then_some((slow_start, now))
    }

    /// The least loaded of `choices` random hosts; of equals the one drawn first. A host may be drawn twice.
    fn least_of(&self, choices: u32, random: &dyn Random) -> usize {
        let mut best = below(self.hosts.len(), random);
        let mut least = self.hosts[best].active_requests();
        for _ in 1..choices {
            let candidate = below(self.hosts.len(), random);
            let active = self.hosts[candidate].active_requests();
            if active < least {
                (best, least) = (candidate, active);
            }
        }
        best
    }

    /// The least loaded of all hosts; of equals one at random.
    fn least_of_all(&self, random: &dyn Random) -> usize {
        let (mut best, mut least, mut equals) = (0, u64::MAX, 0);
        for (index, host) in self.hosts.iter().enumerate() {
            let active = host.active_requests();
            if active < least {
                (best, least, equals) = (index, active, 1);
            } else if active == least {
                equals += 1;
                if below(equals, random) == 0 {
                    best = index;
                }
            }
        }
        best
    }
}

fn below(n: usize, random: &dyn Random) -> usize {
    (random.next() % n as u64) as usize
}

/// `weight / (active requests + 1) ^ bias` (Envoy: weighted least request).
fn loaded_weight(weight: f64, host: &Host, bias: f64) -> f64 {
    let load = host.active_requests() as f64 + 1.0;
    match bias {
        0.0 => weight,
        1.0 => weight / load,
        bias => weight / load.powf(bias),
    }
}

/// The part of its weight that a host has at this time (Envoy: `applySlowStartFactor`).
fn ramped(host: &Host, slow_start: &SlowStart, now_ms: u64) -> f64 {
    let Some(since) = host.counters.health.healthy_since() else { return 1.0 };
    let (passed, window) = (now_ms.saturating_sub(since), slow_start.window.as_millis() as u64);
    if passed >= window {
        return 1.0;
    }
    let part = passed.max(1) as f64 / window as f64;
    // A value of the runtime may be anything.
    let aggression = slow_start.aggression.now().max(f64::MIN_POSITIVE);
    part.powf(1.0 / aggression).max(slow_start.least)
}

//! How load is shared by priorities, and which priorities are in panic. Pure arithmetic over host counts.
//!
//! The rules are Envoy's "priority levels", "overprovisioning factor", "degraded endpoints" and "panic
//! threshold" (`LoadBalancerBase::recalculatePerPriorityState` and its kin); all percentages are whole.

use std::collections::BTreeSet;

/// How many hosts a priority has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) all: usize,
    pub(crate) healthy: usize,
    pub(crate) degraded: usize,
    /// Counted in `all`, but not where shares are computed.
    pub(crate) excluded: usize,
}

impl Counts {
    /// What shares of health are computed of.
    fn base(&self) -> usize {
        self.all - self.excluded
    }
}

/// Shares of the load, in percent. All shares add up to 100.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Loads {
    healthy: Vec<u32>,
    degraded: Vec<u32>,
    panic: Vec<bool>,
}

/// Which hosts of which priority serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Healthy(usize),
    Degraded(usize),
    /// Panic: any host of the priority, whatever its health.
    All(usize),
}

impl Source {
    pub(crate) fn priority(self) -> usize {
        match self {
            Self::Healthy(p) | Self::Degraded(p) | Self::All(p) => p,
        }
    }
}

impl Loads {
    /// The shares for these priorities, highest first.
    pub(crate) fn new(
        counts: &[Counts],
        overprovisioning_percent: u32,
        panic_threshold_percent: f64,
    ) -> Self {
        let available = |some: fn(&Counts) -> usize| -> Vec<u32> {
            counts.iter().map(|c| availability(some(c), c.base(), overprovisioning_percent)).collect()
        };
        let (health, degraded) = (available(|c| c.healthy), available(|c| c.degraded));
        let (mut loads, total) = Self::by_availability(&health, &degraded);
        if !counts.is_empty() {
            loads.apply_panic(counts, total, panic_threshold_percent.min(100.0));
        }
        loads
    }

    /// The shares without these priorities; `None` if nobody else serves.
    pub(crate) fn without(
        left_out: &BTreeSet<usize>,
        counts: &[Counts],
        overprovisioning_percent: u32,
    ) -> Option<Self> {
        let available = |some: fn(&Counts) -> usize| -> Vec<u32> {
            let one = |(i, c): (usize, &Counts)| match left_out.contains(&i) {
                true => 0,
                false => availability(some(c), c.base(), overprovisioning_percent),
            };
            counts.iter().enumerate().map(one).collect()
        };
        let (health, degraded) = (available(|c| c.healthy), available(|c| c.degraded));
        let (loads, total) = Self::by_availability(&health, &degraded);
        (total > 0).then_some(loads)
    }

    /// Shares by how much of each priority is available, in percent; and the sum of that, at most 100.
    fn by_availability(health: &[u32], degraded: &[u32]) -> (Self, u32) {
        let n = health.len();
        let mut loads = Self { healthy: vec![0; n], degraded: vec![0; n], panic: vec![false; n] };
        let total = (health.iter().sum::<u32>() + degraded.iter().sum::<u32>()).min(100);
        if total > 0 {
            let (first_healthy, left) = distribute(&mut loads.healthy, health, 100, total);
            let (first_degraded, left) = distribute(&mut loads.degraded, degraded, left, total);
            // Rounding leaves a few percent: they go to the first priority that has anything.
            match (first_healthy, first_degraded) {
                (Some(i), _) => loads.healthy[i] += left,
                (None, Some(i)) => loads.degraded[i] += left,
                (None, None) => {}
            }
        }
        (loads, total)
    }

    fn apply_panic(&mut self, counts: &[Counts], total_availability: u32, threshold: f64) {
        if threshold == 0.0 && total_availability == 0 {
            // Nothing serves and panic is off: the choice must fail, at priority 0.
            self.healthy[0] = 100;
            return;
        }
        for (panic, c) in self.panic.iter_mut().zip(counts) {
            *panic = total_availability < 100 && in_panic(c, threshold);
        }
        if self.panic.iter().all(|p| *p) {
            self.spread_by_size(counts);
        }
    }

    /// Total panic: each priority gets load for its size.
    fn spread_by_size(&mut self, counts: &[Counts]) {
        self.degraded.fill(0);
        let hosts: usize = counts.iter().map(|c| c.all).sum();
        let Some(first) = counts.iter().position(|c| c.all > 0) else {
            self.healthy.fill(0);
            self.healthy[0] = 100;
            return;
        };
        let mut left = 100;
        for (load, c) in self.healthy.iter_mut().zip(counts) {
            *load = (100 * c.all / hosts) as u32;
            left -= *load;
        }
        self.healthy[first] += left;
    }

    /// Does this priority use its hosts whatever their health?
    pub(crate) fn in_panic(&self, priority: usize) -> bool {
        self.panic[priority]
    }

    /// The priority that `random` falls on; `None` without any priority.
    pub(crate) fn choose(&self, random: u64) -> Option<Source> {
        let point = (random % 100) as u32;
        let mut sum = 0;
        for (shares, is_healthy) in [(&self.healthy, true), (&self.degraded, false)] {
            for (i, share) in shares.iter().enumerate() {
                sum += share;
                if point < sum {
                    return Some(match (self.panic[i], is_healthy) {
                        (true, _) => Source::All(i),
                        (false, true) => Source::Healthy(i),
                        (false, false) => Source::Degraded(i),
                    });
                }
            }
        }
        None
    }
}

fn availability(some: usize, all: usize, overprovisioning_percent: u32) -> u32 {
    if all == 0 {
        return 0;
    }
    (u64::from(overprovisioning_percent) * some as u64 / all as u64).min(100) as u32
}

/// Gives each priority what it can take of `left`; returns the first that can take any, and what is left.
fn distribute(load: &mut [u32], available: &[u32], mut left: u32, total: u32) -> (Option<usize>, u32) {
    for (load, available) in load.iter_mut().zip(available) {
        *load = left.min(available * 100 / total);
        left -= *load;
    }
    (available.iter().position(|a| *a > 0), left)
}

/// Do too few of these hosts serve?
pub(crate) fn in_panic(c: &Counts, threshold: f64) -> bool {
    let base = c.base();
    let usable = if base == 0 { 0.0 } else { 100.0 * (c.healthy + c.degraded) as f64 / base as f64 };
    usable < threshold
}

//! Circuit breakers: how much a cluster may have open at once (`CircuitBreakers.Thresholds`).
//!
//! Counts are shared by all workers, so that a limit holds for the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::{RoutingPriority, clock};
use crate::model::cluster::{Cluster, Thresholds};
use crate::telemetry::stats::{ClusterStats, Gauge, RemainingStats};

/// The breakers of a cluster, by routing priority.
#[derive(Debug)]
pub struct Breakers([PriorityBreakers; 2]);

/// The gauges of one breaker: 1 while its limit is reached (`circuit_breakers.PRIORITY.*_open`), and what is left.
type Gauges = (fn(&ClusterStats) -> &Gauge, fn(&RemainingStats) -> &Gauge);

impl Breakers {
    pub(crate) fn new(cluster: &Cluster) -> Self {
        let [default, high] = cluster.circuit_breakers;
        Self([
            PriorityBreakers::new(
                cluster,
                default,
                [
                    (|s| &s.default_cx_open, |r| &r.default_cx),
                    (|s| &s.default_rq_pending_open, |r| &r.default_pending),
                    (|s| &s.default_rq_open, |r| &r.default_rq),
                    (|s| &s.default_rq_retry_open, |r| &r.default_retries),
                ],
            ),
            PriorityBreakers::new(
                cluster,
                high,
                [
                    (|s| &s.high_cx_open, |r| &r.high_cx),
                    (|s| &s.high_rq_pending_open, |r| &r.high_pending),
                    (|s| &s.high_rq_open, |r| &r.high_rq),
                    (|s| &s.high_rq_retry_open, |r| &r.high_retries),
                ],
            ),
        ])
    }

    /// The breakers of one routing priority.
    pub fn of(&self, priority: RoutingPriority) -> &PriorityBreakers {
        &self.0[priority as usize]
    }
}

/// The breakers of one routing priority: what is open, and how much may be.
#[derive(Debug)]
pub struct PriorityBreakers {
    pub thresholds: Thresholds,
    pub connections: Breaker,
    pub pending: Breaker,
    pub requests: Breaker,
    pub retries: Breaker,
    /// With `budget_interval`.
    begun: Option<Window>,
}

impl PriorityBreakers {
    fn new(cluster: &Cluster, thresholds: Thresholds, gauges: [Gauges; 4]) -> Self {
        let remaining = cluster.remaining_stats.as_ref().filter(|_| thresholds.track_remaining);
        let breaker = |(gauge, left): Gauges, limit: u32| {
            let remaining = remaining.map(|stats| (stats.clone(), left));
            if let Some((stats, left)) = &remaining {
                left(stats).set(limit.into());
            }
            Breaker { count: AtomicU32::new(0), stats: cluster.stats.clone(), gauge, remaining }
        };
        let [connections, pending, requests, retries] = gauges;
        let of_retries = breaker(retries, thresholds.max_retries);
        // Envoy tells nothing of what a budget leaves.
        let told = of_retries.remaining.clone().filter(|_| thresholds.retry_budget.is_none());
        Self {
            connections: breaker(connections, thresholds.max_connections),
            pending: breaker(pending, thresholds.max_pending_requests),
            requests: breaker(requests, thresholds.max_requests),
            retries: Breaker { remaining: told, ..of_retries },
            begun: thresholds.budget_interval.map(Window::new),
            thresholds,
        }
    }

    /// Takes a share of `max_requests`.
    pub(crate) fn take_request(&self) -> bool {
        let taken = self.requests.take(self.thresholds.max_requests);
        if let Some(begun) = self.begun.as_ref().filter(|_| taken) {
            begun.count(clock::now_ms());
        }
        taken
    }

    /// How many retries may be in flight now. With a retry budget that is a share of the active and
    /// pending requests, or of those that began within the budget's interval, but never less than
    /// `min_retry_concurrency`.
    pub fn max_retries(&self) -> u32 {
        match self.thresholds.retry_budget {
            None => self.thresholds.max_retries,
            Some((percent, least)) => {
                let of = match &self.begun {
                    Some(begun) => f64::from(begun.sum(clock::now_ms())),
                    None => f64::from(self.requests.count()) + f64::from(self.pending.count()),
                };
                ((percent / 100.0 * of) as u32).max(least)
            }
        }
    }
}

/// Where a breaker tells what is left.
type Remaining = (Arc<RemainingStats>, fn(&RemainingStats) -> &Gauge);

/// One count with a limit.
#[derive(Debug)]
pub struct Breaker {
    count: AtomicU32,
    stats: Arc<ClusterStats>,
    gauge: fn(&ClusterStats) -> &Gauge,
    remaining: Option<Remaining>,
}

impl Breaker {
    /// What is taken now.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// Takes one of `limit`; false when there is none left.
    pub(crate) fn take(&self, limit: u32) -> bool {
        let more = |n: u32| (n < limit).then(|| n.saturating_add(1));
        let taken = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        self.show(limit);
        taken
    }

    /// Takes one whatever the limit.
    pub(crate) fn take_over_limit(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives one back.
    pub(crate) fn give_back(&self, limit: u32) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.show(limit);
    }

    /// Writes only when the state changes, so that the gauge's cache line stays with all workers.
    fn show(&self, limit: u32) {
        let gauge = (self.gauge)(&self.stats);
        let count = self.count();
        let open = u64::from(count >= limit);
        if gauge.get() != open {
            gauge.set(open);
        }
        if let Some((stats, left)) = &self.remaining {
            left(stats).set(limit.saturating_sub(count).into());
        }
    }
}

/// In how many steps a window moves on.
const STEPS: u64 = 8;

/// How much began within the last interval, to within an eighth of it.
#[derive(Debug)]
struct Window {
    step_ms: u64,
    /// Number of the step, and what began in it.
    slots: [(AtomicU64, AtomicU32); STEPS as usize],
}

impl Window {
    fn new(interval: Duration) -> Self {
        let step_ms = (interval.as_millis() as u64).div_ceil(STEPS).max(1);
        Self { step_ms, slots: Default::default() }
    }

    fn count(&self, now_ms: u64) {
        let step = now_ms / self.step_ms;
        let (number, begun) = &self.slots[(step % STEPS) as usize];
        // Whoever comes first in a step clears what is left of the round before.
        if number.swap(step, Ordering::Relaxed) != step {
            begun.store(0, Ordering::Relaxed);
        }
        begun.fetch_add(1, Ordering::Relaxed);
    }

    fn sum(&self, now_ms: u64) -> u32 {
        let step = now_ms / self.step_ms;
        let recent = |number: &AtomicU64| number.load(Ordering::Relaxed) + STEPS > step;
        let slots = self.slots.iter().filter(|(number, _)| recent(number));
        slots.map(|(_, begun)| begun.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_forgets_what_is_older_than_its_interval() {
        let window = Window::new(Duration::from_millis(800));
        (0..10).for_each(|_| window.count(1_000));
        window.count(1_500);
        assert_eq!(window.sum(1_500), 11);
        assert_eq!(window.sum(1_799), 11);
        assert_eq!(window.sum(1_800), 1);
        assert_eq!(window.sum(10_000), 0);
        window.count(10_000);
        assert_eq!(window.sum(10_000), 1);
    }
}

//! Circuit breakers: how much a cluster may have open at once (`CircuitBreakers.Thresholds`).
//!
//! Counts are shared by all workers, so that a limit holds for the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::RoutingPriority;
use crate::model::cluster::Thresholds;
use crate::telemetry::stats::{ClusterStats, Gauge};

/// The breakers of a cluster, by routing priority.
#[derive(Debug)]
pub struct Breakers([PriorityBreakers; 2]);

impl Breakers {
    pub(crate) fn new([default, high]: [Thresholds; 2], stats: &Arc<ClusterStats>) -> Self {
        let breaker = |gauge| Breaker { count: AtomicU32::new(0), stats: stats.clone(), gauge };
        Self([
            PriorityBreakers {
                thresholds: default,
                connections: breaker(|s| &s.default_cx_open),
                pending: breaker(|s| &s.default_rq_pending_open),
                requests: breaker(|s| &s.default_rq_open),
                retries: breaker(|s| &s.default_rq_retry_open),
            },
            PriorityBreakers {
                thresholds: high,
                connections: breaker(|s| &s.high_cx_open),
                pending: breaker(|s| &s.high_rq_pending_open),
                requests: breaker(|s| &s.high_rq_open),
                retries: breaker(|s| &s.high_rq_retry_open),
            },
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
}

impl PriorityBreakers {
    /// How many retries may be in flight now. With a retry budget that is a share of the active and
    /// pending requests, but never less than `min_retry_concurrency`.
    pub fn max_retries(&self) -> u32 {
        match self.thresholds.retry_budget {
            None => self.thresholds.max_retries,
            Some((percent, least)) => {
                let active = f64::from(self.requests.count()) + f64::from(self.pending.count());
                ((percent / 100.0 * active) as u32).max(least)
            }
        }
    }
}

/// One count with a limit.
#[derive(Debug)]
pub struct Breaker {
    count: AtomicU32,
    stats: Arc<ClusterStats>,
    /// 1 while the limit is reached (`circuit_breakers.PRIORITY.*_open`).
    gauge: fn(&ClusterStats) -> &Gauge,
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
        let open = u64::from(self.count() >= limit);
        if gauge.get() != open {
            gauge.set(open);
        }
    }
}

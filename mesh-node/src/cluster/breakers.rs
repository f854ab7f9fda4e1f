//! Circuit breakers: how much a cluster may have open at once (`CircuitBreakers.Thresholds`).
//!
//! Counts are shared by all workers, so that a limit holds for the process.

use std::sync::atomic::{AtomicU32, Ordering};

use super::RoutingPriority;
use crate::model::cluster::Thresholds;

/// The breakers of a cluster, by routing priority.
#[derive(Debug)]
pub struct Breakers([PriorityBreakers; 2]);

impl Breakers {
    pub(crate) fn new(thresholds: [Thresholds; 2]) -> Self {
        Self(thresholds.map(PriorityBreakers::new))
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
    pub(crate) connections: AtomicU32,
    pub(crate) pending: AtomicU32,
    pub(crate) requests: AtomicU32,
    pub(crate) retries: AtomicU32,
}

impl PriorityBreakers {
    fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            connections: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            retries: AtomicU32::new(0),
        }
    }

    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }
    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }
    pub fn retries(&self) -> u32 {
        self.retries.load(Ordering::Relaxed)
    }

    /// How many retries may be in flight now. With a retry budget that is a share of the active and
    /// pending requests, but never less than `min_retry_concurrency`.
    pub fn max_retries(&self) -> u32 {
        match self.thresholds.retry_budget {
            None => self.thresholds.max_retries,
            Some((percent, least)) => {
                let active = f64::from(self.requests()) + f64::from(self.pending());
                ((percent / 100.0 * active) as u32).max(least)
            }
        }
    }
}

/// Takes one of `limit`; false when there is none left.
pub(crate) fn take(count: &AtomicU32, limit: u32) -> bool {
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then(|| n.saturating_add(1)))
        .is_ok()
}

/// Takes one whatever the limit.
pub(crate) fn take_over_limit(count: &AtomicU32) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// Gives one back.
pub(crate) fn give_back(count: &AtomicU32) {
    count.fetch_sub(1, Ordering::Relaxed);
}

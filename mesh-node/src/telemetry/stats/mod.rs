//! Counters, gauges and histograms under Envoy's names.
//!
//! A resource gets its handles when it is compiled; the data path only adds to atomics. Nothing here may
//! lock, allocate per event, or know what a value means.

mod custom;
mod groups;
mod histogram;
mod prometheus;
mod render;
mod shape;
mod store;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use custom::{Custom, http_tags};
pub use groups::{
    ClusterManagerStats, ClusterStats, ControlPlaneStats, FilesystemStats, HealthCheckStats, HttpStats,
    ListenerManagerStats, ListenerStats, MaglevStats, OutlierStats, RemainingStats, RingHashStats,
    ServerStats, SubscriptionStats, SubsetStats, TcpStats,
};
pub use histogram::{Histogram, Summary};
pub use prometheus::prometheus;
pub use render::{BucketMode, json, text};
pub use shape::{NamesShown, StatsShape, TagRule, TagValue};
pub use store::{Kind, Query, Sample, Store, Tags, Value};

/// A value that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn inc(&self) {
        self.add(1);
    }
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    /// Back to zero (`/reset_counters`).
    pub(super) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// A value that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge {
    value: AtomicU64,
    used: AtomicBool,
}

impl Gauge {
    pub fn inc(&self) {
        self.add(1);
    }
    pub fn add(&self, n: u64) {
        self.mark_used();
        self.value.fetch_add(n, Ordering::Relaxed);
    }
    pub fn dec(&self) {
        self.sub(1);
    }
    pub fn sub(&self, n: u64) {
        self.value.fetch_sub(n, Ordering::Relaxed);
    }
    pub fn set(&self, v: u64) {
        self.mark_used();
        self.value.store(v, Ordering::Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
    /// Was it ever written? (`?usedonly`)
    pub(super) fn used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }
    fn mark_used(&self) {
        // A read first: the line stays shared once the gauge has been used.
        if !self.used() {
            self.used.store(true, Ordering::Relaxed);
        }
    }
}

/// One counter for each response status 100 to 599; a class takes memory from its first response on.
#[derive(Debug, Default)]
pub struct ResponseCodes {
    classes: [OnceLock<Box<[Counter]>>; 5],
}

impl ResponseCodes {
    /// Counts one response; a status outside 100 to 599 is not counted.
    pub fn inc(&self, status: u16) {
        let (class, rest) = (usize::from(status / 100), usize::from(status % 100));
        if let Some(class) = class.checked_sub(1).and_then(|class| self.classes.get(class)) {
            class.get_or_init(|| (0..100).map(|_| Counter::default()).collect())[rest].inc();
        }
    }

    /// The statuses that occurred, ascending, with their counters.
    fn counters(&self) -> impl Iterator<Item = (u16, &Counter)> {
        self.classes
            .iter()
            .zip(1u16..)
            .filter_map(|(class, digit)| Some((class.get()?, digit)))
            .flat_map(|(class, digit)| class.iter().zip(digit * 100..).map(|(counter, code)| (code, counter)))
            .filter(|(_, counter)| counter.get() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_is_counted_on_its_own_and_odd_ones_do_no_harm() {
        let codes = ResponseCodes::default();
        for status in [200, 200, 204, 503, 99, 600, 0, 100] {
            codes.inc(status);
        }
        let seen: Vec<_> = codes.counters().map(|(code, counter)| (code, counter.get())).collect();
        assert_eq!(seen, [(100, 1), (200, 2), (204, 1), (503, 1)]);
    }
}

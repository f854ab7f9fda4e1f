//! What is learned of a host's health at run time, beside what its endpoint says: ejections, active checks.
//!
//! Flags are read when hosts are arranged for balancing, not per request; whoever changes one has the hosts
//! arranged again ([`super::ClusterState::health_changed`]).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::outlier::Monitor;

/// A reason to treat a host differently (Envoy: `Host::HealthFlag`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum HealthFlag {
    FailedActiveCheck = 1,
    FailedOutlierCheck = 2,
    DegradedActiveCheck = 4,
    /// Not checked yet, and to be left out of all counts until then (`ignore_new_hosts_until_first_hc`).
    PendingActiveCheck = 8,
    /// The host itself asked for it (`x-envoy-immediate-health-check-fail`).
    ExcludedByImmediateFail = 16,
    /// Beside `FailedActiveCheck`: the last check got no answer in time.
    ActiveCheckTimeout = 32,
    /// Not Envoy's: an active check of the host has ended once.
    Checked = 64,
    /// Not Envoy's: the connections of the unhealthy host have been ended
    /// (`close_connections_on_host_health_failure`).
    ConnectionsClosed = 128,
}

/// The health of a host as found out. Carried over while its address stays.
#[derive(Debug, Default)]
pub struct HostHealth {
    flags: AtomicU32,
    /// Milliseconds since [`super::clock::origin`] + 1 at which the host became healthy, for slow start; 0: not
    /// noted.
    healthy_since: AtomicU64,
    /// Made at the first result that counts, in clusters with outlier detection.
    monitor: OnceLock<Box<Monitor>>,
}

impl HostHealth {
    pub fn has(&self, flag: HealthFlag) -> bool {
        self.flags.load(Ordering::Relaxed) & flag as u32 != 0
    }

    /// True if the flag was not set before.
    pub(crate) fn set(&self, flag: HealthFlag) -> bool {
        self.flags.fetch_or(flag as u32, Ordering::Relaxed) & flag as u32 == 0
    }

    /// True if the flag was set before.
    pub(crate) fn clear(&self, flag: HealthFlag) -> bool {
        self.flags.fetch_and(!(flag as u32), Ordering::Relaxed) & flag as u32 != 0
    }

    /// Forgets what active checks found.
    pub(crate) fn forget_checks(&self) {
        let kept = HealthFlag::FailedOutlierCheck as u32 | HealthFlag::ConnectionsClosed as u32;
        self.flags.fetch_and(kept, Ordering::Relaxed);
    }

    pub(crate) fn monitor(&self) -> &Monitor {
        self.monitor.get_or_init(Box::default)
    }

    /// The monitor, if there was anything to note yet.
    pub(crate) fn known_monitor(&self) -> Option<&Monitor> {
        self.monitor.get().map(|monitor| &**monitor)
    }

    /// The host became healthy at this time.
    pub(crate) fn healthy_from(&self, ms: u64) {
        self.healthy_since.store(ms + 1, Ordering::Relaxed);
    }

    /// When the host became healthy, if that was noted.
    pub(crate) fn healthy_since(&self) -> Option<u64> {
        self.healthy_since.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Success rates of the last interval in percent, of requests and of connecting (`/clusters`); -1: not
    /// enough to judge.
    pub fn success_rates(&self) -> (f64, f64) {
        self.known_monitor().map_or((-1.0, -1.0), Monitor::success_rates)
    }
}

//! Where a cluster's endpoints are and which of them serves next: endpoint sets, resolution, load
//! balancing, circuit breakers.
//!
//! Shared by all workers; a choice takes no lock that another worker waits for. Opens no connection and
//! knows nothing of HTTP: `upstream/` connects to the host that is chosen here.

mod balance;
mod breakers;
mod checks;
mod clock;
mod consistent;
mod discovery;
mod dns;
mod edf;
mod guard;
mod health;
mod host;
mod host_set;
mod maglev;
mod manager;
mod mersenne;
mod names;
mod original_dst;
mod outlier;
mod priority;
mod random;
mod resilience;
mod ring;
mod spread;
mod state;
mod subset;
mod zone;

pub use breakers::{Breakers, PriorityBreakers};
pub use checks::{Finding, Probe, Probing};
pub use dns::{Answer, Family, Lookups, Resolve, ResolveError, SystemResolver};
pub use guard::{ConnectionGuard, PendingGuard, RequestGuard, RetryGuard};
pub use health::{HealthFlag, HostHealth};
pub use host::{Host, HostCounters, LocalityName, Outcome};
pub use manager::{ClusterManager, Removed};
pub use outlier::{Average, Report};
pub use random::{Random, ThreadRandom};
pub use spread::Spread;
pub use state::{ClusterState, LbContext, NoHost, Overflow};
pub use zone::LocalCluster;

/// Index of the routing priority in circuit breakers (`core.v3.RoutingPriority`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RoutingPriority {
    #[default]
    Default = 0,
    High = 1,
}

#[cfg(test)]
pub(crate) mod tests;

//! The compiled configuration: what the data path reads, immutable once published.
//!
//! Converters in `xds/` build these values; stages only read them, through one pointer load per
//! connection or request. Nothing here knows protobuf, does I/O, or keeps run-time state other than the
//! statistics handles that a resource writes to.

pub mod cluster;
pub mod format;
pub mod headers;
pub mod listener;
pub mod matcher;
pub mod network;
pub mod route;
pub mod tls;
pub mod workload;

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

/// A cheap, shared, immutable string.
pub type Str = Arc<str>;

/// Everything that serves, as of one configuration version.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows by one with every published snapshot; 0 is "nothing published yet".
    pub version: u64,
    /// Listeners by name, in configuration order.
    pub listeners: Vec<Arc<listener::Listener>>,
    /// Clusters by name.
    pub clusters: HashMap<Str, Arc<cluster::Cluster>, ahash::RandomState>,
}

impl Snapshot {
    /// The listener that steered connections of `direction` enter: the one with that
    /// `traffic_direction` and `use_original_dst`, or (inbound) the first with that direction.
    pub fn entry(&self, direction: listener::Direction) -> Option<&Arc<listener::Listener>> {
        let mut of_direction = self.listeners.iter().filter(|l| l.direction == direction);
        let fallback = of_direction.clone().find(|l| l.bind_to_port);
        of_direction.find(|l| l.use_original_dst).or(fallback)
    }
}

/// The published snapshot. Readers call `load()` once per connection or request.
pub type Published = Arc<ArcSwap<Snapshot>>;

//! The compiled configuration: what the data path reads, immutable once published.
//!
//! Converters in `xds/` build these values; stages only read them, through one pointer load per
//! connection or request. Nothing here knows protobuf, does I/O, or keeps run-time state other than the
//! statistics handles that a resource writes to.

pub mod cel;
pub mod cluster;
pub mod domains;
pub mod format;
pub mod hash;
pub mod header_lines;
pub mod headers;
pub mod http_filter;
pub mod listener;
pub mod lua;
pub mod matcher;
pub mod metadata;
pub mod mongo;
pub mod name_table;
pub mod network;
pub mod pod;
pub mod rate_limit;
pub mod rbac;
pub mod resilience;
pub mod route;
pub mod scopes;
pub mod source;
pub mod tls;
pub mod tracing;
pub mod workload;

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;

/// A cheap, shared, immutable string.
pub type Str = Arc<str>;

/// Dynamic metadata of a stream: by filter name, what that filter has to say.
pub type DynamicMetadata = std::collections::BTreeMap<String, serde_json::Map<String, serde_json::Value>>;

/// Everything that serves, as of one configuration version.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows by one with every published snapshot; 0 is "nothing published yet".
    pub version: u64,
    /// Listeners in configuration order.
    pub listeners: Vec<Arc<listener::Listener>>,
    /// Index into `listeners` by address, for `use_original_dst`.
    pub by_address: HashMap<SocketAddr, usize, ahash::RandomState>,
    /// Route tables that listeners name. A table is swapped in place, without a new snapshot.
    pub routes: HashMap<Str, RouteHandle, ahash::RandomState>,
    /// Scopes that listeners ask for their route tables (`scoped_rds`); swapped in place too.
    pub scopes: scopes::ScopeHandle,
    /// Clusters by name.
    pub clusters: HashMap<Str, Arc<cluster::Cluster>, ahash::RandomState>,
}

impl Snapshot {
    /// A snapshot of these resources. Of listeners with equal addresses the first is found by address.
    pub fn new(
        version: u64,
        listeners: Vec<Arc<listener::Listener>>,
        clusters: impl IntoIterator<Item = Arc<cluster::Cluster>>,
    ) -> Self {
        let mut by_address = HashMap::default();
        for (index, listener) in listeners.iter().enumerate() {
            for address in std::iter::once(&listener.address).chain(&listener.additional_addresses) {
                by_address.entry(*address).or_insert(index);
            }
        }
        let clusters = clusters.into_iter().map(|c| (c.name.clone(), c)).collect();
        Self { version, listeners, by_address, routes: HashMap::default(), scopes: Arc::default(), clusters }
    }

    /// The listener that a `use_original_dst` listener hands a connection to: `IP:port`, then the wildcard
    /// address with that port (Envoy: `ActiveTcpListener::newConnection`).
    pub fn by_original_dst(&self, original_dst: SocketAddr) -> Option<&Arc<listener::Listener>> {
        let port = original_dst.port();
        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let wildcards = if original_dst.is_ipv4() { [v4, v6] } else { [v6, v4] };
        std::iter::once(original_dst)
            .chain(wildcards)
            .find_map(|address| self.by_address.get(&address))
            .map(|&index| &self.listeners[index])
    }

    /// The listener that steered connections of `direction` enter: the one with that
    /// `traffic_direction` and `use_original_dst`, or (inbound) the first with that direction.
    pub fn entry(&self, direction: listener::Direction) -> Option<&Arc<listener::Listener>> {
        let mut of_direction = self.listeners.iter().filter(|l| l.direction == direction);
        let fallback = of_direction.clone().find(|l| l.bind_to_port);
        of_direction.find(|l| l.use_original_dst).or(fallback)
    }
}

/// A named route table, as it is now. Held by the connections that use it.
pub type RouteHandle = Arc<ArcSwap<route::RouteTable>>;

/// The published snapshot. Readers call `load()` once per connection or request.
pub type Published = Arc<ArcSwap<Snapshot>>;

//! Clusters and endpoints as configured (`envoy.config.cluster.v3`, `endpoint.v3`). What is learned at run
//! time (health, outliers, resolved addresses, load) lives in the `cluster/` stage.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::Str;
use super::metadata::Metadata;
use super::network::{Http1Options, Http2Options};
use super::resilience::{EndpointCheck, HealthCheck, OutlierDetection, ResponsePredicate};
use super::route::HashPolicy;
use super::tls::{TlsContext, UpstreamTls};
use crate::runtime::{Fraction, Setting};
use crate::telemetry::peer::Peer;
use crate::telemetry::stats::{ClusterStats, MaglevStats, RemainingStats, RingHashStats, SubsetStats};

/// A compiled `Cluster`.
#[derive(Debug)]
pub struct Cluster {
    pub name: Str,
    /// `alt_stat_name`, or the name: the `X` in `cluster.X.upstream_rq_total`.
    pub stat_name: Str,
    pub discovery: Discovery,
    /// Static endpoints, or hosts to resolve. Empty for EDS, whose endpoints come apart from the cluster.
    pub load_assignment: Arc<Assignment>,
    pub lb: LbPolicy,
    pub balancing: Balancing,
    pub outlier_detection: Option<OutlierDetection>,
    /// Which responses outlier detection takes for errors, in place of those of 5xx.
    pub error_matcher: Option<Box<ResponsePredicate>>,
    pub health_check: Option<Arc<HealthCheck>>,
    /// `common_lb_config.healthy_panic_threshold`, percent; default 50.
    pub panic_threshold_percent: f64,
    /// `common_lb_config.locality_weighted_lb_config` is set: localities share the load by their weights.
    pub locality_weighted: bool,
    /// Default 5 s.
    pub connect_timeout: Duration,
    /// `upstream_bind_config`: `source_address`, then the extra and additional ones.
    pub bind_sources: Vec<SocketAddr>,
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// In `transport_socket_matches` order; the first that matches the endpoint wins.
    pub transport_socket_matches: Vec<TransportSocketMatch>,
    pub transport_socket: Transport,
    pub protocol: UpstreamProtocol,
    pub http1: Http1Options,
    pub http2: Http2Options,
    /// `common_http_protocol_options.idle_timeout` of pooled connections; default one hour.
    pub idle_timeout: Option<Duration>,
    /// 0 is no limit.
    pub max_requests_per_connection: u32,
    pub max_stream_duration: Option<Duration>,
    pub auto_sni: bool,
    pub auto_san_validation: bool,
    /// Default and high priority.
    pub circuit_breakers: [Thresholds; 2],
    /// Where some priority has `track_remaining`.
    pub remaining_stats: Option<Arc<RemainingStats>>,
    /// Default 1 MiB.
    pub per_connection_buffer_limit_bytes: u32,
    pub close_connections_on_host_health_failure: bool,
    pub stats: Arc<ClusterStats>,
    /// What Istio says of the cluster.
    pub istio: Arc<IstioCluster>,
    /// `metadata.filter_metadata`, by namespace.
    pub metadata: Box<[(Str, Metadata)]>,
    /// Hash of the resource: an equal resource keeps its run-time state and pools.
    pub content_hash: u64,
}

/// `metadata.filter_metadata["istio"]` of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IstioCluster {
    /// The first of `services`.
    pub service: Option<IstioService>,
    /// Outside the mesh.
    pub external: bool,
    /// Told nothing of its clients (`disable_mx`).
    pub disable_mx: bool,
    /// Connections on which this ALPN protocol is agreed begin with the metadata exchange (`filters`).
    pub exchange: Option<Str>,
    /// Keeps the ALPN of its TLS context (`alpn_override: "false"`).
    pub keep_alpn: bool,
}

/// A service that a cluster is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IstioService {
    pub host: Str,
    pub name: Str,
    pub namespace: Str,
}

impl Cluster {
    /// The address that connections to `remote` come from: the first of its family, else the first of all.
    pub fn bind_source(&self, remote: SocketAddr) -> Option<SocketAddr> {
        let fits = |source: &&SocketAddr| source.is_ipv4() == remote.is_ipv4();
        self.bind_sources.iter().find(fits).or(self.bind_sources.first()).copied()
    }
}

/// `Cluster.type`.
#[derive(Debug, Clone)]
pub enum Discovery {
    Static,
    /// Endpoints come by EDS.
    Eds {
        /// `eds_cluster_config.service_name`, or the cluster's name: the name of the assignment.
        service_name: Str,
    },
    StrictDns(DnsOptions),
    LogicalDns(DnsOptions),
    /// `envoy.clusters.dynamic_forward_proxy`: whatever host the HTTP filter of that name has found.
    ForwardProxy(DnsCache),
    OriginalDst {
        /// `original_dst_lb_config.http_header_name`, when `use_http_header` is set
        /// (default `x-envoy-original-dst-host`).
        http_header: Option<http::HeaderName>,
        port_override: Option<u16>,
        /// `cleanup_interval`, default 5 s: a host not used for that long is forgotten.
        cleanup_interval: Duration,
    },
}

/// Names that requests bring (`extensions.common.dynamic_forward_proxy.v3.DnsCacheConfig`).
#[derive(Debug, Clone)]
pub struct DnsCache {
    pub name: Str,
    pub family: DnsFamily,
    /// An answer is used for so long; default 60 s.
    pub refresh: Duration,
    /// A name that nobody asks for is forgotten after that; default 300 s.
    pub host_ttl: Duration,
    /// Default 1,024.
    pub max_hosts: usize,
}

/// DNS settings of a cluster.
#[derive(Debug, Clone)]
pub struct DnsOptions {
    /// `dns_refresh_rate`, default 5 s.
    pub refresh: Duration,
    /// `dns_failure_refresh_rate`, base and maximum; `None` keeps to `refresh`.
    pub failure_refresh: Option<(Duration, Duration)>,
    /// `dns_jitter`: up to so much is added to each wait, at random.
    pub jitter: Duration,
    /// `respect_dns_ttl`.
    pub respect_ttl: bool,
    pub family: DnsFamily,
}

/// `Cluster.DnsLookupFamily`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DnsFamily {
    #[default]
    Auto,
    V4Only,
    V6Only,
    V4Preferred,
    All,
}

/// `LbPolicy`.
#[derive(Debug, Clone)]
pub enum LbPolicy {
    RoundRobin,
    LeastRequest {
        /// `choice_count`, default 2.
        choices: u32,
        /// `active_request_bias`, default 1.0: how much load counts against a host when weights differ.
        active_request_bias: Setting<f64>,
        /// `selection_method: FULL_SCAN`: the least loaded of all hosts.
        full_scan: bool,
    },
    Random,
    RingHash {
        /// `minimum_ring_size`, default 1,024.
        minimum: u64,
        /// `maximum_ring_size`, default 8 Mi.
        maximum: u64,
        function: HashFunction,
    },
    Maglev {
        /// A prime; default 65,537.
        table_size: u64,
    },
    /// Original destination.
    ClusterProvided,
}

/// `ClusterLoadAssignment`: the endpoints of a cluster. Equal ones are shared by all workloads.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    pub localities: Vec<Locality>,
    /// `policy.overprovisioning_factor`, default 140.
    pub overprovisioning_factor_percent: u32,
}

impl Default for Assignment {
    fn default() -> Self {
        Self { localities: Vec::new(), overprovisioning_factor_percent: 140 }
    }
}

impl LbPolicy {
    /// Does a request's hash choose its host?
    pub fn hashes(&self) -> bool {
        matches!(self, Self::RingHash { .. } | Self::Maglev { .. })
    }
}

/// `RingHashLbConfig.HashFunction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashFunction {
    XxHash,
    Murmur2,
}

/// What load balancing policies have beside their name (`common_lb_config`, or the policy's own message).
#[derive(Debug, Clone, Default)]
pub struct Balancing {
    pub hashing: Hashing,
    pub slow_start: Option<SlowStart>,
    /// `zone_aware_lb_config.fail_traffic_on_panic`: panic serves nobody.
    pub fail_on_panic: bool,
    /// `zone_aware_lb_config`; without it the defaults hold.
    pub zones: Option<Arc<ZoneAware>>,
    /// `lb_subset_config`.
    pub subsets: Option<Subsets>,
    /// `override_host_status`: which hosts a session may insist on.
    pub override_statuses: Statuses,
    /// With `RING_HASH`.
    pub ring_hash_stats: Option<Arc<RingHashStats>>,
    /// With `MAGLEV`.
    pub maglev_stats: Option<Arc<MaglevStats>>,
}

/// `ZoneAwareLbConfig`, for proxies that belong to a cluster (`cluster_manager.local_cluster_name`).
#[derive(Debug)]
pub struct ZoneAware {
    /// `routing_enabled`, in whole percent.
    pub routing_enabled: Setting<Fraction>,
    /// Below it zones do not matter. Envoy's default: 6.
    pub min_cluster_size: Setting<u64>,
    /// `force_local_zone.min_size`: with so many healthy hosts the own zone gets everything. 0: never.
    pub force_local: Setting<u64>,
    pub basis: LocalityBasis,
}

/// `ZoneAwareLbConfig.LocalityBasis`: what a zone's share is computed of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LocalityBasis {
    #[default]
    HealthyHosts,
    HealthyWeight,
}

impl ZoneAware {
    /// Settings that Envoy's runtime keys change.
    pub fn new(enabled_percent: u32, min_cluster_size: u64, force_local: u64, basis: LocalityBasis) -> Self {
        Self {
            routing_enabled: Setting::new((enabled_percent, 100), "upstream.zone_routing.enabled"),
            min_cluster_size: Setting::new(min_cluster_size, "upstream.zone_routing.min_cluster_size"),
            force_local: Setting::new(force_local, "upstream.zone_routing.force_local_zone.min_size"),
            basis,
        }
    }

    /// The number of healthy hosts from which on the own zone gets everything.
    pub fn forced_from(&self) -> Option<u64> {
        Some(self.force_local.now()).filter(|least| *least > 0)
    }
}

impl Balancing {
    /// How zones count.
    pub fn zones(&self) -> &ZoneAware {
        static DEFAULT: LazyLock<ZoneAware> =
            LazyLock::new(|| ZoneAware::new(100, 6, 0, LocalityBasis::HealthyHosts));
        self.zones.as_deref().unwrap_or(&DEFAULT)
    }
}

/// `SlowStartConfig`: a host that has just become healthy gets less, more and more over the window.
#[derive(Debug, Clone)]
pub struct SlowStart {
    pub window: Duration,
    /// `aggression`, above 0; 1.0 is linear, more is faster at first.
    pub aggression: Setting<f64>,
    /// `min_weight_percent` as a fraction.
    pub least: f64,
}

/// `ConsistentHashingLbConfig`.
#[derive(Debug, Clone, Default)]
pub struct Hashing {
    pub use_hostname: bool,
    /// `hash_balance_factor`, percent of the average load that a host takes; 0: any.
    pub balance_factor: u32,
    /// Count instead of the route's, if there are any.
    pub policies: Vec<HashPolicy>,
}

/// `LocalityLbEndpoints`.
#[derive(Debug, Clone, PartialEq)]
pub struct Locality {
    pub region: Str,
    pub zone: Str,
    pub sub_zone: Str,
    pub priority: u32,
    /// 0: no locality weight given.
    pub weight: u32,
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// `LbEndpoint`.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    pub address: EndpointAddress,
    /// `Endpoint.hostname`.
    pub hostname: Option<Str>,
    /// At least 1.
    pub weight: u32,
    pub health: HealthStatus,
    /// `metadata.filter_metadata["istio"].workload`.
    pub peer: Option<Arc<Peer>>,
    /// `metadata.filter_metadata["envoy.transport_socket_match"]`, string values.
    pub transport_match: Vec<(String, String)>,
    /// `metadata.filter_metadata["envoy.lb"]`.
    pub lb_metadata: Metadata,
    /// All other `metadata.filter_metadata`, by namespace.
    pub metadata: Box<[(Str, Metadata)]>,
    /// `health_check_config`.
    pub check: Option<Box<EndpointCheck>>,
    /// `Endpoint.additional_addresses`: tried where a connection to the first does not come about.
    pub additional: Vec<SocketAddr>,
}

/// An endpoint's address: ready, or a host to resolve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointAddress {
    Socket(SocketAddr),
    Host(Str, u16),
}

/// `core.v3.HealthStatus`, as far as balancing cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthStatus {
    Healthy,
    Degraded,
    Unhealthy,
    Draining,
}

/// `LbSubsetConfig`: requests may ask for hosts with certain metadata.
#[derive(Debug, Clone)]
pub struct Subsets {
    /// For requests that ask for nothing, or for what there is not.
    pub fallback: Fallback,
    pub default_subset: Metadata,
    pub selectors: Vec<SubsetSelector>,
    /// Localities keep their weights within a subset.
    pub locality_weight_aware: bool,
    /// Where the fallback has no host either, any will do.
    pub panic_mode_any: bool,
    /// A host with a list has each of its values.
    pub list_as_any: bool,
    /// Of what a request asks for, only the keys of the first selector that fits count.
    pub allow_redundant_keys: bool,
    pub stats: Arc<SubsetStats>,
}

/// `LbSubsetFallbackPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    None,
    Any,
    Default,
}

/// `LbSubsetSelector`: hosts can be asked for by these keys together.
#[derive(Debug, Clone)]
pub struct SubsetSelector {
    /// Sorted.
    pub keys: Vec<Str>,
    pub fallback: SelectorFallback,
}

/// `LbSubsetSelectorFallbackPolicy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SelectorFallback {
    /// The cluster's.
    NotDefined,
    None,
    Any,
    Default,
    /// What the request asks for of these keys.
    Keys(Vec<Str>),
}

/// A set of [`HealthStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statuses(u8);

impl Statuses {
    pub fn has(self, status: HealthStatus) -> bool {
        self.0 & 1 << status as u8 != 0
    }
}

impl FromIterator<HealthStatus> for Statuses {
    fn from_iter<T: IntoIterator<Item = HealthStatus>>(statuses: T) -> Self {
        Self(statuses.into_iter().fold(0, |set, status| set | 1 << status as u8))
    }
}

impl Default for Statuses {
    /// What Envoy has where nothing is said: UNKNOWN, HEALTHY and DEGRADED.
    fn default() -> Self {
        [HealthStatus::Healthy, HealthStatus::Degraded].into_iter().collect()
    }
}

/// `TransportSocketMatch`: all pairs must be in the endpoint's metadata.
#[derive(Debug, Clone)]
pub struct TransportSocketMatch {
    pub name: Str,
    pub matches: Vec<(String, String)>,
    pub transport: Transport,
}

/// How bytes travel to an endpoint.
#[derive(Debug, Clone)]
pub enum Transport {
    Raw,
    Tls(TlsContext<UpstreamTls>),
    /// A line or header that names the client comes first (`ProxyProtocolUpstreamTransport`).
    Proxied(ProxyHeader, Box<Transport>),
}

/// `ProxyProtocolConfig.Version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    V1,
    V2,
}

impl Transport {
    pub fn is_tls(&self) -> bool {
        match self {
            Self::Raw => false,
            Self::Tls(_) => true,
            Self::Proxied(_, inner) => inner.is_tls(),
        }
    }
}

/// Which HTTP version a cluster speaks (`HttpProtocolOptions`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamProtocol {
    Http1,
    Http2,
    /// `use_downstream_protocol_config`.
    Downstream,
    /// `auto_config`: by ALPN.
    Auto,
}

/// `core.v3.TcpKeepalive`.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}

/// `CircuitBreakers.Thresholds` of one priority. Envoy's defaults are 1,024 each and 3 retries.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
    /// Percent of active requests, and the least number of retries always allowed.
    pub retry_budget: Option<(f64, u32)>,
    /// `retry_budget.budget_interval`: the budget is of the requests that began within this time, ended or not.
    pub budget_interval: Option<Duration>,
    /// `per_host_thresholds` of the same priority.
    pub max_connections_per_host: Option<u32>,
    /// `track_remaining`: gauges say how much is left.
    pub track_remaining: bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
            budget_interval: None,
            max_connections_per_host: None,
            track_remaining: false,
        }
    }
}

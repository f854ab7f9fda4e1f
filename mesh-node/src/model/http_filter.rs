//! HTTP filters as configured: a closed set, each compiled when configuration changes, and what routes say to
//! them (`typed_per_filter_config`).

use std::sync::Arc;
use std::time::Duration;

use super::Str;
use super::cluster::DnsCache;
use super::format::Format;
use super::headers::HeaderAdd;
use super::lua::{LuaFilter, LuaOfRoute};
use super::matcher::{HeaderMatcher, StringMatcher};
use super::network::RouterFilter;
use super::rate_limit::LocalRateLimit;
use super::rbac::{HttpRbac, RbacStats};
use crate::runtime::{Fraction, Setting};
use crate::telemetry::stats::{Counter, Custom, Gauge};

/// One entry of `http_filters`.
#[derive(Debug, Clone)]
pub struct HttpFilter {
    /// What `typed_per_filter_config` calls it.
    pub name: Str,
    /// Off unless a route turns it on.
    pub disabled: bool,
    pub kind: HttpFilterKind,
}

/// A compiled HTTP filter. A filter that is not here rejects its listener by name.
#[derive(Debug, Clone)]
pub enum HttpFilterKind {
    Router(Arc<RouterFilter>),
    /// The policy is the route's.
    Cors(Arc<CorsStats>),
    Fault(Arc<Fault>, Arc<FaultStats>),
    Rbac(Arc<HttpRbac>, RbacStats),
    LocalRateLimit(Arc<LocalRateLimit>),
    Alpn(Arc<Alpn>),
    PeerMetadata(Arc<PeerMetadata>),
    IstioStats(Arc<IstioStats>),
    /// Counts the messages of gRPC streams.
    GrpcStats,
    GrpcWeb,
    HeaderMutation(Arc<HeaderMutation>),
    Buffer(Buffer),
    Csrf(Arc<Csrf>, CsrfStats),
    /// What it keeps is the route's.
    StatefulSession(Option<Arc<StatefulSession>>),
    HeaderToMetadata(Arc<HeaderToMetadata>),
    SetMetadata(Arc<Vec<SetMetadata>>),
    SetFilterState(Arc<SetFilterStates>),
    HealthCheck(Arc<HealthCheck>),
    /// `dynamic_forward_proxy`
    ForwardProxy(DnsCache),
    Compressor(Arc<Compressor>),
    Decompressor(Arc<Decompressor>),
    Lua(Arc<LuaFilter>),
}

/// Which host a route's requests are forwarded to, in place of their own.
#[derive(Debug, Clone)]
pub enum ForwardTo {
    Literal(String),
    /// Where the request has this header.
    Header(http::HeaderName),
}

/// What one level of a route table says to filters, by the filter's name.
pub type Overrides = Vec<(Str, Override)>;

/// What a route says to one filter.
#[derive(Debug, Clone)]
pub enum Override {
    /// `FilterConfig.disabled`: true turns it off, false on.
    Disabled(bool),
    Cors(Arc<CorsPolicy>),
    Fault(Arc<Fault>),
    /// `None`: without rules, everything passes.
    Rbac(Option<Arc<HttpRbac>>),
    LocalRateLimit(Arc<LocalRateLimit>),
    HeaderMutation(Arc<HeaderMutation>),
    Buffer(Buffer),
    Csrf(Arc<Csrf>),
    StatefulSession(Arc<StatefulSession>),
    SetFilterState(Arc<SetFilterStates>),
    /// A message that only says that there is nothing to say.
    Nothing,
    ForwardTo(ForwardTo),
    Lua(Arc<LuaOfRoute>),
    /// `CompressorOverrides`; `responses`: they are compressed in any case.
    Compressor {
        responses: bool,
        remove_accept_encoding: Option<bool>,
        encoder: Option<Arc<Encoder>>,
    },
}

/// `envoy.extensions.filters.http.compressor.v3.Compressor`.
#[derive(Debug)]
pub struct Compressor {
    pub encoder: Arc<Encoder>,
    /// Of codings that the client likes equally this one is taken.
    pub choose_first: bool,
    pub response: CompressorResponses,
    /// `None`: requests stay as they are.
    pub request: Option<CompressorDirection>,
}

/// `compressor_library`: how bodies are compressed.
#[derive(Debug)]
pub enum Encoder {
    Gzip {
        /// 1 to 9; 0: the library's own choice.
        level: u32,
    },
    Brotli {
        /// 0 to 11.
        quality: i32,
        mode: BrotliMode,
        window_bits: i32,
        block_bits: i32,
        no_literal_context: bool,
    },
    Zstd {
        level: i32,
        checksum: bool,
        /// 1 to 9; 0: the level's own.
        strategy: u32,
        dictionary: Box<[u8]>,
    },
}

/// `Brotli.EncoderMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrotliMode {
    Generic,
    Text,
    Font,
}

impl Encoder {
    /// The name of the content coding.
    pub fn coding(&self) -> &'static str {
        match self {
            Self::Gzip { .. } => "gzip",
            Self::Brotli { .. } => "br",
            Self::Zstd { .. } => "zstd",
        }
    }
}

/// `envoy.extensions.filters.http.decompressor.v3.Decompressor`.
#[derive(Debug)]
pub struct Decompressor {
    pub decoder: Decoder,
    pub request: DecompressorDirection,
    pub response: DecompressorDirection,
    /// `advertise_accept_encoding`: upstreams are told that the coding may be used.
    pub advertise: bool,
    pub trailers: Arc<TrailerNames>,
}

/// `CommonDirectionConfig` of the decompressor.
#[derive(Debug)]
pub struct DecompressorDirection {
    pub enabled: Setting<bool>,
    pub ignore_no_transform: bool,
    pub stats: Arc<CodingStats>,
}

/// `decompressor_library`.
#[derive(Debug)]
pub enum Decoder {
    Gzip {
        /// `max_inflate_ratio`
        most_times: usize,
    },
    Brotli,
    Zstd {
        dictionary: Box<[u8]>,
    },
}

impl Decoder {
    /// The name of the content coding.
    pub fn coding(&self) -> &'static str {
        match self {
            Self::Gzip { .. } => "gzip",
            Self::Brotli => "br",
            Self::Zstd { .. } => "zstd",
        }
    }

    /// How many times as much may come out as went in.
    pub fn most_times(&self) -> usize {
        match self {
            Self::Gzip { most_times } => *most_times,
            // Envoy's, of brotli.
            Self::Brotli | Self::Zstd { .. } => 100,
        }
    }
}

/// The trailers in which a decompressor says how many bytes there were.
#[derive(Debug)]
pub struct TrailerNames {
    pub compressed: http::HeaderName,
    pub uncompressed: http::HeaderName,
}

/// `http.PREFIX.compressor.NAME.CODING.*` and those of decompressors.
#[derive(Debug, Default)]
pub struct CodingStats {
    /// `compressed`, or `decompressed`.
    pub coded: Arc<Counter>,
    /// `not_compressed`, or `not_decompressed`.
    pub not_coded: Arc<Counter>,
    pub total_uncompressed_bytes: Arc<Counter>,
    pub total_compressed_bytes: Arc<Counter>,
}

/// `ResponseDirectionConfig`.
#[derive(Debug)]
pub struct CompressorResponses {
    pub common: CompressorDirection,
    pub disable_on_etag: bool,
    pub weaken_etag: bool,
    pub remove_accept_encoding: bool,
    pub uncompressible: std::collections::BTreeSet<u32>,
}

/// `CommonDirectionConfig`.
#[derive(Debug)]
pub struct CompressorDirection {
    pub enabled: Setting<bool>,
    pub minimum_bytes: u64,
    /// Lower case; empty: Envoy's default types.
    pub content_types: Vec<String>,
    /// In place of `content_types`, where there are any.
    pub content_type_matchers: Vec<StringMatcher>,
    pub stats: Arc<CodingStats>,
}

/// `envoy.extensions.filters.http.cors.v3.CorsPolicy`.
#[derive(Debug, Default)]
pub struct CorsPolicy {
    pub allow_origins: Vec<StringMatcher>,
    pub allow_methods: String,
    pub allow_headers: String,
    pub expose_headers: String,
    pub max_age: String,
    pub allow_credentials: Option<bool>,
    pub allow_private_network: Option<bool>,
    /// Default true.
    pub forward_not_matching_preflights: Option<bool>,
    /// `None`: always.
    pub enabled: Option<Setting<Fraction>>,
    /// Counted only.
    pub shadow_enabled: Option<Setting<Fraction>>,
}

/// `http.PREFIX.cors.*`
#[derive(Debug)]
pub struct CorsStats {
    pub origin_valid: Arc<Counter>,
    pub origin_invalid: Arc<Counter>,
}

/// `envoy.extensions.filters.http.fault.v3.HTTPFault`.
#[derive(Debug)]
pub struct Fault {
    pub delay: Option<Delay>,
    pub abort: Option<Abort>,
    /// `response_rate_limit`
    pub rate_limit: Option<RateLimit>,
    /// Faults only requests to this cluster, if given.
    pub upstream_cluster: Option<Str>,
    /// Values of `x-envoy-downstream-service-node`; empty: any.
    pub downstream_nodes: Vec<Str>,
    pub headers: Vec<HeaderMatcher>,
    /// `u64::MAX`: no limit.
    pub max_active: Setting<u64>,
    pub disable_downstream_cluster_stats: bool,
}

/// `FaultDelay`.
#[derive(Debug)]
pub struct Delay {
    /// Milliseconds. `None`: as the request's header says (`header_delay`).
    pub fixed: Option<Setting<u64>>,
    pub share: Setting<Fraction>,
}

/// `FaultAbort`.
#[derive(Debug)]
pub struct Abort {
    pub with: AbortWith,
    pub share: Setting<Fraction>,
}

/// What an aborted request is answered with.
#[derive(Debug, Clone, PartialEq)]
pub enum AbortWith {
    Http(Setting<u64>),
    Grpc(Setting<u64>),
    /// As the request's headers say (`header_abort`).
    Header,
}

/// `FaultRateLimit`.
#[derive(Debug)]
pub struct RateLimit {
    /// `None`: as the request's header says.
    pub kib_per_second: Option<u64>,
    pub share: Setting<Fraction>,
}

/// `http.PREFIX.fault.*`
#[derive(Debug)]
pub struct FaultStats {
    pub delays_injected: Arc<Counter>,
    pub aborts_injected: Arc<Counter>,
    pub response_rl_injected: Arc<Counter>,
    pub faults_overflow: Arc<Counter>,
    pub active_faults: Arc<Gauge>,
}

/// `istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`: what is offered to TLS upstreams, by the
/// protocol that will be spoken.
#[derive(Debug, Default)]
pub struct Alpn {
    pub http10: Option<AlpnList>,
    pub http11: Option<AlpnList>,
    pub http2: Option<AlpnList>,
}

/// Protocols in order of preference.
pub type AlpnList = Arc<Vec<Vec<u8>>>;

/// `io.istio.http.peer_metadata.Config`.
#[derive(Debug, Default)]
pub struct PeerMetadata {
    /// Learn of the client from request headers.
    pub discover_downstream: bool,
    /// Learn of the server from response headers.
    pub discover_upstream: bool,
    /// Tell the client, in response headers, if it told us.
    pub tell_downstream: bool,
    /// Tell the server, in request headers.
    pub tell_upstream: bool,
    /// Tell no server that is outside the mesh.
    pub skip_external: bool,
    /// Learn of the client from `baggage`.
    pub discover_baggage: bool,
    /// Tell the client by `baggage`, if it told us.
    pub tell_baggage: bool,
    pub labels: Vec<String>,
}

/// `stats.PluginConfig`, of an HTTP or a TCP filter chain.
#[derive(Debug)]
pub struct IstioStats {
    pub reporter: Reporter,
    pub disable_host_header_fallback: bool,
    /// Between reports of a TCP connection that goes on; default 5 s.
    pub tcp_reporting: Duration,
    /// In configuration order.
    pub overrides: Vec<MetricOverride>,
    /// Where the metrics are.
    pub custom: Arc<Custom>,
}

impl IstioStats {
    /// Do labels depend on what no key of a cache holds?
    pub fn computes_labels(&self) -> bool {
        self.overrides.iter().any(|o| o.dimensions.iter().any(|(_, value)| value.literal().is_none()))
    }
}

/// Which end reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    Source,
    Destination,
    /// A gateway for a set of workloads (`SERVER_GATEWAY`).
    Waypoint,
}

/// `stats.MetricConfig`.
#[derive(Debug, Default)]
pub struct MetricOverride {
    /// Without `istio_`; empty: all metrics.
    pub metric: String,
    pub drop: bool,
    pub remove: Vec<String>,
    /// Sorted by name.
    pub dimensions: Vec<(String, Dimension)>,
}

/// The value of a dimension: the part of CEL that labels are written in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dimension {
    Literal(String),
    RequestHost,
    RequestMethod,
    RequestPath,
    RequestUrlPath,
    RequestScheme,
    RequestProtocol,
    RequestHeader(http::HeaderName),
    ResponseCode,
    ResponseHeader(http::HeaderName),
    DestinationPort,
    SourceAddress,
    DestinationAddress,
    ClusterName,
    RouteName,
    RequestedServerName,
    /// A label of the other end.
    PeerLabel(String),
}

impl Dimension {
    pub fn literal(&self) -> Option<&str> {
        match self {
            Self::Literal(text) => Some(text),
            _ => None,
        }
    }
}

/// `envoy.extensions.filters.http.header_mutation.v3.Mutations`.
#[derive(Debug, Default)]
pub struct HeaderMutation {
    pub request: Vec<Mutation>,
    pub response: Vec<Mutation>,
    /// With overrides at several levels: the most specific is applied last.
    pub most_specific_wins: bool,
}

/// `HeaderMutation` of the common mutation rules.
#[derive(Debug, Clone)]
pub enum Mutation {
    Remove(http::HeaderName),
    Append(HeaderAdd),
}

/// `envoy.extensions.filters.http.buffer.v3.Buffer`; 0 bytes: do not buffer.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    pub max_request_bytes: usize,
}

/// `envoy.extensions.filters.http.csrf.v3.CsrfPolicy`.
#[derive(Debug)]
pub struct Csrf {
    pub enabled: Setting<Fraction>,
    pub shadow_enabled: Option<Setting<Fraction>>,
    pub additional_origins: Vec<StringMatcher>,
}

/// `http.PREFIX.csrf.*`
#[derive(Debug, Clone)]
pub struct CsrfStats {
    pub missing_source_origin: Arc<Counter>,
    pub request_invalid: Arc<Counter>,
    pub request_valid: Arc<Counter>,
}

/// `envoy.extensions.filters.http.stateful_session.v3`.
#[derive(Debug)]
pub struct StatefulSession {
    /// `None`: disabled.
    pub state: Option<SessionState>,
    /// Answer 503 instead of choosing another host.
    pub strict: bool,
}

/// Where the host of a session is kept.
#[derive(Debug)]
pub enum SessionState {
    Cookie { name: String, path: String, ttl: Option<Duration>, attributes: String },
    Header(http::HeaderName),
}

/// `envoy.extensions.filters.http.header_to_metadata.v3.Config`.
#[derive(Debug, Default)]
pub struct HeaderToMetadata {
    pub request: Vec<HeaderRule>,
    pub response: Vec<HeaderRule>,
}

/// `Config.Rule`.
#[derive(Debug)]
pub struct HeaderRule {
    pub from: HeaderSource,
    pub present: Option<MetadataTarget>,
    pub missing: Option<MetadataTarget>,
    pub remove: bool,
}

/// Where a rule reads.
#[derive(Debug)]
pub enum HeaderSource {
    Header(http::HeaderName),
    Cookie(String),
}

/// `Config.KeyValuePair`.
#[derive(Debug)]
pub struct MetadataTarget {
    pub namespace: String,
    pub key: String,
    /// Empty: the header's.
    pub value: String,
    pub rewrite: Option<(regex::Regex, String)>,
    pub kind: MetadataKind,
    pub base64: bool,
}

/// `Config.ValueType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataKind {
    String,
    Number,
    Struct,
}

/// An entry of `envoy.extensions.filters.http.set_metadata.v3.Config`.
#[derive(Debug)]
pub struct SetMetadata {
    pub namespace: String,
    pub value: serde_json::Map<String, serde_json::Value>,
    pub allow_overwrite: bool,
}

/// `envoy.extensions.filters.http.set_filter_state.v3.Config`.
#[derive(Debug)]
pub struct SetFilterStates {
    pub entries: Vec<SetFilterState>,
    /// The route is chosen anew afterwards.
    pub clear_route_cache: bool,
}

/// An entry of `on_request_headers` (`envoy.extensions.filters.http.set_filter_state.v3.Config`).
#[derive(Debug)]
pub struct SetFilterState {
    pub key: String,
    pub value: Format,
    pub read_only: bool,
    pub skip_if_empty: bool,
}

/// `envoy.extensions.filters.http.health_check.v3.HealthCheck` that answers itself.
#[derive(Debug)]
pub struct HealthCheck {
    pub headers: Vec<HeaderMatcher>,
}

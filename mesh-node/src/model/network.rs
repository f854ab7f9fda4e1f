//! Network filters: a closed set, compiled when configuration changes.

use std::sync::Arc;
use std::time::Duration;

use super::Str;
use super::cluster::DnsCache;
use super::format::Format;
use super::headers::HeaderAdd;
use super::http_filter::{HttpFilter, IstioStats};
use super::metadata::Metadata;
use super::mongo::MongoProxy;
use super::rate_limit::TokenBucket;
use super::rbac::{HttpRbac, RbacStats};
use super::route::RouteTable;
use super::scopes::ScopedRoutes;
use super::tracing::{RequestIds, Tracing};
use crate::runtime::Setting;
use crate::telemetry::access_log::{AccessLog, LogFormat};
use crate::telemetry::log_filter::LogFilter;
use crate::telemetry::stats::{Counter, Gauge, HttpStats, TcpStats};

/// A compiled network filter. A filter that is not here rejects its listener by name.
#[derive(Debug, Clone)]
pub enum NetworkFilter {
    Rbac(Arc<NetworkRbac>),
    LocalRateLimit(Arc<ConnectionRateLimit>),
    ConnectionLimit(Arc<ConnectionLimit>),
    MetadataExchange(Arc<MetadataExchange>),
    IstioStats(Arc<IstioStats>),
    /// Only listens.
    MongoProxy(Arc<MongoProxy>),
    /// The server name names the cluster of the TCP proxy.
    SniCluster,
    /// The server name is looked up, and is the host that the TCP proxy connects to.
    SniForwardProxy(Arc<SniForwardProxy>),
    TcpProxy(Arc<TcpProxy>),
    HttpConnectionManager(Arc<HttpConnectionManager>),
}

/// `envoy.extensions.filters.network.rbac.v3.RBAC`.
#[derive(Debug)]
pub struct NetworkRbac {
    pub rbac: HttpRbac,
    /// How long a denied connection is left open.
    pub delay_deny: Option<Duration>,
    pub stats: RbacStats,
}

/// `envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit`.
#[derive(Debug)]
pub struct ConnectionRateLimit {
    /// `runtime_enabled`
    pub enabled: Setting<bool>,
    pub bucket: TokenBucket,
    /// `local_rate_limit.PREFIX.rate_limited`
    pub rate_limited: Arc<Counter>,
}

/// `envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit`.
#[derive(Debug)]
pub struct ConnectionLimit {
    /// `runtime_enabled`
    pub enabled: Setting<bool>,
    pub max: u64,
    /// How long a connection over the limit is left open.
    pub delay: Option<Duration>,
    /// `connection_limit.PREFIX.active_connections`, which is what is limited.
    pub active: Arc<Gauge>,
    /// `connection_limit.PREFIX.limited_connections`
    pub limited: Arc<Counter>,
}

/// `envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig`.
#[derive(Debug)]
pub struct SniForwardProxy {
    pub cache: DnsCache,
    /// Of the host; default 443.
    pub port: u16,
}

/// `envoy.tcp.metadataexchange.config.MetadataExchange`.
#[derive(Debug)]
pub struct MetadataExchange {
    /// The ALPN protocol by which both ends agree on the exchange.
    pub protocol: Str,
}

/// `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`.
#[derive(Debug)]
pub struct TcpProxy {
    pub stat_prefix: Str,
    pub cluster: TcpClusters,
    /// `None` is no timeout (`0s`). Envoy's default is one hour.
    pub idle_timeout: Option<Duration>,
    pub max_downstream_connection_duration: Option<Duration>,
    /// At least 1.
    pub max_connect_attempts: u32,
    /// `tunneling_config`
    pub tunnel: Option<Box<Tunnel>>,
    /// `hash_policy` with `source_ip`: clusters that hash choose by the client's address.
    pub hash_source_ip: bool,
    /// `metadata_match.filter_metadata["envoy.lb"]`.
    pub metadata_match: Option<Metadata>,
    pub access_log: Vec<Arc<AccessLog>>,
    pub stats: Arc<TcpStats>,
}

/// `TcpProxy.TunnelingConfig`: connections go inside HTTP requests.
#[derive(Debug)]
pub struct Tunnel {
    /// `hostname`: where the proxy behind is to connect to.
    pub host: Format,
    /// The path of a POST; `None`: by CONNECT.
    pub post_path: Option<String>,
    pub headers: Vec<HeaderAdd>,
}

/// Where a TCP proxy sends connections.
#[derive(Debug)]
pub enum TcpClusters {
    Single(Str),
    /// Cluster and weight; the sum of weights is at least 1.
    Weighted {
        clusters: Vec<(Str, u32)>,
        total: u32,
    },
}

/// `HttpConnectionManager.codec_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Auto,
    Http1,
    Http2,
}

/// `HttpConnectionManager` (`envoy.extensions.filters.network.http_connection_manager.v3`).
/// A `None` timeout is "no limit"; Envoy's defaults are applied by the converter.
#[derive(Debug)]
pub struct HttpConnectionManager {
    pub stat_prefix: Str,
    pub codec: Codec,
    pub routes: RouteSource,
    /// The last one is the router, and the only one.
    pub http_filters: Vec<HttpFilter>,
    /// `server_name`; default `envoy`.
    pub server_name: Str,
    pub server_header: ServerHeader,
    pub use_remote_address: bool,
    pub xff_num_trusted_hops: u32,
    pub skip_xff_append: bool,
    /// `internal_address_config.cidr_ranges`; by default no address is internal.
    pub internal_cidrs: Vec<super::listener::Cidr>,
    pub via: Option<Str>,
    pub generate_request_id: bool,
    pub preserve_external_request_id: bool,
    pub append_x_forwarded_port: bool,
    pub always_set_request_id_in_response: bool,
    /// Default 5 minutes.
    pub stream_idle_timeout: Option<Duration>,
    pub request_timeout: Option<Duration>,
    pub request_headers_timeout: Option<Duration>,
    /// Default 5 s.
    pub drain_timeout: Duration,
    /// Default 1 s.
    pub delayed_close_timeout: Option<Duration>,
    /// `common_http_protocol_options.idle_timeout`; default one hour.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    pub max_stream_duration: Option<Duration>,
    /// 0 is no limit.
    pub max_requests_per_connection: u32,
    /// Default 100.
    pub max_headers_count: u32,
    pub underscores: UnderscoresAction,
    /// Default 60.
    pub max_request_headers_kib: u32,
    pub http1: Http1Options,
    pub http2: Http2Options,
    /// Lower-case upgrade types that are allowed (`websocket`, `connect`), unless a route says otherwise.
    pub upgrades: Vec<(Str, bool)>,
    pub normalize_path: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
    pub strip_any_host_port: bool,
    pub strip_matching_host_port: bool,
    pub forward_client_cert: ForwardClientCert,
    pub set_client_cert: ClientCertDetails,
    pub proxy_100_continue: bool,
    pub tracing: Option<Arc<Tracing>>,
    /// `request_id_extension`
    pub request_ids: RequestIds,
    pub access_log: Vec<Arc<AccessLog>>,
    /// `local_reply_config`
    pub local_replies: Option<Arc<LocalReplies>>,
    pub stats: Arc<HttpStats>,
}

/// `LocalReplyConfig`: what becomes of the answers that the proxy gives itself.
#[derive(Debug)]
pub struct LocalReplies {
    /// The first whose filter wants the stream counts.
    pub mappers: Vec<ReplyMapper>,
    /// In place of the answer's own text, where the mapper has no other.
    pub body_format: Option<BodyFormat>,
}

/// `ResponseMapper`.
#[derive(Debug)]
pub struct ReplyMapper {
    pub filter: LogFilter,
    pub status: Option<u16>,
    pub body: Option<String>,
    pub body_format: Option<BodyFormat>,
    pub headers: Vec<HeaderAdd>,
}

/// `SubstitutionFormatString` of a body.
#[derive(Debug, Clone)]
pub struct BodyFormat {
    pub format: LogFormat,
    pub content_type: http::HeaderValue,
}

/// Where the routes of a connection manager are (`route_specifier`).
#[derive(Debug, Clone)]
pub enum RouteSource {
    Inline(Arc<RouteTable>),
    /// The name of a table that comes apart from the listener (`rds`): `Snapshot::routes` has it.
    Named(Str),
    /// A table for each scope of requests (`scoped_routes`).
    Scoped(Arc<ScopedRoutes>),
}

impl Default for RouteSource {
    fn default() -> Self {
        Self::Inline(Arc::default())
    }
}

/// `server_header_transformation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerHeader {
    #[default]
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

/// `HttpProtocolOptions.HeadersWithUnderscoresAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnderscoresAction {
    #[default]
    Allow,
    RejectRequest,
    DropHeader,
}

/// `path_with_escaped_slashes_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapedSlashes {
    #[default]
    KeepUnchanged,
    RejectRequest,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

/// `forward_client_cert_details`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardClientCert {
    #[default]
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

/// `set_current_client_cert_details`.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientCertDetails {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
}

/// `Http1ProtocolOptions`, of a listener or of a cluster.
#[derive(Debug, Clone, Default)]
pub struct Http1Options {
    pub accept_http_10: bool,
    pub default_host_for_http_10: Option<Str>,
    pub allow_absolute_url: bool,
    /// Write header names as `Proper-Case`.
    pub proper_case: bool,
    /// Remember header names as they came, for whoever writes the message on.
    pub keep_case: Option<KeepCase>,
    pub enable_trailers: bool,
    pub allow_chunked_length: bool,
}

/// `PreserveCaseFormatterConfig`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeepCase {
    /// `formatter_type_on_envoy_headers: PROPER_CASE`
    pub proper_rest: bool,
}

/// `Http2ProtocolOptions`, of a listener or of a cluster.
#[derive(Debug, Clone)]
pub struct Http2Options {
    pub max_concurrent_streams: u32,
    pub initial_stream_window_bytes: u32,
    pub initial_connection_window_bytes: u32,
    /// Interval and timeout of keepalive PINGs.
    pub keepalive: Option<(Duration, Duration)>,
    pub allow_connect: bool,
}

impl Default for Http2Options {
    /// Envoy 1.40's defaults: 1,024 streams, 16 MiB stream window, 24 MiB connection window.
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            initial_stream_window_bytes: 16 << 20,
            initial_connection_window_bytes: 24 << 20,
            keepalive: None,
            allow_connect: false,
        }
    }
}

/// `envoy.extensions.filters.http.router.v3.Router`.
#[derive(Debug, Default)]
pub struct RouterFilter {
    pub suppress_envoy_headers: bool,
    pub upstream_log: Vec<Arc<AccessLog>>,
}

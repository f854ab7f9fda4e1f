//! Route tables (`envoy.config.route.v3`). The router is pure: it reads this and a request head.

use std::sync::Arc;
use std::time::Duration;

use regex::Regex;

use super::Str;
use super::domains::Domains;
use super::headers::HeaderMutations;
use super::http_filter::Overrides;
use super::matcher::{HeaderKey, HeaderMatcher, QueryMatcher, StringMatcher};
use super::metadata::Metadata;
use super::network::BodyFormat;
use super::rate_limit::DescriptorAction;
use super::rbac::MetadataMatcher;
use super::tracing::{Decorator, RouteTracing};
use crate::runtime::{Fraction, Setting};

/// A `RouteConfiguration`.
#[derive(Debug, Default)]
pub struct RouteTable {
    pub name: Str,
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// Indexes `virtual_hosts`.
    pub domains: Domains,
    pub headers: HeaderMutations,
    /// `typed_per_filter_config`
    pub filters: Overrides,
    /// Request headers of these names (lower case) are removed from internal-only use.
    pub internal_only_headers: Vec<Str>,
    pub ignore_port_in_host_matching: bool,
    pub most_specific_header_mutations_wins: bool,
}

impl RouteTable {
    /// Calls `f` with the name of each cluster that its routes name.
    pub fn for_each_cluster(&self, f: &mut dyn FnMut(&Str)) {
        for route in self.virtual_hosts.iter().flat_map(|host| &host.routes) {
            let Action::Forward(forward) = &route.action else { continue };
            match &forward.cluster {
                ClusterChoice::Single(name) => f(name),
                ClusterChoice::Weighted { clusters, .. } => clusters.iter().for_each(|c| f(&c.name)),
                ClusterChoice::Header(_) => {}
            }
            forward.mirrors.iter().filter(|mirror| mirror.header.is_none()).for_each(|m| f(&m.cluster));
        }
    }
}

/// A `VirtualHost`.
#[derive(Debug)]
pub struct VirtualHost {
    pub name: Str,
    pub domains: Vec<Str>,
    pub routes: Vec<Arc<Route>>,
    pub require_tls: RequireTls,
    pub headers: HeaderMutations,
    /// `typed_per_filter_config`
    pub filters: Overrides,
    pub retry: Option<Arc<RetryPolicy>>,
    /// `hedge_policy.hedge_on_per_try_timeout`, where there is a policy.
    pub hedge: Option<bool>,
    /// For requests whose route has none of its own, or includes them.
    pub rate_limits: Vec<RouteRateLimit>,
    pub include_request_attempt_count: bool,
    pub include_attempt_count_in_response: bool,
    /// Names for kinds of requests: the first whose matchers all match.
    pub virtual_clusters: Vec<(Str, Vec<HeaderMatcher>)>,
}

/// `VirtualHost.TlsRequirementType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequireTls {
    #[default]
    None,
    ExternalOnly,
    All,
}

/// One `Route`: match and what to do.
#[derive(Debug)]
pub struct Route {
    pub name: Str,
    pub matches: RouteMatch,
    pub action: Action,
    pub headers: HeaderMutations,
    /// `typed_per_filter_config`
    pub filters: Overrides,
    pub rate_limits: Vec<RouteRateLimit>,
    /// `include_vh_rate_limits`
    pub with_rate_limits_of_host: bool,
    /// `metadata.filter_metadata`, by namespace.
    pub metadata: Box<[(Str, Metadata)]>,
    pub decorator: Option<Decorator>,
    /// `None`: as the connection manager has it.
    pub tracing: Option<RouteTracing>,
}

/// `route.v3.RateLimit`: how rate limit filters of the same stage describe a request.
#[derive(Debug, Clone)]
pub struct RouteRateLimit {
    pub stage: u32,
    pub actions: Vec<DescriptorAction>,
}

/// `RouteMatch`. All parts must match.
#[derive(Debug)]
pub struct RouteMatch {
    pub path: PathMatch,
    pub case_sensitive: bool,
    pub headers: Vec<HeaderMatcher>,
    pub query: Vec<QueryMatcher>,
    /// `dynamic_metadata`: what filters found out.
    pub metadata: Vec<MetadataMatcher>,
    /// `tls_context`: was a client certificate presented, was it verified?
    pub tls: Option<TlsMatch>,
    /// `filter_state`: objects by key.
    pub filter_state: Vec<(String, StringMatcher)>,
    /// Share of requests that match, as (numerator, denominator).
    pub runtime_fraction: Option<Setting<Fraction>>,
    /// `grpc: {}`: only requests with an `application/grpc` content type.
    pub grpc: bool,
}

/// `TlsContextMatchOptions`; `None`: either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsMatch {
    pub presented: Option<bool>,
    pub validated: Option<bool>,
}

/// The path part of a match. The query string never takes part.
#[derive(Debug)]
pub enum PathMatch {
    Prefix(String),
    Exact(String),
    /// Whole path.
    Regex(Regex),
    /// `/a` matches `/a` and `/a/…`.
    SeparatedPrefix(String),
    /// CONNECT requests.
    Connect,
}

/// What a matched route does.
#[derive(Debug)]
pub enum Action {
    Forward(Box<Forward>),
    Redirect(Redirect),
    Direct(DirectResponse),
}

/// `RouteAction`.
#[derive(Debug)]
pub struct Forward {
    pub cluster: ClusterChoice,
    /// 503 or 404 (`cluster_not_found_response_code`).
    pub cluster_not_found_status: u16,
    pub path_rewrite: PathRewrite,
    pub host_rewrite: HostRewrite,
    pub append_x_forwarded_host: bool,
    /// Default 15 s; `None` is no limit.
    pub timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    /// `max_stream_duration`; `Some(None)` turns the connection manager's off.
    pub max_stream_duration: Option<Option<Duration>>,
    /// `max_grpc_timeout`: a gRPC request's `grpc-timeout` counts instead of `timeout`, up to this;
    /// `Some(None)` takes any.
    pub max_grpc_timeout: Option<Option<Duration>>,
    /// `grpc_timeout_offset`, taken off the `grpc-timeout` that `max_grpc_timeout` lets count.
    pub grpc_timeout_offset: Option<Duration>,
    /// `max_stream_duration.grpc_timeout_header_max`: the same for the stream's duration.
    pub grpc_timeout_header_max: Option<Option<Duration>>,
    pub retry: Option<Arc<RetryPolicy>>,
    /// `hedge_policy.hedge_on_per_try_timeout`, where there is a policy: it counts instead of the virtual host's.
    pub hedge: Option<bool>,
    pub upgrades: Vec<(Str, bool)>,
    /// `connect_config`: a CONNECT ends here, and its bytes go to the host as they are.
    pub terminates_connect: bool,
    pub hash_policy: Vec<HashPolicy>,
    /// `metadata_match.filter_metadata["envoy.lb"]`.
    pub metadata_match: Option<Metadata>,
    pub priority_high: bool,
    pub mirrors: Vec<Mirror>,
    pub internal_redirect: Option<Box<InternalRedirect>>,
}

/// `InternalRedirectPolicy`: redirects of upstreams that are followed here.
#[derive(Debug)]
pub struct InternalRedirect {
    /// `max_internal_redirects`, default 1.
    pub most: u32,
    /// `redirect_response_codes`, default 302.
    pub statuses: Vec<u16>,
    /// `allow_cross_scheme_redirect`
    pub cross_scheme: bool,
    pub predicates: Vec<RedirectPredicate>,
    /// `response_headers_to_copy`
    pub headers_to_copy: Vec<http::HeaderName>,
}

/// What the route must be that a redirect leads to.
#[derive(Debug)]
pub enum RedirectPredicate {
    /// None that was led to before.
    PreviousRoutes,
    /// One of these names.
    AllowListedRoutes(Vec<String>),
    /// Not https, where the request is http.
    SafeCrossScheme,
}

/// `RouteAction.RequestMirrorPolicy`.
#[derive(Debug, Clone)]
pub struct Mirror {
    pub cluster: Str,
    /// The header that names the cluster instead.
    pub header: Option<http::HeaderName>,
    /// `None`: every request.
    pub fraction: Option<Setting<Fraction>>,
    /// The host gets no `-shadow`.
    pub keep_host: bool,
    pub host_rewrite: Option<Str>,
}

/// The cluster of a route.
#[derive(Debug)]
pub enum ClusterChoice {
    Single(Str),
    /// The cluster's name is in this request header.
    Header(HeaderKey),
    Weighted {
        clusters: Vec<WeightedCluster>,
        /// Sum of the weights, at least 1; `None`: the runtime can change them (`runtime_key_prefix`).
        total: Option<u64>,
    },
}

/// One entry of `weighted_clusters`.
#[derive(Debug)]
pub struct WeightedCluster {
    pub name: Str,
    pub weight: Setting<u64>,
    pub headers: HeaderMutations,
    /// `typed_per_filter_config`
    pub filters: Overrides,
    pub host_rewrite: Option<Str>,
    /// In place of the route's, whose values it has too where it says nothing else.
    pub metadata_match: Option<Metadata>,
}

/// How the path is rewritten before forwarding.
#[derive(Debug, Default)]
pub enum PathRewrite {
    #[default]
    None,
    /// Replaces the matched prefix (or whole path for an exact match).
    Prefix(String),
    /// Pattern and substitution, with `\N` already translated to the regex crate's `${N}`.
    Regex(Regex, String),
}

/// How `:authority` is rewritten before forwarding.
#[derive(Debug, Default)]
pub enum HostRewrite {
    #[default]
    None,
    Literal(Str),
    /// The host name of the chosen endpoint (DNS clusters).
    Auto,
    Header(http::HeaderName),
    PathRegex(Regex, String),
}

/// `RedirectAction`.
#[derive(Debug, Default)]
pub struct Redirect {
    pub scheme: Option<String>,
    /// `https_redirect: true`.
    pub https: bool,
    pub host: Option<String>,
    pub port: Option<u32>,
    pub path: RedirectPath,
    pub strip_query: bool,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// The path of a redirect.
#[derive(Debug, Default)]
pub enum RedirectPath {
    #[default]
    Keep,
    /// May contain a query string of its own.
    Replace(String),
    PrefixRewrite(String),
    Regex(Regex, String),
}

/// `DirectResponseAction`.
#[derive(Debug)]
pub struct DirectResponse {
    pub status: u16,
    pub body: bytes::Bytes,
    /// Format of the body when it has substitutions.
    pub body_format: Option<BodyFormat>,
}

/// `RouteAction.HashPolicy`.
#[derive(Debug, Clone)]
pub struct HashPolicy {
    pub on: HashOn,
    pub terminal: bool,
}

/// What a hash policy hashes.
#[derive(Debug, Clone)]
pub enum HashOn {
    Header {
        name: HeaderKey,
        /// `regex_rewrite`: pattern and substitution, applied to each value wherever the pattern matches.
        rewrite: Option<(Regex, String)>,
    },
    SourceIp,
    QueryParameter(String),
    Cookie(HashCookie),
}

/// `RouteAction.HashPolicy.Cookie`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashCookie {
    pub name: String,
    /// May be empty.
    pub path: String,
    /// Given: a cookie that is absent is set, for that many seconds (0: for the session).
    pub ttl_s: Option<u64>,
    /// Name and value; the value may be empty.
    pub attributes: Vec<(String, String)>,
}

/// `RetryPolicy`.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    pub on: RetryOn,
    pub num_retries: u32,
    /// `None` or zero is no limit per try.
    pub per_try_timeout: Option<Duration>,
    pub per_try_idle_timeout: Option<Duration>,
    pub retriable_status_codes: Vec<u16>,
    /// Response headers that ask for a retry.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Only requests with one of these are retried, if there are any.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// `envoy.retry_host_predicates.previous_hosts`.
    pub previous_hosts: bool,
    /// `omit_canary_hosts` and `omit_host_metadata`: what hosts have in `envoy.lb` that retries avoid.
    pub avoid: Vec<Metadata>,
    /// `envoy.retry_priorities.previous_priorities`: its `update_frequency`.
    pub other_priorities: Option<usize>,
    pub host_selection_retry_max_attempts: u32,
    /// Base and maximum; Envoy's default is 25 ms and ten times that.
    pub back_off: (Duration, Duration),
}

/// The conditions of `retry_on`, one flag each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn {
    pub server_error: bool,
    pub gateway_error: bool,
    pub reset: bool,
    pub reset_before_request: bool,
    pub connect_failure: bool,
    pub envoy_ratelimited: bool,
    pub retriable_4xx: bool,
    pub refused_stream: bool,
    pub retriable_status_codes: bool,
    pub retriable_headers: bool,
    pub grpc_cancelled: bool,
    pub grpc_deadline_exceeded: bool,
    pub grpc_internal: bool,
    pub grpc_resource_exhausted: bool,
    pub grpc_unavailable: bool,
}

impl RetryOn {
    /// Adds one condition by its name, as in `x-envoy-retry-on`; false when the name is unknown.
    pub fn add(&mut self, condition: &str) -> bool {
        let flag = match condition {
            "5xx" => &mut self.server_error,
            "gateway-error" => &mut self.gateway_error,
            "reset" => &mut self.reset,
            "reset-before-request" => &mut self.reset_before_request,
            "connect-failure" => &mut self.connect_failure,
            "envoy-ratelimited" => &mut self.envoy_ratelimited,
            "retriable-4xx" => &mut self.retriable_4xx,
            "refused-stream" => &mut self.refused_stream,
            "retriable-status-codes" => &mut self.retriable_status_codes,
            "retriable-headers" => &mut self.retriable_headers,
            _ => return false,
        };
        *flag = true;
        true
    }

    /// Adds one condition on a gRPC status, as in `x-envoy-retry-grpc-on`; false when the name is unknown. A
    /// configured `retry_on` may have both kinds.
    pub fn add_grpc(&mut self, condition: &str) -> bool {
        let flag = match condition {
            "cancelled" => &mut self.grpc_cancelled,
            "deadline-exceeded" => &mut self.grpc_deadline_exceeded,
            "internal" => &mut self.grpc_internal,
            "resource-exhausted" => &mut self.grpc_resource_exhausted,
            "unavailable" => &mut self.grpc_unavailable,
            _ => return false,
        };
        *flag = true;
        true
    }
}

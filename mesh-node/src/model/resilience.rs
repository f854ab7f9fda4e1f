//! Outlier detection and active health checks as configured (`envoy.config.cluster.v3.OutlierDetection`,
//! `core.v3.HealthCheck`). What they find out lives in the `cluster/` stage.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method};

use super::Str;
use super::matcher::{HeaderMatcher, StringMatcher};
use crate::telemetry::stats::{HealthCheckStats, OutlierStats};

/// `HttpProtocolOptions.OutlierDetection.error_matcher`, as far as it speaks of the heads of responses.
#[derive(Debug)]
pub enum ResponsePredicate {
    Any,
    Not(Box<ResponsePredicate>),
    All(Vec<ResponsePredicate>),
    OneOf(Vec<ResponsePredicate>),
    Headers(Vec<HeaderMatcher>),
}

/// `OutlierDetection`.
#[derive(Debug, Clone)]
pub struct OutlierDetection {
    /// How often ejections end and rates are judged; default 10 s.
    pub interval: Duration,
    /// Times the number of ejections in a row; default 30 s.
    pub base_ejection_time: Duration,
    /// Default 300 s, or the base if that is longer.
    pub max_ejection_time: Duration,
    /// Up to so much is added at random.
    pub max_ejection_time_jitter: Duration,
    /// Of all hosts of the cluster; default 10.
    pub max_ejection_percent: u32,
    pub always_eject_one_host: bool,
    pub consecutive_5xx: Consecutive,
    pub consecutive_gateway_failure: Consecutive,
    /// Only with `split_local_origin`.
    pub consecutive_local_origin_failure: Consecutive,
    /// `split_external_local_origin_errors`: connecting and answering are judged apart.
    pub split_local_origin: bool,
    pub success_rate: SuccessRate,
    pub failure_percentage: FailurePercentage,
    /// `successful_active_health_check_uneject_host`, default true.
    pub uneject_when_checked: bool,
    pub stats: Arc<OutlierStats>,
}

/// So many failures in a row eject a host.
#[derive(Debug, Clone, Copy)]
pub struct Consecutive {
    /// 0: never.
    pub failures: u32,
    /// Percent of detections that do eject.
    pub enforcing: u32,
}

/// A host whose share of successes is far below the others' is ejected.
#[derive(Debug, Clone, Copy)]
pub struct SuccessRate {
    /// Default 5.
    pub minimum_hosts: u32,
    /// Requests in an interval that a host must have had to be judged; default 100.
    pub request_volume: u64,
    /// `success_rate_stdev_factor` / 1000: how many standard deviations below the mean; default 1.9.
    pub deviations: f64,
    pub enforcing: u32,
    pub enforcing_local_origin: u32,
}

/// A host whose share of failures reaches a threshold is ejected.
#[derive(Debug, Clone, Copy)]
pub struct FailurePercentage {
    /// Percent; default 85.
    pub threshold: f64,
    /// Default 5.
    pub minimum_hosts: u32,
    /// Default 50.
    pub request_volume: u64,
    pub enforcing: u32,
    pub enforcing_local_origin: u32,
}

/// `core.v3.HealthCheck`: each host of the cluster is asked from time to time whether it serves.
#[derive(Debug)]
pub struct HealthCheck {
    pub kind: CheckKind,
    /// Of one check, connecting included.
    pub timeout: Duration,
    /// Failures in a row that make a host unhealthy; an answer that says so is enough at once.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make a host healthy again; the first check of a host is enough.
    pub healthy_threshold: u32,
    pub pauses: Pauses,
    /// `transport_socket_match_criteria`: the transport socket match of checks, in place of the endpoint's.
    pub transport_match: Option<Vec<(String, String)>>,
    /// `common_lb_config.ignore_new_hosts_until_first_hc`: hosts do not count before their first check.
    pub ignore_new_hosts: bool,
    pub stats: Arc<HealthCheckStats>,
}

/// How long to wait between two checks of a host.
#[derive(Debug, Clone)]
pub struct Pauses {
    /// Before the first check, at random up to this.
    pub initial_jitter: Duration,
    pub interval: Duration,
    /// Added at random up to this, and up to this percentage of the interval.
    pub jitter: Duration,
    pub jitter_percent: u32,
    /// While the cluster never had a connection, of hosts that fail; default 60 s.
    pub no_traffic: Duration,
    /// The same of hosts that are healthy.
    pub no_traffic_healthy: Duration,
    pub unhealthy: Duration,
    /// After a failure that does not yet make the host unhealthy, and the same for successes.
    pub unhealthy_edge: Duration,
    pub healthy_edge: Duration,
}

/// How a host is asked.
#[derive(Debug)]
pub enum CheckKind {
    Http(HttpCheck),
    Tcp {
        /// Empty: a connection is enough.
        send: Vec<u8>,
        /// Must all come, in this order.
        receive: Vec<Vec<u8>>,
    },
    Grpc {
        /// Empty: the server as a whole.
        service: String,
        /// Default the cluster's name.
        authority: Option<Str>,
        metadata: HeaderMap,
    },
}

/// `HttpHealthCheck`.
#[derive(Debug)]
pub struct HttpCheck {
    /// Default the cluster's name.
    pub host: Option<Str>,
    pub path: Str,
    pub method: Method,
    pub body: Vec<u8>,
    /// Must be in the body of the answer, in this order, within so many bytes (0: anywhere).
    pub receive: Vec<Vec<u8>>,
    pub response_buffer_bytes: usize,
    /// Half open ranges of statuses that are a success.
    pub expected: Vec<(u16, u16)>,
    /// Statuses that are a failure like a refused connection: `unhealthy_threshold` counts.
    pub retriable: Vec<(u16, u16)>,
    pub add: HeaderMap,
    pub remove: Vec<HeaderName>,
    pub http2: bool,
    /// Of the answer's `x-envoy-upstream-healthchecked-cluster`.
    pub service_name: Option<StringMatcher>,
}

/// `Endpoint.HealthCheckConfig`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EndpointCheck {
    /// Checks go to this port.
    pub port: Option<u16>,
    /// Checks go to this address.
    pub address: Option<std::net::SocketAddr>,
    pub hostname: Option<Str>,
    pub disabled: bool,
}

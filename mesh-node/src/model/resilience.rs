//! Outlier detection and active health checks as configured (`envoy.config.cluster.v3.OutlierDetection`,
//! `core.v3.HealthCheck`). What they find out lives in the `cluster/` stage.

use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::stats::OutlierStats;

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

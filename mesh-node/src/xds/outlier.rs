//! `envoy.config.cluster.v3.OutlierDetection`.

use std::time::Duration;

use mesh_xds::pb::envoy::config::cluster::v3::OutlierDetection as Proto;
use mesh_xds::pb::envoy::config::common::matcher::v3::MatchPredicate;
use mesh_xds::pb::envoy::config::common::matcher::v3::match_predicate::{MatchSet, Rule};

use super::common::{boolean, duration_or, number};
use super::error::{At, XdsError};
use super::{Context, matcher};
use crate::model::resilience::{
    Consecutive, FailurePercentage, OutlierDetection, ResponsePredicate, SuccessRate,
};

/// Which responses are errors. What is not known when the head of a response comes cannot be asked for.
pub(super) fn error_matcher(at: At<'_>, proto: &MatchPredicate) -> Result<ResponsePredicate, XdsError> {
    let all = |at: At<'_>, set: &MatchSet| -> Result<Vec<_>, XdsError> {
        let at = at.field("rules");
        set.rules.iter().enumerate().map(|(i, rule)| error_matcher(at.index(i), rule)).collect()
    };
    Ok(match &proto.rule {
        Some(Rule::OrMatch(set)) => ResponsePredicate::OneOf(all(at.field("or_match"), set)?),
        Some(Rule::AndMatch(set)) => ResponsePredicate::All(all(at.field("and_match"), set)?),
        Some(Rule::NotMatch(rule)) => {
            ResponsePredicate::Not(Box::new(error_matcher(at.field("not_match"), rule)?))
        }
        Some(Rule::AnyMatch(_)) => ResponsePredicate::Any,
        Some(Rule::HttpResponseHeadersMatch(of)) => {
            let at = at.field("http_response_headers_match");
            ResponsePredicate::Headers(matcher::headers(at.field("headers"), &of.headers)?)
        }
        _ => return Err(at.invalid("must be about the head of a response")),
    })
}

/// `stat_name` is the cluster's.
pub(super) fn convert(
    at: At<'_>,
    proto: &Proto,
    stat_name: &str,
    context: &Context<'_>,
) -> Result<OutlierDetection, XdsError> {
    let seconds = Duration::from_secs;
    let base = duration_or(at.field("base_ejection_time"), proto.base_ejection_time, seconds(30))?;
    let max = duration_or(at.field("max_ejection_time"), proto.max_ejection_time, base.max(seconds(300)))?;
    if max < base {
        return Err(at.field("max_ejection_time").invalid("must not be below base_ejection_time"));
    }
    let consecutive = |failures, enforcing, default| Consecutive {
        failures: number(failures, 5),
        enforcing: number(enforcing, default),
    };
    let at_jitter = at.field("max_ejection_time_jitter");
    Ok(OutlierDetection {
        interval: duration_or(at.field("interval"), proto.interval, seconds(10))?,
        base_ejection_time: base,
        max_ejection_time: max,
        max_ejection_time_jitter: duration_or(at_jitter, proto.max_ejection_time_jitter, Duration::ZERO)?,
        max_ejection_percent: number(proto.max_ejection_percent, 10),
        always_eject_one_host: boolean(proto.always_eject_one_host, false),
        consecutive_5xx: consecutive(proto.consecutive_5xx, proto.enforcing_consecutive_5xx, 100),
        consecutive_gateway_failure: consecutive(
            proto.consecutive_gateway_failure,
            proto.enforcing_consecutive_gateway_failure,
            0,
        ),
        consecutive_local_origin_failure: consecutive(
            proto.consecutive_local_origin_failure,
            proto.enforcing_consecutive_local_origin_failure,
            100,
        ),
        split_local_origin: proto.split_external_local_origin_errors,
        success_rate: SuccessRate {
            minimum_hosts: number(proto.success_rate_minimum_hosts, 5),
            request_volume: number(proto.success_rate_request_volume, 100).into(),
            deviations: f64::from(number(proto.success_rate_stdev_factor, 1900)) / 1000.0,
            enforcing: number(proto.enforcing_success_rate, 100),
            enforcing_local_origin: number(proto.enforcing_local_origin_success_rate, 100),
        },
        failure_percentage: FailurePercentage {
            threshold: number(proto.failure_percentage_threshold, 85).into(),
            minimum_hosts: number(proto.failure_percentage_minimum_hosts, 5),
            request_volume: number(proto.failure_percentage_request_volume, 50).into(),
            enforcing: number(proto.enforcing_failure_percentage, 0),
            enforcing_local_origin: number(proto.enforcing_failure_percentage_local_origin, 0),
        },
        uneject_when_checked: boolean(proto.successful_active_health_check_uneject_host, true),
        stats: context.stats.outlier(stat_name),
    })
}

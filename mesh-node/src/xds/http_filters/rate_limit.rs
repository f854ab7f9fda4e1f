//! `envoy.filters.http.local_ratelimit`.

use mesh_xds::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use mesh_xds::pb::envoy::config::route::v3::RateLimit as RateLimitProto;
use mesh_xds::pb::envoy::config::route::v3::rate_limit::Action as ActionProto;
use mesh_xds::pb::envoy::config::route::v3::rate_limit::action::ActionSpecifier;
use mesh_xds::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use mesh_xds::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit as Proto;
use mesh_xds::pb::envoy::r#type::v3::TokenBucket as BucketProto;

use super::super::common::{boolean, duration, number, runtime_fraction};
use super::super::error::{At, XdsError};
use super::super::{Context, headers, matcher};
use crate::model::rate_limit::{
    DescriptorAction, DescriptorBucket, LocalRateLimit, LocalRateLimitStats, TokenBucket,
};
use crate::model::route::RouteRateLimit;
use crate::runtime::{Fraction, Setting};
use crate::telemetry::stats::Tags;

/// Envoy's status.
const TOO_MANY_REQUESTS: u16 = 429;

pub(super) fn http(at: At<'_>, proto: &Proto, context: &Context<'_>) -> Result<LocalRateLimit, XdsError> {
    let counter = |rest: &str| {
        let name = format!("{}.http_local_rate_limit.{rest}", proto.stat_prefix);
        let tags = || Tags {
            name: format!("http_local_rate_limit.{rest}"),
            labels: vec![("envoy_local_http_ratelimit_prefix".into(), proto.stat_prefix.clone())],
        };
        context.stats.custom().counter(&name, tags)
    };
    let at_descriptors = at.field("descriptors");
    let descriptors = proto.descriptors.iter().enumerate();
    let at_limits = at.field("rate_limits");
    let rate_limits = proto.rate_limits.iter().enumerate();
    let status = proto.status.as_ref().map_or(0, |status| status.code);
    Ok(LocalRateLimit {
        bucket: proto.token_bucket.as_ref().map(|b| bucket(at.field("token_bucket"), b)).transpose()?,
        descriptors: descriptors
            .map(|(i, proto)| descriptor(at_descriptors.index(i), proto))
            .collect::<Result<_, _>>()?,
        rate_limits: rate_limits
            .map(|(i, proto)| actions(at_limits.index(i), proto))
            .collect::<Result<_, _>>()?,
        stage: proto.stage,
        always_consume_default: boolean(proto.always_consume_default_token_bucket, true),
        // Envoy: off unless given, "for safety".
        enabled: share(proto.filter_enabled.as_ref()),
        enforced: share(proto.filter_enforced.as_ref()),
        status: u16::try_from(status).ok().filter(|&status| status >= 400).unwrap_or(TOO_MANY_REQUESTS),
        response_headers: headers::adds(at.field("response_headers_to_add"), &proto.response_headers_to_add)?,
        request_headers_when_not_enforced: headers::adds(
            at.field("request_headers_to_add_when_not_enforced"),
            &proto.request_headers_to_add_when_not_enforced,
        )?,
        rate_limit_headers: proto.enable_x_ratelimit_headers != 0,
        resource_exhausted: proto.rate_limited_as_resource_exhausted,
        stats: LocalRateLimitStats {
            enabled: counter("enabled"),
            enforced: counter("enforced"),
            ok: counter("ok"),
            rate_limited: counter("rate_limited"),
        },
    })
}

/// A token bucket, of requests or of connections.
pub(in crate::xds) fn bucket(at: At<'_>, proto: &BucketProto) -> Result<TokenBucket, XdsError> {
    let at_interval = at.field("fill_interval");
    let interval = proto.fill_interval.ok_or_else(|| at_interval.invalid("is required"))?;
    let interval = duration(at_interval, interval)?;
    // Envoy: "local rate limit token bucket fill timer must be >= 50ms".
    if interval.as_millis() < 50 {
        return Err(at_interval.invalid("must be at least 0.05s"));
    }
    Ok(TokenBucket::new(proto.max_tokens, number(proto.tokens_per_fill, 1), interval))
}

/// Envoy: nobody is limited unless a share is given.
fn share(proto: Option<&RuntimeFractionalPercent>) -> Setting<Fraction> {
    proto.map_or(Setting::fixed((0, 100)), runtime_fraction)
}

fn descriptor(at: At<'_>, proto: &LocalRateLimitDescriptor) -> Result<DescriptorBucket, XdsError> {
    let at_entries = at.field("entries");
    for (i, entry) in proto.entries.iter().enumerate() {
        if entry.value.is_empty() {
            let message = "is required: a bucket for each value is not supported by mesh-node";
            return Err(at_entries.index(i).field("value").invalid(message));
        }
    }
    let token_bucket = proto.token_bucket.as_ref();
    let token_bucket = token_bucket.ok_or_else(|| at.field("token_bucket").invalid("is required"))?;
    Ok(DescriptorBucket {
        entries: proto.entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect(),
        bucket: bucket(at.field("token_bucket"), token_bucket)?,
    })
}

/// `rate_limits` of a route or virtual host.
pub(in crate::xds) fn of_route(
    at: At<'_>,
    protos: &[RateLimitProto],
) -> Result<Vec<RouteRateLimit>, XdsError> {
    let of = |(i, proto): (usize, &RateLimitProto)| {
        let actions = actions(at.index(i), proto)?;
        Ok(RouteRateLimit { stage: number(proto.stage, 0), actions })
    };
    protos.iter().enumerate().map(of).collect()
}

fn actions(at: At<'_>, proto: &RateLimitProto) -> Result<Vec<DescriptorAction>, XdsError> {
    let at = at.field("actions");
    proto.actions.iter().enumerate().map(|(i, proto)| action(at.index(i), proto)).collect()
}

fn action(at: At<'_>, proto: &ActionProto) -> Result<DescriptorAction, XdsError> {
    let key =
        |given: &str, default: &str| if given.is_empty() { default.to_owned() } else { given.to_owned() };
    Ok(match &proto.action_specifier {
        Some(ActionSpecifier::GenericKey(of)) => DescriptorAction::GenericKey {
            key: key(&of.descriptor_key, "generic_key"),
            value: of.descriptor_value.clone(),
        },
        Some(ActionSpecifier::RequestHeaders(of)) => DescriptorAction::RequestHeader {
            name: matcher::header_key(at.field("request_headers").field("header_name"), &of.header_name)?,
            key: of.descriptor_key.clone(),
            skip_if_absent: of.skip_if_absent,
        },
        Some(ActionSpecifier::RemoteAddress(_)) => DescriptorAction::RemoteAddress,
        Some(ActionSpecifier::DestinationCluster(_)) => DescriptorAction::DestinationCluster,
        Some(ActionSpecifier::HeaderValueMatch(of)) => DescriptorAction::HeaderValueMatch {
            key: key(&of.descriptor_key, "header_match"),
            value: of.descriptor_value.clone(),
            expect: boolean(of.expect_match, true),
            headers: matcher::headers(at.field("header_value_match").field("headers"), &of.headers)?,
        },
        Some(ActionSpecifier::QueryParameterValueMatch(of)) => DescriptorAction::QueryParameterValueMatch {
            key: key(&of.descriptor_key, "query_match"),
            value: of.descriptor_value.clone(),
            expect: boolean(of.expect_match, true),
            parameters: matcher::queries(
                at.field("query_parameter_value_match").field("query_parameters"),
                &of.query_parameters,
            )?,
        },
        _ => return Err(at.unsupported()),
    })
}

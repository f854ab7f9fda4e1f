//! Filters that shape traffic: CORS, faults, CSRF, buffering, header changes, health checks.

use mesh_xds::pb::envoy::config::common::mutation_rules::v3::HeaderMutation as MutationProto;
use mesh_xds::pb::envoy::config::common::mutation_rules::v3::header_mutation::Action;
use mesh_xds::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use mesh_xds::pb::envoy::extensions::filters::common::fault::v3::{
    FaultDelay, FaultRateLimit, fault_delay, fault_rate_limit,
};
use mesh_xds::pb::envoy::extensions::filters::http::buffer::v3::Buffer as BufferProto;
use mesh_xds::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy as CorsProto;
use mesh_xds::pb::envoy::extensions::filters::http::csrf::v3::CsrfPolicy as CsrfProto;
use mesh_xds::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort};
use mesh_xds::pb::envoy::extensions::filters::http::header_mutation::v3::Mutations;
use mesh_xds::pb::envoy::extensions::filters::http::health_check::v3::HealthCheck as HealthProto;
use mesh_xds::pb::envoy::r#type::matcher::v3::StringMatcher as StringProto;
use mesh_xds::pb::envoy::r#type::v3::FractionalPercent;

use super::super::common::{boolean, duration, fraction, non_empty, number, runtime_fraction};
use super::super::error::{At, XdsError};
use super::super::{headers, matcher};
use super::Place;
use crate::model::http_filter::{
    Abort, AbortWith, Buffer, CorsPolicy, CorsStats, Csrf, CsrfStats, Delay, Fault, FaultStats,
    HeaderMutation, HealthCheck, Mutation, RateLimit,
};
use crate::model::matcher::StringMatcher;
use crate::runtime::{Fraction, Setting};

fn strings(at: At<'_>, protos: &[StringProto]) -> Result<Vec<StringMatcher>, XdsError> {
    protos.iter().enumerate().map(|(i, proto)| matcher::string(at.index(i), proto)).collect()
}

pub(super) fn cors(at: At<'_>, proto: &CorsProto) -> Result<CorsPolicy, XdsError> {
    let flag = |value: Option<mesh_xds::pb::google::protobuf::BoolValue>| value.map(|v| v.value);
    Ok(CorsPolicy {
        allow_origins: strings(at.field("allow_origin_string_match"), &proto.allow_origin_string_match)?,
        allow_methods: proto.allow_methods.clone(),
        allow_headers: proto.allow_headers.clone(),
        expose_headers: proto.expose_headers.clone(),
        max_age: proto.max_age.clone(),
        allow_credentials: flag(proto.allow_credentials),
        allow_private_network: flag(proto.allow_private_network_access),
        forward_not_matching_preflights: flag(proto.forward_not_matching_preflights),
        enabled: proto.filter_enabled.as_ref().map(runtime_fraction),
        shadow_enabled: proto.shadow_enabled.as_ref().map(runtime_fraction),
    })
}

pub(super) fn cors_stats(place: &Place<'_, '_>) -> CorsStats {
    CorsStats {
        origin_valid: place.counter("cors.origin_valid"),
        origin_invalid: place.counter("cors.origin_invalid"),
    }
}

pub(super) fn fault(at: At<'_>, proto: &HttpFault) -> Result<Fault, XdsError> {
    let delays = [
        or(&proto.delay_duration_runtime, "fault.http.delay.fixed_duration_ms"),
        or(&proto.delay_percent_runtime, "fault.http.delay.fixed_delay_percent"),
    ];
    Ok(Fault {
        delay: proto.delay.as_ref().map(|of| delay(at.field("delay"), of, delays)).transpose()?,
        abort: proto.abort.as_ref().map(|of| abort(at.field("abort"), of, proto)).transpose()?,
        rate_limit: proto.response_rate_limit.as_ref().and_then(|of| rate_limit(of, proto)),
        upstream_cluster: non_empty(&proto.upstream_cluster),
        downstream_nodes: proto.downstream_nodes.iter().map(|node| node.as_str().into()).collect(),
        headers: matcher::headers(at.field("headers"), &proto.headers)?,
        max_active: Setting::new(
            proto.max_active_faults.map_or(u64::MAX, |max| max.value.into()),
            or(&proto.max_active_faults_runtime, "fault.http.max_active_faults"),
        ),
        disable_downstream_cluster_stats: proto.disable_downstream_cluster_stats,
    })
}

/// Envoy: nothing befalls any request unless a share is given.
fn share(percentage: Option<&FractionalPercent>, key: &str) -> Setting<Fraction> {
    Setting::new(percentage.map_or((0, 100), fraction), key)
}

/// A runtime key, or the one that holds where none is given.
fn or<'a>(given: &'a str, otherwise: &'a str) -> &'a str {
    if given.is_empty() { otherwise } else { given }
}

/// `keys`: where the runtime may have another duration, in milliseconds, and another share.
pub(in crate::xds) fn delay(
    at: At<'_>,
    proto: &FaultDelay,
    [of_duration, of_share]: [&str; 2],
) -> Result<Delay, XdsError> {
    let fixed = match &proto.fault_delay_secifier {
        Some(fault_delay::FaultDelaySecifier::FixedDelay(fixed)) => {
            let fixed = duration(at.field("fixed_delay"), *fixed)?.as_millis();
            Some(Setting::new(u64::try_from(fixed).unwrap_or(u64::MAX), of_duration))
        }
        Some(fault_delay::FaultDelaySecifier::HeaderDelay(_)) => None,
        None => return Err(at.invalid("needs one of fixed_delay, header_delay")),
    };
    Ok(Delay { fixed, share: share(proto.percentage.as_ref(), of_share) })
}

fn abort(at: At<'_>, proto: &FaultAbort, fault: &HttpFault) -> Result<Abort, XdsError> {
    let with = match &proto.error_type {
        Some(fault_abort::ErrorType::HttpStatus(status)) => {
            let status = u16::try_from(*status).ok().filter(|status| (200..600).contains(status));
            let status = status.ok_or_else(|| at.field("http_status").invalid("must be from 200 to 599"))?;
            let key = or(&fault.abort_http_status_runtime, "fault.http.abort.http_status");
            AbortWith::Http(Setting::new(status.into(), key))
        }
        Some(fault_abort::ErrorType::GrpcStatus(status)) => {
            let status = u8::try_from(*status);
            let status = status.map_err(|_| at.field("grpc_status").invalid("must be at most 255"))?;
            let key = or(&fault.abort_grpc_status_runtime, "fault.http.abort.grpc_status");
            AbortWith::Grpc(Setting::new(status.into(), key))
        }
        Some(fault_abort::ErrorType::HeaderAbort(_)) => AbortWith::Header,
        None => return Err(at.invalid("needs one of http_status, grpc_status, header_abort")),
    };
    let key = or(&fault.abort_percent_runtime, "fault.http.abort.abort_percent");
    Ok(Abort { with, share: share(proto.percentage.as_ref(), key) })
}

fn rate_limit(proto: &FaultRateLimit, fault: &HttpFault) -> Option<RateLimit> {
    let kib_per_second = match &proto.limit_type {
        Some(fault_rate_limit::LimitType::FixedLimit(limit)) => Some(limit.limit_kbps),
        Some(fault_rate_limit::LimitType::HeaderLimit(_)) => None,
        None => return None,
    };
    let key = or(&fault.response_rate_limit_percent_runtime, "fault.http.rate_limit.response_percent");
    Some(RateLimit { kib_per_second, share: share(proto.percentage.as_ref(), key) })
}

pub(super) fn fault_stats(place: &Place<'_, '_>) -> FaultStats {
    FaultStats {
        delays_injected: place.counter("fault.delays_injected"),
        aborts_injected: place.counter("fault.aborts_injected"),
        response_rl_injected: place.counter("fault.response_rl_injected"),
        faults_overflow: place.counter("fault.faults_overflow"),
        active_faults: place.gauge("fault.active_faults"),
    }
}

/// `mutations` of a filter or of a route.
pub(super) fn header_mutation(
    at: At<'_>,
    proto: Option<&Mutations>,
    most_specific_wins: bool,
) -> Result<HeaderMutation, XdsError> {
    let mut mutation = HeaderMutation { most_specific_wins, ..HeaderMutation::default() };
    if let Some(proto) = proto {
        mutation.request = mutations(at.field("request_mutations"), &proto.request_mutations)?;
        mutation.response = mutations(at.field("response_mutations"), &proto.response_mutations)?;
    }
    Ok(mutation)
}

fn mutations(at: At<'_>, protos: &[MutationProto]) -> Result<Vec<Mutation>, XdsError> {
    let one = |(i, proto): (usize, &MutationProto)| {
        let at = at.index(i);
        match &proto.action {
            Some(Action::Remove(name)) => Ok(Mutation::Remove(headers::name(at.field("remove"), name)?)),
            Some(Action::Append(option)) => Ok(Mutation::Append(headers::add(at.field("append"), option)?)),
            Some(Action::RemoveOnMatch(_)) => Err(at.field("remove_on_match").unsupported()),
            None => Err(at.invalid("needs one of remove, append")),
        }
    };
    protos.iter().enumerate().map(one).collect()
}

pub(super) fn buffer(proto: &BufferProto) -> Buffer {
    Buffer { max_request_bytes: number(proto.max_request_bytes, 0) as usize }
}

pub(super) fn csrf(at: At<'_>, proto: &CsrfProto) -> Result<Csrf, XdsError> {
    let enabled = proto.filter_enabled.as_ref();
    let enabled = enabled.ok_or_else(|| at.field("filter_enabled").invalid("is required"))?;
    Ok(Csrf {
        enabled: runtime_fraction(enabled),
        shadow_enabled: proto.shadow_enabled.as_ref().map(|f: &RuntimeFractionalPercent| runtime_fraction(f)),
        additional_origins: strings(at.field("additional_origins"), &proto.additional_origins)?,
    })
}

pub(super) fn csrf_stats(place: &Place<'_, '_>) -> CsrfStats {
    CsrfStats {
        missing_source_origin: place.counter("csrf.missing_source_origin"),
        request_invalid: place.counter("csrf.request_invalid"),
        request_valid: place.counter("csrf.request_valid"),
    }
}

pub(super) fn health_check(at: At<'_>, proto: &HealthProto) -> Result<HealthCheck, XdsError> {
    if boolean(proto.pass_through_mode, false) {
        let message = "true is not supported by mesh-node; without it, checks are answered here";
        return Err(at.field("pass_through_mode").invalid(message));
    }
    Ok(HealthCheck { headers: matcher::headers(at.field("headers"), &proto.headers)? })
}

//! `envoy.config.core.v3.HealthCheck`.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method};
use mesh_xds::pb::envoy::config::core::v3::health_check::payload::Payload as PayloadKind;
use mesh_xds::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck,
};
use mesh_xds::pb::envoy::config::core::v3::{HeaderValueOption, HealthCheck as Proto, RequestMethod};
use mesh_xds::pb::envoy::config::endpoint::v3::endpoint::HealthCheckConfig;
use mesh_xds::pb::envoy::r#type::v3::{CodecClientType, Int64Range};

use super::common::{duration_or, enumeration, non_empty, number, socket_address};
use super::error::{At, XdsError};
use super::{Context, endpoint, headers, matcher};
use crate::model::headers::HeaderTarget;
use crate::model::resilience::{CheckKind, EndpointCheck, HealthCheck, HttpCheck, Pauses};

/// Envoy's `response_buffer_size`.
const RESPONSE_BUFFER_BYTES: u64 = 1024;

/// The check of a cluster, if it has one. `http2`: its requests go over HTTP/2.
pub(super) fn convert(
    at: At<'_>,
    protos: &[Proto],
    (stat_name, http2, ignore_new_hosts): (&str, bool, bool),
    context: &Context<'_>,
) -> Result<Option<Arc<HealthCheck>>, XdsError> {
    let at = at.field("health_checks");
    let proto = match protos {
        [] => return Ok(None),
        [one] => one,
        _ => return Err(at.invalid("several health checks are not possible; keep one")),
    };
    let at = at.index(0);
    let kind = match &proto.health_checker {
        Some(HealthChecker::HttpHealthCheck(check)) => {
            CheckKind::Http(http(at.field("http_health_check"), check)?)
        }
        Some(HealthChecker::TcpHealthCheck(check)) => tcp(at.field("tcp_health_check"), check)?,
        Some(HealthChecker::GrpcHealthCheck(check)) => {
            let at = at.field("grpc_health_check");
            if !http2 {
                return Err(at.invalid("needs a cluster that speaks HTTP/2; add http2_protocol_options"));
            }
            grpc(at, check)?
        }
        Some(HealthChecker::CustomHealthCheck(_)) => {
            return Err(at.field("custom_health_check").unsupported());
        }
        None => {
            return Err(at.invalid("needs one of http_health_check, tcp_health_check, grpc_health_check"));
        }
    };
    Ok(Some(Arc::new(HealthCheck {
        kind,
        timeout: duration_or(at.field("timeout"), proto.timeout, Duration::ZERO)?,
        unhealthy_threshold: number(proto.unhealthy_threshold, 1),
        healthy_threshold: number(proto.healthy_threshold, 1),
        pauses: pauses(at, proto)?,
        transport_match: proto.transport_socket_match_criteria.as_ref().map(endpoint::pairs),
        ignore_new_hosts,
        stats: context.stats.health_check(stat_name),
    })))
}

fn pauses(at: At<'_>, proto: &Proto) -> Result<Pauses, XdsError> {
    let minute = Duration::from_secs(60);
    let interval = duration_or(at.field("interval"), proto.interval, minute)?;
    let no_traffic = duration_or(at.field("no_traffic_interval"), proto.no_traffic_interval, minute)?;
    let unhealthy = duration_or(at.field("unhealthy_interval"), proto.unhealthy_interval, interval)?;
    let at_healthy = at.field("no_traffic_healthy_interval");
    let at_edge = at.field("unhealthy_edge_interval");
    Ok(Pauses {
        initial_jitter: duration_or(at.field("initial_jitter"), proto.initial_jitter, Duration::ZERO)?,
        interval,
        jitter: duration_or(at.field("interval_jitter"), proto.interval_jitter, Duration::ZERO)?,
        jitter_percent: proto.interval_jitter_percent,
        no_traffic,
        no_traffic_healthy: duration_or(at_healthy, proto.no_traffic_healthy_interval, no_traffic)?,
        unhealthy,
        unhealthy_edge: duration_or(at_edge, proto.unhealthy_edge_interval, unhealthy)?,
        healthy_edge: duration_or(at.field("healthy_edge_interval"), proto.healthy_edge_interval, interval)?,
    })
}

fn http(at: At<'_>, proto: &HttpHealthCheck) -> Result<HttpCheck, XdsError> {
    let http2 = match enumeration(at.field("codec_client_type"), proto.codec_client_type)? {
        CodecClientType::Http1 => false,
        CodecClientType::Http2 => true,
        CodecClientType::Http3 => {
            return Err(at
                .field("codec_client_type")
                .invalid("HTTP3 is not supported by mesh-node; use HTTP2"));
        }
    };
    let method: RequestMethod = enumeration(at.field("method"), proto.method)?;
    let method = match method {
        RequestMethod::MethodUnspecified => Method::GET,
        RequestMethod::Connect => return Err(at.field("method").invalid("CONNECT cannot check anything")),
        other => Method::from_bytes(other.as_str_name().as_bytes())
            .map_err(|_| at.field("method").invalid("is no method"))?,
    };
    let expected = ranges(at.field("expected_statuses"), &proto.expected_statuses)?;
    let at_remove = at.field("request_headers_to_remove");
    let remove = proto.request_headers_to_remove.iter().enumerate();
    Ok(HttpCheck {
        host: non_empty(&proto.host),
        path: path(at.field("path"), &proto.path)?,
        method,
        body: match &proto.send {
            Some(send) => payload(at.field("send"), send)?,
            None => Vec::new(),
        },
        receive: payloads(at.field("receive"), &proto.receive)?,
        response_buffer_bytes: proto.response_buffer_size.map_or(RESPONSE_BUFFER_BYTES, |v| v.value) as usize,
        expected: if expected.is_empty() { vec![(200, 201)] } else { expected },
        retriable: ranges(at.field("retriable_statuses"), &proto.retriable_statuses)?,
        add: added(at.field("request_headers_to_add"), &proto.request_headers_to_add)?,
        remove: remove.map(|(i, name)| headers::name(at_remove.index(i), name)).collect::<Result<_, _>>()?,
        http2,
        service_name: match &proto.service_name_matcher {
            Some(matcher) => Some(matcher::string(at.field("service_name_matcher"), matcher)?),
            None => None,
        },
    })
}

fn path(at: At<'_>, path: &str) -> Result<crate::model::Str, XdsError> {
    match path.parse::<http::uri::PathAndQuery>() {
        Ok(_) if path.starts_with('/') => Ok(path.into()),
        _ => Err(at.invalid(format!("{path:?} is not a path"))),
    }
}

fn ranges(at: At<'_>, protos: &[Int64Range]) -> Result<Vec<(u16, u16)>, XdsError> {
    let one = |(i, range): (usize, &Int64Range)| match (u16::try_from(range.start), u16::try_from(range.end))
    {
        (Ok(start), Ok(end)) if start >= 100 && end <= 600 && start < end => Ok((start, end)),
        _ => Err(at
            .index(i)
            .invalid("must be a range of statuses from 100, its end above its start and at most 600")),
    };
    protos.iter().enumerate().map(one).collect()
}

/// Headers whose values are the same for every check: there is no request that they could be taken from.
fn added(at: At<'_>, options: &[HeaderValueOption]) -> Result<HeaderMap, XdsError> {
    let mut map = HeaderMap::new();
    for (i, add) in headers::adds(at, options)?.into_iter().enumerate() {
        let at = at.index(i);
        let HeaderTarget::Name(name) = add.name else { return Err(at.unsupported()) };
        let value = add.value.literal().and_then(|text| HeaderValue::from_str(text).ok());
        let value = value.ok_or_else(|| at.field("header").invalid("must be a constant text"))?;
        map.append(name, value);
    }
    Ok(map)
}

fn tcp(at: At<'_>, proto: &TcpHealthCheck) -> Result<CheckKind, XdsError> {
    let send = match &proto.send {
        Some(send) => payload(at.field("send"), send)?,
        None => Vec::new(),
    };
    Ok(CheckKind::Tcp { send, receive: payloads(at.field("receive"), &proto.receive)? })
}

fn grpc(at: At<'_>, proto: &GrpcHealthCheck) -> Result<CheckKind, XdsError> {
    Ok(CheckKind::Grpc {
        service: proto.service_name.clone(),
        authority: non_empty(&proto.authority),
        metadata: added(at.field("initial_metadata"), &proto.initial_metadata)?,
    })
}

fn payloads(at: At<'_>, protos: &[Payload]) -> Result<Vec<Vec<u8>>, XdsError> {
    protos.iter().enumerate().map(|(i, proto)| payload(at.index(i), proto)).collect()
}

/// Text is hexadecimal.
fn payload(at: At<'_>, proto: &Payload) -> Result<Vec<u8>, XdsError> {
    match &proto.payload {
        Some(PayloadKind::Binary(bytes)) => Ok(bytes.clone()),
        Some(PayloadKind::Text(text)) => {
            let digits: Option<Vec<u8>> =
                text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
            match digits.filter(|digits| !digits.is_empty() && digits.len().is_multiple_of(2)) {
                Some(digits) => Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()),
                None => Err(at.field("text").invalid(format!("{text:?} is not hexadecimal"))),
            }
        }
        None => Err(at.invalid("needs one of text, binary")),
    }
}

/// What an endpoint says of its checks.
pub(super) fn endpoint_check(at: At<'_>, proto: &HealthCheckConfig) -> Result<Box<EndpointCheck>, XdsError> {
    let at_port = at.field("port_value");
    let port = u16::try_from(proto.port_value)
        .map_err(|_| at_port.invalid(format!("must be at most 65535, not {}", proto.port_value)))?;
    Ok(Box::new(EndpointCheck {
        port: (port > 0).then_some(port),
        address: match &proto.address {
            Some(address) => Some(socket_address(at.field("address"), Some(address))?),
            None => None,
        },
        hostname: non_empty(&proto.hostname),
        disabled: proto.disable_active_health_check,
    }))
}

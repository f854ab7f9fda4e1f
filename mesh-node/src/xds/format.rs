//! Substitution formats: `%REQ(X?Y):N%` and the like, as text and as JSON.
//!
//! Grammar of Envoy's `SubstitutionFormatParser`: `%NAME%`, `%NAME(argument)%`, `%NAME(argument):length%`,
//! and `%%` for a percent sign. The argument runs to the first closing bracket that can end it.

use std::collections::BTreeMap;

use http::HeaderValue;
use mesh_xds::pb::envoy::config::core::v3::SubstitutionFormatString;
use mesh_xds::pb::envoy::config::core::v3::substitution_format_string::Format as FormatKind;
use mesh_xds::pb::google::protobuf::value::Kind;
use mesh_xds::pb::google::protobuf::{Struct, Value};

use super::common;
use super::error::{At, XdsError};
use crate::model::cel;
use crate::model::format::{
    CertificatePart, DurationUnit, Format, GrpcStatusForm, MetadataOf, Operator, Part, PathSource, Plain,
    ServerNameFrom, TimePoint,
};
use crate::model::network::BodyFormat;
use crate::telemetry::access_log::{JsonFormat, Layout, LogFormat};

/// Operators without an argument, by Envoy's name.
const PLAIN: &[(&str, Plain)] = &[
    ("BYTES_RECEIVED", Plain::BytesReceived),
    ("BYTES_SENT", Plain::BytesSent),
    ("PROTOCOL", Plain::Protocol),
    ("UPSTREAM_PROTOCOL", Plain::UpstreamProtocol),
    ("RESPONSE_CODE", Plain::ResponseCode),
    ("RESPONSE_CODE_DETAILS", Plain::ResponseCodeDetails),
    ("CONNECTION_TERMINATION_DETAILS", Plain::ConnectionTerminationDetails),
    ("RESPONSE_FLAGS", Plain::ResponseFlags),
    ("RESPONSE_FLAGS_LONG", Plain::ResponseFlagsLong),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", Plain::UpstreamTransportFailureReason),
    ("DOWNSTREAM_TRANSPORT_FAILURE_REASON", Plain::DownstreamTransportFailureReason),
    ("ROUTE_NAME", Plain::RouteName),
    ("VIRTUAL_HOST_NAME", Plain::VirtualHostName),
    ("DURATION", Plain::Duration),
    ("REQUEST_DURATION", Plain::RequestDuration),
    ("REQUEST_TX_DURATION", Plain::RequestTxDuration),
    ("RESPONSE_DURATION", Plain::ResponseDuration),
    ("RESPONSE_TX_DURATION", Plain::ResponseTxDuration),
    ("UPSTREAM_HOST", Plain::UpstreamHost),
    ("UPSTREAM_CLUSTER", Plain::UpstreamCluster),
    ("UPSTREAM_CLUSTER_RAW", Plain::UpstreamClusterRaw),
    ("UPSTREAM_LOCAL_ADDRESS", Plain::UpstreamLocalAddress),
    ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Plain::UpstreamLocalAddressWithoutPort),
    ("UPSTREAM_LOCAL_PORT", Plain::UpstreamLocalPort),
    ("UPSTREAM_REMOTE_PORT", Plain::UpstreamRemotePort),
    ("UPSTREAM_REMOTE_ADDRESS", Plain::UpstreamRemoteAddress),
    ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Plain::UpstreamRemoteAddressWithoutPort),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", Plain::UpstreamRequestAttemptCount),
    ("DOWNSTREAM_LOCAL_ADDRESS", Plain::DownstreamLocalAddress),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Plain::DownstreamLocalAddressWithoutPort),
    ("DOWNSTREAM_LOCAL_PORT", Plain::DownstreamLocalPort),
    ("DOWNSTREAM_REMOTE_ADDRESS", Plain::DownstreamRemoteAddress),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Plain::DownstreamRemoteAddressWithoutPort),
    ("DOWNSTREAM_REMOTE_PORT", Plain::DownstreamRemotePort),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Plain::DownstreamDirectRemoteAddress),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", Plain::DownstreamDirectRemoteAddressWithoutPort),
    ("DOWNSTREAM_DIRECT_REMOTE_PORT", Plain::DownstreamDirectRemotePort),
    ("DOWNSTREAM_TLS_VERSION", Plain::DownstreamTlsVersion),
    ("DOWNSTREAM_TLS_CIPHER", Plain::DownstreamTlsCipher),
    ("CONNECTION_ID", Plain::ConnectionId),
    ("STREAM_ID", Plain::StreamId),
    ("HOSTNAME", Plain::Hostname),
    ("REQUEST_HEADERS_BYTES", Plain::RequestHeadersBytes),
    ("RESPONSE_HEADERS_BYTES", Plain::ResponseHeadersBytes),
    ("RESPONSE_TRAILERS_BYTES", Plain::ResponseTrailersBytes),
    ("ACCESS_LOG_TYPE", Plain::AccessLogType),
    ("UPSTREAM_TLS_VERSION", Plain::UpstreamTlsVersion),
    ("UPSTREAM_TLS_CIPHER", Plain::UpstreamTlsCipher),
    ("UPSTREAM_CONNECTION_ID", Plain::UpstreamConnectionId),
    ("UPSTREAM_CONNECTION_POOL_READY_DURATION", Plain::UpstreamPoolReadyDuration),
    ("UPSTREAM_HOST_NAME", Plain::UpstreamHostName),
    ("UPSTREAM_HOST_NAME_WITHOUT_PORT", Plain::UpstreamHostNameWithoutPort),
    ("UPSTREAM_HOSTS_ATTEMPTED", Plain::UpstreamHostsAttempted),
    ("UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT", Plain::UpstreamHostsAttemptedWithoutPort),
    ("FILTER_CHAIN_NAME", Plain::FilterChainName),
    ("VIRTUAL_CLUSTER_NAME", Plain::VirtualClusterName),
    ("UNIQUE_ID", Plain::UniqueId),
    ("LOCAL_REPLY_BODY", Plain::LocalReplyBody),
    ("BYTES_RETRANSMITTED", Plain::Zero),
    ("PACKETS_RETRANSMITTED", Plain::Zero),
    ("ROUNDTRIP_DURATION", Plain::Unknown),
    ("TRACE_ID", Plain::TraceId),
    ("SPAN_ID", Plain::SpanId),
    ("CUSTOM_FLAGS", Plain::Unknown),
    ("TLS_JA3_FINGERPRINT", Plain::Unknown),
    ("TLS_JA4_FINGERPRINT", Plain::Unknown),
    ("DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID", Plain::Unknown),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID", Plain::Unknown),
    ("UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID", Plain::Unknown),
];

/// Prefixes of operators on certificates: of the upstream's connection, and whether of our own certificate.
const CERTIFICATES: [(&str, bool, bool); 4] = [
    ("DOWNSTREAM_PEER_", false, false),
    ("DOWNSTREAM_LOCAL_", false, true),
    ("UPSTREAM_PEER_", true, false),
    ("UPSTREAM_LOCAL_", true, true),
];

/// What follows the prefix; the latter half is told of clients only.
const CERTIFICATE_PARTS: &[(&str, CertificatePart)] = &[
    ("URI_SAN", CertificatePart::UriSan),
    ("DNS_SAN", CertificatePart::DnsSan),
    ("IP_SAN", CertificatePart::IpSan),
    ("SUBJECT", CertificatePart::Subject),
    ("EMAIL_SAN", CertificatePart::EmailSan),
    ("ISSUER", CertificatePart::Issuer),
    ("CERT", CertificatePart::Pem),
    ("SERIAL", CertificatePart::Serial),
    ("FINGERPRINT_256", CertificatePart::Sha256),
    ("FINGERPRINT_1", CertificatePart::Sha1),
    ("CHAIN_SERIALS", CertificatePart::ChainSerials),
    ("CHAIN_FINGERPRINTS_256", CertificatePart::ChainSha256),
    ("CHAIN_FINGERPRINTS_1", CertificatePart::ChainSha1),
];

/// Points of `COMMON_DURATION`. Connection and handshake belong to connections that many streams share.
const TIME_POINTS: &[(&str, TimePoint)] = &[
    ("DS_RX_BEG", TimePoint::DownstreamRxBegin),
    ("DS_RX_END", TimePoint::DownstreamRxEnd),
    ("US_TX_BEG", TimePoint::UpstreamTxBegin),
    ("US_TX_END", TimePoint::UpstreamTxEnd),
    ("US_RX_BEG", TimePoint::UpstreamRxBegin),
    ("US_RX_END", TimePoint::UpstreamRxEnd),
    ("DS_TX_BEG", TimePoint::DownstreamTxBegin),
    ("DS_TX_END", TimePoint::DownstreamTxEnd),
];

/// Operators of Envoy that are refused, and why.
const REFUSED: &[(&str, &str)] = &[
    ("DOWNSTREAM_WIRE_BYTES_RECEIVED", "bytes on the wire are counted per connection, not per stream"),
    ("DOWNSTREAM_WIRE_BYTES_SENT", "bytes on the wire are counted per connection, not per stream"),
    ("DOWNSTREAM_HEADER_BYTES_RECEIVED", "use REQUEST_HEADERS_BYTES"),
    ("DOWNSTREAM_HEADER_BYTES_SENT", "use RESPONSE_HEADERS_BYTES"),
    ("UPSTREAM_WIRE_BYTES_RECEIVED", "bytes on the wire are counted per connection, not per stream"),
    ("UPSTREAM_WIRE_BYTES_SENT", "bytes on the wire are counted per connection, not per stream"),
    ("UPSTREAM_HEADER_BYTES_RECEIVED", "bytes on the wire are counted per connection, not per stream"),
    ("UPSTREAM_HEADER_BYTES_SENT", "bytes on the wire are counted per connection, not per stream"),
    ("DOWNSTREAM_TLS_SESSION_ID", "sessions are resumed by tickets"),
    ("UPSTREAM_TLS_SESSION_ID", "sessions are resumed by tickets"),
    ("START_TIME_LOCAL", "times are in UTC; use START_TIME"),
    ("EMIT_TIME_LOCAL", "times are in UTC; use EMIT_TIME"),
];

/// Parses a format. The error is a message without a place.
pub fn parse(text: &str) -> Result<Format, String> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(percent) = rest.find('%') {
        literal.push_str(&rest[..percent]);
        rest = &rest[percent + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let (part, after) = operator(rest)?;
        if !literal.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut literal)));
        }
        parts.push(part);
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Text(literal));
    }
    Ok(Format { parts })
}

/// Reads one operator behind its first percent sign; returns what follows its last one.
fn operator(text: &str) -> Result<(Part, &str), String> {
    let broken =
        || format!("%{text}: not an operator; write %NAME%, %NAME(argument)% or %% for a percent sign");
    let end = text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
    let (name, mut rest) = text.split_at(end.ok_or_else(broken)?);
    let mut argument = None;
    if let Some(inner) = rest.strip_prefix('(') {
        // Up to the first bracket behind which the operator can end: expressions have some of their own.
        let ends = |after: &str| after.starts_with('%') || after.starts_with(':');
        let mut brackets = inner.match_indices(')').map(|(at, _)| at);
        let at = brackets.find(|at| ends(&inner[at + 1..])).ok_or_else(broken)?;
        argument = Some(&inner[..at]);
        rest = &inner[at + 1..];
    }
    let mut max_length = None;
    if let Some(after) = rest.strip_prefix(':') {
        let end = after.find(|c: char| !c.is_ascii_digit()).ok_or_else(broken)?;
        max_length = Some(after[..end].parse().map_err(|_| broken())?);
        rest = &after[end..];
    }
    let after = rest.strip_prefix('%').filter(|_| !name.is_empty()).ok_or_else(broken)?;
    let operator = named(name, argument)?;
    Ok((Part::Operator { operator, max_length }, after))
}

fn named(name: &str, argument: Option<&str>) -> Result<Operator, String> {
    let required = || {
        argument.filter(|a| !a.is_empty()).ok_or_else(|| format!("%{name}% needs an argument: %{name}(X)%"))
    };
    let time_format = || argument.filter(|a| !a.is_empty()).map(str::to_owned);
    let header = || -> Result<(String, Option<String>), String> {
        let lower = required()?.to_ascii_lowercase();
        Ok(match lower.split_once('?') {
            Some((first, second)) => (first.to_owned(), Some(second.to_owned())),
            None => (lower, None),
        })
    };
    match name {
        "REQ" => header().map(|(x, y)| Operator::Req(x, y)),
        "RESP" => header().map(|(x, y)| Operator::Resp(x, y)),
        "TRAILER" => header().map(|(x, y)| Operator::Trailer(x, y)),
        "REQUEST_HEADER" => header().map(|(x, y)| Operator::Req(x, y)),
        "RESPONSE_HEADER" => header().map(|(x, y)| Operator::Resp(x, y)),
        "RESPONSE_TRAILER" => header().map(|(x, y)| Operator::Trailer(x, y)),
        "START_TIME" => Ok(Operator::StartTime(time_format())),
        "EMIT_TIME" => Ok(Operator::EmitTime(time_format())),
        "DOWNSTREAM_PEER_CERT_V_START" | "UPSTREAM_PEER_CERT_V_START" => Ok(Operator::CertificateTime {
            upstream: name.starts_with('U'),
            end: false,
            format: time_format(),
        }),
        "DOWNSTREAM_PEER_CERT_V_END" | "UPSTREAM_PEER_CERT_V_END" => Ok(Operator::CertificateTime {
            upstream: name.starts_with('U'),
            end: true,
            format: time_format(),
        }),
        "REQ_WITHOUT_QUERY" => header().map(|(x, y)| Operator::ReqWithoutQuery(x, y)),
        "QUERY_PARAMS" => match argument.unwrap_or_default() {
            "" | "ORIG" => Ok(Operator::QueryParameters),
            other => Err(format!("%QUERY_PARAMS({other})%: there is ORIG")),
        },
        "REQUESTED_SERVER_NAME" => server_name(argument.unwrap_or_default()),
        "DYNAMIC_METADATA" => metadata(MetadataOf::Stream, required()?),
        "CLUSTER_METADATA" => metadata(MetadataOf::Cluster, required()?),
        "UPSTREAM_METADATA" => metadata(MetadataOf::Endpoint, required()?),
        // Of an extension that configurations name in `formatters`, as the one above.
        "METADATA" => match required()?.split_once(':') {
            Some(("DYNAMIC", rest)) => metadata(MetadataOf::Stream, rest),
            Some(("CLUSTER", rest)) => metadata(MetadataOf::Cluster, rest),
            Some(("UPSTREAM_HOST", rest)) => metadata(MetadataOf::Endpoint, rest),
            _ => Err("%METADATA(X:…)%: X is DYNAMIC, CLUSTER or UPSTREAM_HOST".to_owned()),
        },
        "FILTER_STATE" => filter_state(required()?),
        "UPSTREAM_FILTER_STATE" => filter_state(required()?).map(|_| Operator::Plain(Plain::Unknown)),
        "CEL" => Ok(Operator::Cel(Box::new(cel::parse(required()?)?))),
        "COALESCE" => coalesce(required()?),
        "GRPC_STATUS" => grpc_status_form(argument).map(Operator::GrpcStatus),
        "GRPC_STATUS_NUMBER" if argument.is_none() => Ok(Operator::GrpcStatus(GrpcStatusForm::Number)),
        "QUERY_PARAM" => Ok(Operator::QueryParameter(required()?.to_owned())),
        "PATH" => path(argument),
        "COMMON_DURATION" => common_duration(required()?),
        "ENVIRONMENT" => Ok(Operator::Environment(std::env::var(required()?).ok())),
        _ => {
            if let (Some(operator), None) = (certificate(name), argument) {
                return Ok(operator);
            }
            let plain = PLAIN.iter().find(|(known, _)| *known == name);
            match (plain, argument) {
                (Some((_, plain)), None) => Ok(Operator::Plain(*plain)),
                (Some(_), Some(_)) => Err(format!("%{name}% takes no argument")),
                (None, _) if let Some((_, reason)) = REFUSED.iter().find(|(known, _)| *known == name) => {
                    Err(format!("%{name}% is not supported: {reason}"))
                }
                (None, _) => Err(format!("%{name}% is not an operator that mesh-node knows; remove it")),
            }
        }
    }
}

fn grpc_status_form(argument: Option<&str>) -> Result<GrpcStatusForm, String> {
    match argument {
        None | Some("" | "CAMEL_STRING") => Ok(GrpcStatusForm::CamelCase),
        Some("SNAKE_STRING") => Ok(GrpcStatusForm::SnakeCase),
        Some("NUMBER") => Ok(GrpcStatusForm::Number),
        Some(_) => Err("%GRPC_STATUS(X)% takes CAMEL_STRING, SNAKE_STRING or NUMBER".to_owned()),
    }
}

fn path(argument: Option<&str>) -> Result<Operator, String> {
    let (query, source) = argument.map_or(("", ""), |text| text.split_once(':').unwrap_or((text, "")));
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        _ => return Err("%PATH(X:Y)% takes WQ or NQ, and ORIG, PATH or ORIG_OR_PATH".to_owned()),
    };
    Ok(Operator::Path { query, source: path_source(source)? })
}

fn path_source(text: &str) -> Result<PathSource, String> {
    match text {
        "ORIG" => Ok(PathSource::Original),
        "PATH" => Ok(PathSource::Current),
        "" | "ORIG_OR_PATH" => Ok(PathSource::OriginalOrCurrent),
        _ => Err(format!("{text:?}: there are ORIG, PATH and ORIG_OR_PATH")),
    }
}

fn server_name(argument: &str) -> Result<Operator, String> {
    let (from, host) = argument.split_once(':').unwrap_or((argument, ""));
    let from = match from {
        "" | "SNI_ONLY" => ServerNameFrom::Sni,
        "SNI_FIRST" => ServerNameFrom::SniFirst,
        "HOST_FIRST" => ServerNameFrom::HostFirst,
        _ => return Err(format!("{from:?}: there are SNI_ONLY, SNI_FIRST and HOST_FIRST")),
    };
    let host = match host {
        "ORIG" => PathSource::Original,
        "HOST" => PathSource::Current,
        "" | "ORIG_OR_HOST" => PathSource::OriginalOrCurrent,
        _ => return Err(format!("{host:?}: there are ORIG, HOST and ORIG_OR_HOST")),
    };
    Ok(Operator::ServerName { from, host })
}

/// `NAMESPACE:KEY:…`, or a JSON list, as formats of headers once were.
fn metadata(of: MetadataOf, argument: &str) -> Result<Operator, String> {
    let mut parts = match argument.starts_with('[') {
        true => serde_json::from_str::<Vec<String>>(argument)
            .map_err(|error| format!("{argument}: not a list of names: {error}"))?,
        false => argument.split(':').map(str::to_owned).collect(),
    }
    .into_iter();
    let namespace = parts.next().unwrap_or_default();
    Ok(Operator::Metadata { of, namespace, path: parts.collect() })
}

fn filter_state(argument: &str) -> Result<Operator, String> {
    let (key, form) = argument.split_once(':').unwrap_or((argument, ""));
    let plain = match form {
        "PLAIN" => true,
        "" | "TYPED" => false,
        _ => return Err(format!("%FILTER_STATE({argument})%: the form is PLAIN or TYPED")),
    };
    Ok(Operator::FilterState { key: key.to_owned(), plain })
}

/// `{"operators": ["NAME", {"command": "NAME", "param": "…", "max_length": N}]}`
fn coalesce(argument: &str) -> Result<Operator, String> {
    let wrong =
        || format!("%COALESCE({argument})%: needs {{\"operators\": [\"NAME\", {{\"command\": \"NAME\"}}]}}");
    let value: serde_json::Value = serde_json::from_str(argument).map_err(|_| wrong())?;
    let operators = value.get("operators").and_then(|list| list.as_array()).ok_or_else(wrong)?;
    let one = |value: &serde_json::Value| {
        let text = |key: &str| value.get(key).and_then(serde_json::Value::as_str);
        let name = value.as_str().or_else(|| text("command")).ok_or_else(wrong)?;
        let max_length = value.get("max_length").and_then(serde_json::Value::as_u64);
        let max_length = max_length.and_then(|length| usize::try_from(length).ok());
        Ok(Part::Operator { operator: named(name, text("param"))?, max_length })
    };
    match operators.is_empty() {
        true => Err(wrong()),
        false => Ok(Operator::Coalesce(operators.iter().map(one).collect::<Result<_, String>>()?)),
    }
}

/// `DOWNSTREAM_PEER_SUBJECT` and its kin.
fn certificate(name: &str) -> Option<Operator> {
    let (rest, upstream, own) = CERTIFICATES
        .iter()
        .find_map(|(prefix, upstream, own)| Some((name.strip_prefix(prefix)?, *upstream, *own)))?;
    let at = CERTIFICATE_PARTS.iter().position(|(known, _)| *known == rest)?;
    // As in Envoy.
    let told = match (upstream, own) {
        (false, false) => true,
        (false, true) => at < 5,
        (true, false) => at < 7 && rest != "EMAIL_SAN",
        (true, true) => at < 3,
    };
    told.then(|| Operator::Certificate { upstream, own, part: CERTIFICATE_PARTS[at].1 })
}

fn common_duration(argument: &str) -> Result<Operator, String> {
    let point = |name: &str| {
        let known = TIME_POINTS.iter().find(|(known, _)| *known == name);
        known.map(|(_, point)| *point).ok_or_else(|| {
            let names = TIME_POINTS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            format!("%COMMON_DURATION%: {name:?} is not a point in time that is known; there are {names}")
        })
    };
    let parts: Vec<_> = argument.split(':').collect();
    let [from, to, unit] = parts[..] else {
        return Err("%COMMON_DURATION% needs %COMMON_DURATION(START:END:ms)%, or us or ns".to_owned());
    };
    let unit = match unit {
        "ms" => DurationUnit::Milliseconds,
        "us" => DurationUnit::Microseconds,
        "ns" => DurationUnit::Nanoseconds,
        _ => return Err("%COMMON_DURATION%: the unit is ms, us or ns".to_owned()),
    };
    Ok(Operator::CommonDuration { from: point(from)?, to: point(to)?, unit })
}

/// `SubstitutionFormatString`, as an access log writes it.
pub(super) fn log_format(at: At<'_>, proto: &SubstitutionFormatString) -> Result<LogFormat, XdsError> {
    let layout = match &proto.format {
        Some(FormatKind::JsonFormat(fields)) => Layout::Json(object(at.field("json_format"), fields)?),
        _ => Layout::Text(text(at, proto)?),
    };
    Ok(LogFormat { layout, omit_empty: proto.omit_empty_values })
}

/// `SubstitutionFormatString`, as the body of an answer.
pub(super) fn body(at: At<'_>, proto: &SubstitutionFormatString) -> Result<BodyFormat, XdsError> {
    let format = log_format(at, proto)?;
    let content_type = match (proto.content_type.as_str(), &format.layout) {
        ("", Layout::Text(_)) => HeaderValue::from_static("text/plain"),
        ("", Layout::Json(_)) => HeaderValue::from_static("application/json"),
        (given, _) => HeaderValue::from_str(given)
            .map_err(|_| at.field("content_type").invalid(format!("{given:?} is not a header value")))?,
    };
    Ok(BodyFormat { format, content_type })
}

/// `SubstitutionFormatString` that must be text.
pub(super) fn text(at: At<'_>, proto: &SubstitutionFormatString) -> Result<Format, XdsError> {
    match &proto.format {
        Some(FormatKind::TextFormat(format)) => {
            parse(format).map_err(|message| at.field("text_format").invalid(message))
        }
        Some(FormatKind::TextFormatSource(source)) => {
            let at = at.field("text_format_source");
            parse(&common::text(at, source)?).map_err(|message| at.invalid(message))
        }
        Some(FormatKind::JsonFormat(_)) => Err(at.field("json_format").unsupported()),
        None => Err(at.invalid("needs one of text_format, text_format_source, json_format")),
    }
}

/// The fields of a JSON log line.
pub(super) fn object(at: At<'_>, fields: &Struct) -> Result<BTreeMap<String, JsonFormat>, XdsError> {
    let entries = fields.fields.iter();
    entries.map(|(name, value)| Ok((name.clone(), json(at.field(name), value)?))).collect()
}

fn json(at: At<'_>, value: &Value) -> Result<JsonFormat, XdsError> {
    Ok(match &value.kind {
        Some(Kind::StringValue(format)) => {
            JsonFormat::Format(parse(format).map_err(|message| at.invalid(message))?)
        }
        Some(Kind::NumberValue(number)) => JsonFormat::Literal((*number).into()),
        Some(Kind::BoolValue(boolean)) => JsonFormat::Literal((*boolean).into()),
        Some(Kind::StructValue(fields)) => JsonFormat::Object(object(at, fields)?),
        Some(Kind::ListValue(list)) => {
            let items = list.values.iter().enumerate().map(|(i, value)| json(at.index(i), value));
            JsonFormat::List(items.collect::<Result<_, _>>()?)
        }
        Some(Kind::NullValue(_)) | None => JsonFormat::Literal(serde_json::Value::Null),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn operator(operator: Operator) -> Part {
        Part::Operator { operator, max_length: None }
    }

    #[test]
    fn operators_with_arguments_alternatives_and_lengths_are_read() {
        let format = parse("a%%b %REQ(X-A?:PATH):10%%START_TIME(%Y/%m)% 100%% %BYTES_SENT%\n").unwrap();
        let req = Operator::Req("x-a".to_owned(), Some(":path".to_owned()));
        assert_eq!(
            format.parts,
            [
                text("a%b "),
                Part::Operator { operator: req, max_length: Some(10) },
                operator(Operator::StartTime(Some("%Y/%m".to_owned()))),
                text(" 100% "),
                operator(Operator::Plain(Plain::BytesSent)),
                text("\n"),
            ]
        );
    }

    #[test]
    fn mistakes_in_formats_are_named() {
        for (format, expected) in [
            ("%NOPE%", "%NOPE% is not an operator that mesh-node knows; remove it"),
            (
                "%CEL(x)%",
                "\"x\": x is not an attribute; there are request, response, connection, upstream, source, destination, metadata, filter_state, xds",
            ),
            ("%GRPC_STATUS(X)%", "%GRPC_STATUS(X)% takes CAMEL_STRING, SNAKE_STRING or NUMBER"),
            ("%COMMON_DURATION(DS_RX_BEG:DS_TX_END:h)%", "%COMMON_DURATION%: the unit is ms, us or ns"),
            ("%REQ%", "%REQ% needs an argument: %REQ(X)%"),
            ("%PROTOCOL(x)%", "%PROTOCOL% takes no argument"),
            ("50% off", "% off: not an operator; write %NAME%, %NAME(argument)% or %% for a percent sign"),
            ("%REQ(x", "%REQ(x: not an operator; write %NAME%, %NAME(argument)% or %% for a percent sign"),
        ] {
            assert_eq!(parse(format).unwrap_err(), expected);
        }
    }
}

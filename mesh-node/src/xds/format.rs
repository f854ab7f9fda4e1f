//! Substitution formats: `%REQ(X?Y):N%` and the like, as text and as JSON.
//!
//! Grammar of Envoy's `SubstitutionFormatParser`: `%NAME%`, `%NAME(argument)%`, `%NAME(argument):length%`,
//! and `%%` for a percent sign. The argument runs to the first closing bracket.

use std::collections::BTreeMap;

use mesh_xds::pb::envoy::config::core::v3::SubstitutionFormatString;
use mesh_xds::pb::envoy::config::core::v3::substitution_format_string::Format as FormatKind;
use mesh_xds::pb::google::protobuf::value::Kind;
use mesh_xds::pb::google::protobuf::{Struct, Value};

use super::common;
use super::error::{At, XdsError};
use crate::model::format::{
    DurationUnit, Format, GrpcStatusForm, Operator, Part, PathSource, Plain, TimePoint,
};
use crate::telemetry::access_log::{JsonFormat, LogFormat};

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
    ("DOWNSTREAM_PEER_URI_SAN", Plain::DownstreamPeerUriSan),
    ("DOWNSTREAM_PEER_DNS_SAN", Plain::DownstreamPeerDnsSan),
    ("DOWNSTREAM_PEER_IP_SAN", Plain::DownstreamPeerIpSan),
    ("DOWNSTREAM_PEER_EMAIL_SAN", Plain::DownstreamPeerEmailSan),
    ("DOWNSTREAM_PEER_SERIAL", Plain::DownstreamPeerSerial),
    ("DOWNSTREAM_PEER_FINGERPRINT_256", Plain::DownstreamPeerFingerprint256),
    ("DOWNSTREAM_PEER_CERT", Plain::DownstreamPeerCert),
    ("DOWNSTREAM_LOCAL_URI_SAN", Plain::DownstreamLocalUriSan),
    ("DOWNSTREAM_PEER_SUBJECT", Plain::DownstreamPeerSubject),
    ("DOWNSTREAM_LOCAL_SUBJECT", Plain::DownstreamLocalSubject),
    ("DOWNSTREAM_PEER_ISSUER", Plain::DownstreamPeerIssuer),
    ("DOWNSTREAM_TLS_VERSION", Plain::DownstreamTlsVersion),
    ("DOWNSTREAM_TLS_CIPHER", Plain::DownstreamTlsCipher),
    ("REQUESTED_SERVER_NAME", Plain::RequestedServerName),
    ("CONNECTION_ID", Plain::ConnectionId),
    ("STREAM_ID", Plain::StreamId),
    ("HOSTNAME", Plain::Hostname),
    ("REQUEST_HEADERS_BYTES", Plain::RequestHeadersBytes),
    ("RESPONSE_HEADERS_BYTES", Plain::ResponseHeadersBytes),
    ("RESPONSE_TRAILERS_BYTES", Plain::ResponseTrailersBytes),
    ("ACCESS_LOG_TYPE", Plain::AccessLogType),
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
    ("TRACE_ID", "nothing is traced"),
    ("ROUNDTRIP_DURATION", "there is no HTTP/3"),
    ("BYTES_RETRANSMITTED", "there is no HTTP/3"),
    ("PACKETS_RETRANSMITTED", "there is no HTTP/3"),
    ("DOWNSTREAM_WIRE_BYTES_RECEIVED", "bytes on the wire are counted per connection, not per stream"),
    ("DOWNSTREAM_WIRE_BYTES_SENT", "bytes on the wire are counted per connection, not per stream"),
    ("DOWNSTREAM_HEADER_BYTES_RECEIVED", "use REQUEST_HEADERS_BYTES"),
    ("DOWNSTREAM_HEADER_BYTES_SENT", "use RESPONSE_HEADERS_BYTES"),
    ("UPSTREAM_WIRE_BYTES_RECEIVED", "bytes on the wire are counted per connection, not per stream"),
    ("UPSTREAM_WIRE_BYTES_SENT", "bytes on the wire are counted per connection, not per stream"),
    ("UPSTREAM_HEADER_BYTES_RECEIVED", "bytes on the wire are counted per connection, not per stream"),
    ("UPSTREAM_HEADER_BYTES_SENT", "bytes on the wire are counted per connection, not per stream"),
    ("DOWNSTREAM_PEER_FINGERPRINT_1", "SHA-1 is not implemented; use DOWNSTREAM_PEER_FINGERPRINT_256"),
    ("DOWNSTREAM_TLS_SESSION_ID", "sessions are resumed by tickets"),
    ("TLS_JA3_FINGERPRINT", "fingerprints are not taken"),
    ("TLS_JA4_FINGERPRINT", "fingerprints are not taken"),
    ("VIRTUAL_CLUSTER_NAME", "there are no virtual clusters"),
    ("START_TIME_LOCAL", "times are in UTC; use START_TIME"),
    ("EMIT_TIME_LOCAL", "times are in UTC; use EMIT_TIME"),
    ("CEL", "there is no expression language"),
];

/// Operators that look up metadata or filter state.
const METADATA: [&str; 4] = ["DYNAMIC_METADATA", "FILTER_STATE", "CLUSTER_METADATA", "UPSTREAM_METADATA"];

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
        let (inside, after) = inner.split_once(')').ok_or_else(broken)?;
        argument = Some(inside);
        rest = after;
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
        "DOWNSTREAM_PEER_CERT_V_START" => {
            Ok(Operator::PeerCertificateTime { end: false, format: time_format() })
        }
        "DOWNSTREAM_PEER_CERT_V_END" => {
            Ok(Operator::PeerCertificateTime { end: true, format: time_format() })
        }
        "GRPC_STATUS" => grpc_status_form(argument).map(Operator::GrpcStatus),
        "GRPC_STATUS_NUMBER" if argument.is_none() => Ok(Operator::GrpcStatus(GrpcStatusForm::Number)),
        "QUERY_PARAM" => Ok(Operator::QueryParameter(required()?.to_owned())),
        "PATH" => path(argument),
        "COMMON_DURATION" => common_duration(required()?),
        "ENVIRONMENT" => Ok(Operator::Environment(std::env::var(required()?).ok())),
        _ => {
            if let Some(kind) = METADATA.into_iter().find(|kind| *kind == name) {
                return Ok(Operator::Metadata(kind, required()?.to_owned()));
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
    let wrong = || Err("%PATH(X:Y)% takes WQ or NQ, and ORIG, PATH or ORIG_OR_PATH".to_owned());
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        _ => return wrong(),
    };
    let source = match source {
        "ORIG" => PathSource::Original,
        "PATH" => PathSource::Current,
        "" | "ORIG_OR_PATH" => PathSource::OriginalOrCurrent,
        _ => return wrong(),
    };
    Ok(Operator::Path { query, source })
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
    match &proto.format {
        Some(FormatKind::JsonFormat(fields)) => Ok(LogFormat::Json(object(at.field("json_format"), fields)?)),
        _ => Ok(LogFormat::Text(text(at, proto)?)),
    }
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
            ("%TRACE_ID%", "%TRACE_ID% is not supported: nothing is traced"),
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

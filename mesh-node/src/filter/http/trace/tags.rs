//! What a span says of its stream: Envoy's standard tags under their names, then those of the configuration (Envoy:
//! `HttpTracerUtility::finalizeDownstreamSpan`).

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::super::stream::Stream;
use super::{Trace, rules};
use crate::model::tracing::{TagValue, Tracing};
use crate::telemetry::format::{Context, Missing, evaluate, metadata_text};
use crate::telemetry::protocol;
use crate::telemetry::stream_info::StreamInfo;

pub(super) type Tags = Vec<(String, String)>;

/// The tags of the stream's own span, and whether it failed.
pub(super) fn of_stream(
    stream: &Stream,
    tracing: &Tracing,
    trace: &Trace,
    context: &Context<'_>,
) -> (Tags, bool) {
    let info = context.info;
    let mut tags = Tags::new();
    let mut tag = |name: &str, value: Cow<'_, str>| tags.push((name.to_owned(), value.into_owned()));
    let local = stream.manager.local_peer();
    tag("node_id", String::from_utf8_lossy(local.id.as_bytes()));
    tag("zone", local.zone.as_str().into());
    if let Some(request) = context.request {
        let header = |name: &str| of(request.headers, name);
        if let Some(id) = header("x-request-id") {
            tag("guid:x-request-id", id);
        }
        let path = header("x-envoy-original-path").unwrap_or(request.path.into());
        let scheme = header("x-forwarded-proto").unwrap_or_default();
        let path = &path[..path.floor_char_boundary(tracing.max_path_bytes)];
        tag("http.url", format!("{scheme}://{}{path}", request.authority).into());
        tag("http.method", request.method.into());
        tag("downstream_cluster", header("x-envoy-downstream-service-cluster").unwrap_or("-".into()));
        tag("user_agent", header("user-agent").unwrap_or("-".into()));
        tag("http.protocol", info.protocol.map_or("-", protocol).into());
        tag("peer.address", info.connection.remote.ip().to_string().into());
        if let Some(id) = header("x-client-trace-id") {
            tag("guid:x-client-trace-id", id);
        }
        if stream.grpc {
            tag("grpc.path", request.path.into());
            tag("grpc.authority", request.authority.into());
            tag("grpc.content_type", header("content-type").unwrap_or_default());
            if let Some(timeout) = header("grpc-timeout") {
                tag("grpc.timeout", timeout);
            }
        }
    }
    tag("request_size", info.bytes_received.to_string().into());
    tag("response_size", info.bytes_sent.to_string().into());
    tag("component", "proxy".into());
    if let Some(cluster) = &info.upstream.cluster {
        tag("upstream_cluster", (&**cluster).into());
        tag(
            "upstream_cluster.name",
            stream.stat_name().map_or_else(|| cluster.to_string(), |n| n.to_string()).into(),
        );
    }
    let code = info.response_code.unwrap_or(0);
    tag("http.status_code", code.to_string().into());
    tag("response_flags", info.flags.short().into());
    let mut failed = code == 0 || code >= 500;
    if failed {
        tag("error", "true".into());
    }
    custom(tracing, trace, context, &mut tags);
    if let Some(status) = stream.grpc_status() {
        tags.push(("grpc.status_code".to_owned(), status.to_string()));
        if let Some(message) = context.response.and_then(|headers| of(headers, "grpc-message")) {
            tags.push(("grpc.message".to_owned(), message.into_owned()));
        }
        if status != 0 && !failed {
            tags.push(("error".to_owned(), "true".to_owned()));
            failed = true;
        }
    }
    // To a client all that it cannot use has failed (OpenTelemetry's conventions for HTTP).
    (tags, failed || (trace.client && code >= 400))
}

/// Tags of the configuration: a route's come before the connection manager's.
pub(super) fn custom(tracing: &Tracing, trace: &Trace, context: &Context<'_>, tags: &mut Tags) {
    let (own, all) = rules(tracing, trace);
    let own = own.map_or(&[][..], |own| &own.tags);
    let rest = all.tags.iter().filter(|tag| own.iter().all(|own| own.name != tag.name));
    for tag in own.iter().chain(rest) {
        let value = match &tag.value {
            TagValue::Literal(text) => Cow::from(text),
            TagValue::Header { name, default } => {
                let found = context.request.and_then(|request| of(request.headers, name.as_str()));
                found.unwrap_or(default.into())
            }
            TagValue::Metadata { of, namespace, path, default } => {
                metadata_text(context, *of, namespace, path).map_or(default.into(), Cow::from)
            }
            TagValue::Format(format) => {
                let mut text = String::new();
                evaluate(format, context, Missing::Empty, &mut text);
                text.into()
            }
        };
        if !value.is_empty() {
            put(tags, &tag.name, value.into_owned());
        }
    }
}

/// A name is given once; the last value counts.
fn put(tags: &mut Tags, name: &str, value: String) {
    match tags.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => *known = value,
        None => tags.push((name.to_owned(), value)),
    }
}

fn of<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, str>> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()))
}

/// When parts of the stream passed (`verbose`).
pub(super) fn events(info: &StreamInfo, upstream_only: bool) -> Vec<(SystemTime, &'static str)> {
    let downstream = |at: Option<Duration>| at.filter(|_| !upstream_only);
    [
        (downstream(info.last_downstream_rx), "last_downstream_rx_byte_received"),
        (info.first_upstream_tx, "first_upstream_tx_byte_sent"),
        (info.last_upstream_tx, "last_upstream_tx_byte_sent"),
        (info.first_upstream_rx, "first_upstream_rx_byte_received"),
        (info.last_upstream_rx, "last_upstream_rx_byte_received"),
        (downstream(info.first_downstream_tx), "first_downstream_tx_byte_sent"),
        (downstream(info.last_downstream_tx), "last_downstream_tx_byte_sent"),
    ]
    .into_iter()
    .filter_map(|(at, name)| Some((info.start_wall + at?, name)))
    .collect()
}

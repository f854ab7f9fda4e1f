//! Sends access logs to their servers (`envoy.service.accesslog.v3.AccessLogService`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use http::Version;
use http::header::{REFERER, USER_AGENT};
use mesh_xds::client::send_logs;
use mesh_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use mesh_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use mesh_xds::pb::envoy::config::core::v3::{Address, Node, RequestMethod, SocketAddress};
use mesh_xds::pb::envoy::data::accesslog::v3::http_access_log_entry::HttpVersion;
use mesh_xds::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, ConnectionProperties, HttpAccessLogEntry, HttpRequestProperties, HttpResponseProperties,
    ResponseFlags as FlagsProto, TcpAccessLogEntry, TlsProperties,
};
use mesh_xds::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use mesh_xds::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, Identifier, LogEntries, TcpAccessLogEntries,
};
use mesh_xds::pb::google::protobuf::{Duration as DurationProto, Timestamp, UInt32Value};
use tokio::sync::mpsc;

use super::Servers;
use crate::telemetry::log_file::LogFiles;
use crate::telemetry::remote_log::{Entry, RemoteLog, Target};
use crate::telemetry::stream_info::ResponseFlags;

/// Envoy's `buffer_flush_interval`.
const INTERVAL: Duration = Duration::from_secs(1);

/// Sends what is logged, for as long as the logs are there.
pub async fn send_remote_logs(files: Weak<LogFiles>, servers: Arc<Servers>, node: Node) {
    let mut streams: HashMap<Target, mpsc::Sender<StreamAccessLogsMessage>> = HashMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(files) = files.upgrade() else { return };
        let logs = files.remote().held();
        streams.retain(|target, stream| !stream.is_closed() && logs.iter().any(|log| log.target == *target));
        for log in logs {
            let entries = log.take();
            if !entries.is_empty() {
                send(&log, entries, &mut streams, (&servers, &node));
            }
        }
    }
}

fn send(
    log: &RemoteLog,
    entries: Vec<Entry>,
    streams: &mut HashMap<Target, mpsc::Sender<StreamAccessLogsMessage>>,
    (servers, node): (&Servers, &Node),
) {
    let (target, count) = (&log.target, entries.len());
    let mut message = StreamAccessLogsMessage { identifier: None, log_entries: Some(of(target, entries)) };
    if !streams.contains_key(target) {
        // The first message of a stream says whose log it is.
        let (node, log_name) = (Some(node.clone()), target.name.to_string());
        message.identifier = Some(Identifier { node, log_name });
        match servers.get(&target.server, false) {
            Ok(server) => {
                let name = server.name.clone();
                let ended = move |reason: &str| {
                    tracing::warn!(server = %name, "the stream of access logs ended: {reason}");
                };
                streams.insert(target.clone(), send_logs(&server, ended));
            }
            Err(reason) => {
                tracing::error!(server = %target.server.authority, "access log not sent: {reason}")
            }
        }
    }
    if streams.get(target).is_none_or(|stream| stream.try_send(message).is_err()) {
        log.dropped(count);
    }
}

fn of(target: &Target, entries: Vec<Entry>) -> LogEntries {
    if target.tcp {
        LogEntries::TcpLogs(TcpAccessLogEntries { log_entry: entries.into_iter().map(tcp).collect() })
    } else {
        LogEntries::HttpLogs(HttpAccessLogEntries { log_entry: entries.into_iter().map(http).collect() })
    }
}

fn tcp(entry: Entry) -> TcpAccessLogEntry {
    let (received_bytes, sent_bytes) = (entry.bytes_received, entry.bytes_sent);
    TcpAccessLogEntry {
        common_properties: Some(common(entry)),
        connection_properties: Some(ConnectionProperties { received_bytes, sent_bytes }),
    }
}

fn http(mut entry: Entry) -> HttpAccessLogEntry {
    let (received, sent) = (entry.bytes_received, entry.bytes_sent);
    let Some(http) = entry.http.take() else { return HttpAccessLogEntry::default() };
    let request = http.request.map(|head| {
        let header = |name: &str| {
            head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        HttpRequestProperties {
            request_method: RequestMethod::from_str_name(head.method.as_str())
                .map_or(RequestMethod::MethodUnspecified as i32, |method| method as i32),
            scheme: head.scheme.to_string(),
            user_agent: header(USER_AGENT.as_str()),
            referer: header(REFERER.as_str()),
            forwarded_for: header("x-forwarded-for"),
            request_id: header("x-request-id"),
            original_path: header("x-envoy-original-path"),
            authority: head.authority,
            path: head.path,
            request_headers_bytes: http.request_headers_bytes,
            request_body_bytes: received,
            ..HttpRequestProperties::default()
        }
    });
    let version = match http.version {
        Some(Version::HTTP_10) => HttpVersion::Http10,
        Some(Version::HTTP_11) => HttpVersion::Http11,
        Some(Version::HTTP_2) => HttpVersion::Http2,
        _ => HttpVersion::ProtocolUnspecified,
    };
    HttpAccessLogEntry {
        common_properties: Some(common(entry)),
        protocol_version: version as i32,
        request,
        response: Some(HttpResponseProperties {
            response_code: http.code.map(|code| UInt32Value { value: code.into() }),
            response_code_details: http.code_details.unwrap_or_default(),
            response_headers_bytes: http.response_headers_bytes,
            response_body_bytes: sent,
            ..HttpResponseProperties::default()
        }),
    }
}

fn common(entry: Entry) -> AccessLogCommon {
    let start = entry.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let tls =
        entry.server_name.map(|name| TlsProperties { tls_sni_hostname: name, ..TlsProperties::default() });
    AccessLogCommon {
        sample_rate: 1.0,
        downstream_remote_address: Some(address(entry.remote)),
        downstream_direct_remote_address: Some(address(entry.direct_remote)),
        downstream_local_address: Some(address(entry.local)),
        tls_properties: tls,
        start_time: Some(Timestamp {
            seconds: i64::try_from(start.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(start.subsec_nanos()).unwrap_or(0),
        }),
        duration: entry.duration.map(|duration| DurationProto {
            seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
        }),
        upstream_remote_address: entry.upstream.host.map(address),
        upstream_local_address: entry.upstream.local().map(address),
        upstream_cluster: entry.upstream.cluster.as_deref().unwrap_or_default().to_owned(),
        upstream_transport_failure_reason: entry.upstream.transport_failure.unwrap_or_default(),
        upstream_request_attempt_count: entry.upstream.attempts,
        response_flags: (!entry.flags.is_empty()).then(|| flags(entry.flags)),
        route_name: entry.route.as_deref().unwrap_or_default().to_owned(),
        connection_termination_details: entry.termination_details.unwrap_or_default(),
        ..AccessLogCommon::default()
    }
}

fn flags(set: ResponseFlags) -> FlagsProto {
    type F = ResponseFlags;
    FlagsProto {
        failed_local_healthcheck: set.contains(F::FAILED_LOCAL_HEALTH_CHECK),
        no_healthy_upstream: set.contains(F::NO_HEALTHY_UPSTREAM),
        upstream_request_timeout: set.contains(F::UPSTREAM_REQUEST_TIMEOUT),
        local_reset: set.contains(F::LOCAL_RESET),
        upstream_remote_reset: set.contains(F::UPSTREAM_REMOTE_RESET),
        upstream_connection_failure: set.contains(F::UPSTREAM_CONNECTION_FAILURE),
        upstream_connection_termination: set.contains(F::UPSTREAM_CONNECTION_TERMINATION),
        upstream_overflow: set.contains(F::UPSTREAM_OVERFLOW),
        no_route_found: set.contains(F::NO_ROUTE_FOUND),
        delay_injected: set.contains(F::DELAY_INJECTED),
        fault_injected: set.contains(F::FAULT_INJECTED),
        rate_limited: set.contains(F::RATE_LIMITED),
        rate_limit_service_error: set.contains(F::RATELIMIT_SERVICE_ERROR),
        downstream_connection_termination: set.contains(F::DOWNSTREAM_CONNECTION_TERMINATION),
        upstream_retry_limit_exceeded: set.contains(F::UPSTREAM_RETRY_LIMIT_EXCEEDED),
        stream_idle_timeout: set.contains(F::STREAM_IDLE_TIMEOUT),
        invalid_envoy_request_headers: set.contains(F::INVALID_ENVOY_REQUEST_HEADERS),
        downstream_protocol_error: set.contains(F::DOWNSTREAM_PROTOCOL_ERROR),
        upstream_max_stream_duration_reached: set.contains(F::UPSTREAM_MAX_STREAM_DURATION_REACHED),
        response_from_cache_filter: set.contains(F::RESPONSE_FROM_CACHE_FILTER),
        no_filter_config_found: set.contains(F::NO_FILTER_CONFIG_FOUND),
        duration_timeout: set.contains(F::DURATION_TIMEOUT),
        upstream_protocol_error: set.contains(F::UPSTREAM_PROTOCOL_ERROR),
        no_cluster_found: set.contains(F::NO_CLUSTER_FOUND),
        overload_manager: set.contains(F::OVERLOAD_MANAGER),
        dns_resolution_failure: set.contains(F::DNS_RESOLUTION_FAILED),
        downstream_remote_reset: set.contains(F::DOWNSTREAM_REMOTE_RESET),
        ..FlagsProto::default()
    }
}

fn address(of: SocketAddr) -> Address {
    let port = Some(PortSpecifier::PortValue(of.port().into()));
    let socket =
        SocketAddress { address: of.ip().to_string(), port_specifier: port, ..SocketAddress::default() };
    Address { address: Some(AddressKind::SocketAddress(socket)) }
}

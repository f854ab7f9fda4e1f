//! The values of operators that take no argument, and of those on certificates.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use http::Version;

use super::certificate::{self, San};
use super::format::{Context, Value, header};
use super::stream_info::TlsInfo;
use crate::model::format::{CertificatePart, Plain};

pub(super) fn plain<'a>(plain: Plain, context: &Context<'a>) -> Value<'a> {
    let info = context.info;
    let connection = &*info.connection;
    let upstream = &info.upstream;
    let tls = connection.tls.as_deref();
    let ms = |time: Option<Duration>| time.map_or(Value::Missing, |t| Value::Number(t.as_millis() as u64));
    let address = |address: Option<SocketAddr>| Value::from(address.map(|a| a.to_string()));
    let ip = |address: Option<SocketAddr>| Value::from(address.map(|a| a.ip().to_string()));
    let port = |address: SocketAddr| Value::Number(address.port().into());
    match plain {
        Plain::BytesReceived => Value::Number(info.bytes_received),
        Plain::BytesSent => Value::Number(info.bytes_sent),
        Plain::RequestHeadersBytes => Value::Number(info.request_headers_bytes),
        Plain::ResponseHeadersBytes => Value::Number(info.response_headers_bytes),
        Plain::ResponseTrailersBytes => {
            let lines = context.trailers.into_iter().flatten();
            Value::Number(lines.map(|(name, value)| (name.as_str().len() + value.len()) as u64).sum())
        }
        Plain::Protocol => info.protocol.map(protocol).into(),
        Plain::UpstreamProtocol => upstream.protocol.map(protocol).into(),
        Plain::ResponseCode => Value::Number(info.response_code.unwrap_or(0).into()),
        Plain::ResponseCodeDetails => info.response_code_details.as_deref().into(),
        Plain::ConnectionTerminationDetails => info.connection_termination_details.as_deref().into(),
        Plain::ResponseFlags => Value::Text(info.flags.short().into()),
        Plain::ResponseFlagsLong => Value::Text(info.flags.long().into()),
        Plain::UpstreamTransportFailureReason => upstream.transport_failure.as_deref().into(),
        // A failed handshake has no stream of which it could be told.
        Plain::DownstreamTransportFailureReason => Value::Missing,
        Plain::RouteName => info.route_name.as_deref().filter(|name| !name.is_empty()).into(),
        Plain::VirtualHostName => info.virtual_host.as_deref().into(),
        Plain::Duration => ms(info.end),
        Plain::RequestDuration => ms(info.last_downstream_rx),
        Plain::RequestTxDuration => ms(info.last_upstream_tx),
        Plain::ResponseDuration => ms(info.first_upstream_rx),
        Plain::ResponseTxDuration => {
            ms(info.last_downstream_tx.zip(info.first_upstream_rx).map(|(to, from)| to.saturating_sub(from)))
        }
        Plain::UpstreamHost | Plain::UpstreamRemoteAddress => address(upstream.host),
        Plain::UpstreamRemoteAddressWithoutPort => ip(upstream.host),
        Plain::UpstreamCluster | Plain::UpstreamClusterRaw => upstream.cluster.as_deref().into(),
        Plain::UpstreamLocalAddress => address(upstream.local()),
        Plain::UpstreamLocalAddressWithoutPort => ip(upstream.local()),
        Plain::UpstreamLocalPort => upstream.local().map_or(Value::Missing, port),
        Plain::UpstreamRemotePort => upstream.host.map_or(Value::Missing, port),
        Plain::UpstreamRequestAttemptCount => Value::Number(upstream.attempts.into()),
        Plain::DownstreamLocalAddress => address(Some(connection.local)),
        Plain::DownstreamLocalAddressWithoutPort => ip(Some(connection.local)),
        Plain::DownstreamLocalPort => port(connection.local),
        Plain::DownstreamRemoteAddress => address(Some(info.remote)),
        Plain::DownstreamRemoteAddressWithoutPort => ip(Some(info.remote)),
        Plain::DownstreamRemotePort => port(info.remote),
        Plain::DownstreamDirectRemoteAddress => address(Some(connection.peer)),
        Plain::DownstreamDirectRemoteAddressWithoutPort => ip(Some(connection.peer)),
        Plain::DownstreamDirectRemotePort => port(connection.peer),
        Plain::DownstreamTlsVersion => tls.map(|tls| tls.version).into(),
        Plain::DownstreamTlsCipher => tls.map(|tls| tls.cipher).into(),
        Plain::UpstreamTlsVersion => upstream.tls().map(|tls| tls.version).into(),
        Plain::UpstreamTlsCipher => upstream.tls().map(|tls| tls.cipher).into(),
        Plain::UpstreamConnectionId => {
            upstream.connection.as_ref().map_or(Value::Missing, |connection| Value::Number(connection.id))
        }
        Plain::UpstreamPoolReadyDuration => ms(info.first_upstream_tx),
        Plain::UpstreamHostName => host_name(context, true),
        Plain::UpstreamHostNameWithoutPort => host_name(context, false),
        Plain::UpstreamHostsAttempted => attempted(context, true),
        Plain::UpstreamHostsAttemptedWithoutPort => attempted(context, false),
        Plain::FilterChainName => Some(&*connection.filter_chain).filter(|name| !name.is_empty()).into(),
        Plain::VirtualClusterName => info.virtual_cluster.as_deref().into(),
        Plain::UniqueId => Value::Text(unique_id().into()),
        Plain::LocalReplyBody => Value::Text(context.local_reply.unwrap_or_default().into()),
        Plain::Zero => Value::Number(0),
        Plain::TraceId => info.trace.as_ref().map(|span| span.trace_id()).into(),
        Plain::SpanId => info.trace.as_ref().and_then(|span| span.id_in_logs()).into(),
        Plain::Unknown => Value::Missing,
        Plain::ConnectionId => Value::Number(connection.id),
        Plain::StreamId => context.request.and_then(|request| header(request.headers, "x-request-id")).into(),
        Plain::Hostname => Some(hostname()).into(),
        Plain::AccessLogType => {
            let http = info.protocol.is_some();
            Some(if http { "DownstreamEnd" } else { "TcpConnectionEnd" }).into()
        }
    }
}

/// A protocol by Envoy's name.
pub fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

/// The name of this machine.
fn hostname() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim().to_owned()
    })
}

/// The endpoint's name, or its address.
fn host_name<'a>(context: &Context<'a>, port: bool) -> Value<'a> {
    let name = context.upstream.and_then(|upstream| upstream.host_name);
    let address = context.info.upstream.host;
    match (name, address) {
        (Some(name), _) => Value::Text(name.into()),
        (None, Some(address)) if port => Value::Text(address.to_string().into()),
        (None, Some(address)) => Value::Text(address.ip().to_string().into()),
        (None, None) => Value::Missing,
    }
}

/// All hosts that were tried, joined by commas.
fn attempted<'a>(context: &Context<'a>, port: bool) -> Value<'a> {
    let upstream = &context.info.upstream;
    let hosts = upstream.earlier.iter().chain(&upstream.host);
    let text = |host: &SocketAddr| if port { host.to_string() } else { host.ip().to_string() };
    joined(hosts.map(text))
}

fn joined<'a>(texts: impl Iterator<Item = impl AsRef<str>>) -> Value<'a> {
    let mut all = String::new();
    for text in texts {
        let _ = write!(all, "{}{}", if all.is_empty() { "" } else { "," }, text.as_ref());
    }
    if all.is_empty() { Value::Missing } else { Value::Text(all.into()) }
}

/// A random UUID.
fn unique_id() -> String {
    let bits = fastrand::u128(..) & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn session<'a>(context: &Context<'a>, upstream: bool) -> Option<&'a TlsInfo> {
    if upstream { context.info.upstream.tls() } else { context.info.connection.tls.as_deref() }
}

/// A certificate of a session, in DER: the peer's or our own.
pub(super) fn leaf<'a>(context: &Context<'a>, upstream: bool, own: bool) -> Option<&'a [u8]> {
    let session = session(context, upstream)?;
    if own { session.local_leaf.as_deref() } else { session.peer_chain.first().map(Vec::as_slice) }
}

/// A part of a certificate.
pub(super) fn certificate<'a>(
    context: &Context<'a>,
    upstream: bool,
    own: bool,
    part: CertificatePart,
) -> Value<'a> {
    let leaf = || leaf(context, upstream, own);
    let sans = |kind| leaf().and_then(|leaf| certificate::sans(leaf, kind)).into();
    let chain = || session(context, upstream).into_iter().flat_map(|session| &session.peer_chain);
    match part {
        CertificatePart::UriSan => sans(San::Uri),
        CertificatePart::DnsSan => sans(San::Dns),
        CertificatePart::IpSan => sans(San::Ip),
        CertificatePart::EmailSan => sans(San::Email),
        CertificatePart::Subject => leaf().and_then(|leaf| certificate::subject(leaf, false)).into(),
        CertificatePart::Issuer => leaf().and_then(|leaf| certificate::subject(leaf, true)).into(),
        CertificatePart::Serial => leaf().and_then(certificate::serial).into(),
        CertificatePart::Sha256 => leaf().map(certificate::sha256_hex).into(),
        CertificatePart::Sha1 => leaf().map(certificate::sha1_hex).into(),
        CertificatePart::ChainSerials => joined(chain().filter_map(|der| certificate::serial(der))),
        CertificatePart::ChainSha256 => joined(chain().map(|der| certificate::sha256_hex(der))),
        CertificatePart::ChainSha1 => joined(chain().map(|der| certificate::sha1_hex(der))),
        CertificatePart::Pem => leaf().map(certificate::url_encoded_pem).into(),
    }
}

//! Evaluates Envoy's substitution formats against a stream: for access logs, header changes and bodies of
//! local replies. Parsing is not done here.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method, Version};

use super::certificate::{self, San};
use super::stream_info::{StreamInfo, TlsInfo};
use super::{grpc_status, time};
use crate::model::format::{
    DurationUnit, Format, GrpcStatusForm, Operator, Part, PathSource, Plain, TimePoint,
};

/// Envoy's default format of access logs (`AccessLogFormatUtils::defaultAccessLogFormatter`).
pub const DEFAULT_ACCESS_LOG: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% \
     %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
     %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
     \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// The head of a request, kept for the access log.
#[derive(Debug, Clone)]
pub struct RequestHead {
    pub method: Method,
    pub scheme: Cow<'static, str>,
    pub authority: String,
    /// With the query.
    pub path: String,
    pub headers: HeaderMap,
}

impl RequestHead {
    fn view(&self) -> RequestView<'_> {
        RequestView {
            method: self.method.as_str(),
            scheme: &self.scheme,
            authority: &self.authority,
            path: &self.path,
            headers: &self.headers,
        }
    }
}

/// The head of a request as formats see it.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    pub method: &'a str,
    pub scheme: &'a str,
    pub authority: &'a str,
    pub path: &'a str,
    pub headers: &'a HeaderMap,
}

impl<'a> From<&'a RequestHead> for RequestView<'a> {
    fn from(head: &'a RequestHead) -> Self {
        head.view()
    }
}

/// What a format may speak of.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub info: &'a StreamInfo,
    pub request: Option<RequestView<'a>>,
    pub response: Option<&'a HeaderMap>,
    pub trailers: Option<&'a HeaderMap>,
}

/// What is written for a value that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// `-`: access logs and bodies.
    Dash,
    /// Nothing: header values.
    Empty,
}

/// Appends the text of `format` to `out`.
pub fn evaluate(format: &Format, context: &Context<'_>, missing: Missing, out: &mut String) {
    for part in &format.parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Operator { operator, max_length } => match value(operator, context) {
                Value::Text(text) => out.push_str(truncated(&text, *max_length)),
                Value::Number(number) => out.push_str(itoa::Buffer::new().format(number)),
                Value::Missing if missing == Missing::Dash => out.push('-'),
                Value::Missing => {}
            },
        }
    }
}

/// The value of one operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Missing,
    Text(Cow<'a, str>),
    Number(u64),
}

impl<'a, T: Into<Cow<'a, str>>> From<Option<T>> for Value<'a> {
    fn from(text: Option<T>) -> Self {
        text.map_or(Value::Missing, |text| Value::Text(text.into()))
    }
}

/// At most `max_length` bytes, cut at a character.
pub(super) fn truncated(text: &str, max_length: Option<usize>) -> &str {
    max_length.map_or(text, |max| &text[..text.floor_char_boundary(max)])
}

/// Evaluates one operator.
pub(super) fn value<'a>(operator: &Operator, context: &Context<'a>) -> Value<'a> {
    match operator {
        Operator::Req(first, second) => {
            let of = |name: &str| context.request.and_then(|request| request_header(request, name));
            of(first).or_else(|| second.as_deref().and_then(of)).into()
        }
        Operator::Resp(first, second) => {
            let of = |name: &str| response_header(context, name);
            of(first).or_else(|| second.as_deref().and_then(of)).into()
        }
        Operator::Trailer(first, second) => {
            let of = |name: &str| context.trailers.and_then(|trailers| header(trailers, name));
            of(first).or_else(|| second.as_deref().and_then(of)).into()
        }
        Operator::StartTime(format) => written_time(context.info.start_wall, format.as_deref()),
        Operator::EmitTime(format) => written_time(SystemTime::now(), format.as_deref()),
        Operator::PeerCertificateTime { end, format } => {
            match peer_leaf(context).and_then(|leaf| certificate::validity(leaf, *end)) {
                Some(at) => written_time(at, format.as_deref()),
                None => Value::Missing,
            }
        }
        Operator::GrpcStatus(form) => grpc_status(context, *form),
        Operator::QueryParameter(name) => query_parameter(context, name).into(),
        Operator::Path { query, source } => path(context, *query, *source).into(),
        Operator::CommonDuration { from, to, unit } => duration(context.info, *from, *to, *unit),
        Operator::Plain(plain) => plain_value(*plain, context),
        // No filter writes metadata or filter state.
        Operator::Metadata(..) => Value::Missing,
        Operator::Environment(value) => value.clone().into(),
    }
}

fn written_time<'a>(at: SystemTime, format: Option<&str>) -> Value<'a> {
    let mut text = String::new();
    match format {
        None => time::iso8601_ms(at, &mut text),
        Some(format) => time::strftime(at, format, &mut text),
    }
    Value::Text(text.into())
}

/// The client's certificate, in DER.
fn peer_leaf<'a>(context: &Context<'a>) -> Option<&'a [u8]> {
    context.info.connection.tls.as_deref()?.peer_chain.first().map(Vec::as_slice)
}

fn grpc_status<'a>(context: &Context<'a>, form: GrpcStatusForm) -> Value<'a> {
    let code = context.request.and_then(|request| {
        let status = context.info.response_code;
        grpc_status::code(request.headers, context.response, context.trailers, status)
    });
    match (code, form) {
        (None, _) => Value::Missing,
        (Some(code), GrpcStatusForm::Number) if code >= 0 => Value::Number(code.unsigned_abs()),
        (Some(code), form) => Value::Text(grpc_status::text(code, form)),
    }
}

fn path<'a>(context: &Context<'a>, query: bool, source: PathSource) -> Option<Cow<'a, str>> {
    let request = context.request?;
    let original = || header(request.headers, "x-envoy-original-path");
    let current = || request_header(request, ":path");
    let path = match source {
        PathSource::Original => original(),
        PathSource::Current => current(),
        PathSource::OriginalOrCurrent => original().or_else(current),
    }?;
    let end = if query { path.len() } else { path.find('?').unwrap_or(path.len()) };
    Some(match path {
        Cow::Borrowed(path) => Cow::Borrowed(&path[..end]),
        Cow::Owned(path) => Cow::Owned(path[..end].to_owned()),
    })
}

/// The first value of a query parameter, percent-decoded.
fn query_parameter<'a>(context: &Context<'a>, name: &str) -> Option<String> {
    let path = path(context, true, PathSource::OriginalOrCurrent)?;
    let (_, query) = path.split_once('?')?;
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| percent_decoded(value))
}

/// What is no escape stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = after.get(..2).filter(|_| *first == b'%').and_then(|digits| {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            u8::try_from(digit(digits[0])? * 16 + digit(digits[1])?).ok()
        });
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn duration<'a>(info: &StreamInfo, from: TimePoint, to: TimePoint, unit: DurationUnit) -> Value<'a> {
    let at = |point| match point {
        TimePoint::DownstreamRxBegin => Some(Duration::ZERO),
        TimePoint::DownstreamRxEnd => info.last_downstream_rx,
        TimePoint::UpstreamTxBegin => info.first_upstream_tx,
        TimePoint::UpstreamTxEnd => info.last_upstream_tx,
        TimePoint::UpstreamRxBegin => info.first_upstream_rx,
        TimePoint::UpstreamRxEnd => info.last_upstream_rx,
        TimePoint::DownstreamTxBegin => info.first_downstream_tx,
        TimePoint::DownstreamTxEnd => info.last_downstream_tx,
    };
    let Some(between) = at(from).zip(at(to)).and_then(|(from, to)| to.checked_sub(from)) else {
        return Value::Missing;
    };
    let count = match unit {
        DurationUnit::Milliseconds => between.as_millis(),
        DurationUnit::Microseconds => between.as_micros(),
        DurationUnit::Nanoseconds => between.as_nanos(),
    };
    Value::Number(u64::try_from(count).unwrap_or(u64::MAX))
}

fn request_header<'a>(request: RequestView<'a>, name: &str) -> Option<Cow<'a, str>> {
    let pseudo = |text: &'a str| (!text.is_empty()).then_some(Cow::Borrowed(text));
    match name {
        ":method" => pseudo(request.method),
        ":scheme" => pseudo(request.scheme),
        ":authority" | "host" => pseudo(request.authority),
        ":path" => pseudo(request.path),
        name => header(request.headers, name),
    }
}

fn response_header<'a>(context: &Context<'a>, name: &str) -> Option<Cow<'a, str>> {
    if name == ":status" {
        return context.info.response_code.map(|code| Cow::Owned(code.to_string()));
    }
    header(context.response?, name)
}

/// The first header of that name, as Envoy takes it.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, str>> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()))
}

fn plain_value<'a>(plain: Plain, context: &Context<'a>) -> Value<'a> {
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
        Plain::UpstreamLocalAddress => address(upstream.local),
        Plain::UpstreamLocalAddressWithoutPort => ip(upstream.local),
        Plain::UpstreamLocalPort => upstream.local.map_or(Value::Missing, port),
        Plain::UpstreamRemotePort => upstream.host.map_or(Value::Missing, port),
        Plain::UpstreamRequestAttemptCount => Value::Number(upstream.attempts.into()),
        Plain::DownstreamLocalAddress => address(Some(connection.local)),
        Plain::DownstreamLocalAddressWithoutPort => ip(Some(connection.local)),
        Plain::DownstreamLocalPort => port(connection.local),
        Plain::DownstreamRemoteAddress => address(Some(info.remote)),
        Plain::DownstreamRemoteAddressWithoutPort => ip(Some(info.remote)),
        Plain::DownstreamRemotePort => port(info.remote),
        Plain::DownstreamDirectRemoteAddress => address(Some(connection.remote)),
        Plain::DownstreamDirectRemoteAddressWithoutPort => ip(Some(connection.remote)),
        Plain::DownstreamDirectRemotePort => port(connection.remote),
        Plain::DownstreamPeerUriSan => joined(tls, |tls| tls.peer_uri_sans.iter().map(|san| &**san)),
        Plain::DownstreamPeerDnsSan => joined(tls, |tls| tls.peer_dns_sans.iter().map(|san| &**san)),
        Plain::DownstreamPeerIpSan => {
            peer_leaf(context).and_then(|leaf| certificate::sans(leaf, San::Ip)).into()
        }
        Plain::DownstreamPeerEmailSan => {
            peer_leaf(context).and_then(|leaf| certificate::sans(leaf, San::Email)).into()
        }
        Plain::DownstreamPeerSerial => peer_leaf(context).and_then(certificate::serial).into(),
        Plain::DownstreamPeerFingerprint256 => peer_leaf(context).map(certificate::sha256_hex).into(),
        Plain::DownstreamPeerCert => peer_leaf(context).map(certificate::url_encoded_pem).into(),
        Plain::DownstreamLocalUriSan => joined(tls, |tls| tls.local_uri_sans.iter().map(|san| &**san)),
        Plain::DownstreamPeerSubject => tls.and_then(|tls| tls.peer_subject.as_deref()).into(),
        // Known to the filter chain's TLS context only, which the stream does not carry.
        Plain::DownstreamLocalSubject => Value::Missing,
        Plain::DownstreamPeerIssuer => tls.and_then(|tls| tls.peer_issuer.as_deref()).into(),
        Plain::DownstreamTlsVersion => tls.map(|tls| tls.version).into(),
        Plain::DownstreamTlsCipher => tls.map(|tls| tls.cipher).into(),
        Plain::RequestedServerName => connection.requested_server_name.as_deref().into(),
        Plain::ConnectionId => Value::Number(connection.id),
        Plain::StreamId => context.request.and_then(|request| header(request.headers, "x-request-id")).into(),
        Plain::Hostname => Some(hostname()).into(),
        Plain::AccessLogType => {
            let http = info.protocol.is_some();
            Some(if http { "DownstreamEnd" } else { "TcpConnectionEnd" }).into()
        }
    }
}

fn joined<'a, I: Iterator<Item = &'a str>>(
    tls: Option<&'a TlsInfo>,
    names: impl Fn(&'a TlsInfo) -> I,
) -> Value<'a> {
    let mut text = String::new();
    for name in tls.into_iter().flat_map(names) {
        let _ = write!(text, "{}{name}", if text.is_empty() { "" } else { "," });
    }
    if text.is_empty() { Value::Missing } else { Value::Text(text.into()) }
}

/// A protocol by Envoy's name.
fn protocol(version: Version) -> &'static str {
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

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::{Instant, UNIX_EPOCH};

    use super::*;
    use crate::model::listener::Direction;
    use crate::telemetry::stream_info::{ConnectionInfo, ResponseFlags};

    pub fn stream() -> StreamInfo {
        let connection = Arc::new(ConnectionInfo {
            id: 7,
            remote: "10.0.0.1:4000".parse().unwrap(),
            local: "[::1]:80".parse().unwrap(),
            original_dst: None,
            direction: Direction::Unspecified,
            workload: None,
            tls: None,
            requested_server_name: None,
            drain: Arc::default(),
            listener_log: Vec::new(),
        });
        let mut info = StreamInfo::new(connection);
        info.start = Instant::now();
        info.start_wall = UNIX_EPOCH + Duration::from_millis(1_481_818_059_250);
        info
    }

    pub fn head() -> RequestHead {
        let mut headers = HeaderMap::new();
        headers.insert("user-agent", "curl".parse().unwrap());
        headers.insert("x-request-id", "id-1".parse().unwrap());
        headers.append("x-n", "abcdef".parse().unwrap());
        headers.append("x-n", "second".parse().unwrap());
        RequestHead {
            method: Method::GET,
            scheme: "http".into(),
            authority: "host".into(),
            path: "/p?q".into(),
            headers,
        }
    }

    pub fn req(name: &str) -> Part {
        Part::Operator { operator: Operator::Req(name.into(), None), max_length: None }
    }

    pub fn plain(plain: Plain) -> Part {
        Part::Operator { operator: Operator::Plain(plain), max_length: None }
    }

    pub fn text(text: &str) -> Part {
        Part::Text(text.into())
    }

    fn show(parts: Vec<Part>, info: &StreamInfo, missing: Missing) -> String {
        let head = head();
        let context = Context { info, request: Some((&head).into()), response: None, trailers: None };
        let mut out = String::new();
        evaluate(&Format { parts }, &context, missing, &mut out);
        out
    }

    #[test]
    fn headers_pseudo_headers_and_alternatives() {
        let info = stream();
        let alternative = Part::Operator {
            operator: Operator::Req("x-envoy-original-path".into(), Some(":path".into())),
            max_length: None,
        };
        let short = Part::Operator { operator: Operator::Req("x-n".into(), None), max_length: Some(2) };
        let parts = vec![req(":method"), text(" "), alternative, text(" "), short, text(" "), req("none")];
        assert_eq!(show(parts.clone(), &info, Missing::Dash), "GET /p?q ab -");
        assert_eq!(show(parts, &info, Missing::Empty), "GET /p?q ab ");
    }

    #[test]
    fn facts_of_the_stream_are_written_as_envoy_writes_them() {
        let mut info = stream();
        info.protocol = Some(Version::HTTP_2);
        info.response_code = Some(503);
        info.flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
        info.bytes_sent = 91;
        info.end = Some(Duration::from_micros(12_999));
        info.first_upstream_rx = Some(Duration::from_millis(4));
        info.last_downstream_tx = Some(Duration::from_millis(9));
        let parts = [
            Plain::Protocol,
            Plain::ResponseCode,
            Plain::ResponseFlags,
            Plain::BytesSent,
            Plain::Duration,
            Plain::ResponseDuration,
            Plain::ResponseTxDuration,
            Plain::RequestDuration,
            Plain::UpstreamHost,
            Plain::DownstreamLocalAddress,
            Plain::DownstreamRemoteAddressWithoutPort,
            Plain::DownstreamRemotePort,
            Plain::ConnectionId,
            Plain::StreamId,
            Plain::UpstreamRequestAttemptCount,
            Plain::AccessLogType,
        ];
        let parts = parts.into_iter().flat_map(|p| [plain(p), text(" ")]).collect();
        assert_eq!(
            show(parts, &info, Missing::Dash),
            "HTTP/2 503 UF 91 12 4 5 - - [::1]:80 10.0.0.1 4000 7 id-1 0 DownstreamEnd "
        );
    }

    #[test]
    fn a_value_is_cut_at_a_character() {
        assert_eq!(truncated("aéb", Some(2)), "a");
        assert_eq!(truncated("aéb", Some(3)), "aé");
        assert_eq!(truncated("aéb", Some(30)), "aéb");
    }
}

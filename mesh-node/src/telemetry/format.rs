//! Evaluates Envoy's substitution formats against a stream: for access logs, header changes and bodies of
//! local replies. Parsing is not done here.

use std::borrow::Cow;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method};

use super::stream_info::StreamInfo;
use super::{cel, certificate, grpc_status, operators, time};
use crate::model::Str;
use crate::model::format::{
    DurationUnit, Format, GrpcStatusForm, MetadataOf, Operator, Part, PathSource, ServerNameFrom, TimePoint,
};
use crate::model::metadata::{Metadata, MetadataValue, find};

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
    pub upstream: Option<UpstreamView<'a>>,
    /// The body of the proxy's own answer, while that is made.
    pub local_reply: Option<&'a str>,
}

impl<'a> Context<'a> {
    /// A stream of which nothing else is told.
    pub fn of(info: &'a StreamInfo) -> Self {
        Self { info, request: None, response: None, trailers: None, upstream: None, local_reply: None }
    }
}

/// What configuration says of where a stream went.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamView<'a> {
    pub cluster_metadata: &'a [(Str, Metadata)],
    pub endpoint_metadata: &'a [(Str, Metadata)],
    /// `envoy.lb` of the endpoint.
    pub endpoint_lb: &'a [(Str, MetadataValue)],
    pub host_name: Option<&'a str>,
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
                Value::Json(serde_json::Value::String(text)) => out.push_str(truncated(&text, *max_length)),
                Value::Json(value) => {
                    let mut text = String::new();
                    write_json(&value, &mut text);
                    out.push_str(truncated(&text, *max_length));
                }
                Value::Typed(text) => {
                    let quoted = serde_json::Value::from(text).to_string();
                    out.push_str(truncated(&quoted, *max_length));
                }
                Value::Missing if missing == Missing::Dash => out.push('-'),
                Value::Missing => {}
            },
        }
    }
}

/// The value of one operator.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Missing,
    Text(Cow<'a, str>),
    Number(u64),
    /// Metadata: in text, a string stands for itself and all else as JSON.
    Json(serde_json::Value),
    /// A string that is JSON in a text too.
    Typed(&'a str),
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
        Operator::CertificateTime { upstream, end, format } => {
            match operators::leaf(context, *upstream, false)
                .and_then(|leaf| certificate::validity(leaf, *end))
            {
                Some(at) => written_time(at, format.as_deref()),
                None => Value::Missing,
            }
        }
        Operator::Certificate { upstream, own, part } => {
            operators::certificate(context, *upstream, *own, *part)
        }
        Operator::GrpcStatus(form) => grpc_status(context, *form),
        Operator::QueryParameter(name) => query_parameter(context, name).into(),
        Operator::Path { query, source } => path(context, *query, *source).into(),
        Operator::CommonDuration { from, to, unit } => duration(context.info, *from, *to, *unit),
        Operator::Plain(plain) => operators::plain(*plain, context),
        Operator::Metadata { of, namespace, path } => metadata(context, *of, namespace, path),
        Operator::FilterState { key, plain } => {
            let text = context.info.filter_state.as_ref().and_then(|state| state.get(key));
            match (text, plain) {
                (None, _) => Value::Missing,
                (Some(text), true) => Value::Text(text.as_str().into()),
                // As JSON, in a text too.
                (Some(text), false) => Value::Typed(text),
            }
        }
        Operator::ReqWithoutQuery(first, second) => {
            let of = |name: &str| context.request.and_then(|request| request_header(request, name));
            let found = of(first).or_else(|| second.as_deref().and_then(of));
            found.map(|value| before_query(value, false)).into()
        }
        Operator::QueryParameters => {
            let path = path(context, true, PathSource::OriginalOrCurrent);
            path.and_then(|path| Some(path.split_once('?')?.1.to_owned())).into()
        }
        Operator::ServerName { from, host } => server_name(context, *from, *host),
        Operator::Cel(expr) => cel::shown(expr, context).map_or(Value::Missing, Value::Json),
        Operator::Coalesce(parts) => {
            let of = |part: &Part| match part {
                Part::Text(_) => Value::Missing,
                Part::Operator { operator, max_length } => match value(operator, context) {
                    Value::Text(text) if max_length.is_some() => {
                        Value::Text(truncated(&text, *max_length).to_owned().into())
                    }
                    value => value,
                },
            };
            parts.iter().map(of).find(|value| *value != Value::Missing).unwrap_or(Value::Missing)
        }
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

/// JSON as Envoy writes it: whole numbers without a fraction.
pub(super) fn write_json(value: &serde_json::Value, out: &mut String) {
    match value {
        serde_json::Value::Number(number) => match number.as_f64() {
            Some(whole) if whole.fract() == 0.0 && whole.abs() < 1e15 => {
                let _ = write!(out, "{whole:.0}");
            }
            _ => out.push_str(&number.to_string()),
        },
        serde_json::Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                write_json(item, out);
            }
            out.push(']');
        }
        serde_json::Value::Object(fields) => {
            out.push('{');
            for (at, (key, value)) in fields.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                out.push_str(&serde_json::Value::from(key.as_str()).to_string());
                out.push(':');
                write_json(value, out);
            }
            out.push('}');
        }
        simple => out.push_str(&simple.to_string()),
    }
}

/// What stands under a path in the metadata of a stream, its cluster or its endpoint.
fn metadata<'a>(context: &Context<'a>, of: MetadataOf, namespace: &str, path: &[String]) -> Value<'a> {
    let configured = |all: &'a [(Str, Metadata)]| {
        all.iter().find(|(name, _)| **name == *namespace).map(|(_, fields)| &**fields)
    };
    let fields = match (of, context.upstream) {
        (MetadataOf::Stream, _) => {
            let Some(fields) = context.info.metadata.as_ref().and_then(|all| all.get(namespace)) else {
                return Value::Missing;
            };
            let Some((first, rest)) = path.split_first() else {
                return Value::Json(serde_json::Value::Object(fields.clone()));
            };
            let found =
                fields.get(first).and_then(|value| rest.iter().try_fold(value, |value, key| value.get(key)));
            return found.map_or(Value::Missing, |value| Value::Json(value.clone()));
        }
        (MetadataOf::Cluster, Some(upstream)) => configured(upstream.cluster_metadata),
        (MetadataOf::Endpoint, Some(upstream)) if namespace == "envoy.lb" => {
            (!upstream.endpoint_lb.is_empty()).then_some(upstream.endpoint_lb)
        }
        (MetadataOf::Endpoint, Some(upstream)) => configured(upstream.endpoint_metadata),
        (_, None) => None,
    };
    let Some(mut fields) = fields else { return Value::Missing };
    let Some((last, above)) = path.split_last() else { return Value::Json(json_of(fields)) };
    for key in above {
        match find(fields, key) {
            Some(MetadataValue::Struct(inner)) => fields = inner,
            _ => return Value::Missing,
        }
    }
    find(fields, last).map_or(Value::Missing, |value| Value::Json(value.to_json()))
}

fn json_of(fields: &[(Str, MetadataValue)]) -> serde_json::Value {
    let entries = fields.iter().map(|(key, value)| (key.to_string(), value.to_json()));
    serde_json::Value::Object(entries.collect())
}

/// The text of metadata: a string as it is, all else as JSON; `None` if there is none.
pub fn metadata_text(
    context: &Context<'_>,
    of: MetadataOf,
    namespace: &str,
    path: &[String],
) -> Option<String> {
    match metadata(context, of, namespace, path) {
        Value::Json(serde_json::Value::String(text)) => Some(text),
        Value::Json(value) => {
            let mut text = String::new();
            write_json(&value, &mut text);
            Some(text)
        }
        _ => None,
    }
}

/// The name that the client asked for, by TLS or by its request.
fn server_name<'a>(context: &Context<'a>, from: ServerNameFrom, host: PathSource) -> Value<'a> {
    let sni = || context.info.connection.requested_server_name.as_deref().map(Cow::Borrowed);
    let asked = || {
        let request = context.request?;
        let original = || header(request.headers, "x-envoy-original-host");
        let current = || request_header(request, ":authority");
        match host {
            PathSource::Original => original(),
            PathSource::Current => current(),
            PathSource::OriginalOrCurrent => original().or_else(current),
        }
    };
    match from {
        ServerNameFrom::Sni => sni().into(),
        ServerNameFrom::SniFirst => sni().or_else(asked).into(),
        ServerNameFrom::HostFirst => asked().or_else(sni).into(),
    }
}

fn before_query(path: Cow<'_, str>, query: bool) -> Cow<'_, str> {
    let end = if query { path.len() } else { path.find('?').unwrap_or(path.len()) };
    match path {
        Cow::Borrowed(path) => Cow::Borrowed(&path[..end]),
        Cow::Owned(path) => Cow::Owned(path[..end].to_owned()),
    }
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
    Some(before_query(path, query))
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
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, str>> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::{Instant, UNIX_EPOCH};

    use http::Version;

    use super::*;
    use crate::model::format::Plain;
    use crate::model::listener::Direction;
    use crate::telemetry::stream_info::{ConnectionInfo, ResponseFlags};

    pub fn stream() -> StreamInfo {
        let connection = Arc::new(ConnectionInfo {
            id: 7,
            peer: "10.0.0.1:4000".parse().unwrap(),
            remote: "10.0.0.1:4000".parse().unwrap(),
            local: "[::1]:80".parse().unwrap(),
            original_dst: None,
            direction: Direction::Unspecified,
            workload: None,
            tls: None,
            requested_server_name: None,
            filter_chain: "".into(),
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
        let context = Context { request: Some((&head).into()), ..Context::of(info) };
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

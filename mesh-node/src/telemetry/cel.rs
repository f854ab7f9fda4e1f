//! Evaluates expressions against a stream (Envoy: "Attributes").
//!
//! What is not there is an error, which makes a filter say no and a log show nothing, unless the other side of an
//! `||` or `&&` decides.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderMap;

use super::format::{Context, RequestView};
use super::stream_info::TlsInfo;
use super::{certificate, grpc_status};
use crate::model::cel::{Binary, Expr, Function, Literal};
use crate::model::format::CertificatePart;
use crate::model::listener::Direction;
use crate::telemetry::operators;

/// A value.
#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Cow<'a, str>),
    /// Nanoseconds.
    Duration(i64),
    List(Vec<Value<'a>>),
    Headers(&'a HeaderMap, Option<RequestView<'a>>),
    /// Metadata.
    Json(serde_json::Value),
    Root(&'static str),
}

/// There is no such value, or it is of another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nothing;

type Outcome<'a> = Result<Value<'a>, Nothing>;

/// Does the stream satisfy the expression?
pub(super) fn holds(expr: &Expr, context: &Context<'_>) -> bool {
    matches!(evaluate(expr, context), Ok(Value::Bool(true)))
}

/// The value of the expression as logs write it.
pub(super) fn shown(expr: &Expr, context: &Context<'_>) -> Option<serde_json::Value> {
    evaluate(expr, context).ok()?.to_json()
}

impl Value<'_> {
    fn to_json(&self) -> Option<serde_json::Value> {
        Some(match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Int(value) => (*value).into(),
            Self::Double(value) => (*value).into(),
            Self::Text(text) => text.as_ref().into(),
            Self::Duration(nanos) => text_of_duration(*nanos).into(),
            Self::List(items) => items.iter().map(Self::to_json).collect::<Option<Vec<_>>>()?.into(),
            Self::Json(value) => value.clone(),
            Self::Headers(..) | Self::Root(_) => return None,
        })
    }
}

fn text_of_duration(nanos: i64) -> String {
    format!("{}s", nanos as f64 / 1e9)
}

fn evaluate<'a>(expr: &Expr, context: &Context<'a>) -> Outcome<'a> {
    let of = |expr: &Expr| evaluate(expr, context);
    match expr {
        Expr::Literal(literal) => Ok(match literal {
            Literal::Null => Value::Null,
            Literal::Bool(value) => Value::Bool(*value),
            Literal::Int(value) => Value::Int(*value),
            Literal::Double(value) => Value::Double(*value),
            Literal::Text(text) => Value::Text(text.clone().into()),
        }),
        Expr::Root(root) => Ok(Value::Root(root)),
        Expr::Select(of_what, name) => select(of(of_what)?, name, context),
        Expr::Index(of_what, key) => match (of(of_what)?, of(key)?) {
            (Value::List(items), Value::Int(at)) => {
                usize::try_from(at).ok().and_then(|at| items.into_iter().nth(at)).ok_or(Nothing)
            }
            (of_what, Value::Text(name)) => select(of_what, &name, context),
            _ => Err(Nothing),
        },
        Expr::Has(what) => Ok(Value::Bool(of(what).is_ok())),
        Expr::List(items) => items.iter().map(of).collect::<Result<_, _>>().map(Value::List),
        Expr::Not(what) => match of(what)? {
            Value::Bool(value) => Ok(Value::Bool(!value)),
            _ => Err(Nothing),
        },
        Expr::Negative(what) => match of(what)? {
            Value::Int(value) => value.checked_neg().map(Value::Int).ok_or(Nothing),
            Value::Double(value) => Ok(Value::Double(-value)),
            _ => Err(Nothing),
        },
        Expr::Conditional(parts) => match of(&parts[0])? {
            Value::Bool(condition) => of(&parts[if condition { 1 } else { 2 }]),
            _ => Err(Nothing),
        },
        Expr::Binary(Binary::Or, left, right) => either(of(left), || of(right), true),
        Expr::Binary(Binary::And, left, right) => either(of(left), || of(right), false),
        Expr::Binary(operator, left, right) => binary(*operator, of(left)?, of(right)?),
        Expr::Call(function, arguments) => {
            call(*function, &arguments.iter().map(of).collect::<Result<Vec<_>, _>>()?)
        }
        Expr::Matches(what, regex) => match of(what)? {
            Value::Text(text) => Ok(Value::Bool(regex.is_match(&text))),
            _ => Err(Nothing),
        },
    }
}

/// `||` (`decides` is true) or `&&` (false): one side that decides makes up for an error of the other.
fn either<'a>(left: Outcome<'a>, right: impl FnOnce() -> Outcome<'a>, decides: bool) -> Outcome<'a> {
    let bool_of = |outcome: Outcome<'a>| match outcome {
        Ok(Value::Bool(value)) => Ok(value),
        _ => Err(Nothing),
    };
    match bool_of(left) {
        Ok(value) if value == decides => Ok(Value::Bool(decides)),
        left => match (left, bool_of(right())) {
            (_, Ok(value)) if value == decides => Ok(Value::Bool(decides)),
            (Ok(_), Ok(_)) => Ok(Value::Bool(!decides)),
            _ => Err(Nothing),
        },
    }
}

fn binary<'a>(operator: Binary, left: Value<'a>, right: Value<'a>) -> Outcome<'a> {
    use std::cmp::Ordering as O;
    let order = || compare(&left, &right);
    Ok(Value::Bool(match operator {
        Binary::Equal => order() == Some(O::Equal),
        Binary::Unequal => order() != Some(O::Equal),
        Binary::Less => order().ok_or(Nothing)? == O::Less,
        Binary::LessOrEqual => order().ok_or(Nothing)? != O::Greater,
        Binary::Greater => order().ok_or(Nothing)? == O::Greater,
        Binary::GreaterOrEqual => order().ok_or(Nothing)? != O::Less,
        Binary::In => match (&left, &right) {
            (_, Value::List(items)) => items.iter().any(|item| compare(&left, item) == Some(O::Equal)),
            (Value::Text(name), Value::Headers(headers, request)) => {
                header(headers, *request, name).is_some()
            }
            (Value::Text(name), Value::Json(value)) => value.get(&**name).is_some(),
            _ => return Err(Nothing),
        },
        _ => return arithmetic(operator, left, right),
    }))
}

/// `None` where the values are of kinds that cannot be compared.
fn compare(left: &Value<'_>, right: &Value<'_>) -> Option<std::cmp::Ordering> {
    match (left, right) {
        (Value::Null, Value::Null) => Some(std::cmp::Ordering::Equal),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Int(a), Value::Int(b)) | (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
        (Value::Double(a), Value::Int(b)) => a.partial_cmp(&(*b as f64)),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        (Value::Json(value), other) => compare(&plain(value)?, other),
        (other, Value::Json(value)) => compare(other, &plain(value)?),
        _ => None,
    }
}

/// A JSON value that is neither list nor map.
fn plain(value: &serde_json::Value) -> Option<Value<'_>> {
    Some(match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => Value::Double(number.as_f64()?),
        serde_json::Value::String(text) => Value::Text(text.as_str().into()),
        _ => return None,
    })
}

fn arithmetic<'a>(operator: Binary, left: Value<'a>, right: Value<'a>) -> Outcome<'a> {
    match (operator, left, right) {
        (Binary::Add, Value::Text(a), Value::Text(b)) => Ok(Value::Text(a + b)),
        (operator, Value::Int(a), Value::Int(b)) => match operator {
            Binary::Add => a.checked_add(b),
            Binary::Subtract => a.checked_sub(b),
            Binary::Multiply => a.checked_mul(b),
            Binary::Divide => a.checked_div(b),
            _ => a.checked_rem(b),
        }
        .map(Value::Int)
        .ok_or(Nothing),
        (operator, Value::Double(a), Value::Double(b)) => Ok(Value::Double(match operator {
            Binary::Add => a + b,
            Binary::Subtract => a - b,
            Binary::Multiply => a * b,
            Binary::Divide => a / b,
            _ => return Err(Nothing),
        })),
        _ => Err(Nothing),
    }
}

fn call<'a>(function: Function, arguments: &[Value<'a>]) -> Outcome<'a> {
    let count = |count: usize| Value::Int(i64::try_from(count).unwrap_or(i64::MAX));
    Ok(match (function, arguments) {
        (Function::Size, [Value::Text(text)]) => count(text.chars().count()),
        (Function::Size, [Value::List(items)]) => count(items.len()),
        (Function::Size, [Value::Headers(headers, _)]) => count(headers.keys_len()),
        (Function::String, [Value::Text(text)]) => Value::Text(text.clone()),
        (Function::String, [Value::Int(number)]) => Value::Text(number.to_string().into()),
        (Function::String, [Value::Double(number)]) => Value::Text(number.to_string().into()),
        (Function::String, [Value::Bool(value)]) => Value::Text(value.to_string().into()),
        (Function::String, [Value::Duration(nanos)]) => Value::Text(text_of_duration(*nanos).into()),
        (Function::Int, [Value::Int(number)]) => Value::Int(*number),
        (Function::Int, [Value::Double(number)]) => Value::Int(*number as i64),
        (Function::Int, [Value::Text(text)]) => Value::Int(text.parse().map_err(|_| Nothing)?),
        (Function::Double, [Value::Double(number)]) => Value::Double(*number),
        (Function::Double, [Value::Int(number)]) => Value::Double(*number as f64),
        (Function::Double, [Value::Text(text)]) => Value::Double(text.parse().map_err(|_| Nothing)?),
        (Function::StartsWith, [Value::Text(text), Value::Text(part)]) => {
            Value::Bool(text.starts_with(&**part))
        }
        (Function::EndsWith, [Value::Text(text), Value::Text(part)]) => Value::Bool(text.ends_with(&**part)),
        (Function::Contains, [Value::Text(text), Value::Text(part)]) => Value::Bool(text.contains(&**part)),
        (Function::Duration, [Value::Text(text)]) => Value::Duration(nanos_of(text).ok_or(Nothing)?),
        _ => return Err(Nothing),
    })
}

/// `1.5s`, `20ms`, `3m`, `1h`.
fn nanos_of(text: &str) -> Option<i64> {
    let units = [("ms", 1e6), ("us", 1e3), ("ns", 1.0), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
    let (number, unit) = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    Some((number.parse::<f64>().ok()? * unit) as i64)
}

fn header<'a>(headers: &'a HeaderMap, request: Option<RequestView<'a>>, name: &str) -> Option<Cow<'a, str>> {
    let pseudo = match (name, request) {
        (":method", Some(request)) => Some(request.method),
        (":path", Some(request)) => Some(request.path),
        (":authority" | "host", Some(request)) => Some(request.authority),
        (":scheme", Some(request)) => Some(request.scheme),
        _ => None,
    };
    match pseudo {
        Some(text) => Some(text.into()),
        None => headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes())),
    }
}

fn select<'a>(of: Value<'a>, name: &str, context: &Context<'a>) -> Outcome<'a> {
    match of {
        Value::Root(root) => attribute(root, name, context).ok_or(Nothing),
        Value::Headers(headers, request) => header(headers, request, name).map(Value::Text).ok_or(Nothing),
        Value::Json(serde_json::Value::Object(mut fields)) => {
            let value = fields.remove(name).ok_or(Nothing)?;
            Ok(match value {
                serde_json::Value::String(text) => Value::Text(text.into()),
                serde_json::Value::Bool(value) => Value::Bool(value),
                other => Value::Json(other),
            })
        }
        _ => Err(Nothing),
    }
}

fn attribute<'a>(root: &str, name: &str, context: &Context<'a>) -> Option<Value<'a>> {
    let info = context.info;
    let text = |text: &'a str| Value::Text(text.into());
    match root {
        "request" => request(name, context),
        "response" => response(name, context),
        "connection" => connection(name, context),
        "upstream" => upstream(name, context),
        "source" => peer(name, info.remote),
        "destination" => peer(name, info.connection.local),
        "metadata" if name == "filter_metadata" => {
            let all = info.metadata.as_ref()?;
            let all = all.iter().map(|(name, fields)| (name.clone(), fields.clone().into()));
            Some(Value::Json(serde_json::Value::Object(all.collect())))
        }
        "filter_state" => Some(text(info.filter_state.as_ref()?.get(name)?)),
        "xds" => match name {
            "cluster_name" => info.upstream.cluster.as_deref().map(text),
            "route_name" => info.route_name.as_deref().map(text),
            "virtual_host_name" => info.virtual_host.as_deref().map(text),
            "filter_chain_name" => Some(text(&info.connection.filter_chain)),
            "listener_direction" => Some(Value::Int(match info.connection.direction {
                Direction::Unspecified => 0,
                Direction::Inbound => 1,
                Direction::Outbound => 2,
            })),
            _ => None,
        },
        _ => None,
    }
}

fn peer<'a>(name: &str, address: SocketAddr) -> Option<Value<'a>> {
    match name {
        "address" => Some(Value::Text(address.to_string().into())),
        "port" => Some(Value::Int(address.port().into())),
        _ => None,
    }
}

fn request<'a>(name: &str, context: &Context<'a>) -> Option<Value<'a>> {
    let info = context.info;
    let request = context.request;
    let text = |text: &'a str| Some(Value::Text(text.into()));
    let bytes = |bytes: u64| Some(Value::Int(i64::try_from(bytes).unwrap_or(i64::MAX)));
    let of_header = |name: &str| {
        let request = request?;
        header(request.headers, None, name).map(Value::Text)
    };
    match name {
        "path" => text(request?.path),
        "url_path" => text(request?.path.split('?').next().unwrap_or_default()),
        "query" => text(request?.path.split_once('?').map_or("", |(_, query)| query)),
        "host" => text(request?.authority),
        "scheme" => text(request?.scheme),
        "method" => text(request?.method),
        "headers" => Some(Value::Headers(request?.headers, request)),
        "referer" => of_header("referer"),
        "useragent" => of_header("user-agent"),
        "id" => of_header("x-request-id"),
        "protocol" => text(operators::protocol(info.protocol?)),
        "duration" => nanos(info.end),
        "size" => bytes(info.bytes_received),
        "total_size" => bytes(info.bytes_received + info.request_headers_bytes),
        _ => None,
    }
}

fn nanos<'a>(duration: Option<Duration>) -> Option<Value<'a>> {
    Some(Value::Duration(i64::try_from(duration?.as_nanos()).unwrap_or(i64::MAX)))
}

fn response<'a>(name: &str, context: &Context<'a>) -> Option<Value<'a>> {
    let info = context.info;
    let bytes = |bytes: u64| Some(Value::Int(i64::try_from(bytes).unwrap_or(i64::MAX)));
    match name {
        "code" => Some(Value::Int(info.response_code?.into())),
        "code_details" => Some(Value::Text(info.response_code_details.as_deref()?.into())),
        "grpc_status" => {
            let request = context.request?;
            grpc_status::code(request.headers, context.response, context.trailers, info.response_code)
                .map(Value::Int)
        }
        "headers" => Some(Value::Headers(context.response?, None)),
        "trailers" => Some(Value::Headers(context.trailers?, None)),
        "size" => bytes(info.bytes_sent),
        "total_size" => bytes(info.bytes_sent + info.response_headers_bytes),
        "backend_latency" => nanos(
            info.last_upstream_rx.zip(info.first_upstream_tx).and_then(|(to, from)| to.checked_sub(from)),
        ),
        _ => None,
    }
}

fn connection<'a>(name: &str, context: &Context<'a>) -> Option<Value<'a>> {
    let info = context.info;
    let connection = &*info.connection;
    let tls = connection.tls.as_deref();
    match name {
        "id" => Some(Value::Int(i64::try_from(connection.id).unwrap_or(i64::MAX))),
        "mtls" => Some(Value::Bool(tls.is_some_and(|tls| !tls.peer_chain.is_empty()))),
        "requested_server_name" => Some(Value::Text(connection.requested_server_name.as_deref()?.into())),
        "termination_details" => Some(Value::Text(info.connection_termination_details.as_deref()?.into())),
        name => of_session(name, tls, (context, false)),
    }
}

fn upstream<'a>(name: &str, context: &Context<'a>) -> Option<Value<'a>> {
    let upstream = &context.info.upstream;
    match name {
        "address" => Some(Value::Text(upstream.host?.to_string().into())),
        "port" => Some(Value::Int(upstream.host?.port().into())),
        "local_address" => Some(Value::Text(upstream.local()?.to_string().into())),
        "transport_failure_reason" => Some(Value::Text(upstream.transport_failure.as_deref()?.into())),
        "request_attempt_count" => Some(Value::Int(upstream.attempts.into())),
        name => of_session(name, upstream.tls(), (context, true)),
    }
}

/// What is said of TLS to either side.
fn of_session<'a>(
    name: &str,
    tls: Option<&'a TlsInfo>,
    (context, upstream): (&Context<'a>, bool),
) -> Option<Value<'a>> {
    let tls = tls?;
    let part = |own, part| match operators::certificate(context, upstream, own, part) {
        super::format::Value::Text(text) => Some(Value::Text(text)),
        _ => None,
    };
    match name {
        "tls_version" => Some(Value::Text(tls.version.into())),
        "subject_local_certificate" => part(true, CertificatePart::Subject),
        "subject_peer_certificate" => part(false, CertificatePart::Subject),
        "dns_san_local_certificate" => part(true, CertificatePart::DnsSan),
        "dns_san_peer_certificate" => part(false, CertificatePart::DnsSan),
        "uri_san_local_certificate" => part(true, CertificatePart::UriSan),
        "uri_san_peer_certificate" => part(false, CertificatePart::UriSan),
        "sha256_peer_certificate_digest" => {
            Some(Value::Text(certificate::sha256_hex(tls.peer_chain.first()?).into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::tests::{head, stream};
    use super::*;
    use crate::model::cel::parse;

    #[test]
    fn expressions_speak_of_the_stream() {
        let mut info = stream();
        info.response_code = Some(404);
        info.bytes_sent = 7;
        info.end = Some(Duration::from_millis(1500));
        info.metadata_mut().entry("ns".to_owned()).or_default().insert("k".to_owned(), "v".into());
        let head = head();
        let mut response = HeaderMap::new();
        response.insert("x-a", "b".parse().unwrap());
        let context =
            Context { request: Some((&head).into()), response: Some(&response), ..Context::of(&info) };
        for (text, expected) in [
            ("response.code >= 400", true),
            ("response.code >= 400 && response.code < 404", false),
            ("response.code in [401, 404]", true),
            ("request.method == 'GET' ? response.size > 5 : false", true),
            ("request.headers['user-agent'] == \"curl\"", true),
            ("request.useragent.startsWith('cu')", true),
            ("request.headers[':path'].endsWith('?q')", true),
            ("request.url_path == '/p' && request.query == 'q'", true),
            ("'x-none' in request.headers", false),
            ("request.headers['x-none'] == 'x'", false),
            ("request.headers['x-none'] == 'x' || response.code == 404", true),
            ("!has(request.headers.none)", true),
            ("has(response.headers) && response.headers['x-a'].matches('^[ab]$')", true),
            ("metadata.filter_metadata['ns']['k'] == 'v'", true),
            ("metadata.filter_metadata.ns.k != 'w'", true),
            ("request.duration > duration('1s') && request.duration < duration('2s')", true),
            ("size(request.host) == 4 && string(response.code) == '404'", true),
            ("1 + 2 * 3 - -1 == 8", true),
            ("connection.mtls", false),
            ("source.port == 4000", true),
            ("xds.cluster_name == ''", false),
        ] {
            assert_eq!(holds(&parse(text).unwrap(), &context), expected, "{text}");
        }
        assert_eq!(shown(&parse("response.code + 1").unwrap(), &context), Some(405.into()));
        assert_eq!(shown(&parse("xds.route_name").unwrap(), &context), None);
    }
}

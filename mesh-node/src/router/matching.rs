//! Header and query matchers against a message (`HeaderMatcher`, `QueryParameterMatcher`).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, StatusCode};

use super::RequestHead;
use crate::model::matcher::{HeaderKey, HeaderMatchKind, HeaderMatcher, QueryMatcher};

/// Does the request satisfy the matcher?
pub fn header_matches(matcher: &HeaderMatcher, head: &RequestHead<'_>) -> bool {
    value_matches(matcher, request_header(head, &matcher.name).as_deref())
}

/// Does the response satisfy the matcher?
pub fn response_header_matches(matcher: &HeaderMatcher, status: StatusCode, headers: &HeaderMap) -> bool {
    let value = match &matcher.name {
        HeaderKey::Status => Some(Cow::Borrowed(status.as_str())),
        HeaderKey::Name(name) => joined(headers, name),
        _ => None,
    };
    value_matches(matcher, value.as_deref())
}

/// The value of a request header; several lines of one name are one list, joined by commas.
pub fn request_header<'a>(head: &RequestHead<'a>, key: &HeaderKey) -> Option<Cow<'a, str>> {
    let pseudo = |value: &'a str| Some(value).filter(|v| !v.is_empty()).map(Cow::Borrowed);
    match key {
        HeaderKey::Method => pseudo(head.method.as_str()),
        HeaderKey::Authority => pseudo(head.authority),
        HeaderKey::Scheme => pseudo(head.scheme),
        HeaderKey::Path => pseudo(head.path),
        HeaderKey::Status => None,
        HeaderKey::Name(name) => joined(head.headers, name),
    }
}

fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut values = headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()));
    let mut value = values.next()?;
    // RFC 6265 section 5.4 has no list of cookies; RFC 9113 section 8.2.3 joins them so.
    let delimiter = if name == http::header::COOKIE { "; " } else { "," };
    for more in values {
        let value = value.to_mut();
        value.push_str(delimiter);
        value.push_str(&more);
    }
    Some(value)
}

fn value_matches(matcher: &HeaderMatcher, value: Option<&str>) -> bool {
    let value = match (value, &matcher.kind) {
        (_, HeaderMatchKind::Present(present)) => {
            let there = value.is_some() || matcher.treat_missing_as_empty;
            return (there == *present) != matcher.invert;
        }
        (Some(value), _) => value,
        (None, _) if matcher.treat_missing_as_empty => "",
        // A missing header satisfies no value matcher, not even an inverted one.
        (None, _) => return false,
    };
    let matched = match &matcher.kind {
        HeaderMatchKind::Present(_) => true,
        HeaderMatchKind::Value(string) => string.matches(value),
        HeaderMatchKind::Range(start, end) => {
            value.trim().parse().is_ok_and(|n: i64| *start <= n && n < *end)
        }
    };
    matched != matcher.invert
}

/// Does the query of `path` satisfy the matcher? Of a repeated parameter the first counts; nothing is
/// decoded.
pub(super) fn query_matches(matcher: &QueryMatcher, path: &str) -> bool {
    let value = query_parameter(path, &matcher.name);
    match (&matcher.value, value) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(string), Some(value)) => string.matches(value),
    }
}

/// The first value of a query parameter, not decoded; empty where it has none.
pub(super) fn query_parameter<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = path.split_once('?')?;
    query
        .split('&')
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
        .find_map(|(key, value)| (key == name).then_some(value))
}

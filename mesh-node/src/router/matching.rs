//! Header and query matchers against a message (`HeaderMatcher`, `QueryParameterMatcher`).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::RequestHead;
use crate::model::header_lines::{single_line_in_request, single_line_in_response};
use crate::model::matcher::{HeaderKey, HeaderMatchKind, HeaderMatcher, QueryMatchKind, QueryMatcher};

/// Does the request satisfy the matcher?
pub fn header_matches(matcher: &HeaderMatcher, head: &RequestHead<'_>) -> bool {
    match &matcher.name {
        HeaderKey::Name(name) => lines_match(matcher, head.headers, name, single_line_in_request(name)),
        pseudo => value_matches(matcher, pseudo_header(head, pseudo)),
    }
}

/// Does the response satisfy the matcher?
pub fn response_header_matches(matcher: &HeaderMatcher, status: StatusCode, headers: &HeaderMap) -> bool {
    match &matcher.name {
        HeaderKey::Name(name) => lines_match(matcher, headers, name, single_line_in_response(name)),
        HeaderKey::Status => value_matches(matcher, Some(status.as_str())),
        _ => value_matches(matcher, None),
    }
}

/// A pseudo header of the request, where there is one.
pub(super) fn pseudo_header<'a>(head: &RequestHead<'a>, key: &HeaderKey) -> Option<&'a str> {
    let value = match key {
        HeaderKey::Method => head.method.as_str(),
        HeaderKey::Authority => head.authority,
        HeaderKey::Scheme => head.scheme,
        HeaderKey::Path => head.path,
        HeaderKey::Status | HeaderKey::Name(_) => "",
    };
    Some(value).filter(|v| !v.is_empty())
}

/// Of a header with several lines, any line may satisfy the matcher, unless it is a header that is kept in a
/// single line.
fn lines_match(matcher: &HeaderMatcher, headers: &HeaderMap, name: &HeaderName, single: bool) -> bool {
    let lines = headers.get_all(name);
    let mut rest = lines.iter();
    let Some(first) = rest.next() else { return value_matches(matcher, None) };
    if rest.next().is_none() {
        return value_matches(matcher, Some(&text(first)));
    }
    if single {
        return value_matches(matcher, joined(headers, name).as_deref());
    }
    // Inverted, no line may satisfy it.
    lines.iter().any(|line| satisfies(matcher, &text(line))) != matcher.invert
}

/// All lines of a header as one list.
pub(super) fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut values = headers.get_all(name).iter().map(text);
    let mut value = values.next()?;
    for more in values {
        let value = value.to_mut();
        value.push(',');
        value.push_str(&more);
    }
    Some(value)
}

fn text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

fn value_matches(matcher: &HeaderMatcher, value: Option<&str>) -> bool {
    let satisfied = match value.or_else(|| matcher.treat_missing_as_empty.then_some("")) {
        Some(value) => satisfies(matcher, value),
        None => match matcher.kind {
            HeaderMatchKind::Present(present) => !present,
            // A missing header satisfies no value matcher, not even an inverted one.
            _ => return false,
        },
    };
    satisfied != matcher.invert
}

/// Does a value that is there satisfy the matcher, before inversion?
fn satisfies(matcher: &HeaderMatcher, value: &str) -> bool {
    match &matcher.kind {
        HeaderMatchKind::Present(present) => *present,
        HeaderMatchKind::Value(string) => string.matches(value),
        HeaderMatchKind::Range(start, end) => {
            value.trim().parse().is_ok_and(|n: i64| *start <= n && n < *end)
        }
    }
}

/// Does the query of `path` satisfy the matcher? Of a repeated parameter the first counts; nothing is
/// decoded.
pub fn query_matches(matcher: &QueryMatcher, path: &str) -> bool {
    let value = query_parameter(path, &matcher.name);
    match &matcher.kind {
        QueryMatchKind::Present(present) => value.is_some() == *present,
        QueryMatchKind::Value(string) => value.is_some_and(|value| string.matches(value)),
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

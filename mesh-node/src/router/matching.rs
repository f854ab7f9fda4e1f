//! Header and query matchers against a message (`HeaderMatcher`, `QueryParameterMatcher`).

use http::{HeaderMap, StatusCode};

use super::RequestHead;
use crate::model::header_lines::{single_line_in_request, single_line_in_response};
use crate::model::matcher::{HeaderKey, HeaderMatcher, QueryMatchKind, QueryMatcher};
use crate::model::resilience::ResponsePredicate;

/// Does the request satisfy the matcher?
pub fn header_matches(matcher: &HeaderMatcher, head: &RequestHead<'_>) -> bool {
    match &matcher.name {
        HeaderKey::Name(name) => matcher.matches_lines(head.headers, name, single_line_in_request(name)),
        pseudo => matcher.matches_value(pseudo_header(head, pseudo)),
    }
}

/// Does the response satisfy the matcher?
pub fn response_header_matches(matcher: &HeaderMatcher, status: StatusCode, headers: &HeaderMap) -> bool {
    match &matcher.name {
        HeaderKey::Name(name) => matcher.matches_lines(headers, name, single_line_in_response(name)),
        HeaderKey::Status => matcher.matches_value(Some(status.as_str())),
        _ => matcher.matches_value(None),
    }
}

/// Does a predicate hold of the head of a response?
pub fn response_predicate(of: &ResponsePredicate, status: StatusCode, headers: &HeaderMap) -> bool {
    let holds = |of: &ResponsePredicate| response_predicate(of, status, headers);
    match of {
        ResponsePredicate::Any => true,
        ResponsePredicate::Not(of) => !holds(of),
        ResponsePredicate::All(all) => all.iter().all(holds),
        ResponsePredicate::OneOf(some) => some.iter().any(holds),
        ResponsePredicate::Headers(matchers) => {
            matchers.iter().all(|matcher| response_header_matches(matcher, status, headers))
        }
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

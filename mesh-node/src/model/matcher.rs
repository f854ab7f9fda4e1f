//! Matchers of strings, headers and query parameters (`envoy.type.matcher.v3`, `HeaderMatcher`).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use regex::Regex;

/// `type.matcher.v3.StringMatcher`. With `ignore_case`, patterns are stored in lower case.
#[derive(Debug, Clone)]
pub struct StringMatcher {
    pub pattern: StringPattern,
    pub ignore_case: bool,
}

/// The pattern of a [`StringMatcher`].
#[derive(Debug, Clone)]
pub enum StringPattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    /// Anchored at both ends by the converter: matches the whole value. Never affected by `ignore_case`.
    Regex(Regex),
}

impl StringMatcher {
    /// Does `value` match? Allocates only to search a value of mixed case for a substring.
    pub fn matches(&self, value: &str) -> bool {
        let (pattern, fold) = (&self.pattern, self.ignore_case);
        match pattern {
            StringPattern::Exact(p) => same(value, p, fold),
            StringPattern::Prefix(p) => value.get(..p.len()).is_some_and(|start| same(start, p, fold)),
            StringPattern::Suffix(p) => value
                .len()
                .checked_sub(p.len())
                .and_then(|at| value.get(at..))
                .is_some_and(|end| same(end, p, fold)),
            StringPattern::Contains(p) if fold => value.to_ascii_lowercase().contains(p.as_str()),
            StringPattern::Contains(p) => value.contains(p.as_str()),
            StringPattern::Regex(r) => r.is_match(value),
        }
    }
}

fn same(a: &str, b: &str, ignore_case: bool) -> bool {
    if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
}

/// `route.v3.HeaderMatcher`.
#[derive(Debug, Clone)]
pub struct HeaderMatcher {
    pub name: HeaderKey,
    pub kind: HeaderMatchKind,
    pub invert: bool,
    pub treat_missing_as_empty: bool,
}

/// A header's name, or a pseudo header of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKey {
    Method,
    Authority,
    Scheme,
    Path,
    Status,
    Name(http::HeaderName),
}

/// What a header must look like.
#[derive(Debug, Clone)]
pub enum HeaderMatchKind {
    /// Present (true) or absent (false).
    Present(bool),
    Value(StringMatcher),
    /// Half open `[start, end)`.
    Range(i64, i64),
}

impl HeaderMatcher {
    /// Of a header with several lines, any line may satisfy the matcher, unless it is a header that is kept in a
    /// single line.
    pub fn matches_lines(&self, headers: &HeaderMap, name: &HeaderName, single: bool) -> bool {
        let lines = headers.get_all(name);
        let mut rest = lines.iter();
        let Some(first) = rest.next() else { return self.matches_value(None) };
        if rest.next().is_none() {
            return self.matches_value(Some(&text(first)));
        }
        if single {
            return self.matches_value(joined(headers, name).as_deref());
        }
        // Inverted, no line may satisfy it.
        lines.iter().any(|line| self.satisfied_by(&text(line))) != self.invert
    }

    /// Does the value of the header, if there is one, satisfy the matcher?
    pub fn matches_value(&self, value: Option<&str>) -> bool {
        let satisfied = match value.or_else(|| self.treat_missing_as_empty.then_some("")) {
            Some(value) => self.satisfied_by(value),
            None => match self.kind {
                HeaderMatchKind::Present(present) => !present,
                // A missing header satisfies no value matcher, not even an inverted one.
                _ => return false,
            },
        };
        satisfied != self.invert
    }

    /// Does a value that is there satisfy the matcher, before inversion?
    fn satisfied_by(&self, value: &str) -> bool {
        match &self.kind {
            HeaderMatchKind::Present(present) => *present,
            HeaderMatchKind::Value(string) => string.matches(value),
            HeaderMatchKind::Range(start, end) => {
                value.trim().parse().is_ok_and(|n: i64| *start <= n && n < *end)
            }
        }
    }
}

/// All lines of a header as one list.
pub fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
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

/// `route.v3.QueryParameterMatcher`.
#[derive(Debug, Clone)]
pub struct QueryMatcher {
    pub name: String,
    pub kind: QueryMatchKind,
}

/// What a query parameter must look like.
#[derive(Debug, Clone)]
pub enum QueryMatchKind {
    /// Present (true) or absent (false).
    Present(bool),
    Value(StringMatcher),
}

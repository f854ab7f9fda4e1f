//! Matchers of strings, headers and query parameters (`envoy.type.matcher.v3`, `HeaderMatcher`).

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

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
    /// Does `value` match?
    pub fn matches(&self, value: &str) -> bool {
        if self.ignore_case && !matches!(self.pattern, StringPattern::Regex(_)) {
            return self.pattern.matches(&value.to_ascii_lowercase());
        }
        self.pattern.matches(value)
    }
}

impl StringPattern {
    fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(p) => value == p,
            Self::Prefix(p) => value.starts_with(p.as_str()),
            Self::Suffix(p) => value.ends_with(p.as_str()),
            Self::Contains(p) => value.contains(p.as_str()),
            Self::Regex(r) => r.is_match(value),
        }
    }
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
    /// `None`: present is enough.
    pub value: Option<StringMatcher>,
}

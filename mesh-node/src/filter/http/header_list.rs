//! Comma-separated header fields: reading tokens and appending an element the way Envoy does.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Appends `element` to the value of `name`, or sets it. Several lines of the same name become one.
pub fn append(headers: &mut HeaderMap, name: HeaderName, element: &str, delimiter: &str) {
    let mut joined = Vec::new();
    for value in headers.get_all(&name) {
        if !joined.is_empty() {
            joined.push(b',');
        }
        joined.extend_from_slice(value.as_bytes());
    }
    if !joined.is_empty() {
        joined.extend_from_slice(delimiter.as_bytes());
    }
    joined.extend_from_slice(element.as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(name, value);
    }
}

/// The trimmed tokens of all lines of `name`.
pub fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Is `token` among the tokens of `name`, in any case?
pub fn contains(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|t| t.eq_ignore_ascii_case(token))
}

//! Headers that a message has at most one line of: further lines, received or added, are joined to it.
//!
//! RFC 9110 section 5.3 lets a proxy join the lines of any list; Envoy does so for those that it keeps in
//! fields of their own, and what its users match and forward follows from that. The names are those of Envoy 1.40,
//! found by sending each twice.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Joins the lines of the headers that `single_line` names, by commas.
pub fn join_lines(headers: &mut HeaderMap, single_line: fn(&HeaderName) -> bool) {
    // Without repeated names there is nothing to join: the common case.
    if headers.keys_len() == headers.len() {
        return;
    }
    let repeated: Vec<HeaderName> = headers
        .keys()
        .filter(|name| single_line(name) && headers.get_all(*name).iter().nth(1).is_some())
        .cloned()
        .collect();
    for name in repeated {
        let lines: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b","[..])) {
            headers.insert(name, joined);
        }
    }
}

/// Is this request header kept in one line?
pub fn single_line_in_request(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "accept"
            | "accept-encoding"
            | "access-control-request-headers"
            | "authorization"
            | "grpc-accept-encoding"
            | "grpc-timeout"
            | "if-match"
            | "if-none-match"
            | "origin"
            | "pragma"
            | "referer"
            | "user-agent"
            | "x-client-trace-id"
            | "x-envoy-external-address"
            | "x-envoy-original-path"
            | "x-forwarded-client-cert"
            | "x-forwarded-for"
            | "x-forwarded-host"
            | "x-forwarded-port"
            | "x-forwarded-proto"
    ) || single_line_in_both(name)
}

/// Is this response header kept in one line?
pub fn single_line_in_response(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "access-control-allow-origin"
            | "date"
            | "etag"
            | "expires"
            | "grpc-message"
            | "grpc-status"
            | "location"
            | "server"
            | "vary"
    ) || single_line_in_both(name)
}

fn single_line_in_both(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "cache-control"
            | "connection"
            | "content-encoding"
            | "content-type"
            | "via"
            | "x-envoy-attempt-count"
            | "x-envoy-decorator-operation"
            | "x-request-id"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_lines_are_joined_where_envoy_joins_them_and_kept_elsewhere() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("accept", "a"),
            ("accept", "b"),
            ("cookie", "c=1"),
            ("cookie", "d=2"),
            ("x-forwarded-for", "::1"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        join_lines(&mut headers, single_line_in_request);
        let lines = |name| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(lines("accept"), ["a,b"]);
        assert_eq!(lines("cookie"), ["c=1", "d=2"]);
        assert_eq!(lines("x-forwarded-for"), ["::1"]);
    }
}

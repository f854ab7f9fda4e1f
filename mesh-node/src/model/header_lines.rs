//! Headers that a message has at most one line of: further lines, received or added, are joined to it.
//!
//! RFC 9110 section 5.3 lets a proxy join the lines of any list; Envoy does so for those that it keeps in
//! fields of their own, and what its users match and forward follows from that. The names are those of Envoy 1.40,
//! found by sending each twice.

/// Is this request header kept in one line?
pub fn single_line_in_request(name: &http::HeaderName) -> bool {
    matches!(
        name.as_str(),
        "accept"
            | "accept-encoding"
            | "access-control-request-headers"
            | "authorization"
            | "content-encoding"
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
pub fn single_line_in_response(name: &http::HeaderName) -> bool {
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

fn single_line_in_both(name: &http::HeaderName) -> bool {
    matches!(
        name.as_str(),
        "cache-control"
            | "connection"
            | "content-type"
            | "via"
            | "x-envoy-attempt-count"
            | "x-envoy-decorator-operation"
            | "x-request-id"
    )
}

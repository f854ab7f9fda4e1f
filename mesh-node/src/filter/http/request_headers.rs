//! What the connection manager does to the headers of a request before any filter sees it (Envoy:
//! `ConnectionManagerUtility::mutateRequestHeaders`): hop-by-hop headers go, headers that a client must not
//! set are removed, the client's address, scheme and request id are told to the application.

use std::net::{IpAddr, SocketAddr};

use http::header::{CONNECTION, COOKIE, EXPECT, TE, TRANSFER_ENCODING, UPGRADE, VIA};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Version};

use super::header_list;
use super::xfcc::Xfcc;
use crate::model::header_lines::{join_lines, single_line_in_request};
use crate::model::network::HttpConnectionManager;
use crate::telemetry::stream_info::ConnectionInfo;

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Headers by which only internal clients steer this proxy.
const INTERNAL_ONLY: [&str; 14] = [
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-ip-tags",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-upstream-stream-duration-ms",
];

/// Headers that are also removed where this proxy is the edge of the trusted network.
const EDGE_ONLY: [&str; 4] = [
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-original-path",
];

/// Per-connection inputs of the mutation.
pub struct Mutation<'a> {
    pub hcm: &'a HttpConnectionManager,
    pub connection: &'a ConnectionInfo,
    /// Appended to `x-forwarded-for` in place of a loopback peer.
    pub local_address: IpAddr,
    pub xfcc: &'a Xfcc,
    /// `internal_only_headers` of the route table.
    pub internal_only_headers: &'a [crate::model::Str],
}

/// What the mutation found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The client's address, after `x-forwarded-for` is honoured as configured.
    pub remote: SocketAddr,
    pub internal: bool,
}

/// Which headers of interest a request has, found in one pass.
#[derive(Debug, Default)]
struct Seen {
    connection: bool,
    te: bool,
    keep_alive: bool,
    proxy_connection: bool,
    transfer_encoding: bool,
    upgrade: bool,
    expect: bool,
    said_internal: bool,
    internal_only: bool,
    edge_only: bool,
    xff: bool,
    xfp: bool,
    xfcc: bool,
    request_id: bool,
}

impl Seen {
    fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "connection" => seen.connection = true,
                "te" => seen.te = true,
                "keep-alive" => seen.keep_alive = true,
                "proxy-connection" => seen.proxy_connection = true,
                "transfer-encoding" => seen.transfer_encoding = true,
                "upgrade" => seen.upgrade = true,
                "expect" => {
                    let value = headers.get(EXPECT).map(HeaderValue::as_bytes);
                    seen.expect = value.is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
                }
                "x-forwarded-for" => seen.xff = true,
                "x-forwarded-proto" => seen.xfp = true,
                "x-forwarded-client-cert" => seen.xfcc = true,
                "x-request-id" => seen.request_id = true,
                "x-envoy-internal" => seen.said_internal = true,
                name if name.starts_with("x-envoy-") => {
                    seen.internal_only |= INTERNAL_ONLY.contains(&name);
                    seen.edge_only |= EDGE_ONLY.contains(&name);
                }
                _ => {}
            }
        }
        seen
    }
}

/// Is this a request to switch protocols (RFC 9110 section 7.8)?
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE) && header_list::contains(headers, &CONNECTION, "upgrade")
}

/// HTTP/2 clients may send a line for each cookie (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let lines: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Applies the mutation.
pub fn mutate(parts: &mut Parts, with: &Mutation<'_>) -> Facts {
    join_lines(&mut parts.headers, single_line_in_request);
    if parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
    }
    let seen = Seen::of(&parts.headers);
    let headers = &mut parts.headers;
    if seen.connection || seen.upgrade {
        remove_connection_headers(headers);
    }
    if seen.te {
        sanitize_te(headers);
    }
    for (there, name) in [
        (seen.keep_alive, KEEP_ALIVE),
        (seen.proxy_connection, PROXY_CONNECTION),
        (seen.transfer_encoding, TRANSFER_ENCODING),
        (seen.expect && !with.hcm.proxy_100_continue, EXPECT),
        (seen.said_internal, X_ENVOY_INTERNAL),
    ] {
        if there {
            headers.remove(name);
        }
    }
    let (remote, trusted) = client_address(headers, with, &seen);
    if with.hcm.append_x_forwarded_port {
        let port = HeaderValue::from(with.connection.local.port());
        headers.entry(X_FORWARDED_PORT).or_insert(port);
    }
    if !seen.xfp && !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, own_scheme(with.connection));
    }
    let internal = trusted && with.hcm.internal_cidrs.iter().any(|cidr| cidr.contains(remote.ip()));
    let edge = with.hcm.use_remote_address && !internal;
    if internal {
        headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    } else {
        remove_internal(headers, edge, &seen, with.internal_only_headers);
    }
    if let Some(via) = &with.hcm.via {
        header_list::append(headers, VIA, via, ", ");
    }
    if edge && let Ok(value) = HeaderValue::try_from(remote.ip().to_string()) {
        headers.insert(X_ENVOY_EXTERNAL_ADDRESS, value);
    }
    let keep_id = with.hcm.preserve_external_request_id;
    if edge && keep_id && with.hcm.request_ids.pack_trace_reason {
        super::trace::forget(headers);
    }
    let replace_id = edge && !keep_id;
    if with.hcm.generate_request_id && (!seen.request_id || replace_id) {
        headers.insert(X_REQUEST_ID, new_request_id());
    }
    if seen.xfcc || !matches!(with.xfcc, Xfcc::Keep | Xfcc::Remove) {
        with.xfcc.apply(headers);
    }
    Facts { remote, internal }
}

/// RFC 9110 section 7.6.1: headers that `connection` names are for one hop. Of an upgrade, `connection` and
/// `upgrade` go on to the upstream.
fn remove_connection_headers(headers: &mut HeaderMap) {
    let upgrade = is_upgrade(headers);
    let named: smallvec::SmallVec<[HeaderName; 4]> = header_list::tokens(headers, &CONNECTION)
        .filter(|token| {
            !["close", "keep-alive", "upgrade", "te"].iter().any(|t| token.eq_ignore_ascii_case(t))
        })
        .filter_map(|token| HeaderName::try_from(token).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    if !upgrade {
        headers.remove(CONNECTION);
        headers.remove(UPGRADE);
    }
}

/// Only `trailers` survives a proxy.
fn sanitize_te(headers: &mut HeaderMap) {
    let wants_trailers = header_list::tokens(headers, &TE)
        .any(|token| token.split(';').next().unwrap_or(token).trim().eq_ignore_ascii_case("trailers"));
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(TE);
    }
}

/// The client's address and whether it may make the request an internal one. Appends to `x-forwarded-for`
/// and overwrites an untrusted `x-forwarded-proto` with `use_remote_address`.
fn client_address(headers: &mut HeaderMap, with: &Mutation<'_>, seen: &Seen) -> (SocketAddr, bool) {
    let peer = with.connection.remote;
    let hops = with.hcm.xff_num_trusted_hops as usize;
    if !with.hcm.use_remote_address {
        let Some((ip, single)) = seen.xff.then(|| from_xff(headers, hops)).flatten() else {
            return (peer, false);
        };
        return (SocketAddr::new(ip, 0), single);
    }
    let forwarded = (hops > 0 && seen.xff).then(|| from_xff(headers, hops - 1)).flatten();
    let remote = forwarded.map_or(peer, |(ip, _)| SocketAddr::new(ip, 0));
    if !with.hcm.skip_xff_append {
        let ip = if peer.ip().is_loopback() { with.local_address } else { peer.ip() };
        header_list::append(headers, X_FORWARDED_FOR, &ip.to_string(), ",");
    }
    if hops == 0 || !seen.xfp {
        headers.insert(X_FORWARDED_PROTO, own_scheme(with.connection));
    }
    (remote, !seen.xff)
}

/// The address `skip` places from the right of `x-forwarded-for`, and whether it is the only one.
fn from_xff(headers: &HeaderMap, skip: usize) -> Option<(IpAddr, bool)> {
    let mut places: smallvec::SmallVec<[&str; 8]> = header_list::tokens(headers, &X_FORWARDED_FOR).collect();
    let single = places.len() == 1;
    for _ in 0..skip {
        places.pop()?;
    }
    places.pop()?.parse().ok().map(|ip| (ip, single))
}

fn own_scheme(connection: &ConnectionInfo) -> HeaderValue {
    HeaderValue::from_static(if connection.tls.is_some() { "https" } else { "http" })
}

fn remove_internal(headers: &mut HeaderMap, edge: bool, seen: &Seen, more: &[crate::model::Str]) {
    if seen.internal_only {
        for name in INTERNAL_ONLY {
            headers.remove(name);
        }
    }
    if edge && seen.edge_only {
        for name in EDGE_ONLY {
            headers.remove(name);
        }
    }
    for name in more {
        headers.remove(&**name);
    }
}

/// A version 4 UUID (RFC 9562): Envoy's "no trace" is the version digit itself.
fn new_request_id() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bits = (fastrand::u128(..) & !(0xf << 76 | 0x3 << 62)) | 4 << 76 | 2 << 62;
    let mut text = [b'-'; 36];
    let mut shift = 128;
    for (i, byte) in text.iter_mut().enumerate() {
        if ![8, 13, 18, 23].contains(&i) {
            shift -= 4;
            *byte = HEX[(bits >> shift) as usize & 15];
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static(""))
}

/// The scheme that redirects and logs tell: what the peer says if it is one of the two, else our own.
pub fn scheme(parts: &Parts, connection: &ConnectionInfo) -> &'static str {
    // HTTP/2 carries a scheme of its own; HTTP/1's is what `x-forwarded-proto` says.
    if parts.version >= Version::HTTP_2
        && let Some(scheme) = parts.uri.scheme_str()
    {
        return if scheme.eq_ignore_ascii_case("https") { "https" } else { "http" };
    }
    match parts.headers.get(X_FORWARDED_PROTO).map(HeaderValue::as_bytes) {
        Some(b"https") => "https",
        Some(b"http") => "http",
        _ if connection.tls.is_some() => "https",
        _ => "http",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::support::{connection, hcm};
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().uri("/x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn mutated(hcm: &HttpConnectionManager, headers: &[(&str, &str)]) -> (HeaderMap, Facts) {
        let mut parts = request(headers);
        let connection = connection("192.0.2.9:4000");
        let facts = mutate(
            &mut parts,
            &Mutation {
                hcm,
                connection: &connection,
                local_address: "192.0.2.2".parse().unwrap(),
                xfcc: &Xfcc::Remove,
                internal_only_headers: &[],
            },
        );
        (parts.headers, facts)
    }

    fn get<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
        headers.get(name).map_or("-", |v| v.to_str().unwrap())
    }

    #[test]
    fn hop_by_hop_headers_end_here() {
        let (headers, _) = mutated(
            &hcm(),
            &[
                ("connection", "keep-alive, x-hop"),
                ("x-hop", "1"),
                ("te", "trailers, gzip"),
                ("keep-alive", "3"),
                ("proxy-connection", "x"),
                ("upgrade", "foo"),
                ("expect", "100-continue"),
                ("x-stays", "1"),
            ],
        );
        for gone in ["connection", "x-hop", "keep-alive", "proxy-connection", "upgrade", "expect"] {
            assert_eq!(get(&headers, gone), "-", "{gone}");
        }
        assert_eq!(get(&headers, "te"), "trailers");
        assert_eq!(get(&headers, "x-stays"), "1");
    }

    #[test]
    fn an_upgrade_keeps_what_it_is_made_of() {
        let (headers, _) = mutated(&hcm(), &[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(get(&headers, "connection"), "Upgrade");
        assert_eq!(get(&headers, "upgrade"), "websocket");
    }

    #[test]
    fn a_client_cannot_steer_the_proxy_by_internal_headers() {
        let (headers, facts) = mutated(
            &hcm(),
            &[("x-envoy-retry-on", "5xx"), ("x-envoy-internal", "true"), ("x-envoy-original-path", "/q")],
        );
        assert!(!facts.internal);
        assert_eq!(get(&headers, "x-envoy-retry-on"), "-");
        assert_eq!(get(&headers, "x-envoy-internal"), "-");
        assert_eq!(get(&headers, "x-envoy-original-path"), "/q");
    }

    #[test]
    fn behind_a_proxy_the_forwarded_address_scheme_and_id_are_kept() {
        let (headers, facts) = mutated(
            &hcm(),
            &[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https"), ("x-request-id", "myid")],
        );
        assert_eq!(get(&headers, "x-forwarded-for"), "1.2.3.4");
        assert_eq!(get(&headers, "x-forwarded-proto"), "https");
        assert_eq!(get(&headers, "x-request-id"), "myid");
        assert_eq!(facts.remote.ip().to_string(), "1.2.3.4");
    }

    #[test]
    fn at_the_edge_the_peer_is_told_and_its_claims_are_not_believed() {
        let mut hcm = hcm();
        hcm.use_remote_address = true;
        hcm.via = Some("me".into());
        let (headers, facts) = mutated(
            &hcm,
            &[
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-proto", "https"),
                ("x-request-id", "myid"),
                ("x-envoy-original-path", "/q"),
                ("via", "1.1 z"),
            ],
        );
        assert_eq!(get(&headers, "x-forwarded-for"), "1.2.3.4,192.0.2.9");
        assert_eq!(get(&headers, "x-forwarded-proto"), "http");
        assert_eq!(get(&headers, "x-envoy-external-address"), "192.0.2.9");
        assert_eq!(get(&headers, "x-envoy-original-path"), "-");
        assert_eq!(get(&headers, "via"), "1.1 z, me");
        assert_ne!(get(&headers, "x-request-id"), "myid");
        assert_eq!(facts.remote.to_string(), "192.0.2.9:4000");
        hcm.xff_num_trusted_hops = 1;
        let (headers, facts) =
            mutated(&hcm, &[("x-forwarded-for", "9.9.9.9, 1.2.3.4"), ("x-forwarded-proto", "https")]);
        assert_eq!(facts.remote.ip().to_string(), "1.2.3.4");
        assert_eq!(get(&headers, "x-forwarded-proto"), "https");
    }

    #[test]
    fn a_request_of_an_internal_address_is_marked_and_may_steer() {
        let mut hcm = hcm();
        hcm.use_remote_address = true;
        hcm.internal_cidrs =
            vec![crate::model::listener::Cidr { address: "192.0.2.0".parse().unwrap(), prefix_len: 24 }];
        let (headers, facts) = mutated(&hcm, &[("x-envoy-retry-on", "5xx")]);
        assert!(facts.internal);
        assert_eq!(get(&headers, "x-envoy-internal"), "true");
        assert_eq!(get(&headers, "x-envoy-retry-on"), "5xx");
        assert_eq!(get(&headers, "x-envoy-external-address"), "-");
    }

    #[test]
    fn request_ids_are_version_4_uuids() {
        let (headers, _) = mutated(&hcm(), &[]);
        let id = get(&headers, "x-request-id");
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4", "{id}");
        assert!(["8", "9", "a", "b"].contains(&&id[19..20]), "{id}");
    }
}

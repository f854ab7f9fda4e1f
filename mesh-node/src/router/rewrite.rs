//! What a route makes of path and host before the request is forwarded.

use std::borrow::Cow;

use super::{RequestHead, just_path};
use crate::model::matcher::joined;
use crate::model::route::{Forward, HostRewrite, PathMatch, PathRewrite, Route, WeightedCluster};

/// The path and query to forward; `None` when the route does not rewrite it. Where it does, the caller sets
/// `x-envoy-original-path` to the old one, unless `suppress_envoy_headers`.
pub fn rewrite_path(route: &Route, forward: &Forward, path: &str) -> Option<String> {
    match &forward.path_rewrite {
        PathRewrite::None => None,
        PathRewrite::Prefix(new) => Some(replace_matched(&route.matches.path, path, new)),
        PathRewrite::Regex(regex, substitution) => {
            let old = just_path(path);
            Some(format!("{}{}", regex.replace_all(old, substitution.as_str()), &path[old.len()..]))
        }
    }
}

/// Replaces the part of the path that the route matched: the prefix, or the whole path.
pub(super) fn replace_matched(matched: &PathMatch, path: &str, new: &str) -> String {
    let length = match matched {
        PathMatch::Prefix(p) | PathMatch::Exact(p) | PathMatch::SeparatedPrefix(p) => p.len(),
        PathMatch::Regex(_) => just_path(path).len(),
        PathMatch::Connect => path.len(),
    };
    // A case-insensitive match has the same length in bytes, at a boundary.
    format!("{new}{}", path.get(length..).unwrap_or(""))
}

/// A rewritten `:authority`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHost<'a> {
    pub authority: Cow<'a, str>,
    /// What the upstream may be told of the host before: `x-envoy-original-host` is set to it (unless
    /// `suppress_envoy_headers`), and it is appended to `x-forwarded-host` where `append_x_forwarded_host`
    /// asks for that. `None` where only a weighted cluster rewrites the host.
    pub original: Option<&'a str>,
}

/// The host to forward; `None` when it stays. `endpoint_hostname` is the chosen endpoint's host name, for
/// `auto_host_rewrite`. A weighted cluster's `host_rewrite_literal` comes first, the route's own after it.
pub fn rewrite_host<'a>(
    forward: &'a Forward,
    weighted: Option<&'a WeightedCluster>,
    head: &RequestHead<'a>,
    endpoint_hostname: Option<&'a str>,
) -> Option<NewHost<'a>> {
    let of_weighted = weighted.and_then(|w| w.host_rewrite.as_deref());
    let of_route = match &forward.host_rewrite {
        HostRewrite::None => None,
        HostRewrite::Literal(host) => Some(Cow::Borrowed(&**host)),
        HostRewrite::Auto => endpoint_hostname.map(Cow::Borrowed),
        HostRewrite::Header(name) => joined(head.headers, name),
        HostRewrite::PathRegex(regex, substitution) => {
            Some(regex.replace_all(just_path(head.path), substitution.as_str()))
        }
    };
    match of_route.filter(|host| !host.is_empty()) {
        Some(authority) => Some(NewHost { authority, original: Some(of_weighted.unwrap_or(head.authority)) }),
        None => of_weighted.map(|host| NewHost { authority: Cow::Borrowed(host), original: None }),
    }
}

/// The host without its port (`strip_any_host_port`, or `strip_matching_host_port` with the listener's
/// port); `None` when there is nothing to strip.
pub fn strip_port(authority: &str, only: Option<u16>) -> Option<&str> {
    let start = port_start(authority)?;
    let port: u32 = authority[start + 1..].parse().ok()?;
    only.is_none_or(|only| port == u32::from(only)).then(|| &authority[..start])
}

/// Where the port of `host:port` begins, colon included. Colons inside an IPv6 literal are none.
pub(super) fn port_start(authority: &str) -> Option<usize> {
    let colon = authority.rfind(':')?;
    match authority.rfind(']') {
        Some(bracket) if bracket > colon => None,
        _ => Some(colon),
    }
}

//! Cross-site request forgery (`envoy.filters.http.csrf`): requests that change something must come from a page
//! of the same origin, or of one that is named.

use http::header::{ORIGIN, REFERER};
use http::{Method, StatusCode};

use super::super::local_reply::LocalReply;
use super::super::request::Request;
use super::Decoding;
use crate::model::http_filter::{Csrf, CsrfStats, HttpFilter, Override};
use crate::runtime::Setting;

pub(super) fn decode(
    decoding: &Decoding<'_>,
    filter: &HttpFilter,
    (own, stats): (&Csrf, &CsrfStats),
    request: &Request,
) -> Option<LocalReply> {
    let policy = match decoding.override_of(filter) {
        Some(Override::Csrf(of_route)) => of_route,
        _ => own,
    };
    let enabled = policy.enabled.drawn();
    let shadow = policy.shadow_enabled.as_ref().is_some_and(Setting::drawn);
    let changes = [Method::POST, Method::PUT, Method::DELETE, Method::PATCH].contains(&request.parts.method);
    if !changes || !(enabled || shadow) {
        return None;
    }
    let headers = &request.parts.headers;
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).filter(|text| *text != "null");
    let source = text(ORIGIN).or_else(|| text(REFERER)).map(host_and_port).filter(|host| !host.is_empty());
    match source {
        None => stats.missing_source_origin.inc(),
        Some(source)
            if source == request.authority()
                || policy.additional_origins.iter().any(|m| m.matches(source)) =>
        {
            stats.request_valid.inc();
            return None;
        }
        Some(_) => stats.request_invalid.inc(),
    }
    enabled.then(|| LocalReply::new(StatusCode::FORBIDDEN, "Invalid origin", "csrf_origin_mismatch"))
}

/// `host:port` of a URL; of what is none, all of it.
fn host_and_port(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_host_with_its_port() {
        for (url, host) in [
            ("https://shop.example:8443/cart?x", "shop.example:8443"),
            ("http://a", "a"),
            ("a.example/x", "a.example"),
            ("", ""),
        ] {
            assert_eq!(host_and_port(url), host);
        }
    }
}

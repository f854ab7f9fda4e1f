//! Route tables and requests for tests.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::model::domains::Domains;
use crate::model::headers::HeaderMutations;
use crate::model::matcher::{HeaderKey, HeaderMatchKind, HeaderMatcher, StringMatcher, StringPattern};
use crate::model::route::{
    Action, ClusterChoice, DirectResponse, Forward, HostRewrite, PathMatch, PathRewrite, RequireTls, RetryOn,
    RetryPolicy, Route, RouteMatch, RouteTable, VirtualHost,
};
use crate::router::RequestHead;

/// An owned request head.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) scheme: &'static str,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
}

impl Request {
    pub(crate) fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.method,
            scheme: self.scheme,
            authority: &self.authority,
            path: &self.path,
            headers: &self.headers,
        }
    }
}

/// A GET as the connection manager hands it over.
pub(crate) fn get(authority: &str, path: &str, lines: &[(&str, &str)]) -> Request {
    let mut all = headers(lines);
    all.entry("x-forwarded-proto").or_insert(HeaderValue::from_static("http"));
    Request {
        method: Method::GET,
        scheme: if all["x-forwarded-proto"] == "https" { "https" } else { "http" },
        authority: authority.to_owned(),
        path: path.to_owned(),
        headers: all,
    }
}

pub(crate) fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
        .fold(HeaderMap::new(), |mut all, (name, value)| {
            all.append(name, value);
            all
        })
}

pub(crate) fn path(path: PathMatch) -> RouteMatch {
    RouteMatch {
        path,
        case_sensitive: true,
        headers: Vec::new(),
        query: Vec::new(),
        metadata: Vec::new(),
        filter_state: Vec::new(),
        tls: None,
        runtime_fraction: None,
        grpc: false,
    }
}

pub(crate) fn prefix(text: &str) -> RouteMatch {
    path(PathMatch::Prefix(text.to_owned()))
}

pub(crate) fn string(pattern: StringPattern) -> StringMatcher {
    StringMatcher { pattern, ignore_case: false }
}

pub(crate) fn exact(text: &str) -> StringMatcher {
    string(StringPattern::Exact(text.to_owned()))
}

pub(crate) fn header(name: &str, kind: HeaderMatchKind) -> HeaderMatcher {
    HeaderMatcher {
        name: HeaderKey::Name(name.parse().unwrap()),
        kind,
        invert: false,
        treat_missing_as_empty: false,
    }
}

pub(crate) fn forward() -> Forward {
    Forward {
        cluster: ClusterChoice::Single("c".into()),
        cluster_not_found_status: 503,
        path_rewrite: PathRewrite::None,
        host_rewrite: HostRewrite::None,
        append_x_forwarded_host: false,
        timeout: Some(std::time::Duration::from_secs(15)),
        idle_timeout: None,
        max_stream_duration: None,
        max_grpc_timeout: None,
        grpc_timeout_offset: None,
        grpc_timeout_header_max: None,
        retry: None,
        hedge: None,
        upgrades: Vec::new(),
        terminates_connect: false,
        hash_policy: Vec::new(),
        metadata_match: None,
        priority_high: false,
        mirrors: Vec::new(),
        internal_redirect: None,
    }
}

pub(crate) fn route(name: &str, matches: RouteMatch, action: Action) -> Arc<Route> {
    Arc::new(Route {
        name: name.into(),
        matches,
        action,
        headers: HeaderMutations::default(),
        filters: Vec::new(),
        rate_limits: Vec::new(),
        with_rate_limits_of_host: false,
        metadata: Box::default(),
        decorator: None,
        tracing: None,
    })
}

pub(crate) fn direct_response() -> DirectResponse {
    DirectResponse { status: 200, body: bytes::Bytes::new(), body_format: None }
}

/// A route that only its name tells from others.
pub(crate) fn direct(name: &str, matches: RouteMatch) -> Arc<Route> {
    route(name, matches, Action::Direct(direct_response()))
}

pub(crate) fn virtual_host(name: &str, domains: &[&str], routes: Vec<Arc<Route>>) -> VirtualHost {
    VirtualHost {
        name: name.into(),
        domains: domains.iter().map(|d| (*d).into()).collect(),
        routes,
        require_tls: RequireTls::None,
        headers: HeaderMutations::default(),
        filters: Vec::new(),
        retry: None,
        hedge: None,
        rate_limits: Vec::new(),
        include_request_attempt_count: false,
        include_attempt_count_in_response: false,
        virtual_clusters: Vec::new(),
    }
}

pub(crate) fn table(virtual_hosts: Vec<VirtualHost>) -> RouteTable {
    let virtual_hosts: Vec<_> = virtual_hosts.into_iter().map(Arc::new).collect();
    RouteTable {
        domains: Domains::new(virtual_hosts.iter().map(|v| &v.domains)).unwrap(),
        virtual_hosts,
        ..RouteTable::default()
    }
}

pub(crate) fn policy(conditions: &str) -> Arc<RetryPolicy> {
    let mut on = RetryOn::default();
    for condition in conditions.split(',').filter(|c| !c.is_empty()) {
        assert!(on.add(condition) || on.add_grpc(condition), "{condition}");
    }
    Arc::new(RetryPolicy {
        on,
        num_retries: 2,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        retriable_status_codes: vec![418],
        retriable_headers: vec![header("x-again", HeaderMatchKind::Present(true))],
        retriable_request_headers: Vec::new(),
        previous_hosts: false,
        avoid: Vec::new(),
        other_priorities: None,
        host_selection_retry_max_attempts: 1,
        back_off: (std::time::Duration::from_millis(25), std::time::Duration::from_millis(250)),
    })
}

//! From a request's head to the route that serves it: virtual host, then the first route that matches.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::matching::{header_matches, pseudo_header, query_matches};
use super::rewrite::port_start;
use super::timeout::is_grpc;
use super::{RequestHead, just_path};
use crate::model::DynamicMetadata;
use crate::model::matcher::HeaderKey;
use crate::model::route::{
    Action, ClusterChoice, PathMatch, RequireTls, Route, RouteMatch, RouteTable, VirtualHost, WeightedCluster,
};

/// What is to be done with a request.
#[derive(Debug, Clone, Copy)]
pub enum Decision<'t> {
    /// 404, flag `NR`, details `route_not_found`. The virtual host, if one was found.
    NotFound(Option<&'t Arc<VirtualHost>>),
    /// 301 to [`super::tls_redirect_location`]: the virtual host serves TLS only.
    TlsRedirect(&'t Arc<VirtualHost>),
    Route(Routed<'t>),
}

/// The route of a request.
#[derive(Debug, Clone, Copy)]
pub struct Routed<'t> {
    pub virtual_host: &'t Arc<VirtualHost>,
    pub route: &'t Arc<Route>,
    /// The entry that was drawn, where the route has weighted clusters.
    pub weighted: Option<&'t WeightedCluster>,
}

impl<'t> Routed<'t> {
    /// Name of the cluster to forward to. `None` for redirects and direct responses, and where the header
    /// that should name the cluster is missing (to be answered like an unknown cluster).
    pub fn cluster<'a>(&self, head: &RequestHead<'a>) -> Option<Cow<'a, str>>
    where
        't: 'a,
    {
        let Action::Forward(forward) = &self.route.action else { return None };
        match &forward.cluster {
            ClusterChoice::Single(name) => Some(Cow::Borrowed(&**name)),
            ClusterChoice::Weighted { .. } => self.weighted.map(|w| Cow::Borrowed(&*w.name)),
            ClusterChoice::Header(HeaderKey::Name(name)) => {
                head.headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()))
            }
            ClusterChoice::Header(pseudo) => pseudo_header(head, pseudo).map(Cow::Borrowed),
        }
    }
}

/// Finds the route. `random` decides runtime fractions and weighted clusters; it must be uniform and the
/// same for all calls for one request, so that a request keeps its route.
pub fn route<'t>(table: &'t RouteTable, head: &RequestHead<'_>, random: u64) -> Decision<'t> {
    route_knowing(table, head, Known::default(), random)
}

/// What is known of a request beside its head.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    pub metadata: Option<&'a DynamicMetadata>,
    pub filter_state: Option<&'a BTreeMap<String, String>>,
    /// The client has presented a certificate, and it was verified.
    pub certificate: (bool, bool),
}

/// As [`route`], for a request of which more is known.
pub fn route_knowing<'t>(
    table: &'t RouteTable,
    head: &RequestHead<'_>,
    known: Known<'_>,
    random: u64,
) -> Decision<'t> {
    let Some(virtual_host) = find_virtual_host(table, head.authority) else {
        return Decision::NotFound(None);
    };
    if must_be_tls(virtual_host, head) {
        return Decision::TlsRedirect(virtual_host);
    }
    let matching = virtual_host.routes.iter().find(|route| matches(&route.matches, head, known, random));
    match matching {
        Some(route) => Decision::Route(Routed { virtual_host, route, weighted: draw(&route.action, random) }),
        None => Decision::NotFound(Some(virtual_host)),
    }
}

fn find_virtual_host<'t>(table: &'t RouteTable, authority: &str) -> Option<&'t Arc<VirtualHost>> {
    let index = match table.domains.only_catch_all() {
        Some(index) => index,
        None => {
            let end = port_start(authority).filter(|_| table.ignore_port_in_host_matching);
            let host = &authority[..end.unwrap_or(authority.len())];
            if host.bytes().any(|b| b.is_ascii_uppercase()) {
                table.domains.find(&host.to_ascii_lowercase())?
            } else {
                table.domains.find(host)?
            }
        }
    };
    table.virtual_hosts.get(index)
}

/// `VirtualHost.require_tls`. The scheme that counts is `x-forwarded-proto`, which the connection manager
/// has set.
fn must_be_tls(virtual_host: &VirtualHost, head: &RequestHead<'_>) -> bool {
    let is =
        |name: &str, value: &str| head.headers.get(name).is_some_and(|v| v.as_bytes() == value.as_bytes());
    match virtual_host.require_tls {
        RequireTls::None => false,
        RequireTls::All => !is("x-forwarded-proto", "https"),
        RequireTls::ExternalOnly => !is("x-forwarded-proto", "https") && !is("x-envoy-internal", "true"),
    }
}

fn matches(m: &RouteMatch, head: &RequestHead<'_>, known: Known<'_>, random: u64) -> bool {
    path_matches(m, head)
        && m.runtime_fraction.as_ref().is_none_or(|share| share.holds(random))
        && (!m.grpc || is_grpc(head.headers))
        && m.headers.iter().all(|h| header_matches(h, head))
        && (m.query.is_empty() || m.query.iter().all(|q| query_matches(q, head.path)))
        && m.tls.is_none_or(|tls| {
            let (presented, validated) = known.certificate;
            tls.presented.is_none_or(|wanted| wanted == presented)
                && tls.validated.is_none_or(|wanted| wanted == validated)
        })
        && m.metadata.iter().all(|matcher| matcher.matches(known.metadata))
        && m.filter_state.iter().all(|(key, matcher)| {
            known.filter_state.and_then(|state| state.get(key)).is_some_and(|value| matcher.matches(value))
        })
}

fn path_matches(m: &RouteMatch, head: &RequestHead<'_>) -> bool {
    if let PathMatch::Connect = m.path {
        return head.method == http::Method::CONNECT;
    }
    // CONNECT without a path: no other matcher can take it.
    if head.path.is_empty() {
        return false;
    }
    let path = just_path(head.path);
    match &m.path {
        PathMatch::Prefix(prefix) => starts_with(path, prefix, m.case_sensitive),
        PathMatch::Exact(exact) if m.case_sensitive => path == exact,
        PathMatch::Exact(exact) => path.eq_ignore_ascii_case(exact),
        PathMatch::Regex(regex) => regex.is_match(path),
        PathMatch::SeparatedPrefix(prefix) => {
            starts_with(path, prefix, m.case_sensitive)
                && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
        }
        PathMatch::Connect => false,
    }
}

fn starts_with(path: &str, prefix: &str, case_sensitive: bool) -> bool {
    let (path, prefix) = (path.as_bytes(), prefix.as_bytes());
    if case_sensitive {
        path.starts_with(prefix)
    } else {
        path.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    }
}

fn draw(action: &Action, random: u64) -> Option<&WeightedCluster> {
    let Action::Forward(forward) = action else { return None };
    let ClusterChoice::Weighted { clusters, total } = &forward.cluster else { return None };
    let now = || clusters.iter().map(|cluster| cluster.weight.now()).fold(0, u64::saturating_add);
    let mut point = random % total.unwrap_or_else(now).max(1);
    clusters.iter().find(|cluster| match point.checked_sub(cluster.weight.now()) {
        Some(rest) => {
            point = rest;
            false
        }
        None => true,
    })
}

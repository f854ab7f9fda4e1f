//! Which route serves a request.

use std::collections::HashMap;

use http::Method;
use proptest::prelude::*;
use regex::Regex;

use super::support::{
    Request, direct, exact, forward, get, header, path, prefix, route, string, table, virtual_host,
};
use crate::model::domains::Domains;
use crate::model::matcher::{
    HeaderKey, HeaderMatchKind, HeaderMatcher, QueryMatchKind, QueryMatcher, StringMatcher, StringPattern,
};
use crate::model::rbac::{MetadataMatcher, ValueMatcher};
use crate::model::route::{
    Action, ClusterChoice, PathMatch, RequireTls, RouteMatch, RouteTable, WeightedCluster,
};
use crate::router::{Decision, header_matches, route as decide};
use crate::router::{Known, route_knowing};
use crate::runtime::Setting;

/// Virtual host and route, or `-`.
fn chosen(table: &RouteTable, request: &Request) -> String {
    match decide(table, &request.head(), 0) {
        Decision::Route(routed) => format!("{} {}", routed.virtual_host.name, routed.route.name),
        Decision::NotFound(Some(host)) => format!("{} -", host.name),
        Decision::NotFound(None) => "- -".to_owned(),
        Decision::TlsRedirect(host) => format!("{} tls", host.name),
    }
}

fn serves(matches: RouteMatch, request: &Request) -> bool {
    chosen(&table(vec![virtual_host("v", &["*"], vec![direct("r", matches)])]), request) == "v r"
}

fn hosts(ignore_port: bool) -> RouteTable {
    let all = || vec![direct("r", prefix("/"))];
    RouteTable {
        ignore_port_in_host_matching: ignore_port,
        ..table(vec![
            virtual_host("main", &["h.test"], all()),
            virtual_host("p81", &["p.test:81"], all()),
            virtual_host("p", &["p.test"], all()),
            virtual_host("wild", &["*.w.test", "w.*"], all()),
            virtual_host("all", &["*"], all()),
        ])
    }
}

#[test]
fn the_host_finds_its_virtual_host_with_and_without_port() {
    for (host, with_port, without_port) in [
        ("H.TEST", "main", "main"),
        ("p.test:81", "p81", "p"),
        ("p.test", "p", "p"),
        ("p.test:82", "all", "p"),
        ("a.w.test", "wild", "wild"),
        (".w.test", "all", "all"),
        ("w.x", "wild", "wild"),
        ("w.", "all", "all"),
        ("a.W.test:80", "all", "wild"),
        ("", "all", "all"),
        ("h.test:", "all", "main"),
        ("[::1]:80", "all", "all"),
        ("[::1]", "all", "all"),
    ] {
        let request = get(host, "/", &[]);
        assert_eq!(chosen(&hosts(false), &request), format!("{with_port} r"), "{host:?}");
        assert_eq!(chosen(&hosts(true), &request), format!("{without_port} r"), "{host:?}, port ignored");
    }
}

#[test]
fn an_unknown_host_or_path_has_no_route() {
    let table = table(vec![virtual_host("v", &["h.test"], vec![direct("r", prefix("/a"))])]);
    assert_eq!(chosen(&table, &get("x.test", "/a", &[])), "- -");
    assert_eq!(chosen(&table, &get("h.test", "/b", &[])), "v -");
}

#[test]
fn the_first_matching_route_serves() {
    let routes =
        vec![direct("one", prefix("/a/b")), direct("two", prefix("/a")), direct("three", prefix("/a/b"))];
    let table = table(vec![virtual_host("v", &["*"], routes)]);
    assert_eq!(chosen(&table, &get("h", "/a/b/c", &[])), "v one");
    assert_eq!(chosen(&table, &get("h", "/a/c", &[])), "v two");
}

#[test]
fn plain_text_is_redirected_where_tls_is_required() {
    let mut host = virtual_host("v", &["*"], vec![direct("r", prefix("/"))]);
    host.require_tls = RequireTls::All;
    let all = table(vec![host]);
    assert_eq!(chosen(&all, &get("h", "/", &[])), "v tls");
    assert_eq!(chosen(&all, &get("h", "/", &[("x-forwarded-proto", "https")])), "v r");
    let mut host = virtual_host("v", &["*"], vec![direct("r", prefix("/"))]);
    host.require_tls = RequireTls::ExternalOnly;
    let external = table(vec![host]);
    assert_eq!(chosen(&external, &get("h", "/", &[])), "v tls");
    assert_eq!(chosen(&external, &get("h", "/", &[("x-envoy-internal", "true")])), "v r");
}

#[test]
fn paths_match_without_their_query() {
    let insensitive = |p| RouteMatch { case_sensitive: false, ..path(p) };
    let separated = || path(PathMatch::SeparatedPrefix("/sep".into()));
    let regex = || path(PathMatch::Regex(Regex::new("^(?:/r[0-9]+)$").unwrap()));
    for (matches, request, want) in [
        (prefix("/a"), "/ab?x", true),
        (prefix("/a?"), "/a?x", false),
        (prefix("/a"), "/A", false),
        (insensitive(PathMatch::Prefix("/PM/a".into())), "/pm/AB", true),
        (insensitive(PathMatch::Prefix("/PM/a".into())), "/pm", false),
        (path(PathMatch::Exact("/e".into())), "/e?x=/e", true),
        (path(PathMatch::Exact("/e".into())), "/e/", false),
        (insensitive(PathMatch::Exact("/Exact".into())), "/EXACT?x", true),
        (separated(), "/sep", true),
        (separated(), "/sep/", true),
        (separated(), "/sep/x", true),
        (separated(), "/sep?x", true),
        (separated(), "/separate", false),
        (regex(), "/r12?x", true),
        (regex(), "/r12/", false),
        (path(PathMatch::Connect), "/r12/", false),
    ] {
        assert_eq!(serves(matches, &get("h", request, &[])), want, "{request}");
    }
}

#[test]
fn connect_without_a_path_only_takes_connect_routes() {
    let connect = Request { method: Method::CONNECT, ..get("h:443", "", &[]) };
    assert!(serves(path(PathMatch::Connect), &connect));
    assert!(!serves(prefix("/"), &connect));
    assert!(!serves(prefix(""), &connect));
}

#[test]
fn grpc_routes_take_grpc_content_types_only() {
    let grpc = || RouteMatch { grpc: true, ..prefix("/") };
    for (content_type, want) in
        [("application/grpc", true), ("application/grpc+proto", true), ("application/grpc-web", false)]
    {
        assert_eq!(serves(grpc(), &get("h", "/", &[("content-type", content_type)])), want, "{content_type}");
    }
    assert!(!serves(grpc(), &get("h", "/", &[])));
}

fn value(matcher: StringMatcher) -> HeaderMatchKind {
    HeaderMatchKind::Value(matcher)
}

/// A matcher, header lines, and whether they match.
type Case = (HeaderMatcher, &'static [(&'static str, &'static str)], bool);

#[test]
fn header_matchers_agree_with_envoy() {
    use HeaderMatchKind::{Present, Range};
    let x = |kind| header("x-a", kind);
    let not = |m: HeaderMatcher| HeaderMatcher { invert: true, ..m };
    let or_empty = |m: HeaderMatcher| HeaderMatcher { treat_missing_as_empty: true, ..m };
    let folded = StringPattern::Contains("bc".into());
    let regex = |text| string(StringPattern::Regex(Regex::new(text).unwrap()));
    let two: &[_] = &[("x-a", "a"), ("x-a", "b")];
    let cases: Vec<Case> = vec![
        (not(x(value(exact("1")))), &[], false),
        (not(x(value(exact("1")))), &[("x-a", "1")], false),
        (not(x(value(exact("1")))), &[("x-a", "2")], true),
        (not(x(Present(true))), &[], true),
        (not(x(Present(true))), &[("x-a", "1")], false),
        (or_empty(x(Present(true))), &[], true),
        (or_empty(x(Present(false))), &[], false),
        (or_empty(x(Present(false))), &[("x-a", "1")], false),
        (x(Present(false)), &[], true),
        (x(Present(false)), &[("x-a", "")], false),
        (not(or_empty(x(Present(true)))), &[], false),
        (or_empty(x(value(exact("")))), &[], true),
        (x(value(exact(""))), &[], false),
        (not(or_empty(x(value(exact("1"))))), &[], true),
        (x(Range(0, 10)), &[("x-a", "5")], true),
        (x(Range(0, 10)), &[("x-a", "+5")], true),
        (x(Range(0, 10)), &[("x-a", "10")], false),
        (x(Range(-5, 10)), &[("x-a", "-5")], true),
        (x(Range(0, 10)), &[("x-a", "x")], false),
        (x(Range(0, 10)), &[], false),
        (not(x(Range(0, 10))), &[("x-a", "x")], true),
        (not(x(Range(0, 10))), &[], false),
        (x(value(StringMatcher { pattern: folded, ignore_case: true })), &[("x-a", "aBcd")], true),
        (x(value(regex("^(?:a.c)$"))), &[("x-a", "abc")], true),
        (x(value(regex("^(?:a.c)$"))), &[("x-a", "abcd")], false),
        // Of several lines any one may match; they are not a list.
        (x(value(exact("a"))), two, true),
        (x(value(exact("b"))), two, true),
        (x(value(exact("a,b"))), two, false),
        (x(value(exact("a,b"))), &[("x-a", "a,b")], true),
        (not(x(value(exact("a")))), two, false),
        (not(x(value(exact("z")))), two, true),
        (x(Present(true)), two, true),
        (header("cookie", value(exact("b=2"))), &[("cookie", "a=1"), ("cookie", "b=2")], true),
        // Unless they are one of those that are kept in one line.
        (header("accept", value(exact("a"))), &[("accept", "a"), ("accept", "b")], false),
        (header("accept", value(exact("a,b"))), &[("accept", "a"), ("accept", "b")], true),
    ];
    for (matcher, lines, want) in cases {
        assert_eq!(header_matches(&matcher, &get("h", "/", lines).head()), want, "{matcher:?} {lines:?}");
    }
}

#[test]
fn pseudo_headers_match_like_headers() {
    let request = get("h.test:80", "/a?q=1", &[]);
    for (name, text, want) in [
        (HeaderKey::Path, "/a?q=1", true),
        (HeaderKey::Path, "/a", false),
        (HeaderKey::Method, "GET", true),
        (HeaderKey::Authority, "h.test:80", true),
        (HeaderKey::Scheme, "http", true),
        (HeaderKey::Status, "200", false),
    ] {
        let matcher = HeaderMatcher { name, ..header("x", value(exact(text))) };
        assert_eq!(header_matches(&matcher, &request.head()), want, "{matcher:?}");
    }
}

#[test]
fn query_matchers_agree_with_envoy() {
    let a = |kind| QueryMatcher { name: "a".into(), kind };
    let present = |p| a(QueryMatchKind::Present(p));
    let is = |text| a(QueryMatchKind::Value(exact(text)));
    for (matcher, request, want) in [
        (present(true), "/", false),
        (present(true), "/?a", true),
        (present(true), "/?a=", true),
        (present(true), "/?b=1", false),
        (present(true), "/?b&a=1", true),
        (present(false), "/", true),
        (present(false), "/?a", false),
        // Nothing is decoded.
        (is("b c"), "/?a=b%20c", false),
        (is("b%20c"), "/?a=b%20c", true),
        (is(""), "/?a", true),
        (is(""), "/?a=", true),
        (is(""), "/", false),
        // The first of several counts.
        (is("1"), "/?a=1&a=2", true),
        (is("1"), "/?a=2&a=1", false),
        (is("1"), "/?A=1", false),
        (is("1"), "/?b=2?a=1", false),
        (is("1"), "/?b=2&a=1", true),
        (is("1"), "/?&a=1", true),
    ] {
        let matches = RouteMatch { query: vec![matcher.clone()], ..prefix("/") };
        assert_eq!(serves(matches, &get("h", request, &[])), want, "{matcher:?} {request}");
    }
}

fn weighted(weights: &[u32]) -> RouteTable {
    let clusters: Vec<_> = weights
        .iter()
        .enumerate()
        .map(|(i, weight)| WeightedCluster {
            metadata_match: None,
            name: i.to_string().into(),
            weight: Setting::fixed((*weight).into()),
            headers: Default::default(),
            filters: Vec::new(),
            host_rewrite: None,
        })
        .collect();
    let total = Some(weights.iter().copied().map(u64::from).sum());
    let mut forward = forward();
    forward.cluster = ClusterChoice::Weighted { clusters, total };
    let route = route("r", prefix("/"), Action::Forward(Box::new(forward)));
    table(vec![virtual_host("v", &["*"], vec![route])])
}

fn cluster_of(table: &RouteTable, request: &Request, random: u64) -> Option<String> {
    let head = request.head();
    match decide(table, &head, random) {
        Decision::Route(routed) => routed.cluster(&head).map(|name| name.into_owned()),
        _ => None,
    }
}

#[test]
fn a_split_of_99_to_1_comes_out_as_99_to_1() {
    let (table, request) = (weighted(&[99, 0, 1]), get("h", "/", &[]));
    let mut tally: HashMap<Option<String>, u32> = HashMap::new();
    for random in 0..10_000 {
        *tally.entry(cluster_of(&table, &request, random)).or_default() += 1;
    }
    assert_eq!(tally[&Some("0".into())], 9_900);
    assert_eq!(tally[&Some("2".into())], 100);
    assert_eq!(tally.len(), 2, "a cluster without weight gets nothing");
}

#[test]
fn a_header_can_name_the_cluster() {
    let mut forward = forward();
    forward.cluster = ClusterChoice::Header(HeaderKey::Name(http::HeaderName::from_static("x-cluster")));
    let route = route("r", prefix("/"), Action::Forward(Box::new(forward)));
    let table = table(vec![virtual_host("v", &["*"], vec![route])]);
    assert_eq!(cluster_of(&table, &get("h", "/", &[("x-cluster", "blue")]), 0).as_deref(), Some("blue"));
    assert_eq!(cluster_of(&table, &get("h", "/", &[]), 0), None);
}

#[test]
fn the_host_can_name_the_cluster() {
    let mut forward = forward();
    forward.cluster = ClusterChoice::Header(HeaderKey::Authority);
    let route = route("r", prefix("/"), Action::Forward(Box::new(forward)));
    let table = table(vec![virtual_host("v", &["*"], vec![route])]);
    assert_eq!(cluster_of(&table, &get("blue", "/", &[]), 0).as_deref(), Some("blue"));
}

#[test]
fn what_filters_found_out_chooses_the_route() {
    let matcher = MetadataMatcher {
        filter: "app".to_owned(),
        path: vec!["version".to_owned()],
        value: ValueMatcher::String(exact("2")),
        invert: false,
    };
    let by_metadata = RouteMatch { metadata: vec![matcher], ..prefix("/") };
    let by_state = RouteMatch { filter_state: vec![("tenant".to_owned(), exact("gold"))], ..prefix("/") };
    let routes =
        vec![direct("metadata", by_metadata), direct("state", by_state), direct("rest", prefix("/"))];
    let table = table(vec![virtual_host("v", &["*"], routes)]);
    let request = get("h", "/", &[]);
    let metadata = |version: &str| {
        let fields = serde_json::json!({ "version": version });
        crate::model::DynamicMetadata::from([("app".to_owned(), fields.as_object().unwrap().clone())])
    };
    let state = std::collections::BTreeMap::from([("tenant".to_owned(), "gold".to_owned())]);
    for (known, route) in [
        (
            Known { metadata: Some(&metadata("2")), filter_state: Some(&state), ..Known::default() },
            "metadata",
        ),
        (Known { metadata: Some(&metadata("1")), filter_state: Some(&state), ..Known::default() }, "state"),
        (Known::default(), "rest"),
    ] {
        let decision = route_knowing(&table, &request.head(), known, 0);
        assert!(matches!(decision, Decision::Route(r) if &*r.route.name == route), "{route}");
    }
}

#[test]
fn a_runtime_fraction_takes_its_share_and_leaves_the_rest_to_the_next_route() {
    let some = RouteMatch { runtime_fraction: Some(Setting::fixed((25, 100))), ..prefix("/") };
    let table =
        table(vec![virtual_host("v", &["*"], vec![direct("some", some), direct("rest", prefix("/"))])]);
    let request = get("h", "/", &[]);
    let taken = (0..10_000).filter(|random| {
        matches!(decide(&table, &request.head(), *random), Decision::Route(r) if &*r.route.name == "some")
    });
    assert_eq!(taken.count(), 2_500);
}

/// What [`Domains::find`] must find, said the slow way.
fn find_slowly(domains: &[Vec<String>], host: &str) -> Option<usize> {
    let all = || domains.iter().enumerate().flat_map(|(i, of)| of.iter().map(move |d| (i, d.as_str())));
    let longest = |fits: &dyn Fn(&str) -> Option<usize>| {
        all().filter_map(|(i, d)| Some((fits(d)?, i))).max_by_key(|(length, _)| *length).map(|(_, i)| i)
    };
    let suffix = |d: &str| {
        let text = d.strip_prefix('*')?;
        (!text.is_empty() && host.len() > text.len() && host.ends_with(text)).then_some(text.len())
    };
    let prefix = |d: &str| {
        let text = d.strip_suffix('*')?;
        (!text.is_empty() && host.len() > text.len() && host.starts_with(text)).then_some(text.len())
    };
    all()
        .find(|(_, d)| *d == host)
        .map(|(i, _)| i)
        .or_else(|| longest(&suffix))
        .or_else(|| longest(&prefix))
        .or_else(|| all().find(|(_, d)| *d == "*").map(|(i, _)| i))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn hosts_find_the_same_virtual_host_as_by_trying_every_domain(
        domains in prop::collection::vec(
            prop::collection::vec("[ab.]{1,4}|\\*[ab.]{1,3}|[ab.]{1,3}\\*|\\*", 1..4), 1..6),
        host in "[ab.]{0,5}",
    ) {
        // Domains that are claimed twice are refused, which has a test of its own.
        if let Ok(index) = Domains::new(domains.iter()) {
            prop_assert_eq!(index.find(&host), find_slowly(&domains, &host));
        }
    }

    #[test]
    fn no_request_head_makes_routing_panic(authority in ".{0,12}", path in ".{0,12}", random in any::<u64>()) {
        let mut tables = [hosts(true), hosts(false), weighted(&[1, 2])];
        tables[1].domains = Domains::new([["*.é"]]).unwrap();
        for table in &tables {
            let request = get(&authority, &path, &[]);
            let _ = decide(table, &request.head(), random);
        }
    }

    #[test]
    fn a_weighted_cluster_is_always_found(
        weights in prop::collection::vec(0u32..1000, 1..8),
        random in any::<u64>(),
    ) {
        prop_assume!(weights.iter().sum::<u32>() > 0);
        let chosen = cluster_of(&weighted(&weights), &get("h", "/", &[]), random).unwrap();
        prop_assert!(weights[chosen.parse::<usize>().unwrap()] > 0);
    }
}

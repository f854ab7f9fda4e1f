//! What is forwarded, and where redirects lead.

use regex::Regex;

use super::support::{direct_response, forward, get, path, prefix, route};
use crate::model::route::{
    Action, Forward, HostRewrite, PathMatch, PathRewrite, Redirect, RedirectPath, RouteMatch, WeightedCluster,
};
use crate::router::{redirect_location, rewrite_host, rewrite_path, strip_port, tls_redirect_location};

fn regex(text: &str) -> Regex {
    Regex::new(text).unwrap()
}

fn rewritten(matches: RouteMatch, rewrite: PathRewrite, path: &str) -> Option<String> {
    let forward = Forward { path_rewrite: rewrite, ..forward() };
    let route = route("r", matches, Action::Direct(direct_response()));
    rewrite_path(&route, &forward, path)
}

#[test]
fn the_matched_prefix_is_replaced_and_the_query_kept() {
    let new = |text: &str| PathRewrite::Prefix(text.to_owned());
    let any = || path(PathMatch::Regex(regex("^(?:/re/.*)$")));
    let folded = RouteMatch { case_sensitive: false, ..prefix("/rw/CI") };
    for (matches, rewrite, from, to) in [
        (prefix("/rw/prefix"), "/new", "/rw/prefix/a?q=1", "/new/a?q=1"),
        (prefix("/rw/prefix"), "/new", "/rw/prefix?q", "/new?q"),
        (prefix("/rw/prefix"), "/new", "/rw/prefixx", "/newx"),
        (prefix("/rw/prefix/"), "/", "/rw/prefix/x", "/x"),
        (path(PathMatch::Exact("/rw/path".into())), "/new", "/rw/path?q=1", "/new?q=1"),
        (any(), "/new", "/re/abc?q=/1", "/new?q=/1"),
        (folded, "/ci", "/rw/ci/X", "/ci/X"),
        (path(PathMatch::SeparatedPrefix("/rw/sep".into())), "/s", "/rw/sep/x?y", "/s/x?y"),
    ] {
        assert_eq!(rewritten(matches, new(rewrite), from).as_deref(), Some(to), "{from}");
    }
    assert_eq!(rewritten(prefix("/"), PathRewrite::None, "/a"), None);
}

#[test]
fn a_regex_rewrites_every_occurrence_in_the_path_and_none_in_the_query() {
    let swap = || PathRewrite::Regex(regex("/rw/rx/([a-z]*)/"), "/${1}/x${0}".to_owned());
    assert_eq!(
        rewritten(prefix("/"), swap(), "/rw/rx/ab/c/?q=/rw/rx/x/").as_deref(),
        Some("/ab/x/rw/rx/ab/c/?q=/rw/rx/x/")
    );
    assert_eq!(rewritten(prefix("/"), swap(), "/rw/rx/1").as_deref(), Some("/rw/rx/1"));
    let all = PathRewrite::Regex(regex("a"), "b".to_owned());
    assert_eq!(rewritten(prefix("/"), all, "/aaa?aaa").as_deref(), Some("/bbb?aaa"));
}

#[test]
fn the_host_is_rewritten_as_the_route_says() {
    let weighted = WeightedCluster {
        metadata_match: None,
        filters: Vec::new(),
        name: "c".into(),
        weight: crate::runtime::Setting::fixed(1),
        headers: Default::default(),
        host_rewrite: Some("w.test".into()),
    };
    let header = || HostRewrite::Header(http::HeaderName::from_static("x-h"));
    let from_path = || HostRewrite::PathRegex(regex("^/host/(.+)$"), "${1}".to_owned());
    for (rewrite, weighted, hostname, want) in [
        (HostRewrite::None, None, None, None),
        (HostRewrite::Literal("lit.test".into()), None, None, Some(("lit.test", Some("h.test")))),
        (header(), None, None, Some(("hh", Some("h.test")))),
        (HostRewrite::Header(http::HeaderName::from_static("x-none")), None, None, None),
        (from_path(), None, None, Some(("foo.test", Some("h.test")))),
        (HostRewrite::Auto, None, Some("localhost"), Some(("localhost", Some("h.test")))),
        (HostRewrite::Auto, None, None, None),
        // What a weighted cluster does to the host is not told to the upstream.
        (HostRewrite::None, Some(&weighted), None, Some(("w.test", None))),
        (HostRewrite::Literal("lit.test".into()), Some(&weighted), None, Some(("lit.test", Some("w.test")))),
    ] {
        let forward = Forward { host_rewrite: rewrite, ..forward() };
        let request = get("h.test", "/host/foo.test?x", &[("x-h", "hh")]);
        let host = rewrite_host(&forward, weighted, &request.head(), hostname);
        let host = host.as_ref().map(|new| (&*new.authority, new.original));
        assert_eq!(host, want, "{:?}", forward.host_rewrite);
    }
}

#[test]
fn a_port_is_stripped_only_if_it_is_one() {
    for (authority, only, want) in [
        ("a:80", None, Some("a")),
        ("a:80", Some(80), Some("a")),
        ("a:80", Some(81), None),
        ("a", None, None),
        ("a:", None, None),
        ("a:b", None, None),
        ("[::1]:80", None, Some("[::1]")),
        ("[::1]", None, None),
    ] {
        assert_eq!(strip_port(authority, only), want, "{authority} {only:?}");
    }
}

fn location(matches: RouteMatch, redirect: Redirect, host: &str, path: &str, proto: &str) -> String {
    let route = route("r", matches, Action::Direct(direct_response()));
    redirect_location(&route, &redirect, &get(host, path, &[("x-forwarded-proto", proto)]).head())
}

#[test]
fn redirects_change_what_they_name_and_keep_the_rest() {
    let replace = |p: &str| RedirectPath::Replace(p.to_owned());
    let none = Redirect::default;
    let numbered = RedirectPath::Regex(regex("^/red/([0-9]+)(.*)"), "/rr/${1}${2}".to_owned());
    for (redirect, want) in [
        (Redirect { https: true, ..none() }, "https://h.test/red/7/a?q=1"),
        (Redirect { host: Some("o.test".into()), ..none() }, "http://o.test/red/7/a?q=1"),
        (Redirect { port: Some(8443), ..none() }, "http://h.test:8443/red/7/a?q=1"),
        (Redirect { path: replace("/p"), ..none() }, "http://h.test/p?q=1"),
        (Redirect { path: replace("/p?z=1"), ..none() }, "http://h.test/p?z=1"),
        (Redirect { path: replace("/p"), strip_query: true, ..none() }, "http://h.test/p"),
        (Redirect { path: replace("/p?z=1"), strip_query: true, ..none() }, "http://h.test/p?z=1"),
        (Redirect { path: RedirectPath::PrefixRewrite("/q".into()), ..none() }, "http://h.test/qa?q=1"),
        (
            Redirect { path: RedirectPath::PrefixRewrite("/q".into()), strip_query: true, ..none() },
            "http://h.test/qa",
        ),
        (Redirect { path: numbered, ..none() }, "http://h.test/rr/7/a?q=1"),
        (Redirect { scheme: Some("ftp".into()), ..none() }, "ftp://h.test/red/7/a?q=1"),
        (Redirect { strip_query: true, ..none() }, "http://h.test/red/7/a"),
        (Redirect { https: true, port: Some(443), ..none() }, "https://h.test:443/red/7/a?q=1"),
    ] {
        let name = format!("{redirect:?}");
        assert_eq!(location(prefix("/red/7/"), redirect, "h.test", "/red/7/a?q=1", "http"), want, "{name}");
    }
}

#[test]
fn a_redirect_drops_the_default_port_of_the_scheme_it_leaves() {
    let https = || Redirect { https: true, ..Redirect::default() };
    let port = || Redirect { port: Some(8443), ..Redirect::default() };
    let plain = || Redirect { strip_query: true, ..Redirect::default() };
    for (redirect, host, proto, want) in [
        (https(), "h.test:80", "http", "https://h.test/a"),
        (https(), "h.test:443", "http", "https://h.test:443/a"),
        (https(), "h.test:8080", "http", "https://h.test:8080/a"),
        (https(), "h.test:443", "https", "https://h.test:443/a"),
        (https(), "[::1]:80", "http", "https://[::1]/a"),
        (https(), "[::1]", "http", "https://[::1]/a"),
        (port(), "h.test:80", "http", "http://h.test:8443/a"),
        (plain(), "h.test:80", "http", "http://h.test:80/a"),
    ] {
        assert_eq!(location(prefix("/"), redirect, host, "/a", proto), want, "{host} {proto}");
    }
}

#[test]
fn the_tls_redirect_keeps_host_and_path_as_they_are() {
    assert_eq!(tls_redirect_location(&get("tls.test:80", "/x?y", &[]).head()), "https://tls.test:80/x?y");
}

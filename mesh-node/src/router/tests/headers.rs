//! Header changes: their order, and what each action does.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};

use super::support::{direct, headers, prefix, table, virtual_host};
use crate::model::format::{Format, Operator, Part};
use crate::model::headers::AppendAction::{
    self, AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd,
};
use crate::model::headers::{HeaderAdd, HeaderMutations, HeaderTarget};
use crate::model::route::{Route, RouteTable, WeightedCluster};
use crate::router::{Routed, apply_request, apply_response};
use crate::runtime::Setting;

fn text(value: &str) -> Arc<Format> {
    Arc::new(Format { parts: vec![Part::Text(value.to_owned())] })
}

/// `%REQ(name)%`
fn of_request(name: &str) -> Arc<Format> {
    let operator = Operator::Req(name.to_owned(), None);
    Arc::new(Format { parts: vec![Part::Operator { operator, max_length: None }] })
}

fn add(name: &str, value: Arc<Format>, action: AppendAction) -> HeaderAdd {
    let name = HeaderTarget::Name(name.parse().unwrap());
    HeaderAdd { name, value, action, keep_empty_value: false }
}

fn evaluate(format: &Format, headers: &HeaderMap, out: &mut String) {
    for part in &format.parts {
        if let Part::Operator { operator: Operator::Req(name, _), .. } = part {
            out.push_str(headers.get(name).map_or("", |v| v.to_str().unwrap()));
        }
    }
}

fn level(name: &str) -> HeaderMutations {
    let adds = vec![
        add("x-lvl", text(name), AppendIfExistsOrAdd),
        add("x-ow", text(name), OverwriteIfExistsOrAdd),
        add("x-absent", text(name), AddIfAbsent),
        add("x-oie", text(name), OverwriteIfExists),
    ];
    HeaderMutations { request_add: adds.clone(), response_add: adds, ..HeaderMutations::default() }
}

fn lines(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
}

/// A table with changes on all levels, and its weighted cluster.
fn levels(most_specific_wins: bool) -> (RouteTable, WeightedCluster) {
    let route = Arc::into_inner(direct("r", prefix("/"))).unwrap();
    let mut host = virtual_host("v", &["*"], vec![Arc::new(Route { headers: level("r"), ..route })]);
    host.headers = level("v");
    let table = RouteTable {
        headers: level("t"),
        most_specific_header_mutations_wins: most_specific_wins,
        ..table(vec![host])
    };
    (
        table,
        WeightedCluster {
            metadata_match: None,
            name: "c".into(),
            weight: Setting::fixed(1),
            headers: level("w"),
            filters: Vec::new(),
            host_rewrite: None,
        },
    )
}

fn routed<'t>(table: &'t RouteTable, weighted: Option<&'t WeightedCluster>) -> Routed<'t> {
    let virtual_host = &table.virtual_hosts[0];
    Routed { virtual_host, route: &virtual_host.routes[0], weighted }
}

#[test]
fn levels_apply_in_envoys_order() {
    for (wins, with_weighted, order, last) in [
        (false, true, &["c", "w", "r", "v", "t"][..], "t"),
        (true, true, &["c", "w", "t", "v", "r"], "r"),
        (false, false, &["c", "r", "v", "t"], "t"),
        (true, false, &["c", "t", "v", "r"], "r"),
    ] {
        let (table, weighted) = levels(wins);
        let routed = routed(&table, with_weighted.then_some(&weighted));
        let mut request = headers(&[("x-lvl", "c"), ("x-oie", "c")]);
        let mut response = request.clone();
        apply_request(&table, &routed, &mut request, evaluate, |_, _| {});
        apply_response(&table, &routed, &mut response, evaluate, |_, _| {});
        for message in [request, response] {
            assert_eq!(lines(&message, "x-lvl"), order);
            assert_eq!(lines(&message, "x-ow"), [last]);
            assert_eq!(lines(&message, "x-oie"), [last]);
            assert_eq!(lines(&message, "x-absent"), [order[1]]);
        }
    }
}

fn applied(
    add: Vec<HeaderAdd>,
    remove: &[&str],
    message: HeaderMap,
) -> (HeaderMap, Vec<(HeaderTarget, String)>) {
    let route = Arc::into_inner(direct("r", prefix("/"))).unwrap();
    let headers = HeaderMutations {
        request_add: add,
        request_remove: remove.iter().map(|n| n.parse::<HeaderName>().unwrap()).collect(),
        ..HeaderMutations::default()
    };
    let table = table(vec![virtual_host("v", &["*"], vec![Arc::new(Route { headers, ..route })])]);
    let (mut message, mut pseudo) = (message, Vec::new());
    let set = |target: &HeaderTarget, value: &str| pseudo.push((target.clone(), value.to_owned()));
    apply_request(&table, &routed(&table, None), &mut message, evaluate, set);
    (message, pseudo)
}

#[test]
fn values_of_a_level_are_computed_before_any_is_written() {
    let kept = |name, value| HeaderAdd { keep_empty_value: true, ..add(name, value, AppendIfExistsOrAdd) };
    let (message, _) = applied(
        vec![
            add("x-1", text("new"), OverwriteIfExistsOrAdd),
            add("x-2", of_request("x-1"), AppendIfExistsOrAdd),
            add("x-3", text("a"), AppendIfExistsOrAdd),
            add("x-3", text("b"), AppendIfExistsOrAdd),
            add("x-3", text("c"), OverwriteIfExistsOrAdd),
            add("x-4", text("a"), AddIfAbsent),
            add("x-4", text("b"), AddIfAbsent),
            add("x-e", of_request("x-none"), AppendIfExistsOrAdd),
            kept("x-e2", of_request("x-none")),
            add("x-empty", text(""), AppendIfExistsOrAdd),
            kept("x-emptyk", text("")),
            add("x-oie", text("z"), OverwriteIfExists),
            add("x-oie2", text("z"), OverwriteIfExists),
            add("accept", text("x/y"), AppendIfExistsOrAdd),
            add("x-rm", text("added"), AppendIfExistsOrAdd),
        ],
        &["x-rm", "x-gone"],
        headers(&[
            ("x-1", "old"),
            ("x-3", "z"),
            ("accept", "q"),
            ("x-rm", "1"),
            ("x-gone", "1"),
            ("x-oie", "1"),
        ]),
    );
    for (name, want) in [
        ("x-1", &["new"][..]),
        ("x-2", &["old"]),
        ("x-3", &["c", "a", "b"]),
        ("x-4", &["a", "b"]),
        ("x-e", &[]),
        ("x-e2", &[""]),
        ("x-empty", &[]),
        ("x-emptyk", &[""]),
        ("x-oie", &["z"]),
        ("x-oie2", &[]),
        ("accept", &["q,x/y"]),
        ("x-rm", &["added"]),
        ("x-gone", &[]),
    ] {
        assert_eq!(lines(&message, name), want, "{name}");
    }
}

#[test]
fn a_value_with_a_line_break_is_not_written() {
    let (message, _) =
        applied(vec![add("x-a", text("1\r\nx-evil: 1"), AppendIfExistsOrAdd)], &[], HeaderMap::new());
    assert!(message.is_empty());
}

#[test]
fn pseudo_headers_are_set_on_the_request_line() {
    let change = |target| HeaderAdd { name: target, ..add("x", text("new"), OverwriteIfExistsOrAdd) };
    let absent = HeaderAdd { action: AddIfAbsent, ..change(HeaderTarget::Path) };
    let (message, pseudo) = applied(vec![change(HeaderTarget::Authority), absent], &[], HeaderMap::new());
    assert_eq!(pseudo, [(HeaderTarget::Authority, "new".to_owned())]);
    assert!(message.is_empty());
}

//! Header changes that routes ask for (`request_headers_to_add` and its kin), in Envoy's order: weighted
//! cluster, route, virtual host, route table; the other way round with
//! `most_specific_header_mutations_wins`. Within a level removals come first, and every value is computed
//! before any of the level is written.

use http::{HeaderMap, HeaderValue};
use smallvec::SmallVec;

use super::Routed;
use crate::model::format::Format;
use crate::model::headers::{AppendAction, HeaderAdd, HeaderMutations, HeaderTarget};
use crate::model::route::RouteTable;

/// Computes a value. The headers are those of the message under change, as they are at that moment.
pub trait Evaluate: FnMut(&Format, &HeaderMap, &mut String) {}
impl<F: FnMut(&Format, &HeaderMap, &mut String)> Evaluate for F {}

/// Sets `:authority`, `:path` and the like, which are not in a header map.
pub trait SetPseudo: FnMut(&HeaderTarget, &str) {}
impl<F: FnMut(&HeaderTarget, &str)> SetPseudo for F {}

/// Applies the request header changes of all levels.
pub fn apply_request(
    table: &RouteTable,
    routed: &Routed<'_>,
    headers: &mut HeaderMap,
    mut evaluate: impl Evaluate,
    mut set_pseudo: impl SetPseudo,
) {
    for level in levels(table, routed) {
        for name in &level.request_remove {
            headers.remove(name);
        }
        add(&level.request_add, headers, &mut evaluate, &mut set_pseudo);
    }
}

/// Applies the response header changes of all levels. `routed` is `None` where no route matched: Envoy
/// changes nothing then.
pub fn apply_response(
    table: &RouteTable,
    routed: &Routed<'_>,
    headers: &mut HeaderMap,
    mut evaluate: impl Evaluate,
    mut set_pseudo: impl SetPseudo,
) {
    for level in levels(table, routed) {
        for name in &level.response_remove {
            headers.remove(name);
        }
        add(&level.response_add, headers, &mut evaluate, &mut set_pseudo);
    }
}

/// The levels that change something, in the order in which they are applied.
fn levels<'a>(table: &'a RouteTable, routed: &Routed<'a>) -> SmallVec<[&'a HeaderMutations; 4]> {
    let mut levels: SmallVec<[&HeaderMutations; 4]> = SmallVec::new();
    levels.extend(routed.weighted.map(|w| &w.headers));
    levels.extend([&routed.route.headers, &routed.virtual_host.headers, &table.headers]);
    levels.retain(|level| !level.is_empty());
    if table.most_specific_header_mutations_wins {
        levels.reverse();
    }
    levels
}

fn add(
    changes: &[HeaderAdd],
    headers: &mut HeaderMap,
    evaluate: &mut impl Evaluate,
    set_pseudo: &mut impl SetPseudo,
) {
    let mut computed: SmallVec<[(&HeaderAdd, String); 4]> = SmallVec::new();
    for change in changes {
        let mut value = String::new();
        match change.value.literal() {
            Some(text) => value.push_str(text),
            None => evaluate(&change.value, headers, &mut value),
        }
        if (!value.is_empty() || change.keep_empty_value) && applies(change, headers) {
            computed.push((change, value));
        }
    }
    let overwrites = |change: &HeaderAdd| {
        matches!(change.action, AppendAction::OverwriteIfExists | AppendAction::OverwriteIfExistsOrAdd)
    };
    for (change, value) in computed.iter().filter(|(change, _)| overwrites(change)) {
        write(change, value, headers, set_pseudo);
    }
    for (change, value) in computed.iter().filter(|(change, _)| !overwrites(change)) {
        write(change, value, headers, set_pseudo);
    }
}

/// Does the action apply, given what is there before the level is written?
fn applies(change: &HeaderAdd, headers: &HeaderMap) -> bool {
    // Pseudo headers are always there.
    let there = match &change.name {
        HeaderTarget::Name(name) => headers.contains_key(name),
        _ => true,
    };
    match change.action {
        AppendAction::AppendIfExistsOrAdd | AppendAction::OverwriteIfExistsOrAdd => true,
        AppendAction::AddIfAbsent => !there,
        AppendAction::OverwriteIfExists => there,
    }
}

fn write(change: &HeaderAdd, value: &str, headers: &mut HeaderMap, set_pseudo: &mut impl SetPseudo) {
    let HeaderTarget::Name(name) = &change.name else { return set_pseudo(&change.name, value) };
    // A value computed from the request cannot smuggle in a line break: it is left out.
    let Ok(header) = HeaderValue::from_str(value).or_else(|_| HeaderValue::from_bytes(value.as_bytes()))
    else {
        return;
    };
    match change.action {
        AppendAction::AppendIfExistsOrAdd | AppendAction::AddIfAbsent => {
            headers.append(name.clone(), header);
        }
        AppendAction::OverwriteIfExistsOrAdd | AppendAction::OverwriteIfExists => {
            headers.insert(name.clone(), header);
        }
    }
}

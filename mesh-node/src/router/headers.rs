//! Header changes that routes ask for (`request_headers_to_add` and its kin), in Envoy's order: weighted
//! cluster, then route, virtual host, route table, these three the other way round with
//! `most_specific_header_mutations_wins`. Within a level removals come first, and every value is computed
//! before any of the level is written.

use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::Routed;
use crate::model::format::Format;
use crate::model::header_lines::{single_line_in_request, single_line_in_response};
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
        add(&level.request_add, headers, single_line_in_request, &mut evaluate, &mut set_pseudo);
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
        add(&level.response_add, headers, single_line_in_response, &mut evaluate, &mut set_pseudo);
    }
}

/// The levels that change something, in the order in which they are applied.
fn levels<'a>(table: &'a RouteTable, routed: &Routed<'a>) -> SmallVec<[&'a HeaderMutations; 4]> {
    let mut upwards = [&routed.route.headers, &routed.virtual_host.headers, &table.headers];
    if table.most_specific_header_mutations_wins {
        upwards.reverse();
    }
    let weighted = routed.weighted.map(|w| &w.headers);
    weighted.into_iter().chain(upwards).filter(|level| !level.is_empty()).collect()
}

fn add(
    changes: &[HeaderAdd],
    headers: &mut HeaderMap,
    single_line: fn(&HeaderName) -> bool,
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
    let (overwrites, additions): (SmallVec<[_; 4]>, SmallVec<[_; 4]>) =
        computed.into_iter().partition(|(change, _)| {
            matches!(change.action, AppendAction::OverwriteIfExists | AppendAction::OverwriteIfExistsOrAdd)
        });
    for (change, value) in overwrites {
        match (&change.name, header_value(&value)) {
            (HeaderTarget::Name(name), Some(value)) => _ = headers.insert(name, value),
            (HeaderTarget::Name(_), None) => {}
            (pseudo, _) => set_pseudo(pseudo, &value),
        }
    }
    for (change, value) in additions {
        match (&change.name, header_value(&value)) {
            (HeaderTarget::Name(name), Some(value)) => append(headers, name, value, single_line(name)),
            (HeaderTarget::Name(_), None) => {}
            (pseudo, _) => set_pseudo(pseudo, &value),
        }
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

/// A value computed from the request cannot smuggle in a line break: it is left out.
fn header_value(value: &str) -> Option<HeaderValue> {
    HeaderValue::from_bytes(value.as_bytes()).ok()
}

fn append(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue, single_line: bool) {
    match headers.get_mut(name) {
        Some(line) if single_line => {
            let joined = [line.as_bytes(), b",", value.as_bytes()].concat();
            if let Ok(joined) = HeaderValue::from_bytes(&joined) {
                *line = joined;
            }
        }
        _ => _ = headers.append(name, value),
    }
}

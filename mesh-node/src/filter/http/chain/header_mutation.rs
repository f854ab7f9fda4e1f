//! Header changes by a filter (`envoy.filters.http.header_mutation`): the filter's own, then those of routes.

use std::sync::Arc;

use http::{HeaderMap, Response};

use super::super::request::Request;
use super::super::stream::Stream;
use super::{Decoding, Step};
use crate::http::body::Body;
use crate::model::headers::{AppendAction, HeaderAdd, HeaderTarget};
use crate::model::http_filter::{HeaderMutation, HttpFilter, Mutation, Override};

/// The mutations that apply, in order.
fn levels<'d>(
    decoding: &Decoding<'d>,
    filter: &HttpFilter,
    own: &HeaderMutation,
) -> Vec<&'d Arc<HeaderMutation>> {
    let mut of_routes: Vec<_> = decoding
        .overrides_of(filter)
        .filter_map(|said| if let Override::HeaderMutation(of) = said { Some(of) } else { None })
        .collect();
    if own.most_specific_wins {
        of_routes.reverse();
    }
    of_routes
}

/// Notes what is to be done with the response, whoever makes it.
pub(super) fn prepare(decoding: &Decoding<'_>, filter: &HttpFilter, own: &Arc<HeaderMutation>) {
    let of_routes = levels(decoding, filter, own);
    // Steps are done last first.
    for of in of_routes.into_iter().rev().chain([own]) {
        if !of.response.is_empty() {
            decoding.stream.chain.push(Step::HeaderMutation(of.clone()));
        }
    }
}

pub(super) fn decode(
    decoding: &Decoding<'_>,
    filter: &HttpFilter,
    own: &HeaderMutation,
    request: &mut Request,
) {
    let of_routes = levels(decoding, filter, own);
    for of in [own].into_iter().chain(of_routes.into_iter().map(|of| &**of)) {
        for mutation in &of.request {
            match mutation {
                Mutation::Remove(name) => drop(request.parts.headers.remove(name)),
                Mutation::Append(add) => {
                    let mut value = String::new();
                    decoding.stream.evaluate(
                        &add.value,
                        Some((request, &request.parts.headers)),
                        None,
                        &mut value,
                    );
                    match &add.name {
                        HeaderTarget::Name(_) => put(add, value, &mut request.parts.headers),
                        pseudo => request.set_pseudo(pseudo, &value),
                    }
                }
            }
        }
    }
}

pub(super) fn encode(stream: &Stream, of: &HeaderMutation, response: &mut Response<Body>) {
    for mutation in &of.response {
        match mutation {
            Mutation::Remove(name) => drop(response.headers_mut().remove(name)),
            Mutation::Append(add) => {
                let mut value = String::new();
                stream.evaluate(&add.value, None, Some(response.headers()), &mut value);
                put(add, value, response.headers_mut());
            }
        }
    }
}

/// Writes a header as its `append_action` says.
pub(in crate::filter) fn put(add: &HeaderAdd, value: String, headers: &mut HeaderMap) {
    let HeaderTarget::Name(name) = &add.name else { return };
    if value.is_empty() && !add.keep_empty_value {
        return;
    }
    let Ok(value) = http::HeaderValue::from_maybe_shared(bytes::Bytes::from(value)) else { return };
    match add.action {
        AppendAction::AppendIfExistsOrAdd => drop(headers.append(name, value)),
        AppendAction::AddIfAbsent => drop(headers.entry(name).or_insert(value)),
        AppendAction::OverwriteIfExistsOrAdd => drop(headers.insert(name, value)),
        AppendAction::OverwriteIfExists => {
            if headers.contains_key(name) {
                headers.insert(name, value);
            }
        }
    }
}

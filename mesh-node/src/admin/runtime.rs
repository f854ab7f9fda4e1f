//! `/runtime` and `/runtime_modify`, in Envoy's shapes and words.

use http::StatusCode;
use serde_json::{Map, json};

use super::AdminState;
use super::query::Query;
use super::reply::Reply;

const USAGE: &str = "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n       \
    or send the parameters as form values\nuse an empty value to remove a previously added override";

pub(super) fn page(state: &dyn AdminState, _: &Query) -> Reply {
    let shown = state.runtime().shown();
    let entry = |(key, (of_layers, winner)): (&String, &(Vec<String>, String))| {
        (key.clone(), json!({ "layer_values": of_layers, "final_value": winner }))
    };
    let entries: Map<_, _> = shown.entries.iter().map(entry).collect();
    Reply::json(&json!({ "layers": shown.layers, "entries": entries }))
}

pub(super) fn modify(state: &dyn AdminState, query: &Query) -> Reply {
    if query.is_empty() {
        return Reply::bad_request(USAGE);
    }
    match state.runtime().set(query.pairs()) {
        Ok(()) => Reply::ok(),
        Err(error) => Reply::text(error.to_string()).status(StatusCode::SERVICE_UNAVAILABLE),
    }
}

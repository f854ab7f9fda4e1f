//! `/listeners`: names and addresses.

use std::fmt::Write;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::AdminState;
use super::query::Query;
use super::reply::Reply;

pub fn page(state: &dyn AdminState, query: &Query) -> Reply {
    let snapshot = state.snapshot();
    if query.get("format") == Some("json") {
        let statuses: Vec<_> = snapshot
            .listeners
            .iter()
            .map(|listener| json!({ "name": &*listener.name, "local_address": socket_address(listener.address) }))
            .collect();
        return Reply::json(&json!({ "listener_statuses": statuses }));
    }
    let mut out = String::new();
    for listener in &snapshot.listeners {
        let _ = writeln!(out, "{}::{}", listener.name, listener.address);
    }
    Reply::text(out)
}

/// `envoy.config.core.v3.Address`.
pub fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

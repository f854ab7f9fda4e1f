//! `/server_info`.

use serde_json::json;

use super::AdminState;
use super::query::Query;
use super::reply::Reply;

/// The Envoy whose behaviour and interface this follows.
const ENVOY_VERSION: &str = "1.40.0";

pub fn page(state: &dyn AdminState, _: &Query) -> Reply {
    let uptime = format!("{}s", state.uptime().as_secs());
    let node = state.bootstrap().0.get("node").cloned().unwrap_or_else(|| json!({}));
    Reply::json(&json!({
        "version": format!("mesh-node/{}/{ENVOY_VERSION}/Clean/RELEASE/rustls", env!("CARGO_PKG_VERSION")),
        "state": state.stage().name(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": state.settings(),
        "node": node,
    }))
}

//! `/workloads`: the enrolled pods of this node. Envoy has no such page.

use std::fmt::Write;

use serde_json::{Value, json};

use super::AdminState;
use super::query::Query;
use super::reply::Reply;

/// One pod and what was steered for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadView {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    pub ips: Vec<std::net::IpAddr>,
    /// Captured connections open now, and how many may be (0 is no limit).
    pub connections: u32,
    pub max_connections: u32,
    /// Name and value, in the order to show.
    pub counters: Vec<(&'static str, u64)>,
}

pub fn page(state: &dyn AdminState, query: &Query) -> Reply {
    let mut workloads = state.workloads();
    workloads.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    if query.get("format") == Some("json") {
        let workloads: Vec<_> = workloads.iter().map(as_json).collect();
        return Reply::json(&json!({ "workloads": workloads }));
    }
    let mut out = String::new();
    for workload in &workloads {
        let key = format!("{}/{}", workload.namespace, workload.name);
        let ips: Vec<_> = workload.ips.iter().map(ToString::to_string).collect();
        let _ = writeln!(out, "{key}::uid::{}", workload.uid);
        let _ = writeln!(out, "{key}::service_account::{}", workload.service_account);
        let _ = writeln!(out, "{key}::ips::{}", ips.join(","));
        let _ = writeln!(out, "{key}::cx_active::{}", workload.connections);
        let _ = writeln!(out, "{key}::max_connections::{}", workload.max_connections);
        for (name, value) in &workload.counters {
            let _ = writeln!(out, "{key}::{name}::{value}");
        }
    }
    Reply::text(out)
}

fn as_json(workload: &WorkloadView) -> Value {
    let counters: serde_json::Map<_, _> =
        workload.counters.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    json!({
        "uid": workload.uid,
        "namespace": workload.namespace,
        "name": workload.name,
        "service_account": workload.service_account,
        "ips": workload.ips,
        "cx_active": workload.connections,
        "max_connections": workload.max_connections,
        "counters": counters,
    })
}

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
    /// What the kernel programs counted, in the order to show.
    pub counters: Vec<KernelCount>,
}

/// One counter of a kernel program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelCount {
    /// `connect`, `sk_lookup`, `sockops`, `tc_steer` or `tc_guard`.
    pub hook: &'static str,
    /// As `steered_outbound`.
    pub reason: &'static str,
    pub value: u64,
}

/// The enrolled pods and what was steered for them, as Prometheus reads it.
pub fn prometheus(state: &dyn AdminState) -> String {
    let workloads = state.workloads();
    let mut out = format!("# TYPE mesh_enrolled_pods gauge\nmesh_enrolled_pods{{}} {}\n", workloads.len());
    if workloads.iter().any(|w| !w.counters.is_empty()) {
        out.push_str("# TYPE mesh_kernel_total counter\n");
    }
    for workload in &workloads {
        let (namespace, pod) = (&workload.namespace, &workload.name);
        for KernelCount { hook, reason, value } in &workload.counters {
            let _ = writeln!(
                out,
                "mesh_kernel_total{{namespace=\"{namespace}\",pod=\"{pod}\",hook=\"{hook}\",reason=\"{reason}\"}} {value}"
            );
        }
    }
    out
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
        for KernelCount { hook, reason, value } in &workload.counters {
            let _ = writeln!(out, "{key}::{hook}.{reason}::{value}");
        }
    }
    Reply::text(out)
}

fn as_json(workload: &WorkloadView) -> Value {
    let counters: serde_json::Map<_, _> =
        workload.counters.iter().map(|c| (format!("{}.{}", c.hook, c.reason), c.value.into())).collect();
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

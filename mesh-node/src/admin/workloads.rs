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
    /// Bytes held now, in the coarse steps in which workers count them, and how many may be (0 is no limit).
    pub buffered_bytes: u64,
    pub max_buffered_bytes: u64,
    /// What the limits refused, by reason, in the order to show.
    pub refused: [(&'static str, u64); 5],
    /// What the kernel programs counted, in the order to show.
    pub counters: Vec<KernelCount>,
    pub past_tcp: super::PastTcpView,
}

/// One counter of a kernel program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelCount {
    /// `connect`, `sk_lookup`, `sockops`, `tc_steer`, `tc_guard` or `accel`.
    pub hook: &'static str,
    /// As `steered_outbound`.
    pub reason: &'static str,
    pub value: u64,
}

/// The enrolled pods and what was steered for them, as Prometheus reads it.
pub fn prometheus(state: &dyn AdminState) -> String {
    let workloads = state.workloads();
    let mut out = format!("# TYPE mesh_enrolled_pods gauge\nmesh_enrolled_pods{{}} {}\n", workloads.len());
    if !workloads.is_empty() {
        out.push_str("# TYPE mesh_buffered_bytes gauge\n");
    }
    for workload in &workloads {
        let (namespace, pod, held) = (&workload.namespace, &workload.name, workload.buffered_bytes);
        let _ = writeln!(out, "mesh_buffered_bytes{{namespace=\"{namespace}\",pod=\"{pod}\"}} {held}");
    }
    // Most pods never meet a limit: only what happened is a line.
    let met = || workloads.iter().flat_map(|w| w.refused.iter().filter(|(_, n)| *n > 0).map(move |r| (w, r)));
    if met().next().is_some() {
        out.push_str("# TYPE mesh_limit_total counter\n");
    }
    for (workload, (reason, value)) in met() {
        let (namespace, pod) = (&workload.namespace, &workload.name);
        let _ = writeln!(
            out,
            "mesh_limit_total{{namespace=\"{namespace}\",pod=\"{pod}\",reason=\"{reason}\"}} {value}"
        );
    }
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
    type Figure = fn(&WorkloadView) -> u64;
    let messages: Figure = |workload| workload.past_tcp.messages;
    let bytes: Figure = |workload| workload.past_tcp.bytes;
    let past = [("mesh_accelerated_messages_total", messages), ("mesh_accelerated_bytes_total", bytes)];
    for (name, value) in past.into_iter().filter(|_| !workloads.is_empty()) {
        let _ = writeln!(out, "# TYPE {name} counter");
        for workload in &workloads {
            let (namespace, pod) = (&workload.namespace, &workload.name);
            let _ = writeln!(out, "{name}{{namespace=\"{namespace}\",pod=\"{pod}\"}} {}", value(workload));
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
        let _ = writeln!(out, "{key}::buffered_bytes::{}", workload.buffered_bytes);
        let _ = writeln!(out, "{key}::max_buffered_bytes::{}", workload.max_buffered_bytes);
        for (reason, value) in workload.refused {
            let _ = writeln!(out, "{key}::{reason}::{value}");
        }
        let _ = writeln!(out, "{key}::flows::{}", super::acceleration::flows(&workload.counters));
        for KernelCount { hook, reason, value } in &workload.counters {
            let _ = writeln!(out, "{key}::{hook}.{reason}::{value}");
        }
    }
    Reply::text(out)
}

fn as_json(workload: &WorkloadView) -> Value {
    let counters: serde_json::Map<_, _> =
        workload.counters.iter().map(|c| (format!("{}.{}", c.hook, c.reason), c.value.into())).collect();
    let refused: serde_json::Map<_, _> =
        workload.refused.iter().map(|(reason, value)| ((*reason).to_owned(), (*value).into())).collect();
    json!({
        "uid": workload.uid,
        "namespace": workload.namespace,
        "name": workload.name,
        "service_account": workload.service_account,
        "ips": workload.ips,
        "cx_active": workload.connections,
        "max_connections": workload.max_connections,
        "buffered_bytes": workload.buffered_bytes,
        "max_buffered_bytes": workload.max_buffered_bytes,
        "limits": refused,
        "past_tcp": {
            "allowed": workload.past_tcp.allowed,
            "messages": workload.past_tcp.messages,
            "bytes": workload.past_tcp.bytes,
        },
        "counters": counters,
    })
}

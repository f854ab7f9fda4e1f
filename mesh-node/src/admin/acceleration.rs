//! `/acceleration`: which bytes go past TCP, which do not, and why. Envoy has no such page.

use std::fmt::Write;

use super::AdminState;
use super::query::Query;
use super::reply::Reply;
use super::workloads::KernelCount;

/// How acceleration stands on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccelerationView {
    /// New connections are accelerated, in pods that are not left out.
    pub on: bool,
    /// Why they are not although it was asked for.
    pub refused: Option<String>,
    /// What was tested of the kernel, with what is wrong.
    pub tests: Vec<(&'static str, Option<String>)>,
}

/// What went past TCP for one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PastTcpView {
    /// The pod's own switch.
    pub allowed: bool,
    pub messages: u64,
    pub bytes: u64,
    /// Listening ports (`None`: clients of the pod, or the whole of it), connections seen that were fit for
    /// it, and why none of them ever is.
    pub known: Vec<(Option<u16>, u32, Option<&'static str>)>,
}

/// The state, then for every pod how many connections were steered, and one reason for each flow.
pub fn page(state: &dyn AdminState, _: &Query) -> Reply {
    let mut out = text(&state.acceleration());
    for workload in state.workloads() {
        let name = format!("{}/{}", workload.namespace, workload.name);
        out += &pod_text(&name, &workload.counters, &workload.past_tcp);
    }
    Reply::text(out)
}

/// How the node stands, one fact a line.
pub fn text(acceleration: &AccelerationView) -> String {
    let mut out = format!("acceleration::{}\n", if acceleration.on { "on" } else { "off" });
    if let Some(reason) = &acceleration.refused {
        let _ = writeln!(out, "refused::{reason}");
    }
    for (name, problem) in &acceleration.tests {
        let _ = writeln!(out, "test::{name}::{}", problem.as_deref().unwrap_or("as TCP"));
    }
    out
}

/// How one pod stands.
pub fn pod_text(pod: &str, counters: &[KernelCount], past: &PastTcpView) -> String {
    let mut out = format!("{pod}::acceleration::{}\n", if past.allowed { "allowed" } else { "off" });
    for KernelCount { hook, reason, value } in counters.iter().filter(|c| c.reason.starts_with("steered_")) {
        let _ = writeln!(out, "{pod}::{hook}.{reason}::{value}");
    }
    for KernelCount { reason, value, .. } in counters.iter().filter(|c| c.hook == "accel") {
        let what = if reason.starts_with("left_") { "directions" } else { "flows" };
        let _ = writeln!(out, "{pod}::{what}.{reason}::{value}");
    }
    let _ = writeln!(out, "{pod}::messages::{}", past.messages);
    let _ = writeln!(out, "{pod}::bytes::{}", past.bytes);
    for (port, seen, never) in &past.known {
        let whose = port.map_or_else(|| "clients".to_owned(), |port| format!("port {port}"));
        let _ = match never {
            Some(reason) => writeln!(out, "{pod}::{whose}::never: {reason}"),
            None => writeln!(out, "{pod}::{whose}::{seen} seen"),
        };
    }
    out
}

/// `enable=on` or `enable=off`: for connections that come from now on.
pub fn switch(state: &dyn AdminState, query: &Query) -> Reply {
    match query.get("enable") {
        Some("on") => state.accelerate(true),
        Some("off") => state.accelerate(false),
        _ => return Reply::bad_request("enable must be on or off\n"),
    }
    Reply::ok()
}

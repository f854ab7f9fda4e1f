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
    /// Connections between two applications of this node are handed off.
    pub hand_off: bool,
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
    /// The pod's own switch of handing off.
    pub hand_off_allowed: bool,
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
    let word = |on: bool| if on { "on" } else { "off" };
    let (on, hand_off) = (word(acceleration.on), word(acceleration.hand_off));
    let mut out = format!("acceleration::{on}\nhand_off::{hand_off}\n");
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
    let word = |allowed: bool| if allowed { "allowed" } else { "off" };
    let (allowed, hand_off) = (word(past.allowed), word(past.hand_off_allowed));
    let mut out = format!("{pod}::acceleration::{allowed}\n{pod}::hand_off::{hand_off}\n");
    for KernelCount { hook, reason, value } in counters.iter().filter(|c| c.reason.starts_with("steered_")) {
        let _ = writeln!(out, "{pod}::{hook}.{reason}::{value}");
    }
    for KernelCount { reason, value, .. } in counters.iter().filter(|c| c.hook == "accel") {
        let what = match reason.split('_').next() {
            Some("left") => "directions",
            Some("kept") => "halves",
            _ => "flows",
        };
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
    switched(query, |on| state.accelerate(on))
}

/// `enable=on` or `enable=off`: for all connections.
pub fn switch_hand_off(state: &dyn AdminState, query: &Query) -> Reply {
    switched(query, |on| state.hand_off(on))
}

fn switched(query: &Query, switch: impl FnOnce(bool)) -> Reply {
    match query.get("enable") {
        Some("on") => switch(true),
        Some("off") => switch(false),
        _ => return Reply::bad_request("enable must be on or off\n"),
    }
    Reply::ok()
}

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
    /// What was tested of the kernel, and how it does.
    pub tests: Vec<(String, String)>,
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
    pub known: Vec<KnownView>,
}

/// What is known of the sockets of one listening port, or of an executable that connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownView {
    /// A listening port; `None`: an executable that connects, or the pod as a whole.
    pub port: Option<u16>,
    /// Of the executable, if a process of it runs.
    pub program: Option<String>,
    /// Connections seen that were fit for acceleration.
    pub seen: u32,
    /// So many are enough for the next one to be accelerated.
    pub enough: u32,
    /// Why none ever is.
    pub never: Option<&'static str>,
}

/// The state, then for every pod how many connections were steered, and one reason for each flow.
pub fn page(state: &dyn AdminState, _: &Query) -> Reply {
    let view = state.acceleration();
    let mut out = text(&view);
    for workload in state.workloads() {
        let name = format!("{}/{}", workload.namespace, workload.name);
        out += &pod_text(&name, &workload.counters, &workload.past_tcp, view.on);
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
    for (name, outcome) in &acceleration.tests {
        let _ = writeln!(out, "test::{name}::{outcome}");
    }
    out
}

/// How one pod stands: totals first, then every reason with its number and what it means.
pub fn pod_text(pod: &str, counters: &[KernelCount], past: &PastTcpView, node: bool) -> String {
    let switch = match (node, past.allowed) {
        (true, true) => "on",
        (true, false) => "off: this pod is left out by its annotation or its entry",
        (false, true) => "off: it is off on this node; this pod is not left out",
        (false, false) => "off: it is off on this node, and this pod is left out too",
    };
    let hand_off = if past.hand_off_allowed { "allowed" } else { "off" };
    let mut out = format!("{pod}::acceleration::{switch}\n{pod}::hand_off::{hand_off}\n");
    let steered = |reason: &str| {
        let of = |c: &&KernelCount| c.reason == reason;
        counters.iter().filter(of).map(|c| c.value).max().unwrap_or_default()
    };
    let (outbound, inbound) = (steered("steered_outbound"), steered("steered_inbound"));
    let _ = writeln!(out, "{pod}::steered::{outbound} outbound, {inbound} inbound");
    let _ = writeln!(out, "{pod}::flows::{}", flows(counters));
    for KernelCount { reason, value, .. } in counters.iter().filter(|c| c.hook == "accel") {
        let what = match reason.split('_').next() {
            Some("left") => "directions",
            Some("kept") => "halves",
            _ => "flows",
        };
        let _ = writeln!(out, "{pod}::{what}.{reason}::{value}::{}", meaning(reason));
    }
    let _ = writeln!(out, "{pod}::past_tcp::{} messages, {} bytes", past.messages, past.bytes);
    for KnownView { port, program, seen, enough, never } in &past.known {
        let whose = match (port, program) {
            (Some(port), _) => format!("port {port}"),
            (None, Some(program)) => format!("client {program}"),
            (None, None) => "clients".to_owned(),
        };
        let _ = match never {
            Some(reason) => writeln!(out, "{pod}::{whose}::{reason}::{}", meaning(reason)),
            None if seen >= enough => {
                writeln!(
                    out,
                    "{pod}::{whose}::fit::{seen} connections were seen, none with anything against it"
                )
            }
            None => writeln!(out, "{pod}::{whose}::learning::{seen} of {enough} connections were seen"),
        };
    }
    out
}

/// The pod's flows since its enrolment by where their bytes went. A steered connection is one flow from the
/// application to the proxy or from the proxy to it, and one more where the other pod is on this node.
pub fn flows(counters: &[KernelCount]) -> String {
    let (mut accelerated, mut handed_off, mut on_tcp) = (0, 0, 0);
    for KernelCount { reason, value, .. } in counters.iter().filter(|c| c.hook == "accel") {
        match *reason {
            "accelerated" => accelerated += value,
            "handed_off" => handed_off += value,
            reason if reason == "failed" || reason.starts_with("tcp_") => on_tcp += value,
            _ => {}
        }
    }
    format!("{accelerated} accelerated ({handed_off} of them handed off), {on_tcp} on TCP")
}

/// A reason of the kernel programs, in words.
fn meaning(reason: &str) -> &'static str {
    match reason {
        "accelerated" => "bytes go past TCP",
        "failed" => "on TCP: the kernel did not take the socket",
        "tcp_learning" => "on TCP: first it is learned how the application uses its sockets",
        "tcp_blocking" => {
            "on TCP: the application's sockets block, and would see errors that TCP does not give"
        }
        "tcp_protocol" => "on TCP: the application puts a protocol on its sockets (kTLS, MPTCP)",
        "tcp_zerocopy" => "on TCP: the application sends without copying (SO_ZEROCOPY)",
        "tcp_low_watermark" => "on TCP: the application waits for more than one byte (SO_RCVLOWAT)",
        "tcp_splice" => "on TCP: the pod splices from sockets, which needs bytes that came by TCP",
        "tcp_splice_unseen" => {
            "on TCP: the kernel does not show whether it splices from sockets (acceleration_unseen_splice)"
        }
        "left_stream" => "went to TCP: so much waited at its reader that it is a stream",
        "left_no_peer" => "went to TCP: the other end was not there to take it, or had gone to TCP",
        "left_reader" => "went to TCP: its reader has become what is never accelerated",
        "left_unclean" => "by TCP from its first byte, which was sent before both ends were known",
        "handed_off" => "bytes go straight to the other application's socket",
        "kept_application" => "not handed off: its application's flow is not accelerated",
        "kept_peer" => {
            "not handed off: its other end is no pod of this node, or the way there is not accelerated"
        }
        "kept_tls" => "not handed off: TLS is added or taken away",
        "kept_full" => "not handed off: as many as can be are",
        _ => "see mesh_common::reason",
    }
}

/// `enable=on` or `enable=off`: for connections that come from now on.
pub fn switch(state: &dyn AdminState, query: &Query) -> Reply {
    switched(query, |on| state.accelerate(on))
}

/// `enable=on`, for connections that come from now on, or `enable=off`, for all.
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

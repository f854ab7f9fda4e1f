//! The page beside the flame graphs: of each path how its time is shared out, and what is left to win.
//!
//! The shares are the samples'; what could be won is judgement, and stands here by path so that it is read again
//! whenever the graphs are drawn anew.

use std::fmt::Write as _;

use crate::flame::{KERNEL, Stacks};
use crate::rows::{Path, Way};

/// What a sample's time went to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Send,
    Receive,
    Wait,
    OtherKernel,
    Allocate,
    Runtime,
    Codec,
    Filters,
    OtherOwn,
}

const PARTS: [(Part, &str); 9] = [
    (Part::Send, "sending"),
    (Part::Receive, "receiving"),
    (Part::Wait, "waiting for events"),
    (Part::OtherKernel, "the rest of the kernel"),
    (Part::Codec, "HTTP's codecs and headers"),
    (Part::Filters, "filters, routing and pools"),
    (Part::Runtime, "the runtime"),
    (Part::Allocate, "memory"),
    (Part::OtherOwn, "the rest"),
];

/// System calls by a part of the name of their entry in the kernel; the first that fits.
const CALLS: [(&str, Part); 8] = [
    ("sys_send", Part::Send),
    ("sys_write", Part::Send),
    ("do_writev", Part::Send),
    ("splice", Part::Send),
    ("sys_recv", Part::Receive),
    ("sys_read", Part::Receive),
    ("do_readv", Part::Receive),
    ("sys_epoll", Part::Wait),
];

/// The proxy's own code by a part of the innermost function's name; the first that fits.
const OWN: [(&str, Part); 12] = [
    ("malloc", Part::Allocate),
    ("alloc::", Part::Allocate),
    ("free", Part::Allocate),
    ("unlink_chunk", Part::Allocate),
    ("drop_in_place", Part::Allocate),
    ("tokio", Part::Runtime),
    ("mio::", Part::Runtime),
    ("mesh_node::http::", Part::Codec),
    ("http::", Part::Codec),
    ("mesh_node::filter", Part::Filters),
    ("mesh_node::router", Part::Filters),
    ("mesh_node::upstream", Part::Filters),
];

fn part(frames: &[String]) -> Part {
    let first = |name: &str, of: &[(&str, Part)]| {
        of.iter().find(|(part, _)| name.contains(part)).map(|(_, part)| *part)
    };
    let kernel = frames.iter().filter(|frame| frame.ends_with(KERNEL));
    let innermost = frames.last().map_or("", String::as_str);
    if !innermost.ends_with(KERNEL) {
        return first(innermost, &OWN).unwrap_or(Part::OtherOwn);
    }
    kernel.map(String::as_str).find_map(|frame| first(frame, &CALLS)).unwrap_or(Part::OtherKernel)
}

/// What the graphs of a path leave to be won.
fn left_to_win(way: Way) -> &'static str {
    match (way.path, way.acceleration) {
        (Path::Mesh, false) => {
            "Every request crosses TCP six times, so what is left is the kernel's: acceleration takes the stack \
             out of all six, and the hand-over in memory takes two of them away."
        }
        (Path::Mesh, true) => {
            "What is sent past TCP still costs a system call, a copy and a wake-up on either side; the two \
             crossings between the proxy's halves are needless on one node, which the hand-over in memory uses."
        }
        (Path::MeshOut, false) => {
            "Half of what is sent goes to the client over the pod's loopback, which acceleration takes out of TCP; \
             the other half belongs to a pod that is not enrolled and stays."
        }
        (Path::MeshOut, true) => {
            "The send to the pod that is not enrolled is the largest piece and stays TCP's; of the rest, the \
             proxy's own code for HTTP is what can still shrink."
        }
        (Path::MeshInmem, _) => {
            "Between the halves nothing of the kernel is left, and heads are handed over as they are. What can still \
             shrink is user space: headers that are looked up and removed by name, and the state of a request that \
             is moved about (7 % of the samples are in memmove)."
        }
        (Path::MeshL4 | Path::MeshL4Out, false) => {
            "It is reads, writes and the network stack below them; user space has nothing to save, only fewer \
             crossings do, by acceleration and hand-off."
        }
        (Path::MeshL4 | Path::MeshL4Out, true) => {
            "A read, a write and a wake-up for each message in each half is the floor of a proxy that looks at \
             the bytes; handing off the connection removes it."
        }
        (Path::MeshHandoff, _) => {
            "The proxy should hardly be seen here: what it still does is looking whether connections ended, so \
             what is left is the applications' own system calls."
        }
        _ => "Not ours: drawn for comparison.",
    }
}

/// One graph's two sentences, as an item of a list.
pub fn item(title: &str, file: &str, way: Way, stacks: &Stacks) -> String {
    let all = stacks.values().sum::<u64>().max(1) as f64;
    let mut shares: Vec<(f64, &str)> = PARTS
        .iter()
        .map(|(wanted, name)| {
            let samples: u64 =
                stacks.iter().filter(|(frames, _)| part(frames) == *wanted).map(|(_, n)| n).sum();
            (samples as f64 * 100.0 / all, *name)
        })
        .filter(|(share, _)| *share >= 0.5)
        .collect();
    shares.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut text = format!("- [{title}]({file}): ");
    if shares.is_empty() {
        text.push_str("no samples");
    }
    for (index, (share, name)) in shares.iter().enumerate() {
        let _ = write!(text, "{}{name} {share:.0} %", if index == 0 { "" } else { ", " });
    }
    let _ = write!(text, ". {}", left_to_win(way));
    text
}

/// The whole page.
pub fn page(items: &[String]) -> String {
    format!(
        "# Where the processor time goes\n\n\
         Flame graphs of the proxies' threads, kernel included, drawn by `cargo xtask bench --flame` while the load \
         ran. Of each first how its time is shared out, then what is left to win.\n\n{}\n",
        items.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_system_call_is_the_calls_whatever_it_does_inside() {
        let stack = |frames: &[&str]| frames.iter().map(|frame| (*frame).to_owned()).collect::<Vec<_>>();
        let stacks = Stacks::from([
            (stack(&["worker", "mesh_node::http::h1", "__x64_sys_sendto_[k]", "tcp_v4_rcv_[k]"]), 60),
            (stack(&["worker", "mesh_node::filter::run", "malloc"]), 30),
            (stack(&["worker", "__x64_sys_epoll_wait_[k]"]), 10),
        ]);
        let way = Way { path: Path::Mesh, acceleration: true };
        let item = item("both halves", "a.svg", way, &stacks);
        let expected =
            "- [both halves](a.svg): sending 60 %, memory 30 %, waiting for events 10 %. What is sent";
        assert!(item.starts_with(expected), "{item}");
    }
}

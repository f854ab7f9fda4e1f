//! `--flame`: where the processor time of a path goes, by `perf` while the load runs.
//!
//! Samples the threads of the proxies alone, in user space and in the kernel: what the kernel does for them
//! while they run is theirs. It must not look at what is measured; a run that is sampled is no result.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Samples per second and thread; not a divisor of what the kernel does in steps of its own.
const FREQUENCY: &str = "499";
/// Bytes of stack that are kept of each sample, to be unwound afterwards: release builds have no frame pointers.
const STACK: &str = "dwarf,16384";

/// What ends the name of a function of the kernel.
pub const KERNEL: &str = "_[k]";

/// How often each stack was seen; frames from the outermost to the innermost.
pub type Stacks = BTreeMap<Vec<String>, u64>;

/// A recording under way.
pub struct Recording {
    perf: Child,
    file: PathBuf,
}

impl Recording {
    /// Samples the processes for so many seconds.
    pub fn start(pids: &[u32], seconds: u32, folder: &FilePath) -> Result<Recording> {
        let file = folder.join("perf.data");
        let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
        let perf = Command::new("perf")
            .args(["record", "--quiet", "-e", "cpu-clock", "-F", FREQUENCY, "--call-graph", STACK])
            .args(["-p", &pids.join(","), "-o"])
            .arg(&file)
            .args(["--", "sleep", &seconds.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("perf cannot be started: install it (Debian: linux-perf)")?;
        Ok(Recording { perf, file })
    }

    /// Waits for its end and reads it.
    pub fn finish(mut self) -> Result<Stacks> {
        let status = self.perf.wait().context("waiting for perf")?;
        ensure!(status.success(), "perf record ended with {status}");
        let output = Command::new("perf")
            .args(["script", "--no-inline", "-F", "comm,ip,sym,dso", "-i"])
            .arg(&self.file)
            .stdin(Stdio::null())
            .output()
            .context("running perf script")?;
        ensure!(output.status.success(), "perf script: {}", String::from_utf8_lossy(&output.stderr).trim());
        fs::remove_file(&self.file).ok();
        Ok(fold(&String::from_utf8_lossy(&output.stdout)))
    }
}

/// What `perf script` prints: for each sample a line with the thread's name, then one line per frame,
/// innermost first, then an empty line.
fn fold(text: &str) -> Stacks {
    let mut stacks = Stacks::new();
    for sample in text.split("\n\n") {
        let mut lines = sample.lines().filter(|line| !line.trim().is_empty());
        let Some(thread) = lines.next().map(str::trim) else { continue };
        let mut frames: Vec<String> =
            lines.filter_map(|line| line.trim().split_once(' ').map(|(_, symbol)| name(symbol))).collect();
        frames.push(thread.to_owned());
        frames.reverse();
        *stacks.entry(frames).or_default() += 1;
    }
    stacks
}

/// A symbol without the hash that the compiler adds; [`KERNEL`] is added to those of the kernel and its modules, and
/// what has no symbol goes by its file.
fn name(symbol: &str) -> String {
    let (symbol, file) = symbol.trim().rsplit_once(" (").unwrap_or((symbol, ""));
    let file = file.trim_end_matches(')');
    let symbol = match symbol.rsplit_once("::h") {
        Some((stem, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => stem,
        _ => symbol,
    };
    match symbol {
        "[unknown]" => format!("[{}]", file.rsplit('/').next().unwrap_or_default()),
        // Modules and BPF programs are in brackets, too.
        _ if file.starts_with('[') || file.starts_with("bpf_prog") => format!("{symbol}{KERNEL}"),
        _ => symbol.to_owned(),
    }
}

/// The functions that take the most: `whole` with what they call, else by themselves. In shares of all samples.
pub fn top(stacks: &Stacks, whole: bool, count: usize) -> Vec<(f64, String)> {
    let mut taken: BTreeMap<&str, u64> = BTreeMap::new();
    for (frames, samples) in stacks {
        let mut seen: Vec<&str> = if whole {
            frames.iter().skip(1).map(String::as_str).collect()
        } else {
            frames.last().map(String::as_str).into_iter().collect()
        };
        // A function that calls itself is counted once.
        seen.sort_unstable();
        seen.dedup();
        for frame in seen {
            *taken.entry(frame).or_default() += samples;
        }
    }
    let all = stacks.values().sum::<u64>().max(1) as f64;
    let mut shares: Vec<(f64, String)> =
        taken.into_iter().map(|(frame, samples)| (samples as f64 / all, frame.to_owned())).collect();
    shares.sort_by(|a, b| b.0.total_cmp(&a.0));
    shares.truncate(count);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLES: &str = "worker-0 \n\tffff1 tcp_sendmsg ([kernel.kallsyms])\n\t55d1 mesh_node::serve::h0123456789abcdef (/usr/bin/mesh-node)\n\n\
                           worker-0 \n\t55d1 mesh_node::serve::h0123456789abcdef (/usr/bin/mesh-node)\n\n";

    #[test]
    fn stacks_are_turned_round_and_lose_their_hashes() {
        let stacks = fold(SAMPLES);
        let whole = ["worker-0", "mesh_node::serve", "tcp_sendmsg_[k]"].map(str::to_owned).to_vec();
        assert_eq!(stacks.get(&whole), Some(&1));
        assert_eq!(stacks.get(&whole[..2]), Some(&1));
    }

    #[test]
    fn a_caller_has_the_time_of_what_it_calls_only_as_a_whole() {
        let stacks = fold(SAMPLES);
        assert_eq!(top(&stacks, true, 1), [(1.0, "mesh_node::serve".to_owned())]);
        assert!(top(&stacks, false, 9).contains(&(0.5, "mesh_node::serve".to_owned())));
    }
}

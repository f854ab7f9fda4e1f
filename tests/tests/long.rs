//! Ten minutes of mixed load over two nodes while pods come and go. `MESH_LONG_SECONDS` shortens it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use mesh_tests::soak::{self, Summary, Usage};

const MIB: u64 = 1 << 20;

/// What the proxies may grow by between the first and the last third of the run.
const GROWTH_BYTES: u64 = 4 * MIB;
const GROWTH_DESCRIPTORS: usize = 64;

#[test]
fn no_request_fails_and_nothing_grows_while_pods_come_and_go() -> Result<()> {
    mesh_tests::need_root!();
    let mut logs = Logs { folder: soak::log_folder()?, needed: true };
    let seconds = std::env::var("MESH_LONG_SECONDS").ok().and_then(|v| v.parse().ok()).unwrap_or(600);
    let summary = soak::run(Duration::from_secs(seconds), |elapsed, tallies| {
        let done: u64 = tallies.iter().map(|(_, t)| t.exchanges).sum();
        let failed: u64 = tallies.iter().map(|(_, t)| t.failed).sum();
        println!("{:>4} s  {done} exchanges, {failed} failed", elapsed.as_secs());
    })?;
    print(&summary);
    for (protocol, tally) in &summary.tallies {
        assert!(tally.exchanges > 0, "{protocol:?} was not exercised");
        assert_eq!(tally.failed, 0, "{protocol:?}: {:?}", tally.errors);
    }
    assert!(summary.guests > 1, "pods came and went");
    for usage in &summary.usage {
        let (first, last) = thirds(usage);
        assert!(
            last.resident_bytes <= first.resident_bytes + GROWTH_BYTES,
            "memory grows: {} to {} MiB",
            first.resident_bytes / MIB,
            last.resident_bytes / MIB
        );
        assert!(
            last.descriptors <= first.descriptors + GROWTH_DESCRIPTORS,
            "descriptors grow: {} to {}",
            first.descriptors,
            last.descriptors
        );
    }
    logs.needed = false;
    Ok(())
}

/// Says where the proxies' logs are, however the run fails.
struct Logs {
    folder: PathBuf,
    needed: bool,
}

impl Drop for Logs {
    fn drop(&mut self) {
        if self.needed {
            eprintln!("the logs of mesh-node are in {}", self.folder.display());
        }
    }
}

/// Medians of the middle and of the last third; the first one is warm-up.
fn thirds(usage: &[Usage]) -> (Usage, Usage) {
    let third = usage.len() / 3;
    (median(&usage[third..2 * third]), median(&usage[2 * third..]))
}

fn median(usage: &[Usage]) -> Usage {
    let mut bytes: Vec<u64> = usage.iter().map(|u| u.resident_bytes).collect();
    let mut descriptors: Vec<usize> = usage.iter().map(|u| u.descriptors).collect();
    bytes.sort_unstable();
    descriptors.sort_unstable();
    let middle = usage.len() / 2;
    Usage {
        resident_bytes: bytes.get(middle).copied().unwrap_or_default(),
        descriptors: descriptors.get(middle).copied().unwrap_or_default(),
    }
}

fn print(summary: &Summary) {
    println!("\n| protocol | exchanges | failed |\n| --- | --- | --- |");
    for (protocol, tally) in &summary.tallies {
        println!("| {} | {} | {} |", protocol.name(), tally.exchanges, tally.failed);
        tally.errors.iter().for_each(|error| println!("    {error}"));
    }
    println!("\npods that came and went: {}", summary.guests);
    for (node, usage) in ["one", "two"].iter().zip(&summary.usage) {
        let (first, last) = thirds(usage);
        println!(
            "mesh-node of node {node}: resident {:.1} then {:.1} MiB, descriptors {} then {} (medians of the middle and the last third)",
            first.resident_bytes as f64 / MIB as f64,
            last.resident_bytes as f64 / MIB as f64,
            first.descriptors,
            last.descriptors,
        );
    }
}

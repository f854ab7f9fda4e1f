//! What the demo prints as tables.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use mesh_tests::mesh::MeshNode;

use crate::client::Report;
use crate::scene::{Scene, TYPES, node_id};

/// How often each hook decided what, on each node: (hook, reason) → count per node. Read from the
/// counters of the kernel programs, which mesh-node shows in its statistics.
pub fn steering(mesh: &[MeshNode]) -> Result<BTreeMap<(String, String), Vec<u64>>> {
    let mut counts: BTreeMap<(String, String), Vec<u64>> = BTreeMap::new();
    for (node, proxy) in mesh.iter().enumerate() {
        let (status, text) = proxy.get("/stats/prometheus")?;
        ensure!(status == 200, "mesh-node's /stats/prometheus answers {status}");
        for line in text.lines().filter(|line| line.starts_with("mesh_")) {
            let (Some(hook), Some(reason)) = (label(line, "hook"), label(line, "reason")) else { continue };
            let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
            counts.entry((hook, reason)).or_insert_with(|| vec![0; mesh.len()])[node] += value as u64;
        }
    }
    counts.retain(|_, row| row.iter().any(|count| *count > 0));
    Ok(counts)
}

/// The value of `name="…"` in a line of Prometheus text.
fn label(line: &str, name: &str) -> Option<String> {
    let rest = line.split_once(&format!("{name}=\""))?.1;
    Some(rest.split_once('"')?.0.to_owned())
}

/// Prints [`steering`].
pub fn print_steering(counts: &BTreeMap<(String, String), Vec<u64>>) {
    println!("  {:<11}{:<22}{:>10}{:>10}", "hook", "what it did", "node 1", "node 2");
    for ((hook, reason), row) in counts {
        print!("  {hook:<11}{:<22}", reason.replace('_', " "));
        for count in row {
            print!("{count:>10}");
        }
        println!();
    }
}

/// Prints which version of `reviews` the pages showed.
pub fn print_split(report: &Report) {
    for version in ["reviews-v1", "reviews-v2", "reviews-v3"] {
        let pages = report.reviews.get(version).copied().unwrap_or(0);
        let percent = pages as f64 * 100.0 / report.pages.max(1) as f64;
        println!(
            "  {version:<12}{pages:>7} pages {percent:>6.1} %  {}",
            "█".repeat((percent / 2.5) as usize)
        );
    }
}

/// Prints what every pod's sidecar has of each type, and the version of the last response that it took.
pub fn print_standings(scene: &Scene) {
    let book = scene.xds.standings();
    print!("  {:<18}", "sidecar of");
    TYPES.iter().for_each(|kind| print!("{:<16}", kind.short()));
    println!();
    for pod in scene.pods() {
        print!("  {:<18}", pod.name());
        for kind in TYPES {
            let standing = book.get(&(node_id(pod), kind)).cloned().unwrap_or_default();
            let version = match (&standing.nacked, &standing.acked) {
                (Some(_), _) => "NACK".to_owned(),
                (None, Some((version, _))) => format!("ACK {version}"),
                (None, None) => "-".to_owned(),
            };
            print!("{:>2} {version:<13}", standing.resources);
        }
        println!();
    }
}

/// Prints what the same requests cost.
pub fn print_cost(rows: &[(&str, &Report)]) {
    println!("  {:<34}{:>9}{:>12}{:>12}{:>9}", "", "pages/s", "p50", "p99", "failed");
    for (name, report) in rows {
        println!(
            "  {name:<34}{:>9.0}{:>9.2} ms{:>9.2} ms{:>9}",
            report.pages_per_s(),
            report.p50_us as f64 / 1000.0,
            report.p99_us as f64 / 1000.0,
            report.failed
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_found_wherever_it_stands() {
        let line = "mesh_steering_total{pod=\"a\",hook=\"connect\",reason=\"steered_outbound\"} 12";
        assert_eq!(label(line, "hook").as_deref(), Some("connect"));
        assert_eq!(label(line, "reason").as_deref(), Some("steered_outbound"));
        assert_eq!(label(line, "node"), None);
    }
}

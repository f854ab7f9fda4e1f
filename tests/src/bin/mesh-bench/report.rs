//! What a run says: the table, and the measured ratios beside the goals.
//!
//! Exists so that a figure is never shown without what it is compared with. Absolute figures depend on
//! the machine; every row therefore has its ratio to direct and to the sidecar of the same run.

use std::fmt::Write as _;

use crate::results::{Measured, Results};
use crate::rows::{Path, Placement, Row, Way};

/// The figure that says what kind of machine and run this was.
pub fn headline(results: &Results) -> Option<String> {
    let pair = rate(results, "same-node-http1", 64, Path::Sidecar)?;
    let direct = rate(results, "same-node-http1", 64, Path::Direct)?;
    Some(format!(
        "sidecar pair ÷ direct of this run: {:.3} (same-node-http1 c=64, requests/s); compare ratios within one run only",
        pair / direct
    ))
}

/// A goal of the project: a ratio between two measured figures of one row.
struct Goal {
    scenario: &'static str,
    connections: u32,
    figure: Figure,
    way: Way,
    against: Way,
    bound: Bound,
}

#[derive(Clone, Copy)]
enum Figure {
    Rate,
    P50,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

const fn goal(
    scenario: &'static str,
    connections: u32,
    figure: Figure,
    way: Way,
    against: Way,
    bound: Bound,
) -> Goal {
    Goal { scenario, connections, figure, way, against, bound }
}

const fn plain(path: Path) -> Way {
    Way { path, acceleration: false }
}

const fn accelerated(path: Path) -> Way {
    Way { path, acceleration: true }
}

const DIRECT: Way = plain(Path::Direct);
const SIDECAR: Way = plain(Path::Sidecar);

const GOALS: [Goal; 21] = [
    goal("same-node-http1", 64, Figure::Rate, plain(Path::MeshOut), SIDECAR, Bound::AtLeast(3.5)),
    goal("same-node-http1", 64, Figure::Rate, plain(Path::Mesh), SIDECAR, Bound::AtLeast(2.2)),
    goal("same-node-http1", 1, Figure::P50, plain(Path::MeshOut), SIDECAR, Bound::AtMost(1.0 / 2.0)),
    goal("same-node-http1", 1, Figure::P50, plain(Path::Mesh), SIDECAR, Bound::AtMost(2.0 / 3.0)),
    goal("connect-rate", 16, Figure::Rate, plain(Path::Mesh), SIDECAR, Bound::AtLeast(1.5)),
    goal("same-node-tcp", 64, Figure::Rate, plain(Path::MeshL4Out), DIRECT, Bound::AtLeast(0.4)),
    goal("bulk", 1, Figure::Rate, plain(Path::MeshL4Out), DIRECT, Bound::AtLeast(0.5)),
    goal(
        "same-node-http1",
        64,
        Figure::Rate,
        accelerated(Path::Mesh),
        plain(Path::Mesh),
        Bound::AtLeast(1.3),
    ),
    goal("same-node-http1", 64, Figure::Rate, accelerated(Path::Mesh), SIDECAR, Bound::AtLeast(3.0)),
    goal("same-node-http1", 64, Figure::Rate, accelerated(Path::MeshOut), SIDECAR, Bound::AtLeast(4.5)),
    goal("same-node-http1", 1, Figure::P50, accelerated(Path::Mesh), SIDECAR, Bound::AtMost(1.0 / 2.0)),
    goal("same-node-http1", 1, Figure::P50, accelerated(Path::MeshOut), SIDECAR, Bound::AtMost(1.0 / 3.0)),
    goal("connect-rate", 16, Figure::Rate, accelerated(Path::Mesh), SIDECAR, Bound::AtLeast(1.7)),
    goal(
        "connect-rate",
        16,
        Figure::Rate,
        accelerated(Path::MeshL4),
        plain(Path::SidecarL4),
        Bound::AtLeast(3.0),
    ),
    goal("same-node-http1", 64, Figure::Rate, accelerated(Path::MeshInmem), SIDECAR, Bound::AtLeast(4.5)),
    goal("same-node-http1", 1, Figure::P50, accelerated(Path::MeshInmem), SIDECAR, Bound::AtMost(1.0 / 3.0)),
    goal("same-node-tcp", 64, Figure::Rate, accelerated(Path::MeshHandoff), DIRECT, Bound::AtLeast(1.4)),
    goal("same-node-tcp", 64, Figure::P50, accelerated(Path::MeshHandoff), DIRECT, Bound::AtMost(1.0)),
    goal("same-node-tcp", 1, Figure::P50, accelerated(Path::MeshHandoff), DIRECT, Bound::AtMost(1.0)),
    goal("bulk", 1, Figure::Rate, accelerated(Path::MeshL4), plain(Path::MeshL4), Bound::AtLeast(1.0)),
    goal("bulk", 1, Figure::Rate, accelerated(Path::MeshL4Out), plain(Path::MeshL4Out), Bound::AtLeast(1.0)),
];

/// Resident memory at 64 connections stays below this.
const RSS_GOAL_MIB: f64 = 30.0;

/// One line per goal whose figures were measured.
pub fn goals(results: &Results) -> Vec<String> {
    let mut lines = Vec::new();
    for goal in &GOALS {
        let of = |way| {
            let row = results.find_way(goal.scenario, goal.connections, way)?;
            match goal.figure {
                Figure::Rate => row.rate().map(|rate| rate.median),
                Figure::P50 => row.latency_us.map(|latency| latency.p50),
            }
        };
        let (Some(measured), Some(against)) = (of(goal.way), of(goal.against)) else { continue };
        let ratio = measured / against;
        let (met, bound) = match goal.bound {
            Bound::AtLeast(bound) => (ratio >= bound, format!("at least {bound:.2}")),
            Bound::AtMost(bound) => (ratio <= bound, format!("at most {bound:.2}")),
        };
        let figure = match goal.figure {
            Figure::Rate => "rate",
            Figure::P50 => "p50",
        };
        lines.push(format!(
            "{}  {} c={} {figure}: {} ÷ {} = {ratio:.2} (goal: {bound})",
            if met { "met   " } else { "MISSED" },
            goal.scenario,
            goal.connections,
            goal.way,
            goal.against,
        ));
    }
    if let Some((row, rss)) = largest_mesh_rss(results, "same-node-http1") {
        lines.push(format!(
            "{}  resident memory at c=64: {rss:.1} MiB ({} {}) (goal: below {RSS_GOAL_MIB:.0})",
            if rss < RSS_GOAL_MIB { "met   " } else { "MISSED" },
            row.scenario,
            row.way(),
        ));
    }
    if let Some((row, rss)) = largest_mesh_rss(results, "same-node-http1-64k") {
        lines.push(format!(
            "        resident memory with 64 KB answers: {rss:.1} MiB ({}; no goal)",
            row.way()
        ));
    }
    if let (Some(one_hop), Some(mesh)) = (
        rate(results, "same-node-http1", 64, Path::Haproxy),
        rate(results, "same-node-http1", 64, Path::MeshOut),
    ) {
        lines.push(format!(
            "        same-node-http1 c=64 rate: mesh-out ÷ haproxy = {:.2} (no goal; one hop each)",
            mesh / one_hop
        ));
    }
    lines
}

/// Of a scenario on one node, and so of one mesh-node.
fn largest_mesh_rss<'a>(results: &'a Results, scenario: &str) -> Option<(&'a Measured, f64)> {
    results
        .rows
        .iter()
        .filter(|row| row.path.is_mesh() && row.connections == 64 && row.scenario == scenario)
        .filter_map(|row| Some((row, row.proxy_rss_mib?)))
        .max_by(|a, b| a.1.total_cmp(&b.1))
}

fn rate(results: &Results, scenario: &str, connections: u32, path: Path) -> Option<f64> {
    Some(results.find(scenario, connections, path)?.rate()?.median)
}

/// The whole run as a page of Markdown.
pub fn markdown(results: &Results) -> String {
    let mut text = String::from("# Results of `cargo xtask bench`\n\n");
    let machine: Vec<String> = results.machine.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    let versions: Vec<String> =
        results.versions.iter().map(|(key, value)| format!("{key} {value}")).collect();
    let _ = writeln!(text, "{}; {}. {}.\n", results.date, machine.join(", "), versions.join(", "));
    if let Some(line) = headline(results) {
        let _ = writeln!(text, "{line}\n");
    }
    let goals = goals(results);
    if !goals.is_empty() {
        let _ = writeln!(text, "```\n{}\n```\n", goals.join("\n"));
    }
    text += &summary(results);
    text += "\n![Throughput relative to no mesh](plot.svg)\n\n## All figures\n\n";
    text += &table(results);
    if !results.failed.is_empty() {
        let _ = writeln!(text, "\nNot measured:\n");
        for line in &results.failed {
            let _ = writeln!(text, "- {line}");
        }
    }
    text
}

/// One line per row: the rate of each path, and in brackets what multiple of the row's sidecar it is.
fn summary(results: &Results) -> String {
    let mut text = String::from("| requests/s (× sidecar) | no mesh | sidecar | HAProxy, one hop |");
    for column in COLUMNS {
        let _ = write!(text, " {} |", column.0);
    }
    text += "\n| --- | ---: | ---: | ---: |";
    text += &" ---: |".repeat(COLUMNS.len());
    text.push('\n');
    let mut done: Vec<(&str, u32)> = Vec::new();
    for row in &results.rows {
        let (scenario, connections) = (row.scenario.as_str(), row.connections);
        if done.contains(&(scenario, connections)) {
            continue;
        }
        done.push((scenario, connections));
        let of = |ways: &[Way]| {
            ways.iter()
                .find_map(|way| results.find_way(scenario, connections, *way)?.rate().map(|r| r.median))
        };
        let sidecar = match scenario {
            "two-node-http1" => of(&[plain(Path::SidecarPlain)]),
            _ => of(&[SIDECAR, plain(Path::SidecarL4)]),
        };
        let cell = |rate: Option<f64>| match (rate, sidecar) {
            (Some(rate), Some(sidecar)) => format!("{} ({:.1}×)", short(row, rate), rate / sidecar),
            (Some(rate), None) => short(row, rate),
            (None, _) => "-".to_owned(),
        };
        let _ = write!(
            text,
            "| {scenario} c={connections} | {} | {} | {} |",
            cell(of(&[DIRECT])),
            sidecar.map_or_else(|| "-".to_owned(), |rate| short(row, rate)),
            cell(of(&[plain(Path::Haproxy)])),
        );
        for (_, ways) in COLUMNS {
            let _ = write!(text, " {} |", cell(of(ways)));
        }
        text.push('\n');
    }
    text
}

/// The columns of the mesh: the first of the paths that a row was measured on.
const COLUMNS: &[(&str, &[Way])] = &[
    ("mesh-out", &[plain(Path::MeshOut), plain(Path::MeshL4Out)]),
    ("mesh-out accel.", &[accelerated(Path::MeshOut), accelerated(Path::MeshL4Out)]),
    ("mesh", &[plain(Path::Mesh), plain(Path::MeshL4)]),
    ("mesh accel.", &[accelerated(Path::Mesh), accelerated(Path::MeshL4)]),
    ("in memory / handed off, accel.", &[accelerated(Path::MeshInmem), accelerated(Path::MeshHandoff)]),
];

fn short(row: &Measured, rate: f64) -> String {
    if row.gbit_per_s.is_some() { format!("{rate:.1} Gbit/s") } else { format!("{rate:.0}") }
}

/// One line per row and path. `rate` is requests/s, or Gbit/s where the row is a stream.
pub fn table(results: &Results) -> String {
    let mut text = String::from(
        "| scenario | c | path | rate (min – max) | ÷ direct | ÷ sidecar | p50 | p90 | p99 | p99.9 µs | \
         CPU s per 10k | switches per request | RSS MiB |\n\
         | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for row in &results.rows {
        let Some(spread) = row.rate() else { continue };
        let number = |value: f64| match row.gbit_per_s {
            Some(_) => format!("{value:.1}"),
            None => format!("{value:.0}"),
        };
        let unit = if row.gbit_per_s.is_some() { " Gbit/s" } else { "" };
        let connections = match row.streams_per_connection {
            Some(streams) => format!("{}×{streams}", row.connections),
            None => row.connections.to_string(),
        };
        let ratio = |against: Option<f64>| {
            against.map_or_else(|| "-".to_owned(), |against| format!("{:.2}", spread.median / against))
        };
        let of = |path| rate(results, &row.scenario, row.connections, path);
        let sidecar = sidecar_of(row).and_then(of).filter(|_| row.path != Path::Direct);
        let latency = |field: fn(&crate::results::Latency) -> f64| {
            row.latency_us.as_ref().map_or_else(|| "-".to_owned(), |latency| format!("{:.0}", field(latency)))
        };
        let figure = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let _ = writeln!(
            text,
            "| {} | {connections} | {} | {}{unit} ({} – {}) | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.scenario,
            row.way(),
            number(spread.median),
            number(spread.min),
            number(spread.max),
            ratio(of(Path::Direct)),
            ratio(sidecar),
            latency(|l| l.p50),
            latency(|l| l.p90),
            latency(|l| l.p99),
            latency(|l| l.p999),
            figure(row.proxy_cpu_s_per_10k, 2),
            figure(row.context_switches_per_request, 2),
            figure(row.proxy_rss_mib, 1),
        );
    }
    text
}

/// The sidecar that a path replaces: of the same layer, and with TLS where Istio has it by default. A
/// row between nodes in plaintext has only the plaintext pair.
fn sidecar_of(row: &Measured) -> Option<Path> {
    match row.path {
        path if !path.is_l7() => Some(Path::SidecarL4),
        _ if row.scenario == "two-node-http1" => Some(Path::SidecarPlain),
        _ if row.scenario.starts_with("same-node-tcp") || row.scenario == "bulk" => None,
        _ => Some(Path::Sidecar),
    }
}

/// One line while the bench runs.
pub fn progress(row: &Row, measured: &Measured) -> String {
    let rate = match (measured.requests_per_s, measured.gbit_per_s) {
        (Some(spread), _) => format!("{:>9.0} requests/s", spread.median),
        (_, Some(spread)) => format!("{:>9.1} Gbit/s", spread.median),
        _ => String::new(),
    };
    let mut line = format!("  {:<20}{rate}", measured.way());
    if let Some(latency) = measured.latency_us {
        let _ = write!(line, "   p50 {:>7.0} µs   p99 {:>7.0} µs", latency.p50, latency.p99);
    }
    if let Some(rss) = measured.proxy_rss_mib {
        let _ = write!(line, "   {rss:>6.1} MiB");
    }
    if row.placement != Placement::SameNode && measured.path.is_mtls(row.placement) {
        line += "   mTLS";
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let row = |path: &str, rate: u32, p50: u32| {
            format!(
                r#"{{"scenario": "same-node-http1", "path": "{path}", "acceleration": false, "payload_bytes": 130,
                "connections": 64, "runs": 5, "proxy_rss_mib": 31.5,
                "requests_per_s": {{"median": {rate}, "min": {rate}, "max": {rate}}},
                "latency_us": {{"p50": {p50}, "p90": 1, "p99": 1, "p999": 1}}}}"#
            )
        };
        let rows = [
            row("direct", 100_000, 10),
            row("sidecar", 10_000, 90),
            row("mesh-out", 40_000, 40),
            row("mesh", 20_000, 50),
        ];
        let text = format!(
            r#"{{"date": "2026-01-02T03:04:05Z", "machine": {{"cores": "2"}}, "versions": {{}},
            "seconds_per_run": 3, "rows": [{}]}}"#,
            rows.join(",")
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_missed_goal_says_so_beside_the_ones_that_are_met() {
        let lines = goals(&results());
        assert!(lines[0].starts_with("met ") && lines[0].contains("= 4.00"), "{lines:?}");
        assert!(lines[1].starts_with("MISSED") && lines[1].contains("= 2.00"), "{lines:?}");
        assert!(lines[2].starts_with("MISSED") && lines[2].contains("31.5 MiB"), "{lines:?}");
    }

    #[test]
    fn the_page_has_the_pair_ratio_first_and_every_path_in_the_tables() {
        let page = markdown(&results());
        assert!(page.find("0.100").unwrap() < page.find("| scenario").unwrap());
        assert!(page.contains(
            "| same-node-http1 c=64 | 100000 (10.0×) | 10000 | - | 40000 (4.0×) | - | 20000 (2.0×) | - | - |"
        ));
        assert!(page.contains("| same-node-http1 | 64 | mesh-out | 40000 (40000 – 40000) | 0.40 | 4.00 |"));
        let picture = crate::plot::svg(&results());
        assert_eq!(picture.matches("<rect x=").count(), 3, "a bar for each path but direct");
    }
}

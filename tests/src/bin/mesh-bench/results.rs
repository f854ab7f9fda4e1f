//! The results file: shapes, medians, and how a run is kept.
//!
//! Exists so that any two runs compare. A field that was not measured is absent, never zero.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path as FilePath;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::rows::{Load, Path, Row, Way};

/// One run of the whole bench.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    /// UTC, RFC 3339.
    pub date: String,
    pub machine: BTreeMap<String, String>,
    pub versions: BTreeMap<String, String>,
    pub seconds_per_run: u32,
    pub rows: Vec<Measured>,
    /// Rows that could not be measured, with the reason: `scenario c=N path: reason`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
}

/// One row on one path.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    pub scenario: String,
    pub path: Path,
    pub acceleration: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_bytes: Option<u32>,
    pub connections: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams_per_connection: Option<u32>,
    pub runs: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_s: Option<Spread>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gbit_per_s: Option<Spread>,
    /// TLS handshakes: only where every request is a new TLS connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshakes_per_s: Option<Spread>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<Latency>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_cpu_s_per_10k: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_switches_per_request: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_rss_mib: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// Microseconds; each the median of that percentile over the runs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
}

/// What one run of one row on one path gave.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub requests_per_s: Option<f64>,
    pub gbit_per_s: Option<f64>,
    pub latency_us: Option<Latency>,
    pub proxy_cpu_s_per_10k: Option<f64>,
    pub context_switches_per_request: Option<f64>,
    pub proxy_rss_mib: Option<f64>,
}

impl Measured {
    /// `samples` must not be empty.
    pub fn of(row: &Row, way: Way, samples: &[Sample]) -> Measured {
        let all = |field: fn(&Sample) -> Option<f64>| samples.iter().filter_map(field).collect::<Vec<_>>();
        let percentile = |field: fn(&Latency) -> f64| {
            median(
                &samples
                    .iter()
                    .filter_map(|sample| sample.latency_us.as_ref().map(field))
                    .collect::<Vec<_>>(),
            )
        };
        let requests_per_s = spread(&all(|s| s.requests_per_s));
        let new_tls = row.load == Load::NewConnections && way.path == Path::SidecarL4;
        Measured {
            scenario: row.scenario.to_owned(),
            path: way.path,
            acceleration: way.acceleration,
            payload_bytes: (row.load != Load::Bulk).then_some(row.payload_bytes),
            connections: row.connections,
            streams_per_connection: match row.load {
                Load::Http2 { streams } | Load::Grpc { streams } => Some(streams),
                _ => None,
            },
            runs: samples.len(),
            requests_per_s,
            gbit_per_s: spread(&all(|s| s.gbit_per_s)),
            handshakes_per_s: requests_per_s.filter(|_| new_tls),
            latency_us: percentile(|l| l.p50)
                .zip(percentile(|l| l.p90))
                .zip(percentile(|l| l.p99))
                .zip(percentile(|l| l.p999))
                .map(|(((p50, p90), p99), p999)| Latency { p50, p90, p99, p999 }),
            proxy_cpu_s_per_10k: median(&all(|s| s.proxy_cpu_s_per_10k)),
            context_switches_per_request: median(&all(|s| s.context_switches_per_request)),
            // The largest, not the median: what a node must have free.
            proxy_rss_mib: spread(&all(|s| s.proxy_rss_mib)).map(|spread| spread.max),
        }
    }

    pub fn way(&self) -> Way {
        Way { path: self.path, acceleration: self.acceleration }
    }

    /// The figure that a row is about: requests/s, or Gbit/s of a bulk row.
    pub fn rate(&self) -> Option<Spread> {
        self.requests_per_s.or(self.gbit_per_s)
    }
}

impl Results {
    /// The row without acceleration.
    pub fn find(&self, scenario: &str, connections: u32, path: Path) -> Option<&Measured> {
        self.find_way(scenario, connections, Way { path, acceleration: false })
    }

    pub fn find_way(&self, scenario: &str, connections: u32, way: Way) -> Option<&Measured> {
        self.rows
            .iter()
            .find(|row| row.scenario == scenario && row.connections == connections && row.way() == way)
    }

    /// Reads the `latest.json` of `folder`.
    pub fn load(folder: &FilePath) -> Result<Results> {
        let file = folder.join("latest.json");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a results file", file.display()))
    }

    /// Writes `latest.json` in `folder`; a `latest.json` that is there keeps its date as its name.
    pub fn save(&self, folder: &FilePath) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let latest = folder.join("latest.json");
        if let Ok(text) = fs::read_to_string(&latest)
            && let Ok(earlier) = serde_json::from_str::<Results>(&text)
        {
            let name = format!("{}.json", earlier.date.replace(':', ""));
            fs::rename(&latest, folder.join(name)).context("cannot rename the earlier latest.json")?;
        }
        fs::write(&latest, format!("{}\n", serde_json::to_string_pretty(self)?))
            .with_context(|| format!("cannot write {}", latest.display()))
    }
}

fn spread(values: &[f64]) -> Option<Spread> {
    let median = median(values)?;
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Some(Spread { median: rounded(median), min: rounded(min), max: rounded(max) })
}

/// The middle value; of an even number of values, the mean of the two in the middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(rounded(sorted[middle])),
        _ => Some(rounded((sorted[middle - 1] + sorted[middle]) / 2.0)),
    }
}

/// Four significant digits after the point are more than any figure here is worth.
fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_runs_is_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_figure_that_was_not_measured_is_absent_from_the_file() {
        let row = crate::rows::STANDARD[7];
        let sample = Sample { gbit_per_s: Some(10.0), ..Sample::default() };
        let way = Way { path: Path::Direct, acceleration: false };
        let text = serde_json::to_string(&Measured::of(&row, way, &[sample])).unwrap();
        assert!(text.contains("\"gbit_per_s\"") && !text.contains("requests") && !text.contains("latency"));
    }
}

//! The plot: each row's paths as bars, against direct.
//!
//! Writes SVG by hand, so that a picture needs no library; colours are chosen to be readable on a light
//! and on a dark page.

use std::fmt::Write as _;

use crate::results::Results;
use crate::rows::{Path, Way};

const WIDTH: f64 = 900.0;
const LABELS: f64 = 250.0;
const BAR: f64 = 15.0;
const GAP: f64 = 14.0;
const TOP: f64 = 52.0;
/// A bar of this length is as fast as direct; what is faster is cut off there, with its figure.
const FULL_SCALE: f64 = 1.2;

/// Throughput of every row and path relative to direct, as an SVG picture.
pub fn svg(results: &Results) -> String {
    let mut groups: Vec<(String, Vec<(Way, f64)>)> = Vec::new();
    for row in &results.rows {
        let direct =
            results.find(&row.scenario, row.connections, Path::Direct).and_then(|direct| direct.rate());
        let (Some(direct), Some(rate)) = (direct, row.rate()) else { continue };
        let name = format!("{} c={}", row.scenario, row.connections);
        let bar = (row.way(), rate.median / direct.median);
        match groups.last_mut() {
            Some((last, bars)) if *last == name => bars.push(bar),
            _ => groups.push((name, vec![bar])),
        }
    }
    let bars: usize = groups.iter().map(|(_, bars)| bars.len() - 1).sum();
    let height = TOP + bars as f64 * BAR + groups.len() as f64 * GAP + 24.0;
    let scale = (WIDTH - LABELS - 70.0) / FULL_SCALE;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"20\" font-size=\"14\" fill=\"#222\">Throughput relative to no mesh (direct = 1), \
         median of {} runs</text>\n",
        results.rows.iter().map(|row| row.runs).max().unwrap_or(0),
    );
    for tenth in (0..=12).step_by(2) {
        let value = f64::from(tenth) / 10.0;
        let x = LABELS + value * scale;
        let stroke = if tenth == 10 { "#888" } else { "#e4e4e4" };
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{:.0}\" x2=\"{x:.1}\" y2=\"{:.0}\" stroke=\"{stroke}\"/>\
             <text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#666\">{value:.1}</text>",
            TOP - 6.0,
            height - 12.0,
            TOP - 12.0,
        );
    }
    let mut y = TOP;
    for (name, bars) in &groups {
        let _ = writeln!(
            out,
            "<text x=\"12\" y=\"{:.1}\" font-weight=\"bold\" fill=\"#222\">{name}</text>",
            y + 11.0
        );
        for (way, ratio) in bars.iter().filter(|(way, _)| way.path != Path::Direct) {
            let length = ratio.min(FULL_SCALE) * scale;
            let _ = writeln!(
                out,
                "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#444\">{way}</text>\
                 <rect x=\"{LABELS}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{:.0}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#444\">{ratio:.2}</text>",
                LABELS - 6.0,
                y + 11.0,
                y + 2.0,
                BAR - 4.0,
                colour(way.path),
                LABELS + length + 5.0,
                y + 11.0,
            );
            y += BAR;
        }
        y += GAP;
    }
    out + "</svg>\n"
}

/// The mesh stands out, the sidecars are of one hue.
fn colour(path: Path) -> &'static str {
    match path {
        Path::Direct => "#999999",
        Path::Sidecar => "#c44e52",
        Path::SidecarPlain => "#dd8a8c",
        Path::SidecarL4 => "#a83a3e",
        Path::Haproxy => "#8c8c8c",
        Path::Mesh => "#2f6db3",
        Path::MeshOut => "#6aa5e0",
        Path::MeshL4 => "#1f8a70",
        Path::MeshL4Out => "#56bfa5",
        Path::MeshInmem => "#7a4fb5",
        Path::MeshHandoff => "#b57f1f",
    }
}

//! `mesh-bench`: measures mesh-node beside the sidecar mode that it replaces. Run by `cargo xtask
//! bench`, which builds everything first.
//!
//! All paths of a row are up at the same time and take turns, run by run, so that a machine that slows
//! down slows all of them. Only ratios within one run mean anything; the ratio of the sidecar pair to
//! no mesh is therefore printed first.

mod bootstrap;
mod bulk;
mod certificates;
mod grpc;
mod load;
mod machine;
mod plot;
mod report;
mod results;
mod rows;
mod servers;
mod topology;
mod usage;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};

use mesh_tests::run;

use certificates::Certificates;
use load::Generator;
use results::{Measured, Results, Sample};
use rows::{FULL, Path, Placement, Row, STANDARD, Way};
use topology::{Shared, Topology};

#[derive(Parser)]
#[command(about = "Measures mesh-node beside Envoy sidecars, HAProxy and no mesh")]
struct Args {
    #[command(subcommand)]
    helper: Option<Helper>,
    /// Also other payloads and numbers of connections, and gRPC
    #[arg(long)]
    full: bool,
    /// Only rows whose scenario contains one of these; nothing is written to the results folder
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Only these numbers of connections; nothing is written to the results folder
    #[arg(long, value_delimiter = ',')]
    connections: Vec<u32>,
    /// Only these paths; nothing is written to the results folder
    #[arg(long, value_delimiter = ',')]
    paths: Vec<Path>,
    /// Whether paths of the mesh are measured with acceleration; without this both ways. Nothing is written
    /// to the results folder
    #[arg(long)]
    acceleration: Option<bool>,
    /// Runs of each row on each path
    #[arg(long, default_value_t = STANDARD_RUNS)]
    runs: usize,
    /// Seconds of each run
    #[arg(long, default_value_t = STANDARD_SECONDS)]
    seconds: u32,
    /// Folder of latest.json, table.md and plot.svg
    #[arg(long, global = true, default_value = "bench/results")]
    output: PathBuf,
    /// The Envoy program
    #[arg(long, default_value = ".local/envoy/envoy")]
    envoy: PathBuf,
}

/// What this program does beside measuring: most are programs that run inside its pods.
#[derive(Subcommand)]
enum Helper {
    /// Write table.md and plot.svg again from latest.json
    Render,
    /// Count what arrives on each connection
    #[command(hide = true)]
    BulkSink { listen: SocketAddr },
    /// Write to a sink for some seconds
    #[command(hide = true)]
    BulkSend { to: SocketAddr, seconds: u32 },
    /// Answer unary gRPC calls
    #[command(hide = true)]
    GrpcServer { listen: SocketAddr },
}

const STANDARD_RUNS: usize = 5;
const STANDARD_SECONDS: u32 = 3;

fn main() {
    let args = Args::parse();
    let outcome = match &args.helper {
        Some(Helper::BulkSink { listen }) => bulk::sink(*listen),
        Some(Helper::BulkSend { to, seconds }) => bulk::send(*to, *seconds)
            .and_then(|sent| serde_json::to_string(&sent).context("writing the report"))
            .map(|line| println!("{line}")),
        Some(Helper::GrpcServer { listen }) => grpc::serve(*listen),
        Some(Helper::Render) => {
            Results::load(&args.output).and_then(|results| render(&results, &args.output))
        }
        None => measure(&args),
    };
    if let Err(error) = outcome {
        eprintln!("bench: {error:#}");
        std::process::exit(1);
    }
}

fn measure(args: &Args) -> Result<()> {
    ensure!(args.runs > 0 && args.seconds > 0, "--runs and --seconds must be at least 1");
    let rows = wanted_rows(args)?;
    run::prepare()?;
    let folder = run::work_dir();
    // The sidecar's user reads its configuration here.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).context("opening the work folder")?;
    servers::write_nginx(&folder)?;
    let shared = Shared {
        envoy: args.envoy.canonicalize().ok(),
        certificates: Certificates::make(&folder)?,
        folder: folder.clone(),
    };
    let generator = Generator::new(&folder)?;
    let mut results = Results {
        date: machine::date()?,
        machine: machine::describe(),
        versions: machine::versions(shared.envoy.as_deref()),
        seconds_per_run: args.seconds,
        rows: Vec::new(),
        failed: Vec::new(),
    };
    let started = Instant::now();
    for placement in [Placement::SameNode, Placement::TwoNodes, Placement::TwoNodesMtls] {
        let group: Vec<&Row> = rows.iter().filter(|row| row.placement == placement).collect();
        measure_group(args, placement, &group, &shared, &generator, &mut results)?;
    }
    fs::remove_dir_all(&folder).ok();
    println!();
    if let Some(line) = report::headline(&results) {
        println!("{line}\n");
    }
    println!("{}", report::table(&results));
    for line in report::goals(&results) {
        println!("{line}");
    }
    for line in &results.failed {
        println!("not measured: {line}");
    }
    println!("took {} min {} s", started.elapsed().as_secs() / 60, started.elapsed().as_secs() % 60);
    ensure!(!results.rows.is_empty(), "nothing was measured");
    if is_complete(args) {
        results.save(&args.output)?;
        fs::write(args.output.join("table.md"), report::markdown(&results))
            .context("cannot write table.md")?;
        fs::write(args.output.join("plot.svg"), plot::svg(&results)).context("cannot write plot.svg")?;
        println!("written to {}: latest.json, table.md, plot.svg", args.output.display());
    } else {
        println!("a part of the rows or other run lengths: nothing is written to {}", args.output.display());
    }
    ensure!(results.failed.is_empty(), "{} row(s) could not be measured", results.failed.len());
    Ok(())
}

fn render(results: &Results, folder: &std::path::Path) -> Result<()> {
    fs::write(folder.join("table.md"), report::markdown(results)).context("cannot write table.md")?;
    fs::write(folder.join("plot.svg"), plot::svg(results)).context("cannot write plot.svg")
}

/// Only a run of everything, as the method says, is kept as a result.
fn is_complete(args: &Args) -> bool {
    args.rows.is_empty()
        && args.paths.is_empty()
        && args.acceleration.is_none()
        && args.connections.is_empty()
        && args.runs == STANDARD_RUNS
        && args.seconds == STANDARD_SECONDS
}

fn wanted_rows(args: &Args) -> Result<Vec<Row>> {
    let mut rows = STANDARD.to_vec();
    if args.full {
        rows.extend(FULL);
    }
    rows.retain(|row| {
        (args.rows.is_empty() || args.rows.iter().any(|part| row.scenario.contains(part.as_str())))
            && (args.connections.is_empty() || args.connections.contains(&row.connections))
    });
    if rows.is_empty() {
        let names: Vec<String> = STANDARD.iter().chain(&FULL).map(ToString::to_string).collect();
        bail!("no row is named so; the rows are: {}", names.join(", "));
    }
    Ok(rows)
}

/// Measures the rows that share one placement, and thereby their topologies.
fn measure_group(
    args: &Args,
    placement: Placement,
    rows: &[&Row],
    shared: &Shared,
    generator: &Generator,
    results: &mut Results,
) -> Result<()> {
    let ways = |path: Path| {
        let wanted = args.paths.is_empty() || args.paths.contains(&path);
        let both = [false, true].map(|acceleration| Way { path, acceleration });
        both.into_iter().filter(move |way| {
            let asked = args.acceleration.is_none_or(|only| only == way.acceleration);
            wanted && if path.is_mesh() { asked } else { !way.acceleration }
        })
    };
    let mut topologies: BTreeMap<Way, Topology> = BTreeMap::new();
    let mut broken: BTreeMap<Way, String> = BTreeMap::new();
    for path in rows.iter().flat_map(|row| row.paths).copied().flat_map(ways) {
        if topologies.contains_key(&path) || broken.contains_key(&path) {
            continue;
        }
        match Topology::build(path, placement, shared) {
            Ok(topology) => drop(topologies.insert(path, topology)),
            Err(error) => {
                eprintln!("{path} cannot be built: {error:#}");
                broken.insert(path, format!("{error:#}"));
            }
        }
    }
    for row in rows {
        println!("{row}");
        let paths: Vec<Way> = row.paths.iter().copied().flat_map(ways).collect();
        let mut samples: BTreeMap<Way, Result<Vec<Sample>, String>> = BTreeMap::new();
        // The first round only warms up.
        for round in 0..=args.runs {
            for path in &paths {
                let (Some(topology), Ok(so_far)) =
                    (topologies.get(path), samples.entry(*path).or_insert_with(|| Ok(Vec::new())))
                else {
                    continue;
                };
                let seconds = if round == 0 { 1 } else { args.seconds };
                match generator.run(row, &topology.client, topology.address, topology.proxies(), seconds) {
                    Ok(sample) if round > 0 => so_far.push(sample),
                    Ok(_) => {}
                    Err(error) => drop(samples.insert(*path, Err(format!("{error:#}")))),
                }
            }
        }
        for path in paths {
            match samples.remove(&path) {
                Some(Ok(samples)) if !samples.is_empty() => {
                    let measured = Measured::of(row, path, &samples);
                    println!("{}", report::progress(row, &measured));
                    results.rows.push(measured);
                }
                Some(Err(reason)) => {
                    println!("  {path:<20}failed: {reason}");
                    results.failed.push(format!("{row} {path}: {reason}"));
                }
                _ => {
                    let reason = broken.get(&path).map_or("no run", String::as_str);
                    results.failed.push(format!("{row} {path}: {reason}"));
                }
            }
        }
    }
    Ok(())
}

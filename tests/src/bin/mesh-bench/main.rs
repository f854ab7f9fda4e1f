//! `mesh-bench`: measures mesh-node beside the sidecar mode that it replaces. Run by `cargo xtask
//! bench`, which builds everything first.
//!
//! All paths of a row are up at the same time and take turns, run by run, so that a machine that slows
//! down slows all of them. Only ratios within one run mean anything; the ratio of the sidecar pair to
//! no mesh is therefore printed first.

mod bootstrap;
mod bulk;
mod certificates;
mod cost;
mod flame;
mod flame_page;
mod flame_svg;
mod grpc;
mod load;
mod machine;
mod plot;
mod report;
mod results;
mod rows;
mod scale;
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
    /// Only rows of these scenarios, or whose scenario contains one of these; nothing is written to the results folder
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
    #[arg(long, global = true, default_value_t = STANDARD_RUNS)]
    runs: usize,
    /// Seconds of each run
    #[arg(long, global = true, default_value_t = STANDARD_SECONDS)]
    seconds: u32,
    /// Instead of measuring, draw where the proxies' processor time goes: a flame graph of each path into the
    /// results folder, by `perf`
    #[arg(long)]
    flame: bool,
    /// Folder of latest.json, table.md and plot.svg
    #[arg(long, global = true, default_value = "bench/results")]
    output: PathBuf,
    /// The Envoy program
    #[arg(long, global = true, default_value = ".local/envoy/envoy")]
    envoy: PathBuf,
}

/// What this program does beside measuring: most are programs that run inside its pods.
#[derive(Subcommand)]
enum Helper {
    /// Write table.md and plot.svg again from latest.json
    Render,
    /// Many pods with many services from one xDS server, beside Envoy: memory, and what pushes cost (needs Go)
    Scale(scale::Args),
    /// Measure what HTTP filters and a long configuration cost a request; written to cost.json
    Cost,
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
const STANDARD_SECONDS: u32 = 2;

fn main() {
    let args = Args::parse();
    let outcome = match &args.helper {
        Some(Helper::BulkSink { listen }) => bulk::sink(*listen),
        Some(Helper::BulkSend { to, seconds }) => bulk::send(*to, *seconds)
            .and_then(|sent| serde_json::to_string(&sent).context("writing the report"))
            .map(|line| println!("{line}")),
        Some(Helper::GrpcServer { listen }) => grpc::serve(*listen),
        Some(Helper::Scale(scale)) => scale::run(scale, &args.envoy, &args.output),
        Some(Helper::Cost) => measure_cost(&args),
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
    if args.flame {
        let drawn = draw(args, &rows, &shared, &generator);
        fs::remove_dir_all(&folder).ok();
        return drawn;
    }
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

fn measure_cost(args: &Args) -> Result<()> {
    run::prepare()?;
    let folder = run::work_dir();
    let outcome = cost::measure(&folder, &args.output, args.runs, args.seconds);
    fs::remove_dir_all(&folder).ok();
    outcome
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
    let names: Vec<&str> = rows.iter().map(|row| row.scenario).collect();
    // A whole name means that scenario alone.
    let named =
        |scenario: &str, part: &str| scenario == part || (!names.contains(&part) && scenario.contains(part));
    rows.retain(|row| {
        (args.rows.is_empty() || args.rows.iter().any(|part| named(row.scenario, part)))
            && (args.connections.is_empty() || args.connections.contains(&row.connections))
    });
    if rows.is_empty() {
        let names: Vec<String> = STANDARD.iter().chain(&FULL).map(ToString::to_string).collect();
        bail!("no row is named so; the rows are: {}", names.join(", "));
    }
    Ok(rows)
}

/// The paths of a row that are asked for.
fn ways(args: &Args, row: &Row) -> Vec<Way> {
    let of = |path: &Path| {
        let path = *path;
        let wanted = args.paths.is_empty() || args.paths.contains(&path);
        let both = path.accelerations().iter().map(move |&acceleration| Way { path, acceleration });
        both.filter(move |way| {
            let asked = args.acceleration.is_none_or(|only| only == way.acceleration);
            wanted && (asked || !path.is_mesh())
        })
    };
    row.paths.iter().flat_map(of).collect()
}

/// What [`draw`] looks at unless rows are named: requests through either layer.
const DRAWN: [(&str, u32); 2] = [("same-node-http1", 64), ("same-node-tcp", 64)];

/// Draws a flame graph of the proxies of each row and path.
fn draw(args: &Args, rows: &[Row], shared: &Shared, generator: &Generator) -> Result<()> {
    let chosen = !args.rows.is_empty() || !args.connections.is_empty();
    let mut items = Vec::new();
    for row in rows.iter().filter(|row| chosen || DRAWN.contains(&(row.scenario, row.connections))) {
        for way in ways(args, row).into_iter().filter(|way| way.path.is_mesh() || !args.paths.is_empty()) {
            let topology = Topology::build(way, row.placement, shared)?;
            let load =
                |seconds| generator.run(row, &topology.client, topology.address, topology.proxies(), seconds);
            load(1)?;
            let recording = flame::Recording::start(topology.proxies(), args.seconds, &shared.folder)?;
            load(args.seconds + 1)?;
            let stacks = recording.finish()?;
            let name = format!("flame {} {way}.svg", row.scenario);
            let name = name.replace("accel.", "accelerated").replace(' ', "-");
            let (file, title) = (args.output.join(&name), format!("{row}, {way}"));
            fs::create_dir_all(&args.output).context("making the results folder")?;
            fs::write(&file, flame_svg::draw(&title, &stacks))
                .with_context(|| format!("cannot write {}", file.display()))?;
            items.push(flame_page::item(&title, &name, way, &stacks));
            println!("{title}: {}", file.display());
            let (whole, own) = (flame::top(&stacks, true, TOP), flame::top(&stacks, false, TOP));
            for ((whole_share, whole), (own_share, own)) in whole.iter().zip(&own) {
                println!(
                    "  {:>5.1}% {own:<60.60} {:>5.1}% {whole:.90}",
                    own_share * 100.0,
                    whole_share * 100.0
                );
            }
        }
    }
    if !chosen && args.paths.is_empty() && args.acceleration.is_none() {
        fs::write(args.output.join("flames.md"), flame_page::page(&items))
            .context("cannot write flames.md")?;
    }
    Ok(())
}

/// Functions that are printed of each flame graph, by themselves and with what they call.
const TOP: usize = 40;

/// Rounds before those that count. One is enough but where few connections meet acceleration: how the
/// applications use their sockets is learned from their first three, once in their lives.
const WARM_UP: usize = 5;

/// So many connections in one round are enough to learn from.
const MANY: u32 = 8;

/// Measures the rows that share one placement, and thereby their topologies.
fn measure_group(
    args: &Args,
    placement: Placement,
    rows: &[&Row],
    shared: &Shared,
    generator: &Generator,
    results: &mut Results,
) -> Result<()> {
    let mut topologies: BTreeMap<Way, Topology> = BTreeMap::new();
    let mut broken: BTreeMap<Way, String> = BTreeMap::new();
    for path in rows.iter().flat_map(|row| ways(args, row)) {
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
        let paths = ways(args, row);
        let mut samples: BTreeMap<Way, Result<Vec<Sample>, String>> = BTreeMap::new();
        // The first rounds only warm up.
        for round in 0..WARM_UP + args.runs {
            for path in &paths {
                let (Some(topology), Ok(so_far)) =
                    (topologies.get(path), samples.entry(*path).or_insert_with(|| Ok(Vec::new())))
                else {
                    continue;
                };
                if round > 0 && round < WARM_UP && !(path.acceleration && row.connections < MANY) {
                    continue;
                }
                let seconds = if round < WARM_UP { 1 } else { args.seconds };
                match generator.run(row, &topology.client, topology.address, topology.proxies(), seconds) {
                    Ok(sample) if round >= WARM_UP => so_far.push(sample),
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

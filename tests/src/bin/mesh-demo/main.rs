//! `mesh-demo`: Bookinfo on two nodes, first without a mesh and then with mesh-node on both. Run by
//! `cargo xtask demo`, which builds everything first.
//!
//! Everything shown is measured while it runs: what the kernel programs steered, how a weighted split
//! came out before and after a push from the xDS server, when the pages showed it, and what the same requests
//! cost with no mesh. Nothing is left behind.

mod client;
mod resources;
mod scene;
mod tables;

use std::net::SocketAddr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};

use mesh_tests::run;

use client::Report;
use scene::{PRODUCTPAGE, Pushed, Scene, Split, read_report};

#[derive(Parser)]
#[command(about = "Bookinfo on two nodes, without a mesh and with mesh-node")]
struct Args {
    #[command(subcommand)]
    helper: Option<Helper>,
    /// Stay up afterwards, and print what to try; ends with Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 4)]
    seconds: u64,
}

/// Programs of the demo that run inside its pods.
#[derive(Subcommand)]
enum Helper {
    /// Ask for pages and report
    #[command(hide = true)]
    Client {
        to: SocketAddr,
        connections: usize,
        seconds: u64,
        /// Report when each page came
        #[arg(long)]
        times: bool,
    },
}

/// The client's connections at a time.
const CONNECTIONS: usize = 8;
const EVEN: Split = [50, 0, 50];
const CANARY: Split = [99, 0, 1];

fn main() {
    let args = Args::parse();
    let outcome = match args.helper {
        Some(Helper::Client { to, connections, seconds, times }) => {
            client::run(to, connections, seconds, times)
                .and_then(|report| serde_json::to_string(&report).context("writing the report"))
                .map(|line| println!("{line}"))
        }
        None => demo(&args),
    };
    if let Err(error) = outcome {
        eprintln!("demo: {error:#}");
        std::process::exit(1);
    }
}

fn demo(args: &Args) -> Result<()> {
    let started = Instant::now();
    ensure!(args.seconds > 0, "--seconds must be at least 1");
    run::prepare()?;
    heading("Two nodes, Bookinfo's pods on both, no mesh yet");
    let mut scene = Scene::build()?;
    print!("{PICTURE}");
    let plain = scene.run_client(CONNECTIONS, args.seconds)?;
    println!(
        "  {} pages for the client through kube-proxy's rules, {} failed. Which version of reviews a page\n  \
         shows is decided once per connection:\n",
        plain.pages, plain.failed
    );
    tables::print_split(&plain);

    heading("A mesh-node on each node takes over: reviews split 50/50 between v1 and v3");
    scene.start_mesh(EVEN)?;
    println!(
        "  Each pod has a sidecar of its own in the mesh-node of its node, which asks the xDS server at {}\n  \
         for its configuration (delta ADS). How many resources each has, and the version that it took:\n",
        scene.xds.address()
    );
    tables::print_standings(&scene);
    let even = measured(&scene, args.seconds)?;
    println!("\n  {} pages, decided for each request:\n", even.pages);
    tables::print_split(&even);

    heading("While pages are asked for, the xDS server pushes version 2: 99 % v1, 1 % v3");
    let mut running = scene.start_client(CONNECTIONS, args.seconds, true)?;
    std::thread::sleep(Duration::from_secs(args.seconds) / 4); // the load before the change
    let pushed = scene.push_split(CANARY)?;
    let during = checked(&scene, read_report(&mut running)?)?;
    print_push(&scene, &pushed, &during);
    let canary = measured(&scene, args.seconds)?;
    println!("  Afterwards:\n");
    tables::print_split(&canary);

    heading("A process of the client pod in a control group of its own, where the connect hook is not");
    let before = tables::steering(&scene.mesh)?;
    let foreign = checked(&scene, scene.run_foreign_client(1, 1)?)?;
    println!("  {} pages: TC steered the connection instead.", foreign.pages);

    heading("What was steered, by which hook");
    let counts = tables::steering(&scene.mesh)?;
    ensure!(!before.is_empty(), "mesh-node's statistics show no steering at all");
    tables::print_steering(&counts);

    heading("What the same requests cost");
    tables::print_cost(&[("no mesh", &plain), ("mesh-node on both nodes, 50/50", &even)]);
    println!(
        "\n  A page is three or four requests between pods, each through an outbound and an inbound half.\n  \
         For figures beside Envoy sidecars: cargo xtask bench"
    );
    if args.keep {
        stay(&mut scene)?;
    }
    drop(scene);
    println!("\nEverything is removed again. Took {} s.", started.elapsed().as_secs());
    Ok(())
}

/// What a push sent, when it was taken, and when pages showed it.
fn print_push(scene: &Scene, pushed: &Pushed, during: &Report) {
    let Pushed { at, version, acked: (first, last) } = pushed;
    let ms = |time: &Duration| time.as_secs_f64() * 1000.0;
    let sent: usize = scene.xds.standings().values().filter(|s| is_of(s, version)).map(|s| s.last.0).sum();
    let sidecars = scene.pods().count();
    println!(
        "  {sent} resources sent, one route table to each of {sidecars} sidecars; ACKs after {:.1} to {:.1} ms.",
        ms(first),
        ms(last)
    );
    let at = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    if let Some(shown) = during.became_rare_us() {
        let after = Duration::from_micros(shown).saturating_sub(at);
        println!("  Pages showed it {:.1} ms after the push.", ms(&after));
    }
    println!("  {} pages during the change, {} failed.\n", during.pages, during.failed);
}

fn is_of(standing: &mesh_tests::xds::Standing, version: &str) -> bool {
    standing.sent.as_ref().is_some_and(|(sent, _)| sent == version)
}

const PICTURE: &str = "
      node 1                                     node 2
   ┌───────────────────────────────────┐      ┌───────────────────────────────────┐
   │ client ──▶ productpage-v1         │      │   details-v1                      │
   │            reviews-v1  ratings-v1 │══════│   reviews-v2  reviews-v3          │
   └───────────────────────────────────┘ link └───────────────────────────────────┘

";

fn heading(text: &str) {
    println!("\n── {text}\n");
}

/// A measurement through the mesh, in which no request may fail.
fn measured(scene: &Scene, seconds: u64) -> Result<Report> {
    checked(scene, scene.run_client(CONNECTIONS, seconds)?)
}

fn checked(scene: &Scene, report: Report) -> Result<Report> {
    if report.failed == 0 && report.pages > 0 {
        return Ok(report);
    }
    let mut reasons = vec![report.first_failure.unwrap_or_else(|| "no page came".to_owned())];
    if let Ok(counts) = tables::steering(&scene.mesh) {
        reasons.extend(counts.into_iter().map(|((hook, reason), row)| format!("{hook} {reason}: {row:?}")));
    }
    bail!("{} of {} pages failed through the mesh: {}", report.failed, report.pages, reasons.join("\n  "))
}

/// Prints what to try and waits for Ctrl-C.
fn stay(scene: &mut Scene) -> Result<()> {
    heading("Still up; things to try in another terminal");
    let client = scene.client.netns().name().to_owned();
    println!("  # A page through the mesh");
    println!("  ip netns exec {client} curl -s http://{PRODUCTPAGE}:{}/productpage\n", resources::PORT);
    println!("  # Change the weights of reviews, then ask again: the file is pushed when it is saved");
    println!("  $EDITOR {}", scene.resources_path().display());
    println!("\n  # What mesh-node knows and counts: also /clusters /config_dump /stats /logging");
    for node in &scene.nodes {
        println!(
            "  ip netns exec {} curl -s http://127.0.0.1:{}/listeners   # node {}",
            node.netns().name(),
            mesh_tests::mesh::ADMIN_PORT,
            node.index()
        );
    }
    println!("\n  # The pods");
    for pod in scene.pods() {
        println!("  ip netns exec {:<28} # {} {}", pod.netns().name(), pod.name(), pod.v4());
    }
    println!("\n  Ctrl-C removes everything.");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted.context("waiting for Ctrl-C"),
            () = push_edits(scene) => Ok(()),
        }
    })
}

/// Pushes the file of resources whenever it is saved.
async fn push_edits(scene: &mut Scene) {
    let saved =
        |scene: &Scene| std::fs::metadata(scene.resources_path()).and_then(|file| file.modified()).ok();
    let mut known = saved(scene);
    let mut step = tokio::time::interval(Duration::from_millis(200));
    loop {
        step.tick().await;
        let now = saved(scene);
        if now.is_none() || now == known {
            continue;
        }
        known = now;
        match scene.push_file() {
            Ok(()) => {
                // Answers come within milliseconds.
                step.tick().await;
                println!("\n  pushed:\n");
                tables::print_standings(scene);
                let book = scene.xds.standings();
                if let Some(reason) = book.values().find_map(|standing| standing.nacked.as_ref()) {
                    println!("\n  refused, the last good configuration serves: {reason}");
                }
            }
            Err(error) => println!("\n  not pushed: {error:#}"),
        }
    }
}

//! `cargo xtask bench scale`: one mesh-node with many pods beside Envoys, all told the same mesh by one
//! go-control-plane server over delta ADS.
//!
//! Every pod is an xDS node of its own, as under Istio. Measured are resident memory once everything is
//! in service, and for each kind of push the time from the server's first answer to the last
//! acknowledgement, and the processor time that the proxies spent on it. It asserts nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use mesh_tests::mesh::{ADMIN_PORT, MeshConfig, MeshNode};
use mesh_tests::netns::{HostCgroup, Node, Pod};
use mesh_tests::process::{self, Process};
use mesh_tests::run;

use crate::machine;
use crate::usage::{Usage, rss_mib};

/// How large the mesh is.
#[derive(clap::Args, Debug, Serialize)]
pub struct Args {
    /// Pods of mesh-node
    #[arg(long, default_value_t = 100)]
    pods: usize,
    /// Services that every pod is told of
    #[arg(long, default_value_t = 2000)]
    services: usize,
    /// Endpoints of each service
    #[arg(long, default_value_t = 5)]
    endpoints: usize,
}

/// Envoys that mesh-node is compared with.
const ENVOYS: usize = 2;
/// Everything of a push must have arrived within this time.
const PATIENCE: Duration = Duration::from_secs(300);
/// Nothing more comes after this long without an answer.
const QUIET: Duration = Duration::from_millis(1500);

/// What is pushed after the start.
#[derive(Clone, Copy)]
struct Push {
    name: &'static str,
    /// Services whose endpoints are others.
    changed: usize,
    /// Connect timeout of all clusters: another one makes all clusters others.
    timeout_s: u32,
}

const PUSHES: [Push; 3] = [
    Push { name: "endpoints of one service", changed: 1, timeout_s: 10 },
    Push { name: "endpoints of a hundred services", changed: 100, timeout_s: 10 },
    Push { name: "every cluster", changed: 100, timeout_s: 11 },
];

#[derive(Serialize)]
struct Report<'a> {
    date: String,
    machine: std::collections::BTreeMap<String, String>,
    versions: std::collections::BTreeMap<String, String>,
    size: &'a Args,
    subjects: Vec<Subject>,
}

/// What was measured of one kind of proxy.
#[derive(Serialize)]
struct Subject {
    name: String,
    streams: usize,
    /// Before the server knew anything.
    empty_rss_mib: f64,
    rss_mib: f64,
    after_pushes_rss_mib: f64,
    pushes: Vec<Measured>,
}

#[derive(Serialize)]
struct Measured {
    push: String,
    /// Responses of the server.
    answers: u64,
    /// Milliseconds from the first response to the last acknowledgement.
    applied_ms: f64,
    /// Milliseconds from the push to the first response: the server's own work.
    server_ms: f64,
    /// Of all proxies together.
    cpu_s: f64,
}

pub fn run(args: &Args, envoy: &Path, output: &Path) -> Result<()> {
    ensure!(args.pods > 0 && args.pods <= 250, "--pods: 1 to 250 fit on one node");
    run::prepare()?;
    let envoy = envoy.canonicalize().context("no Envoy: run `cargo xtask setup`")?;
    let program = build_server()?;
    let node = Node::new("scale", 1)?;
    let mut subjects = Vec::new();
    {
        let mut server = Server::start(&node, &program)?;
        let envoys = (0..ENVOYS).map(|index| Envoy::start(&node, &envoy, index, server.xds));
        let envoys: Vec<Envoy> = envoys.collect::<Result<_>>()?;
        let pids: Vec<u32> = envoys.iter().map(|envoy| envoy.process.id()).collect();
        subjects.push(measure(&mut server, args, "Envoy x2", ENVOYS, &pids)?);
    }
    {
        let mut server = Server::start(&node, &program)?;
        let pods: Vec<Pod> = (0..args.pods).map(|n| node.pod(&format!("p{n}"))).collect::<Result<_>>()?;
        let config = MeshConfig {
            bootstrap: bootstrap(server.xds, ADMIN_PORT, "node").to_string(),
            ..MeshConfig::default()
        };
        let config = config.setting("virtual_sidecars", true);
        let pods: Vec<&Pod> = pods.iter().collect();
        let mut mesh = MeshNode::start(&node, &config, &pods)?;
        let pid = mesh.process()?.id();
        subjects.push(measure(&mut server, args, "mesh-node", args.pods, &[pid])?);
    }
    let report = Report {
        date: machine::date()?,
        machine: machine::describe(),
        versions: machine::versions(Some(&envoy)),
        size: args,
        subjects,
    };
    let table = table(&report);
    println!("\n{table}");
    fs::create_dir_all(output).context("making the results folder")?;
    fs::write(output.join("scale.json"), serde_json::to_string_pretty(&report)? + "\n")?;
    fs::write(output.join("scale.md"), table)?;
    println!("written to {}: scale.json, scale.md", output.display());
    Ok(())
}

fn measure(server: &mut Server, args: &Args, name: &str, streams: usize, pids: &[u32]) -> Result<Subject> {
    println!("{name}: {streams} streams");
    server.settled(0)?;
    let empty_rss_mib = rss_mib(pids)?;
    let first = Push { name: "the whole mesh", changed: 0, timeout_s: 10 };
    let mut pushes = vec![server.push(args, first, streams, pids)?];
    let full = rss_mib(pids)?;
    for push in PUSHES {
        pushes.push(server.push(args, push, streams, pids)?);
    }
    let after_pushes_rss_mib = rss_mib(pids)?;
    Ok(Subject { name: name.to_owned(), streams, empty_rss_mib, rss_mib: full, after_pushes_rss_mib, pushes })
}

/// The xDS server and its clock.
struct Server {
    node: Node,
    _process: Process,
    xds: SocketAddr,
    control: SocketAddr,
    version: u32,
}

#[derive(serde::Deserialize)]
struct Progress {
    answers: u64,
    acknowledgements: u64,
    first_answer_us: u64,
    last_acknowledgement_us: u64,
}

impl Server {
    fn start(node: &Node, program: &Path) -> Result<Server> {
        let mut process = node.spawn(HostCgroup::System, Command::new(program))?;
        let line = process.line()?;
        let words: Vec<&str> = line.split(' ').collect();
        ensure!(words.len() == 4, "the xDS server says {line}");
        let (xds, control) = (words[1].parse()?, words[3].parse()?);
        Ok(Server { node: node.clone(), _process: process, xds, control, version: 0 })
    }

    fn push(&mut self, args: &Args, push: Push, streams: usize, pids: &[u32]) -> Result<Measured> {
        self.version += 1;
        let (version, services, endpoints) = (self.version, args.services, args.endpoints);
        let before = Usage::of(pids)?;
        self.request(
            "POST",
            &format!(
                "/mesh?version={version}&services={services}&endpoints={endpoints}&changed={}&timeout={}",
                push.changed, push.timeout_s
            ),
        )?;
        let progress = self.settled(streams as u64)?;
        let used = Usage::of(pids)?.since(before);
        let ms = |us: u64| us as f64 / 1000.0;
        let measured = Measured {
            push: push.name.to_owned(),
            answers: progress.answers,
            applied_ms: ms(progress.last_acknowledgement_us.saturating_sub(progress.first_answer_us)),
            server_ms: ms(progress.first_answer_us),
            cpu_s: used.cpu_s,
        };
        println!(
            "  {:<34}{:>6} answers, applied in {:>9.1} ms, {:>7.2} s of processor",
            measured.push, measured.answers, measured.applied_ms, measured.cpu_s
        );
        Ok(measured)
    }

    /// Waits until at least so many answers were acknowledged, and then nothing more comes.
    fn settled(&self, least: u64) -> Result<Progress> {
        let end = Instant::now() + PATIENCE;
        let (mut last, mut since) = (u64::MAX, Instant::now());
        loop {
            let progress: Progress = serde_json::from_str(&self.request("GET", "/progress")?)?;
            if progress.answers != last {
                (last, since) = (progress.answers, Instant::now());
            }
            let all = progress.acknowledgements >= progress.answers && progress.answers >= least;
            if all && since.elapsed() >= QUIET {
                return Ok(progress);
            }
            ensure!(
                Instant::now() < end,
                "only {} of {} answers were acknowledged, {least} are expected",
                progress.acknowledgements,
                progress.answers
            );
            std::thread::sleep(Duration::from_millis(50)); // the period of the poll
        }
    }

    fn request(&self, method: &str, path: &str) -> Result<String> {
        let control = self.control;
        self.node.netns().run(|| {
            let mut stream = TcpStream::connect(control)?;
            let head = format!("{method} {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n");
            stream.write_all(format!("{head}content-length: 0\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
            ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}\n{body}");
            Ok(body.to_owned())
        })?
    }
}

struct Envoy {
    process: Process,
}

impl Envoy {
    fn start(node: &Node, program: &Path, index: usize, xds: SocketAddr) -> Result<Envoy> {
        let mut command = Command::new(program);
        let port = 15101 + u16::try_from(index)?;
        let name = format!("sidecar~10.244.1.{index}~envoy-{index}.default~default.svc.cluster.local");
        command.args(["--config-yaml", &bootstrap(xds, port, &name).to_string()]);
        // As pilot-agent starts it.
        command.args(["--concurrency", "2", "--disable-hot-restart", "-l", "warning"]);
        Ok(Envoy { process: node.spawn(HostCgroup::System, command)? })
    }
}

fn build_server() -> Result<PathBuf> {
    let program = process::binary("mesh-bench")?.with_file_name("xds-server");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/xds-server");
    let built = Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(sources).status();
    ensure!(built.context("this bench needs Go 1.24 in PATH")?.success(), "go build failed (see above)");
    Ok(program)
}

fn bootstrap(xds: SocketAddr, admin: u16, id: &str) -> Value {
    let address = |of: SocketAddr| json!({ "socket_address": { "address": of.ip().to_string(), "port_value": of.port() } });
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({
        "node": { "id": id, "cluster": "scale" },
        "admin": { "address": address(([127, 0, 0, 1], admin).into()) },
        "dynamic_resources": {
            "ads_config": { "api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }] },
            "cds_config": ads, "lds_config": ads,
        },
        "static_resources": { "clusters": [{
            "name": "xds",
            "typed_extension_protocol_options": { options: {
                "@type": format!("type.googleapis.com/{options}"),
                "explicit_http_config": { "http2_protocol_options": {} } } },
            "load_assignment": { "cluster_name": "xds", "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": address(xds) } }] }] },
        }] },
    })
}

fn table(report: &Report) -> String {
    let Args { pods, services, endpoints } = report.size;
    let mut out = format!(
        "# {pods} pods, {services} services of {endpoints} endpoints\n\n\
         One go-control-plane server, delta ADS, a stream for each pod and each Envoy; {}.\n\n\
         | | {} |\n|---|{}\n",
        report.date,
        report
            .subjects
            .iter()
            .map(|s| format!("{} ({} streams)", s.name, s.streams))
            .collect::<Vec<_>>()
            .join(" | "),
        "---:|".repeat(report.subjects.len()),
    );
    let mut row = |name: &str, of: &dyn Fn(&Subject) -> String| {
        let cells: Vec<String> = report.subjects.iter().map(of).collect();
        out += &format!("| {name} | {} |\n", cells.join(" | "));
    };
    row("resident memory before, MiB", &|s| format!("{:.1}", s.empty_rss_mib));
    row("resident memory with the mesh, MiB", &|s| format!("{:.1}", s.rss_mib));
    row("resident memory after the pushes, MiB", &|s| format!("{:.1}", s.after_pushes_rss_mib));
    for index in 0..=PUSHES.len() {
        let name = report.subjects[0].pushes[index].push.clone();
        row(&format!("{name}: first answer to last acknowledgement, ms"), &|s| {
            format!("{:.1}", s.pushes[index].applied_ms)
        });
        row(&format!("{name}: processor time, s"), &|s| format!("{:.2}", s.pushes[index].cpu_s));
    }
    out
}

//! Programs in other languages, each with the sockets of its own runtime, transfer to and from each other
//! (`tests/peers/`). `MESH_ROUNDS` has all of them do so again and again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{MeshConfig, MeshNode};
use mesh_tests::netns::{Node, Pod};
use mesh_tests::process::Process;
use mesh_tests::{need_root, process, run};

use crate::stage::{pod, splicing_is_seen};

const PORT: u16 = 9400;
const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");
/// Bytes up and down, one connection each; the first few are those that the proxy learns from.
const SIZES: [&str; 12] = [
    "1:1",
    "100:1000",
    "1000:100",
    "0:5",
    "4096:16384",
    "1:1",
    "65536:200000",
    "1048576:1",
    "1:1048576",
    "300000:1048576",
    "8388608:1000",
    "8388608:8388608",
];

/// A program, and whether it uses its sockets as event loops do.
#[derive(Clone, Copy)]
struct Peer {
    name: &'static str,
    tool: &'static str,
    non_blocking: bool,
}

const fn peer(name: &'static str, tool: &'static str, non_blocking: bool) -> Peer {
    Peer { name, tool, non_blocking }
}

const ALL: [Peer; 6] = [
    peer("asyncio", "python3", true),
    peer("python-threads", "python3", false),
    peer("node", "node", true),
    peer("go", "go", true),
    peer("java-nio", "java", true),
    peer("java-threads", "java", false),
];

/// Where the programs that need it were compiled.
struct Built(PathBuf);

impl Built {
    fn new(peers: &[Peer]) -> Result<Built> {
        let folder = run::work_dir().join(run::unique("peers"));
        std::fs::create_dir_all(&folder)?;
        let source = Path::new(PEERS);
        if peers.iter().any(|peer| peer.tool == "go") {
            let mut command = Command::new("go");
            command.args(["build", "-o"]).arg(folder.join("peer-go")).arg(source.join("peer.go"));
            process::output_of(command.env("CGO_ENABLED", "0"), None)?;
        }
        if peers.iter().any(|peer| peer.tool == "java") {
            let mut command = Command::new("javac");
            command.arg("-d").arg(&folder);
            process::output_of(
                command.args(["PeerNio.java", "PeerBlocking.java"]).current_dir(source),
                None,
            )?;
        }
        Ok(Built(folder))
    }

    fn command(&self, peer: Peer) -> Command {
        let script = |tool: &str, file: &str| {
            let mut command = Command::new(tool);
            command.arg(Path::new(PEERS).join(file));
            command
        };
        let class = |name: &str| {
            let mut command = Command::new("java");
            command.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp"]);
            command.arg(&self.0).arg(name);
            command
        };
        match peer.name {
            "asyncio" => script("python3", "peer_asyncio.py"),
            "python-threads" => script("python3", "peer_blocking.py"),
            "node" => script("node", "peer_node.js"),
            "go" => Command::new(self.0.join("peer-go")),
            "java-nio" => class("PeerNio"),
            _ => class("PeerBlocking"),
        }
    }
}

/// Those whose tools are here; in CI all must be.
fn present() -> Result<Vec<Peer>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let here = |tool: &str| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    let (present, missing): (Vec<Peer>, Vec<Peer>) = ALL.into_iter().partition(|peer| here(peer.tool));
    for peer in &missing {
        eprintln!("SKIPPED: {}: no {} on PATH; `cargo xtask setup` installs it", peer.name, peer.tool);
    }
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    ensure!(missing.is_empty() || !in_ci, "SKIPPED in CI: tools of {} peers are missing", missing.len());
    Ok(present)
}

/// A program with a pod of its own as a server and another as a client: what is known of how sockets are used is
/// known by executable and port.
struct Placed {
    peer: Peer,
    client: Pod,
    server: Pod,
}

fn serve(pod: &Pod, mut command: Command, args: &[&str]) -> Result<Process> {
    command.args(args);
    let mut process = pod.spawn(command)?;
    let line = process.line_within(Duration::from_secs(60))?;
    ensure!(line == "listening", "a server says {line:?}");
    Ok(process)
}

fn transfer(pod: &Pod, mut command: Command, to: SocketAddr) -> Result<()> {
    command.args(["client", &to.ip().to_string(), &to.port().to_string()]).args(SIZES);
    let line = pod.spawn(command)?.line_within(Duration::from_secs(120))?;
    ensure!(line == format!("ok {}", SIZES.len()), "the client says {line:?}");
    Ok(())
}

fn at(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.v4().into(), PORT)
}

#[test]
fn programs_of_every_language_exchange_whole_streams_with_all_others() -> Result<()> {
    need_root!();
    let peers = present()?;
    let node = Node::new("node", 1)?;
    let built = Built::new(&peers)?;
    let (mut placed, mut processes) = (Vec::new(), Vec::new());
    for peer in peers {
        let client = node.pod(&format!("client-{}", peer.name))?;
        let server = node.pod(&format!("server-{}", peer.name))?;
        processes.push(serve(&server, built.command(peer), &["server", &PORT.to_string()])?);
        placed.push(Placed { peer, client, server });
    }
    let pods: Vec<&Pod> = placed.iter().flat_map(|placed| [&placed.client, &placed.server]).collect();
    let mesh = MeshNode::start(&node, &MeshConfig::default().accelerated(), &pods)?;
    let rounds = std::env::var("MESH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let each = |from: &Placed| {
        (0..rounds).flat_map(|_| &placed).try_for_each(|to| {
            transfer(&from.client, built.command(from.peer), at(&to.server))
                .with_context(|| format!("{} to {}", from.peer.name, to.peer.name))
        })
    };
    let each = &each;
    let outcome = std::thread::scope(|scope| {
        let clients: Vec<_> = placed.iter().map(|from| scope.spawn(move || each(from))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client's thread"))
    });
    for (Placed { peer, .. }, process) in placed.iter().zip(&mut processes) {
        ensure!(process.is_running(), "the server {} ended: {}", peer.name, process.errors());
    }
    outcome?;
    let page = mesh.get("/acceleration")?.1;
    for Placed { peer, client, server } in &placed {
        let fact = |pod: &Pod, fact: &str| {
            page.lines().any(|line| line.starts_with(&format!("default/{}::{fact}", pod.name())))
        };
        ensure!(
            fact(server, "flows.accelerated::") == peer.non_blocking,
            "connections to {}:\n{page}",
            peer.name
        );
        // Of the executable that its clients are.
        let known = format!("default/{}::client ", client.name());
        let never = page.lines().any(|line| line.starts_with(&known) && line.contains("::tcp_blocking::"));
        ensure!(never != peer.non_blocking, "connections of {}:\n{page}", peer.name);
    }
    Ok(())
}

/// A relay in Go copies by splice, which finds nothing of what came past TCP.
#[test]
fn a_relay_that_splices_passes_everything_on() -> Result<()> {
    need_root!();
    let peers: Vec<Peer> = present()?.into_iter().filter(|peer| peer.name == "go").collect();
    let Some(go) = peers.first().copied() else { return Ok(()) };
    let built = Built::new(&peers)?;
    let node = Node::new("node", 1)?;
    let seen = splicing_is_seen(&node)?;
    let (client, relay, server) = (node.pod("client")?, pod(&node, "relay", seen)?, node.pod("server")?);
    let port = PORT.to_string();
    let _server = serve(&server, built.command(go), &["server", &port])?;
    let _relay = serve(&relay, built.command(go), &["relay", &port, &at(&server).to_string()])?;
    let mesh = MeshNode::start(&node, &MeshConfig::default().accelerated(), &[&client, &relay, &server])?;
    for round in 0..3 {
        transfer(&client, built.command(go), at(&relay)).with_context(|| format!("round {round}"))?;
    }
    // Without a relay between them they are accelerated.
    transfer(&client, built.command(go), at(&server))?;
    ensure!(mesh.count("accel", "accelerated")? > 0.0, "nothing was accelerated");
    Ok(())
}

//! Hand-off: applications of one node send each other bytes past the proxy, and neither they nor who counts, limits
//! and ends connections can tell. `MESH_STREAMS` makes the transfers more.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::mesh::{MeshConfig, MeshNode, passthrough_bootstrap};
use mesh_tests::need_root;
use mesh_tests::netns::Pod;
use mesh_tests::peer::{Echoes, Streams, Turn, deaf, flood};
use mesh_tests::process::Process;

use crate::stage::{Stage, Way};

const STREAMS: u16 = 9200;
const ECHO: u16 = 9201;
const DEAF: u16 = 9202;
const OUT: &str = "tcp.PassthroughCluster";
const IN: &str = "tcp.InboundPassthroughCluster";

/// What a connection that is handed off may take of the proxy: twice two sockets that rest, two tasks, what is logged of
/// them. The pages that memory is taken in are counted too, so it differs by some hundred bytes between runs.
const MOST_BYTES: f64 = 4.5 * 1024.0;

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0u16; 8], port))
}

fn at(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(Way::V4.of(pod), port)
}

fn streams(seed: u64, count: u64) -> Streams {
    Streams { seed, count, concurrency: 8, blocking: false }
}

/// How many transfers a test makes.
fn amount(usual: u64) -> u64 {
    std::env::var("MESH_STREAMS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn handed_off(mesh: &MeshNode) -> Result<f64> {
    mesh.count("accel", "handed_off")
}

/// So many transfers that the sockets of both applications are known.
fn learn(stage: &Stage, to: SocketAddr) -> Result<()> {
    Streams { concurrency: 1, ..streams(1, 12) }.call(&stage.client, to)?.all_ok().map(drop)
}

/// Connections that are handed off, of a server whose connections the mesh knows; and how many bytes each has
/// exchanged.
fn echoes(stage: &Stage, mesh: &MeshNode, connections: usize) -> Result<(Echoes, usize)> {
    let to = at(&stage.server, ECHO);
    // The executable is known after a few, and the port.
    for _ in 0..6 {
        let mut few = Echoes::open(&stage.client, to, 1)?;
        few.take(Turn::Exchange(10))?;
        few.take(Turn::Exchange(10))?;
        few.take(Turn::HalfClose(10))?;
    }
    let before = handed_off(mesh)?;
    let mut echoes = Echoes::open(&stage.client, to, connections)?;
    let mut exchanged = 300;
    // The first is copied. What comes back is too, until the proxy has told that nothing is on its way, which it may
    // be late to do.
    for _ in 0..3 {
        echoes.take(Turn::Exchange(100))?;
    }
    let wanted = 2.0 * connections as f64;
    for _ in 0..200 {
        if handed_off(mesh)? - before == wanted {
            return Ok((echoes, exchanged));
        }
        echoes.take(Turn::Exchange(100))?;
        exchanged += 100;
    }
    bail!("not all of {connections} are handed off both ways:\n{}", mesh.get("/acceleration")?.1)
}

fn begin() -> Result<(Stage, MeshNode, Process)> {
    begin_with(&MeshConfig::default())
}

fn begin_with(config: &MeshConfig) -> Result<(Stage, MeshNode, Process)> {
    let stage = Stage::routed()?;
    let mesh = stage.mesh(&config.clone().handed_off(), &[&stage.client, &stage.server])?;
    let server = Echoes::serve(&stage.server, any(ECHO))?;
    Ok((stage, mesh, server))
}

/// Bytes from the client and to it, as both halves count them.
fn counted(mesh: &MeshNode) -> Result<[[u64; 2]; 2]> {
    let of = |half: &str| -> Result<[u64; 2]> {
        let stat = |name: &str| mesh.stat(&format!("{half}.downstream_cx_{name}_bytes_total"));
        Ok([stat("rx")?, stat("tx")?])
    };
    Ok([of(OUT)?, of(IN)?])
}

fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds()? {
        ensure!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(50)); // the period of the poll
    }
    Ok(())
}

#[test]
fn streams_that_are_handed_off_are_byte_for_byte_those_of_tcp() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let mesh = stage.mesh(&MeshConfig::default().handed_off(), &[&stage.client, &stage.server])?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    let to = at(&stage.server, STREAMS);
    learn(&stage, to)?;
    let (before, count) = (handed_off(&mesh)?, amount(400));
    streams(20_000, count).call(&stage.client, to)?.all_ok()?;
    let flows = handed_off(&mesh)? - before;
    ensure!(flows >= 0.3 * count as f64, "only {flows} ends of {count} transfers sent anything straight");
    let six = SocketAddr::new(Way::V6.of(&stage.server), STREAMS);
    streams(5, 40).call(&stage.client, six)?.all_ok()?;
    // Nothing of connections that ended is left.
    wait_until("directions are left", || Ok(entries(&mesh.pins().join("HANDED_OFF"))? == 0))
}

fn entries(pin: &Path) -> Result<usize> {
    let output = std::process::Command::new("bpftool").args(["map", "dump", "pinned"]).arg(pin).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains("key")).count())
}

#[test]
fn handing_off_and_back_at_any_moment_loses_nothing() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let mesh = stage.mesh(&MeshConfig::default().handed_off(), &[&stage.client, &stage.server])?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    let to = at(&stage.server, STREAMS);
    learn(&stage, to)?;
    let before = handed_off(&mesh)?;
    let running = streams(40_000, amount(600)).begin(&stage.client, to)?;
    let mut moments = fastrand::Rng::with_seed(7);
    for turn in 0..20 {
        // Transfers run meanwhile.
        std::thread::sleep(Duration::from_millis(moments.u64(5..200)));
        let on = if turn % 2 == 0 { "off" } else { "on" };
        ensure!(mesh.admin("POST", &format!("/acceleration/hand_off?enable={on}"))?.0 == 200);
    }
    running.finish(Duration::from_secs(3600))?.all_ok()?;
    ensure!(handed_off(&mesh)? > before, "nothing was handed off");
    Ok(())
}

#[test]
fn transfers_begun_before_enrolment_lose_nothing_where_connections_are_handed_off() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let mut mesh = stage.mesh(&MeshConfig::default().handed_off(), &[])?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    let running = streams(60_000, amount(200)).begin(&stage.client, at(&stage.server, STREAMS))?;
    mesh.enrol(&[&stage.client, &stage.server])?;
    running.finish(Duration::from_secs(3600))?.all_ok().map(drop)
}

#[test]
fn every_byte_that_skips_the_proxy_is_counted_once_in_each_half() -> Result<()> {
    need_root!();
    let (stage, mut mesh, _server) = begin()?;
    let before = counted(&mesh)?;
    let (mut echoes, exchanged) = echoes(&stage, &mesh, 3)?;
    let sizes: Vec<usize> = (0..50).map(|turn| 1 + turn * 331).collect();
    for size in &sizes {
        echoes.take(Turn::Exchange(*size))?;
    }
    // Of those that taught the mesh, of the first exchanges, and of these.
    let bytes = (6 * 30 + 3 * (exchanged + sizes.iter().sum::<usize>())) as u64;
    let expected = |before: [[u64; 2]; 2]| before.map(|half| half.map(|count| count + bytes));
    wait_until("what is open is not counted", || Ok(counted(&mesh)? == expected(before)))?;
    // The last bytes, and the end right behind them.
    echoes.take(Turn::HalfClose(1234))?;
    mesh.wait_stat("listener.0.0.0.0_15006.downstream_cx_active", |open| open == 0)?;
    mesh.wait_stat("listener.0.0.0.0_15001.downstream_cx_active", |open| open == 0)?;
    let now = expected(before).map(|half| half.map(|count| count + 3 * 1234));
    ensure!(counted(&mesh)? == now, "{:?}, not {now:?}", counted(&mesh)?);
    let straight = mesh.metric("mesh_accelerated_bytes_total", "")?;
    ensure!(straight >= 2.0 * 3.0 * sizes.iter().sum::<usize>() as f64, "only {straight} bytes skipped TCP");
    Ok(())
}

#[test]
fn an_idle_connection_that_is_handed_off_ends_in_time_and_a_busy_one_does_not() -> Result<()> {
    need_root!();
    let bootstrap =
        passthrough_bootstrap().replace(r#""stat_prefix""#, r#""idle_timeout":"2s","stat_prefix""#);
    let config = MeshConfig { bootstrap, ..MeshConfig::default() };
    let (stage, mesh, _server) = begin_with(&config)?;
    let (mut echoes, _) = echoes(&stage, &mesh, 2)?;
    let ended = || mesh.stat(&format!("{OUT}.idle_timeout"));
    let (before, begun) = (ended()?, Instant::now());
    while begun.elapsed() < Duration::from_secs(5) {
        echoes.take(Turn::Exchange(64))?;
        std::thread::sleep(Duration::from_millis(200)); // the pace of an application that is not idle
    }
    ensure!(ended()? == before, "a connection in use was ended as idle");
    echoes.take(Turn::Ended)?;
    ensure!(
        ended()? > before || mesh.stat(&format!("{IN}.idle_timeout"))? > 0,
        "what ended them is not told"
    );
    Ok(())
}

#[test]
fn a_killed_proxy_ends_the_connections_it_handed_off_at_both_ends() -> Result<()> {
    need_root!();
    let (stage, mut mesh, server) = begin()?;
    let (mut open, _) = echoes(&stage, &mesh, 5)?;
    mesh.kill_9();
    open.take(Turn::Ended)?;
    drop(open);
    // The server has heard it too, and serves the next process's connections.
    mesh.launch()?;
    echoes(&stage, &mesh, 2)?.0.take(Turn::HalfClose(500))?;
    drop(server);
    Ok(())
}

#[test]
fn a_listener_that_changes_takes_its_connections_back_and_a_pod_left_out_is_never_handed_off() -> Result<()> {
    need_root!();
    let (stage, mut mesh, _server) = begin()?;
    let (mut open, _) = echoes(&stage, &mesh, 1)?;
    let messages = |mesh: &MeshNode| mesh.metric("mesh_accelerated_messages_total", "");
    let straight = |mesh: &MeshNode, open: &mut Echoes| -> Result<f64> {
        let before = messages(mesh)?;
        open.take(Turn::Exchange(10))?;
        Ok(messages(mesh)? - before)
    };
    // One message each way: it is the application's that counts, and the proxy forwards none.
    ensure!(straight(&mesh, &mut open)? == 2.0, "more than the applications' messages went past TCP");
    mesh.set_bootstrap(
        &passthrough_bootstrap().replace(r#""stat_prefix""#, r#""idle_timeout":"600s","stat_prefix""#),
    )?;
    wait_until("the proxy carries nothing again", || Ok(straight(&mesh, &mut open)? > 2.0))?;
    open.take(Turn::HalfClose(10))?;
    drop(mesh);

    let stage = Stage::new(|spec| spec.annotation("mesh-node/hand-off", "off"))?;
    mesh = stage.mesh(&MeshConfig::default().handed_off(), &[&stage.client, &stage.server])?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    let to = at(&stage.server, STREAMS);
    learn(&stage, to)?;
    streams(1, 30).call(&stage.client, to)?.all_ok()?;
    ensure!(handed_off(&mesh)? == 0.0, "a pod that is left out was handed off");
    let page = mesh.get("/acceleration")?.1;
    ensure!(page.contains("hand_off::on") && page.contains("client::hand_off::off"), "{page}");
    Ok(())
}

#[test]
fn the_page_says_of_halves_that_are_copied_why() -> Result<()> {
    need_root!();
    let (stage, mesh, _server) = begin()?;
    // Nothing is known of this server yet.
    let mut first = Echoes::open(&stage.client, at(&stage.server, ECHO), 1)?;
    first.take(Turn::HalfClose(10))?;
    ensure!(mesh.count("accel", "kept_application")? >= 1.0, "{}", mesh.get("/acceleration")?.1);
    drop(mesh);
    // The server is no pod of the mesh: the other end of the outbound half is none of the proxy's.
    let mesh = stage.mesh(&MeshConfig::default().handed_off(), &[&stage.client])?;
    for _ in 0..8 {
        Echoes::open(&stage.client, at(&stage.server, ECHO), 1)?.take(Turn::HalfClose(10))?;
    }
    ensure!(mesh.count("accel", "kept_peer")? >= 1.0, "{}", mesh.get("/acceleration")?.1);
    ensure!(handed_off(&mesh)? == 0.0);
    Ok(())
}

#[test]
fn a_reader_that_never_reads_holds_little_of_what_skips_the_proxy() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let _mesh = stage.mesh(&MeshConfig::default().handed_off(), &[&stage.client, &stage.server])?;
    let _deaf = deaf(&stage.server, any(DEAF))?;
    let to = at(&stage.server, DEAF);
    // The first ones are learned from.
    for message in [100, 1000, 5000, 5000] {
        flood(&stage.client, to, message)?;
    }
    for message in [500, 20_000, 1 << 20] {
        let taken = flood(&stage.client, to, message)?;
        // Without a bound it is a gigabyte; six sockets by TCP hold some tens of MiB.
        ensure!(taken < 96 << 20, "{taken} bytes were taken in messages of {message}");
    }
    Ok(())
}

/// What a connection costs the proxy while it has nothing to do for it: both halves, with their four sockets.
/// `MESH_CONNECTIONS` makes them more.
#[test]
fn a_connection_that_is_handed_off_takes_little_of_the_proxy() -> Result<()> {
    need_root!();
    // A few at a time: what it takes to begin a connection is let go and used again.
    const FEW: usize = 50;
    let (stage, mut mesh, _server) = begin()?;
    let count = std::env::var("MESH_CONNECTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    let (mut open, mut bytes) = (Vec::new(), 0);
    let mut more = |mesh: &MeshNode| -> Result<()> {
        let (few, exchanged) = echoes(&stage, mesh, FEW)?;
        open.push(few);
        bytes += (6 * 30 + FEW * exchanged) as u64;
        // Sockets rest from when it was first seen that their bytes go past the proxy.
        wait_until("what is open is not counted", || Ok(counted(mesh)? == [[bytes; 2]; 2]))
    };
    for _ in 0..4 {
        more(&mesh)?;
    }
    let before = resident_kib(&mut mesh)?;
    for _ in 0..count / FEW {
        more(&mesh)?;
    }
    let each = (resident_kib(&mut mesh)? - before) as f64 * 1024.0 / count as f64;
    println!("a connection that is handed off takes {each:.0} bytes of the proxy");
    ensure!(each < MOST_BYTES, "{each:.0} bytes for each connection");
    drop(open);
    Ok(())
}

fn resident_kib(mesh: &mut MeshNode) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", mesh.process()?.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
    line.trim().trim_end_matches(" kB").parse().context("RssAnon")
}

//! Transfers drawn at random from a seed, every byte checked by both sides, accelerated or not, and while that
//! changes. `MESH_STREAMS` makes them more.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::mesh::{MeshConfig, MeshNode};
use mesh_tests::need_root;
use mesh_tests::netns::{Pod, PodSpec};
use mesh_tests::peer::{Place, Server, Streams, deaf, flood};

use crate::stage::{MAPS, Stage, maps_are_empty, switch};

pub const STREAMS: u16 = 9100;
const THREADS: u16 = 9101;
const DEAF: u16 = 9102;
const LINES: u16 = 9103;

pub fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0u16; 8], port))
}

pub fn at(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.v4().into(), port)
}

pub fn streams(seed: u64, count: u64) -> Streams {
    Streams { seed, count, concurrency: 8, blocking: false }
}

/// How many transfers a test makes.
fn amount(usual: u64) -> u64 {
    std::env::var("MESH_STREAMS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn accelerated(mesh: &MeshNode) -> Result<f64> {
    mesh.count("accel", "accelerated")
}

fn both(stage: &Stage, config: &MeshConfig) -> Result<MeshNode> {
    MeshNode::start(&stage.node, config, &[&stage.client, &stage.server])
}

/// So many transfers that the sockets of both applications are known, of which the first are not accelerated.
pub fn learn(stage: &Stage, to: SocketAddr) -> Result<()> {
    Streams { concurrency: 1, ..streams(1, 12) }.call(&stage.client, to)?.all_ok().map(drop)
}

#[test]
fn accelerated_streams_are_byte_for_byte_those_of_tcp() -> Result<()> {
    need_root!();
    let stage = Stage::new()?;
    let mesh = both(&stage, &MeshConfig::default().accelerated())?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    let to = at(&stage.server, STREAMS);
    learn(&stage, to)?;
    let (before, count) = (accelerated(&mesh)?, amount(400));
    streams(1000, count).call(&stage.client, to)?.all_ok()?;
    let flows = accelerated(&mesh)? - before;
    println!("{count} transfers, {flows} flows accelerated");
    // Three flows of each transfer: application to proxy, proxy to proxy, proxy to application. The first of
    // them go by TCP.
    ensure!(flows >= 1.5 * count as f64, "only {flows} flows of {count} transfers were accelerated");
    ensure!(mesh.metric("mesh_accelerated_bytes_total", "")? > 1e6, "the bytes are counted");
    // The proxy does, inside the pods.
    ensure!(
        mesh.count("accel", "tcp_splice")? == 0.0,
        "a pod that splices nothing was taken for one that does"
    );
    let six = SocketAddr::new(stage.server.v6().into(), STREAMS);
    streams(5, 40).call(&stage.client, six)?.all_ok()?;
    Ok(())
}

#[test]
fn one_enrolled_side_is_accelerated_and_the_other_left_alone() -> Result<()> {
    need_root!();
    let stage = Stage::new()?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    for pod in [&stage.client, &stage.server] {
        let mesh = MeshNode::start(&stage.node, &MeshConfig::default().accelerated(), &[pod])?;
        let to = at(&stage.server, STREAMS);
        learn(&stage, to)?;
        let before = accelerated(&mesh)?;
        streams(2000, amount(60)).call(&stage.client, to)?.all_ok()?;
        ensure!(accelerated(&mesh)? > before, "nothing was accelerated");
    }
    Ok(())
}

#[test]
fn blocking_applications_see_no_spurious_error_because_they_are_never_accelerated() -> Result<()> {
    need_root!();
    let stage = Stage::new()?;
    let mesh = both(&stage, &MeshConfig::default().accelerated())?;
    let _server = Streams::serve(&stage.server, any(THREADS), true)?;
    let to = at(&stage.server, THREADS);
    let all = Streams { blocking: true, ..streams(3000, amount(80)) };
    all.call(&stage.client, to)?.all_ok()?;
    ensure!(mesh.count("accel", "tcp_blocking")? > 0.0, "the blocking sockets were noticed");
    let text = mesh.get("/stats/prometheus")?.1;
    for reason in ["left_reader", "failed"] {
        ensure!(mesh.count("accel", reason)? == 0.0, "{text}");
    }
    // A client that polls is held back by nothing that its server is.
    let other = Streams::serve(&stage.server, any(STREAMS), false)?;
    learn(&stage, at(&stage.server, STREAMS))?;
    drop(other);
    Ok(())
}

#[test]
fn a_reader_that_never_reads_holds_as_little_memory_as_with_tcp() -> Result<()> {
    need_root!();
    let stage = Stage::new()?;
    let _deaf = deaf(&stage.server, any(DEAF))?;
    let to = at(&stage.server, DEAF);
    let mut taken = Vec::new();
    for acceleration in [false, true] {
        let mesh = both(&stage, &MeshConfig::default().setting("acceleration", acceleration))?;
        // The first ones are learned from.
        for message in [100, 1000, 5000, 5000] {
            flood(&stage.client, to, message)?;
        }
        for message in [500, 20_000, 1 << 20] {
            taken.push(flood(&stage.client, to, message)?);
        }
        ensure!(!acceleration || accelerated(&mesh)? > 0.0, "nothing was accelerated");
    }
    let (tcp, past) = taken.split_at(3);
    // Without a bound it is a gigabyte. What TCP takes depends on how its windows have grown.
    ensure!(
        past.iter().max() < tcp.iter().max().map(|most| most + (32 << 20)).as_ref(),
        "{past:?}, by TCP {tcp:?}"
    );
    Ok(())
}

#[test]
fn transfers_begun_before_enrolment_and_across_switching_lose_nothing() -> Result<()> {
    need_root!();
    let stage = Stage::new()?;
    let mut mesh = stage.mesh()?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    let to = at(&stage.server, STREAMS);
    let running = streams(4000, amount(500)).begin(&stage.client, to)?;
    mesh.enrol(&[&stage.client])?;
    stage.enrol(&mut mesh)?;
    for on in [true, false, true, false, true] {
        switch(&mesh, on)?;
        std::thread::sleep(Duration::from_millis(300)); // transfers run meanwhile
    }
    let tally = running.finish(Duration::from_secs(3600))?;
    println!("{} transfers", tally.all_ok()?);
    learn(&stage, to)?;
    let before = accelerated(&mesh)?;
    streams(1, 10).call(&stage.client, to)?.all_ok()?;
    ensure!(accelerated(&mesh)? > before, "nothing was accelerated after it was switched on");
    Ok(())
}

#[test]
fn acceleration_off_for_a_pod_leaves_its_connections_on_tcp() -> Result<()> {
    need_root!();
    let stage = Stage::with(|spec: PodSpec| spec.annotation("mesh-node/acceleration", "off"))?;
    let mesh = both(&stage, &MeshConfig::default().accelerated())?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    let to = at(&stage.server, STREAMS);
    streams(1, 30).call(&stage.client, to)?.all_ok()?;
    ensure!(accelerated(&mesh)? == 0.0, "a pod that is left out was accelerated");
    Ok(())
}

#[test]
fn short_connections_leave_no_entries_behind() -> Result<()> {
    need_root!();
    let stage = Stage::new()?;
    let mesh = both(&stage, &MeshConfig::default().accelerated())?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    let _lines = stage.server.serve("server", Server::Report, &[any(LINES)])?;
    let to = at(&stage.server, STREAMS);
    learn(&stage, to)?;
    streams(6000, amount(300)).call(&stage.client, to)?.all_ok()?;
    let churned = stage.client.churn(&[at(&stage.server, LINES)], amount(300))?.all_ok()?;
    println!("{churned} short connections");
    maps_are_empty(&mesh, &MAPS)
}

//! Acceleration: what applications send and receive is byte for byte what it is by TCP, whatever is done with
//! the connection; and what must not be accelerated is not. `MESH_STREAMS` makes the transfers more.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::mesh::{MeshConfig, MeshNode};
use mesh_tests::need_root;
use mesh_tests::netns::Pod;
use mesh_tests::peer::{Place, Streams, deaf, flood};

use crate::stage::{Stage, Way};

const STREAMS: u16 = 9100;
const THREADS: u16 = 9101;
const DEAF: u16 = 9102;

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

fn accelerated(mesh: &MeshNode) -> Result<f64> {
    mesh.count("accel", "accelerated")
}

/// So many transfers that the sockets of both applications are known, of which the first are not accelerated.
fn learn(stage: &Stage, to: SocketAddr) -> Result<()> {
    Streams { concurrency: 1, ..streams(1, 12) }.call(&stage.client, to)?.all_ok().map(drop)
}

#[test]
fn accelerated_streams_are_byte_for_byte_those_of_tcp() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let mesh = stage.mesh(&MeshConfig::default().accelerated(), &[&stage.client, &stage.server])?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    let to = at(&stage.server, STREAMS);
    learn(&stage, to)?;
    let (before, count) = (accelerated(&mesh)?, amount(400));
    streams(1000, count).call(&stage.client, to)?.all_ok()?;
    let flows = accelerated(&mesh)? - before;
    // Three flows of each transfer: application to proxy, proxy to proxy, proxy to application. The first of
    // them go by TCP.
    ensure!(flows >= 1.5 * count as f64, "only {flows} flows of {count} transfers were accelerated");
    ensure!(mesh.metric("mesh_accelerated_bytes_total", "")? > 1e6, "the bytes are counted");
    let six = SocketAddr::new(Way::V6.of(&stage.server), STREAMS);
    streams(5, 40).call(&stage.client, six)?.all_ok()?;
    Ok(())
}

#[test]
fn one_enrolled_side_is_accelerated_and_the_other_left_alone() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    for pod in [&stage.client, &stage.server] {
        let mesh = stage.mesh(&MeshConfig::default().accelerated(), &[pod])?;
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
    let stage = Stage::routed()?;
    let mesh = stage.mesh(&MeshConfig::default().accelerated(), &[&stage.client, &stage.server])?;
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
    let stage = Stage::routed()?;
    let _deaf = deaf(&stage.server, any(DEAF))?;
    let to = at(&stage.server, DEAF);
    let mut taken = Vec::new();
    for acceleration in [false, true] {
        let config = MeshConfig::default().setting("acceleration", acceleration);
        let mesh = stage.mesh(&config, &[&stage.client, &stage.server])?;
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
    let stage = Stage::routed()?;
    let mut mesh = stage.mesh(&MeshConfig::default(), &[])?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    let to = at(&stage.server, STREAMS);
    let running = streams(4000, amount(500)).begin(&stage.client, to)?;
    mesh.enrol(&[&stage.client, &stage.server])?;
    for on in ["on", "off", "on", "off", "on"] {
        ensure!(mesh.admin("POST", &format!("/acceleration/switch?enable={on}"))?.0 == 200);
        std::thread::sleep(Duration::from_millis(300)); // transfers run meanwhile
    }
    running.finish(Duration::from_secs(600))?.all_ok()?;
    learn(&stage, to)?;
    let before = accelerated(&mesh)?;
    streams(1, 10).call(&stage.client, to)?.all_ok()?;
    ensure!(accelerated(&mesh)? > before, "nothing was accelerated after it was switched on");
    Ok(())
}

#[test]
fn acceleration_off_for_a_pod_leaves_its_connections_on_tcp() -> Result<()> {
    need_root!();
    let stage = Stage::new(|spec| spec.annotation("mesh-node/acceleration", "off"))?;
    let mesh = stage.mesh(&MeshConfig::default().accelerated(), &[&stage.client, &stage.server])?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    let to = at(&stage.server, STREAMS);
    streams(1, 30).call(&stage.client, to)?.all_ok()?;
    ensure!(accelerated(&mesh)? == 0.0, "a pod that is left out was accelerated");
    Ok(())
}

#[test]
fn short_connections_leave_no_entries_behind() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let mesh = stage.mesh(&MeshConfig::default().accelerated(), &[&stage.client, &stage.server])?;
    let _server = Streams::serve(&stage.server, any(STREAMS), false)?;
    let to = at(&stage.server, STREAMS);
    learn(&stage, to)?;
    streams(6000, amount(300)).call(&stage.client, to)?.all_ok()?;
    let to = stage.target(Way::V4);
    stage.client.churn(&[to], amount(300))?.all_ok()?;
    let entries = |name: &str| -> Result<usize> {
        let output = std::process::Command::new("bpftool")
            .args(["map", "dump", "pinned"])
            .arg(mesh.pins().join(name))
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains("key")).count())
    };
    let until = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let left = (entries("ACCELERATED")?, entries("PAIRS")?);
        if left == (0, 0) {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < until, "entries left of sockets and pairs: {left:?}");
        std::thread::sleep(Duration::from_millis(100)); // the period of the poll
    }
}

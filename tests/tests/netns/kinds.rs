//! What is never accelerated, whatever else is on, and who decides that at run time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{MeshConfig, MeshNode};
use mesh_tests::need_root;
use mesh_tests::peer::{Kind, Streams};
use serde_json::Value;

use crate::stage::{Stage, Way};

const STREAMS: u16 = 9100;

fn accelerated_of(mesh: &MeshNode, pod: &str) -> Result<f64> {
    mesh.metric("mesh_kernel_total", &format!("pod=\"{pod}\",hook=\"accel\",reason=\"accelerated\""))
}

/// Changes the pod's own switch in the pods file, as an operator does, and waits until it has been taken.
fn switch(mesh: &MeshNode, pod: &str, on: bool) -> Result<()> {
    let path = mesh.bootstrap_path().with_file_name("pods.yaml");
    let mut file: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    let pods = file["pods"].as_array_mut().context("a list of pods")?;
    let entry = pods.iter_mut().find(|entry| entry["name"] == pod).context("the pod's entry")?;
    entry["acceleration"] = on.into();
    let next = path.with_extension("next");
    std::fs::write(&next, file.to_string())?;
    std::fs::rename(&next, &path)?;
    let line = format!("/{pod}::acceleration::{}", if on { "on" } else { "off" });
    let until = Instant::now() + Duration::from_secs(20);
    while !mesh.get("/acceleration")?.1.contains(&line) {
        ensure!(Instant::now() < until, "{line} never came: {}", mesh.get("/acceleration")?.1);
        std::thread::sleep(Duration::from_millis(50)); // the period of the poll
    }
    Ok(())
}

/// How many transfers run while something is switched: fewer where the kernel is emulated.
fn amount(usual: u64) -> u64 {
    std::env::var("MESH_STREAMS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn streams(seed: u64, count: u64) -> Streams {
    Streams { seed, count, concurrency: 4, blocking: false }
}

/// What tells of a kind, where it is set before the connection is used.
fn reason(kind: Kind) -> &'static str {
    match kind {
        Kind::Mptcp | Kind::Ktls => "tcp_protocol",
        Kind::ZeroCopy => "tcp_zerocopy",
        Kind::LowWatermark => "tcp_low_watermark",
    }
}

#[test]
fn sockets_with_mptcp_ktls_zero_copy_or_a_low_water_mark_are_never_accelerated() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    // Where there is no MPTCP there is no switch for it either.
    stage.client.netns().sysctl(&[("net/mptcp/enabled", "1")]).ok();
    let to = stage.target(Way::V4);
    for kind in Kind::ALL {
        // What is known of an executable ends with the process.
        let mesh = stage.mesh(&MeshConfig::default().accelerated(), &[&stage.client])?;
        let Some(tally) = kind.call(&stage.client, to, 8)? else {
            eprintln!("SKIPPED: this kernel has no sockets of kind {}", kind.name());
            continue;
        };
        tally.all_ok().with_context(|| kind.name())?;
        let page = mesh.get("/acceleration")?.1;
        ensure!(
            accelerated_of(&mesh, stage.client.name())? == 0.0,
            "{} was accelerated: {page}",
            kind.name()
        );
        ensure!(mesh.count("accel", reason(kind))? > 0.0, "{} was not noticed: {page}", kind.name());
    }
    Ok(())
}

#[test]
fn a_socket_that_becomes_of_such_a_kind_while_it_is_accelerated_does_not_and_works_on() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let _server = Streams::serve(&stage.server, std::net::SocketAddr::from(([0u16; 8], STREAMS)), false)?;
    for kind in [Kind::Ktls, Kind::LowWatermark] {
        let mesh = stage.mesh(&MeshConfig::default().accelerated(), &[&stage.client])?;
        // The same executable, without anything against it so far.
        let to = std::net::SocketAddr::new(Way::V4.of(&stage.server), STREAMS);
        Streams { concurrency: 1, ..streams(1, 12) }.call(&stage.client, to)?.all_ok()?;
        let before = accelerated_of(&mesh, stage.client.name())?;
        let Some(tally) = kind.call(&stage.client, stage.target(Way::V4), 8)? else {
            eprintln!("SKIPPED: this kernel has no sockets of kind {}", kind.name());
            continue;
        };
        tally.all_ok().with_context(|| kind.name())?;
        let page = mesh.get("/acceleration")?.1;
        // Its first connection was accelerated; the later ones of this executable are not.
        let after = accelerated_of(&mesh, stage.client.name())?;
        ensure!(after == before + 1.0, "{}: {before} then {after} accelerated: {page}", kind.name());
        ensure!(mesh.count("accel", reason(kind))? > 0.0, "{} was not noticed: {page}", kind.name());
    }
    Ok(())
}

#[test]
fn switching_one_pod_affects_its_new_connections_only_and_loses_nothing() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let mesh = stage.mesh(&MeshConfig::default().accelerated(), &[&stage.client, &stage.server])?;
    let _server = Streams::serve(&stage.server, std::net::SocketAddr::from(([0u16; 8], STREAMS)), false)?;
    let to = std::net::SocketAddr::new(Way::V4.of(&stage.server), STREAMS);
    Streams { concurrency: 1, ..streams(1, 12) }.call(&stage.client, to)?.all_ok()?;
    let running = streams(7000, amount(300)).begin(&stage.client, to)?;
    for on in [false, true, false, true, false] {
        switch(&mesh, stage.client.name(), on)?;
    }
    running.finish(Duration::from_secs(600))?.all_ok()?;
    let (client, server) = (stage.client.name(), stage.server.name());
    let counts =
        || -> Result<(f64, f64)> { Ok((accelerated_of(&mesh, client)?, accelerated_of(&mesh, server)?)) };
    let before = counts()?;
    streams(8000, 30).call(&stage.client, to)?.all_ok()?;
    let after = counts()?;
    ensure!(after.0 == before.0, "a pod that is switched off was accelerated");
    ensure!(after.1 > before.1, "the other pod was switched off too");
    switch(&mesh, client, true)?;
    streams(9000, 30).call(&stage.client, to)?.all_ok()?;
    ensure!(counts()?.0 > after.0, "it was not switched on again");
    says_how_things_stand(mesh)
}

/// The page, and the same for who asks without the process and after its end.
fn says_how_things_stand(mut mesh: MeshNode) -> Result<()> {
    let (page, status) = (mesh.get("/acceleration")?.1, mesh.status()?);
    println!("{status}");
    for line in ["proxy::running", "acceleration::on", "test::fionread::as TCP", "test::wake_ups::as TCP"] {
        ensure!(status.lines().any(|l| l.starts_with(line)), "no {line} in {status}");
        ensure!(line.starts_with("proxy") || page.contains(line), "no {line} in {page}");
    }
    for what in ["/client::acceleration::on", "/client::flows.accelerated::", "/server::port 9100::fit::"] {
        ensure!(status.contains(what) && page.contains(what), "no {what} in {status}, {page}");
    }
    mesh.kill_9();
    let limit = Instant::now() + Duration::from_secs(60);
    while !mesh.status()?.starts_with("proxy::away") {
        ensure!(Instant::now() < limit, "a dead proxy counts as running");
        std::thread::sleep(Duration::from_millis(100)); // the period of the poll
    }
    ensure!(mesh.status()?.contains("test::fionread::as TCP"), "with the process, what it found out is gone");
    Ok(())
}

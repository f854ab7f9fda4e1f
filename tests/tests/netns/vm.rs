//! The core of steering, short enough for a kernel under emulation: what `cargo xtask vm` runs. The programs are
//! loaded, verified and attached, and a connection goes each way in both families.

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::MeshConfig;
use mesh_tests::need_root;
use mesh_tests::peer::{CallOptions, Place, Streams};

use crate::stage::{Stage, Taken, Way, ends_are_true, taken_during};

/// Emulated kernels are slow, and the tests are not about speed.
const TIMEOUT_MS: u64 = 30_000;

/// A proxy that is slow must not be taken for a dead one either.
fn config() -> MeshConfig {
    MeshConfig::default().setting("heartbeat_timeout_ms", 10_000)
}

#[test]
fn a_connection_is_steered_each_way_in_both_families() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let mesh = stage.mesh(&config(), &[&stage.client, &stage.server])?;
    for way in [Way::V4, Way::V6, Way::Mapped] {
        let options = CallOptions { timeout_ms: Some(TIMEOUT_MS), ..way.options() };
        let (call, taken) = taken_during(&mesh, || stage.client.call_with(stage.target(way), &options))?;
        ends_are_true(&call, way.of(&stage.client), stage.target(way)).with_context(|| format!("{way:?}"))?;
        assert_eq!(taken, Taken { outbound: 1, inbound: 1 }, "{way:?}");
        stage.node.call_with(stage.target(way), &options)?.ok().with_context(|| format!("probe, {way:?}"))?;
    }
    Ok(())
}

#[test]
fn a_connection_is_steered_by_tc_alone() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let config = config().without_connect_hook();
    let mesh = stage.mesh(&config, &[&stage.client])?;
    for way in [Way::V4, Way::V6] {
        let options = CallOptions { timeout_ms: Some(TIMEOUT_MS), ..way.options() };
        let (call, taken) = taken_during(&mesh, || stage.client.call_with(stage.target(way), &options))?;
        ends_are_true(&call, way.of(&stage.client), stage.target(way)).with_context(|| format!("{way:?}"))?;
        assert_eq!(taken, Taken { outbound: 1, inbound: 0 }, "{way:?}");
    }
    Ok(())
}

/// What this kernel lacks for it is named, and then everything goes by TCP.
#[test]
fn acceleration_is_tested_and_every_stream_is_whole_whether_it_is_on_or_refused() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let mesh = stage.mesh(&config().accelerated(), &[&stage.client, &stage.server])?;
    let page = mesh.get("/acceleration")?.1;
    println!("{page}");
    let port = 9100;
    let _server = Streams::serve(&stage.server, std::net::SocketAddr::from(([0_u16; 8], port)), false)?;
    let to = std::net::SocketAddr::new(Way::V4.of(&stage.server), port);
    Streams { seed: 1, count: 12, concurrency: 1, blocking: false }.call(&stage.client, to)?.all_ok()?;
    let same = Streams { seed: 100, count: 40, concurrency: 4, blocking: false };
    same.call(&stage.client, to)?.all_ok().context("accelerated")?;
    if page.starts_with("acceleration::on") {
        assert!(mesh.count("accel", "accelerated")? > 0.0, "it is on and nothing was accelerated");
    } else {
        assert!(page.contains("refused::"), "it is off without a reason: {page}");
        assert_eq!(mesh.count("accel", "accelerated")?, 0.0);
    }
    // The same bytes by plain TCP.
    ensure!(mesh.admin("POST", "/acceleration/switch?enable=off")?.0 == 200);
    same.call(&stage.client, to)?.all_ok().context("by TCP")?;
    Ok(())
}

#[test]
fn the_proxys_ports_to_applications_and_to_the_network_do_not_meet() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    // A pod that may use ports below those that clients usually have.
    let tuned = [("net/ipv4/ip_local_port_range", "28672 60999")];
    let ports_seen = |way: Way| -> Result<Vec<u16>> {
        let options = CallOptions { timeout_ms: Some(TIMEOUT_MS), ..way.options() };
        let call = || stage.client.call_with(stage.target(way), &options)?.ok().map(|seen| seen.peer.port());
        (0..8).map(|_| call()).collect()
    };
    stage.client.netns().sysctl(&tuned)?;
    let mesh = stage.mesh(&config(), &[&stage.client])?;
    for way in [Way::V4, Way::V6] {
        let seen = ports_seen(way)?;
        assert!(seen.iter().all(|port| *port >= 32_768), "{way:?} to the network: {seen:?}");
    }
    drop(mesh);
    stage.server.netns().sysctl(&tuned)?;
    let _mesh = stage.mesh(&config(), &[&stage.server])?;
    for way in [Way::V4, Way::V6] {
        let seen = ports_seen(way)?;
        assert!(seen.iter().all(|port| *port < 28_672), "{way:?} to the application: {seen:?}");
    }
    Ok(())
}

#[test]
fn with_the_proxy_dead_connections_are_refused_and_after_cleanup_they_pass() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let mut mesh = stage.mesh(&config(), &[&stage.client, &stage.server])?;
    mesh.kill_9();
    let options = CallOptions { timeout_ms: Some(TIMEOUT_MS), ..Way::V4.options() };
    stage.client.call_with(stage.target(Way::V4), &options)?.errno().context("refused")?;
    mesh.cleanup()?;
    for way in [Way::V4, Way::V6] {
        let call = stage.client.call_with(stage.target(way), &options)?;
        ends_are_true(&call, way.of(&stage.client), stage.target(way)).with_context(|| format!("{way:?}"))?;
    }
    Ok(())
}

//! What one pod may take of the proxy, and that its neighbours do not notice.

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::MeshConfig;
use mesh_tests::need_root;
use mesh_tests::peer::Place;

use crate::stage::{Stage, Way};

const MIB: u64 = 1 << 20;
/// The limit of the test, and connections enough to reach it many times over.
const LIMIT: u64 = 2 * MIB;
const CONNECTIONS: usize = 600;

#[test]
fn a_pod_that_reads_nothing_is_held_to_its_limit_of_buffered_bytes_and_its_neighbour_is_served() -> Result<()>
{
    need_root!();
    let stage = Stage::routed()?;
    let neighbour = stage.node.pod("neighbour")?;
    let config = MeshConfig::default().setting("max_buffered_bytes", LIMIT);
    let mut mesh = stage.mesh(&config, &[&stage.client, &neighbour])?;
    let target = stage.target(Way::V4);
    neighbour.call(target)?.ok()?;

    // Connections that only stand have a cost of their own, which another limit bounds.
    stage.client.hold(target, CONNECTIONS)?.finish()?.all_ok()?;
    let before = resident(mesh.process()?.id())?;
    let held = neighbour.hold(target, 8)?;
    let mut hoard = stage.client.hoard(target, CONNECTIONS)?;
    let hog = "pod=\"client\"";
    let reason = |reason: &str| format!("{hog},reason=\"{reason}\"");
    mesh.wait_metric_of("mesh_buffered_bytes", hog, |bytes| bytes >= LIMIT as f64)?;
    ensure!(mesh.metric("mesh_limit_total", &reason("buffers_pressed"))? >= 1.0, "there was no backpressure");
    let buffered = mesh.metric("mesh_buffered_bytes", hog)? as u64;
    // What was open at the limit goes on with a small piece each way.
    ensure!((LIMIT..2 * LIMIT).contains(&buffered), "{buffered} bytes are held");
    let grown = resident(mesh.process()?.id())?.saturating_sub(before);
    ensure!(grown < 16 * MIB, "the proxy grew by {grown} bytes");
    let errno = stage.client.call(target)?.errno().context("a new connection at the limit")?;
    ensure!(errno == libc::ECONNRESET, "refused with error {errno}");
    let refused = mesh.metric("mesh_limit_total", &reason("cx_refused_by_max_buffered_bytes"))?;
    ensure!(refused == 1.0, "{refused} connections were refused");
    neighbour.call(target)?.ok().context("the neighbour, while the limit is reached")?;
    held.finish()?.all_ok().context("the neighbour's open connections")?;

    hoard.kill();
    mesh.wait_metric_of("mesh_buffered_bytes", hog, |bytes| bytes == 0.0)?;
    stage.client.call(target)?.ok().context("the pod itself, once its bytes are gone")?;
    Ok(())
}

/// Resident memory of a process in bytes.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    Ok(kib.context("no VmRSS")?.trim().parse::<u64>()? * 1024)
}

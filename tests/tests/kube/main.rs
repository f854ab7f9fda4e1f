//! mesh-node as a DaemonSet on a real cluster with a real kubelet, container runtime and CNI. `cargo xtask test kube`
//! prepares the cluster and the images; without it these tests say that they are skipped.
//!
//! Each test installs mesh-node, and leaves the cluster as it found it.

mod cluster;
mod first;
mod guide;
mod istiod;
mod kinds;
mod refused;
mod restarts;
mod workloads;
mod wrong;

use anyhow::{Result, ensure};

use cluster::Cluster;
use guide::Guide;
use workloads::{bookinfo, remove_bookinfo, steered, visit_pages};

/// Connections that the page and reviews keep to what they call: two of the page, one of each of two reviews.
const KEPT: u64 = 4;

#[test]
fn the_guide_installs_enrols_verifies_and_removes_and_leaves_nothing() -> Result<()> {
    let Some(cluster) = Cluster::get() else { return Ok(()) };
    let guide = Guide::read()?;
    bookinfo(&cluster)?;
    ensure!(visit_pages(&cluster, 10)?.failed == 0, "without a mesh");
    guide.run(&cluster, "install")?;
    ensure!(cluster.status()?.len() == cluster.nodes()?.len(), "one on every node");
    ensure!(cluster.status()?.iter().all(|(_, status)| !status.contains("default/")), "nobody asked for it");
    guide.run(&cluster, "enrol")?;
    cluster.until("every node steers pods of Bookinfo", || {
        ensure!(visit_pages(&cluster, 20)?.failed == 0);
        for (node, status) in cluster.status()? {
            // The page and what it calls lie on both nodes: each has servers of them.
            ensure!(steered(&status, "inbound") > 0, "{node} has steered nothing:\n{status}");
        }
        Ok(())
    })?;
    let status = cluster.status()?;
    let outbound: u64 = status.iter().map(|(_, status)| steered(status, "outbound")).sum();
    ensure!(outbound > 0, "{status:?}");
    for (node, status) in &status {
        println!(
            "{node}: steered {} outbound, {} inbound",
            steered(status, "outbound"),
            steered(status, "inbound")
        );
    }
    let told = guide.run(&cluster, "verify")?;
    ensure!(told.contains("proxy::running"), "{told}");
    // Released and taken away under load: no connection is refused. One that the page keeps open to what it calls is
    // cut when the proxy's time is over, and what was asked on it at that moment fails.
    let pod = workloads::pod_of(&cluster, "client")?;
    let to = format!("{}:{}", workloads::address(&cluster, "productpage")?, workloads::PORT);
    let mut load = cluster.exec(
        "default",
        &pod,
        &["/mesh-peer", "visit", "--to", &to, "--path", "/productpage", "--pause-ms", "5"],
    )?;
    guide.run(&cluster, "remove")?;
    load.send("")?;
    let visits = workloads::visits(&load.line()?)?;
    let cut = visits.errors.get("status 502").copied().unwrap_or_default();
    ensure!(visits.visits > 0 && visits.failed == cut && cut <= KEPT, "while it was removed: {visits:?}");
    println!(
        "released and removed under load: {} pages, {cut} failed where a kept connection was cut",
        visits.visits
    );
    drop(load);
    cluster.nothing_is_left()?;
    remove_bookinfo(&cluster)?;
    guide.was_followed(false)
}

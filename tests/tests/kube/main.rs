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
use workloads::{Visits, bookinfo, remove_bookinfo, steered, visit_pages};

/// Connections that the page and reviews keep to what they call: two of the page, one of each of two reviews.
const KEPT: u64 = 4;

#[test]
fn the_guide_installs_enrols_verifies_and_removes_and_leaves_nothing() -> Result<()> {
    let Some(cluster) = Cluster::get() else { return Ok(()) };
    let guide = Guide::read()?;
    bookinfo(&cluster)?;
    guide.run(&cluster, "install")?;
    ensure!(cluster.status()?.len() == cluster.nodes()?.len(), "one on every node");
    ensure!(cluster.status()?.iter().all(|(_, status)| !status.contains("default/")), "nobody asked for it");
    guide.run(&cluster, "enrol")?;
    cluster.until("every node steers pods of Bookinfo", || {
        ensure!(visit_pages(&cluster, 20)?.failed == 0);
        for (node, status) in cluster.status()? {
            // The page and what it calls lie on both nodes: each has servers of them.
            ensure!(steered(&status, "inbound") > 0, "{node} has steered nothing:\n{status}");
            ensure!(status.contains("::enrolled\n"), "{node}:\n{status}");
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
    let pod = workloads::pod_of(&cluster, "client")?;
    let to = format!("{}:{}", workloads::address(&cluster, "productpage")?, workloads::PORT);
    let mut load = cluster.exec(
        "default",
        &pod,
        &["/mesh-peer", "visit", "--to", &to, "--path", "/productpage", "--pause-ms", "5"],
    )?;
    let mut so_far = || -> Result<Visits> {
        load.send("")?;
        workloads::visits(&load.line()?)
    };
    guide.run(&cluster, "release")?;
    cluster.until("all pods are let go", || {
        let status = cluster.status()?;
        ensure!(status.iter().all(|(_, status)| !status.contains("::enrolled")), "{status:?}");
        Ok(())
    })?;
    let released = so_far()?;
    ensure!(released.visits > 0 && released.failed == 0, "while pods were let go: {released:?}");
    // A connection that the page keeps open to what it calls is cut when the proxy's time is over, and what was asked
    // on it at that moment fails. No other is.
    guide.run(&cluster, "remove")?;
    let visits = so_far()?;
    let cut = visits.errors.get("status 502").copied().unwrap_or_default();
    ensure!(visits.failed == cut && cut <= KEPT, "while it was removed: {visits:?}");
    println!(
        "released under load: {} pages, none failed; and removed: {} pages, {cut} failed where a kept connection was cut",
        released.visits,
        visits.visits - released.visits
    );
    drop(load);
    cluster.nothing_is_left()?;
    remove_bookinfo(&cluster)?;
    guide.was_followed(false)
}

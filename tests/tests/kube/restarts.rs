//! mesh-node restarted and updated under load between the nodes.

use anyhow::{Context, Result, ensure};
use mesh_tests::process::Process;

use crate::cluster::{Cluster, NAMESPACE};
use crate::workloads::{self, MARK, MARKING, PORT, visit_pages};

/// Restarts in each mode; `MESH_KUBE_ROUNDS` for more.
const ROUNDS: usize = 1;

#[test]
fn a_restart_or_update_under_load_fails_what_the_mode_says_and_new_connections_are_served_after_it()
-> Result<()> {
    let Some(cluster) = Cluster::get() else { return Ok(()) };
    let rounds = std::env::var("MESH_KUBE_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(ROUNDS);
    workloads::bookinfo(&cluster)?;
    cluster.install(Some(MARKING))?;
    cluster.kubectl("label namespace default istio.io/dataplane-mode=mesh")?;
    served(&cluster)?;
    for mode in ["closed", "open"] {
        let settings = format!("pods_from: kubernetes\nfail_mode: {mode}\ndrain_time_s: 2\n");
        cluster.configure("settings.yaml", &settings)?;
        restart(&cluster)?;
        served(&cluster)?;
        let pod = workloads::pod_of(&cluster, "client")?;
        let to = format!("{}:{PORT}", workloads::address(&cluster, "productpage")?);
        let mut visit = vec!["/mesh-peer", "visit", "--to", &to, "--path", "/productpage", "--pause-ms", "5"];
        visit.extend(["--at-a-time", "4", "--header", MARK]);
        let mut load = cluster.exec("default", &pod, &visit)?;
        for _ in 0..rounds {
            restart(&cluster)?;
            served(&cluster)?;
        }
        report(&mut load, &format!("fail_mode {mode}, {rounds} restarts on both nodes"))?;
        if let Ok(image) = std::env::var("MESH_KUBE_OTHER_IMAGE") {
            cluster.kubectl(&format!("-n {NAMESPACE} set image daemonset/mesh-node mesh-node={image}"))?;
            cluster.ready()?;
            served(&cluster)?;
            report(&mut load, &format!("fail_mode {mode}, and an update to another image"))?;
            cluster.kubectl(&format!("-n {NAMESPACE} rollout undo daemonset/mesh-node"))?;
            cluster.ready()?;
        }
        load.close_stdin();
    }
    cluster.uninstall()?;
    workloads::remove_bookinfo(&cluster)
}

/// Says how the load fares so far.
fn report(load: &mut Process, after: &str) -> Result<()> {
    load.send("")?;
    let visits = workloads::visits(&load.line()?)?;
    println!(
        "{after}: {} pages, {} through the mesh, {} failed {:?}",
        visits.visits, visits.carried, visits.failed, visits.errors
    );
    Ok(())
}

fn restart(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&format!("-n {NAMESPACE} rollout restart daemonset/mesh-node"))?;
    cluster.ready()
}

/// New connections go through the mesh, at once.
fn served(cluster: &Cluster) -> Result<()> {
    let visits = visit_pages(cluster, 10).context("after a restart")?;
    ensure!(visits.failed == 0 && visits.carried == visits.visits, "{visits:?}\n{}", cluster.logs()?);
    Ok(())
}

//! Pods whose first act is a connection.

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, PROGRAMS};
use crate::workloads::{self, MARK, MARKING, PORT, Visits};

/// Pods one after another; `MESH_KUBE_PODS` for more.
const PODS: usize = 10;

#[test]
fn a_pod_whose_first_act_is_a_request_is_captured_and_its_request_is_answered() -> Result<()> {
    let Some(cluster) = Cluster::get() else { return Ok(()) };
    let count = std::env::var("MESH_KUBE_PODS").ok().and_then(|v| v.parse().ok()).unwrap_or(PODS);
    workloads::bookinfo(&cluster)?;
    let to = format!("{}:{PORT}", workloads::address(&cluster, "details")?);
    let plain: Vec<Visits> =
        (0..3).map(|i| visitor(&cluster, &format!("plain-{i}"), &to)).collect::<Result<_>>()?;
    ensure!(plain.iter().all(|visits| visits.carried == 0), "{plain:?}");
    cluster.install(Some(MARKING))?;
    // Nobody has enrolled them: they are known as strangers, and not held for long.
    let stranger = visitor(&cluster, "stranger", &to)?;
    ensure!(stranger.carried == 0, "{stranger:?}");
    cluster.kubectl("label namespace default istio.io/dataplane-mode=mesh")?;
    let mut taken = Vec::new();
    for i in 0..count {
        let visits = visitor(&cluster, &format!("first-{i}"), &to)?;
        ensure!(visits.carried == 1, "pod {i} was not captured: {visits:?}\n{}", cluster.logs()?);
        taken.push(visits.first_us);
    }
    taken.sort_unstable();
    let ms = |us: u64| us as f64 / 1000.0;
    let (median, slowest) = (taken[taken.len() / 2], taken[taken.len() - 1]);
    println!("{count} pods whose first act is a request: all captured, none failed");
    println!(
        "  without a mesh    {:>7.1} ms",
        ms(plain.iter().map(|v| v.first_us).min().unwrap_or_default())
    );
    println!("  not enrolled      {:>7.1} ms", ms(stranger.first_us));
    println!("  enrolled, median  {:>7.1} ms, slowest {:.1} ms", ms(median), ms(slowest));
    cluster.uninstall()?;
    workloads::remove_bookinfo(&cluster)
}

/// A pod that makes one request and ends.
fn visitor(cluster: &Cluster, name: &str, to: &str) -> Result<Visits> {
    cluster.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: visitor}}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: visitor
    image: {PROGRAMS}
    imagePullPolicy: IfNotPresent
    command: [/mesh-peer, visit, --to, '{to}', --path, /details/0, --count, '1', --header, {MARK}]
"
    ))?;
    let ended =
        cluster.kubectl(&format!("wait --for=jsonpath={{.status.phase}}=Succeeded pod/{name} --timeout=60s"));
    let told = cluster.kubectl(&format!("logs {name}"))?;
    ensure!(ended.is_ok(), "{name}: {told}\n{}", cluster.logs()?);
    cluster.kubectl(&format!("delete pod {name} --wait=false --grace-period=0"))?;
    workloads::visits(told.lines().next().unwrap_or_default())
}

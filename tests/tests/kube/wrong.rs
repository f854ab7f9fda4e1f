//! What is wrong with an installation is said in one line with the remedy, shows in readiness, and harms nobody else.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, NAMESPACE};
use crate::workloads::{self, MARKING, visit_pages};

#[test]
fn a_faulty_installation_says_what_is_wrong_and_pods_that_are_known_stay_served() -> Result<()> {
    let Some(cluster) = Cluster::get() else { return Ok(()) };
    workloads::bookinfo(&cluster)?;
    cluster.install(Some(MARKING))?;
    cluster.kubectl("label namespace default istio.io/dataplane-mode=mesh")?;
    let served = || {
        let visits = visit_pages(&cluster, 5)?;
        ensure!(visits.failed == 0 && visits.carried == visits.visits, "{visits:?}");
        Ok(())
    };
    cluster.until("pages come by the mesh", served)?;
    two_on_a_node(&cluster)?;
    cluster.until("the second one changed nothing", served)?;
    without_the_api(&cluster)?;
    without_bpffs(&cluster)?;
    cluster.until("pages come by the mesh again", served)?;
    cluster.uninstall()?;
    workloads::remove_bookinfo(&cluster)?;
    cluster.nothing_is_left()
}

/// What mesh-nodes of this label said, until `told` is in it.
fn says(cluster: &Cluster, name: &str, told: &str) -> Result<()> {
    cluster.until(&format!("mesh-node says {told:?}"), || {
        let logs = cluster.kubectl(&format!(
            "-n {NAMESPACE} logs -l app.kubernetes.io/name={name} --tail=40 --ignore-errors"
        ))?;
        ensure!(logs.contains(told), "{logs}");
        Ok(())
    })
}

/// A second DaemonSet on the same nodes, as after an installation under another name.
fn two_on_a_node(cluster: &Cluster) -> Result<()> {
    let mut second = cluster.json(&format!("-n {NAMESPACE} get daemonset mesh-node"))?;
    let mut settings = cluster.json(&format!("-n {NAMESPACE} get configmap mesh-node"))?;
    let labels = json!({ "app.kubernetes.io/name": "second" });
    for object in [&mut second, &mut settings] {
        object["metadata"] = json!({ "name": "second", "namespace": NAMESPACE });
    }
    let bootstrap = settings["data"]["bootstrap.yaml"].as_str().context("bootstrap")?;
    settings["data"]["bootstrap.yaml"] = bootstrap.replace("15000", "15900").into();
    second["spec"]["selector"]["matchLabels"] = labels.clone();
    second["spec"]["template"]["metadata"]["labels"] = labels;
    let volumes = second.pointer_mut("/spec/template/spec/volumes").and_then(Value::as_array_mut);
    for volume in volumes.context("volumes")? {
        if volume["name"] == "config" {
            volume["configMap"]["name"] = "second".into();
        }
    }
    cluster.apply(&settings.to_string())?;
    // Its probes must not be answered by the first one.
    cluster.apply(&second.to_string().replace("15000", "15900"))?;
    says(cluster, "second", "instance \"default\" is run by process")?;
    let ready = cluster
        .kubectl(&format!("-n {NAMESPACE} get daemonset second -o jsonpath={{.status.numberReady}}"))?;
    ensure!(ready == "0", "{ready} of the second are Ready");
    println!("two mesh-nodes on a node: the second says so and is not Ready");
    cluster.kubectl(&format!("-n {NAMESPACE} delete daemonset,configmap second --wait=true"))?;
    cluster.until("its pods are gone", || {
        let left =
            cluster.kubectl(&format!("-n {NAMESPACE} get pods -l app.kubernetes.io/name=second -o name"))?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}

/// The API cannot be reached from the start on: what is known from before is served.
fn without_the_api(cluster: &Cluster) -> Result<()> {
    let set = format!("-n {NAMESPACE} set env daemonset/mesh-node KUBERNETES_SERVICE_PORT");
    cluster.kubectl(&format!("{set}=1"))?;
    cluster.ready()?;
    says(cluster, "mesh-node", "cannot be followed, pods that are enrolled stay served")?;
    let visits = visit_pages(cluster, 20)?;
    ensure!(visits.failed == 0 && visits.carried == visits.visits, "{visits:?}");
    println!("the API is away at start: said, Ready, pods known from before are served");
    cluster.kubectl(&format!("{set}-"))?;
    cluster.ready()
}

/// The file system of pins is not mounted into the pod.
fn without_bpffs(cluster: &Cluster) -> Result<()> {
    let set = cluster.json(&format!("-n {NAMESPACE} get daemonset mesh-node"))?;
    let path = "/spec/template/spec/containers/0/volumeMounts";
    let mounts = set.pointer(path).and_then(Value::as_array).context("mounts")?;
    let left: Vec<&Value> = mounts.iter().filter(|mount| mount["name"] != "bpffs").collect();
    let patch = |value: Value| {
        let text = json!([{ "op": "replace", "path": path, "value": value }]).to_string();
        cluster.shell(&format!("kubectl -n {NAMESPACE} patch daemonset mesh-node --type=json -p '{text}'"))
    };
    patch(json!(left))?;
    says(cluster, "mesh-node", "mount -t bpf")?;
    let status = cluster.json(&format!("-n {NAMESPACE} get daemonset mesh-node"))?;
    let unavailable = status["status"]["numberUnavailable"].as_u64().unwrap_or_default();
    ensure!(unavailable > 0, "Ready without pins: {}", status["status"]);
    println!("without bpffs: said, not Ready, the update goes no further than one node");
    patch(json!(mounts))?;
    cluster.ready()
}

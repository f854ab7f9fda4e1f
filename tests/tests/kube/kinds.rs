//! Pods of every kind that Kubernetes has: captured with all their containers, while they end and when they come back.

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, PROGRAMS};
use crate::workloads::{self, MARK, MARKING, PORT, Visits, steered};

/// Of the service details.
const DETAILS: &str = "/details/0";
const REVIEWS: &str = "/reviews/0";

#[test]
fn pods_of_every_kind_are_captured_and_captured_again_when_they_come_back() -> Result<()> {
    let Some(cluster) = Cluster::get() else { return Ok(()) };
    workloads::bookinfo(&cluster)?;
    cluster.install(Some(MARKING))?;
    cluster.kubectl("label namespace default istio.io/dataplane-mode=mesh")?;
    let to = format!("{}:{PORT}", workloads::address(&cluster, "details")?);
    jobs(&cluster, &to)?;
    terminating(&cluster, &to)?;
    stateful(&cluster)?;
    address_again(&cluster, &to)?;
    evicted(&cluster)?;
    rebooted(&cluster)?;
    cluster.uninstall()?;
    workloads::remove_bookinfo(&cluster)?;
    cluster.nothing_is_left()
}

/// The shell words of a visitor that makes so many requests.
fn visit(to: &str, path: &str, count: u32) -> String {
    format!("/mesh-peer visit --to {to} --path {path} --count {count} --header {MARK}")
}

fn all_carried(visits: &Visits) -> Result<()> {
    ensure!(visits.failed == 0 && visits.carried == visits.visits, "{visits:?}");
    Ok(())
}

/// Init containers and all containers of Jobs, which end by themselves and are let go.
fn jobs(cluster: &Cluster, to: &str) -> Result<()> {
    let container = |name: &str| {
        let command = serde_json::json!(visit(to, DETAILS, 1).split(' ').collect::<Vec<_>>());
        format!("{{name: {name}, image: {PROGRAMS}, imagePullPolicy: IfNotPresent, command: {command}}}")
    };
    cluster.apply(&format!(
        "{{apiVersion: batch/v1, kind: Job, metadata: {{name: job}}, spec: {{completions: 2, backoffLimit: 0, template: \
         {{spec: {{restartPolicy: Never, initContainers: [{}], containers: [{}, {}]}}}}}}}}",
        container("before"),
        container("one"),
        container("two")
    ))?;
    let ended = cluster.kubectl("wait --for=condition=Complete job/job --timeout=60s");
    let told = cluster.kubectl("logs -l job-name=job --all-containers --tail=-1")?;
    ensure!(ended.is_ok(), "the job has not ended: {told}\n{}", cluster.logs()?);
    let visits = told.lines().map(workloads::visits).collect::<Result<Vec<_>>>()?;
    ensure!(visits.len() == 6, "{told}");
    visits.iter().try_for_each(all_carried)?;
    cluster.until("pods of a Job that has ended are let go", || {
        let status = cluster.status()?;
        ensure!(status.iter().all(|(_, status)| !status.contains("default/job-")), "{status:?}");
        Ok(())
    })?;
    println!("two pods of a Job: init container and two containers each captured, ended, let go");
    cluster.kubectl("delete job job").map(drop)
}

/// A pod that does nothing by itself.
fn idle(cluster: &Cluster, name: &str, more: &str, of_spec: &str) -> Result<()> {
    cluster.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}, {more}}}}}
spec:
  {of_spec}
  containers:
  - name: app
    image: {PROGRAMS}
    imagePullPolicy: IfNotPresent
    command: [/bookinfo, --service=details, --version=v1]
    lifecycle: {{preStop: {{sleep: {{seconds: 20}}}}}}
"
    ))?;
    cluster.kubectl(&format!("wait --for=condition=Ready pod/{name} --timeout=60s")).map(drop)
}

fn ask(cluster: &Cluster, pod: &str, to: &str, path: &str) -> Result<Visits> {
    workloads::visits(cluster.kubectl(&format!("exec {pod} -- {}", visit(to, path, 10)))?.trim())
}

fn delete_now(cluster: &Cluster, pod: &str) -> Result<()> {
    cluster.kubectl(&format!("delete pod {pod} --grace-period=1 --wait=true")).map(drop)
}

/// Who is on its way out is served to its last request, in both directions.
fn terminating(cluster: &Cluster, to: &str) -> Result<()> {
    idle(cluster, "lingers", "", "terminationGracePeriodSeconds: 30")?;
    cluster.until("it is captured", || all_carried(&ask(cluster, "lingers", to, DETAILS)?))?;
    cluster.kubectl("delete pod lingers --wait=false")?;
    all_carried(&ask(cluster, "lingers", to, DETAILS)?)?;
    let client = workloads::pod_of(cluster, "client")?;
    let lingers = format!("{}:{PORT}", address(cluster, "lingers")?);
    all_carried(&ask(cluster, &client, &lingers, DETAILS)?)?;
    println!("a pod in Terminating: its requests and those to it pass the mesh");
    delete_now(cluster, "lingers")
}

fn address(cluster: &Cluster, pod: &str) -> Result<String> {
    let address = cluster.kubectl(&format!("get pod {pod} -o jsonpath={{.status.podIP}}"))?;
    ensure!(!address.is_empty(), "{pod} has no address");
    Ok(address)
}

/// Requests of the client to the pod are steered on both sides, and told under its name.
fn serves(cluster: &Cluster, pod: &str, path: &str) -> Result<()> {
    let client = workloads::pod_of(cluster, "client")?;
    cluster.until(&format!("{pod} is served"), || {
        let to = format!("{}:{PORT}", address(cluster, pod)?);
        all_carried(&ask(cluster, &client, &to, path)?)?;
        let line = format!("default/{pod}::steered::");
        let status = cluster.status()?;
        let of_pod =
            status.iter().flat_map(|(_, status)| status.lines()).find(|told| told.starts_with(&line));
        ensure!(steered(of_pod.with_context(|| format!("{status:?}"))?, "inbound") > 0, "{status:?}");
        Ok(())
    })
}

/// A pod of a StatefulSet comes back under its name, as another pod with another address.
fn stateful(cluster: &Cluster) -> Result<()> {
    cluster.apply(&format!(
        "{{apiVersion: apps/v1, kind: StatefulSet, metadata: {{name: store}}, spec: {{serviceName: store, selector: \
         {{matchLabels: {{app: store}}}}, template: {{metadata: {{labels: {{app: store}}}}, spec: \
         {{terminationGracePeriodSeconds: 1, containers: [{{name: app, image: {PROGRAMS}, imagePullPolicy: IfNotPresent, \
         command: [/bookinfo, --service=details, --version=v1]}}]}}}}}}}}"
    ))?;
    let uid = || cluster.kubectl("get pod store-0 -o jsonpath={.metadata.uid}");
    cluster.kubectl("rollout status statefulset/store --timeout=60s")?;
    serves(cluster, "store-0", DETAILS)?;
    let before = uid()?;
    cluster.kubectl("delete pod store-0 --wait=true")?;
    cluster.kubectl("rollout status statefulset/store --timeout=60s")?;
    ensure!(uid()? != before, "it is the same pod");
    serves(cluster, "store-0", DETAILS)?;
    println!("a StatefulSet's pod came back under its name and is served");
    cluster.kubectl("delete statefulset store --wait=true")?;
    cluster.kubectl("wait --for=delete pod/store-0 --timeout=60s").map(drop)
}

/// The address of an enrolled pod comes to one that is not enrolled, and then to one that is.
fn address_again(cluster: &Cluster, to: &str) -> Result<()> {
    let node = cluster.nodes()?.into_iter().next().context("a node")?;
    // The next pod gets the lowest address that is free.
    let from_the_lowest = "rm -f /var/lib/cni/networks/*/last_reserved_ip.*";
    let mut addresses = Vec::new();
    for (pod, label) in [("first", ""), ("second", "istio.io/dataplane-mode: none"), ("third", "")] {
        if cluster.on_node(&node, from_the_lowest)?.is_none() {
            eprintln!("SKIPPED: an address that comes again; set MESH_KUBE_ON_NODE");
            return Ok(());
        }
        idle(cluster, pod, label, &format!("nodeName: {node}"))?;
        addresses.push(address(cluster, pod)?);
        if label.is_empty() {
            cluster.until("it is captured", || all_carried(&ask(cluster, pod, to, DETAILS)?))?;
            serves(cluster, pod, DETAILS)?;
        } else {
            let visits = ask(cluster, pod, to, DETAILS)?;
            ensure!(visits.failed == 0 && visits.carried == 0, "taken for its predecessor: {visits:?}");
            let status = cluster.status()?;
            ensure!(status.iter().all(|(_, status)| !status.contains(&format!("/{pod}::"))), "{status:?}");
        }
        delete_now(cluster, pod)?;
    }
    if addresses.iter().any(|address| *address != addresses[0]) {
        eprintln!("SKIPPED: no address came again here: {addresses:?}");
        return Ok(());
    }
    println!("{} had an enrolled pod, one that is not, and an enrolled one again", addresses[0]);
    Ok(())
}

/// A pod that is evicted begins anew on another node.
fn evicted(cluster: &Cluster) -> Result<()> {
    let pod = workloads::pod_of(cluster, "reviews,version=v3")?;
    let node = cluster.kubectl(&format!("get pod {pod} -o jsonpath={{.spec.nodeName}}"))?;
    let drain = "--pod-selector=app=reviews,version=v3 --ignore-daemonsets --force --timeout=60s";
    cluster.kubectl(&format!("drain {node} {drain}"))?;
    cluster.kubectl("rollout status deployment/reviews-v3 --timeout=60s")?;
    let next = cluster.until("another pod took its place", || {
        let next = workloads::pod_of(cluster, "reviews,version=v3")?;
        ensure!(next != pod);
        Ok(next)
    })?;
    serves(cluster, &next, REVIEWS)?;
    println!("evicted from {node}: its successor is served");
    cluster.kubectl(&format!("uncordon {node}")).map(drop)
}

/// All state of the kernel and of `/run` is gone with a node that starts anew; its pods come back under their uids.
fn rebooted(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.nodes()?;
    let node = nodes.last().context("a node")?;
    let Some(()) = cluster.reboot(node)? else {
        eprintln!("SKIPPED: a node that starts anew; set MESH_KUBE_REBOOT to a command that restarts $NODE");
        return Ok(());
    };
    cluster.until("all pods are served on both nodes again", || {
        let visits = workloads::visit_pages(cluster, 20)?;
        ensure!(visits.failed == 0 && visits.carried == visits.visits, "{visits:?}\n{}", cluster.logs()?);
        let status = cluster.status()?;
        ensure!(status.len() == nodes.len(), "{status:?}");
        for (node, status) in status {
            ensure!(steered(&status, "inbound") > 0, "{node} steers nothing:\n{status}");
        }
        Ok(())
    })?;
    println!("{node} started anew: its pods are served again");
    Ok(())
}

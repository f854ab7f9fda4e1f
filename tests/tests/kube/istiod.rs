//! Under a stock istiod in the cluster: every enrolled pod is a sidecar of its own to it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, NAMESPACE, PROGRAMS};
use crate::guide::Guide;
use crate::refused::set_rules;
use crate::workloads::{self, PORT, Visits};

/// Versions of reviews for clients of this namespace alone.
fn only(version: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: default}}
spec:
  hosts: [reviews.default.svc.cluster.local]
  exportTo: [.]
  http: [{{route: [{{destination: {{host: reviews.default.svc.cluster.local, subset: {version}}}}}]}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews, namespace: default}}
spec:
  host: reviews.default.svc.cluster.local
  exportTo: [.]
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}, {{name: v3, labels: {{version: v3}}}}]
"
    )
}

#[test]
fn pods_of_two_namespaces_get_their_own_configuration_and_a_virtual_service_moves_traffic() -> Result<()> {
    let Some(cluster) = Cluster::get() else { return Ok(()) };
    let Ok(charts) = std::env::var("MESH_KUBE_ISTIO_CHARTS") else {
        eprintln!(
            "SKIPPED: there is no istiod to run in the cluster; `cargo xtask conformance istiod` builds one, and helm installs it"
        );
        return Ok(());
    };
    install(&cluster, &charts)?;
    workloads::bookinfo(&cluster)?;
    cluster.shell("kubectl get namespace other >/dev/null 2>&1 || kubectl create namespace other")?;
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: client, namespace: other, labels: {{app: client}}}}, spec: \
         {{terminationGracePeriodSeconds: 0, containers: [{{name: client, image: {PROGRAMS}, imagePullPolicy: IfNotPresent, \
         command: [/mesh-peer, mixed], stdin: true}}]}}}}"
    ))?;
    let istiod = cluster.kubectl("-n istio-system get service istiod -o jsonpath={.spec.clusterIP}")?;
    // This cluster may have no DNS.
    let guide = Guide::read()?.with("ISTIOD", &istiod);
    guide.run(&cluster, "istiod-install")?;
    cluster.kubectl("label namespace default other istio.io/dataplane-mode=mesh")?;
    cluster.apply(&only("v3"))?;
    let to = format!("{}:{PORT}", workloads::address(&cluster, "reviews")?);
    let here = workloads::pod_of(&cluster, "client")?;
    let ask = |namespace: &str, pod: &str, version: &str| -> Result<Visits> {
        let visit = format!(
            "/mesh-peer visit --to {to} --path /reviews/0 --count 20 --header x-bookinfo-pod:reviews-{version}"
        );
        workloads::visits(cluster.kubectl(&format!("-n {namespace} exec {pod} -- {visit}"))?.trim())
    };
    let all = |version: &str| -> Result<()> {
        let visits = ask("default", &here, version)?;
        ensure!(visits.carried == visits.visits, "{version}: {visits:?}\n{}", cluster.logs()?);
        Ok(())
    };
    cluster.until("the rule is in force", || all("v3"))?;
    let others = ask("other", "client", "v3")?;
    ensure!(others.carried < others.visits, "a rule of one namespace is in force in another: {others:?}");
    let mut watch = cluster.exec(
        "default",
        &here,
        &[
            "/mesh-peer",
            "visit",
            "--to",
            &to,
            "--path",
            "/reviews/0",
            "--pause-ms",
            "2",
            "--header",
            "x-bookinfo-pod:reviews-v1",
        ],
    )?;
    let mut seen = || -> Result<(u64, u64)> {
        watch.send("")?;
        let visits = workloads::visits(&watch.line()?)?;
        Ok((visits.visits, visits.carried))
    };
    cluster.apply(&only("v1"))?;
    let applied = Instant::now();
    let (mut last, until) = (seen()?, Instant::now() + Duration::from_secs(60));
    loop {
        std::thread::sleep(Duration::from_millis(20)); // the period of the poll
        let now = seen()?;
        if now.0 > last.0 && now.0 - last.0 == now.1 - last.1 {
            break;
        }
        ensure!(Instant::now() < until, "the rule has not moved traffic: {now:?}\n{}", cluster.logs()?);
        last = now;
    }
    println!(
        "a VirtualService moved all traffic {} ms after kubectl had applied it",
        applied.elapsed().as_millis()
    );
    all("v1")?;
    drop(watch);

    come_and_go(&cluster, &here, &to)?;
    synced(&cluster, &["default/", "other/"])?;
    token_is_missed(&cluster)?;

    cluster.kubectl("-n default delete virtualservice,destinationrule reviews")?;
    guide.run(&cluster, "istiod-remove")?;
    guide.was_followed(true)?;
    cluster.nothing_is_left()?;
    cluster.kubectl("delete namespace other mesh-system")?;
    workloads::remove_bookinfo(&cluster)?;
    cluster
        .shell("helm -n istio-system uninstall istiod base && kubectl delete namespace istio-system")
        .map(drop)
}

/// Pods are added, deleted and taken away under load.
fn come_and_go(cluster: &Cluster, client: &str, to: &str) -> Result<()> {
    let mut visit = vec!["/mesh-peer", "visit", "--to", to, "--path", "/reviews/0"];
    visit.extend(["--pause-ms", "5", "--at-a-time", "4"]);
    let mut load = cluster.exec("default", client, &visit)?;
    let settled = "rollout status deployment/reviews-v1 --timeout=60s";
    cluster.kubectl("scale deployment reviews-v1 --replicas=3")?;
    cluster.kubectl(settled)?;
    let first = workloads::pod_of(cluster, "reviews,version=v1")?;
    cluster.kubectl(&format!("delete pod {first} --wait=true"))?;
    cluster.kubectl(settled)?;
    cluster.kubectl("scale deployment reviews-v1 --replicas=1")?;
    cluster.kubectl(settled)?;
    load.send("")?;
    let visits = workloads::visits(&load.line()?)?;
    println!(
        "scaled up, a pod deleted, scaled down: {} visits, {} failed {:?}",
        visits.visits, visits.failed, visits.errors
    );
    ensure!(visits.visits > 0 && visits.failed == 0, "{visits:?}\n{}", cluster.logs()?);
    Ok(())
}

/// Istio's own tool lists every enrolled pod of these namespaces, each with everything acknowledged.
fn synced(cluster: &Cluster, namespaces: &[&str]) -> Result<()> {
    let Ok(istioctl) = std::env::var("MESH_KUBE_ISTIOCTL") else {
        eprintln!(
            "SKIPPED: `istioctl proxy-status` was not asked; `cargo xtask conformance istiod` builds it"
        );
        return Ok(());
    };
    let (pods, shown) = cluster.until("istioctl shows every pod as synced", || {
        // Asked for anew each time: one that is on its way out is soon in neither list.
        let mut pods = Vec::new();
        for (_, status) in cluster.status()? {
            let named = status.lines().filter_map(|line| line.split_once("::steered::"));
            let named = named.map(|(pod, _)| pod.to_owned());
            pods.extend(named.filter(|pod| namespaces.iter().any(|namespace| pod.starts_with(namespace))));
        }
        ensure!(pods.len() >= 8, "{pods:?}");
        let shown = cluster.shell(&format!("{istioctl} proxy-status --output json"))?;
        for pod in &pods {
            let (namespace, name) = pod.split_once('/').unwrap_or_default();
            ensure!(shown.contains(&format!("{name}.{namespace}")), "{pod} is not in {shown}");
        }
        ensure!(!shown.contains("STALE") && !shown.contains("NACK"), "{shown}");
        Ok((pods, shown))
    })?;
    println!("istioctl proxy-status lists all {} pods: {} bytes", pods.len(), shown.len());
    Ok(())
}

/// Without the right to make tokens that is said by name.
fn token_is_missed(cluster: &Cluster) -> Result<()> {
    let role = cluster.json("get clusterrole mesh-node")?;
    let mut less = role["rules"].as_array().context("rules")?.clone();
    less.retain(|rule| rule["resources"][0] != "serviceaccounts/token");
    ensure!(Some(&less) != role["rules"].as_array(), "it may not make tokens: {role}");
    set_rules(cluster, &less.into())?;
    cluster.kubectl(&format!("-n {NAMESPACE} delete pod -l app.kubernetes.io/name=mesh-node --wait=true"))?;
    cluster.until("it says that it may not make tokens", || {
        let logs = cluster.logs()?;
        ensure!(
            logs.contains("grant mesh-node's service account `create` of serviceaccounts/token"),
            "{logs}"
        );
        Ok(())
    })?;
    set_rules(cluster, &role["rules"])?;
    println!("`create` of serviceaccounts/token: missed when it is not there");
    cluster.ready()
}

/// By its own charts, with an image that was loaded before.
fn install(cluster: &Cluster, charts: &str) -> Result<()> {
    let image = "--set global.hub=localhost --set global.tag=1-distroless --set global.imagePullPolicy=Never";
    let small =
        "--set autoscaleEnabled=false --set resources.requests.memory=128Mi --set resources.requests.cpu=10m";
    let helm = "helm upgrade --install -n istio-system --create-namespace";
    cluster
        .shell(&format!(
            "{helm} base {charts}/base {image} && {helm} istiod {charts}/istio-control/istio-discovery {image} {small} \
             --wait --timeout 120s"
        ))
        .context("istiod")
        .map(drop)
}

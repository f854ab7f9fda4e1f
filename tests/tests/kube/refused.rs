//! What mesh-node may do, and what it says of pods that it does not take.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::cluster::{Cluster, NAMESPACE, PROGRAMS};
use crate::workloads;

#[test]
fn pods_that_ask_for_the_mesh_and_are_not_taken_are_told_why_by_an_event() -> Result<()> {
    let Some(cluster) = Cluster::get() else { return Ok(()) };
    cluster.install(None)?;
    cluster.kubectl("label namespace default istio.io/dataplane-mode=mesh")?;
    let cases = [
        ("bad-annotation", "", "{mesh-node/acceleration: fast}", "app", "", "neither on nor off"),
        ("bad-label", "istio.io/dataplane-mode: Mesh", "{}", "app", "", "no known value"),
        ("has-sidecar", "", "{}", "istio-proxy", "", "has a sidecar of its own"),
        ("of-ambient", "", "{ambient.istio.io/redirection: enabled}", "app", "", "ambient mesh"),
        ("on-host", "", "{}", "app", "hostNetwork: true", "host's network"),
    ];
    for (name, label, annotations, container, more, _) in cases {
        cluster.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: refused, {label}}}, annotations: {annotations}}}
spec:
  terminationGracePeriodSeconds: 0
  {more}
  containers: [{{name: {container}, image: {PROGRAMS}, imagePullPolicy: IfNotPresent, command: [/mesh-peer, puppet], stdin: true}}]
"
        ))?;
    }
    for (name, .., why) in cases {
        cluster.until(&format!("an event tells {name}"), || {
            let selector = format!("involvedObject.name={name},reason=NotEnrolled");
            let events = cluster.kubectl(&format!(
                "get events --field-selector {selector} -o jsonpath={{.items[*].message}}"
            ))?;
            ensure!(events.contains(why), "{name}: {events:?}");
            Ok(())
        })?;
    }
    let status = cluster.status()?;
    ensure!(status.iter().all(|(_, status)| !status.contains("default/")), "{status:?}");
    cluster.kubectl("delete pod -l app=refused --wait=true")?;
    cluster.uninstall()?;
    cluster.nothing_is_left()
}

/// The rights of the manifests are those that are used: each one that is taken away is missed, by name.
#[test]
fn every_right_and_every_capability_that_it_is_given_is_needed() -> Result<()> {
    let Some(cluster) = Cluster::get() else { return Ok(()) };
    workloads::bookinfo(&cluster)?;
    cluster.install(None)?;
    cluster.kubectl("label namespace default istio.io/dataplane-mode=mesh")?;
    let all_enrolled = || -> Result<()> {
        let (mut pods, status) = (0, cluster.status()?);
        for (_, status) in &status {
            pods += status.lines().filter(|line| line.contains("::steered::")).count();
        }
        ensure!(pods == 7, "{pods} pods are enrolled: {status:?}");
        Ok(())
    };
    cluster.until("everything is enrolled with just these", all_enrolled)?;
    let role = cluster.json("get clusterrole mesh-node")?;
    let rules = role["rules"].clone();
    for (i, rule) in rules.as_array().context("rules")?.iter().enumerate() {
        let verbs = rule["verbs"].as_array().context("verbs")?.clone();
        let resources = rule["resources"].as_array().context("resources")?.clone();
        for resource in &resources {
            for verb in &verbs {
                let mut changed = rules.as_array().context("rules")?.clone();
                changed.remove(i);
                for other in &resources {
                    let left: Vec<_> =
                        verbs.iter().filter(|v| other != resource || *v != verb).cloned().collect();
                    if !left.is_empty() {
                        changed.push(json!({ "apiGroups": [""], "resources": [other], "verbs": left }));
                    }
                }
                set_rules(&cluster, &json!(changed))?;
                missed(&cluster, verb.as_str().unwrap_or_default(), resource.as_str().unwrap_or_default())?;
            }
        }
    }
    set_rules(&cluster, &rules)?;
    let set = cluster.json(&format!("-n {NAMESPACE} get daemonset mesh-node"))?;
    let path = "/spec/template/spec/containers/0/securityContext/capabilities/add";
    let capabilities = set.pointer(path).and_then(|c| c.as_array()).context("capabilities")?.clone();
    for capability in &capabilities {
        let left: Vec<_> = capabilities.iter().filter(|c| *c != capability).collect();
        patch_set(&cluster, &json!([{ "op": "replace", "path": path, "value": left }]))?;
        cluster.until(&format!("{capability} is missed"), || {
            let logs = cluster.logs()?;
            let told = logs.contains("capabilities")
                || logs.contains("Operation not permitted")
                || logs.contains("no process of");
            ensure!(told, "nothing is said without {capability}:\n{logs}");
            Ok(())
        })?;
        println!("{capability}: missed when it is not there");
    }
    patch_set(&cluster, &json!([{ "op": "replace", "path": path, "value": capabilities }]))?;
    cluster.ready()?;
    cluster.until("everything is enrolled again", all_enrolled)?;
    cluster.uninstall()?;
    workloads::remove_bookinfo(&cluster)?;
    cluster.nothing_is_left()
}

pub fn set_rules(cluster: &Cluster, rules: &serde_json::Value) -> Result<()> {
    cluster.apply(
        &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": "mesh-node" }, "rules": rules,
        })
        .to_string(),
    )
}

fn patch_set(cluster: &Cluster, patch: &serde_json::Value) -> Result<()> {
    let text = patch.to_string();
    cluster.shell(&format!("kubectl -n {NAMESPACE} patch daemonset mesh-node --type=json -p '{text}'"))?;
    // Those that cannot start are not waited for.
    cluster
        .kubectl(&format!("-n {NAMESPACE} delete pod -l app.kubernetes.io/name=mesh-node --wait=true"))
        .map(drop)
}

/// A mesh-node that starts without this right says so.
fn missed(cluster: &Cluster, verb: &str, resource: &str) -> Result<()> {
    cluster.kubectl(&format!("-n {NAMESPACE} delete pod -l app.kubernetes.io/name=mesh-node --wait=true"))?;
    if resource == "events" {
        let name = format!("unheard-{verb}");
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{istio.io/dataplane-mode: what}}}}, \
             spec: {{containers: [{{name: app, image: {PROGRAMS}, imagePullPolicy: IfNotPresent}}]}}}}"
        ))?;
    }
    let outcome = cluster.until(&format!("`{verb}` of {resource} is missed"), || {
        let logs = cluster.logs()?;
        match resource {
            "events" => ensure!(logs.contains("was not told by an Event"), "{logs}"),
            _ => ensure!(logs.contains(&format!("{resource} of the Kubernetes API")), "{logs}"),
        }
        Ok(())
    });
    if resource == "events" {
        cluster.kubectl(&format!("delete pod unheard-{verb} --wait=false --grace-period=0"))?;
    }
    match outcome {
        Ok(()) => println!("`{verb}` of {resource}: missed when it is not there"),
        Err(error) => bail!(error),
    }
    Ok(())
}

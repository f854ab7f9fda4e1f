//! A Kubernetes cluster, whichever: by kubectl, by a command that runs something on a node, and by the repository's
//! manifests. It knows nothing of how the cluster came to be.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::process::{Process, output_of};
use serde_json::Value;

pub const NAMESPACE: &str = "mesh-system";
/// The programs of the tests, in one image.
pub const PROGRAMS: &str = "localhost/mesh-tests:1";
/// How long what must happen may take.
const LIMIT: Duration = Duration::from_secs(90);

pub struct Cluster {
    /// A shell command that runs its arguments on the node `$NODE`.
    on_node: Option<String>,
}

impl Cluster {
    /// The cluster that `KUBECONFIG` names; `None` after saying that there is none.
    pub fn get() -> Option<Cluster> {
        if std::env::var_os("MESH_KUBE").is_none() {
            eprintln!(
                "SKIPPED: tests on Kubernetes are run by `cargo xtask test kube`, which prepares a cluster"
            );
            return None;
        }
        let cluster = Cluster { on_node: std::env::var("MESH_KUBE_ON_NODE").ok() };
        // Only where it was made for these tests: a test that failed has left what it had.
        if std::env::var_os("MESH_KUBE_DISPOSABLE").is_some() {
            cluster.shell(EMPTY).unwrap_or_else(|error| panic!("the cluster cannot be emptied: {error:#}"));
        }
        Some(cluster)
    }

    /// Runs a line of shell in the top directory of the repository.
    pub fn shell(&self, script: &str) -> Result<String> {
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).current_dir(root());
        output_of(&mut command, None)
    }

    pub fn kubectl(&self, args: &str) -> Result<String> {
        let mut command = Command::new("kubectl");
        command.args(args.split_whitespace());
        output_of(&mut command, None)
    }

    pub fn apply(&self, manifest: &str) -> Result<()> {
        let mut command = Command::new("kubectl");
        output_of(command.args(["apply", "-f", "-"]), Some(manifest)).map(drop)
    }

    pub fn json(&self, args: &str) -> Result<Value> {
        let text = self.kubectl(&format!("{args} -o json"))?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {args}"))
    }

    /// A program in a pod, with its three streams.
    pub fn exec(&self, namespace: &str, pod: &str, args: &[&str]) -> Result<Process> {
        let mut command = Command::new("kubectl");
        command.args(["-n", namespace, "exec", "-i", pod, "--"]).args(args);
        Process::spawn(command, None)
    }

    /// The nodes that run pods.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let nodes = self.kubectl("get nodes -o jsonpath={.items[*].metadata.name}")?;
        Ok(nodes.split_whitespace().map(str::to_owned).collect())
    }

    /// Runs a line of shell on a node; `None` where that is not possible here.
    pub fn on_node(&self, node: &str, script: &str) -> Result<Option<String>> {
        let Some(way) = &self.on_node else { return Ok(None) };
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{way} bash -c \"$SCRIPT\"")]).env("NODE", node).env("SCRIPT", script);
        output_of(&mut command, None).map(Some)
    }

    /// Restarts a node with all that is on it; `None` where that is not possible here.
    pub fn reboot(&self, node: &str) -> Result<Option<()>> {
        let Ok(way) = std::env::var("MESH_KUBE_REBOOT") else { return Ok(None) };
        let mut command = Command::new("bash");
        command.args(["-euc", &way]).env("NODE", node);
        output_of(&mut command, None).map(|_| Some(()))
    }

    /// Asks again until there is a good answer, with the last problem in the error.
    pub fn until<T>(&self, what: &str, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(error) if begun.elapsed() > LIMIT => return Err(error.context(what.to_owned())),
                Err(_) => std::thread::sleep(Duration::from_millis(100)), // the period of the poll
            }
        }
    }

    /// `mesh-node status` on every node, by the node's name.
    pub fn status(&self) -> Result<Vec<(String, String)>> {
        let pods = self.json(&format!("-n {NAMESPACE} get pods -l app.kubernetes.io/name=mesh-node"))?;
        let mut all = Vec::new();
        for pod in pods["items"].as_array().into_iter().flatten() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let status = self.kubectl(&format!("-n {NAMESPACE} exec {name} -- mesh-node status"))?;
            all.push((pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned(), status));
        }
        Ok(all)
    }

    /// Installs mesh-node with the repository's plain manifests, and other parts of its configuration if wanted.
    pub fn install(&self, bootstrap: Option<&str>) -> Result<()> {
        // Nobody is to wait for connections that clients keep.
        let manifests = std::fs::read_to_string(root().join("deploy/mesh-node.yaml"))?;
        self.apply(&manifests.replace("drain_time_s: 30", "drain_time_s: 2"))?;
        if let Some(bootstrap) = bootstrap {
            self.configure("bootstrap.yaml", bootstrap)?;
            self.kubectl(&format!("-n {NAMESPACE} rollout restart daemonset/mesh-node"))?;
        }
        self.ready()
    }

    /// Replaces a file of the configuration.
    pub fn configure(&self, file: &str, text: &str) -> Result<()> {
        let patch = serde_json::json!({ "data": { file: text } }).to_string();
        let mut command = Command::new("kubectl");
        command.args(["-n", NAMESPACE, "patch", "configmap", "mesh-node", "--type=merge", "-p", &patch]);
        output_of(&mut command, None).map(drop)
    }

    pub fn ready(&self) -> Result<()> {
        let args =
            format!("-n {NAMESPACE} rollout status daemonset/mesh-node --timeout={}s", LIMIT.as_secs());
        let outcome = self.kubectl(&args);
        if outcome.is_err() {
            eprintln!("{}", self.logs().unwrap_or_default());
        }
        outcome.map(drop)
    }

    pub fn logs(&self) -> Result<String> {
        self.kubectl(&format!(
            "-n {NAMESPACE} logs -l app.kubernetes.io/name=mesh-node --prefix --tail=60 --ignore-errors"
        ))
    }

    /// Lets the pods go, cleans the nodes, and takes mesh-node away.
    pub fn uninstall(&self) -> Result<()> {
        self.kubectl("label namespace default istio.io/dataplane-mode-")?;
        self.shell("kubectl apply -f deploy/mesh-node-cleanup.yaml")?;
        self.ready()?;
        self.shell("kubectl delete -f deploy/mesh-node.yaml --wait=true").map(drop)
    }

    /// Fails if anything of mesh-node is left on a node; says it where that cannot be seen.
    pub fn nothing_is_left(&self) -> Result<()> {
        for node in self.nodes()? {
            let Some(left) = self.on_node(&node, LEFT)? else {
                eprintln!(
                    "SKIPPED: what is left on {node} cannot be seen; set MESH_KUBE_ON_NODE to a command that runs its arguments on $NODE"
                );
                continue;
            };
            ensure!(left.trim().is_empty(), "left on {node}:\n{left}");
        }
        Ok(())
    }
}

/// Removes whatever a test makes.
const EMPTY: &str = r#"
kubectl label namespace --all istio.io/dataplane-mode- >/dev/null
kubectl uncordon -l kubernetes.io/os=linux >/dev/null
kubectl delete deployment,statefulset,job,pod --all --grace-period=1 >/dev/null
for service in $(kubectl get service -o name); do
  [ $service = service/kubernetes ] || kubectl delete $service >/dev/null
done
if kubectl get namespace mesh-system >/dev/null 2>&1; then
  kubectl apply -f deploy/mesh-node-cleanup.yaml >/dev/null
  kubectl -n mesh-system rollout status daemonset/mesh-node --timeout=90s >/dev/null
  kubectl delete -f deploy/mesh-node.yaml >/dev/null
fi
kubectl delete namespace other --ignore-not-found >/dev/null
if kubectl get namespace istio-system >/dev/null 2>&1; then
  helm -n istio-system uninstall istiod base >/dev/null
  kubectl delete namespace istio-system >/dev/null
fi
"#;

/// Prints what mesh-node leaves on a node: pins, programs in the control groups, TC programs, state, mounts, rules and
/// routes in the networks of pods.
const LEFT: &str = r#"
find /sys/fs/bpf -mindepth 1 ! -name '*.debug' 2>/dev/null
bpftool cgroup tree 2>/dev/null | grep mesh_
bpftool net 2>/dev/null | grep mesh_
find /run/mesh-node 2>/dev/null
grep mesh-node /proc/self/mountinfo
for pid in $(lsns -t net -n -o PID 2>/dev/null); do
  nsenter -t $pid -n ip rule 2>/dev/null | grep '^500:'
  nsenter -t $pid -n ip route show table 500 2>/dev/null
  nsenter -t $pid -n bpftool net 2>/dev/null | grep mesh_
done
true
"#;

pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

//! A real Kubernetes API server with etcd behind it, on a node of the stage: no kubelets, pods are objects.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_tests::netns::{HostCgroup, Node};
use mesh_tests::process::{self, Process, deadline};
use mesh_tests::run;
use serde_json::{Value, json};

use crate::control::program;

const API_PORT: u16 = 26443;
const ETCD: &str = "http://127.0.0.1:22379";
const ETCD_PEER: &str = "http://127.0.0.1:22380";

/// Ends with its processes.
pub struct Kube {
    node: Node,
    folder: PathBuf,
    kubectl: PathBuf,
    processes: Vec<Process>,
}

impl Kube {
    /// Starts it on `node`, with Istio's kinds; `None` after saying why it cannot be.
    pub fn start(node: &Node) -> Result<Option<Self>> {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/kube");
        if !scripts.exists() {
            eprintln!("SKIPPED: a Kubernetes API server is made with ../shared/kube, which is not there");
            return Ok(None);
        }
        let programs = program("MESH_KUBE_PROGRAMS").zip(program("MESH_ISTIO_CRDS"));
        let Some((programs, crds)) = programs else { return Ok(None) };
        let folder = run::work_dir().join(run::unique("kube"));
        std::fs::create_dir_all(&folder)?;
        let address = node.v4();
        // Certificates for the first address of this network: the node's.
        let mut pki = Command::new("bash");
        let net = address.to_string().rsplit_once('.').context("an IPv4 address")?.0.to_owned();
        pki.arg(scripts.join("pki.sh")).env("WORK", &folder).env("NET", net);
        pki.env("API_PORT", API_PORT.to_string());
        process::output_of(&mut pki, None)?;
        let mut etcd = Command::new("etcd");
        etcd.arg("--data-dir").arg(folder.join("etcd")).args([
            "--name",
            "here",
            "--logger",
            "zap",
            "--log-level",
            "error",
        ]);
        etcd.args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]);
        etcd.args(["--listen-peer-urls", ETCD_PEER, "--initial-advertise-peer-urls", ETCD_PEER]);
        etcd.args(["--initial-cluster", &format!("here={ETCD_PEER}")]);
        let etcd = node.spawn(HostCgroup::System, etcd).context("Debian's etcd-server")?;
        let pki = |name: &str| folder.join("pki").join(name).display().to_string();
        let mut api = Command::new(programs.join("kube-apiserver"));
        api.arg(format!("--etcd-servers={ETCD}"));
        api.arg(format!("--bind-address={address}")).arg(format!("--advertise-address={address}"));
        api.arg(format!("--secure-port={API_PORT}")).arg("--service-cluster-ip-range=10.96.0.0/16");
        api.args(["--authorization-mode=Node,RBAC", "--disable-admission-plugins=ServiceAccount"]);
        api.arg(format!("--client-ca-file={}", pki("ca.crt")));
        api.arg(format!("--tls-cert-file={}", pki("apiserver.crt")));
        api.arg(format!("--tls-private-key-file={}", pki("apiserver.key")));
        api.arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local");
        api.arg(format!("--service-account-key-file={}", pki("sa.pub")));
        api.arg(format!("--service-account-signing-key-file={}", pki("sa.key"))).arg("--profiling=false");
        let api = node.spawn(HostCgroup::System, api)?;
        let own = programs.join("kubectl");
        let kubectl = if own.exists() { own } else { "kubectl".into() };
        let mut kube = Self { node: node.clone(), folder, kubectl, processes: vec![etcd, api] };
        kube.wait_ready(address)?;
        let mut command = kube.command(&["apply", "--server-side", "-f"]);
        command.arg(crds);
        kube.node.netns().tool(command, None)?;
        let established = ["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"];
        kube.run(&established, None)?;
        kube.run(&["create", "namespace", "istio-system"], None)?;
        Ok(Some(kube))
    }

    fn wait_ready(&mut self, address: Ipv4Addr) -> Result<()> {
        let until = Instant::now() + 3 * deadline();
        while self.run(&["get", "--raw", "/readyz"], None).is_err() {
            let process = &mut self.processes[1];
            if !process.is_running() || Instant::now() > until {
                bail!("the API server at {address} does not get ready:\n{}", process.errors());
            }
            std::thread::sleep(Duration::from_millis(200)); // the period of the poll
        }
        Ok(())
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("pki/admin.conf")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str], input: Option<&str>) -> Result<String> {
        self.node.netns().tool(self.command(arguments), input)
    }

    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.run(&["apply", "-f", "-"], Some(yaml)).map(drop)
    }

    pub fn delete(&self, yaml: &str) -> Result<()> {
        self.run(&["delete", "--wait=false", "-f", "-"], Some(yaml)).map(drop)
    }

    /// A pod that runs and is ready, as a kubelet would say.
    pub fn pod(&self, name: &str, labels: &[(String, String)], ip: Ipv4Addr) -> Result<()> {
        let labels: Value = labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "default", "labels": labels },
            "spec": { "nodeName": "node-1", "serviceAccountName": "default",
                      "containers": [{ "name": "app", "image": "none", "ports": [{ "containerPort": 9080 }] }] },
        });
        self.apply(&pod.to_string())?;
        let status = json!({ "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        } });
        let patch = ["patch", "pod", name, "--subresource=status", "--type=merge", "-p", &status.to_string()];
        self.run(&patch, None).map(drop)
    }
}

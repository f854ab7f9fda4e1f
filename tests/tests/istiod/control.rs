//! A real istiod, given its configuration by files or by a real Kubernetes API server.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::netns::{HostCgroup, Node};
use mesh_tests::process::{Process, deadline};
use mesh_tests::run;

use crate::kube::Kube;

/// Where every istiod serves ADS in plain text.
pub const XDS_PORT: u16 = 15010;
const HTTP_PORT: u16 = 15080;

/// Environment of every istiod here: no certificates, and what a machine with two cores needs no more of.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("ENABLE_CA_SERVER", "false"),
    ("PILOT_CERT_PROVIDER", "none"),
    ("POD_NAMESPACE", "istio-system"),
    ("ENABLE_MULTICLUSTER_HEADLESS", "false"),
    ("GOMEMLIMIT", "1500MiB"),
];
/// Upstream's Envoy has none of Istio's own filters: where one is on the same istiod, they are switched off, as for it
/// in any installation with that Envoy.
const WITHOUT_OWN_FILTERS: [(&str, &str); 2] =
    [("PILOT_ENABLE_ALPN_FILTER", "false"), ("PILOT_ENABLE_METADATA_EXCHANGE", "false")];

/// Inbound listeners of an Envoy without an agent beside it must not want certificates either.
const WITHOUT_CERTIFICATES: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: DISABLE}}
";

/// Which filters istiod sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Filters {
    /// What a stock istiod sends every sidecar.
    Stock,
    ForUpstreamEnvoy,
}

/// Where istiod's configuration comes from.
pub enum Source {
    Files(PathBuf),
    Kube(Box<Kube>),
}

/// A running istiod.
pub struct Istiod {
    node: Node,
    filters: Filters,
    source: Source,
    process: Option<Process>,
    log: PathBuf,
}

impl Istiod {
    /// Starts istiod on `node` with these resources; `None` after saying why it cannot be.
    pub fn with_files(node: &Node, filters: Filters, resources: &str) -> Result<Option<Self>> {
        if program("MESH_ISTIOD_STANDALONE").is_none() {
            return Ok(None);
        }
        let folder = run::work_dir().join(run::unique("istio-config"));
        fs::create_dir_all(&folder)?;
        let mut istiod = Self::new(node, filters, Source::Files(folder))?;
        istiod.apply("base", resources)?;
        istiod.prepare()?;
        istiod.start()?;
        Ok(Some(istiod))
    }

    /// The same beside a Kubernetes API server of its own.
    pub fn with_kube(node: &Node, filters: Filters, resources: &str) -> Result<Option<Self>> {
        if program("MESH_PILOT_DISCOVERY").is_none() {
            return Ok(None);
        }
        let Some(kube) = Kube::start(node)? else { return Ok(None) };
        let mut istiod = Self::new(node, filters, Source::Kube(Box::new(kube)))?;
        istiod.apply("base", resources)?;
        istiod.prepare()?;
        istiod.start()?;
        Ok(Some(istiod))
    }

    fn new(node: &Node, filters: Filters, source: Source) -> Result<Self> {
        let log = run::work_dir().join(format!("{}.log", run::unique("istiod")));
        Ok(Self { node: node.clone(), filters, source, process: None, log })
    }

    fn prepare(&self) -> Result<()> {
        match self.filters {
            Filters::ForUpstreamEnvoy => self.apply("without-certificates", WITHOUT_CERTIFICATES),
            Filters::Stock => Ok(()),
        }
    }

    pub fn kube(&self) -> Option<&Kube> {
        match &self.source {
            Source::Kube(kube) => Some(kube),
            Source::Files(_) => None,
        }
    }

    /// Starts the process (again) and waits until it serves.
    pub fn start(&mut self) -> Result<()> {
        let address = self.node.v4();
        let mut command = match &self.source {
            Source::Files(folder) => {
                let mut command = Command::new(program("MESH_ISTIOD_STANDALONE").context("not built")?);
                command.arg("-config").arg(folder);
                command
                    .arg(format!("-grpc={address}:{XDS_PORT}"))
                    .arg(format!("-http={address}:{HTTP_PORT}"));
                command.arg(format!("-mesh={}", self.mesh_file()?.display()));
                command
            }
            Source::Kube(kube) => {
                let mut command = Command::new(program("MESH_PILOT_DISCOVERY").context("not built")?);
                command.args(["discovery", "--registries=Kubernetes", "--secureGRPCAddr=", "--httpsAddr="]);
                command.args(["--monitoringAddr=127.0.0.1:15014", "--ctrlz_port=0"]);
                command.arg(format!("--kubeconfig={}", kube.kubeconfig().display()));
                command.arg(format!("--meshConfig={}", self.mesh_file()?.display()));
                command.arg(format!("--grpcAddr={address}:{XDS_PORT}"));
                command.arg(format!("--httpAddr={address}:{HTTP_PORT}"));
                command
            }
        };
        command.envs(ENVIRONMENT);
        if self.filters == Filters::ForUpstreamEnvoy {
            command.envs(WITHOUT_OWN_FILTERS);
        }
        // Its log goes to one file, whatever stream it is written to, and over restarts.
        let mut shell = Command::new("bash");
        shell.args(["-c", "exec \"$@\" >>\"$0\" 2>&1"]).arg(&self.log).arg(command.get_program());
        shell.args(command.get_args()).envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        shell.current_dir(run::work_dir());
        let mut process = self.node.spawn(HostCgroup::System, shell)?;
        let until = Instant::now() + deadline();
        while !self.is_ready(address) {
            if !process.is_running() || Instant::now() > until {
                bail!("istiod does not get ready:\n{}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(50)); // the period of the poll
        }
        self.process = Some(process);
        Ok(())
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    fn is_ready(&self, address: Ipv4Addr) -> bool {
        let url = format!("http://{address}:{HTTP_PORT}/ready");
        let mut command = Command::new("curl");
        command.args(["-sf", "-m", "2", "-o", "/dev/null", &url]);
        self.node.netns().tool(command, None).is_ok()
    }

    /// Metrics and access logs as Istio's own installation configures them, where its filters are sent.
    fn mesh_file(&self) -> Result<PathBuf> {
        let path = self.log.with_extension("mesh.yaml");
        let text = match self.filters {
            Filters::Stock => "defaultProviders:\n  metrics: [prometheus]\n",
            // An Envoy without an agent beside it waits for its certificates for ever.
            Filters::ForUpstreamEnvoy => "enableAutoMtls: false\n",
        };
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Gives istiod these resources under a name, in place of those that had the name.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        match &self.source {
            Source::Files(folder) => {
                // Beside the folder first: it must never be seen half written.
                let part = folder.with_extension("part");
                fs::write(&part, yaml)?;
                Ok(fs::rename(part, folder.join(format!("{name}.yaml")))?)
            }
            Source::Kube(kube) => kube.apply(yaml),
        }
    }

    /// Takes away what [`Self::apply`] gave.
    pub fn remove(&self, name: &str, yaml: &str) -> Result<()> {
        match &self.source {
            Source::Files(folder) => Ok(fs::remove_file(folder.join(format!("{name}.yaml")))?),
            Source::Kube(kube) => kube.delete(yaml),
        }
    }

    /// Fails if a proxy has refused something, with istiod's line on it.
    pub fn nothing_was_refused(&self) -> Result<()> {
        let log = fs::read_to_string(&self.log)?;
        let refused: Vec<&str> = log.lines().filter(|line| line.contains("ACK ERROR")).collect();
        ensure!(refused.is_empty(), "refused by a proxy:\n{}", refused.join("\n"));
        Ok(())
    }
}

/// A program that `cargo xtask conformance` has built.
pub fn program(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from).filter(|path| Path::exists(path));
    if found.is_none() {
        eprintln!("SKIPPED: a real istiod is built and started by `cargo xtask conformance` ({variable})");
    }
    found
}

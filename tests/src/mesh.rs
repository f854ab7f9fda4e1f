//! `mesh-node` on a node: its files, its process, its readiness and its counters.
//!
//! The process runs in the node's namespace with a bpffs folder and control groups of its own, so that
//! several nodes and several tests share one kernel.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::netns::{Node, Pod};
use crate::process::{self, Process, deadline};
use crate::run;

/// The administration port of every started proxy, in its node's namespace.
pub const ADMIN_PORT: u16 = 15000;

/// The counters of the kernel programs, with labels `hook`, `reason` and the pod.
const KERNEL_COUNTER: &str = "mesh_kernel_total";

/// The configuration of a proxy.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// The Envoy bootstrap, YAML.
    pub bootstrap: String,
    /// Entries of the settings file, over those that the harness sets.
    pub settings: Map<String, Value>,
}

impl Default for MeshConfig {
    fn default() -> MeshConfig {
        MeshConfig { bootstrap: passthrough_bootstrap(), settings: Map::new() }
    }
}

impl MeshConfig {
    pub fn setting(mut self, name: &str, value: impl Into<Value>) -> MeshConfig {
        self.settings.insert(name.to_owned(), value.into());
        self
    }
}

/// Settings by what they mean to a test.
impl MeshConfig {
    /// Steers outbound connections by TC alone.
    pub fn without_connect_hook(self) -> MeshConfig {
        self.setting("connect_hook", false)
    }

    /// Lets new connections pass while no proxy runs; the default refuses them.
    pub fn fail_open(self) -> MeshConfig {
        self.setting("fail_mode", "open")
    }

    /// Lets bytes between pods and proxy go past TCP.
    pub fn accelerated(self) -> MeshConfig {
        self.setting("acceleration", true)
    }

    /// The same, and lets bytes between two applications of the node skip the proxy.
    pub fn handed_off(self) -> MeshConfig {
        self.accelerated().setting("hand_off", true)
    }

    /// Resets connections that are older than the enrolment of their pod; the default lets them pass.
    pub fn refuse_older_connections(self) -> MeshConfig {
        self.setting("older_connections", "refuse")
    }
}

/// A bootstrap that sends every connection where it was going: steering and nothing else.
pub fn passthrough_bootstrap() -> String {
    passthrough_with(Vec::new(), Vec::new())
}

/// The same with more listeners and clusters before those that take the rest; one that is named
/// `virtualOutbound` or `virtualInbound` takes the place of that.
pub fn passthrough_with(mut listeners: Vec<Value>, mut clusters: Vec<Value>) -> String {
    let listener = |name: &str, port: u16, direction: &str, cluster: &str| {
        json!({
            "name": name,
            "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
            "use_original_dst": true,
            "traffic_direction": direction,
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.tcp_proxy",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": cluster,
                    "cluster": cluster,
                },
            }]}],
        })
    };
    let cluster = |name: &str| {
        json!({
            "name": name,
            "type": "ORIGINAL_DST",
            "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "10s",
        })
    };
    for (name, port, direction, cluster) in [
        ("virtualOutbound", 15001, "OUTBOUND", "PassthroughCluster"),
        ("virtualInbound", 15006, "INBOUND", "InboundPassthroughCluster"),
    ] {
        if !listeners.iter().any(|l| l["name"] == name) {
            listeners.push(listener(name, port, direction, cluster));
        }
    }
    clusters.extend([cluster("PassthroughCluster"), cluster("InboundPassthroughCluster")]);
    let bootstrap = json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN_PORT}}},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    });
    bootstrap.to_string() // JSON is YAML
}

/// A running `mesh-node`. Dropping it kills the process and removes its programs, pins and rules by
/// `mesh-node cleanup`.
pub struct MeshNode {
    node: Node,
    folder: PathBuf,
    instance: String,
    process: Option<Process>,
}

impl MeshNode {
    /// Starts the proxy on `node` for `pods` and waits until it is ready.
    pub fn start(node: &Node, config: &MeshConfig, pods: &[&Pod]) -> Result<MeshNode> {
        let mut mesh = MeshNode::prepare(node, config, pods)?;
        mesh.launch()?;
        Ok(mesh)
    }

    /// Writes the files and starts nothing yet.
    pub fn prepare(node: &Node, config: &MeshConfig, pods: &[&Pod]) -> Result<MeshNode> {
        crate::sys::bpffs_root()?;
        let instance = run::unique("mesh");
        let folder = run::work_dir().join(&instance);
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let mesh = MeshNode { node: node.clone(), folder, instance, process: None };
        mesh.set_bootstrap(&config.bootstrap)?;
        mesh.set_pods(pods)?;
        let mut settings = Map::new();
        settings.insert("instance".to_owned(), json!(mesh.instance));
        settings.insert("pods_file".to_owned(), json!(mesh.folder.join("pods.yaml")));
        settings.insert("cgroup_root".to_owned(), json!(node.cgroup()));
        settings.insert("bpf_object".to_owned(), json!(bpf_object()?));
        settings.extend(config.settings.clone());
        replace(&mesh.folder.join("settings.yaml"), &Value::Object(settings).to_string())?;
        Ok(mesh)
    }

    /// Starts the process (again) and waits until it is ready.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = self.command()?;
        command.arg("run");
        let process = self.node.spawn_in(&self.node.cgroup().join("mesh-node"), command)?;
        self.process = Some(process);
        self.wait_ready()
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(process::binary("mesh-node")?);
        command
            .arg("--bootstrap")
            .arg(self.folder.join("bootstrap.yaml"))
            .arg("--settings")
            .arg(self.folder.join("settings.yaml"));
        Ok(command)
    }

    /// Waits until `/ready` answers 200.
    pub fn wait_ready(&mut self) -> Result<()> {
        let until = Instant::now() + deadline();
        loop {
            if matches!(self.get("/ready"), Ok((200, _))) {
                return Ok(());
            }
            let process = self.process.as_mut().context("the proxy was not started")?;
            if !process.is_running() {
                bail!("mesh-node ended before it was ready:\n{}", process.errors());
            }
            if Instant::now() > until {
                bail!("mesh-node is not ready after {:?}:\n{}", deadline(), process.errors());
            }
            std::thread::sleep(Duration::from_millis(20)); // the period of the poll
        }
    }

    /// Replaces the pods file at once, as a rename.
    pub fn set_pods(&self, pods: &[&Pod]) -> Result<()> {
        let entries: Vec<Value> = pods.iter().map(|pod| pod_entry(pod)).collect();
        replace(&self.folder.join("pods.yaml"), &json!({"pods": entries}).to_string())
    }

    /// The bootstrap file, which the running process watches.
    pub fn bootstrap_path(&self) -> PathBuf {
        self.folder.join("bootstrap.yaml")
    }

    /// Replaces the bootstrap file at once, as a rename.
    pub fn set_bootstrap(&self, text: &str) -> Result<()> {
        replace(&self.bootstrap_path(), text)
    }

    /// Replaces the pods file and waits until the proxy reports the enrolment of exactly these pods.
    pub fn enrol(&mut self, pods: &[&Pod]) -> Result<()> {
        self.set_pods(pods)?;
        self.wait_metric("mesh_enrolled_pods", |v| v == pods.len() as f64)
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The name of this instance: its folder in bpffs.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// This instance's folder in bpffs.
    pub fn pins(&self) -> PathBuf {
        PathBuf::from("/sys/fs/bpf/mesh-node").join(&self.instance)
    }

    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the proxy is not running")
    }

    /// Kills the process with SIGKILL; programs and pins stay.
    pub fn kill_9(&mut self) {
        self.process = None;
    }

    /// Ends the process with SIGTERM and waits for its end.
    pub fn terminate(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the proxy is not running")?;
        process.signal(libc::SIGTERM)?;
        let status = process.wait(deadline())?;
        ensure!(status.success(), "mesh-node ended with {status}:\n{}", process.errors());
        Ok(())
    }

    /// Runs `mesh-node cleanup` for this instance.
    pub fn cleanup(&self) -> Result<()> {
        self.ask("cleanup").map(drop)
    }

    /// What `mesh-node status` prints for this instance, whether or not its process runs.
    pub fn status(&self) -> Result<String> {
        self.ask("status")
    }

    fn ask(&self, what: &str) -> Result<String> {
        let mut command = self.command()?;
        command.arg(what);
        crate::sys::place(
            &mut command,
            self.node.netns().file(),
            Some(&self.node.cgroup().join("system.slice")),
        )?;
        process::output_of(&mut command, None)
    }

    /// One request to the administration interface: status and body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        self.admin("GET", path)
    }

    pub fn admin(&self, method: &str, path: &str) -> Result<(u16, String)> {
        self.node.netns().run(|| {
            let address = SocketAddr::from(([127, 0, 0, 1], ADMIN_PORT));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let request = format!("{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let (head, body) = answer.split_once("\r\n\r\n").context("no end of the answer's head")?;
            let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status")?;
            Ok((status, body.to_owned()))
        })?
    }

    /// The sum of all series of a metric whose labels contain `labels` (as `reason="steered"`); zero
    /// if there are none.
    pub fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        let (status, text) = self.get("/stats/prometheus")?;
        ensure!(status == 200, "/stats/prometheus answers {status}");
        let series = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])) && line.contains(labels)
        });
        Ok(series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// A counter or gauge as `/stats` names it; zero if it does not exist yet.
    pub fn stat(&self, name: &str) -> Result<u64> {
        let (status, text) = self.get("/stats")?;
        ensure!(status == 200, "/stats answers {status}");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.map_or(Ok(0), |v| v.trim().parse().with_context(|| format!("{name} is {v}")))
    }

    /// How often a kernel program (`connect`, `sk_lookup`, `sockops`, `tc_steer`, `tc_guard`) counted a
    /// reason.
    pub fn count(&self, hook: &str, reason: &str) -> Result<f64> {
        let (status, text) = self.get("/stats/prometheus")?;
        ensure!(status == 200, "/stats/prometheus answers {status}");
        let (hook, reason) = (format!("hook=\"{hook}\""), format!("reason=\"{reason}\""));
        let series = text
            .lines()
            .filter(|l| l.starts_with(KERNEL_COUNTER) && l.contains(&hook) && l.contains(&reason));
        Ok(series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Waits until the proxy lists exactly these hosts for a cluster.
    pub fn wait_hosts(&mut self, cluster: &str, wanted: &[IpAddr]) -> Result<()> {
        let until = Instant::now() + deadline();
        let mut wanted: Vec<String> = wanted.iter().map(IpAddr::to_string).collect();
        wanted.sort();
        loop {
            let (_, text) = self.get("/clusters")?;
            // One line for each fact: `CLUSTER::ADDRESS:PORT::NAME::VALUE`.
            let host = |line: &str| {
                let rest = line.strip_prefix(cluster)?.strip_prefix("::")?;
                let address: SocketAddr = rest.split("::").next()?.parse().ok()?;
                Some(address.ip().to_string())
            };
            let mut hosts: Vec<String> = text.lines().filter_map(host).collect();
            hosts.sort();
            hosts.dedup();
            if hosts == wanted {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{cluster} keeps the hosts {hosts:?}, not {wanted:?}");
            std::thread::sleep(Duration::from_millis(20)); // the period of the poll
        }
    }

    /// Waits until a kernel program has counted a reason at least `least` times.
    pub fn wait_count(&mut self, hook: &str, reason: &str, least: f64) -> Result<()> {
        let until = Instant::now() + deadline();
        loop {
            let value = self.count(hook, reason)?;
            if value >= least {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{hook} counted {reason} {value} times, not {least}");
            std::thread::sleep(Duration::from_millis(20)); // the period of the poll
        }
    }

    /// Waits until a counter or gauge of `/stats` satisfies `wanted`.
    pub fn wait_stat(&mut self, name: &str, wanted: impl Fn(u64) -> bool) -> Result<()> {
        let until = Instant::now() + deadline();
        loop {
            let value = self.stat(name)?;
            if wanted(value) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{name} stays at {value}");
            std::thread::sleep(Duration::from_millis(20)); // the period of the poll
        }
    }

    /// Waits until a metric (all series) satisfies `wanted`.
    pub fn wait_metric(&mut self, name: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
        self.wait_metric_of(name, "", wanted)
    }

    /// Waits until the sum of the series with `labels` satisfies `wanted`.
    pub fn wait_metric_of(&mut self, name: &str, labels: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
        let until = Instant::now() + deadline();
        loop {
            let value = self.metric(name, labels)?;
            if wanted(value) {
                return Ok(());
            }
            if Instant::now() > until {
                let errors = self.process.as_ref().map(Process::errors).unwrap_or_default();
                bail!("{name}{{{labels}}} stays at {value}; standard error of mesh-node:\n{errors}");
            }
            std::thread::sleep(Duration::from_millis(20)); // the period of the poll
        }
    }
}

impl Drop for MeshNode {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(process) = &self.process
        {
            eprintln!("standard error of mesh-node on {}:\n{}", self.node.netns().name(), process.errors());
        }
        self.process = None;
        if let Err(error) = self.cleanup() {
            eprintln!("mesh-node cleanup of {}: {error:#}", self.instance);
        }
    }
}

/// The compiled kernel programs: `bpf/mesh-ebpf.o` in a folder above the running program (`target/`).
fn bpf_object() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding the running program")?;
    let found = own.ancestors().map(|folder| folder.join("bpf/mesh-ebpf.o")).find(|path| path.is_file());
    found.context("no compiled kernel programs: run `cargo xtask build-ebpf`")
}

/// A pod as the pods file names it.
fn pod_entry(pod: &Pod) -> Value {
    let spec = pod.spec();
    let object = |pairs: &[(String, String)]| -> Value {
        Value::Object(pairs.iter().map(|(k, v)| (k.clone(), json!(v))).collect())
    };
    json!({
        "uid": pod.uid(),
        "name": spec.name,
        "namespace": spec.namespace,
        "service_account": spec.service_account,
        "labels": object(&spec.labels),
        "annotations": object(&spec.annotations),
        "ips": pod.addresses(),
        "netns": pod.netns().path(),
        "opt_out": spec.opt_out,
    })
}

/// Writes a file so that a reader sees the old content or the new one, never a part.
fn replace(path: &std::path::Path, text: &str) -> Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, text)
        .and_then(|()| fs::rename(&next, path))
        .with_context(|| format!("writing {}", path.display()))
}

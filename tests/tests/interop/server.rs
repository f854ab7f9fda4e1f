//! A go-control-plane server, a mesh-node under it, and a backend.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mesh_tests::process::{self, Process, deadline};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use mesh_tests::load::answer;

/// How mesh-node asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    DeltaAds,
    Ads,
    /// The services of each type, state of the world.
    PerType,
}

/// What a push has.
#[derive(Debug, Clone, Copy)]
pub struct Push {
    pub version: u32,
    pub second_endpoint: bool,
    /// `connect_timeout` of the cluster: a change makes it another cluster.
    pub timeout_s: u32,
}

impl Default for Push {
    fn default() -> Self {
        Self { version: 0, second_endpoint: false, timeout_s: 5 }
    }
}

/// Builds the server; `None` without Go, after saying so.
pub fn build() -> Option<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/xds-server");
    let program = process::binary("mesh-node").expect("mesh-node is built").with_file_name("xds-server");
    let built = Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(sources).status();
    match built {
        Ok(status) if status.success() => Some(program),
        Ok(status) => panic!("go build: {status}"),
        Err(error) => {
            eprintln!("SKIPPED: interop with go-control-plane needs Go 1.24 in PATH ({error})");
            None
        }
    }
}

/// Everything that a test needs.
pub struct Mesh {
    program: PathBuf,
    protocol: Protocol,
    server: Option<Process>,
    _node: Process,
    xds: SocketAddr,
    control: SocketAddr,
    admin: SocketAddr,
    listener: SocketAddr,
    backends: [SocketAddr; 2],
    pushes: u32,
}

impl Mesh {
    pub async fn start(program: &Path, protocol: Protocol) -> Self {
        let (server, xds, control) = start_server(program, "127.0.0.1:0");
        let backends = [backend().await, backend().await];
        let (admin, listener) = (free_address().await, free_address().await);
        let mut command = Command::new(process::binary("mesh-node").unwrap());
        command.args(["--config-yaml", &bootstrap(protocol, admin, xds).to_string(), "-l", "info"]);
        let node = Process::spawn(command, None).unwrap();
        let mesh = Self {
            program: program.to_owned(),
            protocol,
            server: Some(server),
            _node: node,
            xds,
            control,
            admin,
            listener,
            backends,
            pushes: 0,
        };
        until("the admin server", async || get(mesh.admin, "/ready").await.is_some()).await;
        mesh
    }

    pub fn listener(&self) -> SocketAddr {
        self.listener
    }

    pub async fn push(&mut self, push: &Push) {
        let snapshot = self.snapshot(push);
        self.send(&snapshot).await;
    }

    /// The cluster and its endpoints are gone; listener and routes still name it.
    pub async fn push_without_cluster(&mut self) {
        let mut snapshot = self.snapshot(&Push::default());
        snapshot["clusters"] = json!([]);
        snapshot["endpoints"] = json!([]);
        self.send(&snapshot).await;
    }

    pub async fn push_with_bad_cluster(&mut self, version: u32) {
        let mut snapshot = self.snapshot(&Push { version, ..Push::default() });
        let bad = json!({ "name": "bad", "type": "STATIC", "lb_policy": "CLUSTER_PROVIDED" });
        snapshot["clusters"].as_array_mut().unwrap().push(bad);
        self.send(&snapshot).await;
    }

    async fn send(&mut self, snapshot: &Value) {
        self.pushes += 1;
        let path = format!("/snapshot?version={}", self.pushes);
        let head =
            request(self.control, "POST", &path, &snapshot.to_string()).await.expect("the server answers");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }

    fn snapshot(&self, push: &Push) -> Value {
        let source = match self.protocol {
            Protocol::DeltaAds | Protocol::Ads => json!({ "ads": {}, "resource_api_version": "V3" }),
            Protocol::PerType => grpc_source(),
        };
        let count = if push.second_endpoint { 2 } else { 1 };
        let endpoints: Vec<Value> = self.backends[..count]
            .iter()
            .map(|b| json!({ "endpoint": { "address": address(*b) } }))
            .collect();
        json!({
            "clusters": [{
                "name": "a", "type": "EDS", "connect_timeout": format!("{}s", push.timeout_s),
                "eds_cluster_config": { "eds_config": source },
            }],
            "endpoints": [{ "cluster_name": "a", "endpoints": [{ "lb_endpoints": endpoints }] }],
            "listeners": [{
                "name": "l", "address": address(self.listener),
                "filter_chains": [{ "filters": [{ "name": "hcm", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.\
                              HttpConnectionManager",
                    "stat_prefix": "x",
                    "rds": { "route_config_name": "r", "config_source": source },
                    "http_filters": [{ "name": "router", "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }],
                } }] }],
            }],
            "routes": [{ "name": "r", "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [{
                "match": { "prefix": "/" }, "route": { "cluster": "a" },
                "response_headers_to_add": [
                    { "header": { "key": "x-version", "value": push.version.to_string() } }],
            }] }] }],
        })
    }

    /// Returns when answers carry this version.
    pub async fn serves(&self, version: &str) {
        let wanted = format!("x-version: {version}\r\n");
        let what = format!("version {version}");
        until(&what, async || {
            let head = get(self.listener, "/").await.unwrap_or_default();
            format!("{head}\r\n").contains(&wanted)
        })
        .await;
    }

    /// Returns when mesh-node has noticed that its server is gone.
    pub async fn disconnected(&self) {
        until("the end of the stream", async || {
            let stats = body(self.admin, "/stats?filter=control_plane.connected_state").await;
            stats.contains("connected_state: 0")
        })
        .await;
    }

    /// Clusters that were refused, and why, as `/config_dump` shows them.
    pub async fn error_states(&self) -> Vec<(String, String)> {
        let dump: Value = serde_json::from_str(&body(self.admin, "/config_dump").await).unwrap();
        let clusters = dump["configs"]
            .as_array()
            .unwrap()
            .iter()
            .find(|dump| dump["@type"].as_str().is_some_and(|of| of.ends_with("ClustersConfigDump")));
        let clusters = clusters.expect("a dump of clusters");
        let fields = ["dynamic_active_clusters", "dynamic_warming_clusters"];
        let elements = fields.iter().flat_map(|field| clusters[field].as_array().into_iter().flatten());
        let refused = elements.filter(|element| element["error_state"].is_object());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        refused.map(|e| (text(&e["cluster"]["name"]), text(&e["error_state"]["details"]))).collect()
    }

    /// Returns when nothing is shown as refused.
    pub async fn forgets_errors(&self) {
        until("the end of errors", async || self.error_states().await.is_empty()).await;
    }

    pub async fn stat(&self, name: &str) -> u64 {
        let stats = body(self.admin, "/stats").await;
        let value = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    pub fn kill_server(&mut self) {
        self.server = None;
    }

    pub async fn restart_server(&mut self) {
        let (server, _, control) = start_server(&self.program, &self.xds.to_string());
        (self.server, self.control) = (Some(server), control);
    }

    /// The errors of all NACKs.
    pub async fn nacks(&self) -> Vec<String> {
        let lines = body(self.control, "/nacks").await;
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn start_server(program: &Path, address: &str) -> (Process, SocketAddr, SocketAddr) {
    let mut command = Command::new(program);
    command.arg(address);
    let mut server = Process::spawn(command, None).unwrap();
    let line = server.line().unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    (server, words[1].parse().unwrap(), words[3].parse().unwrap())
}

fn grpc_source() -> Value {
    json!({ "resource_api_version": "V3", "api_config_source": {
        "api_type": "GRPC", "transport_api_version": "V3",
        "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }] } })
}

fn bootstrap(protocol: Protocol, admin: SocketAddr, xds: SocketAddr) -> Value {
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let stream = |api_type: &str| {
        json!({ "api_type": api_type, "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }] })
    };
    let dynamic = match protocol {
        Protocol::DeltaAds => {
            json!({ "ads_config": stream("DELTA_GRPC"), "cds_config": ads, "lds_config": ads })
        }
        Protocol::Ads => json!({ "ads_config": stream("GRPC"), "cds_config": ads, "lds_config": ads }),
        Protocol::PerType => json!({ "cds_config": grpc_source(), "lds_config": grpc_source() }),
    };
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({
        "node": { "id": "node", "cluster": "interop" },
        "admin": { "address": address(admin) },
        "dynamic_resources": dynamic,
        "static_resources": { "clusters": [{
            "name": "xds",
            "typed_extension_protocol_options": { options: {
                "@type": format!("type.googleapis.com/{options}"),
                "explicit_http_config": { "http2_protocol_options": {} } } },
            "load_assignment": { "cluster_name": "xds", "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": address(xds) } }] }] },
        }] },
    })
}

pub fn address(of: SocketAddr) -> Value {
    json!({ "socket_address": { "address": of.ip().to_string(), "port_value": of.port() } })
}

/// An address that nobody listens on now.
pub async fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap()
}

/// A server that answers every request with 200.
pub async fn backend() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((io, _)) = listener.accept().await {
                tokio::spawn(serve(io));
            }
        });
    });
    address
}

async fn serve(mut io: TcpStream) {
    let mut buffer = Vec::new();
    while answer(&mut io, &mut buffer).await.is_ok() {
        // Long enough to be held up by a small window.
        if io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\nsixteen bytes of").await.is_err() {
            return;
        }
    }
}

/// The head of the answer.
pub async fn get(to: SocketAddr, path: &str) -> Option<String> {
    request(to, "GET", path, "").await
}

async fn body(of: SocketAddr, path: &str) -> String {
    let whole = request(of, "GET", path, "").await.unwrap_or_default();
    whole.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}

/// The whole answer, with its head.
async fn request(to: SocketAddr, method: &str, path: &str, body: &str) -> Option<String> {
    let mut io = TcpStream::connect(to).await.ok()?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    io.write_all(head.as_bytes()).await.ok()?;
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.ok()?;
    Some(answer).filter(|answer| !answer.is_empty())
}

/// Asks again and again: other processes have no events for us.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + deadline();
    while !holds().await {
        assert!(Instant::now() < end, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

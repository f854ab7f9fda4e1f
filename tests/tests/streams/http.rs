//! Files up and down by curl, nginx and HAProxy, with and without splice, through the proxy as bytes and as HTTP.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{MeshConfig, MeshNode, passthrough_with};
use mesh_tests::need_root;
use mesh_tests::netns::{Node, Pod};
use mesh_tests::process::Process;
use mesh_tests::run;
use serde_json::{Value, json};

use crate::stage::{pod, splicing_is_seen};

const SIZES: [usize; 8] = [1, 100, 4096, 16_385, 65_536, 300_000, 1 << 20, 8 << 20];
const PORT: u16 = 8080;
/// Connections to each: the first are those that the proxy learns from.
const ROUNDS: usize = 4;

/// What is in front of nginx, or behind curl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hop {
    None,
    HaproxySplicing,
    HaproxyCopying,
}

const HOPS: [Hop; 3] = [Hop::None, Hop::HaproxySplicing, Hop::HaproxyCopying];

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i * 7 + (i >> 8) * 13 + (i >> 16) * 29) as u8).collect()
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        let folder = Folder(run::work_dir().join(run::unique("http")));
        for name in ["documents", "got", "tmp"] {
            fs::create_dir_all(folder.0.join(name))?;
        }
        for size in SIZES {
            fs::write(folder.document(size), pattern(size))?;
        }
        Ok(folder)
    }

    fn document(&self, size: usize) -> PathBuf {
        self.0.join("documents").join(size.to_string())
    }

    /// nginx that serves the documents at this port, and keeps what is sent.
    fn nginx(&self, pod: &Pod, port: u16) -> Result<Process> {
        let kept = self.kept(pod);
        fs::create_dir_all(&kept)?;
        let config = format!(
            "daemon off; master_process off; worker_processes 1; pid /dev/null; error_log stderr crit;\n\
             user root;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n\
               access_log off; sendfile on; client_max_body_size 16m; default_type application/octet-stream;\n\
               client_body_temp_path {tmp}; proxy_temp_path {tmp}; fastcgi_temp_path {tmp};\n\
               uwsgi_temp_path {tmp}; scgi_temp_path {tmp};\n\
               server {{\n\
                 listen 0.0.0.0:{port};\n\
                 location /kept/ {{ alias {kept}/; dav_methods PUT; }}\n\
                 location / {{ root {documents}; }}\n\
               }}\n\
             }}\n",
            tmp = self.0.join("tmp").display(),
            kept = kept.display(),
            documents = self.0.join("documents").display(),
        );
        let file = kept.with_extension("conf");
        fs::write(&file, config)?;
        let mut command = Command::new("nginx");
        command.arg("-e").arg("stderr").arg("-c").arg(file);
        started(pod, command, port)
    }

    fn kept(&self, pod: &Pod) -> PathBuf {
        self.0.join(pod.name())
    }

    /// HAProxy that passes connections from each port on to an address.
    fn haproxy(&self, pod: &Pod, hop: Hop, ways: &[(String, String)]) -> Result<Process> {
        let splice = if hop == Hop::HaproxySplicing {
            "  option splice-request\n  option splice-response\n"
        } else {
            ""
        };
        let mut config = format!(
            "global\n  nbthread 1\n  maxconn 512\n\
             defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1m\n  timeout server 1m\n{splice}"
        );
        for (i, (bind, to)) in ways.iter().enumerate() {
            config += &format!("listen way{i}\n  bind {bind}\n  server s {to}\n");
        }
        let file = self.0.join(format!("haproxy-{}.cfg", pod.name()));
        fs::write(&file, config)?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file);
        let port = ways[0].0.rsplit(':').next().and_then(|port| port.parse().ok()).context("a port")?;
        started(pod, command, port)
    }
}

/// Waits until the port takes connections.
fn started(pod: &Pod, command: Command, port: u16) -> Result<Process> {
    let mut process = pod.spawn(command)?;
    let until = std::time::Instant::now() + mesh_tests::process::deadline();
    let open = || pod.netns().run(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    while !open()? {
        ensure!(
            process.is_running() && std::time::Instant::now() < until,
            "port {port}: {}",
            process.errors()
        );
        std::thread::sleep(Duration::from_millis(20)); // the period of the poll
    }
    Ok(process)
}

/// Everything both ways is read as HTTP.
fn http_bootstrap() -> String {
    let listener = |name: &str, port: u16, direction: &str, cluster: &str| {
        json!({
            "name": name,
            "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
            "use_original_dst": true,
            "traffic_direction": direction,
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager(cluster),
            }]}],
        })
    };
    passthrough_with(
        vec![
            listener("virtualOutbound", 15001, "OUTBOUND", "PassthroughCluster"),
            listener("virtualInbound", 15006, "INBOUND", "InboundPassthroughCluster"),
        ],
        Vec::new(),
    )
}

fn manager(cluster: &str) -> Value {
    json!({
        "@type":
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": cluster,
        "codec_type": "HTTP1",
        "route_config": {
            "name": cluster,
            "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "60s"}}],
            }],
        },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }],
    })
}

/// All documents down, then all up, each over one connection.
fn transfer(folder: &Folder, client: &Pod, host: &str, server: &Pod) -> Result<()> {
    let got = folder.0.join("got").join(client.name());
    fs::create_dir_all(&got)?;
    let mut down = curl();
    let mut up = curl();
    for size in SIZES {
        down.arg("-o").arg(got.join(size.to_string())).arg(format!("http://{host}/{size}"));
        up.arg("-T").arg(folder.document(size)).arg(format!("http://{host}/kept/{size}"));
        // What an earlier transfer left must not be taken for this one's.
        for place in [got.join(size.to_string()), folder.kept(server).join(size.to_string())] {
            if place.exists() {
                fs::remove_file(place)?;
            }
        }
    }
    for (command, what) in [(down, "down"), (up, "up")] {
        let mut process = client.spawn(command)?;
        let status = process.wait(Duration::from_secs(120))?;
        ensure!(status.success(), "{what}: curl ends with {status}: {}", process.errors());
    }
    for size in SIZES {
        let sent = fs::read(folder.document(size))?;
        for (what, place) in [("down", got.clone()), ("up", folder.kept(server))] {
            let came = fs::read(place.join(size.to_string()))?;
            ensure!(came == sent, "{what}: {} bytes of {size}, not those that were sent", came.len());
        }
    }
    Ok(())
}

fn curl() -> Command {
    let mut command = Command::new("curl");
    command.args(["-sS", "--fail", "--max-time", "60", "-H", "Expect:"]);
    command
}

/// Each of the clients with each of the servers.
fn all_with_all(bootstrap: Option<String>) -> Result<()> {
    let node = Node::new("node", 1)?;
    let folder = Folder::new()?;
    let seen = splicing_is_seen(&node)?;
    let place = |what: &str, hop: Hop| {
        pod(&node, &format!("{what}-{hop:?}").to_lowercase(), seen || hop != Hop::HaproxySplicing)
    };
    let (mut servers, mut clients, mut running) = (Vec::new(), Vec::new(), Vec::new());
    for hop in HOPS {
        let server = place("server", hop)?;
        let port = if hop == Hop::None { PORT } else { 8081 };
        running.push(folder.nginx(&server, port)?);
        if hop != Hop::None {
            let ways = [(format!("0.0.0.0:{PORT}"), format!("127.0.0.1:{port}"))];
            running.push(folder.haproxy(&server, hop, &ways)?);
        }
        servers.push(server);
    }
    for hop in HOPS {
        let client = place("client", hop)?;
        let mut hosts: Vec<String> = servers.iter().map(|pod| format!("{}:{PORT}", pod.v4())).collect();
        if hop != Hop::None {
            let local: Vec<String> = (0..hosts.len()).map(|i| format!("127.0.0.1:{}", 9000 + i)).collect();
            let ways: Vec<_> = local.iter().cloned().zip(hosts).collect();
            running.push(folder.haproxy(&client, hop, &ways)?);
            hosts = local;
        }
        clients.push((hop, client, hosts));
    }
    let config = MeshConfig::default().accelerated();
    let config = match bootstrap {
        Some(bootstrap) => MeshConfig { bootstrap, ..config },
        None => config,
    };
    let pods: Vec<&Pod> = servers.iter().chain(clients.iter().map(|(_, pod, _)| pod)).collect();
    let mesh = MeshNode::start(&node, &config, &pods)?;
    for round in 0..ROUNDS {
        for (hop, client, hosts) in &clients {
            for (server, host) in servers.iter().zip(hosts) {
                transfer(&folder, client, host, server).with_context(|| {
                    format!("round {round}, {} ({hop:?}) to {}", client.name(), server.name())
                })?;
            }
        }
    }
    ensure!(
        mesh.count("accel", "accelerated")? > 0.0,
        "nothing was accelerated: {}",
        mesh.get("/acceleration")?.1
    );
    fs::remove_dir_all(Path::new(&folder.0)).context("removing what came")
}

#[test]
fn curl_nginx_and_haproxy_transfer_whole_files_through_a_proxy_of_bytes() -> Result<()> {
    need_root!();
    all_with_all(None)
}

#[test]
fn curl_nginx_and_haproxy_transfer_whole_files_through_a_proxy_of_http() -> Result<()> {
    need_root!();
    all_with_all(Some(http_bootstrap()))
}

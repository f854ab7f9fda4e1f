//! In-memory hand-over: between two pods of a node the two halves meet without a connection between them, and
//! neither application, log nor statistic can tell. What the network keeps apart stays apart.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::differential::Certificates;
use mesh_tests::mesh::{MeshConfig, MeshNode, passthrough_with};
use mesh_tests::need_root;
use mesh_tests::netns::{Pod, PodSpec};
use mesh_tests::peer::{CallOptions, Place, Seen, Server};
use mesh_tests::{process, run};
use serde_json::json;

use crate::stage::{FIRST_PORT, Stage, Taken, Way, ends_are_true, taken_during};

const HTTP: u16 = 8090;

/// What the halves speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    PlainText,
    MutualTls,
}

impl Between {
    /// The cluster of the client's half.
    fn cluster(self) -> &'static str {
        match self {
            Between::PlainText => "PassthroughCluster",
            Between::MutualTls => "Mutual",
        }
    }
}

/// A TLS context of that side, with its certificate and the authority of both.
fn tls(folder: &Path, side: &str) -> serde_json::Value {
    let file = |name: &str| json!({"filename": folder.join(name)});
    let (name, message) = match side {
        "client" => ("client", "UpstreamTlsContext"),
        _ => ("server", "DownstreamTlsContext"),
    };
    let mut context = json!({
        "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{message}"),
        "common_tls_context": {
            "tls_certificates": [{
                "certificate_chain": file(&format!("{name}.pem")), "private_key": file(&format!("{name}.key")),
            }],
            "validation_context": {"trusted_ca": file("ca.pem")},
        },
    });
    if side == "client" {
        context["sni"] = "server.test".into();
    } else {
        context["require_client_certificate"] = true.into();
    }
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

// Answers name the client's port, which has four digits or five: bytes sent are not compared.
/// The passthrough with HTTP connection managers for [`HTTP`] in both directions, each with its log.
fn config(folder: &Path, in_memory: bool, between: Between) -> Result<MeshConfig> {
    let manager = |half: &str, cluster: &str| {
        json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": half,
                "access_log": [{
                    "name": "envoy.access_loggers.file",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                        "path": folder.join(half),
                        "log_format": {"text_format_source": {"inline_string":
                            "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% \
                             %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% \
                             %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_ADDRESS% %UPSTREAM_HOST% \
                             %UPSTREAM_CLUSTER% %REQ(X-FORWARDED-PROTO)% %REQ(HOST)% %REQ(X-A)% \
                             %DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_TLS_VERSION% %REQUESTED_SERVER_NAME%\n"}},
                    },
                }],
                "route_config": {"name": half, "virtual_hosts": [{
                    "name": half, "domains": ["*"],
                    "routes": [
                        {"match": {"path": format!("/{half}")}, "direct_response": {"status": 418}},
                        {"match": {"prefix": "/"}, "route": {"cluster": cluster}},
                    ],
                }]},
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                }],
            },
        })
    };
    let tcp = json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "InboundPassthroughCluster", "cluster": "InboundPassthroughCluster",
        },
    });
    let address = |port: u16| json!({"socket_address": {"address": "0.0.0.0", "port_value": port}});
    let outbound = json!({
        "name": "http", "address": address(HTTP), "traffic_direction": "OUTBOUND", "bind_to_port": false,
        "filter_chains": [{"filters": [manager("out", between.cluster())]}],
    });
    let inspector = |name: &str, message: &str| {
        let url = format!("type.googleapis.com/envoy.extensions.filters.listener.{message}");
        json!({"name": format!("envoy.filters.listener.{name}"), "typed_config": {"@type": url}})
    };
    let mut inbound = json!({
        "name": "virtualInbound", "address": address(15006), "traffic_direction": "INBOUND",
        "listener_filters": [
            inspector("tls_inspector", "tls_inspector.v3.TlsInspector"),
            inspector("http_inspector", "http_inspector.v3.HttpInspector"),
        ],
        "filter_chains": [
            {
                "name": "http",
                "filter_chain_match": {
                    "destination_port": HTTP, "transport_protocol": "raw_buffer",
                    "application_protocols": ["http/1.1", "h2c"],
                },
                "filters": [manager("in", "InboundPassthroughCluster")],
            },
            {"name": "rest", "filters": [tcp]},
        ],
    });
    let mut clusters = Vec::new();
    if between == Between::MutualTls {
        Certificates::make(folder)?;
        let chain = &mut inbound["filter_chains"][0];
        chain["filter_chain_match"] = json!({"destination_port": HTTP, "transport_protocol": "tls"});
        chain["transport_socket"] = tls(folder, "server");
        clusters.push(json!({
            "name": between.cluster(), "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
            "transport_socket": tls(folder, "client"),
        }));
    }
    let bootstrap = passthrough_with(vec![outbound, inbound], clusters);
    Ok(MeshConfig { bootstrap, ..MeshConfig::default() }.setting("in_memory", in_memory))
}

fn folder() -> Result<std::path::PathBuf> {
    let folder = run::work_dir().join(run::unique("in-memory"));
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}

/// One HTTP connection of an application in a pod.
struct Browser(TcpStream);

impl Browser {
    fn open(pod: &Pod, to: SocketAddr) -> Result<Browser> {
        let stream = pod.netns().run(|| TcpStream::connect_timeout(&to, process::deadline()))??;
        stream.set_read_timeout(Some(process::deadline()))?;
        Ok(Browser(stream))
    }

    /// Status and body.
    fn ask(&mut self, request: &str) -> Result<(u16, String)> {
        self.0.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        loop {
            let mut piece = [0; 4096];
            let read = self.0.read(&mut piece)?;
            ensure!(read > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..read]);
            let text = String::from_utf8_lossy(&answer).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let lower = head.to_ascii_lowercase();
            let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                let status = head.split(' ').nth(1).context("no status")?.parse()?;
                return Ok((status, body.to_owned()));
            }
        }
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: web\r\nx-a: {path}\r\n\r\n")
}

/// Established connections of a namespace whose far (or near) end is `address`, on sockets of either family.
fn established(pod: &Pod, address: SocketAddr, far: bool) -> Result<usize> {
    let read = |table: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{table}"));
    let tables = pod.netns().run(|| Ok::<_, std::io::Error>([read("tcp")?, read("tcp6")?]))??;
    let SocketAddr::V4(v4) = address else { anyhow::bail!("{address} is not IPv4") };
    let plain = format!("{:08X}:{:04X}", u32::from(*v4.ip()).swap_bytes(), v4.port());
    let mapped = format!("0000000000000000FFFF0000{plain}");
    let rows = tables.iter().flat_map(|table| table.lines().skip(1)).map(|row| row.split_whitespace());
    let rows = rows.map(Iterator::collect::<Vec<_>>);
    let ours =
        |row: &Vec<&str>| row.get(if far { 2 } else { 1 }).is_some_and(|a| *a == plain || *a == mapped);
    Ok(rows.filter(|row| ours(row) && row[3] == "01").count())
}

fn lines(file: &Path, count: usize) -> Result<Vec<String>> {
    let until = Instant::now() + process::deadline();
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if text.lines().count() >= count {
            return Ok(text.lines().map(str::to_owned).collect());
        }
        ensure!(Instant::now() < until, "{} has only {text:?}", file.display());
        std::thread::sleep(Duration::from_millis(20)); // the period of the poll
    }
}

/// Counters of both halves, but for bytes: a chunk's frame and the digits of a duration are no fixed number.
fn counters(mesh: &MeshNode) -> Result<BTreeMap<String, String>> {
    let (_, text) = mesh.get("/stats")?;
    let wanted = |name: &str| {
        let of_half =
            ["http.in.", "http.out.", "cluster.Passthrough", "cluster.Mutual.", "cluster.InboundPassthrough"];
        of_half.iter().any(|prefix| name.starts_with(prefix))
            && !["bytes", "_time", "_ms", "buffered"].iter().any(|part| name.contains(part))
    };
    let pairs = text.lines().filter_map(|line| line.split_once(": ")).filter(|(name, _)| wanted(name));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// What a row of requests looks like from outside.
#[derive(Debug, PartialEq)]
struct Outside {
    answers: Vec<(u16, String)>,
    logs: Vec<String>,
    counters: BTreeMap<String, String>,
    between: (usize, usize),
}

fn outside(stage: &Stage, in_memory: bool, between: Between) -> Result<Outside> {
    let folder = folder()?;
    let mesh = stage.mesh(&config(&folder, in_memory, between)?, &[&stage.client, &stage.server])?;
    let to = SocketAddr::new(Way::V4.of(&stage.server), HTTP);
    let mut browser = Browser::open(&stage.client, to)?;
    let mut answers = Vec::new();
    for path in ["/a", "/b?c=d", "/in", "/out", "/e"] {
        let (status, body) = browser.ask(&get(path))?;
        let seen = serde_json::from_str::<Seen>(&body);
        // Its port is any.
        let body =
            seen.map(|seen| format!("{} {} {}", seen.name, seen.local, seen.peer.ip())).unwrap_or(body);
        answers.push((status, body));
    }
    // The application's own connections to its side of the proxy, and what there is beside them.
    let between = (established(&stage.client, to, true)?, established(&stage.server, to, false)?);
    let mut logs = lines(&folder.join("out"), 5)?;
    logs.extend(lines(&folder.join("in"), 4)?);
    Ok(Outside { answers, logs, counters: counters(&mesh)?, between })
}

/// The same requests with sockets between the halves and without; what they look like without.
fn the_same(stage: &Stage, halves: Between) -> Result<Outside> {
    let _web = stage.server.serve("web", Server::Http, &[SocketAddr::from(([0u16; 8], HTTP))])?;
    let sockets = outside(stage, false, halves)?;
    let memory = outside(stage, true, halves)?;
    ensure!(sockets.between == (2, 2), "with sockets there is one beside the application's: {sockets:?}");
    ensure!(memory.between == (1, 1), "only the applications' own connections are there: {memory:?}");
    ensure!(memory.answers == sockets.answers, "{:#?}\n{:#?}", memory.answers, sockets.answers);
    ensure!(memory.logs == sockets.logs, "{:#?}\n{:#?}", memory.logs, sockets.logs);
    ensure!(memory.counters == sockets.counters, "{:#?}\n{:#?}", memory.counters, sockets.counters);
    let client = Way::V4.of(&stage.client).to_string();
    ensure!(memory.answers[0].1.ends_with(&client), "the server sees its client: {:?}", memory.answers);
    Ok(memory)
}

#[test]
fn requests_between_two_pods_of_a_node_need_no_connection_and_look_the_same() -> Result<()> {
    need_root!();
    the_same(&Stage::routed()?, Between::PlainText).map(drop)
}

#[test]
fn mutual_tls_between_two_pods_of_a_node_proves_who_is_who_without_a_connection() -> Result<()> {
    need_root!();
    let seen = the_same(&Stage::routed()?, Between::MutualTls)?;
    let proven = "spiffe://cluster.local/ns/default/sa/client TLSv1.3 server.test";
    ensure!(seen.logs.iter().filter(|line| line.ends_with(proven)).count() == 4, "{:#?}", seen.logs);
    ensure!(seen.counters["cluster.Mutual.ssl.handshake"] == "1", "{:?}", seen.counters);
    Ok(())
}

#[test]
fn bytes_between_two_pods_of_a_node_need_no_connection_either() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let config = MeshConfig::default().setting("in_memory", true);
    let mesh = stage.mesh(&config, &[&stage.client, &stage.server])?;
    for way in [Way::V4, Way::V6] {
        let to = stage.target(way);
        let (call, counted) = taken_during(&mesh, || stage.client.call_with(to, &way.options()))?;
        ends_are_true(&call, way.of(&stage.client), to)?;
        ensure!(counted == Taken { outbound: 1, inbound: 1 }, "{way:?}: {counted:?}");
        let first = SocketAddr::new(to.ip(), FIRST_PORT);
        let speaks = CallOptions { server_first: true, ..way.options() };
        stage.client.call_with(first, &speaks)?.ok().context("a server that speaks first")?;
    }
    // To itself, a pod connects as ever.
    let _own = stage.client.serve("own", Server::Report, &[SocketAddr::from(([0u16; 8], 8200))])?;
    stage.client.call(SocketAddr::new(Way::V4.of(&stage.client), 8200))?.ok()?;
    Ok(())
}

#[test]
fn a_pod_that_opts_out_and_one_that_leaves_are_reached_by_connections() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let apart = stage.node.pod_with(PodSpec::new("apart").annotation("mesh-node/in-memory", "off"))?;
    let http = [SocketAddr::from(([0u16; 8], HTTP))];
    let _servers =
        [stage.server.serve("web", Server::Http, &http)?, apart.serve("apart", Server::Http, &http)?];
    let folder = folder()?;
    let mut mesh =
        stage.mesh(&config(&folder, true, Between::PlainText)?, &[&stage.client, &stage.server, &apart])?;
    let to = SocketAddr::new(Way::V4.of(&apart), HTTP);
    let mut browser = Browser::open(&stage.client, to)?;
    ensure!(browser.ask(&get("/a"))?.0 == 200);
    ensure!(established(&stage.client, to, true)? == 2, "a pod that opts out");
    let to = SocketAddr::new(Way::V4.of(&stage.server), HTTP);
    let mut browser = Browser::open(&stage.client, to)?;
    ensure!(browser.ask(&get("/b"))?.0 == 200);
    ensure!(established(&stage.client, to, true)? == 1);
    mesh.enrol(&[&stage.client, &apart])?;
    // On the connection that is there, then without the server's half.
    for _ in 0..3 {
        ensure!(browser.ask(&get("/c"))?.0 == 200);
    }
    ensure!(established(&stage.client, to, true)? == 2, "a pod that has left");
    stage.client.call(stage.target(Way::V4))?.ok()?;
    Ok(())
}

#[test]
fn a_network_policy_between_two_pods_of_a_node_holds() -> Result<()> {
    need_root!();
    let stage = Stage::routed()?;
    let _web = stage.server.serve("web", Server::Http, &[SocketAddr::from(([0u16; 8], HTTP))])?;
    let folder = folder()?;
    let mesh = stage.mesh(&config(&folder, true, Between::PlainText)?, &[&stage.client, &stage.server])?;
    let to = SocketAddr::new(Way::V4.of(&stage.server), HTTP);
    let rule =
        format!("add rule ip keep_apart passing ip daddr {} tcp dport {HTTP} reject with tcp reset", to.ip());
    stage.node.netns().run(|| -> Result<()> {
        process::run("nft", &["add table ip keep_apart"])?;
        process::run("nft", &["add chain ip keep_apart passing { type filter hook forward priority 0 ; }"])?;
        process::run("nft", &[&rule])
    })??;
    let (status, body) = Browser::open(&stage.client, to)?.ask(&get("/a"))?;
    ensure!(status == 503, "{status} {body}");
    stage.node.netns().run(|| process::run("nft", &["delete table ip keep_apart"]))??;
    ensure!(Browser::open(&stage.client, to)?.ask(&get("/a"))?.0 == 200, "once it may");
    let logged = lines(&folder.join("out"), 2)?;
    ensure!(logged[0].contains(" 503 UF "), "{logged:?}");
    drop(mesh);
    Ok(())
}

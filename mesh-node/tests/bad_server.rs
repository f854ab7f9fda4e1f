//! An xDS server that breaks the rules, as the program meets it: whatever it does, what it sent before serves, and the
//! statistics say what happened.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mesh_xds::client::ResourceType;
use mesh_xds::pb::envoy::config::listener::v3::Listener;
use mesh_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use mesh_xds::pb::google::protobuf::Any;
use mesh_xds::prost::Message;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server of one node, which says what it is told to on the newest stream.
struct Server {
    address: SocketAddr,
    words: mpsc::UnboundedSender<Bytes>,
    heard: Receiver<DeltaDiscoveryRequest>,
}

impl Server {
    fn start() -> Self {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let (words, to_say) = mpsc::unbounded_channel();
        let (hear, heard) = channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let socket = tokio::net::TcpListener::from_std(socket).unwrap();
                let to_say = Arc::new(Mutex::new(to_say));
                while let Ok((io, _)) = socket.accept().await {
                    let (to_say, hear) = (to_say.clone(), hear.clone());
                    tokio::spawn(async move {
                        let Ok(mut connection) = h2::server::handshake(io).await else { return };
                        while let Some(Ok((request, respond))) = connection.accept().await {
                            tokio::spawn(stream(request.into_body(), respond, to_say.clone(), hear.clone()));
                        }
                    });
                }
            });
        });
        Self { address, words, heard }
    }

    /// Waits until the node subscribes to this type.
    fn asked(&self, kind: ResourceType) {
        while !(self.next(kind).response_nonce.is_empty()) {}
    }

    /// The next request of this type.
    fn next(&self, kind: ResourceType) -> DeltaDiscoveryRequest {
        loop {
            let request = self.heard.recv_timeout(PATIENCE).expect("a request");
            if request.type_url == kind.url() {
                return request;
            }
        }
    }

    fn say(&self, response: &DeltaDiscoveryResponse) {
        self.say_bytes(response.encoded_len(), &response.encode_to_vec());
    }

    /// A message that says of itself how long it is, and its beginning.
    fn say_bytes(&self, length: usize, bytes: &[u8]) {
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(length.try_into().unwrap());
        framed.put_slice(bytes);
        self.words.send(framed.freeze()).unwrap();
    }
}

/// One stream, until the node ends it.
async fn stream(
    mut requests: h2::RecvStream,
    mut respond: h2::server::SendResponse<Bytes>,
    to_say: Arc<Mutex<mpsc::UnboundedReceiver<Bytes>>>,
    hear: std::sync::mpsc::Sender<DeltaDiscoveryRequest>,
) {
    let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let Ok(mut body) = respond.send_response(head, false) else { return };
    let mut to_say = to_say.lock().await;
    let mut unread = BytesMut::new();
    loop {
        tokio::select! {
            data = requests.data() => {
                let Some(Ok(data)) = data else { return };
                let _ = requests.flow_control().release_capacity(data.len());
                unread.extend_from_slice(&data);
                while unread.len() >= 5 {
                    let length = usize::try_from((&unread[1..5]).get_u32()).unwrap();
                    if unread.len() < 5 + length {
                        break;
                    }
                    let message = unread.split_to(5 + length);
                    if hear.send(DeltaDiscoveryRequest::decode(&message[5..]).unwrap()).is_err() {
                        return;
                    }
                }
            }
            Some(words) = to_say.recv() => {
                if body.send_data(words, false).is_err() {
                    return;
                }
            }
        }
    }
}

/// The program with its configuration from a server.
struct Node {
    process: Child,
    admin: SocketAddr,
    listener: SocketAddr,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Node {
    fn start(server: &Server, fetch_timeout: &str) -> Self {
        let (admin, listener) = (free_address(), free_address());
        let mut ads = json!({ "ads": {}, "resource_api_version": "V3" });
        ads["initial_fetch_timeout"] = fetch_timeout.into();
        let http2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let bootstrap = json!({
            "node": { "id": "node", "cluster": "c" },
            "admin": { "address": address(admin) },
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC", "transport_api_version": "V3",
                    "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }],
                },
                "cds_config": ads, "lds_config": ads,
            },
            "static_resources": { "clusters": [{
                "name": "xds",
                "typed_extension_protocol_options": { http2: {
                    "@type": format!("type.googleapis.com/{http2}"),
                    "explicit_http_config": { "http2_protocol_options": {} } } },
                "load_assignment": { "cluster_name": "xds", "endpoints": [{ "lb_endpoints": [
                    { "endpoint": { "address": address(server.address) } }] }] },
            }] },
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-node"));
        command.args(["--config-yaml", &bootstrap.to_string(), "-l", "error"]).stdin(Stdio::null());
        Self { process: command.spawn().unwrap(), admin, listener }
    }

    /// Waits until requests are answered with this.
    fn answers(&self, body: &str) {
        until(body, || get(self.listener, "/").is_some_and(|answer| answer.ends_with(body)));
    }

    fn stat(&self, name: &str) -> u64 {
        let stats = get(self.admin, "/stats").unwrap_or_default();
        let value = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }

    /// Waits until a counter is that high.
    fn counts(&self, name: &str, least: u64) {
        until(name, || self.stat(name) >= least);
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20)); // the period of the poll
    }
}

/// The whole answer.
fn get(from: SocketAddr, path: &str) -> Option<String> {
    let mut io = TcpStream::connect(from).ok()?;
    write!(io, "GET {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    io.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// An address that nobody listens on now.
fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn address(of: SocketAddr) -> Value {
    json!({ "socket_address": { "address": of.ip().to_string(), "port_value": of.port() } })
}

/// A push of the type with nothing in it.
fn empty(kind: ResourceType, version: &str, nonce: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.url().to_owned(),
        system_version_info: version.to_owned(),
        nonce: nonce.to_owned(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// A push of a listener that answers every request with `body`.
fn listener(node: &Node, version: &str, nonce: &str, body: &str) -> DeltaDiscoveryResponse {
    let extension = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let listener = json!({
        "name": "l", "address": address(node.listener),
        "filter_chains": [{ "filters": [{ "name": "http", "typed_config": {
            "@type": extension("network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "s",
            "route_config": { "name": "r", "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [{
                "match": { "prefix": "/" },
                "direct_response": { "status": 200, "body": { "inline_string": body } },
            }] }] },
            "http_filters": [{ "name": "router", "typed_config": { "@type": extension("http.router.v3.Router") } }],
        } }] }],
    });
    let tree: mesh_xds::Node = serde_json::from_value(listener).unwrap();
    let message: Listener = mesh_xds::from_node(&tree).unwrap();
    let kind = ResourceType::Listener;
    let any = Any { type_url: kind.url().to_owned(), value: message.encode_to_vec() };
    let resource = Resource {
        name: "l".to_owned(),
        version: version.to_owned(),
        resource: Some(any),
        ..Resource::default()
    };
    DeltaDiscoveryResponse { resources: vec![resource], ..empty(kind, version, nonce) }
}

#[test]
fn what_a_server_sent_before_it_broke_the_rules_serves_on() {
    let server = Server::start();
    let node = Node::start(&server, "15s");
    server.asked(ResourceType::Cluster);
    server.say(&empty(ResourceType::Cluster, "1", "c1"));
    server.asked(ResourceType::Listener);
    server.say(&listener(&node, "1", "l1", "one"));
    node.answers("one");
    assert_eq!(server.next(ResourceType::Listener).error_detail, None);

    // A nonce twice: an ACK would not say of what.
    server.say(&listener(&node, "2", "l1", "two"));
    let refused = server.next(ResourceType::Listener).error_detail.expect("a NACK").message;
    assert!(refused.contains("\"l1\" was used before"), "{refused}");
    node.counts("control_plane.protocol_errors", 1);
    node.answers("one");

    // A response of a hundred megabytes ends the stream; so does what is no message.
    for (failures, (length, bytes)) in [(1, (100 << 20, [0; 1024])), (2, (1024, [0xff; 1024]))] {
        server.say_bytes(length, &bytes);
        node.counts("listener_manager.lds.update_failure", failures);
        node.answers("one");
        server.asked(ResourceType::Listener);
    }

    // An old version of something new: it is the content that counts.
    server.say(&listener(&node, "0", "n1", "three"));
    node.answers("three");
    assert_eq!(server.next(ResourceType::Listener).error_detail, None);

    // And then nothing more, in the middle of a message.
    server.say_bytes(1000, &[0x0a; 10]);
    node.answers("three");
    assert_eq!(node.stat("control_plane.connected_state"), 1);
}

#[test]
fn a_server_that_never_answers_does_not_hold_up_the_start_and_is_counted() {
    let server = Server::start();
    let node = Node::start(&server, "0.1s");
    until("readiness", || get(node.admin, "/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")));
    for name in ["cluster_manager.cds.init_fetch_timeout", "listener_manager.lds.init_fetch_timeout"] {
        node.counts(name, 1);
    }
}

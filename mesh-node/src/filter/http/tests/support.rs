//! A connection manager with a client on one side and servers on the other, all on the test's thread.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;

use crate::cluster::ClusterManager;
use crate::filter::WorkerContext;
use crate::filter::http::serve;
use crate::model::cluster::{
    Assignment, Balancing, Cluster, Discovery, Endpoint, EndpointAddress, HealthStatus, LbPolicy, Locality,
    Thresholds, Transport, UpstreamProtocol,
};
use crate::model::domains::Domains;
use crate::model::format::{Format, Operator, Part, Plain};
use crate::model::headers::{AppendAction, HeaderAdd, HeaderMutations, HeaderTarget};
use crate::model::http_filter::{HttpFilter, HttpFilterKind};
use crate::model::listener::Direction;
use crate::model::network::{
    ClientCertDetails, Codec, EscapedSlashes, ForwardClientCert, Http1Options, Http2Options,
    HttpConnectionManager, RouteSource, RouterFilter, ServerHeader, UnderscoresAction,
};
use crate::model::route::{
    Action, ClusterChoice, Forward, HostRewrite, PathMatch, PathRewrite, RequireTls, RetryOn, RetryPolicy,
    Route, RouteMatch, RouteTable, VirtualHost,
};
use crate::model::{Published, Snapshot};
use crate::telemetry::access_log::{AccessLog, Layout, LogFormat, Output};
use crate::telemetry::log_file::LogFiles;
use crate::telemetry::stream_info::ConnectionInfo;

/// A filter under a name of no importance.
pub fn filter(kind: HttpFilterKind) -> HttpFilter {
    HttpFilter { name: "f".into(), disabled: false, kind }
}

/// Envoy's defaults, with no route.
pub fn hcm() -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: "test".into(),
        codec: Codec::Auto,
        routes: RouteSource::default(),
        http_filters: vec![filter(HttpFilterKind::Router(Arc::new(RouterFilter::default())))],
        server_name: "envoy".into(),
        server_header: ServerHeader::Overwrite,
        use_remote_address: false,
        xff_num_trusted_hops: 0,
        skip_xff_append: false,
        internal_cidrs: Vec::new(),
        via: None,
        generate_request_id: true,
        preserve_external_request_id: false,
        append_x_forwarded_port: false,
        tracing: None,
        request_ids: Default::default(),
        always_set_request_id_in_response: false,
        stream_idle_timeout: Some(Duration::from_secs(300)),
        request_timeout: None,
        request_headers_timeout: None,
        drain_timeout: Duration::from_secs(5),
        delayed_close_timeout: Some(Duration::from_secs(1)),
        idle_timeout: Some(Duration::from_secs(3600)),
        max_connection_duration: None,
        max_stream_duration: None,
        max_requests_per_connection: 0,
        max_headers_count: 100,
        underscores: UnderscoresAction::Allow,
        max_request_headers_kib: 60,
        http1: Http1Options::default(),
        http2: Http2Options::default(),
        upgrades: Vec::new(),
        normalize_path: false,
        merge_slashes: false,
        escaped_slashes: EscapedSlashes::KeepUnchanged,
        strip_any_host_port: false,
        strip_matching_host_port: false,
        forward_client_cert: ForwardClientCert::Sanitize,
        set_client_cert: ClientCertDetails::default(),
        proxy_100_continue: false,
        access_log: Vec::new(),
        local_replies: None,
        stats: Arc::default(),
    }
}

/// A plaintext connection from `remote`.
pub fn connection(remote: &str) -> ConnectionInfo {
    ConnectionInfo {
        id: 1,
        peer: remote.parse().unwrap(),
        remote: remote.parse().unwrap(),
        local: "192.0.2.2:80".parse().unwrap(),
        original_dst: None,
        direction: Direction::Unspecified,
        workload: None,
        tls: None,
        requested_server_name: None,
        filter_chain: "".into(),
        drain: Arc::default(),
        listener_log: Vec::new(),
    }
}

/// Envoy's defaults for a route to one cluster.
pub fn forward_to(cluster: &str) -> Forward {
    Forward {
        cluster: ClusterChoice::Single(cluster.into()),
        cluster_not_found_status: 503,
        path_rewrite: PathRewrite::None,
        host_rewrite: HostRewrite::None,
        append_x_forwarded_host: false,
        timeout: Some(Duration::from_secs(15)),
        idle_timeout: None,
        max_stream_duration: None,
        max_grpc_timeout: None,
        grpc_timeout_offset: None,
        grpc_timeout_header_max: None,
        retry: None,
        hedge: None,
        upgrades: Vec::new(),
        terminates_connect: false,
        hash_policy: Vec::new(),
        metadata_match: None,
        priority_high: false,
        mirrors: Vec::new(),
        internal_redirect: None,
    }
}

/// Two retries after server errors and resets, at once.
pub fn retry_policy() -> RetryPolicy {
    RetryPolicy {
        on: RetryOn { server_error: true, ..RetryOn::default() },
        num_retries: 2,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        retriable_status_codes: Vec::new(),
        retriable_headers: Vec::new(),
        retriable_request_headers: Vec::new(),
        previous_hosts: false,
        avoid: Vec::new(),
        other_priorities: None,
        host_selection_retry_max_attempts: 0,
        back_off: (Duration::from_millis(1), Duration::from_millis(1)),
    }
}

pub fn to(forward: Forward) -> Action {
    Action::Forward(Box::new(forward))
}

pub fn route(prefix: &str, action: Action) -> Route {
    Route {
        name: "".into(),
        matches: RouteMatch {
            path: PathMatch::Prefix(prefix.into()),
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            metadata: Vec::new(),
            filter_state: Vec::new(),
            tls: None,
            runtime_fraction: None,
            grpc: false,
        },
        action,
        headers: HeaderMutations::default(),
        filters: Vec::new(),
        rate_limits: Vec::new(),
        with_rate_limits_of_host: false,
        metadata: Box::default(),
        decorator: None,
        tracing: None,
    }
}

/// One virtual host for all domains, which tells the number of attempts.
pub fn routes(routes: Vec<Route>) -> RouteSource {
    let domains: Vec<crate::model::Str> = vec!["*".into()];
    RouteSource::Inline(Arc::new(RouteTable {
        name: "table".into(),
        domains: Domains::new([&domains[..]]).unwrap(),
        virtual_hosts: vec![Arc::new(VirtualHost {
            name: "all".into(),
            domains,
            routes: routes.into_iter().map(Arc::new).collect(),
            require_tls: RequireTls::None,
            headers: HeaderMutations::default(),
            filters: Vec::new(),
            retry: None,
            hedge: None,
            rate_limits: Vec::new(),
            include_request_attempt_count: true,
            include_attempt_count_in_response: true,
            virtual_clusters: Vec::new(),
        })],
        ..RouteTable::default()
    }))
}

/// A static cluster with Envoy's defaults.
pub fn cluster(name: &str, endpoints: &[SocketAddr]) -> Cluster {
    let endpoint = |address: &SocketAddr| {
        Arc::new(Endpoint {
            address: EndpointAddress::Socket(*address),
            hostname: None,
            weight: 1,
            health: HealthStatus::Healthy,
            peer: None,
            transport_match: Vec::new(),
            lb_metadata: Vec::new().into(),
            metadata: Box::default(),
            check: None,
            additional: Vec::new(),
        })
    };
    Cluster {
        name: name.into(),
        stat_name: name.into(),
        discovery: Discovery::Static,
        load_assignment: Arc::new(Assignment {
            localities: vec![Locality {
                region: "".into(),
                zone: "".into(),
                sub_zone: "".into(),
                priority: 0,
                weight: 0,
                endpoints: endpoints.iter().map(endpoint).collect(),
            }],
            ..Assignment::default()
        }),
        lb: LbPolicy::RoundRobin,
        balancing: Balancing::default(),
        outlier_detection: None,
        error_matcher: None,
        health_check: None,
        panic_threshold_percent: 50.0,
        locality_weighted: false,
        connect_timeout: Duration::from_secs(5),
        bind_sources: Vec::new(),
        tcp_keepalive: None,
        transport_socket_matches: Vec::new(),
        transport_socket: Transport::Raw,
        protocol: UpstreamProtocol::Http1,
        http1: Http1Options::default(),
        http2: Http2Options::default(),
        idle_timeout: Some(Duration::from_secs(3600)),
        max_requests_per_connection: 0,
        max_stream_duration: None,
        auto_sni: false,
        auto_san_validation: false,
        circuit_breakers: [Thresholds::default(), Thresholds::default()],
        remaining_stats: None,
        per_connection_buffer_limit_bytes: 1 << 20,
        close_connections_on_host_health_failure: false,
        stats: Arc::default(),
        istio: Default::default(),
        metadata: Box::default(),
        content_hash: 0,
    }
}

/// A header change that adds a text.
pub fn add(name: &str, value: &str) -> HeaderAdd {
    HeaderAdd {
        name: HeaderTarget::Name(name.parse().unwrap()),
        value: Arc::new(Format { parts: vec![Part::Text(value.into())] }),
        action: AppendAction::AppendIfExistsOrAdd,
        keep_empty_value: false,
    }
}

/// The worker and what it serves.
pub struct Proxy {
    pub hcm: Arc<HttpConnectionManager>,
    pub connection: Arc<ConnectionInfo>,
    pub ctx: Rc<WorkerContext>,
    log: Option<(Arc<LogFiles>, std::path::PathBuf)>,
}

impl Proxy {
    pub fn new(hcm: HttpConnectionManager, clusters: Vec<Cluster>) -> Self {
        let manager = Arc::new(ClusterManager::new(1));
        let snapshot = Snapshot::new(1, Vec::new(), clusters.into_iter().map(Arc::new));
        manager.apply(&snapshot);
        let published: Published = Arc::new(arc_swap::ArcSwap::from_pointee(snapshot));
        Self {
            hcm: Arc::new(hcm),
            connection: Arc::new(connection("192.0.2.9:4000")),
            ctx: Rc::new(WorkerContext::new(published, manager, Arc::default())),
            log: None,
        }
    }

    /// With an access log of method, path, status, flags, details, bytes and attempts.
    pub fn logged(mut hcm: HttpConnectionManager, clusters: Vec<Cluster>) -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mesh-node-hcm-{}-{number}.log", std::process::id()));
        let files = LogFiles::start(Arc::default()).unwrap();
        let operator = |operator| Part::Operator { operator, max_length: None };
        let plain = |plain| operator(Operator::Plain(plain));
        let blank = || Part::Text(" ".into());
        let parts = vec![
            operator(Operator::Req(":method".into(), None)),
            blank(),
            operator(Operator::Req(":path".into(), None)),
            blank(),
            plain(Plain::ResponseCode),
            blank(),
            plain(Plain::ResponseFlags),
            blank(),
            plain(Plain::ResponseCodeDetails),
            blank(),
            plain(Plain::BytesReceived),
            blank(),
            plain(Plain::BytesSent),
            blank(),
            plain(Plain::UpstreamRequestAttemptCount),
            Part::Text("\n".into()),
        ];
        hcm.access_log = vec![Arc::new(AccessLog {
            output: Output::File(
                files.open(&path).unwrap(),
                LogFormat { layout: Layout::Text(Format { parts }), omit_empty: false },
            ),
            filter: None,
        })];
        let mut proxy = Self::new(hcm, clusters);
        proxy.log = Some((files, path));
        proxy
    }

    /// What was logged so far.
    pub fn log_lines(&self) -> Vec<String> {
        let (files, path) = self.log.as_ref().unwrap();
        files.flush();
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    /// A client that has just connected.
    pub fn connect(&self) -> Client {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (hcm, connection, ctx) = (self.hcm.clone(), self.connection.clone(), self.ctx.clone());
        let served = tokio::task::spawn_local(serve(hcm, connection, server, ctx, None));
        Client { io: client, read: Vec::new(), served }
    }

    /// The answer to one request on a connection of its own.
    pub async fn ask(&self, request: &str) -> Answer {
        let mut client = self.connect();
        client.send(request).await;
        client.answer().await
    }

    /// The answer to a GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.log {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The client's end of a connection.
pub struct Client {
    pub io: DuplexStream,
    read: Vec<u8>,
    served: tokio::task::JoinHandle<()>,
}

/// A response as it came.
#[derive(Debug)]
pub struct Answer {
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head[9..12].parse().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            (key == name).then_some(value)
        })
    }

    /// Header names, in order.
    pub fn names(&self) -> Vec<&str> {
        self.head.lines().skip(1).filter_map(|line| Some(line.split_once(": ")?.0)).collect()
    }
}

impl Client {
    pub async fn send(&mut self, bytes: &str) {
        self.io.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Reads until `done` says how many bytes were wanted.
    pub async fn read_until(&mut self, done: impl Fn(&[u8]) -> Option<usize>) -> String {
        loop {
            if let Some(n) = done(&self.read) {
                return String::from_utf8(self.read.drain(..n).collect()).unwrap();
            }
            let n = self.io.read_buf(&mut self.read).await.unwrap();
            assert_ne!(n, 0, "closed after {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    /// Reads exactly this.
    pub async fn expect(&mut self, text: &str) {
        let got = self.read_until(|read| (read.len() >= text.len()).then_some(text.len())).await;
        assert_eq!(got, text);
    }

    pub async fn head(&mut self) -> String {
        let end = |read: &[u8]| read.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
        self.read_until(end).await
    }

    /// One response: interim ones are skipped, the body is as long as its framing says.
    pub async fn answer(&mut self) -> Answer {
        let mut answer = Answer { head: self.head().await, body: String::new() };
        while answer.head.starts_with("HTTP/1.1 100") {
            answer.head = self.head().await;
        }
        if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse().unwrap();
            answer.body = self.read_until(|read| (read.len() >= length).then_some(length)).await;
        } else if answer.header("transfer-encoding").is_some() {
            let end = |read: &[u8]| read.windows(5).position(|w| w == b"0\r\n\r\n").map(|at| at + 5);
            answer.body = self.read_until(end).await;
        }
        answer
    }

    /// Waits for the other side to close, and returns what came before.
    pub async fn closed(mut self) -> String {
        let _ = self.io.read_to_end(&mut self.read).await;
        self.served.await.unwrap();
        String::from_utf8(self.read).unwrap()
    }

    /// Goes away, and waits until the other side has noticed.
    pub async fn leave(self) {
        drop(self.io);
        self.served.await.unwrap();
    }
}

/// An HTTP/1 server that answers by script and remembers what it was sent.
pub struct Server {
    pub address: SocketAddr,
    pub requests: Rc<RefCell<Vec<String>>>,
}

/// What a server does with one request.
#[derive(Clone)]
pub enum Reaction {
    /// These bytes.
    Send(String),
    /// The request comes back as the body.
    Echo,
    /// These bytes, and the connection ends.
    SendAndClose(String),
    /// Nothing, for ever.
    Hang,
}

impl Reaction {
    /// A response with this status and the body `hi`.
    pub fn status(status: u16) -> Self {
        Self::Send(format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nhi"))
    }
}

impl Server {
    /// The requests, once there are `count` of them.
    pub async fn seen(&self, count: usize) -> Vec<String> {
        while self.requests.borrow().len() < count {
            tokio::task::yield_now().await;
        }
        self.requests.borrow().clone()
    }

    /// Starts a server that reacts to its n-th request with the n-th reaction, and to all later ones with the
    /// last.
    pub async fn start(script: Vec<Reaction>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), requests: Rc::default() };
        let requests = server.requests.clone();
        tokio::task::spawn_local(async move {
            while let Ok((mut io, _)) = listener.accept().await {
                let (requests, script) = (requests.clone(), script.clone());
                tokio::task::spawn_local(async move {
                    while let Some(request) = read_request(&mut io).await {
                        let number = requests.borrow().len();
                        requests.borrow_mut().push(request.clone());
                        let reaction = script.get(number).or(script.last()).cloned().unwrap();
                        let (bytes, close) = match reaction {
                            Reaction::Send(bytes) => (bytes, false),
                            Reaction::SendAndClose(bytes) => (bytes, true),
                            Reaction::Echo => {
                                let head = format!(
                                    "HTTP/1.1 200 OK\r\nserver: up\r\ncontent-length: {}\r\n\r\n",
                                    request.len()
                                );
                                (head + &request, false)
                            }
                            Reaction::Hang => std::future::pending().await,
                        };
                        if io.write_all(bytes.as_bytes()).await.is_err() || close {
                            return;
                        }
                    }
                });
            }
        });
        server
    }

    /// An address where nobody listens.
    pub async fn dead() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }
}

/// A whole request, framed by content-length or chunks.
async fn read_request(io: &mut tokio::net::TcpStream) -> Option<String> {
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some(end) = text.find("\r\n\r\n") {
            let lower = text[..end].to_ascii_lowercase();
            let length =
                lower.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok());
            let whole = match length {
                Some(length) => text.len() >= end + 4 + length,
                None if lower.contains("transfer-encoding: chunked") => text.ends_with("0\r\n\r\n"),
                None => true,
            };
            if whole {
                return Some(text);
            }
        }
        if io.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
}

/// Runs a test on one thread, as a worker runs.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = async {
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs");
    };
    tokio::task::LocalSet::new().block_on(&runtime, all);
}

//! One HTTP/1 hop and nothing else: the server codec, the connection pools and the client codec, without
//! routing, filters or statistics of a connection manager. For profiles: what this costs, no proxy can go below.
//!
//! `cargo run --release --example h1_hop -- LISTEN UPSTREAM`, such as `127.0.0.1:8081 127.0.0.1:8080`.

use std::error::Error;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use mesh_node::cluster::{ClusterManager, ClusterState, LbContext, RoutingPriority};
use mesh_node::drain::Signal;
use mesh_node::http::body::Body;
use mesh_node::http::h1;
use mesh_node::http::service::{HttpService, Refusal, Reset};
use mesh_node::model::Snapshot;
use mesh_node::model::cluster::{
    Assignment, Balancing, Cluster, Discovery, Endpoint, EndpointAddress, HealthStatus, LbPolicy, Locality,
    Thresholds, Transport, UpstreamProtocol,
};
use mesh_node::upstream::{Target, UpstreamPath, Upstreams};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

/// Sends every request to the one cluster.
struct Hop {
    cluster: Arc<ClusterState>,
    upstreams: Upstreams,
}

impl HttpService for Hop {
    type Body = Body;

    async fn call(self: &Rc<Self>, mut request: Request<Body>) -> Result<Response<Body>, Reset> {
        request.headers_mut().remove(header::CONNECTION);
        let host = self.cluster.choose(&LbContext::default()).map_err(|_| Reset)?;
        let path = UpstreamPath::Network;
        let cluster = self.cluster.clone();
        let target =
            Target { workload: None, cluster, host, path, client: None, alpn: None, implied_alpn: &[] };
        let version = request.version();
        let mut response =
            match self.upstreams.request(&target, RoutingPriority::Default, version, request).await {
                Ok(exchange) => exchange.response,
                Err(error) => {
                    eprintln!("{error}");
                    let mut response = Response::new(Body::Empty);
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                    return Ok(response);
                }
            };
        response.headers_mut().remove(header::CONNECTION);
        Ok(response)
    }

    fn refuse(&self, refusal: &Refusal) -> Response<Body> {
        let mut response = Response::new(Body::from_bytes(refusal.body));
        *response.status_mut() = refusal.status;
        response
    }

    fn on_cut(&self, _: bool) {}

    fn on_read(&self, _bytes: usize) {}

    fn on_written(&self, _bytes: usize) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(upstream)) = (arguments.next(), arguments.next()) else {
        return Err("usage: h1_hop LISTEN UPSTREAM".into());
    };
    let (listen, upstream) = (listen.parse::<SocketAddr>()?, upstream.parse()?);
    let workers = std::thread::available_parallelism()?.get();
    let threads: Vec<_> = (0..workers)
        .map(|_| std::thread::spawn(move || worker(listen, upstream).map_err(|error| error.to_string())))
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "worker failed")??;
    }
    Ok(())
}

fn worker(listen: SocketAddr, upstream: SocketAddr) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let clusters = ClusterManager::new(1);
        clusters.apply(&Snapshot::new(1, Vec::new(), [Arc::new(cluster(upstream))]));
        let cluster = clusters.get("up").ok_or("no cluster")?;
        let hop = Rc::new(Hop { cluster, upstreams: Upstreams::default() });
        let options = Rc::new(h1::Options::default());
        let drain = Arc::new(Signal::default());
        let socket = Socket::new(Domain::for_address(listen), Type::STREAM.nonblocking(), None)?;
        socket.set_reuse_port(true)?;
        socket.set_reuse_address(true)?;
        socket.bind(&listen.into())?;
        socket.listen(1024)?;
        let listener = TcpListener::from_std(socket.into())?;
        loop {
            let (io, _) = listener.accept().await?;
            io.set_nodelay(true)?;
            let serving = h1::serve(io, Bytes::new(), options.clone(), hop.clone(), drain.clone());
            tokio::task::spawn_local(serving);
        }
    })
}

fn cluster(upstream: SocketAddr) -> Cluster {
    let endpoint = Endpoint {
        address: EndpointAddress::Socket(upstream),
        hostname: None,
        weight: 1,
        health: HealthStatus::Healthy,
        peer: None,
        transport_match: Vec::new(),
        lb_metadata: Vec::new().into(),
        metadata: Box::default(),
        check: None,
        additional: Vec::new(),
    };
    let name = |text: &str| text.into();
    Cluster {
        name: name("up"),
        stat_name: name("up"),
        discovery: Discovery::Static,
        load_assignment: Arc::new(Assignment {
            localities: vec![Locality {
                region: name(""),
                zone: name(""),
                sub_zone: name(""),
                priority: 0,
                weight: 0,
                endpoints: vec![Arc::new(endpoint)],
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
        http1: Default::default(),
        http2: Default::default(),
        idle_timeout: Some(Duration::from_secs(3600)),
        max_requests_per_connection: 0,
        max_stream_duration: None,
        auto_sni: false,
        auto_san_validation: false,
        circuit_breakers: [Thresholds::default(); 2],
        remaining_stats: None,
        per_connection_buffer_limit_bytes: 1 << 20,
        close_connections_on_host_health_failure: false,
        stats: Arc::default(),
        istio: Default::default(),
        metadata: Box::default(),
        content_hash: 0,
    }
}

//! Requests through the pools to small servers on loopback sockets.

mod probes;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::{ErrorKind, Exchange, Target, UpstreamError, UpstreamPath, Upstreams};
use crate::cluster::tests::support::{cluster, endpoint, locality, state};
use crate::cluster::{ClusterState, LbContext, RoutingPriority};
use crate::http::body::Body;
use crate::model::cluster::{Cluster, HealthStatus, UpstreamProtocol};

fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("nothing happened for 20 s")
    })
}

/// Accepts connections, counts them, and serves each with `serve`.
async fn server<A>(serve: impl Fn(TcpStream) -> A + 'static) -> (SocketAddr, Rc<Cell<u32>>)
where
    A: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Rc::new(Cell::new(0));
    let counter = accepted.clone();
    tokio::task::spawn_local(async move {
        while let Ok((io, _)) = listener.accept().await {
            counter.set(counter.get() + 1);
            tokio::task::spawn_local(serve(io));
        }
    });
    (address, accepted)
}

/// Answers every request with `hi`, at most `limit` times.
async fn answer(mut io: TcpStream, limit: usize) {
    let mut buffer = [0; 4096];
    for _ in 0..limit {
        match io.read(&mut buffer).await {
            Ok(1..) => io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await.unwrap(),
            _ => return,
        }
    }
}

fn up(address: SocketAddr, change: impl FnOnce(&mut Cluster)) -> Arc<ClusterState> {
    let endpoints = vec![endpoint(&address.to_string(), 1, HealthStatus::Healthy)];
    let mut config = cluster("up", vec![locality(0, 0, endpoints)]);
    change(&mut config);
    state(1, config)
}

fn target(cluster: &Arc<ClusterState>) -> Target {
    let host = cluster.choose(&LbContext::default()).unwrap();
    Target {
        client: None,
        workload: None,
        cluster: cluster.clone(),
        host,
        path: UpstreamPath::Network,
        alpn: None,
        implied_alpn: &[],
    }
}

async fn send(upstreams: &Upstreams, target: &Target) -> Result<Exchange, UpstreamError> {
    let request = Request::get("/").header("host", "a.example:80").body(Body::Empty).unwrap();
    upstreams.request(target, RoutingPriority::Default, Version::HTTP_11, request).await
}

async fn get(upstreams: &Upstreams, target: &Target) -> Bytes {
    let exchange = send(upstreams, target).await.unwrap();
    exchange.response.into_body().collect().await.unwrap().to_bytes()
}

#[test]
fn requests_one_after_the_other_share_a_connection() {
    local(async {
        let (address, accepted) = server(|io| answer(io, usize::MAX)).await;
        let (upstreams, cluster) = (Upstreams::default(), up(address, |_| {}));
        let target = target(&cluster);
        for _ in 0..3 {
            assert_eq!(get(&upstreams, &target).await, "hi");
        }
        assert_eq!(accepted.get(), 1);
        assert_eq!(upstreams.idle_connections(), 1);
        assert_eq!(cluster.stats.upstream_rq_active.get(), 0);
        assert_eq!(cluster.stats.upstream_cx_http1_total.get(), 1);
    });
}

#[test]
fn an_endpoint_whose_first_address_refuses_is_reached_by_the_next() {
    local(async {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (address, accepted) = server(|io| answer(io, 1)).await;
        let cluster = up(gone, |config| {
            let assignment = Arc::make_mut(&mut config.load_assignment);
            Arc::make_mut(&mut assignment.localities[0].endpoints[0]).additional = vec![gone, address];
        });
        assert_eq!(get(&Upstreams::default(), &target(&cluster)).await, "hi");
        assert_eq!(accepted.get(), 1);
    });
}

#[test]
fn a_connection_that_the_server_closed_while_idle_is_not_used_again() {
    local(async {
        let (address, accepted) = server(|io| answer(io, 1)).await;
        let (upstreams, cluster) = (Upstreams::default(), up(address, |_| {}));
        let target = target(&cluster);
        for expected in 1..4 {
            assert_eq!(get(&upstreams, &target).await, "hi");
            assert_eq!(accepted.get(), expected);
            upstreams.pools.idle_closed().await;
        }
    });
}

#[test]
fn a_reset_before_the_answer_on_a_used_connection_says_so() {
    local(async {
        let (address, _) = server(|mut io| async move {
            let mut buffer = [0; 4096];
            assert!(io.read(&mut buffer).await.unwrap() > 0);
            io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
            // Closes only after the second request is there.
            assert!(io.read(&mut buffer).await.unwrap() > 0);
        })
        .await;
        let (upstreams, cluster) = (Upstreams::default(), up(address, |_| {}));
        let target = target(&cluster);
        assert_eq!(get(&upstreams, &target).await, "hi");
        let error = send(&upstreams, &target).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Reset { reused: true, request_started: true });
        assert_eq!(cluster.stats.upstream_cx_active.get(), 0);
    });
}

#[test]
fn clients_do_not_share_connections_that_carry_their_address() {
    local(async {
        let (address, accepted) = server(|io| answer(io, usize::MAX)).await;
        let (upstreams, cluster) = (Upstreams::default(), up(address, |_| {}));
        for source in ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.1:2"] {
            let mut target = target(&cluster);
            target.path = UpstreamPath::Application { source: source.parse().unwrap() };
            assert_eq!(get(&upstreams, &target).await, "hi");
        }
        assert_eq!(accepted.get(), 2);
    });
}

#[test]
fn at_the_limit_of_connections_a_request_waits_for_one_to_be_free() {
    local(async {
        let (address, accepted) = server(|io| answer(io, usize::MAX)).await;
        let upstreams = Upstreams::default();
        let cluster = up(address, |config| config.circuit_breakers[0].max_connections = 1);
        let target = target(&cluster);
        let all = futures_util::future::join_all((0..5).map(|_| get(&upstreams, &target))).await;
        assert!(all.iter().all(|body| body == "hi"));
        assert_eq!(accepted.get(), 1);
        assert!(cluster.stats.upstream_cx_overflow.get() > 0);
    });
}

#[test]
fn more_requests_than_the_circuit_breaker_allows_overflow() {
    local(async {
        let (address, _) = server(|io| answer(io, usize::MAX)).await;
        let upstreams = Upstreams::default();
        let cluster = up(address, |config| config.circuit_breakers[0].max_requests = 1);
        let target = target(&cluster);
        let (first, second) = tokio::join!(send(&upstreams, &target), send(&upstreams, &target));
        first.unwrap();
        assert_eq!(second.unwrap_err().kind, ErrorKind::Overflow);
    });
}

#[test]
fn a_connection_retires_after_its_configured_number_of_requests() {
    local(async {
        let (address, accepted) = server(|io| answer(io, usize::MAX)).await;
        let upstreams = Upstreams::default();
        let cluster = up(address, |config| config.max_requests_per_connection = 2);
        let target = target(&cluster);
        for _ in 0..4 {
            get(&upstreams, &target).await;
        }
        assert_eq!(accepted.get(), 2);
        assert_eq!(cluster.stats.upstream_cx_max_requests.get(), 2);
    });
}

#[test]
fn idle_connections_end_when_their_host_is_gone() {
    local(async {
        let (address, _) = server(|io| answer(io, usize::MAX)).await;
        let (upstreams, cluster) = (Upstreams::default(), up(address, |_| {}));
        let target = target(&cluster);
        get(&upstreams, &target).await;
        assert_eq!(cluster.stats.upstream_cx_active.get(), 1);
        target.host.removed.start();
        while cluster.stats.upstream_cx_active.get() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(upstreams.idle_connections(), 0);
    });
}

#[test]
fn a_response_that_nobody_reads_to_its_end_costs_its_connection() {
    local(async {
        let (address, accepted) = server(|mut io| async move {
            assert!(io.read(&mut [0; 4096]).await.unwrap() > 0);
            io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhi").await.unwrap();
            let _ = io.read(&mut [0; 16]).await;
        })
        .await;
        let (upstreams, cluster) = (Upstreams::default(), up(address, |_| {}));
        let target = target(&cluster);
        drop(send(&upstreams, &target).await.unwrap());
        assert_eq!(cluster.stats.upstream_cx_active.get(), 0);
        send(&upstreams, &target).await.unwrap();
        assert_eq!(accepted.get(), 2);
    });
}

#[test]
fn http2_requests_at_once_share_one_connection() {
    local(async {
        let (address, accepted) = server(|io| async move {
            let mut connection = h2::server::handshake(io).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.uri(), "http://a.example:80/");
                assert!(!request.headers().contains_key("host"));
                let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                stream.send_data(Bytes::from_static(b"hi"), true).unwrap();
            }
        })
        .await;
        let upstreams = Upstreams::default();
        let cluster = up(address, |config| config.protocol = UpstreamProtocol::Http2);
        let target = target(&cluster);
        let all = futures_util::future::join_all((0..8).map(|_| get(&upstreams, &target))).await;
        assert!(all.iter().all(|body| body == "hi"));
        assert_eq!(accepted.get(), 1);
        assert_eq!(cluster.stats.upstream_cx_http2_total.get(), 1);
        assert_eq!(cluster.stats.upstream_rq_active.get(), 0);
    });
}

#[test]
fn requests_that_wait_for_one_http2_connection_fail_with_it() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let upstreams = Upstreams::default();
        let cluster = up(address, |config| config.protocol = UpstreamProtocol::Http2);
        let target = target(&cluster);
        let all = futures_util::future::join_all((0..4).map(|_| send(&upstreams, &target))).await;
        for outcome in all {
            assert_eq!(outcome.unwrap_err().kind, ErrorKind::ConnectFailure);
        }
        assert_eq!(cluster.stats.upstream_cx_connect_fail.get(), 1);
    });
}

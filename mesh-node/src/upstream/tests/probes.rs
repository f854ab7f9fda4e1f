//! Health checks of small servers on loopback sockets.

use tokio::net::TcpStream;

use super::*;
use crate::cluster::{Finding, Probe};
use crate::model::matcher::{StringMatcher, StringPattern};
use crate::model::resilience::{CheckKind, HealthCheck, HttpCheck, Pauses};
use crate::upstream::Prober;

fn check(kind: CheckKind) -> HealthCheck {
    let pauses = Pauses {
        initial_jitter: Duration::ZERO,
        interval: Duration::from_secs(1),
        jitter: Duration::ZERO,
        jitter_percent: 0,
        no_traffic: Duration::from_secs(1),
        no_traffic_healthy: Duration::from_secs(1),
        unhealthy: Duration::from_secs(1),
        unhealthy_edge: Duration::from_secs(1),
        healthy_edge: Duration::from_secs(1),
    };
    HealthCheck {
        kind,
        timeout: Duration::from_secs(1),
        unhealthy_threshold: 1,
        healthy_threshold: 1,
        pauses,
        transport_match: None,
        ignore_new_hosts: false,
        stats: Arc::default(),
    }
}

fn http(change: impl FnOnce(&mut HttpCheck)) -> HealthCheck {
    let mut http = HttpCheck {
        host: None,
        path: "/up".into(),
        method: http::Method::GET,
        body: Vec::new(),
        receive: Vec::new(),
        response_buffer_bytes: 1024,
        expected: vec![(200, 201)],
        retriable: vec![(503, 504)],
        add: http::HeaderMap::new(),
        remove: Vec::new(),
        http2: false,
        service_name: None,
    };
    change(&mut http);
    check(CheckKind::Http(http))
}

async fn probe(address: SocketAddr, check: &HealthCheck) -> Finding {
    let cluster = up(address, |_| {});
    let host = cluster.hosts()[0].clone();
    let finding = Prober::default().probe(&cluster, &host, check).await;
    assert_eq!(cluster.stats.upstream_cx_total.get(), 0, "checks are none of the cluster's connections");
    finding
}

/// Answers one request with these bytes.
async fn respond(mut io: TcpStream, response: &'static str) {
    let mut buffer = [0; 4096];
    if matches!(io.read(&mut buffer).await, Ok(1..)) {
        io.write_all(response.as_bytes()).await.unwrap();
    }
}

#[test]
fn an_http_check_judges_status_headers_and_body() {
    let service = |prefix: &str| {
        let matcher = StringMatcher { pattern: StringPattern::Prefix(prefix.to_owned()), ignore_case: false };
        http(|c| c.service_name = Some(matcher))
    };
    let ok =
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx-envoy-upstream-healthchecked-cluster: mine-1\r\n\r\nwell";
    let degraded = "HTTP/1.1 200 OK\r\nx-envoy-degraded: 1\r\ncontent-length: 0\r\n\r\n";
    // As in Envoy the header counts beside a failure only.
    let serves = "HTTP/1.1 200 OK\r\nx-envoy-immediate-health-check-fail: 1\r\ncontent-length: 0\r\n\r\n";
    let excluded = "HTTP/1.1 503 No\r\nx-envoy-immediate-health-check-fail: 1\r\ncontent-length: 0\r\n\r\n";
    let busy = "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n";
    let broken = "HTTP/1.1 500 Broken\r\nconnection: close\r\n\r\n";
    let table = [
        (ok, http(|_| {}), Finding::Healthy),
        (degraded, http(|_| {}), Finding::Degraded),
        (serves, http(|_| {}), Finding::Healthy),
        (excluded, http(|_| {}), Finding::Excluded),
        (busy, http(|_| {}), Finding::Failed { retriable: true }),
        (broken, http(|_| {}), Finding::Failed { retriable: false }),
        (broken, http(|c| c.expected = vec![(500, 600)]), Finding::Healthy),
        (ok, http(|c| c.receive = vec![b"we".to_vec(), b"ll".to_vec()]), Finding::Healthy),
        (ok, http(|c| c.receive = vec![b"ill".to_vec()]), Finding::Failed { retriable: false }),
        (ok, service("mine"), Finding::Healthy),
        (ok, service("other"), Finding::Failed { retriable: false }),
        ("no HTTP\r\n\r\n", http(|_| {}), Finding::Unreachable),
        ("", http(|_| {}), Finding::Unreachable),
    ];
    local(async {
        for (response, check, expected) in table {
            let (address, _) = server(move |io| respond(io, response)).await;
            assert_eq!(probe(address, &check).await, expected, "{response}");
        }
    });
}

#[test]
fn an_http_check_is_the_request_that_was_configured() {
    local(async {
        let seen = Rc::new(std::cell::RefCell::new(String::new()));
        let noted = seen.clone();
        let (address, _) = server(move |mut io| {
            let noted = noted.clone();
            async move {
                let mut buffer = [0; 4096];
                let n = io.read(&mut buffer).await.unwrap();
                *noted.borrow_mut() = String::from_utf8_lossy(&buffer[..n]).into_owned();
                io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
        })
        .await;
        assert_eq!(probe(address, &http(|_| {})).await, Finding::Healthy);
        let plain = seen.take().to_lowercase();
        assert!(plain.starts_with("get /up http/1.1\r\n"), "{plain}");
        assert!(plain.contains("host: up\r\n") && plain.contains("user-agent: envoy/hc\r\n"), "{plain}");
        let own = http(|c| {
            c.host = Some("app.test".into());
            c.method = http::Method::POST;
            c.body = b"ping".to_vec();
            c.add.insert("x-check", "1".parse().unwrap());
            c.remove.push(http::header::USER_AGENT);
        });
        assert_eq!(probe(address, &own).await, Finding::Healthy);
        let own = seen.take().to_lowercase();
        assert!(own.starts_with("post /up http/1.1\r\n") && own.contains("host: app.test\r\n"), "{own}");
        assert!(own.contains("x-check: 1\r\n") && !own.contains("user-agent"), "{own}");
    });
}

#[test]
fn a_tcp_check_connects_or_waits_for_what_must_come() {
    local(async {
        let (address, _) = server(|mut io| async move {
            let mut buffer = [0; 16];
            let n = io.read(&mut buffer).await.unwrap_or(0);
            if n > 0 {
                io.write_all(b"+PO").await.unwrap();
                io.write_all(b"NG\r\n").await.unwrap();
            }
        })
        .await;
        let tcp = |send: &[u8], receive: &[&[u8]]| {
            let receive = receive.iter().map(|part| part.to_vec()).collect();
            check(CheckKind::Tcp { send: send.to_vec(), receive })
        };
        assert_eq!(probe(address, &tcp(b"", &[])).await, Finding::Healthy);
        assert_eq!(probe(address, &tcp(b"PING", &[b"PO", b"NG"])).await, Finding::Healthy);
        assert_eq!(
            probe(address, &tcp(b"PING", &[b"ERR"])).await,
            Finding::Unreachable,
            "closed before it came"
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(probe(nobody, &tcp(b"", &[])).await, Finding::Unreachable);
    });
}

#[test]
fn a_grpc_check_believes_the_health_service() {
    local(async {
        for (status, message, expected) in [
            ("0", &[0u8, 0, 0, 0, 2, 8, 1][..], Finding::Healthy),
            ("0", &[0, 0, 0, 0, 2, 8, 2], Finding::Failed { retriable: false }),
            ("12", &[], Finding::Failed { retriable: false }),
        ] {
            let (address, _) = server(move |io| async move {
                let mut connection = h2::server::handshake(io).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    assert_eq!(request.headers()["content-type"], "application/grpc");
                    let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                    stream.send_data(Bytes::from_static(message), false).unwrap();
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", status.parse().unwrap());
                    stream.send_trailers(trailers).unwrap();
                }
            })
            .await;
            let (service, metadata) = ("svc".to_owned(), http::HeaderMap::new());
            let grpc = check(CheckKind::Grpc { service, authority: None, metadata });
            assert_eq!(probe(address, &grpc).await, expected, "{status}");
        }
    });
}

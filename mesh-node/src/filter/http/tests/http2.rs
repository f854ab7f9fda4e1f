//! HTTP/2 and gRPC: streams side by side, trailers, and messages in both directions at once.

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::net::TcpListener;

use super::support::{Proxy, Reaction, Server, cluster, forward_to, hcm, route, routes, run, to};
use crate::model::cluster::{Cluster, UpstreamProtocol};

/// An HTTP/2 server that sends every message back as it comes, then the trailer `grpc-status: 0`.
async fn echo_server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let mut connection = h2::server::handshake(io).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::task::spawn_local(echo(request, respond));
                }
            });
        }
    });
    address
}

async fn echo(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let mut response = Response::builder().header("content-type", "application/grpc");
    for name in ["te", "x-envoy-expected-rq-timeout-ms"] {
        if let Some(value) = parts.headers.get(name) {
            response = response.header(format!("x-saw-{name}"), value);
        }
    }
    response = response.header("x-saw-authority", parts.uri.authority().unwrap().as_str());
    let mut send = respond.send_response(response.body(()).unwrap(), false).unwrap();
    while let Some(Ok(message)) = body.data().await {
        let _ = body.flow_control().release_capacity(message.len());
        if send.send_data(message, false).is_err() {
            return;
        }
    }
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    let _ = send.send_trailers(trailers);
}

fn speaking_http2(address: std::net::SocketAddr) -> Cluster {
    let mut up = cluster("up", &[address]);
    up.protocol = UpstreamProtocol::Http2;
    up
}

fn proxy(up: Cluster) -> Proxy {
    let mut config = hcm();
    config.routes = routes(vec![route("/up", to(forward_to("up")))]);
    Proxy::logged(config, vec![up])
}

async fn client(proxy: &Proxy) -> SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(proxy.connect().io).await.unwrap();
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    sender.ready().await.unwrap()
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://svc.example{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

#[test]
fn a_grpc_call_streams_both_ways_and_ends_with_its_trailers() {
    run(async {
        let proxy = proxy(speaking_http2(echo_server().await));
        let mut client = client(&proxy).await;
        let (response, mut send) = client.send_request(post("/up/call"), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers()["x-saw-te"], "trailers");
        assert_eq!(response.headers()["x-saw-authority"], "svc.example");
        assert_eq!(response.headers()["x-saw-x-envoy-expected-rq-timeout-ms"], "15000");
        assert_eq!(response.headers()["server"], "envoy");
        let mut body = response.into_body();
        // Each message is answered before the next is sent: nothing waits for the end of the request.
        for message in ["one", "two", "three"] {
            send.send_data(Bytes::from_static(message.as_bytes()), false).unwrap();
            assert_eq!(body.data().await.unwrap().unwrap(), message);
        }
        send.send_data(Bytes::new(), true).unwrap();
        assert!(body.data().await.is_none());
        assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
        assert_eq!(proxy.log_lines(), ["POST /up/call 200 - via_upstream 11 11 1"]);
    });
}

#[test]
fn failures_reach_a_grpc_client_as_status_in_headers() {
    run(async {
        let proxy = proxy(speaking_http2(Server::dead().await));
        let mut client = client(&proxy).await;
        let (response, _) = client.send_request(post("/up"), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert!(response.body().is_end_stream());
        let (response, _) = client.send_request(post("/elsewhere"), true).unwrap();
        assert_eq!(response.await.unwrap().headers()["grpc-status"], "12");
    });
}

#[test]
fn an_http2_client_reaches_an_http1_upstream() {
    run(async {
        let server = Server::start(vec![Reaction::Echo]).await;
        let proxy = proxy(cluster("up", &[server.address]));
        let mut client = client(&proxy).await;
        let request = Request::get("http://svc.example/up/a?b").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let sent = server.requests.borrow()[0].clone();
        assert!(sent.starts_with("GET /up/a?b HTTP/1.1\r\nhost: svc.example\r\n"), "{sent}");
        assert_eq!(proxy.hcm.stats.downstream_rq_http2_total.get(), 1);
    });
}

#[test]
fn a_client_that_resets_its_stream_is_logged_and_its_neighbours_go_on() {
    run(async {
        let server = Server::start(vec![Reaction::Hang, Reaction::status(200)]).await;
        let proxy = proxy(cluster("up", &[server.address]));
        let mut client = client(&proxy).await;
        let hung = Request::get("http://a/up/hung").body(()).unwrap();
        let (_response, mut send) = client.send_request(hung, true).unwrap();
        while server.requests.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        send.send_reset(h2::Reason::CANCEL);
        while proxy.hcm.stats.downstream_rq_active.get() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(proxy.log_lines(), ["GET /up/hung 0 DR http2.remote_reset 0 0 1"]);
        let good = Request::get("http://a/up/good").body(()).unwrap();
        let (response, _) = client.send_request(good, true).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    });
}

#[test]
fn a_draining_listener_tells_http2_clients_to_go_elsewhere() {
    run(async {
        let server = Server::start(vec![Reaction::status(200)]).await;
        let proxy = proxy(cluster("up", &[server.address]));
        let (sender, connection) = h2::client::handshake(proxy.connect().io).await.unwrap();
        let connection = tokio::task::spawn_local(connection);
        let mut sender = sender.ready().await.unwrap();
        let request = Request::get("http://a/up").body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
        proxy.connection.drain.start();
        // The connection ends by itself: GOAWAY without an error.
        assert!(connection.await.unwrap().is_ok());
    });
}

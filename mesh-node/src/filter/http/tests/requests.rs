//! What the upstream is sent, and what the client gets of its answer.

use super::support::{Proxy, Reaction, Server, add, cluster, forward_to, hcm, route, routes, run, to};
use crate::model::network::ServerHeader;
use crate::model::route::{HostRewrite, PathRewrite};

async fn echo(change: impl FnOnce(&mut crate::model::network::HttpConnectionManager)) -> (Proxy, Server) {
    let server = Server::start(vec![Reaction::Echo]).await;
    let mut config = hcm();
    config.routes = routes(vec![route("/", to(forward_to("up")))]);
    change(&mut config);
    (Proxy::logged(config, vec![cluster("up", &[server.address])]), server)
}

#[test]
fn a_request_reaches_the_upstream_with_envoys_headers() {
    run(async {
        let (proxy, _server) = echo(|_| {}).await;
        let answer =
            proxy.ask("POST /a?b HTTP/1.1\r\nhost: a\r\nx-n: 1\r\ncontent-length: 3\r\n\r\nx=1").await;
        assert_eq!(answer.status(), 200);
        let (head, body) = answer.body.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "x=1");
        let mut lines = head.lines();
        assert_eq!(lines.next(), Some("POST /a?b HTTP/1.1"));
        let names: Vec<_> = lines.map(|line| line.split(':').next().unwrap()).collect();
        assert_eq!(
            names,
            [
                "host",
                "x-n",
                "content-length",
                "x-forwarded-proto",
                "x-request-id",
                "x-envoy-expected-rq-timeout-ms",
                "x-envoy-attempt-count"
            ]
        );
        assert!(head.contains("\r\nx-forwarded-proto: http\r\n"));
        assert!(head.contains("\r\nx-envoy-expected-rq-timeout-ms: 15000\r\n"));
        assert!(head.ends_with("\r\nx-envoy-attempt-count: 1"));
        assert_eq!(answer.header("server"), Some("envoy"));
        assert_eq!(answer.header("x-envoy-attempt-count"), Some("1"));
        assert!(answer.header("x-envoy-upstream-service-time").is_some());
        assert!(answer.header("date").is_some());
        let line = proxy.log_lines().pop().unwrap();
        assert_eq!(line, format!("POST /a?b 200 - via_upstream 3 {} 1", answer.body.len()));
    });
}

#[test]
fn rewrites_keep_the_original_beside_the_new() {
    run(async {
        let (proxy, _server) = echo(|hcm| {
            let mut forward = forward_to("up");
            forward.path_rewrite = PathRewrite::Prefix("/new".into());
            forward.host_rewrite = HostRewrite::Literal("new.host".into());
            forward.append_x_forwarded_host = true;
            hcm.routes = routes(vec![route("/rewr", to(forward))]);
        })
        .await;
        let sent = proxy.get("/rewr/x?y=z").await.body;
        assert!(sent.starts_with("GET /new/x?y=z HTTP/1.1\r\n"), "{sent}");
        for line in [
            "host: new.host",
            "x-envoy-original-host: a",
            "x-forwarded-host: a",
            "x-envoy-original-path: /rewr/x?y=z",
        ] {
            assert!(sent.contains(&format!("\r\n{line}\r\n")), "{line} in {sent}");
        }
        assert_eq!(proxy.log_lines()[0].split(' ').nth(1), Some("/new/x?y=z"));
    });
}

#[test]
fn header_changes_of_a_route_apply_to_request_and_response() {
    run(async {
        let (proxy, _server) = echo(|hcm| {
            let mut changed = route("/", to(forward_to("up")));
            changed.headers.request_add.push(add("x-added", "yes"));
            changed.headers.request_remove.push("x-n".parse().unwrap());
            changed.headers.response_add.push(add("x-told", "too"));
            hcm.routes = routes(vec![changed]);
        })
        .await;
        let answer = proxy.ask("GET / HTTP/1.1\r\nhost: a\r\nx-n: 1\r\n\r\n").await;
        assert!(answer.body.contains("\r\nx-added: yes\r\n"));
        assert!(!answer.body.contains("x-n"));
        assert_eq!(answer.header("x-told"), Some("too"));
    });
}

#[test]
fn an_absolute_target_names_the_host() {
    run(async {
        let (proxy, _server) = echo(|_| {}).await;
        let sent = proxy.ask("GET http://abs.host/up/a HTTP/1.1\r\nhost: a\r\n\r\n").await.body;
        assert!(sent.starts_with("GET /up/a HTTP/1.1\r\n"), "{sent}");
        assert!(sent.contains("\r\nhost: abs.host\r\n"));
        assert!(!sent.contains("host: a\r\n"));
    });
}

#[test]
fn the_server_header_is_ours_theirs_or_either_as_configured() {
    run(async {
        for (transformation, want) in [
            (ServerHeader::Overwrite, "mine"),
            (ServerHeader::AppendIfAbsent, "up"),
            (ServerHeader::PassThrough, "up"),
        ] {
            let (proxy, _server) = echo(|hcm| {
                hcm.server_name = "mine".into();
                hcm.server_header = transformation;
            })
            .await;
            assert_eq!(proxy.get("/").await.header("server"), Some(want), "{transformation:?}");
        }
    });
}

#[test]
fn a_response_without_length_is_chunked_to_the_client() {
    run(async {
        let server = Server::start(vec![Reaction::SendAndClose(
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc".into(),
        )])
        .await;
        let mut config = hcm();
        config.routes = routes(vec![route("/", to(forward_to("up")))]);
        let proxy = Proxy::new(config, vec![cluster("up", &[server.address])]);
        let answer = proxy.get("/").await;
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
        assert_eq!(answer.header("connection"), None);
        assert!(answer.body.contains("abc"));
    });
}

#[test]
fn expect_100_is_answered_before_the_body_is_sent() {
    run(async {
        let (proxy, _server) = echo(|_| {}).await;
        let mut client = proxy.connect();
        client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await;
        client.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
        client.send("abc").await;
        let answer = client.answer().await;
        assert!(answer.body.ends_with("abc"));
        assert!(!answer.body.contains("\r\nexpect:"));
    });
}

#[test]
fn a_websocket_becomes_a_tunnel() {
    run(async {
        let accepted =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nPONG";
        let server = Server::start(vec![Reaction::Send(accepted.into())]).await;
        let mut config = hcm();
        config.upgrades = vec![("websocket".into(), true)];
        config.routes = routes(vec![route("/", to(forward_to("up")))]);
        let proxy = Proxy::logged(config, vec![cluster("up", &[server.address])]);
        let mut client = proxy.connect();
        client.send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(
            head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"),
            "{head}"
        );
        assert!(!head.contains("x-envoy-upstream-service-time"), "{head}");
        client.expect("PONG").await;
        client.leave().await;
        let sent = server.requests.borrow()[0].clone();
        assert!(
            sent.contains("connection: upgrade\r\n") && sent.contains("upgrade: websocket\r\n"),
            "{sent}"
        );
        assert_eq!(proxy.log_lines(), ["GET /ws 101 DC downstream_remote_disconnect 0 4 1"]);
    });
}

#[test]
fn a_refused_handshake_shows_the_status_alone() {
    run(async {
        let server = Server::start(vec![Reaction::status(200)]).await;
        let mut config = hcm();
        config.upgrades = vec![("websocket".into(), true)];
        config.routes = routes(vec![route("/", to(forward_to("up")))]);
        let proxy = Proxy::logged(config, vec![cluster("up", &[server.address])]);
        let answer =
            proxy.ask("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("content-length"), Some("0"));
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(proxy.log_lines(), ["GET / 200 - websocket_handshake_unsuccessful 0 0 1"]);
    });
}

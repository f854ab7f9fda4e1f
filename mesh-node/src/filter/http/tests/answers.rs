//! The proxy's own answers.

use std::time::Duration;

use bytes::Bytes;

use super::support::{Proxy, Server, add, cluster, forward_to, hcm, route, routes, run, to};
use crate::model::route::{Action, DirectResponse, Redirect, RedirectPath};

fn direct(status: u16, body: &'static str) -> Action {
    Action::Direct(DirectResponse { status, body: Bytes::from_static(body.as_bytes()), body_format: None })
}

/// A proxy with one route.
fn with(action: Action) -> Proxy {
    let mut hcm = hcm();
    hcm.routes = routes(vec![route("/", action)]);
    Proxy::logged(hcm, vec![cluster("none", &[])])
}

#[test]
fn no_route_is_an_empty_404() {
    run(async {
        let proxy = Proxy::logged(hcm(), vec![]);
        let mut client = proxy.connect();
        client.send("GET /zzz HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), 404);
        assert_eq!(answer.names(), ["date", "server", "content-length"]);
        assert_eq!(answer.header("server"), Some("envoy"));
        assert_eq!(answer.header("content-length"), Some("0"));
        client.leave().await;
        assert_eq!(proxy.log_lines(), ["GET /zzz 404 NR route_not_found 0 0 0"]);
        assert_eq!(proxy.hcm.stats.no_route.get(), 1);
        assert_eq!(proxy.hcm.stats.downstream_rq_4xx.get(), 1);
        assert_eq!(proxy.hcm.stats.downstream_rq_active.get(), 0);
    });
}

#[test]
fn an_unknown_cluster_is_an_empty_503_or_404() {
    run(async {
        let proxy = with(to(forward_to("nope")));
        let answer = proxy.get("/").await;
        assert_eq!((answer.status(), answer.body.as_str()), (503, ""));
        assert!(answer.header("x-envoy-attempt-count").is_none());
        assert_eq!(proxy.log_lines(), ["GET / 503 NC cluster_not_found 0 0 0"]);
        let mut forward = forward_to("nope");
        forward.cluster_not_found_status = 404;
        assert_eq!(with(to(forward)).get("/").await.status(), 404);
    });
}

#[test]
fn no_endpoint_is_503_no_healthy_upstream() {
    run(async {
        let proxy = with(to(forward_to("none")));
        let answer = proxy.get("/").await;
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.body, "no healthy upstream");
        assert_eq!(
            answer.names(),
            ["x-envoy-attempt-count", "content-length", "content-type", "date", "server"]
        );
        assert_eq!(answer.header("content-type"), Some("text/plain"));
        assert_eq!(proxy.log_lines(), ["GET / 503 UH no_healthy_upstream 0 19 1"]);
        let stats = &proxy.ctx.clusters.get("none").unwrap().stats;
        assert_eq!(stats.upstream_cx_none_healthy.get(), 1);
        assert_eq!(stats.upstream_rq_5xx.get(), 1);
    });
}

#[test]
fn a_grpc_client_learns_of_failures_in_its_own_terms() {
    run(async {
        let proxy = with(to(forward_to("none")));
        let request =
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
        let answer = proxy.ask(request).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("grpc-status"), Some("14"));
        assert_eq!(answer.header("grpc-message"), Some("no healthy upstream"));
        assert_eq!(answer.header("content-type"), Some("application/grpc"));
        let answer = Proxy::new(hcm(), vec![]).ask(request).await;
        assert_eq!(answer.header("grpc-status"), Some("12"));
        assert_eq!(answer.header("grpc-message"), None);
    });
}

#[test]
fn a_direct_response_says_what_the_route_says() {
    run(async {
        let mut hcm = hcm();
        let mut direct_route = route("/", direct(201, "hello"));
        direct_route.headers.response_add.push(add("x-d", "1"));
        hcm.routes = routes(vec![direct_route]);
        let proxy = Proxy::logged(hcm, vec![]);
        let answer = proxy.get("/direct").await;
        assert_eq!((answer.status(), answer.body.as_str()), (201, "hello"));
        assert_eq!(answer.header("location"), Some("http://a/direct"));
        assert_eq!(answer.header("x-d"), Some("1"));
        assert_eq!(proxy.log_lines(), ["GET /direct 201 - direct_response 0 5 0"]);
        let mut client = proxy.connect();
        client.send("HEAD /direct HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let all = client.closed().await;
        assert!(all.contains("content-length: 5\r\n") && all.ends_with("\r\n\r\n"), "{all}");
        assert_eq!(proxy.log_lines()[1], "HEAD /direct 201 - direct_response 0 0 0");
    });
}

#[test]
fn redirects_name_the_new_place() {
    run(async {
        let redirect =
            Redirect { path: RedirectPath::Replace("/x".into()), status: 301, ..Redirect::default() };
        let answer = with(Action::Redirect(redirect)).get("/redir?a=b").await;
        assert_eq!(answer.status(), 301);
        assert_eq!(answer.header("location"), Some("http://a/x?a=b"));
        assert_eq!(answer.header("content-length"), Some("0"));
        let redirect = Redirect { https: true, status: 308, ..Redirect::default() };
        let answer = with(Action::Redirect(redirect)).get("/q").await;
        assert_eq!((answer.status(), answer.header("location")), (308, Some("https://a/q")));
    });
}

#[test]
fn a_refused_upgrade_is_403_and_ends_the_connection() {
    run(async {
        let proxy = with(direct(200, ""));
        let mut client = proxy.connect();
        client.send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), 403);
        assert_eq!(answer.header("connection"), Some("close"));
        client.closed().await;
        assert_eq!(proxy.log_lines(), ["GET /ws 403 - upgrade_failed 0 0 0"]);
    });
}

#[test]
fn connect_without_a_route_for_it_is_404() {
    run(async {
        let answer = with(direct(200, "")).ask("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n").await;
        assert_eq!((answer.status(), answer.header("connection")), (404, Some("close")));
    });
}

#[test]
fn a_target_that_is_no_path_is_404() {
    run(async {
        let answer = with(direct(200, "")).ask("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!((answer.status(), answer.header("connection")), (404, None));
    });
}

#[test]
fn an_early_answer_ends_the_connection_of_a_client_that_still_sends() {
    run(async {
        let proxy = Proxy::logged(hcm(), vec![]);
        let mut client = proxy.connect();
        client.send("POST /zzz HTTP/1.1\r\nhost: a\r\ncontent-length: 500\r\n\r\na").await;
        let answer = client.answer().await;
        assert_eq!((answer.status(), answer.header("connection")), (404, Some("close")));
    });
}

#[test]
fn what_is_no_request_is_refused_in_envoys_words_and_logged() {
    run(async {
        let proxy = Proxy::logged(hcm(), vec![]);
        for (request, status, body, details) in [
            ("BOGUS\r\n\r\n", 400, "Bad Request", "http1.codec_error"),
            ("GET / HTTP/1.0\r\n\r\n", 426, "Upgrade Required", "low_version"),
        ] {
            let mut client = proxy.connect();
            client.send(request).await;
            let answer = client.answer().await;
            assert_eq!((answer.status(), answer.body.as_str()), (status, body));
            assert_eq!(answer.names(), ["content-length", "content-type", "date", "server", "connection"]);
            client.leave().await;
            let line = proxy.log_lines().pop().unwrap();
            assert_eq!(line, format!("- - {status} DPE {details} 0 {} 0", body.len()));
        }
    });
}

#[test]
fn underscores_in_header_names_are_refused_or_dropped_as_configured() {
    run(async {
        let mut config = hcm();
        config.underscores = crate::model::network::UnderscoresAction::RejectRequest;
        config.routes = routes(vec![route("/", direct(200, ""))]);
        let request = "GET / HTTP/1.1\r\nhost: a\r\na_b: c\r\n\r\n";
        let answer = Proxy::new(config, vec![]).ask(request).await;
        assert_eq!((answer.status(), answer.body.as_str()), (400, "Bad Request"));
        assert_eq!(answer.header("connection"), Some("close"));
        let server = Server::start(vec![super::support::Reaction::Echo]).await;
        let mut config = hcm();
        config.underscores = crate::model::network::UnderscoresAction::DropHeader;
        config.routes = routes(vec![route("/", to(forward_to("up")))]);
        let answer = Proxy::new(config, vec![cluster("up", &[server.address])]).ask(request).await;
        assert_eq!(answer.status(), 200);
        assert!(!answer.body.contains("a_b"));
    });
}

#[test]
fn a_client_that_stalls_in_its_headers_or_body_is_told_408() {
    run(async {
        let mut config = hcm();
        config.request_headers_timeout = Some(Duration::from_millis(50));
        config.stream_idle_timeout = Some(Duration::from_millis(100));
        let server = Server::start(vec![super::support::Reaction::Hang]).await;
        config.routes = routes(vec![route("/", to(forward_to("up")))]);
        let proxy = Proxy::logged(config, vec![cluster("up", &[server.address])]);
        let answer = proxy.ask("GET / HTTP/1.1\r\nhos").await;
        assert_eq!((answer.status(), answer.body.as_str()), (408, "request header timeout"));
        let answer = proxy.ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\na").await;
        assert_eq!((answer.status(), answer.body.as_str()), (408, "stream timeout"));
        assert_eq!(answer.header("connection"), Some("close"));
        let lines = proxy.log_lines();
        assert_eq!(lines[0], "- - 408 - request_header_timeout 0 22 0");
        assert_eq!(lines[1], "POST / 408 SI stream_idle_timeout 1 14 1");
    });
}

#[test]
fn a_request_that_takes_too_long_to_arrive_is_told_408() {
    run(async {
        let mut config = hcm();
        config.request_timeout = Some(Duration::from_millis(50));
        let server = Server::start(vec![super::support::Reaction::Hang]).await;
        config.routes = routes(vec![route("/", to(forward_to("up")))]);
        let proxy = Proxy::logged(config, vec![cluster("up", &[server.address])]);
        let answer = proxy.ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\na").await;
        assert_eq!((answer.status(), answer.body.as_str()), (408, "request timeout"));
        assert_eq!(proxy.log_lines(), ["POST / 408 - request_overall_timeout 1 15 1"]);
    });
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    run(async {
        let mut config = hcm();
        config.idle_timeout = Some(Duration::from_millis(50));
        let proxy = Proxy::new(config, vec![]);
        assert_eq!(proxy.connect().closed().await, "");
        assert_eq!(proxy.hcm.stats.downstream_cx_idle_timeout.get(), 1);
        assert_eq!(proxy.hcm.stats.downstream_cx_active.get(), 0);
    });
}

#[test]
fn a_draining_listener_ends_its_connections_after_the_answer() {
    run(async {
        let proxy = with(direct(200, "x"));
        let mut client = proxy.connect();
        let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        client.send(request).await;
        assert_eq!(client.answer().await.header("connection"), None);
        proxy.connection.drain.start();
        client.send(request).await;
        assert_eq!(client.answer().await.header("connection"), Some("close"));
        client.closed().await;
        assert_eq!(proxy.hcm.stats.downstream_cx_drain_close.get(), 1);
    });
}

#[test]
fn a_connection_ends_after_its_last_allowed_request() {
    run(async {
        let mut config = hcm();
        config.max_requests_per_connection = 2;
        let proxy = Proxy::new(config, vec![]);
        let mut client = proxy.connect();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(client.answer().await.header("connection"), None);
        assert_eq!(client.answer().await.header("connection"), Some("close"));
        client.closed().await;
        assert_eq!(proxy.hcm.stats.downstream_cx_max_requests_reached.get(), 1);
    });
}

#[test]
fn a_body_that_breaks_the_protocol_is_refused_and_logged_once() {
    run(async {
        let server = Server::start(vec![super::support::Reaction::Hang]).await;
        let mut config = hcm();
        config.routes = routes(vec![route("/", to(forward_to("up")))]);
        let proxy = Proxy::logged(config, vec![cluster("up", &[server.address])]);
        let mut client = proxy.connect();
        client
            .send("POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nZZ\r\n")
            .await;
        let answer = client.answer().await;
        assert_eq!((answer.status(), answer.body.as_str()), (400, "Bad Request"));
        assert_eq!(answer.header("connection"), Some("close"));
        client.leave().await;
        let lines = proxy.log_lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("POST /a 400 DPE http1.codec_error "), "{lines:?}");
        let stats = &proxy.hcm.stats;
        assert_eq!((stats.downstream_rq_total.get(), stats.downstream_rq_4xx.get()), (1, 1));
        assert_eq!(stats.downstream_cx_protocol_error.get(), 1);
    });
}

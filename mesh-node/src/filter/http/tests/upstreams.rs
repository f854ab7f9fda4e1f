//! Upstreams that fail, time out, or answer only when asked again.

use std::sync::Arc;
use std::time::Duration;

use super::support::{
    Proxy, Reaction, Server, cluster, forward_to, hcm, retry_policy, route, routes, run, to,
};
use crate::model::cluster::Thresholds;
use crate::model::route::Forward;

fn proxy(forward: Forward, endpoints: &[std::net::SocketAddr]) -> Proxy {
    let mut config = hcm();
    config.routes = routes(vec![route("/", to(forward))]);
    Proxy::logged(config, vec![cluster("up", endpoints)])
}

fn retrying() -> Forward {
    let mut forward = forward_to("up");
    forward.retry = Some(Arc::new(retry_policy()));
    forward
}

#[test]
fn a_refused_connection_is_503_with_the_reason() {
    run(async {
        let proxy = proxy(forward_to("up"), &[Server::dead().await]);
        let answer = proxy.get("/").await;
        assert_eq!(answer.status(), 503);
        assert_eq!(
            answer.body,
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure"
        );
        let line = proxy.log_lines().pop().unwrap();
        assert_eq!(
            line,
            "GET / 503 UF upstream_reset_before_response_started{remote_connection_failure|\
             delayed_connect_error:_Connection_refused} 0 98 1"
        );
        assert_eq!(proxy.ctx.clusters.get("up").unwrap().stats.upstream_rq_5xx.get(), 1);
    });
}

#[test]
fn a_connection_that_ends_without_an_answer_is_503() {
    run(async {
        let server = Server::start(vec![Reaction::SendAndClose(String::new())]).await;
        let proxy = proxy(forward_to("up"), &[server.address]);
        let answer = proxy.get("/").await;
        assert_eq!(answer.status(), 503);
        assert!(answer.body.ends_with("reset reason: connection termination"), "{}", answer.body);
        let line = proxy.log_lines().pop().unwrap();
        assert_eq!(
            line,
            "GET / 503 UC upstream_reset_before_response_started{connection_termination} 0 95 1"
        );
    });
}

#[test]
fn an_answer_that_is_no_http_is_502() {
    run(async {
        let server = Server::start(vec![Reaction::Send("BOGUS\r\n\r\n".into())]).await;
        let proxy = proxy(forward_to("up"), &[server.address]);
        let answer = proxy.get("/").await;
        assert_eq!(answer.status(), 502);
        assert!(answer.body.ends_with("reset reason: protocol error"), "{}", answer.body);
        assert_eq!(
            proxy.log_lines(),
            ["GET / 502 UPE upstream_reset_before_response_started{protocol_error} 0 87 1"]
        );
    });
}

#[test]
fn an_answer_that_breaks_off_breaks_off_for_the_client() {
    run(async {
        let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc".to_owned();
        let server = Server::start(vec![Reaction::SendAndClose(cut)]).await;
        let proxy = proxy(forward_to("up"), &[server.address]);
        let mut client = proxy.connect();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let all = client.closed().await;
        assert!(all.ends_with("\r\n\r\nabc"), "{all}");
        assert_eq!(
            proxy.log_lines(),
            ["GET / 200 UPE upstream_reset_after_response_started{protocol_error} 0 3 1"]
        );
    });
}

#[test]
fn an_open_circuit_breaker_is_503_overloaded() {
    run(async {
        let server = Server::start(vec![Reaction::Echo]).await;
        let mut config = hcm();
        config.routes = routes(vec![route("/", to(forward_to("up")))]);
        let mut up = cluster("up", &[server.address]);
        up.circuit_breakers[0] = Thresholds {
            max_requests: 0,
            max_pending_requests: 0,
            max_connections: 0,
            ..Thresholds::default()
        };
        let proxy = Proxy::logged(config, vec![up]);
        let answer = proxy.get("/").await;
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.header("x-envoy-overloaded"), Some("true"));
        assert!(answer.body.ends_with("reset reason: overflow"), "{}", answer.body);
        assert_eq!(
            proxy.log_lines(),
            ["GET / 503 UO upstream_reset_before_response_started{overflow} 0 81 1"]
        );
    });
}

#[test]
fn an_upstream_that_takes_too_long_is_504() {
    run(async {
        let server = Server::start(vec![Reaction::Hang]).await;
        let mut forward = forward_to("up");
        forward.timeout = Some(Duration::from_millis(50));
        let proxy = proxy(forward, &[server.address]);
        let answer = proxy.get("/").await;
        assert_eq!((answer.status(), answer.body.as_str()), (504, "upstream request timeout"));
        assert_eq!(answer.header("x-envoy-attempt-count"), Some("1"));
        assert_eq!(proxy.log_lines(), ["GET / 504 UT response_timeout 0 24 1"]);
        assert_eq!(proxy.ctx.clusters.get("up").unwrap().stats.upstream_rq_timeout.get(), 1);
    });
}

#[test]
fn the_time_of_a_response_begins_with_the_end_of_the_request() {
    run(async {
        let server = Server::start(vec![Reaction::Hang]).await;
        let mut forward = forward_to("up");
        forward.timeout = Some(Duration::from_millis(50));
        let proxy = proxy(forward, &[server.address]);
        let mut client = proxy.connect();
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na").await;
        let early = tokio::time::timeout(Duration::from_millis(200), client.head()).await;
        assert!(early.is_err(), "answered {early:?} before the request was complete");
        client.send("b").await;
        assert_eq!(client.answer().await.status(), 504);
    });
}

#[test]
fn a_stream_where_nothing_moves_is_504_and_one_that_had_begun_is_cut() {
    run(async {
        let begun = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc".to_owned();
        let server = Server::start(vec![Reaction::Send(begun), Reaction::Hang]).await;
        let mut forward = forward_to("up");
        forward.timeout = None;
        forward.idle_timeout = Some(Duration::from_millis(50));
        let proxy = proxy(forward, &[server.address]);
        let mut client = proxy.connect();
        client.send("GET /begun HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(client.closed().await.ends_with("\r\n\r\nabc"));
        let answer = proxy.get("/hang").await;
        assert_eq!((answer.status(), answer.body.as_str()), (504, "stream timeout"));
        assert_eq!(
            proxy.log_lines(),
            ["GET /begun 200 SI stream_idle_timeout 0 3 1", "GET /hang 504 SI stream_idle_timeout 0 14 1"]
        );
    });
}

#[test]
fn a_stream_that_lasts_too_long_ends() {
    run(async {
        let server = Server::start(vec![Reaction::Hang]).await;
        let mut forward = forward_to("up");
        forward.max_stream_duration = Some(Some(Duration::from_millis(50)));
        let proxy = proxy(forward, &[server.address]);
        let answer = proxy.ask("GET / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\n\r\n").await;
        assert_eq!(answer.header("grpc-status"), Some("4"));
        assert_eq!(answer.header("grpc-message"), Some("downstream duration timeout"));
    });
}

#[test]
fn a_server_error_is_retried_and_the_last_answer_stands() {
    run(async {
        let flaky = vec![Reaction::status(503), Reaction::status(503), Reaction::status(200)];
        let server = Server::start(flaky).await;
        let proxy = proxy(retrying(), &[server.address]);
        let answer = proxy.get("/").await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("x-envoy-attempt-count"), Some("3"));
        let sent = server.requests.borrow();
        assert!(sent[0].contains("x-envoy-attempt-count: 1\r\n"));
        assert!(sent[2].contains("x-envoy-attempt-count: 3\r\n"));
        let stats = &proxy.ctx.clusters.get("up").unwrap().stats;
        assert_eq!(stats.upstream_rq_retry.get(), 2);
        assert_eq!(stats.upstream_rq_retry_success.get(), 1);
        assert_eq!(proxy.log_lines(), ["GET / 200 - via_upstream 0 2 3"]);
    });
}

#[test]
fn retries_end_and_say_so() {
    run(async {
        let server = Server::start(vec![Reaction::status(503)]).await;
        let refused = proxy(retrying(), &[server.address]);
        let answer = refused.get("/").await;
        assert_eq!((answer.status(), answer.body.as_str()), (503, "hi"));
        assert_eq!(refused.log_lines(), ["GET / 503 URX via_upstream 0 2 3"]);
        assert_eq!(refused.ctx.clusters.get("up").unwrap().stats.upstream_rq_retry_limit_exceeded.get(), 1);
        let server = Server::start(vec![Reaction::SendAndClose(String::new())]).await;
        let reset = proxy(retrying(), &[server.address]);
        let answer = reset.get("/").await;
        assert_eq!(
            answer.body,
            "upstream connect error or disconnect/reset before headers. \
             retried and the latest reset reason: connection termination"
        );
        assert_eq!(server.requests.borrow().len(), 3);
        assert_eq!(
            reset.log_lines(),
            ["GET / 503 URX,UC upstream_reset_before_response_started{connection_termination} 0 118 3"]
        );
    });
}

#[test]
fn a_retried_request_brings_its_body_again() {
    run(async {
        let server = Server::start(vec![Reaction::status(503), Reaction::Echo]).await;
        let proxy = proxy(retrying(), &[server.address]);
        let answer = proxy.ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\n\r\nabc=def").await;
        assert_eq!(answer.status(), 200);
        assert!(answer.body.ends_with("\r\n\r\nabc=def"), "{}", answer.body);
        assert!(server.requests.borrow()[0].ends_with("\r\n\r\nabc=def"));
    });
}

#[test]
fn a_body_over_the_buffer_limit_is_sent_once() {
    run(async {
        let server = Server::start(vec![Reaction::status(503)]).await;
        let mut config = hcm();
        config.routes = routes(vec![route("/", to(retrying()))]);
        let mut up = cluster("up", &[server.address]);
        up.per_connection_buffer_limit_bytes = 8;
        let proxy = Proxy::new(config, vec![up]);
        let answer = proxy.ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n0123456789").await;
        assert_eq!(answer.status(), 503);
        assert_eq!(server.requests.borrow().len(), 1);
    });
}

#[test]
fn a_try_that_takes_too_long_is_tried_elsewhere() {
    run(async {
        let slow = Server::start(vec![Reaction::Hang]).await;
        let good = Server::start(vec![Reaction::Echo]).await;
        let mut policy = retry_policy();
        policy.per_try_timeout = Some(Duration::from_millis(50));
        policy.previous_hosts = true;
        policy.host_selection_retry_max_attempts = 5;
        let mut forward = forward_to("up");
        forward.retry = Some(Arc::new(policy.clone()));
        let both = proxy(forward, &[slow.address, good.address]);
        for _ in 0..2 {
            assert_eq!(both.get("/").await.status(), 200);
        }
        assert_eq!(good.requests.borrow().len(), 2);
        let mut forward = forward_to("up");
        policy.num_retries = 1;
        forward.retry = Some(Arc::new(policy));
        let only_slow = proxy(forward, &[slow.address]);
        let answer = only_slow.get("/").await;
        assert_eq!((answer.status(), answer.body.as_str()), (504, "upstream request timeout"));
        assert_eq!(only_slow.log_lines(), ["GET / 504 URX,UT upstream_per_try_timeout 0 24 2"]);
        assert_eq!(only_slow.ctx.clusters.get("up").unwrap().stats.upstream_rq_per_try_timeout.get(), 2);
    });
}

#[test]
fn a_client_that_goes_away_is_logged_and_its_upstream_request_ends() {
    run(async {
        let server = Server::start(vec![Reaction::Hang]).await;
        let proxy = proxy(forward_to("up"), &[server.address]);
        let mut client = proxy.connect();
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        while server.requests.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        client.leave().await;
        assert_eq!(proxy.log_lines(), ["GET / 0 DC downstream_remote_disconnect 0 0 1"]);
        assert_eq!(proxy.hcm.stats.downstream_rq_rx_reset.get(), 1);
        assert_eq!(proxy.ctx.clusters.get("up").unwrap().stats.upstream_rq_active.get(), 0);
    });
}

#[test]
fn a_client_that_goes_away_within_its_body_is_logged_as_gone() {
    run(async {
        let server = Server::start(vec![Reaction::Hang]).await;
        let proxy = proxy(forward_to("up"), &[server.address]);
        let mut client = proxy.connect();
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\na").await;
        let up = proxy.ctx.clusters.get("up").unwrap();
        while up.stats.upstream_rq_active.get() == 0 {
            tokio::task::yield_now().await;
        }
        client.leave().await;
        assert_eq!(proxy.log_lines(), ["POST / 0 DC downstream_remote_disconnect 1 0 1"]);
    });
}

//! Two halves, between them a socket or nothing: whatever is sent, clients, applications, logs and statistics
//! cannot tell which.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::serve;
use super::support::{
    Client, Proxy, Reaction, Server, cluster, filter, forward_to, hcm, route, routes, run, to,
};
use crate::capture::local_workload;
use crate::model::http_filter::HttpFilterKind;
use crate::model::listener::Direction;
use crate::model::network::{HttpConnectionManager, RouterFilter};
use crate::model::route::Forward;
use crate::model::workload::Workload;
use crate::stream::Stream;
use crate::telemetry::stream_info::ConnectionInfo;
use crate::upstream::{Handed, Neighbours};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    Sockets,
    Memory,
}

/// A client's outbound half, and the inbound half of a server's pod.
struct Halves {
    out: Proxy,
    inbound: Rc<Inbound>,
}

struct Inbound {
    proxy: Proxy,
    workload: Arc<Workload>,
    drain: Arc<crate::drain::Signal>,
    /// Connections that came by sockets, and those that were handed over.
    came: Cell<(u32, u32)>,
    /// Ends connections at once.
    refuses: Cell<bool>,
}

/// One thing to try.
struct Case {
    requests: Vec<String>,
    reaction: Reaction,
    change: fn(&mut HttpConnectionManager, &mut HttpConnectionManager),
    route: fn(&mut Forward),
    app_is_down: bool,
}

impl Case {
    fn new(request: &str, reaction: Reaction) -> Self {
        Self {
            requests: vec![request.to_owned()],
            reaction,
            change: |_, _| {},
            route: |_| {},
            app_is_down: false,
        }
    }
}

fn pod(name: &str) -> Arc<Workload> {
    let mut workload = Arc::into_inner(local_workload(name)).expect("made just now");
    workload.hand_over.on = true;
    Arc::new(workload)
}

fn half() -> HttpConnectionManager {
    let mut hcm = hcm();
    hcm.generate_request_id = false;
    let router = RouterFilter { suppress_envoy_headers: true, ..RouterFilter::default() };
    hcm.http_filters = vec![filter(HttpFilterKind::Router(Arc::new(router)))];
    hcm
}

impl Inbound {
    fn info(&self, remote: SocketAddr, local: SocketAddr) -> Arc<ConnectionInfo> {
        Arc::new(ConnectionInfo {
            id: 7,
            peer: remote,
            remote,
            local,
            original_dst: Some(local),
            direction: Direction::Inbound,
            workload: Some(self.workload.clone()),
            tls: None,
            requested_server_name: None,
            filter_chain: "".into(),
            listener_log: Vec::new(),
            drain: self.drain.clone(),
        })
    }
}

struct Pods(Rc<Inbound>);

impl Neighbours for Pods {
    fn pod(&self, _: IpAddr) -> Option<Arc<Workload>> {
        Some(self.0.workload.clone())
    }

    fn expect_knock(&self, _: SocketAddr) {}

    fn serve(&self, handed: Handed) {
        let inbound = self.0.clone();
        let (sockets, memory) = inbound.came.get();
        inbound.came.set((sockets, memory + 1));
        if inbound.refuses.get() {
            return handed.pipe.abort();
        }
        let info = inbound.info(handed.source, handed.destination);
        let (hcm, ctx) = (inbound.proxy.hcm.clone(), inbound.proxy.ctx.clone());
        tokio::task::spawn_local(serve(hcm, info, Stream::Memory(handed.pipe), ctx, handed.offer));
    }
}

impl Halves {
    async fn new(between: Between, case: &Case, app: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mut out, mut inn) = (half(), half());
        let mut forward = forward_to("b");
        (case.route)(&mut forward);
        out.routes = routes(vec![route("/", to(forward))]);
        inn.routes = routes(vec![route("/app", to(forward_to("app")))]);
        (case.change)(&mut out, &mut inn);
        let inbound = Rc::new(Inbound {
            proxy: Proxy::logged(inn, vec![cluster("app", &[app])]),
            workload: pod("b"),
            drain: Arc::default(),
            came: Cell::default(),
            refuses: Cell::default(),
        });
        let mut out = Proxy::logged(out, vec![cluster("b", &[address])]);
        let client = Arc::get_mut(&mut out.connection).expect("nobody has connected");
        client.workload = Some(pod("a"));
        client.direction = Direction::Outbound;
        if between == Between::Memory {
            out.ctx.upstreams.set_neighbours(Some(Rc::new(Pods(inbound.clone()))));
        }
        let accepting = inbound.clone();
        tokio::task::spawn_local(async move {
            while let Ok((io, from)) = listener.accept().await {
                if between == Between::Memory {
                    // Somebody asks the network.
                    continue;
                }
                let (sockets, memory) = accepting.came.get();
                accepting.came.set((sockets + 1, memory));
                if accepting.refuses.get() {
                    socket2::SockRef::from(&io).set_linger(Some(Duration::ZERO)).unwrap();
                    continue;
                }
                let info = accepting.info(from, address);
                let (hcm, ctx) = (accepting.proxy.hcm.clone(), accepting.proxy.ctx.clone());
                tokio::task::spawn_local(serve(hcm, info, io, ctx, None));
            }
        });
        Self { out, inbound }
    }

    /// What can be read off both halves, once each has logged so many lines.
    async fn report(&self, lines: usize) -> String {
        let mut said = String::new();
        for proxy in [&self.out, &self.inbound.proxy] {
            while proxy.log_lines().len() < lines {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            said += &format!("{:#?}\n", proxy.log_lines());
        }
        let cluster = self.out.ctx.clusters.get("b").unwrap();
        let (up, down) = (&cluster.stats, &self.inbound.proxy.hcm.stats);
        said += &format!(
            "cx {} active {} http1 {} rq {} active {} 2xx {} 5xx {}; cx {} rq {} 2xx {} 4xx {} 5xx {} reset {}\n",
            up.upstream_cx_total.get(),
            up.upstream_cx_active.get(),
            up.upstream_cx_http1_total.get(),
            up.upstream_rq_total.get(),
            up.upstream_rq_active.get(),
            up.upstream_rq_2xx.get(),
            up.upstream_rq_5xx.get(),
            down.downstream_cx_total.get(),
            down.downstream_rq_total.get(),
            down.downstream_rq_2xx.get(),
            down.downstream_rq_4xx.get(),
            down.downstream_rq_5xx.get(),
            down.downstream_rq_rx_reset.get(),
        );
        said
    }
}

/// A message without what differs from run to run, in an order that does not matter.
fn comparable(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("date:")).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// The data of chunks. Where they are cut is nobody's promise.
fn joined(mut chunks: &str) -> String {
    let mut data = String::new();
    while let Some((size, rest)) = chunks.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        data += &rest[..size];
        chunks = &rest[(size + 2).min(rest.len())..];
    }
    data
}

/// All that is to be seen of a case.
async fn observe(between: Between, case: &Case) -> String {
    let app = Server::start(vec![case.reaction.clone()]).await;
    let address = if case.app_is_down { Server::dead().await } else { app.address };
    let halves = Halves::new(between, case, address).await;
    let mut client = halves.out.connect();
    let mut said = String::new();
    for request in &case.requests {
        client.send(request).await;
        let answer = client.answer().await;
        said += &comparable(&answer.head);
        let body = match answer.header("transfer-encoding") {
            Some(_) => joined(&answer.body),
            None => answer.body,
        };
        said += &format!("\n{} {}\n", body.len(), comparable(&body));
    }
    said += &halves.report(case.requests.len()).await;
    for request in &*app.requests.borrow() {
        said += &comparable(request);
    }
    let (sockets, memory) = halves.inbound.came.get();
    assert_eq!(between == Between::Memory, sockets == 0 && memory > 0, "{sockets} {memory}");
    said + &format!("\n{}", sockets + memory)
}

fn same(case: Case) {
    run(async {
        let sockets = observe(Between::Sockets, &case).await;
        let memory = observe(Between::Memory, &case).await;
        assert_eq!(memory, sockets);
    });
}

fn ok(head: &str, body: &str) -> Reaction {
    Reaction::Send(format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}"))
}

const GET: &str = "GET /app?x=1 HTTP/1.1\r\nhost: b.example:80\r\nx-a: 1\r\n\r\n";

#[test]
fn a_plain_answer_is_the_same() {
    same(Case::new(GET, ok("content-length: 2\r\nx-b: 2\r\n", "hi")));
}

#[test]
fn requests_one_after_the_other_share_one_connection() {
    let mut case = Case::new(GET, Reaction::status(200));
    case.requests = vec![GET.to_owned(); 5];
    same(case);
}

#[test]
fn bodies_of_known_and_of_unknown_length_arrive_whole() {
    let body = "x".repeat(300_000);
    same(Case::new(
        &format!("POST /app HTTP/1.1\r\nhost: b\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
        Reaction::Echo,
    ));
    same(Case::new(
        "POST /app HTTP/1.1\r\nhost: b\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n",
        Reaction::Echo,
    ));
    let pieces = format!("12c00\r\n{}\r\n3\r\nend\r\n0\r\n\r\n", "y".repeat(0x12c00));
    same(Case::new(GET, ok("transfer-encoding: chunked\r\n", &pieces)));
}

#[test]
fn messages_without_a_body_have_none() {
    same(Case::new("HEAD /app HTTP/1.1\r\nhost: b\r\n\r\n", ok("content-length: 0\r\n", "")));
    same(Case::new("POST /app HTTP/1.1\r\nhost: b\r\ncontent-length: 0\r\n\r\n", Reaction::Echo));
    for status in [204, 304] {
        same(Case::new(GET, Reaction::Send(format!("HTTP/1.1 {status} X\r\nx-b: 2\r\n\r\n"))));
    }
}

#[test]
fn a_request_that_the_inbound_half_answers_itself_is_answered() {
    same(Case::new("GET /none HTTP/1.1\r\nhost: b\r\n\r\n", Reaction::Hang));
    same(Case::new("POST /none HTTP/1.1\r\nhost: b\r\ncontent-length: 5\r\n\r\nabcde", Reaction::Hang));
}

#[test]
fn a_server_that_is_down_is_reported_by_its_own_half() {
    let mut case = Case::new(GET, Reaction::Hang);
    case.app_is_down = true;
    same(case);
}

#[test]
fn a_server_that_breaks_off_before_its_answer_is_reported() {
    same(Case::new(GET, Reaction::SendAndClose(String::new())));
    same(Case::new(GET, Reaction::Send("BOGUS\r\n\r\n".into())));
}

#[test]
fn retries_are_made_over_the_same_connection() {
    let mut case = Case::new(GET, Reaction::status(503));
    case.route = |forward| forward.retry = Some(Arc::new(super::support::retry_policy()));
    run(async move {
        for between in [Between::Sockets, Between::Memory] {
            let app = Server::start(vec![Reaction::status(503), Reaction::status(200)]).await;
            let halves = Halves::new(between, &case, app.address).await;
            assert_eq!(halves.out.get("/app").await.status(), 200);
            let (sockets, memory) = halves.inbound.came.get();
            assert_eq!(sockets + memory, 1, "{between:?}");
        }
    });
}

#[test]
fn an_answer_that_says_close_ends_the_connection() {
    let mut case = Case::new(GET, ok("content-length: 2\r\nconnection: close\r\n", "hi"));
    case.requests = vec![GET.to_owned(); 2];
    same(case);
    let mut limited = Case::new(GET, Reaction::status(200));
    limited.requests = vec![GET.to_owned(); 3];
    limited.change = |_, inbound| inbound.max_requests_per_connection = 2;
    same(limited);
}

#[test]
fn heads_over_the_servers_limits_are_refused() {
    let mut many = Case::new(
        "GET /app HTTP/1.1\r\nhost: b\r\na: 1\r\nb: 1\r\nc: 1\r\nd: 1\r\ne: 1\r\nf: 1\r\n\r\n",
        Reaction::Hang,
    );
    many.change = |_, inbound| inbound.max_headers_count = 5;
    same(many);
    let mut large = Case::new(
        &format!("GET /app HTTP/1.1\r\nhost: b\r\na: {}\r\n\r\n", "a".repeat(2000)),
        Reaction::Hang,
    );
    large.change = |_, inbound| inbound.max_request_headers_kib = 1;
    same(large);
}

#[test]
fn a_client_that_expects_100_is_told_to_go_on() {
    for proxied in [false, true] {
        run(async move {
            for between in [Between::Sockets, Between::Memory] {
                let mut case = Case::new("", Reaction::status(200));
                if proxied {
                    case.change = |out, _| out.proxy_100_continue = true;
                }
                let app = Server::start(vec![Reaction::status(200)]).await;
                let halves = Halves::new(between, &case, app.address).await;
                let mut client = halves.out.connect();
                client
                    .send(
                        "POST /app HTTP/1.1\r\nhost: b\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n",
                    )
                    .await;
                client.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
                client.send("hi").await;
                assert_eq!(client.answer().await.status(), 200, "{between:?}");
                assert!(app.seen(1).await[0].ends_with("\r\n\r\nhi"));
            }
        });
    }
}

#[test]
fn a_stream_that_switches_protocols_is_raw_both_ways() {
    let case = || {
        let mut case = Case::new("", Reaction::Hang);
        case.change = |out, inbound| {
            out.upgrades = vec![("websocket".into(), true)];
            inbound.upgrades = vec![("websocket".into(), true)];
        };
        case
    };
    run(async move {
        for between in [Between::Sockets, Between::Memory] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let halves = Halves::new(between, &case(), listener.local_addr().unwrap()).await;
            let app = async {
                let (mut io, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                let length = io.read(&mut head).await.unwrap();
                assert!(String::from_utf8_lossy(&head[..length]).contains("upgrade: websocket"));
                let answer =
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                io.write_all(answer).await.unwrap();
                let mut word = [0; 4];
                io.read_exact(&mut word).await.unwrap();
                io.write_all(&word).await.unwrap();
                io.read_exact(&mut word).await.unwrap();
                io.write_all(&word).await.unwrap();
            };
            let client = async {
                let mut client: Client = halves.out.connect();
                client
                    .send("GET /app HTTP/1.1\r\nhost: b\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                    .await;
                assert!(client.head().await.starts_with("HTTP/1.1 101"), "{between:?}");
                for word in ["ping", "pong"] {
                    client.send(word).await;
                    client.expect(word).await;
                }
                client.closed().await
            };
            tokio::join!(app, client);
            let report = halves.report(1).await;
            assert!(report.contains("101"), "{report}");
        }
    });
}

#[test]
fn a_client_that_goes_away_is_gone_for_both_halves() {
    run(async {
        let mut reports = Vec::new();
        for between in [Between::Sockets, Between::Memory] {
            let app = Server::start(vec![Reaction::Hang]).await;
            let case = Case::new("", Reaction::Hang);
            let halves = Halves::new(between, &case, app.address).await;
            let mut client = halves.out.connect();
            client.send(GET).await;
            app.seen(1).await;
            client.leave().await;
            reports.push(halves.report(1).await);
        }
        assert_eq!(reports[1], reports[0]);
        assert_eq!(reports[0].matches("DC downstream_remote_disconnect").count(), 2, "{}", reports[0]);
    });
}

#[test]
fn an_answer_that_breaks_off_breaks_off_through_both_halves() {
    run(async {
        let mut reports = Vec::new();
        for between in [Between::Sockets, Between::Memory] {
            let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc".to_owned();
            let app = Server::start(vec![Reaction::SendAndClose(cut)]).await;
            let case = Case::new("", Reaction::Hang);
            let halves = Halves::new(between, &case, app.address).await;
            let mut client = halves.out.connect();
            client.send(GET).await;
            let got = client.closed().await;
            assert!(got.ends_with("\r\n\r\nabc"), "{between:?} {got}");
            reports.push(halves.report(1).await);
        }
        assert_eq!(reports[1], reports[0]);
    });
}

#[test]
fn a_pod_that_refuses_or_drains_does_so_without_a_socket_too() {
    run(async {
        for between in [Between::Sockets, Between::Memory] {
            let app = Server::start(vec![Reaction::status(200)]).await;
            let case = Case::new("", Reaction::Hang);
            let halves = Halves::new(between, &case, app.address).await;
            halves.inbound.refuses.set(true);
            let refused = halves.out.get("/app").await;
            assert_eq!(refused.status(), 503, "{between:?}");
            // A socket may be reset before its connection was noticed to be there.
            let reset = ["connection termination", "remote connection failure"];
            let reasons = if between == Between::Memory { &reset[..1] } else { &reset[..] };
            let told = reasons.iter().any(|r| refused.body.contains(&format!("reset reason: {r}")));
            assert!(told, "{between:?}: {}", refused.body);
            halves.inbound.refuses.set(false);
            assert_eq!(halves.out.get("/app").await.status(), 200);
            halves.inbound.drain.start();
            // On the connection that is there, which ends with it, and on new ones.
            for _ in 0..2 {
                assert_eq!(halves.out.get("/app").await.status(), 200, "{between:?}");
            }
            let (sockets, memory) = halves.inbound.came.get();
            assert_eq!(sockets + memory, 3, "{between:?}");
            assert_eq!(halves.out.ctx.upstreams.idle_connections(), 0, "{between:?}");
        }
    });
}

#[test]
fn an_answer_without_framing_goes_on_until_the_server_closes() {
    run(async {
        for between in [Between::Sockets, Between::Memory] {
            let open_ended = "HTTP/1.1 200 OK\r\n\r\nall of it".to_owned();
            let app = Server::start(vec![Reaction::SendAndClose(open_ended)]).await;
            let halves = Halves::new(between, &Case::new("", Reaction::Hang), app.address).await;
            let answer = halves.out.get("/app").await;
            assert_eq!(answer.body, "9\r\nall of it\r\n0\r\n\r\n", "{between:?}");
        }
    });
}

#[test]
fn who_may_not_connect_is_not_handed_over_either() {
    run(async {
        let app = Server::start(vec![Reaction::status(200)]).await;
        let case = Case::new("", Reaction::Hang);
        let halves = Halves::new(Between::Memory, &case, app.address).await;
        // The pod is still there, and the network lets nobody through to its port.
        let mut closed = Proxy::logged(half(), vec![cluster("b", &[Server::dead().await])]);
        closed.hcm = halves.out.hcm.clone();
        closed.connection = halves.out.connection.clone();
        closed.ctx.upstreams.set_neighbours(Some(Rc::new(Pods(halves.inbound.clone()))));
        let answer = closed.get("/app").await;
        assert_eq!(answer.status(), 503);
        assert!(answer.body.contains("reset reason: remote connection failure"), "{}", answer.body);
        assert_eq!(halves.inbound.came.get(), (0, 0));
    });
}

//! Traced requests: what upstreams are told, and what a collector gets.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::support::{
    Proxy, Reaction, Server, add, cluster, forward_to, hcm, retry_policy, route, routes, run, to,
};
use crate::model::listener::Direction;
use crate::model::network::HttpConnectionManager;
use crate::model::route::Forward;
use crate::model::tracing::{
    Collector, CustomTag, Decorator, OpenTelemetryStats, Provider, ProviderKind, RouteTracing, Sampling,
    SpanRules, TagValue, Tracing, Zipkin, ZipkinStats,
};
use crate::telemetry::peer::{LocalPeer, Peer};

const ALL: Sampling = Sampling { client: (100, 100), random: (100, 100), overall: (100, 100) };
const NONE: Sampling = Sampling { random: (0, 100), ..ALL };

fn collector(grpc: bool) -> Collector {
    Collector {
        cluster: "collector".into(),
        authority: "spans.test".parse().unwrap(),
        path: "/api/v2/spans".to_owned(),
        headers: vec![("x-tenant".parse().unwrap(), "books".parse().unwrap())],
        timeout: Some(Duration::from_secs(5)),
        grpc,
    }
}

fn zipkin() -> Provider {
    let stats = ZipkinStats {
        spans_sent: Arc::default(),
        timer_flushed: Arc::default(),
        reports_skipped_no_cluster: Arc::default(),
        reports_sent: Arc::default(),
        reports_dropped: Arc::default(),
        reports_failed: Arc::default(),
    };
    let zipkin = Zipkin { trace_id_128bit: true, shared_span_context: true, w3c: false, stats };
    Provider { kind: ProviderKind::Zipkin(zipkin), collector: collector(false) }
}

fn opentelemetry() -> Provider {
    let stats = OpenTelemetryStats {
        spans_sent: Arc::default(),
        spans_dropped: Arc::default(),
        timer_flushed: Arc::default(),
    };
    let resource = vec![("service.name".to_owned(), "a.ns".to_owned())];
    Provider { kind: ProviderKind::OpenTelemetry { resource, stats }, collector: collector(false) }
}

fn tracing(provider: Provider) -> Tracing {
    Tracing {
        sampling: ALL,
        spans: SpanRules::default(),
        verbose: false,
        max_path_bytes: 256,
        spawn_upstream_span: false,
        propagate: true,
        provider: Some(Arc::new(provider)),
    }
}

/// A proxy on the way out, its server and its collector.
struct Scene {
    proxy: Proxy,
    server: Server,
    collector: Server,
}

impl Scene {
    async fn new(tracing: Tracing, change: impl FnOnce(&mut HttpConnectionManager, Forward)) -> Self {
        Self::with(vec![Reaction::Echo], tracing, change).await
    }

    async fn with(
        script: Vec<Reaction>,
        tracing: Tracing,
        change: impl FnOnce(&mut HttpConnectionManager, Forward),
    ) -> Self {
        let server = Server::start(script).await;
        let collector = Server::start(vec![Reaction::status(202)]).await;
        let mut config = hcm();
        config.routes = routes(vec![route("/", to(forward_to("up")))]);
        config.tracing = Some(Arc::new(tracing));
        change(&mut config, forward_to("up"));
        let clusters = vec![cluster("up", &[server.address]), cluster("collector", &[collector.address])];
        let mut proxy = Proxy::new(config, clusters);
        let peer = Peer { workload: "a".into(), ..Peer::default() };
        Rc::get_mut(&mut proxy.ctx).unwrap().node =
            Arc::new(LocalPeer::new("sidecar~a", peer).in_cluster("a.ns"));
        Arc::get_mut(&mut proxy.connection).unwrap().direction = Direction::Outbound;
        Self { proxy, server, collector }
    }

    fn stats(&self) -> &ZipkinStats {
        let provider = self.proxy.hcm.tracing.as_ref().unwrap().provider.as_ref().unwrap();
        match &provider.kind {
            ProviderKind::Zipkin(zipkin) => &zipkin.stats,
            ProviderKind::OpenTelemetry { .. } => panic!("not Zipkin"),
        }
    }
}

/// Five requests are enough for a report; its spans.
async fn spans(scene: &Scene, path: &str) -> Vec<Value> {
    for _ in 0..5 {
        scene.proxy.get(path).await;
    }
    let report = scene.collector.seen(1).await.remove(0);
    let (head, body) = report.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /api/v2/spans HTTP/1.1"), "{head}");
    assert!(head.contains("host: spans.test") && head.contains("x-tenant: books"), "{head}");
    serde_json::from_str(body).unwrap()
}

fn header<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    request.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn a_traced_request_comes_to_the_collector_under_the_id_that_its_upstream_was_told() {
    run(async {
        let decorated = |config: &mut HttpConnectionManager, forward| {
            let mut route = route("/", to(forward));
            let operation = "up.ns:80/*".parse().unwrap();
            route.decorator = Some(Decorator { operation, propagate: true });
            config.routes = routes(vec![route]);
        };
        let scene = Scene::new(tracing(zipkin()), decorated).await;
        let spans = spans(&scene, "/x?y").await;
        assert_eq!(spans.len(), 5);
        let request = &scene.server.seen(1).await[0];
        let span = &spans[0];
        assert_eq!(span["traceId"], header(request, "x-b3-traceid").unwrap());
        assert_eq!(span["id"], header(request, "x-b3-spanid").unwrap());
        assert_eq!(header(request, "x-b3-sampled"), Some("1"));
        assert_eq!(header(request, "x-envoy-decorator-operation"), Some("up.ns:80/*"));
        assert_eq!(header(request, "x-request-id").unwrap().as_bytes()[14], b'9');
        assert_eq!((&span["name"], &span["kind"]), (&"up.ns:80/*".into(), &"CLIENT".into()));
        assert_eq!(span["localEndpoint"]["serviceName"], "a.ns");
        for (tag, value) in [
            ("component", "proxy"),
            ("node_id", "sidecar~a"),
            ("http.url", "http://a/x?y"),
            ("http.method", "GET"),
            ("http.protocol", "HTTP/1.1"),
            ("http.status_code", "200"),
            ("upstream_cluster", "up"),
            ("upstream_cluster.name", "up"),
            ("downstream_cluster", "-"),
            ("user_agent", "-"),
            ("response_flags", "-"),
            ("peer.address", "192.0.2.9"),
            ("request_size", "0"),
        ] {
            assert_eq!(span["tags"][tag], value, "{tag}");
        }
        assert_eq!(span["tags"]["guid:x-request-id"], header(request, "x-request-id").unwrap());
        while scene.stats().reports_sent.get() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(scene.stats().spans_sent.get(), 5);
        assert_eq!(scene.proxy.hcm.stats.tracing_random_sampling.get(), 5);
    });
}

#[test]
fn an_unsampled_request_is_told_on_and_never_reported() {
    run(async {
        let mut tracing = tracing(zipkin());
        tracing.sampling = NONE;
        let scene = Scene::new(tracing, |_, _| {}).await;
        for _ in 0..6 {
            scene.proxy.get("/").await;
        }
        let request = &scene.server.seen(1).await[0];
        assert_eq!(header(request, "x-b3-sampled"), Some("0"));
        assert_eq!(header(request, "x-request-id").unwrap().as_bytes()[14], b'4');
        assert_eq!(scene.stats().spans_sent.get(), 0);
        assert_eq!(scene.proxy.hcm.stats.tracing_not_traceable.get(), 6);
        let forced = "GET / HTTP/1.1\r\nhost: a\r\nx-client-trace-id: 1\r\n\r\n";
        scene.proxy.ask(forced).await;
        let request = &scene.server.seen(7).await[6];
        assert_eq!(header(request, "x-b3-sampled"), Some("1"));
        assert_eq!(header(request, "x-request-id").unwrap().as_bytes()[14], b'b');
    });
}

#[test]
fn a_w3c_trace_goes_on_and_a_broken_one_is_left_alone() {
    run(async {
        let scene = Scene::new(tracing(opentelemetry()), |_, _| {}).await;
        let ask = |context: &str| format!("GET / HTTP/1.1\r\nhost: a\r\n{context}\r\n\r\n");
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let parent = format!("traceparent: 00-{trace}-b7ad6b7169203331-00\r\ntracestate: a=b");
        scene.proxy.ask(&ask(&parent)).await;
        scene.proxy.ask(&ask("traceparent: garbage")).await;
        let requests = scene.server.seen(2).await;
        let told = header(&requests[0], "traceparent").unwrap();
        assert!(told.starts_with(&format!("00-{trace}-")) && told.ends_with("-00"), "{told}");
        assert!(!told.contains("b7ad6b7169203331"), "{told}");
        assert_eq!(header(&requests[0], "tracestate"), Some("a=b"));
        assert_eq!(header(&requests[1], "traceparent"), Some("garbage"));
    });
}

#[test]
fn each_try_is_a_span_of_its_own_where_the_configuration_wants_it() {
    run(async {
        let mut tracing = tracing(zipkin());
        tracing.spawn_upstream_span = true;
        let script = vec![Reaction::status(503), Reaction::Echo];
        let scene = Scene::with(script, tracing, |config, mut forward| {
            forward.retry = Some(Arc::new(retry_policy()));
            config.routes = routes(vec![route("/", to(forward))]);
        })
        .await;
        let spans = spans(&scene, "/").await;
        let requests = scene.server.seen(2).await;
        // The tries come first, then the stream.
        assert_eq!(spans[0]["tags"]["http.status_code"], "503");
        assert_eq!(spans[0]["tags"]["error"], "true");
        assert_eq!(spans[0]["id"], header(&requests[0], "x-b3-spanid").unwrap());
        assert_eq!(spans[1]["tags"]["retry.count"], "1");
        assert_eq!(spans[1]["id"], header(&requests[1], "x-b3-spanid").unwrap());
        assert_eq!(spans[1]["name"], "router up egress");
        assert_eq!(spans[1]["tags"]["peer.address"], scene.server.address.to_string());
        assert_eq!(spans[2]["kind"], "SERVER");
        assert_eq!((&spans[0]["parentId"], &spans[1]["parentId"]), (&spans[2]["id"], &spans[2]["id"]));
    });
}

#[test]
fn tags_of_the_route_come_before_those_of_the_connection_manager() {
    run(async {
        let literal = |name: &str, text: &str| CustomTag {
            name: name.into(),
            value: TagValue::Literal(text.to_owned()),
        };
        let from = |name: &str, header: &str, default: &str| CustomTag {
            name: name.into(),
            value: TagValue::Header { name: header.parse().unwrap(), default: default.to_owned() },
        };
        let mut tracing = tracing(zipkin());
        tracing.max_path_bytes = 3;
        tracing.sampling = NONE;
        tracing.spans.tags =
            vec![literal("istio.mesh_id", "m"), from("host", "host", ""), from("tenant", "x-t", "public")];
        let scene = Scene::new(tracing, |config, forward| {
            let mut route = route("/", to(forward));
            let tags = vec![literal("istio.mesh_id", "of the route"), literal("empty", "")];
            route.tracing =
                Some(RouteTracing { sampling: ALL, spans: SpanRules { tags, ..SpanRules::default() } });
            config.routes = routes(vec![route]);
        })
        .await;
        let spans = spans(&scene, "/abcd").await;
        let tags = &spans[0]["tags"];
        assert_eq!((&tags["istio.mesh_id"], &tags["tenant"]), (&"of the route".into(), &"public".into()));
        assert_eq!((&tags["host"], &tags["empty"]), (&"a".into(), &Value::Null));
        assert_eq!(tags["http.url"], "http://a/ab");
    });
}

#[test]
fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    run(async {
        let provider =
            Provider { collector: Collector { cluster: "none".into(), ..collector(false) }, ..zipkin() };
        let scene = Scene::new(tracing(provider), |_, _| {}).await;
        for _ in 0..5 {
            assert_eq!(scene.proxy.get("/").await.status(), 200);
        }
        while scene.stats().reports_skipped_no_cluster.get() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(scene.stats().reports_sent.get(), 0);
    });
}

#[test]
fn the_proxys_own_answer_is_a_span_that_failed() {
    run(async {
        let scene = Scene::new(tracing(zipkin()), |config, _| {
            let mut gone = route("/", to(forward_to("gone")));
            gone.headers.request_add = vec![add("x-a", "b")];
            config.routes = routes(vec![gone]);
        })
        .await;
        let spans = spans(&scene, "/").await;
        let tags = &spans[0]["tags"];
        assert_eq!((&tags["http.status_code"], &tags["error"]), (&"503".into(), &"true".into()));
        assert_eq!((&tags["response_flags"], &tags["upstream_cluster"]), (&"NC".into(), &Value::Null));
        assert_eq!(spans[0]["name"], "a");
    });
}

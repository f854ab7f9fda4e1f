//! What a plain Istio sidecar's chain does: metadata exchange, standard metrics, faults, mirrors.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::support::{Proxy, Reaction, Server, cluster, filter, forward_to, hcm, route, routes, run, to};
use crate::model::cluster::{IstioCluster, IstioService};
use crate::model::http_filter::{HttpFilterKind, IstioStats, MetricOverride, PeerMetadata, Reporter};
use crate::model::network::HttpConnectionManager;
use crate::model::route::Mirror;
use crate::runtime::Setting;
use crate::telemetry::peer::{LocalPeer, Peer};
use crate::telemetry::stats::{Query, Store, prometheus};

fn peer(workload: &str) -> Peer {
    Peer {
        workload: workload.into(),
        namespace: "ns".into(),
        canonical_name: format!("{workload}-canonical"),
        canonical_revision: "v1".into(),
        ..Peer::default()
    }
}

fn inbound(change: impl FnOnce(&mut HttpConnectionManager), server: &Server, stats: &Store) -> Proxy {
    let mut config = hcm();
    config.routes = routes(vec![route("/", to(forward_to("inbound|80||")))]);
    let exchange =
        PeerMetadata { discover_downstream: true, tell_downstream: true, ..PeerMetadata::default() };
    let istio_stats = IstioStats {
        reporter: Reporter::Destination,
        disable_host_header_fallback: true,
        tcp_reporting: Duration::from_secs(5),
        overrides: vec![MetricOverride {
            metric: "response_bytes".into(),
            drop: true,
            ..MetricOverride::default()
        }],
        custom: stats.custom().clone(),
    };
    let before = [
        filter(HttpFilterKind::PeerMetadata(Arc::new(exchange))),
        filter(HttpFilterKind::IstioStats(Arc::new(istio_stats))),
    ];
    config.http_filters.splice(0..0, before);
    change(&mut config);
    let mut up = cluster("inbound|80||", &[server.address]);
    up.istio = Arc::new(IstioCluster {
        service: Some(IstioService {
            host: "b.ns.svc.cluster.local".into(),
            name: "b".into(),
            namespace: "ns".into(),
        }),
        ..IstioCluster::default()
    });
    let mut proxy = Proxy::new(config, vec![up, cluster("copy", &[server.address])]);
    Rc::get_mut(&mut proxy.ctx).unwrap().node = Arc::new(LocalPeer::new("sidecar~b", peer("b")));
    proxy
}

#[test]
fn a_peers_metadata_is_heard_answered_and_kept_from_the_application() {
    run(async {
        let server = Server::start(vec![Reaction::Echo]).await;
        let stats = Store::default();
        let proxy = inbound(|_| {}, &server, &stats);
        let client = LocalPeer::new("sidecar~a", peer("a"));
        let told = client.value.to_str().unwrap();
        let request = format!(
            "GET /x HTTP/1.1\r\nhost: b\r\nx-envoy-peer-metadata-id: sidecar~a\r\nx-envoy-peer-metadata: {told}\r\n\r\n"
        );
        let answer = proxy.ask(&request).await;
        assert!(!answer.body.contains("x-envoy-peer-metadata"), "{}", answer.body);
        assert_eq!(answer.header("x-envoy-peer-metadata-id"), Some("sidecar~b"));
        let heard = answer.header("x-envoy-peer-metadata").unwrap();
        assert_eq!(Peer::of_header(heard.as_bytes(), &[]).unwrap(), peer("b"));
        // A client that tells nothing is told nothing.
        assert_eq!(proxy.get("/x").await.header("x-envoy-peer-metadata"), None);
    });
}

#[test]
fn requests_are_counted_under_istios_names_with_istios_labels_in_their_order() {
    run(async {
        let server = Server::start(vec![Reaction::Echo]).await;
        let stats = Store::default();
        let proxy = inbound(|_| {}, &server, &stats);
        let client = LocalPeer::new("sidecar~a", peer("a"));
        let told = client.value.to_str().unwrap();
        let request = format!("GET /x HTTP/1.1\r\nhost: b\r\nx-envoy-peer-metadata: {told}\r\n\r\n");
        let mut connected = proxy.connect();
        for _ in 0..2 {
            connected.send(&request).await;
            assert_eq!(connected.answer().await.status(), 200);
        }
        drop(connected);
        tokio::task::yield_now().await;
        let shown = prometheus(&stats.samples(&Query::default()));
        let labels = "reporter=\"destination\",source_workload=\"a\",source_canonical_service=\"a-canonical\",\
            source_canonical_revision=\"v1\",source_workload_namespace=\"ns\",source_principal=\"unknown\",\
            source_app=\"unknown\",source_version=\"unknown\",source_cluster=\"unknown\",destination_workload=\"b\",\
            destination_workload_namespace=\"ns\",destination_principal=\"unknown\",destination_app=\"\",\
            destination_version=\"\",destination_service=\"b.ns.svc.cluster.local\",\
            destination_canonical_service=\"b-canonical\",destination_canonical_revision=\"v1\",\
            destination_service_name=\"b\",destination_service_namespace=\"ns\",destination_cluster=\"\",\
            request_protocol=\"http\",response_code=\"200\",grpc_response_status=\"\",response_flags=\"-\",\
            connection_security_policy=\"none\"";
        let line = format!("istio_requests_total{{{labels}}} 2");
        assert!(shown.lines().any(|shown| shown == line), "{line}\nin\n{shown}");
        for metric in ["istio_request_duration_milliseconds_count", "istio_request_bytes_count"] {
            let line = format!("{metric}{{{labels}}} 2");
            assert!(shown.lines().any(|shown| shown == line), "{line}");
        }
        assert!(!shown.contains("istio_response_bytes"), "a metric that configuration drops");
    });
}

#[test]
fn a_mirrored_request_reaches_the_other_cluster_with_its_body_and_a_shadow_host() {
    run(async {
        let server = Server::start(vec![Reaction::Echo]).await;
        let copy = Server::start(vec![Reaction::Echo]).await;
        let mut config = hcm();
        let mut forward = forward_to("up");
        forward.mirrors = vec![Mirror {
            cluster: "copy".into(),
            header: None,
            fraction: Some(Setting::fixed((100, 100))),
            keep_host: false,
            host_rewrite: None,
        }];
        config.routes = routes(vec![route("/", to(forward))]);
        let clusters = vec![cluster("up", &[server.address]), cluster("copy", &[copy.address])];
        let proxy = Proxy::new(config, clusters);
        let answer = proxy.ask("POST /x HTTP/1.1\r\nhost: a:80\r\ncontent-length: 3\r\n\r\nabc").await;
        assert_eq!(answer.status(), 200);
        assert!(answer.body.contains("host: a:80\r\n"), "{}", answer.body);
        let seen = copy.seen(1).await.pop().unwrap();
        assert!(seen.contains("host: a-shadow:80\r\n") && seen.ends_with("\r\n\r\nabc"), "{seen}");
    });
}

//! What a configuration change keeps and what it ends; original destinations.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::support::{Scripted, addresses, cluster, endpoint, locality, manager, snapshot, state, weighted};
use crate::cluster::{LbContext, NoHost};
use crate::model::cluster::{
    Assignment, Cluster, Discovery, Endpoint, HealthStatus, LbPolicy, Transport, TransportSocketMatch,
};

fn changed(mut config: Cluster) -> Cluster {
    config.content_hash += 1;
    config
}

fn original_dst() -> Cluster {
    let mut config = cluster("passthrough", Vec::new());
    config.lb = LbPolicy::ClusterProvided;
    config.discovery = Discovery::OriginalDst {
        http_header: None,
        port_override: None,
        cleanup_interval: Duration::from_secs(5),
    };
    config
}

fn to(address: &str) -> LbContext<'static> {
    LbContext { original_dst: Some(address.parse().unwrap()), ..LbContext::default() }
}

#[test]
fn an_unchanged_cluster_keeps_its_connections_through_a_configuration_change() {
    let manager = manager(1, Arc::<Scripted>::default());
    manager.apply(&snapshot(vec![cluster("a", weighted(&[1])), cluster("b", weighted(&[1]))]));
    let a = manager.get("a").unwrap();
    let b = manager.get("b").unwrap();
    manager.apply(&snapshot(vec![cluster("a", weighted(&[1])), changed(cluster("b", weighted(&[1])))]));
    assert!(Arc::ptr_eq(&a, &manager.get("a").unwrap()));
    assert!(!a.hosts()[0].removed.started());
    assert!(!Arc::ptr_eq(&b, &manager.get("b").unwrap()));
    assert!(b.hosts()[0].removed.started(), "pools of the old cluster end");
}

#[test]
fn endpoints_keep_their_counters_when_their_cluster_changes() {
    let manager = manager(1, Arc::<Scripted>::default());
    manager.apply(&snapshot(vec![cluster("a", weighted(&[1, 1]))]));
    let old = manager.get("a").unwrap().hosts()[1].clone();
    old.counters.rq_total.store(7, Ordering::Relaxed);
    manager.apply(&snapshot(vec![changed(cluster("a", weighted(&[1, 1, 1])))]));
    let hosts = manager.get("a").unwrap().hosts();
    assert_eq!(hosts.len(), 3);
    assert_eq!(hosts[1].address, old.address);
    assert_eq!(hosts[1].counters.rq_total.load(Ordering::Relaxed), 7);
}

#[test]
fn a_removed_cluster_is_unknown_and_its_connections_end() {
    let manager = manager(1, Arc::<Scripted>::default());
    manager.apply(&snapshot(vec![cluster("b", weighted(&[1])), cluster("a", weighted(&[1]))]));
    assert_eq!(manager.all().iter().map(|c| &**c.name()).collect::<Vec<_>>(), ["a", "b"]);
    let a = manager.get("a").unwrap();
    manager.apply(&snapshot(vec![]));
    assert!(manager.get("a").is_none());
    assert!(a.hosts()[0].removed.started());
}

#[test]
fn requests_routed_before_a_change_still_find_their_cluster() {
    let manager = manager(1, Arc::<Scripted>::default());
    manager.apply(&snapshot(vec![cluster("a", weighted(&[1]))]));
    let removed = manager.apply(&snapshot(vec![]));
    let a = manager.get("a").unwrap();
    assert!(!a.hosts()[0].removed.started());
    assert!(manager.all().is_empty(), "not among the configured ones");
    drop(removed);
    assert!(manager.get("a").is_none() && a.hosts()[0].removed.started());
}

#[test]
fn a_cluster_that_comes_back_at_once_goes_on_as_before() {
    let manager = manager(1, Arc::<Scripted>::default());
    manager.apply(&snapshot(vec![cluster("a", weighted(&[1]))]));
    let a = manager.get("a").unwrap();
    let removed = manager.apply(&snapshot(vec![]));
    manager.apply(&snapshot(vec![cluster("a", weighted(&[1]))]));
    drop(removed);
    assert!(Arc::ptr_eq(&a, &manager.get("a").unwrap()) && !a.hosts()[0].removed.started());
}

#[test]
fn an_endpoint_gets_the_first_transport_that_its_metadata_matches() {
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let fits = |name: &str, matches: Vec<(String, String)>| TransportSocketMatch {
        name: name.into(),
        matches,
        transport: Transport::Raw,
    };
    let mtls = Endpoint {
        peer: None,
        transport_match: vec![pair("tlsMode", "istio")],
        ..(*endpoint("10.0.0.1:80", 1, HealthStatus::Healthy)).clone()
    };
    let plain = endpoint("10.0.0.2:80", 1, HealthStatus::Healthy);
    let mut config = cluster("a", vec![locality(0, 0, vec![Arc::new(mtls), plain])]);
    config.transport_socket_matches = vec![
        fits("both", vec![pair("tlsMode", "istio"), pair("x", "y")]),
        fits("mtls", vec![pair("tlsMode", "istio")]),
    ];
    let names = |config: Cluster| -> Vec<Option<String>> {
        let hosts = state(1, config).hosts();
        hosts.iter().map(|h| h.transport_name.as_deref().map(str::to_owned)).collect()
    };
    let all = || weighted(&[1]);
    assert_eq!(names(config), [Some("mtls".to_owned()), None]);
    let mut config = cluster("a", all());
    config.transport_socket_matches = vec![fits("any", Vec::new())];
    assert_eq!(names(config), [Some("any".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_to_an_unknown_service_goes_where_it_wanted_to_go() {
    let state = state(1, original_dst());
    let host = state.choose(&to("192.0.2.1:443")).unwrap();
    assert_eq!(host.address.to_string(), "192.0.2.1:443");
    assert!(Arc::ptr_eq(&host, &state.choose(&to("192.0.2.1:443")).unwrap()));
    assert_eq!(state.choose(&LbContext::default()).unwrap_err(), NoHost::NoOriginalDst);
    assert_eq!(state.stats.membership_total.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn unused_original_destinations_are_forgotten_and_used_ones_kept() {
    let state = state(1, original_dst());
    let used = state.choose(&to("192.0.2.1:1")).unwrap();
    drop(state.choose(&to("192.0.2.2:2")).unwrap());
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(addresses(&state).len(), 2, "chosen since the last sweep");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(addresses(&state), ["192.0.2.1:1"]);
    drop(used);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(addresses(&state).is_empty());
    assert_eq!(state.stats.membership_total.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_header_can_name_the_destination_where_configured() {
    let mut config = original_dst();
    let with_header = LbContext { original_dst_header: Some("198.51.100.7:81"), ..to("192.0.2.1:443") };
    let chosen = |config: Cluster, context: &LbContext<'_>| -> SocketAddr {
        state(1, config).choose(context).unwrap().address
    };
    assert_eq!(chosen(original_dst(), &with_header).to_string(), "192.0.2.1:443", "not configured");
    config.discovery = Discovery::OriginalDst {
        http_header: Some(http::HeaderName::from_static("x-envoy-original-dst-host")),
        port_override: Some(15006),
        cleanup_interval: Duration::from_secs(5),
    };
    let state = state(1, config);
    assert_eq!(state.choose(&with_header).unwrap().address.to_string(), "198.51.100.7:15006");
    let bad = LbContext { original_dst_header: Some("nowhere"), ..to("192.0.2.1:443") };
    assert_eq!(state.choose(&bad).unwrap().address.to_string(), "192.0.2.1:15006");
    assert_eq!(state.stats.original_dst_host_invalid.get(), 1);
}

fn eds(name: &str, service: &str) -> Cluster {
    let mut config = cluster(name, Vec::new());
    config.discovery = Discovery::Eds { service_name: service.into() };
    config
}

fn assigned(weights: &[u32]) -> Arc<Assignment> {
    Arc::new(Assignment { localities: weighted(weights), ..Assignment::default() })
}

#[test]
fn endpoints_that_come_apart_from_their_cluster_are_used_however_late_they_come() {
    let manager = manager(1, Arc::<Scripted>::default());
    manager.set_endpoints(&"first".into(), &assigned(&[1]));
    manager.apply(&snapshot(vec![eds("first", "first"), eds("a", "service"), eds("b", "service")]));
    assert_eq!(manager.get("first").unwrap().hosts().len(), 1, "before the cluster");
    let a = manager.get("a").unwrap();
    assert!(a.hosts().is_empty());
    manager.set_endpoints(&"service".into(), &assigned(&[1, 1]));
    assert_eq!(a.hosts().len(), 2, "after its state was made");
    assert_eq!(manager.get("b").unwrap().hosts().len(), 2, "before its state was made");
}

#[test]
fn an_endpoint_that_stays_keeps_its_connections_when_another_goes() {
    let manager = manager(1, Arc::<Scripted>::default());
    manager.apply(&snapshot(vec![eds("a", "a")]));
    manager.set_endpoints(&"a".into(), &assigned(&[1, 1]));
    let before = manager.get("a").unwrap().hosts();
    manager.set_endpoints(&"a".into(), &assigned(&[1]));
    let after = manager.get("a").unwrap().hosts();
    assert!(after.len() == 1 && Arc::ptr_eq(&before[0], &after[0]));
    assert!(!before[0].removed.started() && before[1].removed.started());
}

#[test]
fn a_removed_cluster_that_nobody_used_yet_serves_requests_routed_before() {
    let manager = manager(1, Arc::<Scripted>::default());
    manager.apply(&snapshot(vec![cluster("a", weighted(&[1]))]));
    let removed = manager.apply(&snapshot(vec![]));
    assert_eq!(manager.get("a").unwrap().hosts().len(), 1);
    drop(removed);
    assert!(manager.get("a").is_none());
}

//! Clusters whose endpoints are names.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::support::{Scripted, addresses, cluster, endpoint, locality, manager, snapshot};
use crate::cluster::{ClusterManager, ClusterState, LbContext, Resolve, SystemResolver};
use crate::model::cluster::{Cluster, Discovery, DnsFamily, DnsOptions, HealthStatus};

const REFRESH: Duration = Duration::from_secs(5);

fn options() -> DnsOptions {
    DnsOptions {
        refresh: REFRESH,
        jitter: Duration::ZERO,
        failure_refresh: None,
        respect_ttl: false,
        family: DnsFamily::V4Only,
    }
}

fn strict(names: &[&str], options: DnsOptions) -> Cluster {
    let endpoints = names.iter().map(|n| endpoint(n, 1, HealthStatus::Healthy)).collect();
    let mut config = cluster("dns", vec![locality(0, 0, endpoints)]);
    config.discovery = Discovery::StrictDns(options);
    config
}

fn logical(name: &str) -> Cluster {
    let mut config = strict(&[name], options());
    config.discovery = Discovery::LogicalDns(options());
    config
}

async fn started(resolver: &Arc<Scripted>, config: Cluster) -> (ClusterManager, Arc<ClusterState>) {
    let manager = manager(1, resolver.clone());
    manager.apply(&snapshot(vec![config]));
    manager.warmed().await;
    let state = manager.get("dns").unwrap();
    (manager, state)
}

/// To just after the next refresh.
async fn next_refresh() {
    tokio::time::sleep(REFRESH + Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn strict_dns_serves_from_every_address_of_every_name() {
    let resolver = Arc::<Scripted>::default();
    resolver.set("a.test", &["10.0.0.1", "10.0.0.2"], 60);
    resolver.set("b.test", &["10.0.0.3"], 60);
    let (_manager, state) =
        started(&resolver, strict(&["a.test:80", "b.test:81", "10.9.9.9:82"], options())).await;
    assert_eq!(addresses(&state), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:81", "10.9.9.9:82"]);
    assert_eq!(state.hosts()[0].hostname.as_deref(), Some("a.test"));
}

#[tokio::test(start_paused = true)]
async fn addresses_that_come_and_go_are_followed_and_the_others_undisturbed() {
    let resolver = Arc::<Scripted>::default();
    resolver.set("a.test", &["10.0.0.1", "10.0.0.2"], 60);
    let (_manager, state) = started(&resolver, strict(&["a.test:80"], options())).await;
    let (stays, goes) = (state.hosts()[0].clone(), state.hosts()[1].clone());
    resolver.set("a.test", &["10.0.0.3", "10.0.0.1"], 60);
    next_refresh().await;
    assert_eq!(addresses(&state), ["10.0.0.1:80", "10.0.0.3:80"]);
    assert!(!stays.removed.started() && goes.removed.started());
    assert!(state.hosts().iter().any(|h| Arc::ptr_eq(h, &stays)));
    assert_eq!(state.stats.membership_change.get(), 2);
    // The same addresses in another order are no change.
    resolver.set("a.test", &["10.0.0.1", "10.0.0.3"], 60);
    next_refresh().await;
    assert_eq!(state.stats.membership_change.get(), 2);
    assert_eq!(state.stats.update_no_rebuild.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn when_the_name_server_fails_the_last_good_addresses_serve() {
    let resolver = Arc::<Scripted>::default();
    resolver.set("a.test", &["10.0.0.1"], 60);
    let (_manager, state) = started(&resolver, strict(&["a.test:80"], options())).await;
    resolver.fail("a.test");
    next_refresh().await;
    assert_eq!(addresses(&state), ["10.0.0.1:80"]);
    assert_eq!(state.stats.update_failure.get(), 1);
    // A name that is known to have no address is another matter.
    resolver.set("a.test", &[], 60);
    next_refresh().await;
    assert!(addresses(&state).is_empty());
    assert_eq!(state.stats.update_empty.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_time_to_live_sets_the_pace_where_asked_for() {
    let resolver = Arc::<Scripted>::default();
    resolver.set("a.test", &["10.0.0.1"], 30);
    let respect = DnsOptions { respect_ttl: true, ..options() };
    let (_manager, state) = started(&resolver, strict(&["a.test:80"], respect)).await;
    resolver.set("a.test", &["10.0.0.2"], 0);
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(addresses(&state), ["10.0.0.1:80"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(addresses(&state), ["10.0.0.2:80"]);
    // No time to live: the refresh rate.
    resolver.set("a.test", &["10.0.0.3"], 0);
    next_refresh().await;
    assert_eq!(addresses(&state), ["10.0.0.3:80"]);
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_at_the_failure_rate() {
    let resolver = Arc::<Scripted>::default();
    let quick = (Duration::from_millis(10), Duration::from_millis(20));
    let slow = DnsOptions { refresh: Duration::from_secs(3600), failure_refresh: Some(quick), ..options() };
    let (_manager, state) = started(&resolver, strict(&["a.test:80"], slow)).await;
    assert!(state.choose(&LbContext::default()).is_err());
    resolver.set("a.test", &["10.0.0.1"], 60);
    tokio::time::sleep(Duration::from_millis(25)).await;
    assert_eq!(addresses(&state), ["10.0.0.1:80"]);
}

#[tokio::test(start_paused = true)]
async fn logical_dns_uses_one_address_and_lets_old_connections_be() {
    let resolver = Arc::<Scripted>::default();
    resolver.set("a.test", &["10.0.0.1", "10.0.0.2"], 60);
    let (_manager, state) = started(&resolver, logical("a.test:80")).await;
    let old = state.hosts()[0].clone();
    old.counters.rq_total.store(3, Ordering::Relaxed);
    assert_eq!(addresses(&state), ["10.0.0.1:80"]);
    resolver.set("a.test", &["10.0.0.5"], 60);
    next_refresh().await;
    assert_eq!(addresses(&state), ["10.0.0.5:80"]);
    assert!(!old.removed.started());
    assert_eq!(state.hosts()[0].counters.rq_total.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn the_lookup_family_decides_which_addresses_serve() {
    let both = ["10.0.0.1", "2001:db8::1"];
    for (family, addresses_of, want) in [
        (DnsFamily::Auto, &both[..], &["[2001:db8::1]:80"][..]),
        (DnsFamily::Auto, &both[..1], &["10.0.0.1:80"]),
        (DnsFamily::V4Preferred, &both, &["10.0.0.1:80"]),
        (DnsFamily::V4Preferred, &both[1..], &["[2001:db8::1]:80"]),
        (DnsFamily::V4Only, &both[1..], &[]),
        (DnsFamily::V6Only, &both, &["[2001:db8::1]:80"]),
        (DnsFamily::All, &both, &["10.0.0.1:80", "[2001:db8::1]:80"]),
    ] {
        let resolver = Arc::<Scripted>::default();
        resolver.set("a.test", addresses_of, 60);
        let (_manager, state) =
            started(&resolver, strict(&["a.test:80"], DnsOptions { family, ..options() })).await;
        assert_eq!(addresses(&state), want, "{family:?} {addresses_of:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_dns_cluster_serves_at_once_from_what_is_known() {
    let resolver = Arc::<Scripted>::default();
    resolver.set("a.test", &["10.0.0.1"], 60);
    let (manager, old) = started(&resolver, strict(&["a.test:80"], options())).await;
    let mut config = strict(&["a.test:80"], options());
    config.content_hash = 2;
    manager.apply(&snapshot(vec![config]));
    let new = manager.get("dns").unwrap();
    assert!(!Arc::ptr_eq(&old, &new));
    assert_eq!(addresses(&new), ["10.0.0.1:80"], "no gap without hosts");
    // The old one looks nothing up any more.
    resolver.set("a.test", &["10.0.0.2"], 60);
    next_refresh().await;
    assert_eq!(addresses(&old), ["10.0.0.1:80"]);
    assert_eq!(addresses(&new), ["10.0.0.2:80"]);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_cluster_that_is_removed_meanwhile_ends() {
    let manager = manager(1, Arc::<Scripted>::default());
    manager.apply(&snapshot(vec![strict(&["a.test:80"], options())]));
    let state = manager.get("dns").unwrap();
    manager.apply(&snapshot(vec![]));
    state.warmed().await;
}

#[tokio::test]
async fn the_system_resolver_reads_the_hosts_file() {
    let resolver = SystemResolver::default();
    let answer = resolver.lookup("localhost", crate::cluster::Family::V4).await.unwrap();
    assert_eq!(answer.addresses, ["127.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn jitter_keeps_clusters_from_asking_all_at_once() {
    let resolver = Arc::<Scripted>::default();
    resolver.set("a.test", &["10.0.0.1"], 60);
    let jittered = DnsOptions { jitter: Duration::from_secs(5), ..options() };
    let (_manager, state) = started(&resolver, strict(&["a.test:80"], jittered)).await;
    let begun = tokio::time::Instant::now();
    let mut waits = Vec::new();
    let mut attempts = state.stats.update_attempt.get();
    let mut last = begun;
    while waits.len() < 20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if state.stats.update_attempt.get() > attempts {
            attempts = state.stats.update_attempt.get();
            waits.push(last.elapsed().as_millis());
            last = tokio::time::Instant::now();
        }
    }
    assert!(waits.iter().all(|ms| (4_800..10_300).contains(ms)), "{waits:?}");
    assert!(waits.iter().any(|ms| *ms > 7_000), "{waits:?}");
}

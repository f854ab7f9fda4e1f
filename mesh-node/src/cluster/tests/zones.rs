//! Which zone serves, by where the proxies are and where the hosts.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::support::{Scripted, Seeded, assigned, cluster, endpoint, locality, snapshot};
use crate::cluster::{ClusterManager, ClusterState, LbContext, LocalCluster, LocalityName};
use crate::model::cluster::HealthStatus::{self, Degraded, Healthy, Unhealthy};
use crate::model::cluster::{Cluster, Discovery, Locality, LocalityBasis, ZoneAware};
use crate::runtime::Setting;

/// Hosts of these healths in zones `z1`, `z2` and so on, at 10.1.0.1, 10.1.0.2 …, 10.2.0.1 …
fn zones(health: &[&[HealthStatus]]) -> Vec<Locality> {
    let zones = health.iter().enumerate().map(|(z, health)| {
        let z = z + 1;
        let hosts = health.iter().enumerate();
        let hosts = hosts.map(|(i, health)| endpoint(&format!("10.{z}.0.{}:80", i + 1), 1, *health));
        Locality { zone: format!("z{z}").into(), ..locality(0, 0, hosts.collect()) }
    });
    zones.collect()
}

fn aware(name: &str, hosts: Vec<Locality>, config: ZoneAware) -> Cluster {
    let mut cluster = cluster(name, hosts);
    cluster.balancing.zones = Some(Arc::new(config));
    cluster
}

fn fixed(min_cluster_size: u64, force_local: u64) -> ZoneAware {
    ZoneAware {
        routing_enabled: Setting::fixed((100, 100)),
        min_cluster_size: Setting::fixed(min_cluster_size),
        force_local: Setting::fixed(force_local),
        basis: LocalityBasis::HealthyHosts,
    }
}

/// A proxy in zone `z1` of the cluster `me`, which gets its hosts later.
fn manager(clusters: Vec<Cluster>) -> ClusterManager {
    let z1 = LocalityName { zone: "z1".into(), ..LocalityName::default() };
    let mut me = cluster("me", Vec::new());
    me.discovery = Discovery::Eds { service_name: "me".into() };
    let manager = ClusterManager::with(1, Seeded::new(3), Arc::<Scripted>::default())
        .within(Some(LocalCluster::new("me".into(), z1)));
    let mut all = clusters;
    all.push(me);
    manager.apply(&snapshot(all));
    manager
}

/// What share of the requests each zone gets, in whole tenths.
fn tenths(state: &ClusterState) -> BTreeMap<String, u32> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..4_000 {
        let host = state.choose(&LbContext::default()).unwrap();
        *counts.entry(host.locality.zone.to_string()).or_default() += 1;
    }
    counts.values_mut().for_each(|n| *n = (*n + 200) / 400);
    counts
}

fn shares(of: &[(&str, u32)]) -> BTreeMap<String, u32> {
    of.iter().map(|(zone, n)| ((*zone).to_owned(), *n)).collect()
}

#[test]
fn a_request_stays_in_its_zone_as_far_as_the_hosts_there_can_take_it() {
    let few = zones(&[&[Healthy], &[Healthy, Healthy, Healthy]]);
    let manager = manager(vec![aware("a", few.clone(), fixed(1, 0)), aware("forced", few, fixed(1, 1))]);
    let state = manager.get("a").unwrap();
    // Nobody knows where the proxies are: the zones do not matter.
    assert_eq!(tenths(&state), shares(&[("z1", 3), ("z2", 8)]));
    assert_eq!(state.stats.lb_local_cluster_not_ok.get(), 0);
    manager.set_endpoints(&"me".into(), &assigned(zones(&[&[Healthy], &[Healthy]])));
    assert_eq!(tenths(&state), shares(&[("z1", 5), ("z2", 5)]));
    assert_eq!(state.stats.lb_recalculate_zone_structures.get(), 2);
    assert!(
        state.stats.lb_zone_routing_sampled.get() > 0 && state.stats.lb_zone_routing_cross_zone.get() > 0
    );
    assert_eq!(tenths(&manager.get("forced").unwrap()), shares(&[("z1", 10)]));
    // One proxy in four is here, as one host in four is.
    manager.set_endpoints(&"me".into(), &assigned(zones(&[&[Healthy], &[Healthy, Healthy, Healthy]])));
    assert_eq!(tenths(&state), shares(&[("z1", 10)]));
    assert_eq!(state.stats.lb_zone_routing_all_directly.get(), 4_000);
}

#[test]
fn what_the_own_zone_cannot_take_goes_where_hosts_are_left() {
    let hosts = zones(&[&[Healthy], &[Healthy], &[Healthy, Healthy]]);
    let manager = manager(vec![aware("a", hosts, fixed(1, 0))]);
    // Proxies: half, a quarter, a quarter. z2 has what its own need, z3 has as much left again.
    let proxies = zones(&[&[Healthy, Healthy], &[Healthy], &[Healthy]]);
    manager.set_endpoints(&"me".into(), &assigned(proxies));
    assert_eq!(tenths(&manager.get("a").unwrap()), shares(&[("z1", 5), ("z3", 5)]));
}

#[test]
fn zones_do_not_matter_to_proxies_that_nobody_counts_on_or_that_are_in_panic() {
    let even = || zones(&[&[Healthy], &[Healthy]]);
    let mut failing = aware("failing", even(), fixed(1, 0));
    failing.balancing.fail_on_panic = true;
    let manager = manager(vec![aware("a", even(), fixed(1, 0)), aware("big", even(), fixed(3, 0)), failing]);
    let (state, failing) = (manager.get("a").unwrap(), manager.get("failing").unwrap());
    let both = shares(&[("z1", 5), ("z2", 5)]);
    let elsewhere = zones(&[&[], &[Healthy], &[Healthy]]);
    manager.set_endpoints(&"me".into(), &assigned(elsewhere));
    assert_eq!(tenths(&state), both);
    assert_eq!(state.stats.lb_local_cluster_not_ok.get(), 1);
    let panicking = zones(&[&[Healthy, Unhealthy, Unhealthy], &[Unhealthy, Unhealthy]]);
    manager.set_endpoints(&"me".into(), &assigned(panicking));
    assert_eq!(tenths(&state), both);
    assert!(failing.choose(&LbContext::default()).is_err());
    assert_eq!(tenths(&manager.get("big").unwrap()), both);
    assert_eq!(manager.get("big").unwrap().stats.lb_zone_cluster_too_small.get(), 1);
}

#[test]
fn a_zone_whose_hosts_stop_serving_gives_its_requests_to_the_others() {
    let mut config = aware("a", Vec::new(), fixed(1, 0));
    config.discovery = Discovery::Eds { service_name: "a".into() };
    let manager = manager(vec![config]);
    manager.set_endpoints(&"me".into(), &assigned(zones(&[&[Healthy], &[Healthy]])));
    let state = manager.get("a").unwrap();
    for (hosts, expected) in [
        (zones(&[&[Healthy], &[Healthy]]), shares(&[("z1", 10)])),
        (zones(&[&[Unhealthy], &[Healthy, Healthy]]), shares(&[("z2", 10)])),
        // All healthy hosts are full with less than all requests: the degraded take the rest.
        (zones(&[&[Healthy, Degraded, Degraded], &[Healthy, Degraded]]), shares(&[("z1", 10)])),
    ] {
        manager.set_endpoints(&"a".into(), &assigned(hosts));
        assert_eq!(tenths(&state), expected);
    }
}

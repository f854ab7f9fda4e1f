//! Requests that ask for hosts with certain metadata.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::support::{cluster, endpoint, locality, state};
use crate::cluster::{ClusterState, LbContext};
use crate::model::cluster::HealthStatus::{self, Healthy, Unhealthy};
use crate::model::cluster::{Endpoint, Fallback, SelectorFallback, SubsetSelector, Subsets};
use crate::model::metadata::{Metadata, MetadataValue};

fn text(value: &str) -> MetadataValue {
    MetadataValue::Text(value.into())
}

fn metadata(pairs: &[(&str, &str)]) -> Metadata {
    let mut all: Vec<_> = pairs.iter().map(|(k, v)| ((*k).into(), text(v))).collect();
    all.sort_by(|(a, _): &(crate::model::Str, _), (b, _)| a.cmp(b));
    all.into()
}

fn host(n: u8, health: HealthStatus, pairs: &[(&str, &str)]) -> Arc<Endpoint> {
    let mut host = (*endpoint(&format!("10.0.0.{n}:80"), 1, health)).clone();
    host.lb_metadata = metadata(pairs);
    Arc::new(host)
}

fn hosts() -> Vec<Arc<Endpoint>> {
    vec![
        host(1, Healthy, &[("version", "v1"), ("stage", "prod")]),
        host(2, Healthy, &[("version", "v2"), ("stage", "prod")]),
        host(3, Healthy, &[("version", "v2"), ("stage", "dev")]),
        host(4, Healthy, &[("stage", "dev")]),
    ]
}

fn selector(keys: &[&str], fallback: SelectorFallback) -> SubsetSelector {
    let mut keys: Vec<_> = keys.iter().map(|k| (*k).into()).collect();
    keys.sort();
    SubsetSelector { keys, fallback }
}

fn subsets(fallback: Fallback, selectors: Vec<SubsetSelector>) -> Subsets {
    Subsets {
        fallback,
        default_subset: metadata(&[("stage", "prod")]),
        selectors,
        locality_weight_aware: false,
        panic_mode_any: false,
        list_as_any: false,
        allow_redundant_keys: false,
        stats: Arc::default(),
    }
}

fn with(subsets: Subsets, hosts: Vec<Arc<Endpoint>>) -> Arc<ClusterState> {
    let mut config = cluster("c", vec![locality(0, 0, hosts)]);
    config.panic_threshold_percent = 0.0;
    config.balancing.subsets = Some(subsets);
    state(1, config)
}

/// The last numbers of the addresses of hosts that serve.
fn serving(state: &ClusterState, asked: &[(&str, &str)]) -> Vec<u8> {
    let criteria = metadata(asked);
    let metadata_match = (!asked.is_empty()).then_some(&*criteria);
    let context = LbContext { metadata_match, ..LbContext::default() };
    let chosen: BTreeSet<u8> = (0..60)
        .filter_map(|_| state.choose(&context).ok())
        .map(|host| {
            host.address.to_string().trim_end_matches(":80").rsplit('.').next().unwrap().parse().unwrap()
        })
        .collect();
    chosen.into_iter().collect()
}

#[test]
fn a_request_is_served_by_the_hosts_it_asks_for() {
    let selectors = vec![
        selector(&["version"], SelectorFallback::NotDefined),
        selector(&["version", "stage"], SelectorFallback::NotDefined),
    ];
    let state = with(subsets(Fallback::None, selectors), hosts());
    assert_eq!(serving(&state, &[("version", "v1")]), [1]);
    assert_eq!(serving(&state, &[("version", "v2")]), [2, 3]);
    assert_eq!(serving(&state, &[("version", "v2"), ("stage", "dev")]), [3]);
    assert_eq!(serving(&state, &[("stage", "dev")]), [] as [u8; 0], "no selector for it");
    assert_eq!(serving(&state, &[("version", "v3")]), [] as [u8; 0]);
    assert_eq!(serving(&state, &[]), [] as [u8; 0]);
    let stats = &state.config.balancing.subsets.as_ref().unwrap().stats;
    assert_eq!((stats.lb_subsets_active.get(), stats.lb_subsets_created.get()), (5, 5));
    assert!(stats.lb_subsets_selected.get() == 180 && stats.lb_subsets_fallback.get() == 0);
}

#[test]
fn what_there_is_not_falls_back_as_configured() {
    let by_version = || vec![selector(&["version"], SelectorFallback::NotDefined)];
    let any = with(subsets(Fallback::Any, by_version()), hosts());
    assert_eq!(serving(&any, &[("version", "v3")]), [1, 2, 3, 4]);
    assert_eq!(serving(&any, &[]), [1, 2, 3, 4]);
    let default = with(subsets(Fallback::Default, by_version()), hosts());
    assert_eq!(serving(&default, &[("version", "v3")]), [1, 2]);
    assert_eq!(serving(&default, &[]), [1, 2]);
    assert_eq!(default.config.balancing.subsets.as_ref().unwrap().stats.lb_subsets_fallback.get(), 120);
    let mut nowhere = subsets(Fallback::Default, by_version());
    nowhere.default_subset = metadata(&[("stage", "gone")]);
    assert_eq!(serving(&with(nowhere.clone(), hosts()), &[]), [] as [u8; 0]);
    nowhere.panic_mode_any = true;
    let state = with(nowhere, hosts());
    assert_eq!(serving(&state, &[]), [1, 2, 3, 4]);
    assert_eq!(state.config.balancing.subsets.as_ref().unwrap().stats.lb_subsets_fallback_panic.get(), 60);
}

#[test]
fn a_selector_can_have_a_fallback_of_its_own() {
    for (fallback, expected) in [
        (SelectorFallback::None, vec![]),
        (SelectorFallback::Any, vec![1, 2, 3, 4]),
        (SelectorFallback::Default, vec![1, 2]),
        (SelectorFallback::Keys(vec!["stage".into()]), vec![3, 4]),
    ] {
        let selectors = vec![
            selector(&["version", "stage"], fallback.clone()),
            selector(&["stage"], SelectorFallback::NotDefined),
        ];
        let state = with(subsets(Fallback::Any, selectors), hosts());
        assert_eq!(serving(&state, &[("version", "v1"), ("stage", "dev")]), expected, "{fallback:?}");
    }
}

#[test]
fn an_unhealthy_subset_has_nobody_rather_than_others() {
    let hosts = vec![host(1, Unhealthy, &[("version", "v1")]), host(2, Healthy, &[("version", "v2")])];
    let selectors = vec![selector(&["version"], SelectorFallback::NotDefined)];
    let state = with(subsets(Fallback::Any, selectors), hosts);
    assert_eq!(serving(&state, &[("version", "v1")]), [] as [u8; 0]);
    assert_eq!(serving(&state, &[("version", "v2")]), [2]);
}

#[test]
fn a_list_can_stand_for_each_of_its_values() {
    let mut both = (*host(1, Healthy, &[])).clone();
    let list = MetadataValue::List(vec![text("v1"), text("v2")].into());
    both.lb_metadata = vec![("version".into(), list)].into();
    for (list_as_any, expected) in [(true, vec![1]), (false, vec![])] {
        let mut config = subsets(Fallback::None, vec![selector(&["version"], SelectorFallback::NotDefined)]);
        config.list_as_any = list_as_any;
        let state = with(config, vec![Arc::new(both.clone())]);
        assert_eq!(serving(&state, &[("version", "v1")]), expected);
        assert_eq!(serving(&state, &[("version", "v2")]), expected);
    }
}

#[test]
fn keys_that_no_selector_has_can_be_left_out() {
    for (allowed, expected) in [(true, vec![2, 3]), (false, vec![])] {
        let mut config = subsets(Fallback::None, vec![selector(&["version"], SelectorFallback::NotDefined)]);
        config.allow_redundant_keys = allowed;
        let state = with(config, hosts());
        assert_eq!(serving(&state, &[("version", "v2"), ("zone", "z")]), expected);
    }
}

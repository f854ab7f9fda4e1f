//! Which host serves next.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::support::{cluster, endpoint, locality, state, tally, weighted};
use crate::cluster::{LbContext, NoHost};
use crate::model::cluster::HealthStatus::{self, Degraded, Draining, Healthy, Unhealthy};
use crate::model::cluster::{LbPolicy, Locality};
use crate::runtime::Setting;

fn share(tally: &HashMap<String, usize>, address: &str) -> f64 {
    let total: usize = tally.values().sum();
    tally.get(address).copied().unwrap_or(0) as f64 / total as f64
}

/// One locality per priority, one host per health, at 10.P.0.1, 10.P.0.2 and so on.
fn priorities(health: &[&[HealthStatus]]) -> Vec<Locality> {
    health
        .iter()
        .enumerate()
        .map(|(p, health)| {
            let hosts = health.iter().enumerate();
            let hosts = hosts.map(|(i, h)| endpoint(&format!("10.{p}.0.{}:80", i + 1), 1, *h));
            locality(p as u32, 0, hosts.collect())
        })
        .collect()
}

fn share_of_priority(tally: &HashMap<String, usize>, priority: u32) -> f64 {
    let prefix = format!("10.{priority}.");
    let total: usize = tally.values().sum();
    tally.iter().filter(|(a, _)| a.starts_with(&prefix)).map(|(_, n)| n).sum::<usize>() as f64 / total as f64
}

#[test]
fn round_robin_gives_each_endpoint_its_turn() {
    let state = state(1, cluster("c", weighted(&[1, 1, 1])));
    let turns: Vec<_> = (0..6).map(|_| state.choose(&LbContext::default()).unwrap().address).collect();
    assert_eq!(turns[..3], turns[3..]);
    assert_eq!(tally(&state, 300).values().collect::<Vec<_>>(), [&100, &100, &100]);
}

#[test]
fn weighted_round_robin_is_exact_over_a_cycle_and_never_bursts() {
    let state = state(7, cluster("c", weighted(&[1, 2, 4])));
    let turns: Vec<_> = (0..700).map(|_| state.choose(&LbContext::default()).unwrap().weight()).collect();
    for cycle in turns.chunks(7) {
        assert_eq!(cycle.iter().filter(|w| **w == 4).count(), 4, "{cycle:?}");
        assert_eq!(cycle.iter().filter(|w| **w == 2).count(), 2, "{cycle:?}");
    }
    assert!(turns.windows(3).all(|w| w.contains(&4)), "the heavy endpoint waits");
}

#[test]
fn an_endpoint_with_more_requests_in_flight_gets_fewer() {
    let mut config = cluster("c", weighted(&[1, 1]));
    config.lb =
        LbPolicy::LeastRequest { choices: 2, active_request_bias: Setting::fixed(1.0), full_scan: false };
    let state = state(3, config);
    let busy = state.hosts()[0].clone();
    busy.counters.rq_active.store(5, Ordering::Relaxed);
    // Of two draws, the busy one serves only when it is drawn twice.
    let share = share(&tally(&state, 20_000), &busy.address.to_string());
    assert!((share - 0.25).abs() < 0.02, "{share}");
}

#[test]
fn more_choices_find_the_idle_endpoint_more_often() {
    let mut config = cluster("c", weighted(&[1; 10]));
    config.lb =
        LbPolicy::LeastRequest { choices: 5, active_request_bias: Setting::fixed(1.0), full_scan: false };
    let state = state(3, config);
    for busy in &state.hosts()[1..] {
        busy.counters.rq_active.store(1, Ordering::Relaxed);
    }
    let share = share(&tally(&state, 20_000), "10.0.0.1:80");
    let expected = 1.0 - 0.9f64.powi(5);
    assert!((share - expected).abs() < 0.02, "{share} {expected}");
}

#[test]
fn weighted_least_request_lowers_the_weight_of_a_busy_endpoint() {
    for (bias, busy_weight) in [(1.0, 2.0), (0.0, 4.0), (2.0, 1.0)] {
        let mut config = cluster("c", weighted(&[1, 4]));
        config.lb = LbPolicy::LeastRequest {
            choices: 2,
            active_request_bias: Setting::fixed(bias),
            full_scan: false,
        };
        let state = state(3, config);
        state.hosts()[1].counters.rq_active.store(1, Ordering::Relaxed);
        let share = share(&tally(&state, 10_000), "10.0.0.2:80");
        let expected = busy_weight / (1.0 + busy_weight);
        assert!((share - expected).abs() < 0.01, "bias {bias}: {share} {expected}");
    }
}

#[test]
fn random_spreads_evenly_whatever_the_weights() {
    let mut config = cluster("c", weighted(&[1, 100]));
    config.lb = LbPolicy::Random;
    let share = share(&tally(&state(5, config), 20_000), "10.0.0.1:80");
    assert!((share - 0.5).abs() < 0.02, "{share}");
}

#[test]
fn unhealthy_and_draining_endpoints_get_nothing() {
    let state = state(1, cluster("c", priorities(&[&[Healthy, Unhealthy, Healthy, Draining, Healthy]])));
    let tally = tally(&state, 300);
    assert_eq!(tally.len(), 3, "{tally:?}");
    assert_eq!(tally.get("10.0.0.2:80"), None);
    assert_eq!(state.stats.membership_total.get(), 5);
    assert_eq!(state.stats.membership_healthy.get(), 3);
}

#[test]
fn below_the_panic_threshold_all_endpoints_serve() {
    let few_healthy = priorities(&[&[Healthy, Unhealthy, Unhealthy]]);
    let panicking = state(1, cluster("c", few_healthy.clone()));
    assert_eq!(tally(&panicking, 300).len(), 3);
    assert_eq!(panicking.stats.lb_healthy_panic.get(), 300);
    let mut config = cluster("c", few_healthy);
    config.panic_threshold_percent = 0.0;
    let calm = state(1, config);
    assert_eq!(tally(&calm, 300).len(), 1);
    assert_eq!(calm.stats.lb_healthy_panic.get(), 0);
}

#[test]
fn without_panic_and_without_a_healthy_endpoint_nothing_serves() {
    let mut config = cluster("c", priorities(&[&[Unhealthy]]));
    config.panic_threshold_percent = 0.0;
    let state = state(1, config);
    assert_eq!(state.choose(&LbContext::default()).unwrap_err(), NoHost::NoHealthyHost);
    assert_eq!(state.stats.upstream_cx_none_healthy.get(), 1);
}

#[test]
fn a_cluster_without_endpoints_has_no_healthy_upstream() {
    let state = state(1, cluster("c", Vec::new()));
    assert_eq!(state.choose(&LbContext::default()).unwrap_err().to_string(), "no healthy upstream");
}

#[test]
fn panic_fails_where_the_configuration_says_so() {
    let mut config = cluster("c", priorities(&[&[Healthy, Unhealthy, Unhealthy]]));
    config.balancing.fail_on_panic = true;
    let state = state(1, config);
    assert_eq!(state.choose(&LbContext::default()).unwrap_err(), NoHost::NoHealthyHost);
    assert_eq!(state.stats.lb_healthy_panic.get(), 1);
}

#[test]
fn a_full_scan_finds_the_only_idle_endpoint() {
    let mut config = cluster("c", weighted(&[1; 10]));
    config.lb =
        LbPolicy::LeastRequest { choices: 2, active_request_bias: Setting::fixed(1.0), full_scan: true };
    let state = state(3, config);
    for busy in &state.hosts()[1..] {
        busy.counters.rq_active.store(1, Ordering::Relaxed);
    }
    assert_eq!(tally(&state, 100).get("10.0.0.1:80"), Some(&100));
    state.hosts()[0].counters.rq_active.store(1, Ordering::Relaxed);
    let even = tally(&state, 20_000);
    assert!((0..10).all(|i| (share(&even, &format!("10.0.0.{}:80", i + 1)) - 0.1).abs() < 0.02), "{even:?}");
}

#[test]
fn load_spills_to_the_next_priority_as_endpoints_fail() {
    // Health of priority 0, percent of the load that it keeps (140 % overprovisioning).
    for (healthy, expected) in [(10, 1.0), (8, 1.0), (7, 0.98), (5, 0.7), (1, 0.14), (0, 0.0)] {
        let first: Vec<_> = (0..10).map(|i| if i < healthy { Healthy } else { Unhealthy }).collect();
        let state = state(1, cluster("c", priorities(&[&first, &[Healthy]])));
        let share = share_of_priority(&tally(&state, 20_000), 0);
        assert!((share - expected).abs() < 0.02, "{healthy} healthy: {share} {expected}");
    }
}

#[test]
fn degraded_endpoints_serve_only_what_healthy_ones_cannot() {
    let half = [Healthy, Degraded, Unhealthy, Unhealthy];
    let degraded_takes_the_rest = state(1, cluster("c", priorities(&[&half])));
    let tally_of_half = tally(&degraded_takes_the_rest, 20_000);
    // One in four is healthy: 35 % each for healthy and degraded, scaled up to 100 %.
    assert!((share(&tally_of_half, "10.0.0.1:80") - 0.5).abs() < 0.02, "{tally_of_half:?}");
    assert!((share(&tally_of_half, "10.0.0.2:80") - 0.5).abs() < 0.02, "{tally_of_half:?}");
    let enough = state(1, cluster("c", priorities(&[&[Healthy, Healthy, Healthy, Degraded]])));
    assert_eq!(tally(&enough, 1_000).get("10.0.0.4:80"), None);
}

#[test]
fn in_total_panic_priorities_serve_by_their_size() {
    let state = state(1, cluster("c", priorities(&[&[Unhealthy; 1], &[Unhealthy; 3]])));
    let share = share_of_priority(&tally(&state, 20_000), 1);
    assert!((share - 0.75).abs() < 0.02, "{share}");
}

#[test]
fn weighted_localities_share_the_load_by_weight_and_lose_it_as_endpoints_fail() {
    let near = vec![endpoint("10.0.0.1:80", 1, Healthy), endpoint("10.0.0.2:80", 1, Unhealthy)];
    let far = vec![endpoint("10.1.0.1:80", 1, Healthy)];
    let mut config = cluster("c", vec![locality(0, 3, near), locality(0, 1, far)]);
    config.locality_weighted = true;
    // Half of `near` serves: its weight is 3 * 0.5 * 1.4 = 2.1.
    let share = share(&tally(&state(1, config), 20_000), "10.0.0.1:80");
    assert!((share - 2.1 / 3.1).abs() < 0.01, "{share}");
}

#[test]
fn a_retry_avoids_the_host_that_failed_if_it_can() {
    let state = state(1, cluster("c", weighted(&[1, 1])));
    let failed = state.hosts()[0].address;
    let exclude = [failed];
    let context = LbContext { exclude: &exclude, exclude_attempts: 1, ..LbContext::default() };
    for _ in 0..100 {
        assert_ne!(state.choose(&context).unwrap().address, failed);
    }
    let both: Vec<_> = state.hosts().iter().map(|h| h.address).collect();
    let context = LbContext { exclude: &both, ..context };
    assert!(state.choose(&context).is_ok(), "an excluded host is better than none");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Over whole cycles each endpoint gets its weight to within one pick, from any start.
    #[test]
    fn weighted_shares_are_kept_for_any_weights(
        weights in prop::collection::vec(1u32..100, 1..12),
        seed in any::<u64>(),
    ) {
        let state = state(seed, cluster("c", weighted(&weights)));
        let cycle = weights.iter().sum::<u32>() as usize;
        let tally = tally(&state, cycle * 3);
        for host in state.hosts() {
            let got = tally.get(&host.address.to_string()).copied().unwrap_or(0) as i64;
            let want = i64::from(host.weight()) * 3;
            prop_assert!((got - want).abs() <= 2, "{}: {got} of {want}", host.address);
        }
    }

    /// A choice is always possible when something is healthy, and it is never an unhealthy host unless in panic.
    #[test]
    fn only_serving_hosts_are_chosen_outside_of_panic(
        health in prop::collection::vec(
            prop::collection::vec(prop::sample::select(vec![Healthy, Degraded, Unhealthy, Draining]), 0..5),
            1..4,
        ),
        seed in any::<u64>(),
    ) {
        let all: Vec<&[HealthStatus]> = health.iter().map(Vec::as_slice).collect();
        let serving = health.iter().flatten().any(|h| matches!(h, Healthy | Degraded));
        let mut config = cluster("c", priorities(&all));
        config.panic_threshold_percent = 0.0;
        let state = state(seed, config);
        for _ in 0..50 {
            match state.choose(&LbContext::default()) {
                Ok(host) => prop_assert!(matches!(host.health(), Healthy | Degraded)),
                Err(_) => prop_assert!(!serving),
            }
        }
    }
}

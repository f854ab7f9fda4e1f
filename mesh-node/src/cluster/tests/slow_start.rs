//! New hosts get their share little by little.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::support::{Scripted, assigned, cluster, endpoint, locality, manager, snapshot, tally};
use crate::cluster::ClusterState;
use crate::model::cluster::HealthStatus::Healthy;
use crate::model::cluster::{Cluster, LbPolicy, SlowStart};
use crate::runtime::Setting;

fn ramped(lb: LbPolicy, aggression: f64) -> Cluster {
    let mut config = cluster("c", vec![locality(0, 0, vec![endpoint("10.0.0.1:80", 1, Healthy)])]);
    config.lb = lb;
    let window = Duration::from_secs(100);
    config.balancing.slow_start =
        Some(SlowStart { window, aggression: Setting::fixed(aggression), least: 0.1 });
    config
}

fn share_of_new(tally: &HashMap<String, usize>) -> f64 {
    let total: usize = tally.values().sum();
    *tally.get("10.0.0.2:80").unwrap_or(&0) as f64 / total as f64
}

/// The state of a cluster that gets a second host after its first is warm.
async fn with_new_host(config: Cluster) -> Arc<ClusterState> {
    let manager = manager(3, Arc::<Scripted>::default());
    manager.apply(&snapshot(vec![config]));
    let state = manager.get("c").unwrap();
    tokio::time::advance(Duration::from_secs(200)).await;
    let both = vec![endpoint("10.0.0.1:80", 1, Healthy), endpoint("10.0.0.2:80", 1, Healthy)];
    state.set_assignment(assigned(vec![locality(0, 0, both)]));
    state
}

#[tokio::test(start_paused = true)]
async fn a_new_host_begins_with_the_least_weight_and_ends_with_its_own() {
    let policies = [
        LbPolicy::RoundRobin,
        LbPolicy::LeastRequest { choices: 2, active_request_bias: Setting::fixed(1.0), full_scan: false },
    ];
    for lb in policies {
        let state = with_new_host(ramped(lb, 1.0)).await;
        // A tenth of the other's weight, then half of it, then as much.
        for (after, weight) in [(1, 0.1), (49, 0.5), (51, 1.0)] {
            tokio::time::advance(Duration::from_secs(after)).await;
            let share = share_of_new(&tally(&state, 20_000));
            let expected = weight / (1.0 + weight);
            assert!((share - expected).abs() < 0.02, "after {after}: {share} {expected}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn aggression_bends_the_ramp() {
    let state = with_new_host(ramped(LbPolicy::RoundRobin, 2.0)).await;
    tokio::time::advance(Duration::from_secs(25)).await;
    // The square root of a quarter.
    let share = share_of_new(&tally(&state, 20_000));
    assert!((share - 0.5 / 1.5).abs() < 0.02, "{share}");
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_weight_changes_does_not_begin_again() {
    let state = with_new_host(ramped(LbPolicy::RoundRobin, 1.0)).await;
    tokio::time::advance(Duration::from_secs(200)).await;
    let both = vec![endpoint("10.0.0.1:80", 1, Healthy), endpoint("10.0.0.2:80", 3, Healthy)];
    state.set_assignment(assigned(vec![locality(0, 0, both)]));
    let share = share_of_new(&tally(&state, 20_000));
    assert!((share - 0.75).abs() < 0.02, "{share}");
}

//! Circuit breakers and what is counted.

use std::sync::atomic::Ordering;

use super::support::{cluster, state, weighted};
use crate::cluster::{Outcome, RoutingPriority};
use crate::model::cluster::Thresholds;

const DEFAULT: RoutingPriority = RoutingPriority::Default;

fn with(thresholds: Thresholds) -> std::sync::Arc<crate::cluster::ClusterState> {
    let mut config = cluster("c", weighted(&[1]));
    config.circuit_breakers = [thresholds, Thresholds::default()];
    state(1, config)
}

#[test]
fn connections_beyond_the_limit_overflow_until_one_closes() {
    let state = with(Thresholds { max_connections: 1, ..Thresholds::default() });
    let host = state.hosts()[0].clone();
    let first = state.connection(&host, DEFAULT).unwrap();
    assert_eq!(state.connection(&host, DEFAULT).unwrap_err().0, "max_connections");
    assert_eq!(state.stats.upstream_cx_overflow.get(), 1);
    assert_eq!(state.stats.default_cx_open.get(), 1);
    // The other routing priority has breakers of its own.
    assert!(state.connection(&host, RoutingPriority::High).is_ok());
    drop(first);
    assert_eq!(state.stats.default_cx_open.get(), 0);
    assert!(state.connection(&host, DEFAULT).is_ok());
    assert_eq!(state.stats.upstream_cx_active.get(), 0);
    assert_eq!(host.counters.cx_active.load(Ordering::Relaxed), 0);
    assert_eq!(host.counters.cx_total.load(Ordering::Relaxed), 3);
}

#[test]
fn a_host_without_connections_gets_one_whatever_the_limit() {
    let state = with(Thresholds { max_connections: 0, ..Thresholds::default() });
    let host = state.hosts()[0].clone();
    let guard = state.connection_over_limit(&host, DEFAULT);
    assert_eq!(state.breakers.of(DEFAULT).connections.count(), 1);
    drop(guard);
    assert_eq!(state.breakers.of(DEFAULT).connections.count(), 0);
}

#[test]
fn requests_waiting_or_running_beyond_the_limits_overflow() {
    let state = with(Thresholds { max_requests: 1, max_pending_requests: 1, ..Thresholds::default() });
    let host = state.hosts()[0].clone();
    let running = state.request(&host, DEFAULT).unwrap();
    let waiting = state.pending(DEFAULT).unwrap();
    assert_eq!(state.stats.upstream_rq_pending_active.get(), 1);
    assert_eq!(state.request(&host, DEFAULT).unwrap_err().0, "max_requests");
    assert_eq!(state.pending(DEFAULT).unwrap_err().0, "max_pending_requests");
    assert_eq!(state.stats.upstream_rq_pending_overflow.get(), 2);
    drop((running, waiting));
    assert!(state.request(&host, DEFAULT).is_ok() && state.pending(DEFAULT).is_ok());
}

#[test]
fn retries_stay_below_the_budget_of_what_is_active() {
    let budget = Thresholds { retry_budget: Some((20.0, 3)), ..Thresholds::default() };
    let state = with(budget);
    let host = state.hosts()[0].clone();
    let few: Vec<_> = std::iter::from_fn(|| state.retry(DEFAULT).ok()).collect();
    assert_eq!(few.len(), 3, "the least concurrency, without any load");
    drop(few);
    let active: Vec<_> = (0..40).map(|_| state.request(&host, DEFAULT).unwrap()).collect();
    let many: Vec<_> = std::iter::from_fn(|| state.retry(DEFAULT).ok()).collect();
    assert_eq!(many.len(), 8, "20 % of 40");
    assert_eq!(state.stats.upstream_rq_retry.get(), 11);
    assert_eq!(state.stats.upstream_rq_retry_overflow.get(), 2);
    drop((active, many));
    assert_eq!(state.breakers.of(DEFAULT).retries.count(), 0);
}

#[test]
fn without_a_budget_three_retries_run_at_once() {
    let state = with(Thresholds::default());
    assert_eq!(std::iter::from_fn(|| state.retry(DEFAULT).ok()).collect::<Vec<_>>().len(), 3);
}

#[test]
fn the_clusters_page_counts_requests_by_outcome() {
    let state = with(Thresholds::default());
    let host = state.hosts()[0].clone();
    for outcome in [Outcome::Success, Outcome::Error, Outcome::Timeout] {
        let request = state.request(&host, DEFAULT).unwrap();
        assert_eq!(host.active_requests(), 0, "it has no connection yet");
        request.attached();
        assert_eq!(host.active_requests(), 1);
        request.finish(outcome);
    }
    let connection = state.connection(&host, DEFAULT).unwrap();
    connection.connect_timed_out();
    let counters = &host.counters;
    let get = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
    assert_eq!(host.active_requests(), 0);
    assert_eq!(
        [&counters.rq_total, &counters.rq_success, &counters.rq_error, &counters.rq_timeout].map(get),
        [3, 1, 2, 1]
    );
    assert_eq!(get(&counters.cx_connect_fail), 1);
    assert_eq!(state.stats.upstream_cx_connect_timeout.get(), 1);
    assert_eq!(state.stats.upstream_rq_total.get(), 3);
}

#[test]
fn connections_to_each_host_can_have_a_limit_of_their_own() {
    let mut config = cluster("c", weighted(&[1, 1]));
    config.circuit_breakers[0].max_connections_per_host = Some(1);
    let state = state(1, config);
    let [a, b] = [0, 1].map(|i| state.hosts()[i].clone());
    let _held = state.connection(&a, DEFAULT).unwrap();
    assert!(state.connection(&a, DEFAULT).is_err());
    assert!(state.connection(&b, DEFAULT).is_ok());
    assert_eq!(state.stats.upstream_cx_overflow.get(), 1);
    assert_eq!(state.breakers.of(DEFAULT).connections.count(), 1);
}

#[test]
fn what_breakers_leave_is_told_where_asked_for() {
    let mut config = cluster("c", weighted(&[1]));
    let stats = std::sync::Arc::<crate::telemetry::stats::RemainingStats>::default();
    config.remaining_stats = Some(stats.clone());
    config.circuit_breakers[0] =
        Thresholds { max_requests: 5, max_retries: 2, track_remaining: true, ..Thresholds::default() };
    let state = state(1, config);
    let host = state.hosts()[0].clone();
    let left = || (stats.default_rq.get(), stats.default_cx.get(), stats.default_retries.get());
    assert_eq!(left(), (5, 1024, 2));
    let held = (state.request(&host, DEFAULT), state.connection(&host, DEFAULT), state.retry(DEFAULT));
    assert_eq!(left(), (4, 1023, 1));
    drop(held);
    assert_eq!(left(), (5, 1024, 2));
    assert_eq!(stats.high_rq.get(), 0, "the other priority was not asked for");
}

#[tokio::test(start_paused = true)]
async fn a_retry_budget_can_count_what_began_within_an_interval() {
    let budget = Thresholds {
        retry_budget: Some((50.0, 0)),
        budget_interval: Some(std::time::Duration::from_millis(800)),
        ..Thresholds::default()
    };
    let state = with(budget);
    let host = state.hosts()[0].clone();
    assert!(state.retry(DEFAULT).is_err());
    // Four requests that have ended allow two retries, until the interval is over.
    (0..4).for_each(|_| drop(state.request(&host, DEFAULT)));
    let held = (state.retry(DEFAULT).unwrap(), state.retry(DEFAULT).unwrap());
    assert!(state.retry(DEFAULT).is_err());
    drop(held);
    tokio::time::advance(std::time::Duration::from_millis(1000)).await;
    assert!(state.retry(DEFAULT).is_err());
}

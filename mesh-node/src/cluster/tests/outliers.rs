//! Hosts that fail are taken out and come back.

use std::sync::Arc;
use std::time::Duration;

use super::support::{cluster, state, tally, weighted};
use crate::cluster::{ClusterState, HealthFlag, Host, LbContext, Report};
use crate::model::cluster::HealthStatus;
use crate::model::resilience::{Consecutive, FailurePercentage, OutlierDetection, SuccessRate};

/// Envoy's defaults, but any share of hosts may be ejected.
pub(super) fn detection() -> OutlierDetection {
    OutlierDetection {
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_time: Duration::from_secs(300),
        max_ejection_time_jitter: Duration::ZERO,
        max_ejection_percent: 100,
        always_eject_one_host: false,
        consecutive_5xx: Consecutive { failures: 5, enforcing: 100 },
        consecutive_gateway_failure: Consecutive { failures: 5, enforcing: 0 },
        consecutive_local_origin_failure: Consecutive { failures: 5, enforcing: 100 },
        split_local_origin: false,
        success_rate: SuccessRate {
            minimum_hosts: 5,
            request_volume: 100,
            deviations: 1.9,
            enforcing: 100,
            enforcing_local_origin: 100,
        },
        failure_percentage: FailurePercentage {
            threshold: 85.0,
            minimum_hosts: 5,
            request_volume: 50,
            enforcing: 0,
            enforcing_local_origin: 0,
        },
        uneject_when_checked: true,
        stats: Arc::default(),
    }
}

fn with(hosts: usize, change: impl FnOnce(&mut OutlierDetection)) -> Arc<ClusterState> {
    let mut config = cluster("c", weighted(&vec![1; hosts]));
    // Without panic, so that ejected hosts get nothing.
    config.panic_threshold_percent = 0.0;
    let mut detection = detection();
    change(&mut detection);
    config.outlier_detection = Some(detection);
    state(1, config)
}

fn times(state: &ClusterState, host: &Host, n: usize, report: Report) {
    (0..n).for_each(|_| state.report(host, report));
}

fn ejected(state: &ClusterState) -> usize {
    state.hosts().iter().filter(|host| host.health() == HealthStatus::Unhealthy).count()
}

fn stats(state: &ClusterState) -> Arc<crate::telemetry::stats::OutlierStats> {
    state.config.outlier_detection.as_ref().unwrap().stats.clone()
}

/// Lets time pass as the cluster's own task would see it.
async fn pass(state: &ClusterState, seconds: u64) {
    for _ in 0..seconds / 10 {
        tokio::time::advance(Duration::from_secs(10)).await;
        state.judge_outliers();
    }
}

#[tokio::test(start_paused = true)]
async fn five_server_errors_in_a_row_take_a_host_out() {
    let state = with(2, |_| {});
    let host = state.hosts()[0].clone();
    times(&state, &host, 4, Report::Response(503));
    times(&state, &host, 1, Report::Response(404));
    times(&state, &host, 4, Report::Response(500));
    assert_eq!(ejected(&state), 0, "a success between begins the count anew");
    times(&state, &host, 1, Report::Timeout);
    assert_eq!(tally(&state, 100).get(&host.address.to_string()), None);
    assert!(host.counters.health.has(HealthFlag::FailedOutlierCheck));
    let stats = stats(&state);
    assert_eq!(stats.ejections_active.get(), 1);
    assert_eq!(stats.ejections_enforced_total.get(), 1);
    assert_eq!(stats.ejections_enforced_consecutive_5xx.get(), 1);
    assert_eq!(state.stats.membership_healthy.get(), 1);
    assert_eq!(state.stats.membership_change.get(), 1, "the hosts are still the same");
}

#[tokio::test(start_paused = true)]
async fn an_ejected_host_comes_back_and_stays_out_longer_each_time() {
    let state = with(2, |_| {});
    let host = state.hosts()[0].clone();
    times(&state, &host, 5, Report::ConnectFailed);
    pass(&state, 20).await;
    assert_eq!(ejected(&state), 1);
    pass(&state, 10).await;
    assert_eq!((ejected(&state), stats(&state).ejections_active.get()), (0, 0));
    times(&state, &host, 5, Report::ConnectFailed);
    pass(&state, 50).await;
    assert_eq!(ejected(&state), 1, "twice the base time");
    pass(&state, 10).await;
    assert_eq!(ejected(&state), 0);
    // A quiet time makes the next ejection short again.
    pass(&state, 60).await;
    times(&state, &host, 5, Report::ConnectFailed);
    pass(&state, 30).await;
    assert_eq!(ejected(&state), 0);
}

#[tokio::test(start_paused = true)]
async fn an_ejection_never_lasts_longer_than_its_maximum_and_jitter() {
    let state = with(2, |d| {
        d.max_ejection_time = Duration::from_secs(30);
        d.max_ejection_time_jitter = Duration::from_secs(10);
    });
    let host = state.hosts()[0].clone();
    for _ in 0..4 {
        times(&state, &host, 5, Report::ConnectFailed);
        pass(&state, 20).await;
        assert_eq!(ejected(&state), 1);
        pass(&state, 20).await;
        assert_eq!(ejected(&state), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn only_so_many_hosts_are_taken_out() {
    let state = with(10, |d| d.max_ejection_percent = 20);
    for host in state.hosts() {
        times(&state, &host, 5, Report::Response(500));
    }
    assert_eq!((ejected(&state), stats(&state).ejections_overflow.get()), (2, 8));
    let few = with(3, |d| d.max_ejection_percent = 10);
    times(&few, &few.hosts()[0], 5, Report::Response(500));
    assert_eq!(ejected(&few), 0, "one of three is more than a tenth");
    let one = with(3, |d| {
        d.max_ejection_percent = 10;
        d.always_eject_one_host = true;
    });
    one.hosts().iter().for_each(|host| times(&one, host, 5, Report::Response(500)));
    assert_eq!(ejected(&one), 1);
}

#[tokio::test(start_paused = true)]
async fn gateway_failures_are_counted_apart_from_other_errors() {
    let state = with(2, |d| {
        d.consecutive_5xx.failures = 100;
        d.consecutive_gateway_failure = Consecutive { failures: 3, enforcing: 100 };
    });
    let host = state.hosts()[0].clone();
    for status in [502, 503, 500, 504, 502] {
        times(&state, &host, 1, Report::Response(status));
    }
    assert_eq!(ejected(&state), 0);
    times(&state, &host, 1, Report::Response(503));
    assert_eq!(ejected(&state), 1);
    assert_eq!(stats(&state).ejections_enforced_consecutive_gateway_failure.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_detection_that_is_not_enforced_is_counted_only() {
    let state = with(2, |d| d.consecutive_5xx.enforcing = 0);
    let host = state.hosts()[0].clone();
    times(&state, &host, 10, Report::Response(500));
    assert_eq!(ejected(&state), 0);
    let stats = stats(&state);
    assert_eq!(stats.ejections_detected_consecutive_5xx.get(), 2);
    assert_eq!(stats.ejections_enforced_total.get(), 0);
    let off = with(2, |d| d.consecutive_5xx.failures = 0);
    times(&off, &off.hosts()[0].clone(), 50, Report::Response(500));
    assert_eq!(ejected(&off), 0, "no number of failures is enough");
}

#[tokio::test(start_paused = true)]
async fn failures_to_connect_can_be_judged_apart() {
    let state = with(2, |d| d.split_local_origin = true);
    let host = state.hosts()[0].clone();
    for report in [Report::ConnectFailed, Report::Timeout].into_iter().cycle().take(4) {
        state.report(&host, report);
    }
    // A server error says that connecting worked before, and is no failure to connect.
    times(&state, &host, 4, Report::Response(500));
    assert_eq!(ejected(&state), 0);
    times(&state, &host, 1, Report::ConnectFailed);
    assert_eq!(ejected(&state), 1);
    assert_eq!(stats(&state).ejections_enforced_consecutive_local_origin_failure.get(), 1);
    let again = with(2, |d| d.split_local_origin = true);
    let host = again.hosts()[0].clone();
    times(&again, &host, 4, Report::ConnectFailed);
    times(&again, &host, 1, Report::Connected);
    times(&again, &host, 4, Report::ConnectFailed);
    assert_eq!(ejected(&again), 0);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_far_worse_than_the_others_is_taken_out() {
    let state = with(6, |d| d.consecutive_5xx.failures = 0);
    for (i, host) in state.hosts().iter().enumerate() {
        let failures = if i == 0 { 40 } else { i };
        times(&state, host, 100 - failures, Report::Response(200));
        times(&state, host, failures, Report::Response(500));
    }
    pass(&state, 10).await;
    assert_eq!(ejected(&state), 1);
    assert!(state.hosts()[0].counters.health.has(HealthFlag::FailedOutlierCheck));
    assert_eq!(stats(&state).ejections_enforced_success_rate.get(), 1);
    assert_eq!(state.hosts()[0].counters.health.success_rates(), (60.0, -1.0));
    let [requests, connecting] = state.outlier_averages().unwrap();
    assert!((requests.mean - 90.83).abs() < 0.01 && requests.threshold > 60.0, "{requests:?}");
    assert_eq!((connecting.mean, connecting.threshold), (-1.0, -1.0));
    // Too few requests in the next interval: nothing is judged.
    pass(&state, 10).await;
    assert_eq!(state.outlier_averages().unwrap()[0].mean, -1.0);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_fails_too_often_is_taken_out_where_that_is_enforced() {
    let enforced = |percent| {
        with(5, move |d| {
            d.consecutive_5xx.failures = 0;
            d.success_rate.enforcing = 0;
            d.failure_percentage.enforcing = percent;
        })
    };
    for (percent, expected) in [(0, 0), (100, 1)] {
        let state = enforced(percent);
        for (i, host) in state.hosts().iter().enumerate() {
            let failures = [85, 84, 0, 0, 0][i];
            times(&state, host, 100 - failures, Report::Response(200));
            times(&state, host, failures, Report::Response(502));
        }
        pass(&state, 10).await;
        assert_eq!(ejected(&state), expected);
        assert_eq!(stats(&state).ejections_detected_failure_percentage.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn connections_to_a_host_that_fails_end_where_that_is_configured() {
    for closes in [true, false] {
        let mut config = cluster("c", weighted(&[1, 1]));
        config.outlier_detection = Some(detection());
        config.close_connections_on_host_health_failure = closes;
        let state = state(1, config);
        let host = state.hosts()[0].clone();
        times(&state, &host, 5, Report::Response(500));
        assert_eq!(host.removed.started(), closes);
        // The host that is there now can have connections again, once it recovers.
        let now = state.hosts()[0].clone();
        assert!(!now.removed.started() && now.address == host.address);
        assert_eq!(Arc::ptr_eq(&now, &host), !closes);
        pass(&state, 30).await;
        assert_eq!((ejected(&state), state.hosts()[0].removed.started()), (0, false));
    }
}

#[tokio::test(start_paused = true)]
async fn without_outlier_detection_nothing_is_counted() {
    let state = state(1, cluster("c", weighted(&[1, 1])));
    times(&state, &state.hosts()[0].clone(), 50, Report::Response(500));
    assert_eq!(ejected(&state), 0);
    assert!(state.outlier_averages().is_none());
    assert!(state.choose(&LbContext::default()).is_ok());
}

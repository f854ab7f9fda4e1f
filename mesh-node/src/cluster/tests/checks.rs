//! Hosts are asked whether they serve, and get requests accordingly.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::support::{Scripted, assigned, cluster, endpoint, locality, manager, snapshot, weighted};
use crate::cluster::{ClusterManager, ClusterState, Finding, HealthFlag, Host, LbContext, Probe, Probing};
use crate::model::cluster::HealthStatus::{Degraded, Healthy, Unhealthy};
use crate::model::cluster::{Cluster, Locality};
use crate::model::resilience::{CheckKind, EndpointCheck, HealthCheck, Pauses};

/// Finds what the test says, and notes whom it asked and when.
#[derive(Debug, Default)]
struct Oracle {
    findings: Mutex<HashMap<String, Finding>>,
    asked: Mutex<Vec<(SocketAddr, u64)>>,
    begun: Mutex<Option<tokio::time::Instant>>,
}

impl Oracle {
    fn say(&self, address: &str, finding: Finding) {
        self.findings.lock().unwrap().insert(address.to_owned(), finding);
    }

    /// Seconds since the start at which hosts were asked.
    fn times(&self) -> Vec<u64> {
        std::mem::take(&mut *self.asked.lock().unwrap()).into_iter().map(|(_, at)| at).collect()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(address, _)| address.to_string()).collect()
    }
}

impl Probe for Oracle {
    fn probe<'a>(&'a self, _: &'a Arc<ClusterState>, host: &'a Arc<Host>, _: &'a HealthCheck) -> Probing<'a> {
        let begun = *self.begun.lock().unwrap().get_or_insert_with(tokio::time::Instant::now);
        self.asked.lock().unwrap().push((host.address, begun.elapsed().as_secs()));
        let finding = self.findings.lock().unwrap().get(&host.address.to_string()).copied();
        Box::pin(async move {
            match finding {
                // As if the host never answered.
                Some(Finding::TimedOut) => std::future::pending().await,
                Some(finding) => finding,
                None => Finding::Healthy,
            }
        })
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn check() -> HealthCheck {
    HealthCheck {
        kind: CheckKind::Tcp { send: Vec::new(), receive: Vec::new() },
        timeout: seconds(1),
        unhealthy_threshold: 2,
        healthy_threshold: 3,
        pauses: Pauses {
            initial_jitter: Duration::ZERO,
            interval: seconds(10),
            jitter: Duration::ZERO,
            jitter_percent: 0,
            no_traffic: seconds(60),
            no_traffic_healthy: seconds(100),
            unhealthy: seconds(20),
            unhealthy_edge: seconds(3),
            healthy_edge: seconds(4),
        },
        transport_match: None,
        ignore_new_hosts: false,
        stats: Arc::default(),
    }
}

struct Setting {
    _manager: ClusterManager,
    oracle: Arc<Oracle>,
    state: Arc<ClusterState>,
}

impl Setting {
    /// A cluster that had traffic and whose hosts are checked.
    fn new(localities: Vec<Locality>, oracle: Oracle, change: impl FnOnce(&mut HealthCheck)) -> Self {
        let mut config = cluster("c", localities);
        config.panic_threshold_percent = 0.0;
        let mut check = check();
        change(&mut check);
        config.health_check = Some(Arc::new(check));
        Self::of(config, oracle)
    }

    fn of(config: Cluster, oracle: Oracle) -> Self {
        config.stats.upstream_cx_total.inc();
        let oracle = Arc::new(oracle);
        let manager = manager(1, Arc::<Scripted>::default()).checking_with(oracle.clone());
        manager.apply(&snapshot(vec![config]));
        let state = manager.get("c").unwrap();
        Self { _manager: manager, oracle, state }
    }

    fn serving(&self) -> Vec<String> {
        let hosts = self.state.hosts();
        hosts.iter().filter(|h| h.health() == Healthy).map(|h| h.address.to_string()).collect()
    }

    fn health(&self, at: usize) -> Arc<Host> {
        self.state.hosts()[at].clone()
    }
}

async fn pass(n: u64) {
    tokio::time::sleep(seconds(n)).await;
}

const A: &str = "10.0.0.1:80";
const B: &str = "10.0.0.2:80";

#[tokio::test(start_paused = true)]
async fn hosts_serve_once_their_first_check_succeeded() {
    let oracle = Oracle::default();
    oracle.say(B, Finding::Failed { retriable: false });
    let setting = Setting::new(weighted(&[1, 1]), oracle, |_| {});
    assert!(setting.state.choose(&LbContext::default()).is_err(), "nobody was checked yet");
    setting.state.warmed().await;
    assert_eq!(setting.serving(), [A]);
    let stats = &setting.state.config.health_check.as_ref().unwrap().stats;
    assert_eq!((stats.attempt.get(), stats.success.get(), stats.failure.get()), (2, 1, 1));
    assert_eq!((stats.healthy.get(), setting.state.stats.membership_healthy.get()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_host_fails_and_recovers_after_so_many_checks_at_the_pauses_of_its_state() {
    let setting = Setting::new(weighted(&[1]), Oracle::default(), |_| {});
    setting.state.warmed().await;
    setting.oracle.say(A, Finding::Unreachable);
    // The next check after 10 s fails and leaves the host as it is; the one 3 s later does not.
    pass(12).await;
    assert_eq!(setting.serving().len(), 1);
    pass(2).await;
    assert_eq!(setting.serving().len(), 0);
    setting.oracle.say(A, Finding::Healthy);
    // After 20 s, and twice after 4 s.
    pass(26).await;
    assert_eq!(setting.serving().len(), 0);
    pass(4).await;
    assert_eq!(setting.serving().len(), 1);
    pass(10).await;
    assert_eq!(setting.oracle.times(), [0, 10, 13, 33, 37, 41, 51]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_says_no_counts_at_once_unless_it_may_be_retried() {
    for (retriable, serving) in [(false, 0), (true, 1)] {
        let setting = Setting::new(weighted(&[1]), Oracle::default(), |_| {});
        setting.state.warmed().await;
        setting.oracle.say(A, Finding::Failed { retriable });
        pass(11).await;
        assert_eq!(setting.serving().len(), serving);
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_does_not_answer_in_time_is_marked_so() {
    let setting = Setting::new(weighted(&[1]), Oracle::default(), |c| c.unhealthy_threshold = 1);
    setting.state.warmed().await;
    setting.oracle.say(A, Finding::TimedOut);
    pass(12).await;
    assert!(setting.health(0).counters.health.has(HealthFlag::ActiveCheckTimeout));
    setting.oracle.say(A, Finding::Unreachable);
    pass(20).await;
    assert!(!setting.health(0).counters.health.has(HealthFlag::ActiveCheckTimeout));
    let stats = &setting.state.config.health_check.as_ref().unwrap().stats;
    assert_eq!((stats.network_failure.get(), stats.healthy.get()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_degraded_host_serves_only_when_others_cannot() {
    let oracle = Oracle::default();
    oracle.say(B, Finding::Degraded);
    let setting = Setting::new(weighted(&[1, 1]), oracle, |_| {});
    setting.state.warmed().await;
    assert_eq!(setting.health(1).health(), Degraded);
    let stats = &setting.state.config.health_check.as_ref().unwrap().stats;
    assert_eq!((stats.degraded.get(), stats.healthy.get()), (1, 2));
    setting.oracle.say(B, Finding::Healthy);
    pass(11).await;
    assert_eq!(setting.serving(), [A, B]);
    assert_eq!(stats.degraded.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_without_traffic_is_checked_seldom() {
    let mut config = cluster("c", weighted(&[1]));
    config.health_check = Some(Arc::new(check()));
    let oracle = Arc::new(Oracle::default());
    let manager = manager(1, Arc::<Scripted>::default()).checking_with(oracle.clone());
    manager.apply(&snapshot(vec![config]));
    pass(130).await;
    oracle.say(A, Finding::Failed { retriable: false });
    pass(200).await;
    assert_eq!(oracle.times(), [0, 100, 200, 260, 320]);
}

#[tokio::test(start_paused = true)]
async fn jitter_is_added_to_pauses() {
    let setting = Setting::new(weighted(&[1]), Oracle::default(), |c| {
        c.pauses.initial_jitter = seconds(5);
        c.pauses.jitter = seconds(4);
        c.pauses.jitter_percent = 50;
    });
    pass(600).await;
    let times = setting.oracle.times();
    let pauses: Vec<u64> = times.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(pauses.iter().all(|p| (10..19).contains(p)), "{pauses:?}");
    assert!(pauses.iter().any(|p| *p > 11) && pauses.iter().any(|p| *p < 17), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn hosts_that_come_are_checked_and_hosts_that_go_are_not() {
    let setting = Setting::new(weighted(&[1]), Oracle::default(), |_| {});
    setting.state.warmed().await;
    let both = vec![endpoint(A, 1, Healthy), endpoint(B, 1, Healthy)];
    setting.state.set_assignment(assigned(vec![locality(0, 0, both)]));
    assert_eq!(setting.serving(), [A], "the new host waits for its first check");
    pass(1).await;
    assert_eq!(setting.serving(), [A, B]);
    // Another weight: still the same host, with its health and its session.
    setting.state.set_assignment(assigned(vec![locality(0, 0, vec![endpoint(B, 7, Healthy)])]));
    assert_eq!(setting.serving(), [B]);
    setting.oracle.times();
    pass(25).await;
    assert!(setting.oracle.asked().iter().all(|asked| asked == B), "{:?}", setting.oracle.asked());
    assert_eq!(setting.oracle.asked().len(), 2);
    let stats = &setting.state.config.health_check.as_ref().unwrap().stats;
    assert_eq!(stats.healthy.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_changed_cluster_goes_on_with_what_was_found() {
    let setting = Setting::new(weighted(&[1]), Oracle::default(), |_| {});
    setting.state.warmed().await;
    let mut config = cluster("c", weighted(&[1]));
    config.health_check = Some(Arc::new(check()));
    config.content_hash = 2;
    setting._manager.apply(&snapshot(vec![config]));
    let changed = setting._manager.get("c").unwrap();
    assert!(changed.choose(&LbContext::default()).is_ok());
    // Without checks what they found is void.
    setting.oracle.say(A, Finding::Failed { retriable: false });
    pass(11).await;
    let mut config = cluster("c", weighted(&[1]));
    config.content_hash = 3;
    setting._manager.apply(&snapshot(vec![config]));
    assert_eq!(setting._manager.get("c").unwrap().hosts()[0].health(), Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_response_can_take_its_host_out_until_checks_succeed() {
    let setting = Setting::new(weighted(&[1, 1]), Oracle::default(), |_| {});
    setting.state.warmed().await;
    let host = setting.health(0);
    setting.state.fail_at_once(&host);
    assert_eq!(setting.serving(), [B]);
    assert_eq!(setting.state.stats.membership_excluded.get(), 1);
    pass(20).await;
    assert_eq!(setting.serving(), [A, B]);
    let unchecked = super::support::state(1, cluster("c", weighted(&[1])));
    unchecked.fail_at_once(&unchecked.hosts()[0].clone());
    assert_eq!(unchecked.hosts()[0].health(), Healthy);
}

#[tokio::test(start_paused = true)]
async fn new_hosts_can_be_left_out_of_account_until_checked() {
    let three = |n: usize| {
        let hosts = (1..=n).map(|i| endpoint(&format!("10.0.0.{i}:80"), 1, Healthy)).collect();
        vec![locality(0, 0, hosts), locality(1, 0, vec![endpoint("10.1.0.1:80", 1, Healthy)])]
    };
    let setting = Setting::new(three(1), Oracle::default(), |c| c.ignore_new_hosts = true);
    setting.state.warmed().await;
    setting.state.set_assignment(assigned(three(4)));
    // Three of four are unchecked, and all requests stay with the one that is.
    for _ in 0..100 {
        assert_eq!(setting.state.choose(&LbContext::default()).unwrap().address.to_string(), A);
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_may_be_checked_elsewhere_or_not_at_all() {
    let with = |address: &str, check: EndpointCheck| {
        let mut endpoint = (*endpoint(address, 1, Healthy)).clone();
        endpoint.check = Some(Box::new(check));
        Arc::new(endpoint)
    };
    let hosts = vec![
        with(A, EndpointCheck { port: Some(8080), ..EndpointCheck::default() }),
        with(B, EndpointCheck { disabled: true, ..EndpointCheck::default() }),
        with(
            "10.0.0.3:80",
            EndpointCheck { address: Some("10.9.9.9:90".parse().unwrap()), ..EndpointCheck::default() },
        ),
    ];
    let setting = Setting::new(vec![locality(0, 0, hosts)], Oracle::default(), |_| {});
    assert_eq!(setting.serving(), [B], "what is not checked serves from the start");
    setting.state.warmed().await;
    assert_eq!(setting.serving().len(), 3);
    let mut asked = setting.oracle.asked();
    asked.sort();
    assert_eq!(asked, ["10.0.0.1:8080", "10.9.9.9:90"]);
}

#[tokio::test(start_paused = true)]
async fn a_successful_check_ends_an_ejection() {
    use crate::cluster::Report;
    let mut config = cluster("c", weighted(&[1, 1]));
    config.health_check = Some(Arc::new(check()));
    let mut detection = super::outliers::detection();
    detection.base_ejection_time = seconds(3000);
    detection.max_ejection_time = seconds(3000);
    config.outlier_detection = Some(detection);
    let setting = Setting::of(config, Oracle::default());
    setting.state.warmed().await;
    let host = setting.health(0);
    (0..5).for_each(|_| setting.state.report(&host, Report::Response(500)));
    assert_eq!(host.health(), Unhealthy);
    pass(11).await;
    assert_eq!(host.health(), Healthy);
    let stats = &setting.state.config.outlier_detection.as_ref().unwrap().stats;
    assert_eq!(stats.ejections_active.get(), 0);
}

#[test]
fn a_session_keeps_its_host_while_the_hosts_health_allows_it() {
    let hosts = vec![
        endpoint(A, 1, Healthy),
        endpoint(B, 1, crate::model::cluster::HealthStatus::Draining),
        endpoint("10.0.0.3:80", 1, Degraded),
    ];
    let with = |statuses: &[crate::model::cluster::HealthStatus]| {
        let mut config = cluster("c", vec![locality(0, 0, hosts.clone())]);
        config.balancing.override_statuses = statuses.iter().copied().collect();
        super::support::state(1, config)
    };
    let choose = |state: &ClusterState, address: &str, strict| {
        let override_host = Some((address.parse().unwrap(), strict));
        let context = LbContext { override_host, ..LbContext::default() };
        state.choose(&context).ok().map(|host| host.address.to_string())
    };
    let default = super::support::state(1, cluster("c", vec![locality(0, 0, hosts.clone())]));
    assert_eq!(choose(&default, "10.0.0.3:80", false).as_deref(), Some("10.0.0.3:80"));
    let elsewhere = choose(&default, B, false);
    assert!(elsewhere.is_some_and(|host| host != B), "draining is not among the statuses");
    assert_eq!(choose(&default, B, true), None);
    assert!(choose(&default, "10.7.7.7:80", false).is_some(), "gone: any host will do");
    assert_eq!(choose(&default, "10.7.7.7:80", true), None);
    let draining = with(&[Healthy, crate::model::cluster::HealthStatus::Draining]);
    assert_eq!(choose(&draining, B, true).as_deref(), Some(B));
    assert_eq!(choose(&with(&[]), A, true), None);
}

//! Active health checks: every host of a cluster is asked from time to time whether it serves. Envoy:
//! `HealthCheckerImplBase`.
//!
//! When to ask and what an answer means is decided here; how to ask is the business of whoever implements
//! [`Probe`], since nothing here opens connections.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};

use super::health::HealthFlag;
use super::{ClusterState, Host, Random, clock};
use crate::model::Str;
use crate::model::resilience::{HealthCheck, Pauses};

/// What one check of a host found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    Healthy,
    /// Healthy, but to be used only when others cannot serve (`x-envoy-degraded`).
    Degraded,
    /// The host says that it does not serve: unhealthy at once, unless `retriable`.
    Failed {
        retriable: bool,
    },
    /// The host says that it does not serve and is not to be counted any more
    /// (`x-envoy-immediate-health-check-fail`).
    Excluded,
    /// It could not be asked, or broke off.
    Unreachable,
    /// No answer in time.
    TimedOut,
}

/// A check that is under way.
pub type Probing<'a> = Pin<Box<dyn Future<Output = Finding> + Send + 'a>>;

/// Asks hosts.
pub trait Probe: Send + Sync + std::fmt::Debug {
    /// Asks a host once. The caller limits the time.
    fn probe<'a>(
        &'a self,
        cluster: &'a Arc<ClusterState>,
        host: &'a Arc<Host>,
        check: &'a HealthCheck,
    ) -> Probing<'a>;
}

/// Reaches nobody.
#[derive(Debug)]
pub(crate) struct NoProbe;

impl Probe for NoProbe {
    fn probe<'a>(&'a self, _: &'a Arc<ClusterState>, _: &'a Arc<Host>, _: &'a HealthCheck) -> Probing<'a> {
        Box::pin(std::future::ready(Finding::Unreachable))
    }
}

/// How a finding changes a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    /// More of the same and the host changes.
    Pending,
    Done,
}

/// Begins to check the hosts of the cluster, on the current runtime.
pub(super) fn start(cluster: &Arc<ClusterState>, prober: &Arc<dyn Probe>) -> Option<AbortHandle> {
    cluster.config.health_check.as_ref()?;
    Some(tokio::spawn(supervise(Arc::downgrade(cluster), prober.clone())).abort_handle())
}

/// Where checks of a host go: member's address, address, name, transport.
type Asked = (SocketAddr, SocketAddr, Option<Str>, Option<Str>);

fn asked(host: &Host, cluster: &ClusterState, check: &HealthCheck) -> Asked {
    let to = host.for_checks(&cluster.config, check);
    (host.address, to.address, to.hostname, to.transport_name)
}

/// Keeps one session for each host. Sessions end with this.
async fn supervise(cluster: Weak<ClusterState>, prober: Arc<dyn Probe>) {
    let mut tasks = JoinSet::new();
    // A host that is asked in the same way is the same, whatever else of it changes.
    let mut sessions: HashMap<Asked, AbortHandle> = HashMap::new();
    loop {
        let Some(state) = cluster.upgrade() else { return };
        let Some(check) = state.config.health_check.clone() else { return };
        let hosts: HashMap<Asked, Arc<Host>> = state
            .hosts()
            .into_iter()
            .filter(|host| host.is_checked())
            .map(|host| (asked(&host, &state, &check), host))
            .collect();
        sessions.retain(|asked, task| {
            let stays = hosts.contains_key(asked);
            if !stays {
                task.abort();
            }
            stays
        });
        for (asked, host) in &hosts {
            sessions
                .entry(asked.clone())
                .or_insert_with(|| tasks.spawn(check_always(cluster.clone(), host.clone(), prober.clone())));
        }
        // What has ended needs no room.
        while tasks.try_join_next().is_some() {}
        state.note_first_checks();
        let membership = state.membership.clone();
        // Not held while waiting. A notice is kept for whoever waits next, and the last one comes when the
        // cluster is dropped.
        drop((state, hosts));
        membership.notified().await;
    }
}

/// Checks one host until it leaves.
async fn check_always(cluster: Weak<ClusterState>, host: Arc<Host>, prober: Arc<dyn Probe>) {
    let Some(state) = cluster.upgrade() else { return };
    let Some(check) = state.config.health_check.clone() else { return };
    // Where checks go may differ from where requests go.
    let asked = Arc::new(host.for_checks(&state.config, &check));
    let mut session = Session::new(host, check);
    let random = state.random.clone();
    drop(state);
    let jitter = session.check.pauses.initial_jitter;
    if !jitter.is_zero() {
        tokio::time::sleep(random_below(jitter, &*random)).await;
    }
    loop {
        let Some(state) = cluster.upgrade() else { return };
        session.check.stats.attempt.inc();
        let probing = prober.probe(&state, &asked, &session.check);
        let finding = tokio::time::timeout(session.check.timeout, probing).await;
        let (change, success) = session.take(finding.unwrap_or(Finding::TimedOut));
        let readmitted = success && state.detector.as_ref().is_some_and(|d| d.checked(&session.host));
        if change == Change::Done || readmitted {
            state.health_changed();
        }
        state.note_first_checks();
        let traffic = state.stats.upstream_cx_total.get() > 0;
        drop(state);
        tokio::time::sleep(pause(&session.check.pauses, success, change, traffic, &*random)).await;
    }
}

/// What is known of a host that is checked.
struct Session {
    host: Arc<Host>,
    check: Arc<HealthCheck>,
    successes: u32,
    failures: u32,
}

impl Session {
    fn new(host: Arc<Host>, check: Arc<HealthCheck>) -> Self {
        let session = Self { host, check, successes: 0, failures: 0 };
        let (health, stats) = (&session.host.counters.health, &session.check.stats);
        if !health.has(HealthFlag::FailedActiveCheck) {
            stats.healthy.inc();
        }
        if health.has(HealthFlag::DegradedActiveCheck) {
            stats.degraded.inc();
        }
        session
    }

    /// What a finding changes, and whether it was a success.
    fn take(&mut self, finding: Finding) -> (Change, bool) {
        let first = self.host.counters.health.set(HealthFlag::Checked);
        let (change, success) = match finding {
            Finding::Healthy => (self.succeeded(false, first), true),
            Finding::Degraded => (self.succeeded(true, first), true),
            _ => (self.failed(finding), false),
        };
        // Whatever the outcome, the host counts from now on.
        let pending = self.host.counters.health.clear(HealthFlag::PendingActiveCheck);
        (if pending { Change::Done } else { change }, success)
    }

    fn succeeded(&mut self, degraded: bool, first: bool) -> Change {
        let (health, stats) = (&self.host.counters.health, &self.check.stats);
        self.failures = 0;
        let mut change = Change::None;
        if health.has(HealthFlag::FailedActiveCheck) {
            self.successes += 1;
            change = Change::Pending;
            // The first check of all is enough, so that a start is quick.
            if first || self.successes == self.check.healthy_threshold {
                health.clear(HealthFlag::ActiveCheckTimeout);
                health.clear(HealthFlag::ExcludedByImmediateFail);
                health.clear(HealthFlag::FailedActiveCheck);
                health.healthy_from(clock::now_ms());
                stats.healthy.inc();
                change = Change::Done;
                tracing::info!(host = %self.host.address, "health check: healthy");
            }
        }
        if degraded != health.has(HealthFlag::DegradedActiveCheck) {
            if degraded {
                health.set(HealthFlag::DegradedActiveCheck);
                stats.degraded.inc();
            } else {
                health.clear(HealthFlag::DegradedActiveCheck);
                stats.degraded.dec();
            }
            if change == Change::None {
                change = Change::Done;
            }
        }
        stats.success.inc();
        change
    }

    fn failed(&mut self, finding: Finding) -> Change {
        let (health, stats) = (&self.host.counters.health, &self.check.stats);
        self.successes = 0;
        let network = matches!(finding, Finding::Unreachable | Finding::TimedOut);
        let patient = network || matches!(finding, Finding::Failed { retriable: true });
        let mut change = Change::None;
        if !health.has(HealthFlag::FailedActiveCheck) {
            self.failures += 1;
            change = Change::Pending;
            if !patient || self.failures == self.check.unhealthy_threshold {
                health.set(HealthFlag::FailedActiveCheck);
                stats.healthy.dec();
                change = Change::Done;
                tracing::info!(host = %self.host.address, ?finding, "health check: unhealthy");
            }
        }
        if finding == Finding::Excluded && health.set(HealthFlag::ExcludedByImmediateFail) {
            change = Change::Done;
        }
        if finding == Finding::TimedOut && health.has(HealthFlag::FailedActiveCheck) {
            health.set(HealthFlag::ActiveCheckTimeout);
        } else {
            health.clear(HealthFlag::ActiveCheckTimeout);
        }
        stats.failure.inc();
        if network {
            stats.network_failure.inc();
        }
        change
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let (health, stats) = (&self.host.counters.health, &self.check.stats);
        if !health.has(HealthFlag::FailedActiveCheck) {
            stats.healthy.dec();
        }
        if health.has(HealthFlag::DegradedActiveCheck) {
            stats.degraded.dec();
        }
    }
}

/// How long to wait for the next check (Envoy: `HealthCheckerImplBase::interval`).
fn pause(pauses: &Pauses, success: bool, change: Change, traffic: bool, random: &dyn Random) -> Duration {
    let pending = change == Change::Pending;
    let base = match (traffic, success, pending) {
        (true, false, true) => pauses.unhealthy_edge,
        (true, false, false) => pauses.unhealthy,
        (true, true, true) => pauses.healthy_edge,
        (true, true, false) => pauses.interval,
        // Nobody would notice: only to be roughly up to date when somebody comes.
        (false, true, false) => pauses.no_traffic_healthy,
        (false, ..) => pauses.no_traffic,
    };
    let percent = base.saturating_mul(pauses.jitter_percent) / 100;
    let pause = base + random_below(percent, random) + random_below(pauses.jitter, random);
    pause.max(Duration::from_millis(1))
}

fn random_below(limit: Duration, random: &dyn Random) -> Duration {
    match limit.as_millis() as u64 {
        0 => Duration::ZERO,
        ms => Duration::from_millis(random.next() % ms),
    }
}

impl ClusterState {
    /// Notes if every host was checked once by now.
    fn note_first_checks(&self) {
        let done = |host: &Arc<Host>| !host.is_checked() || host.counters.health.has(HealthFlag::Checked);
        if !*self.first_checks.borrow() && self.answered() && self.hosts().iter().all(done) {
            self.first_checks.send_replace(true);
        }
    }

    /// A response said that its host wants no more requests: unhealthy until a check succeeds. Without checks
    /// nothing changes, as nothing would ever make it healthy again.
    pub fn fail_at_once(&self, host: &Host) {
        let Some(check) = self.config.health_check.as_ref().filter(|_| host.is_checked()) else { return };
        let health = &host.counters.health;
        check.stats.failure.inc();
        check.stats.passive_failure.inc();
        let excluded = health.set(HealthFlag::ExcludedByImmediateFail);
        let failed = health.set(HealthFlag::FailedActiveCheck);
        if failed {
            check.stats.healthy.dec();
        }
        if excluded || failed {
            self.health_changed();
        }
    }
}

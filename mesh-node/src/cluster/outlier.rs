//! Outlier detection: hosts that fail are taken out for a while. Envoy: `Outlier::DetectorImpl`.
//!
//! Workers report how requests and connections ended, which costs a few atomic additions. What ejects a host is
//! decided under the cluster's lock, and only when a threshold is reached or the interval ends.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::health::HealthFlag;
use super::{Host, Random};
use crate::model::resilience::{Consecutive, OutlierDetection};
use crate::telemetry::stats::{Counter, OutlierStats};

/// How a try at a host ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// A connection stands; what the server says to the request comes later.
    Connected,
    /// A connection stands, and nothing more is to be known (TCP proxy).
    ConnectedForGood,
    /// No connection, or it broke before there was a response.
    ConnectFailed,
    /// No response in time.
    Timeout,
    /// A response with this status; for gRPC the HTTP status of the gRPC one.
    Response(u16),
}

/// What an ejection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Consecutive5xx,
    GatewayFailure,
    LocalOriginFailure,
    SuccessRate,
    LocalOriginSuccessRate,
    FailurePercentage,
    LocalOriginFailurePercentage,
}

/// What is counted of one host.
#[derive(Debug, Default)]
pub(crate) struct Monitor {
    consecutive_5xx: AtomicU32,
    consecutive_gateway_failure: AtomicU32,
    consecutive_local_origin_failure: AtomicU32,
    requests: Rate,
    connecting: Rate,
    ejection: Mutex<Ejection>,
}

/// Successes of the interval that runs, and the share of successes in the last one.
#[derive(Debug)]
struct Rate {
    all: AtomicU64,
    successes: AtomicU64,
    /// Percent as bits of an `f64`; -1: not enough to judge.
    last: AtomicU64,
}

#[derive(Debug, Default)]
struct Ejection {
    begun: Option<Instant>,
    ended: Option<Instant>,
    /// How many base times the next ejection lasts.
    multiplier: u32,
    jitter: Duration,
}

impl Default for Rate {
    fn default() -> Self {
        Self { all: AtomicU64::new(0), successes: AtomicU64::new(0), last: AtomicU64::new((-1f64).to_bits()) }
    }
}

impl Rate {
    fn count(&self, success: bool) {
        self.all.fetch_add(1, Ordering::Relaxed);
        if success {
            self.successes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Percent of successes and number of requests since it was asked last; `None` without requests.
    fn take(&self) -> Option<(f64, u64)> {
        let (all, successes) =
            (self.all.swap(0, Ordering::Relaxed), self.successes.swap(0, Ordering::Relaxed));
        self.last.store((-1f64).to_bits(), Ordering::Relaxed);
        (all > 0).then(|| (100.0 * successes as f64 / all as f64, all))
    }
}

impl Monitor {
    pub(crate) fn success_rates(&self) -> (f64, f64) {
        let last = |rate: &Rate| f64::from_bits(rate.last.load(Ordering::Relaxed));
        (last(&self.requests), last(&self.connecting))
    }

    fn ejection(&self) -> MutexGuard<'_, Ejection> {
        self.ejection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_failures(&self) {
        for count in
            [&self.consecutive_5xx, &self.consecutive_gateway_failure, &self.consecutive_local_origin_failure]
        {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a status; the first cause for an ejection and the second, if thresholds are reached.
    fn status(&self, config: &OutlierDetection, status: u16) -> [Option<Cause>; 2] {
        let failed = status >= 500;
        self.requests.count(!failed);
        if !failed {
            // Read first: the line stays shared while all is well.
            for count in [&self.consecutive_5xx, &self.consecutive_gateway_failure] {
                if count.load(Ordering::Relaxed) > 0 {
                    count.store(0, Ordering::Relaxed);
                }
            }
            return [None, None];
        }
        let reached = |count: &AtomicU32, of: Consecutive, cause| {
            (count.fetch_add(1, Ordering::Relaxed) + 1 == of.failures).then_some(cause)
        };
        let gateway = if (502..=504).contains(&status) {
            let of = config.consecutive_gateway_failure;
            reached(&self.consecutive_gateway_failure, of, Cause::GatewayFailure)
        } else {
            self.consecutive_gateway_failure.store(0, Ordering::Relaxed);
            None
        };
        [gateway, reached(&self.consecutive_5xx, config.consecutive_5xx, Cause::Consecutive5xx)]
    }

    fn connecting(&self, config: &OutlierDetection, success: bool) -> [Option<Cause>; 2] {
        self.connecting.count(success);
        let count = &self.consecutive_local_origin_failure;
        if success {
            if count.load(Ordering::Relaxed) > 0 {
                count.store(0, Ordering::Relaxed);
            }
            return [None, None];
        }
        let reached = count.fetch_add(1, Ordering::Relaxed) + 1;
        let cause = reached == config.consecutive_local_origin_failure.failures;
        [cause.then_some(Cause::LocalOriginFailure), None]
    }

    fn count(&self, config: &OutlierDetection, report: Report) -> [Option<Cause>; 2] {
        match (report, config.split_local_origin) {
            (Report::Connected, false) => [None, None],
            (Report::ConnectedForGood, false) => self.status(config, 200),
            (Report::ConnectFailed, false) => self.status(config, 503),
            (Report::Timeout, false) => self.status(config, 504),
            (Report::Response(status), false) => self.status(config, status),
            (Report::Connected | Report::ConnectedForGood, true) => self.connecting(config, true),
            (Report::ConnectFailed | Report::Timeout, true) => self.connecting(config, false),
            (Report::Response(status), true) => {
                if status < 500 {
                    self.connecting(config, true);
                }
                self.status(config, status)
            }
        }
    }
}

/// The detection of one cluster.
#[derive(Debug)]
pub(crate) struct Detector {
    config: OutlierDetection,
    /// How many hosts are ejected now. Its lock orders decisions.
    ejected: Mutex<u32>,
    averages: Mutex<[Average; 2]>,
}

/// What `/clusters` says of the last interval: mean success rate and the rate below which hosts are ejected.
#[derive(Debug, Clone, Copy)]
pub struct Average {
    pub mean: f64,
    pub threshold: f64,
}

const NO_AVERAGE: Average = Average { mean: -1.0, threshold: -1.0 };

/// Whether hosts have to be arranged again.
pub(crate) type Changed = bool;

impl Detector {
    pub(crate) fn new(config: OutlierDetection) -> Self {
        Self { config, ejected: Mutex::new(0), averages: Mutex::new([NO_AVERAGE; 2]) }
    }

    pub(crate) fn interval(&self) -> Duration {
        self.config.interval
    }

    /// Of requests and of connecting.
    pub(crate) fn averages(&self) -> [Average; 2] {
        *self.averages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the end of a try; `hosts` is asked how many there are when that matters.
    pub(crate) fn report(
        &self,
        host: &Host,
        report: Report,
        hosts: impl Fn() -> usize,
        random: &dyn Random,
    ) -> Changed {
        let monitor = host.counters.health.monitor();
        let causes = monitor.count(&self.config, report);
        let mut changed = false;
        for cause in causes.into_iter().flatten() {
            let mut ejected = self.ejected();
            if host.counters.health.has(HealthFlag::FailedOutlierCheck) {
                continue;
            }
            changed |= self.eject(host, cause, hosts(), &mut ejected, random);
            // Counting begins anew, so that the next row of failures is noticed too.
            match cause {
                Cause::Consecutive5xx => {
                    self.config.stats.ejections_consecutive_5xx.inc();
                    monitor.consecutive_5xx.store(0, Ordering::Relaxed);
                }
                Cause::GatewayFailure => monitor.consecutive_gateway_failure.store(0, Ordering::Relaxed),
                _ => monitor.consecutive_local_origin_failure.store(0, Ordering::Relaxed),
            }
        }
        changed
    }

    /// The interval is over: ejections end, rates are judged.
    pub(crate) fn judge(&self, hosts: &[Arc<Host>], random: &dyn Random) -> Changed {
        let now = Instant::now();
        let mut ejected = self.ejected();
        let mut changed = false;
        for host in hosts.iter().filter(|host| host.counters.health.has(HealthFlag::FailedOutlierCheck)) {
            let over = {
                let ejection = host.counters.health.monitor().ejection();
                let lasts = self.config.base_ejection_time.saturating_mul(ejection.multiplier);
                let lasts = lasts.min(self.config.max_ejection_time) + ejection.jitter;
                ejection.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= lasts)
            };
            if over {
                self.readmit(host, now, &mut ejected);
                changed = true;
            }
        }
        changed |= self.judge_rates(hosts, false, &mut ejected, random);
        changed |= self.judge_rates(hosts, true, &mut ejected, random);
        for monitor in hosts.iter().filter_map(|host| {
            let health = &host.counters.health;
            health.known_monitor().filter(|_| !health.has(HealthFlag::FailedOutlierCheck))
        }) {
            let mut ejection = monitor.ejection();
            if ejection.ended.is_some_and(|at| now.saturating_duration_since(at) >= self.config.interval) {
                ejection.multiplier = ejection.multiplier.saturating_sub(1);
            }
        }
        changed
    }

    /// An active check of the host succeeded: as good as the end of its ejection, where configured.
    pub(crate) fn checked(&self, host: &Host) -> Changed {
        let mut ejected = self.ejected();
        let out = host.counters.health.has(HealthFlag::FailedOutlierCheck);
        if !out || !self.config.uneject_when_checked {
            return false;
        }
        self.readmit(host, Instant::now(), &mut ejected);
        true
    }

    /// The hosts are others now: how many of them are ejected?
    pub(crate) fn hosts_changed<'a>(&self, hosts: impl Iterator<Item = &'a Arc<Host>>) {
        let mut ejected = self.ejected();
        let now = hosts.filter(|h| h.counters.health.has(HealthFlag::FailedOutlierCheck)).count();
        *ejected = u32::try_from(now).unwrap_or(u32::MAX);
        self.show(*ejected);
    }

    fn ejected(&self) -> MutexGuard<'_, u32> {
        self.ejected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, ejected: u32) {
        let gauge = &self.config.stats.ejections_active;
        if gauge.get() != u64::from(ejected) {
            gauge.set(u64::from(ejected));
        }
    }

    fn readmit(&self, host: &Host, now: Instant, ejected: &mut u32) {
        let monitor = host.counters.health.monitor();
        host.counters.health.clear(HealthFlag::FailedOutlierCheck);
        monitor.forget_failures();
        monitor.ejection().ended = Some(now);
        *ejected = ejected.saturating_sub(1);
        self.show(*ejected);
        tracing::info!(host = %host.address, "outlier readmitted");
    }

    fn eject(
        &self,
        host: &Host,
        cause: Cause,
        hosts: usize,
        ejected: &mut u32,
        random: &dyn Random,
    ) -> Changed {
        let (config, stats) = (&self.config, &*self.config.stats);
        let (detected, enforced, percent) = self.of(cause);
        detected.inc();
        let share = 100.0 * f64::from(*ejected + 1) / hosts.max(1) as f64;
        let allowed = share <= f64::from(config.max_ejection_percent.min(100))
            || (config.always_eject_one_host && *ejected == 0);
        if !allowed {
            stats.ejections_overflow.inc();
            return false;
        }
        if matches!(cause, Cause::Consecutive5xx | Cause::SuccessRate) {
            stats.ejections_total.inc();
        }
        if random.next() % 100 >= u64::from(percent) {
            return false;
        }
        enforced.inc();
        stats.ejections_enforced_total.inc();
        host.counters.health.set(HealthFlag::FailedOutlierCheck);
        *ejected += 1;
        self.show(*ejected);
        let mut ejection = host.counters.health.monitor().ejection();
        ejection.begun = Some(Instant::now());
        let jitter_ms = config.max_ejection_time_jitter.as_millis() as u64;
        ejection.jitter = Duration::from_millis(random.next() % (jitter_ms + 1));
        let base = config.base_ejection_time;
        if base.saturating_mul(ejection.multiplier) < config.max_ejection_time + base {
            ejection.multiplier += 1;
        }
        tracing::info!(host = %host.address, ?cause, "outlier ejected");
        true
    }

    /// What counts detections and ejections for a cause, and the percentage that is enforced.
    fn of(&self, cause: Cause) -> (&Counter, &Counter, u32) {
        let (config, s): (_, &OutlierStats) = (&self.config, &self.config.stats);
        match cause {
            Cause::Consecutive5xx => (
                &s.ejections_detected_consecutive_5xx,
                &s.ejections_enforced_consecutive_5xx,
                config.consecutive_5xx.enforcing,
            ),
            Cause::GatewayFailure => (
                &s.ejections_detected_consecutive_gateway_failure,
                &s.ejections_enforced_consecutive_gateway_failure,
                config.consecutive_gateway_failure.enforcing,
            ),
            Cause::LocalOriginFailure => (
                &s.ejections_detected_consecutive_local_origin_failure,
                &s.ejections_enforced_consecutive_local_origin_failure,
                config.consecutive_local_origin_failure.enforcing,
            ),
            Cause::SuccessRate => (
                &s.ejections_detected_success_rate,
                &s.ejections_enforced_success_rate,
                config.success_rate.enforcing,
            ),
            Cause::LocalOriginSuccessRate => (
                &s.ejections_detected_local_origin_success_rate,
                &s.ejections_enforced_local_origin_success_rate,
                config.success_rate.enforcing_local_origin,
            ),
            Cause::FailurePercentage => (
                &s.ejections_detected_failure_percentage,
                &s.ejections_enforced_failure_percentage,
                config.failure_percentage.enforcing,
            ),
            Cause::LocalOriginFailurePercentage => (
                &s.ejections_detected_local_origin_failure_percentage,
                &s.ejections_enforced_local_origin_failure_percentage,
                config.failure_percentage.enforcing_local_origin,
            ),
        }
    }

    /// Compares the hosts' success rates: of connecting (`local`), or of requests.
    fn judge_rates(
        &self,
        hosts: &[Arc<Host>],
        local: bool,
        ejected: &mut u32,
        random: &dyn Random,
    ) -> Changed {
        let (by_rate, by_percentage) = (&self.config.success_rate, &self.config.failure_percentage);
        let mut average = NO_AVERAGE;
        let mut rates = Vec::new();
        for host in hosts {
            let Some(monitor) = host.counters.health.known_monitor() else { continue };
            let rate = if local { &monitor.connecting } else { &monitor.requests };
            let taken = rate.take();
            if let Some((percent, volume)) = taken
                && !host.counters.health.has(HealthFlag::FailedOutlierCheck)
            {
                if volume >= by_rate.request_volume.min(by_percentage.request_volume) {
                    rate.last.store(percent.to_bits(), Ordering::Relaxed);
                }
                rates.push((host, percent, volume));
            }
        }
        let mut changed = false;
        let judged = |volume: u64| rates.iter().filter(move |(.., had)| *had >= volume);
        let count = judged(by_rate.request_volume).count();
        if count > 0 && count >= by_rate.minimum_hosts as usize {
            average =
                threshold(judged(by_rate.request_volume).map(|(_, p, _)| *p), count, by_rate.deviations);
            let cause = if local { Cause::LocalOriginSuccessRate } else { Cause::SuccessRate };
            for (host, ..) in judged(by_rate.request_volume).filter(|(_, p, _)| *p < average.threshold) {
                self.config.stats.ejections_success_rate.inc();
                changed |= self.eject(host, cause, hosts.len(), ejected, random);
            }
        }
        let count = judged(by_percentage.request_volume).count();
        if count > 0 && count >= by_percentage.minimum_hosts as usize {
            let cause = if local { Cause::LocalOriginFailurePercentage } else { Cause::FailurePercentage };
            let failing = |(_, p, _): &&(&Arc<Host>, f64, u64)| 100.0 - *p >= by_percentage.threshold;
            for (host, ..) in judged(by_percentage.request_volume).filter(failing) {
                if !host.counters.health.has(HealthFlag::FailedOutlierCheck) {
                    changed |= self.eject(host, cause, hosts.len(), ejected, random);
                }
            }
        }
        self.averages.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(local)] = average;
        changed
    }
}

/// The mean of rates, and the rate so many standard deviations below it.
fn threshold(rates: impl Iterator<Item = f64> + Clone, count: usize, deviations: f64) -> Average {
    let mean = rates.clone().sum::<f64>() / count as f64;
    let variance = rates.map(|rate| (rate - mean).powi(2)).sum::<f64>() / count as f64;
    Average { mean, threshold: mean - deviations * variance.sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_is_the_one_of_envoys_documentation() {
        let rates = [50.0, 100.0, 100.0, 100.0, 100.0];
        let average = threshold(rates.into_iter(), 5, 1.9);
        assert_eq!((average.mean, average.threshold), (90.0, 52.0));
    }
}

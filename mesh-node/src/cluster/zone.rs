//! Zone aware routing: requests stay in the zone of the proxy as far as the upstream's hosts there can take them.
//!
//! How much that is follows from two sets of hosts: the upstream's, and those of the cluster that this proxy belongs
//! to (`cluster_manager.local_cluster_name`), by zone. Only of priority 0 (Envoy: `ZoneAwareLoadBalancerBase`). Knows
//! nothing of where the sets come from.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::balance::Group;
use super::host_set::LocalityHosts;
use super::priority::{Counts, in_panic};
use super::{Host, LocalityName, Random};
use crate::model::Str;
use crate::model::cluster::{Cluster, HealthStatus, LocalityBasis};

/// What shares are counted in: the hundredth part of a percent.
const WHOLE: u64 = 10_000;

/// The cluster that a proxy belongs to, and where the proxy is.
#[derive(Debug)]
pub struct LocalCluster {
    pub name: Str,
    pub locality: LocalityName,
    /// As of now; its identity is that of the arrangement.
    hosts: ArcSwap<LocalHosts>,
}

/// The hosts of the local cluster, as far as others care.
#[derive(Debug, Default)]
struct LocalHosts {
    zones: BTreeMap<LocalityName, Zone>,
    counts: Counts,
}

/// How much there is of a cluster in one zone.
#[derive(Debug, Default, Clone, Copy)]
struct Zone {
    all: usize,
    healthy: u64,
    /// Of the healthy.
    weight: u64,
}

/// The hosts of an upstream by zone: the proxy's own zone first, the others in order.
#[derive(Debug)]
pub(super) struct Zones {
    local: Arc<LocalCluster>,
    names: Vec<LocalityName>,
    sizes: Vec<Zone>,
    healthy: Vec<Group>,
    degraded: Vec<Group>,
    routing: ArcSwap<Routing>,
}

/// What was computed, and of which local hosts.
#[derive(Debug, Default)]
struct Routing {
    of: Option<Arc<LocalHosts>>,
    way: Way,
}

#[derive(Debug, Default)]
enum Way {
    /// The zones do not matter.
    #[default]
    Any,
    /// All to the own zone.
    Direct,
    /// Of all requests this share to the own zone, the others by what is left in the other zones: sums up to and with
    /// each zone.
    Residual { own: u64, sums: Vec<u64> },
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// To any host, wherever it is.
    Any,
    Zone(usize),
    /// The proxies are in panic, and such traffic is to fail.
    Nobody,
}

impl Zone {
    fn of(hosts: &[Arc<Host>]) -> Self {
        let healthy = || hosts.iter().filter(|host| host.health() == HealthStatus::Healthy);
        Self {
            all: hosts.len(),
            healthy: healthy().count() as u64,
            weight: healthy().map(|host| u64::from(host.weight())).sum(),
        }
    }

    fn size(self, basis: LocalityBasis) -> u64 {
        match basis {
            LocalityBasis::HealthyHosts => self.healthy,
            LocalityBasis::HealthyWeight => self.weight,
        }
    }
}

impl LocalCluster {
    /// The cluster of that name, for a proxy at `locality`. It has no hosts yet.
    pub fn new(name: Str, locality: LocalityName) -> Self {
        Self { name, locality, hosts: ArcSwap::default() }
    }

    /// These are its hosts now.
    pub(super) fn set(&self, localities: &[LocalityHosts]) {
        let hosts = by_zone(localities.iter().filter(|l| l.priority == 0));
        let zones: BTreeMap<_, _> =
            hosts.iter().map(|(name, hosts)| (name.clone(), Zone::of(hosts))).collect();
        let mut counts = Counts::default();
        for host in hosts.values().flatten() {
            counts.all += 1;
            counts.healthy += usize::from(host.health() == HealthStatus::Healthy);
            counts.degraded += usize::from(host.health() == HealthStatus::Degraded);
            counts.excluded += usize::from(host.excluded());
        }
        self.hosts.store(Arc::new(LocalHosts { zones, counts }));
    }
}

/// Zones without a host are none.
fn by_zone<'a>(
    localities: impl Iterator<Item = &'a LocalityHosts>,
) -> BTreeMap<LocalityName, Vec<Arc<Host>>> {
    let mut zones: BTreeMap<LocalityName, Vec<Arc<Host>>> = BTreeMap::new();
    for host in localities.flat_map(|locality| &locality.hosts) {
        zones.entry((*host.locality).clone()).or_default().push(host.clone());
    }
    zones
}

impl Zones {
    /// The hosts of priority 0 by zone; `None` where all are in one. `group` arranges some of them.
    pub(super) fn new(
        local: &Arc<LocalCluster>,
        localities: &[LocalityHosts],
        group: impl Fn(Vec<Arc<Host>>) -> Group,
    ) -> Option<Self> {
        let mut zones = by_zone(localities.iter());
        if zones.len() < 2 {
            return None;
        }
        let own = zones.remove_entry(&local.locality);
        let zones: Vec<_> = own.into_iter().chain(zones).collect();
        let of = |health| {
            let some = |hosts: &[Arc<Host>]| hosts.iter().filter(|h| h.health() == health).cloned().collect();
            zones.iter().map(|(_, hosts)| group(some(hosts))).collect()
        };
        Some(Self {
            local: local.clone(),
            sizes: zones.iter().map(|(_, hosts)| Zone::of(hosts)).collect(),
            healthy: of(HealthStatus::Healthy),
            degraded: of(HealthStatus::Degraded),
            names: zones.into_iter().map(|(name, _)| name).collect(),
            routing: ArcSwap::default(),
        })
    }

    /// The healthy, or the degraded, hosts of a zone.
    pub(super) fn group(&self, zone: usize, degraded: bool) -> &Group {
        if degraded { &self.degraded[zone] } else { &self.healthy[zone] }
    }

    /// Where the next request goes.
    pub(super) fn choose(&self, cluster: &Cluster, random: &dyn Random) -> Choice {
        let hosts = self.local.hosts.load();
        let mut routing = self.routing.load();
        if routing.of.as_ref().is_none_or(|of| !Arc::ptr_eq(of, &hosts)) {
            let of = Some(hosts.clone());
            self.routing.store(Arc::new(Routing { of, way: self.way(cluster, &hosts) }));
            routing = self.routing.load();
        }
        let config = cluster.balancing.zones();
        let stats = &cluster.stats;
        if matches!(routing.way, Way::Any) || !config.routing_enabled.holds(random.next()) {
            return Choice::Any;
        }
        if in_panic(&hosts.counts, cluster.panic_threshold_percent.min(100.0)) {
            stats.lb_local_cluster_not_ok.inc();
            return if cluster.balancing.fail_on_panic { Choice::Nobody } else { Choice::Any };
        }
        let Way::Residual { own, sums } = &routing.way else {
            stats.lb_zone_routing_all_directly.inc();
            return Choice::Zone(0);
        };
        if random.next() % WHOLE < *own {
            stats.lb_zone_routing_sampled.inc();
            return Choice::Zone(0);
        }
        stats.lb_zone_routing_cross_zone.inc();
        let left = sums.last().copied().unwrap_or_default();
        if left == 0 {
            // By rounding only.
            stats.lb_zone_no_capacity_left.inc();
            return Choice::Zone((random.next() % sums.len() as u64) as usize);
        }
        let point = random.next() % left;
        Choice::Zone(sums.iter().position(|sum| point < *sum).unwrap_or_default())
    }

    fn has_own(&self) -> bool {
        self.names.first() == Some(&self.local.locality)
    }

    fn way(&self, cluster: &Cluster, local: &LocalHosts) -> Way {
        let (config, stats) = (cluster.balancing.zones(), &cluster.stats);
        stats.lb_recalculate_zone_structures.inc();
        let forced_from = config.forced_from();
        if local.zones.len() < 2 && forced_from.is_none() {
            return Way::Any;
        }
        if local.zones.get(&self.local.locality).is_none_or(|zone| zone.all == 0) {
            // Nobody else counts on this proxy, nor on where it sends.
            stats.lb_local_cluster_not_ok.inc();
            return Way::Any;
        }
        let healthy: u64 = self.sizes.iter().map(|zone| zone.healthy).sum();
        if healthy < config.min_cluster_size.now() {
            stats.lb_zone_cluster_too_small.inc();
            return Way::Any;
        }
        let size = |zone: &Zone| zone.size(config.basis);
        let whole: u64 = self.sizes.iter().map(size).sum();
        let whole_local: u64 = local.zones.values().map(size).sum();
        let share = |part: u64, whole: u64| (part * WHOLE).checked_div(whole).unwrap_or(0);
        // What share of the upstream a zone has, and what share of the proxies.
        let shares: Vec<(u64, u64)> = self
            .names
            .iter()
            .zip(&self.sizes)
            .map(|(name, zone)| match zone.healthy {
                0 => (0, 0),
                _ => {
                    let of_local = local.zones.get(name).map_or(0, size);
                    (share(size(zone), whole), share(of_local, whole_local))
                }
            })
            .collect();
        let mut own = 0;
        if self.has_own() {
            let (upstream, proxies) = shares[0];
            let forced = forced_from.is_some_and(|least| self.sizes[0].healthy >= least);
            if forced || (upstream > 0 && upstream >= proxies) {
                return Way::Direct;
            }
            own = (upstream * WHOLE).checked_div(proxies).unwrap_or(0);
        }
        let mut sum = 0;
        let skipped = usize::from(self.has_own());
        let sums = shares.iter().enumerate().map(|(i, (upstream, proxies))| {
            if i >= skipped {
                sum += upstream.saturating_sub(*proxies);
            }
            sum
        });
        Way::Residual { own, sums: sums.collect() }
    }
}

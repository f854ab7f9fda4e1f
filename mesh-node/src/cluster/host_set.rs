//! The hosts of a cluster as of one moment, ordered for balancing. Built when endpoints change, then
//! immutable.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use super::balance::{Group, Shards};
use super::consistent::Consistent;
use super::priority::{Counts, Loads, Source};
use super::subset::SubsetTable;
use super::zone::{Choice, LocalCluster, Zones};
use super::{Host, Random, Spread};
use crate::model::cluster::{Cluster, HealthStatus};

/// Hosts of one configured locality, all of one priority.
#[derive(Debug, Default, Clone)]
pub(crate) struct LocalityHosts {
    pub(crate) priority: u32,
    /// 0: the locality gets no load when localities are weighted.
    pub(crate) weight: u32,
    pub(crate) hosts: Vec<Arc<Host>>,
}

/// All hosts, ready to choose from.
#[derive(Debug)]
pub(crate) struct HostSet {
    loads: Loads,
    overprovisioning: u32,
    priorities: Vec<Priority>,
    by_address: HashMap<SocketAddr, Arc<Host>, ahash::RandomState>,
    /// Of clusters with subsets.
    subsets: Option<Box<SubsetTable>>,
}

#[derive(Debug)]
struct Priority {
    healthy: Balanced,
    degraded: Balanced,
    all: Group,
    excluded: usize,
    /// With a policy that hashes: over the healthy hosts, or in panic over all.
    table: Option<Consistent>,
    /// Of the first priority, where zones may matter.
    zones: Option<Box<Zones>>,
}

/// What a choice is made by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draw {
    /// The request's hash, or a random number.
    pub(crate) hash: u64,
    /// How many choices of the same request were not to its liking.
    pub(crate) attempt: u32,
}

/// Hosts that serve, with their localities when those are weighted.
#[derive(Debug)]
struct Balanced {
    group: Group,
    localities: Option<Localities>,
}

#[derive(Debug)]
struct Localities {
    weights: Vec<f64>,
    groups: Vec<Group>,
    shards: Shards,
}

impl HostSet {
    pub(crate) fn new(
        cluster: &Cluster,
        localities: Vec<LocalityHosts>,
        overprovisioning: u32,
        local: Option<&Arc<LocalCluster>>,
        (workers, random): (usize, &dyn Random),
    ) -> Self {
        let weighted = cluster.locality_weighted;
        // The local cluster itself knows no zones.
        let local = local.filter(|local| local.name != cluster.name && !cluster.lb.hashes());
        let build = Build { cluster, overprovisioning, local, workers, random, weighted };
        let subsets = cluster.balancing.subsets.as_ref().map(|config| {
            let weighted = cluster.locality_weighted && config.locality_weight_aware;
            let of_subset = Build { weighted, ..build };
            Box::new(SubsetTable::new(config, &localities, |localities| of_subset.host_set(localities)))
        });
        Self { subsets, ..build.host_set(localities) }
    }

    /// The subsets, where the cluster has some.
    pub(crate) fn subsets(&self) -> Option<&SubsetTable> {
        self.subsets.as_deref()
    }

    /// All hosts, in order of priority.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.priorities.iter().flat_map(|p| p.all.hosts())
    }

    pub(crate) fn by_address(&self, address: &SocketAddr) -> Option<&Arc<Host>> {
        self.by_address.get(address)
    }

    /// The priority of a host.
    pub(crate) fn priority_of(&self, host: &Arc<Host>) -> Option<usize> {
        self.priorities.iter().position(|p| p.all.hosts().iter().any(|other| Arc::ptr_eq(other, host)))
    }

    /// All priorities together.
    pub(crate) fn counts(&self) -> Counts {
        self.priorities.iter().map(Priority::counts).fold(Counts::default(), |a, b| Counts {
            all: a.all + b.all,
            healthy: a.healthy + b.healthy,
            degraded: a.degraded + b.degraded,
            excluded: a.excluded + b.excluded,
        })
    }

    /// The next host, and whether its priority is in panic.
    pub(crate) fn choose(
        &self,
        cluster: &Cluster,
        random: &dyn Random,
        draw: Draw,
        spread: Option<&Spread>,
    ) -> (Option<&Arc<Host>>, bool) {
        let counts = || self.priorities.iter().map(Priority::counts).collect::<Vec<_>>();
        let other = spread.and_then(|spread| spread.loads(&counts(), self.overprovisioning));
        let Some(source) = other.as_ref().unwrap_or(&self.loads).choose(draw.hash) else {
            return (None, false);
        };
        let panic = matches!(source, Source::All(_));
        let priority = &self.priorities[source.priority()];
        if let Some(table) = &priority.table {
            return (table.pick(draw.hash, draw.attempt, cluster), panic);
        }
        let host = match source {
            Source::Healthy(_) => priority.pick(false, cluster, random),
            Source::Degraded(_) => priority.pick(true, cluster, random),
            Source::All(_) if cluster.balancing.fail_on_panic => None,
            Source::All(_) => priority.all.pick(cluster, random),
        };
        (host, panic)
    }
}

impl Priority {
    fn counts(&self) -> Counts {
        Counts {
            all: self.all.hosts().len(),
            healthy: self.healthy.group.hosts().len(),
            degraded: self.degraded.group.hosts().len(),
            excluded: self.excluded,
        }
    }

    fn pick(&self, degraded: bool, cluster: &Cluster, random: &dyn Random) -> Option<&Arc<Host>> {
        let hosts = if degraded { &self.degraded } else { &self.healthy };
        if let Some(group) = hosts.locality(random) {
            return group.pick(cluster, random);
        }
        match self.zones.as_ref().map_or(Choice::Any, |zones| zones.choose(cluster, random)) {
            Choice::Any => hosts.group.pick(cluster, random),
            Choice::Zone(zone) => self.zones.as_ref()?.group(zone, degraded).pick(cluster, random),
            Choice::Nobody => None,
        }
    }
}

impl Balanced {
    /// The hosts of the next locality, where localities are weighted and one has weight.
    fn locality(&self, random: &dyn Random) -> Option<&Group> {
        let l = self.localities.as_ref()?;
        l.shards.by_weight(l.groups.len(), |i| l.weights[i], random).map(|i| &l.groups[i])
    }
}

#[derive(Clone, Copy)]
struct Build<'a> {
    cluster: &'a Cluster,
    /// Localities share the load by their weights.
    weighted: bool,
    /// Percent.
    overprovisioning: u32,
    /// The cluster that this proxy belongs to, where zones may matter.
    local: Option<&'a Arc<LocalCluster>>,
    workers: usize,
    random: &'a dyn Random,
}

impl Build<'_> {
    fn host_set(&self, localities: Vec<LocalityHosts>) -> HostSet {
        let mut by_address = HashMap::default();
        let mut by_priority: BTreeMap<u32, Vec<LocalityHosts>> = BTreeMap::new();
        for mut locality in localities {
            // An address serves once, in the first place that names it (as Envoy's STATIC and EDS clusters).
            locality.hosts.retain(|host| {
                let first = !by_address.contains_key(&host.address);
                if first {
                    by_address.insert(host.address, host.clone());
                }
                first
            });
            by_priority.entry(locality.priority).or_default().push(locality);
        }
        let lowest = by_priority.keys().next_back().map_or(0, |p| *p as usize + 1);
        let mut priorities: Vec<Priority> = (0..lowest as u32)
            .map(|p| self.priority(by_priority.get(&p).map_or(&[][..], Vec::as_slice)))
            .collect();
        let counts: Vec<Counts> = priorities.iter().map(Priority::counts).collect();
        let loads = Loads::new(&counts, self.overprovisioning, self.cluster.panic_threshold_percent);
        if self.cluster.lb.hashes() {
            for (p, priority) in priorities.iter_mut().enumerate() {
                let localities = by_priority.get(&(p as u32)).map_or(&[][..], Vec::as_slice);
                priority.table = self.table(localities, loads.in_panic(p));
            }
        }
        if let (Some(local), Some(first)) = (self.local, priorities.first_mut()) {
            let localities = by_priority.get(&0).map_or(&[][..], Vec::as_slice);
            first.zones = Zones::new(local, localities, |hosts| self.group(hosts)).map(Box::new);
        }
        HostSet { loads, overprovisioning: self.overprovisioning, priorities, by_address, subsets: None }
    }

    fn priority(&self, localities: &[LocalityHosts]) -> Priority {
        Priority {
            healthy: self.balanced(localities, HealthStatus::Healthy),
            degraded: self.balanced(localities, HealthStatus::Degraded),
            all: self.group(localities.iter().flat_map(|l| &l.hosts).cloned().collect()),
            excluded: localities.iter().flat_map(|l| &l.hosts).filter(|host| host.excluded()).count(),
            table: None,
            zones: None,
        }
    }

    fn table(&self, localities: &[LocalityHosts], panic: bool) -> Option<Consistent> {
        let usable = |l: &LocalityHosts| -> Vec<Arc<Host>> {
            l.hosts.iter().filter(|h| panic || h.health() == HealthStatus::Healthy).cloned().collect()
        };
        let usable: Vec<_> = localities.iter().map(usable).collect();
        if self.weighted {
            let groups: Vec<_> =
                localities.iter().zip(&usable).map(|(l, h)| (f64::from(l.weight), &**h)).collect();
            return Consistent::new(self.cluster, &groups);
        }
        Consistent::new(self.cluster, &[(1.0, &usable.concat())])
    }

    fn balanced(&self, localities: &[LocalityHosts], health: HealthStatus) -> Balanced {
        let of_health = |l: &LocalityHosts| -> Vec<Arc<Host>> {
            l.hosts.iter().filter(|h| h.health() == health).cloned().collect()
        };
        let weighted = self.weighted && localities.iter().any(|l| l.weight > 0);
        let localities_of_health: Vec<_> = localities.iter().map(of_health).collect();
        let group = self.group(localities_of_health.concat());
        let localities = weighted.then(|| Localities {
            weights: localities
                .iter()
                .zip(&localities_of_health)
                .map(|(l, usable)| self.effective_weight(l, usable.len()))
                .collect(),
            groups: localities_of_health.into_iter().map(|hosts| self.group(hosts)).collect(),
            shards: Shards::new(self.workers, self.random),
        });
        Balanced { group, localities }
    }

    fn group(&self, hosts: Vec<Arc<Host>>) -> Group {
        Group::new(self.cluster, hosts, self.workers, self.random)
    }

    /// A locality's weight goes down once fewer of its hosts serve than the overprovisioning factor covers.
    fn effective_weight(&self, locality: &LocalityHosts, usable: usize) -> f64 {
        if locality.hosts.is_empty() || usable == 0 {
            return 0.0;
        }
        let ratio = usable as f64 / locality.hosts.len() as f64;
        let factor = f64::from(self.overprovisioning) / 100.0;
        f64::from(locality.weight) * (ratio * factor).min(1.0)
    }
}

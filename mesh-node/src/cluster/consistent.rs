//! Consistent hashing over the hosts of one priority (`RING_HASH`, `MAGLEV`): a request's hash chooses its host,
//! so that equal requests come to the same host. Envoy: `ThreadAwareLoadBalancerBase`.
//!
//! Built when hosts or their health change; a choice reads it and allocates nothing, but for the list of
//! alternatives when the chosen host of a cluster with bounded load is overloaded.

use std::borrow::Cow;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Host;
use super::maglev::Maglev;
use super::mersenne::Mersenne;
use super::ring::{Entry, Ring};
use crate::model::cluster::{Cluster, HashFunction, LbPolicy};
use crate::model::metadata::{self, MetadataValue};

/// Key of `envoy.lb` metadata that replaces an endpoint's address as what is hashed.
const HASH_KEY: &str = "hash_key";

/// Hosts that share one table.
#[derive(Debug)]
pub(crate) struct Consistent {
    /// With their shares of the load, which add up to 1.
    hosts: Box<[(Arc<Host>, f64)]>,
    table: Table,
    /// `hash_balance_factor`, percent; 0: a host takes any load.
    balance_factor: u32,
}

#[derive(Debug)]
enum Table {
    Ring(Ring),
    Maglev(Maglev),
}

impl Consistent {
    /// The table over groups of hosts, each with the weight of its locality. `None`: the policy does not hash.
    pub(crate) fn new(cluster: &Cluster, groups: &[(f64, &[Arc<Host>])]) -> Option<Self> {
        let hosts = shares(groups);
        let keys: Vec<_> =
            hosts.iter().map(|(host, _)| hash_key(host, cluster.balancing.hashing.use_hostname)).collect();
        let entries: Vec<_> =
            hosts.iter().zip(&keys).map(|((_, share), key)| Entry { key, share: *share }).collect();
        let table = match cluster.lb {
            LbPolicy::RingHash { minimum, maximum, function } => {
                Table::Ring(ring(cluster, &entries, minimum, maximum, function))
            }
            LbPolicy::Maglev { table_size } => {
                let table = Maglev::new(&entries, table_size);
                if let Some(stats) = &cluster.balancing.maglev_stats {
                    stats.min_entries_per_host.set(table.bounds.0 as u64);
                    stats.max_entries_per_host.set(table.bounds.1 as u64);
                }
                Table::Maglev(table)
            }
            _ => return None,
        };
        Some(Self { hosts, table, balance_factor: cluster.balancing.hashing.balance_factor })
    }

    /// The host of `hash`; another `attempt` is likely to give another one.
    pub(crate) fn pick(&self, hash: u64, attempt: u32, cluster: &Cluster) -> Option<&Arc<Host>> {
        let chosen = match &self.table {
            Table::Ring(ring) => ring.find(hash, attempt)?,
            Table::Maglev(maglev) => maglev.find(hash, attempt)?,
        };
        if self.balance_factor == 0 {
            return Some(&self.hosts[chosen].0);
        }
        let slots = (cluster.stats.upstream_rq_active.get() + 1) * u64::from(self.balance_factor);
        Some(&self.hosts[self.within_bounds(hash, chosen, slots.div_ceil(100))].0)
    }

    /// The chosen host, or if that has more than its part of `slots` requests, the first of a sequence given by
    /// the hash that has not; if all have, the least loaded (arXiv 1608.01350, with the random jumps of
    /// arXiv 1908.08762).
    fn within_bounds(&self, hash: u64, chosen: usize, slots: u64) -> usize {
        let overload = |index: usize| {
            let (host, share) = &self.hosts[index];
            let slots = (slots as f64 * share).ceil().max(1.0);
            host.active_requests() as f64 / slots
        };
        let mut least = (chosen, overload(chosen));
        if least.1 <= 1.0 {
            return chosen;
        }
        let mut order: SmallVec<[u32; 64]> = (0u32..).take(self.hosts.len()).collect();
        // Truncated as `std::mt19937` takes its seed.
        let mut random = Mersenne::new(hash as u32);
        for i in 0..order.len() {
            let j = i + random.below((order.len() - i) as u32) as usize;
            order.swap(i, j);
            let other = order[i] as usize;
            if other == chosen {
                continue;
            }
            let load = overload(other);
            if load <= 1.0 {
                return other;
            }
            if load < least.1 {
                least = (other, load);
            }
        }
        least.0
    }
}

fn ring(
    cluster: &Cluster,
    entries: &[Entry<'_>],
    minimum: u64,
    maximum: u64,
    function: HashFunction,
) -> Ring {
    let ring = Ring::new(entries, minimum, maximum, function);
    if let Some(stats) = &cluster.balancing.ring_hash_stats
        && ring.len() > 0
    {
        stats.size.set(ring.len() as u64);
        stats.min_hashes_per_host.set(ring.bounds.0 as u64);
        stats.max_hashes_per_host.set(ring.bounds.1 as u64);
    }
    ring
}

/// What an endpoint is hashed by.
fn hash_key(host: &Host, use_hostname: bool) -> Cow<'_, str> {
    let metadata = host.endpoint.as_ref().and_then(|e| metadata::find(&e.lb_metadata, HASH_KEY));
    match metadata {
        Some(MetadataValue::Text(key)) if !key.is_empty() => Cow::Borrowed(key),
        _ if use_hostname => Cow::Borrowed(host.hostname.as_deref().unwrap_or_default()),
        _ => Cow::Owned(host.address.to_string()),
    }
}

/// Each host's share: of its locality by its weight, and of all by the locality's weight. A locality without
/// weight or hosts has none; its weight counts all the same, as in Envoy.
fn shares(groups: &[(f64, &[Arc<Host>])]) -> Box<[(Arc<Host>, f64)]> {
    let total: f64 = groups.iter().map(|(weight, _)| weight).sum();
    groups
        .iter()
        .filter(|(weight, _)| *weight > 0.0)
        .flat_map(|(weight, hosts)| {
            let sum: f64 = hosts.iter().map(|host| f64::from(host.weight())).sum();
            let part = weight / total;
            hosts.iter().map(move |host| (host.clone(), f64::from(host.weight()) * part / sum))
        })
        .collect()
}

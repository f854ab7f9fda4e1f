//! Keeps the hosts of a cluster up to date in the background: resolves names again and again, forgets
//! unused original destinations. The data path never waits for any of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::AbortHandle;

use super::dns::{Resolve, resolve};
use super::{ClusterState, Random};
use crate::model::Str;
use crate::model::cluster::{Cluster, Discovery, DnsOptions, EndpointAddress};

/// Starts what the cluster needs, on the current runtime. It ends when aborted, or with the cluster.
pub(crate) fn start(
    cluster: &Arc<ClusterState>,
    resolver: &Arc<dyn Resolve>,
    random: &Arc<dyn Random>,
) -> Vec<AbortHandle> {
    match &cluster.config.discovery {
        Discovery::Static | Discovery::Eds { .. } => Vec::new(),
        Discovery::StrictDns(options) | Discovery::LogicalDns(options) => names(&cluster.config)
            .into_iter()
            .map(|name| {
                let task = Resolution {
                    name,
                    options: options.clone(),
                    cluster: Arc::downgrade(cluster),
                    resolver: resolver.clone(),
                    random: random.clone(),
                };
                tokio::spawn(task.run()).abort_handle()
            })
            .collect(),
        Discovery::ForwardProxy(cache) => {
            vec![tokio::spawn(sweep(Arc::downgrade(cluster), cache.host_ttl)).abort_handle()]
        }
        Discovery::OriginalDst { cleanup_interval, .. } => {
            vec![tokio::spawn(sweep(Arc::downgrade(cluster), *cleanup_interval)).abort_handle()]
        }
    }
}

/// The names that the cluster resolves, each once.
pub(crate) fn names(cluster: &Cluster) -> BTreeSet<Str> {
    let endpoints = cluster.load_assignment.localities.iter().flat_map(|l| &l.endpoints);
    endpoints
        .filter_map(|e| match &e.address {
            EndpointAddress::Host(name, _) => Some(name.clone()),
            EndpointAddress::Socket(_) => None,
        })
        .collect()
}

async fn sweep(cluster: Weak<ClusterState>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(cluster) = cluster.upgrade() else { return };
        cluster.sweep();
    }
}

/// One name of one cluster.
struct Resolution {
    name: Str,
    options: DnsOptions,
    cluster: Weak<ClusterState>,
    resolver: Arc<dyn Resolve>,
    random: Arc<dyn Random>,
}

impl Resolution {
    async fn run(self) {
        let mut failures = 0;
        loop {
            let Some(cluster) = self.cluster.upgrade() else { return };
            cluster.stats.update_attempt.inc();
            // Not held while waiting: a cluster that is gone must not stay for a slow server.
            drop(cluster);
            let answer = resolve(&*self.resolver, &self.name, self.options.family).await;
            let Some(cluster) = self.cluster.upgrade() else { return };
            let pause = match answer {
                Ok(answer) => {
                    failures = 0;
                    cluster.stats.update_success.inc();
                    let ttl = answer.ttl.filter(|ttl| self.options.respect_ttl && !ttl.is_zero());
                    cluster.resolved(&self.name, Some(answer.addresses));
                    ttl.unwrap_or(self.options.refresh) + self.jitter()
                }
                Err(error) => {
                    cluster.stats.update_failure.inc();
                    tracing::warn!(cluster = %cluster.name(), "{error}; keeping what was known");
                    cluster.resolved(&self.name, None);
                    failures += 1;
                    self.pause_after_failure(failures)
                }
            };
            drop(cluster);
            tokio::time::sleep(pause).await;
        }
    }

    fn jitter(&self) -> Duration {
        match self.options.jitter.as_millis() as u64 {
            0 => Duration::ZERO,
            ms => Duration::from_millis(self.random.next() % ms),
        }
    }

    /// Random below an interval that doubles with each failure, where the cluster has a failure rate.
    fn pause_after_failure(&self, failures: u32) -> Duration {
        let Some((base, max)) = self.options.failure_refresh else { return self.options.refresh };
        let doubled = base.saturating_mul(1u32.checked_shl(failures - 1).unwrap_or(u32::MAX)).min(max);
        Duration::from_millis((self.random.next() % (doubled.as_millis() as u64).max(1)).max(1))
    }
}

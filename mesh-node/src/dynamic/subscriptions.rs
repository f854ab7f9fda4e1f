//! Statistics of a sidecar's subscriptions, under Envoy's names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_xds::client::{Received, Rejected, ResourceType};

use super::Assembly;
use super::assembly::type_of;
use crate::model::Str;
use crate::model::source::NeedKind;
use crate::telemetry::stats::{Store, SubscriptionStats};

/// The handles: statistics are shown for as long as somebody has them.
#[derive(Debug)]
pub(super) struct Subscriptions {
    store: Arc<Store>,
    cds: Arc<SubscriptionStats>,
    lds: Arc<SubscriptionStats>,
    /// Of resources that others name, by the name of the statistics. Endpoints count with their cluster.
    named: BTreeMap<Str, (NeedKind, Arc<SubscriptionStats>)>,
}

impl Subscriptions {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            cds: store.subscription("cluster_manager.cds"),
            lds: store.subscription("listener_manager.lds"),
            store,
            named: BTreeMap::new(),
        }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// These are the subscriptions now.
    pub(super) fn follow(&mut self, assembly: &Assembly) {
        let needs = assembly.needs().filter(|need| need.kind != NeedKind::Endpoints);
        let wanted: BTreeMap<&Str, NeedKind> = needs.map(|need| (&need.scope, need.kind)).collect();
        self.named.retain(|scope, _| wanted.contains_key(scope));
        for (scope, kind) in wanted {
            if !self.named.contains_key(scope) {
                self.named.insert(scope.clone(), (kind, self.store.subscription(scope)));
            }
        }
    }

    /// A response was taken, but for what was rejected.
    pub(super) fn judged(&self, assembly: &Assembly, received: &Received, rejected: &[Rejected]) {
        let good = received.resources.iter().map(|resource| resource.name.as_str());
        let is_bad = |name: &str| rejected.iter().any(|rejected| rejected.name == name);
        match received.kind {
            ResourceType::Cluster => judged(&self.cds, !rejected.is_empty()),
            ResourceType::Listener => judged(&self.lds, !rejected.is_empty()),
            ResourceType::Endpoint => {
                for resource in &received.resources {
                    let Some(stats) = assembly.cluster_stats(&resource.name) else { continue };
                    stats.update_attempt.inc();
                    if is_bad(&resource.name) {
                        stats.update_rejected.inc();
                    } else {
                        stats.update_success.inc();
                    }
                }
            }
            kind => {
                let names = good.chain(rejected.iter().map(|rejected| rejected.name.as_str()));
                let mut names: Vec<_> = names.collect();
                names.sort_unstable();
                names.dedup();
                for need in assembly.needs().filter(|need| type_of(need.kind) == kind) {
                    if names.binary_search(&&*need.name).is_ok()
                        && let Some((_, stats)) = self.named.get(&need.scope)
                    {
                        judged(stats, is_bad(&need.name));
                    }
                }
            }
        }
    }

    /// A stream has ended, or a file cannot be read. `None`: a stream of all types.
    pub(super) fn failed(&self, kind: Option<ResourceType>) {
        let all = kind.is_none();
        if all || kind == Some(ResourceType::Cluster) {
            self.cds.update_failure.inc();
        }
        if all || kind == Some(ResourceType::Listener) {
            self.lds.update_failure.inc();
        }
        for (_, stats) in self.named.values().filter(|(of, _)| all || Some(type_of(*of)) == kind) {
            stats.update_failure.inc();
        }
    }

    /// These have not come within their `initial_fetch_timeout`.
    pub(super) fn late(&self, late: &[(Option<NeedKind>, Str)]) {
        for (kind, scope) in late {
            match kind {
                Some(NeedKind::Endpoints) => {
                    let cluster = scope.strip_prefix("cluster.").unwrap_or(scope);
                    self.store.cluster(cluster).init_fetch_timeout.inc();
                }
                _ => self.store.subscription(scope).init_fetch_timeout.inc(),
            }
        }
    }
}

fn judged(stats: &SubscriptionStats, rejected: bool) {
    stats.update_attempt.inc();
    if rejected {
        stats.update_rejected.inc()
    } else {
        stats.update_success.inc()
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    stats.update_time.set(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
}

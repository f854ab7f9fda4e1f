//! Subsets of a cluster's hosts by their metadata (`lb_subset_config`): a route asks for hosts with certain
//! values, and what it gets when there are none is configured. Envoy: `SubsetLoadBalancer`.
//!
//! Built when hosts change. A choice looks up its criteria without allocating; only a fallback to fewer keys
//! makes a list.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Host;
use super::host_set::{HostSet, LocalityHosts};
use crate::model::Str;
use crate::model::cluster::{Fallback, SelectorFallback, SubsetSelector, Subsets};
use crate::model::metadata::{self, Metadata, MetadataValue};
use crate::telemetry::stats::SubsetStats;

/// What a request asks for: keys and values, sorted by key.
type Criteria = [(Str, MetadataValue)];

/// The subsets of a set of hosts. Subsets are never empty.
#[derive(Debug)]
pub(crate) struct SubsetTable {
    by_values: HashMap<Metadata, HostSet, ahash::RandomState>,
    /// Of the default subset, if the configuration falls back to it anywhere.
    default: Option<HostSet>,
}

/// A host and whether its priority is in panic, as [`HostSet::choose`] has it.
type Choice<'h> = (Option<&'h Arc<Host>>, bool);

impl SubsetTable {
    /// The subsets of these hosts; `make` arranges one.
    pub(crate) fn new(
        config: &Subsets,
        localities: &[LocalityHosts],
        make: impl Fn(Vec<LocalityHosts>) -> HostSet,
    ) -> Self {
        let mut values: HashMap<Metadata, (), ahash::RandomState> = HashMap::default();
        for host in localities.iter().flat_map(|l| &l.hosts) {
            for selector in &config.selectors {
                for combination in combinations(config, selector, of(host)) {
                    values.insert(combination.into(), ());
                }
            }
        }
        let subset =
            |criteria: &Criteria| make(filtered(localities, |host| has_all(config, of(host), criteria)));
        let by_values = values.into_keys().map(|values| (values.clone(), subset(&values))).collect();
        let to_default = config.fallback == Fallback::Default
            || config.selectors.iter().any(|s| s.fallback == SelectorFallback::Default);
        Self { by_values, default: to_default.then(|| subset(&config.default_subset)) }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_values.len()
    }

    /// How many of these subsets the other table lacks.
    pub(crate) fn missing_in(&self, other: &SubsetTable) -> u64 {
        self.by_values.keys().filter(|values| !other.by_values.contains_key(*values)).count() as u64
    }

    /// The host for a request: `all` is every host of the cluster, `pick` chooses among some.
    pub(crate) fn choose<'h>(
        &'h self,
        config: &Subsets,
        all: &'h HostSet,
        criteria: Option<&Criteria>,
        pick: &dyn Fn(&'h HostSet) -> Choice<'h>,
    ) -> Choice<'h> {
        let stats: &SubsetStats = &config.stats;
        if let Some(criteria) = criteria {
            let reduced: SmallVec<[_; 4]>;
            let mut criteria = criteria;
            if config.allow_redundant_keys
                && let Some(selector) = config.selectors.iter().find(|s| covers(criteria, &s.keys))
            {
                reduced = restricted(criteria, &selector.keys);
                criteria = &reduced;
            }
            if let Some(subset) = self.by_values.get(criteria) {
                stats.lb_subsets_selected.inc();
                return pick(subset);
            }
            let selector = config.selectors.iter().find(|s| same_keys(criteria, &s.keys));
            match selector.map(|selector| &selector.fallback) {
                None | Some(SelectorFallback::NotDefined) => {}
                Some(SelectorFallback::None) => return (None, false),
                Some(SelectorFallback::Any) => return pick(all),
                Some(SelectorFallback::Default) => return self.default.as_ref().map_or((None, false), pick),
                Some(SelectorFallback::Keys(keys)) => {
                    // Fewer keys each time: the converter makes sure of it.
                    return self.choose(config, all, Some(&restricted(criteria, keys)), pick);
                }
            }
        }
        let fallback = match config.fallback {
            Fallback::None => return (None, false),
            Fallback::Any => Some(all),
            Fallback::Default => self.default.as_ref(),
        };
        let choice = fallback.map_or((None, false), pick);
        if choice.0.is_some() {
            stats.lb_subsets_fallback.inc();
            return choice;
        }
        if !config.panic_mode_any {
            return choice;
        }
        let choice = pick(all);
        if choice.0.is_some() {
            stats.lb_subsets_fallback_panic.inc();
        }
        choice
    }
}

/// The metadata of a host that subsets are about.
fn of(host: &Host) -> &Criteria {
    host.endpoint.as_ref().map_or(&[], |endpoint| &endpoint.lb_metadata)
}

fn filtered(localities: &[LocalityHosts], member: impl Fn(&Host) -> bool) -> Vec<LocalityHosts> {
    let of_locality = |l: &LocalityHosts| LocalityHosts {
        priority: l.priority,
        weight: l.weight,
        hosts: l.hosts.iter().filter(|host| member(host)).cloned().collect(),
    };
    localities.iter().map(of_locality).collect()
}

/// Every combination of values by which a host can be asked for through a selector: one, or with `list_as_any`
/// one for each element of lists; none if a key is missing.
fn combinations(
    config: &Subsets,
    selector: &SubsetSelector,
    of_host: &Criteria,
) -> Vec<Vec<(Str, MetadataValue)>> {
    let mut all = vec![Vec::new()];
    for key in &selector.keys {
        let values: &[MetadataValue] = match metadata::find(of_host, key) {
            None => return Vec::new(),
            Some(MetadataValue::List(list)) if config.list_as_any => list,
            Some(value) => std::slice::from_ref(value),
        };
        all = all
            .iter()
            .flat_map(|before: &Vec<_>| {
                values.iter().map(|value| {
                    let mut longer = before.clone();
                    longer.push((key.clone(), value.clone()));
                    longer
                })
            })
            .collect();
    }
    all
}

/// Does a host have all these values?
fn has_all(config: &Subsets, of_host: &Criteria, wanted: &Criteria) -> bool {
    wanted.iter().all(|(key, value)| match metadata::find(of_host, key) {
        Some(MetadataValue::List(list)) if config.list_as_any => list.contains(value),
        Some(has) => has == value,
        None => false,
    })
}

fn same_keys(criteria: &Criteria, keys: &[Str]) -> bool {
    criteria.len() == keys.len() && criteria.iter().zip(keys).all(|((key, _), wanted)| key == wanted)
}

fn covers(criteria: &Criteria, keys: &[Str]) -> bool {
    keys.iter().all(|key| metadata::find(criteria, key).is_some())
}

/// The part of the criteria that is about these keys.
fn restricted(criteria: &Criteria, keys: &[Str]) -> SmallVec<[(Str, MetadataValue); 4]> {
    criteria.iter().filter(|(key, _)| keys.contains(key)).cloned().collect()
}

//! What did not come within its `initial_fetch_timeout`: noted once for each, to be counted.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Assembly;
use super::assembly::{Whole, is_over};
use crate::model::Str;
use crate::model::source::{NeedKind, Source};

/// Names of statistics (`http.PREFIX.rds.NAME`) of what was waited for in vain.
#[derive(Debug, Default)]
pub(super) struct Late {
    noted: BTreeSet<(NeedKind, Str)>,
    clusters: bool,
    listeners: bool,
    /// Not counted yet.
    fresh: Vec<(Option<NeedKind>, Str)>,
}

impl Assembly {
    /// Notes what is late by now.
    pub(super) fn note_late(&mut self, now: Instant) {
        let is_late = |whole: &Whole, source: &Option<(Source, Option<std::time::Duration>)>| {
            let patience = source.as_ref().and_then(|(_, patience)| *patience);
            !whole.answered && whole.asked.is_some_and(|asked| is_over(patience, asked, now))
        };
        let clusters = is_late(&self.whole_clusters, &self.dynamic.clusters);
        let listeners = is_late(&self.whole_listeners, &self.dynamic.listeners);
        let of_clusters = self.clusters.waiting();
        let of_listeners = self.listeners.waiting();
        let waiting = of_clusters
            .flat_map(|(_, item, since)| item.needs().iter().map(move |need| (need, since)))
            .chain(
                of_listeners.flat_map(|(_, item, since)| item.needs().iter().map(move |need| (need, since))),
            );
        let over: Vec<_> = waiting
            .filter(|(need, since)| is_over(need.patience, *since, now) && !self.has(need))
            .map(|(need, _)| (need.kind, need.name.clone(), need.scope.clone()))
            .collect();
        let late = &mut self.late;
        for (kind, name, scope) in over {
            if late.noted.insert((kind, name)) {
                late.fresh.push((Some(kind), scope));
            }
        }
        if clusters && !std::mem::replace(&mut late.clusters, true) {
            late.fresh.push((None, "cluster_manager.cds".into()));
        }
        if listeners && !std::mem::replace(&mut late.listeners, true) {
            late.fresh.push((None, "listener_manager.lds".into()));
        }
    }

    /// What is late and was not told yet: its kind (clusters and listeners as a whole have none) and the name of
    /// its statistics.
    pub(super) fn take_late(&mut self) -> Vec<(Option<NeedKind>, Str)> {
        std::mem::take(&mut self.late.fresh)
    }
}
